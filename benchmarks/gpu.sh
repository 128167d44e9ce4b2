#!/bin/sh
# Run the GPU's tests and benchmarks in under 8 minutes and write one JSON file: see benchmarks/gpu.py.
#
#     benchmarks/gpu.sh [--out runs/gpu.json] [--device cpu]
#
# PYTHON chooses the Python (default: .venv/bin/python if there is one, else python3).
# COMFYUI_PATH and COMFYUI_PYTHON add the tests in a ComfyUI.
set -e
cd "$(dirname "$0")/.."
if [ -z "$PYTHON" ]; then
    PYTHON=python3
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
exec "$PYTHON" benchmarks/gpu.py "$@"
