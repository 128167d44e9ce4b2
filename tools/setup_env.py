"""Run one of the project's tasks, after making the environment that it needs.

    python tools/setup_env.py TASK [ARGUMENTS ...]

Tasks: setup, demo, test, test-slow, test-all, test-host, lint, bench. Arguments go to the task's last command. On the
first call an environment is made in `.venv`: this takes some minutes, since PyTorch is downloaded. `make TASK` is the
same. Environment variables:

    TORCH   what pip is given to install PyTorch, default "torch"; for instance "torch==2.13.0", or
            "torch --index-url https://download.pytorch.org/whl/cpu"
    PYTHON  the Python of an existing environment, which is used as it is: nothing is installed
    VENV    where the environment is made, default ".venv"
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import venv

ROOT = pathlib.Path(__file__).resolve().parents[1]
OLDEST = (3, 10)
STAMP = "advunlearn-setup.json"  # in the environment: what was installed, or that it is not finished
WORKERS = str(min(8, os.cpu_count() or 1))
TESTS = ["-m", "pytest", "-n", WORKERS, "-m"]
LINT = [["-m", "ruff", "check", "."], ["-m", "ruff", "format", "--check", "."], ["-m", "mypy"]]
# The commands of each task, as arguments of Python.
TASKS: dict[str, list[list[str]]] = {
    "setup": [],
    "demo": [["-m", "advunlearn", "demo", "--out", "runs/demo"]],
    "test": [[*TESTS, "not slow and not host"]],
    "test-slow": [[*TESTS, "slow and not host"]],
    "test-all": [[*TESTS, "not host"]],
    "test-host": [["-m", "pytest", "-m", "host", "tests/host"]],
    "lint": LINT,
    "bench": [["-m", "benchmarks"]],
}


def python_in(folder: pathlib.Path) -> pathlib.Path:
    """Return the Python of an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def can_run(python: pathlib.Path, *arguments: str) -> bool:
    """Return whether a Python is there and a command of it succeeds."""
    try:
        return subprocess.run([python, *arguments], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def list_requirements() -> list[str]:
    """Return what the tasks need besides PyTorch: the library's requirements and the tools of pyproject's `dev`."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    tools = re.search(r"^dev = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S)
    assert tools, "pyproject.toml has no extra `dev`"
    return [line for line in lines if line and not line.startswith("#")] + re.findall(r'"([^"]+)"', tools[1])


def read_stamp(folder: pathlib.Path) -> dict[str, str] | None:
    """Return what an environment's stamp says; None if it has none, an empty one if it was never finished."""
    try:
        return json.loads((folder / STAMP).read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def create(folder: pathlib.Path) -> None:
    """Make a new environment, in place of what may be there, with a stamp that says that it is not finished."""
    print(f"Making an environment in {folder}", flush=True)
    # The links are kept as `python -m venv` does it, since some builds of Python fail when copied.
    venv.EnvBuilder(clear=True, symlinks=os.name != "nt").create(folder)
    (folder / STAMP).write_text("{}", encoding="utf-8")
    if subprocess.run([python_in(folder), "-m", "ensurepip"], stdout=subprocess.DEVNULL, check=False).returncode:
        sys.exit("This Python has no pip for new environments. On Debian and Ubuntu: apt install python3-venv")


def install(folder: pathlib.Path, torch: str, wanted: dict[str, str]) -> None:
    """Install PyTorch and the requirements, then write the stamp."""
    pip = [str(python_in(folder)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    (folder / STAMP).write_text("{}", encoding="utf-8")
    print(f"Installing {torch} (the largest download), then the requirements", flush=True)
    for packages in (shlex.split(torch), list_requirements()):
        status = subprocess.run([*pip, *packages], check=False).returncode
        if status:
            sys.exit(f"pip failed (exit code {status}); the next call starts again.")
    (folder / STAMP).write_text(json.dumps(wanted), encoding="utf-8")


def prepare(folder: pathlib.Path, torch: str) -> pathlib.Path:
    """Return the Python of an environment with all that the tasks need; make or finish the environment first."""
    python = python_in(folder)
    requirements = hashlib.sha256("\n".join(list_requirements()).encode()).hexdigest()
    stamp = read_stamp(folder)
    if stamp == {} or not can_run(python, "-c", "import sys"):
        create(folder)
        stamp = {}
    elif stamp is None and not can_run(python, "-m", "pip", "--version"):
        sys.exit(f"{folder} was not made by this script and has no pip: delete it, or pass PYTHON={python}")
    wanted = {"torch": torch or (stamp or {}).get("torch", "torch"), "requirements": requirements}
    if stamp != wanted:
        install(folder, wanted["torch"], wanted)
    return python


def main(arguments: list[str]) -> int:
    """Run a task and return its exit code."""
    if not arguments or arguments[0] not in TASKS:
        print(__doc__)
        return 2
    if sys.version_info < OLDEST:
        print(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}")
        return 2
    given = os.environ.get("PYTHON")
    python = given or str(prepare(ROOT / (os.environ.get("VENV") or ".venv"), os.environ.get("TORCH", "")))
    commands = [[python, *command] for command in TASKS[arguments[0]]]
    for command in commands:
        extra = arguments[1:] if command is commands[-1] else []
        print("$", shlex.join([*command, *extra]), flush=True)
        status = subprocess.run([*command, *extra], cwd=ROOT, check=False).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
