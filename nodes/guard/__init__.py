"""The guard: enforce the robust text encoder on the server, whatever graph is submitted. Off by default.

`rules.py` decides, and imports no host; `host.py` connects it to ComfyUI; `settings.py` reads the operator's file.
docs/guide/threat-model.md says what it closes and what it does not.
"""
