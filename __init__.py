"""AdvUnlearn for ComfyUI: the pack's door. The library is in `advunlearn/`, the nodes over it in `nodes/`."""

from importlib.util import find_spec

# pytest and other tools import this file too, where there is no host and nothing to open.
if __package__ and find_spec("comfy") is not None:
    from .nodes import comfy_entrypoint

    __all__ = ["comfy_entrypoint"]
