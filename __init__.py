"""AdvUnlearn for ComfyUI: the pack's door. The library is in `advunlearn/`, the nodes over it in `nodes/`."""

from importlib.util import find_spec

WEB_DIRECTORY = "./web"  # web/docs/<node id>.md is the node's help page

# pytest and other tools import this file too, where there is no host and nothing to open.
if __package__ and find_spec("comfy") is not None:
    from .nodes import comfy_entrypoint

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
