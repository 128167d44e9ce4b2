"""AdvUnlearn for ComfyUI: the pack's door. The library is in `advunlearn/`, the nodes over it in `nodes/`."""

if __package__:  # empty when a tool imports this file by itself, where relative imports cannot work
    NODE_CLASS_MAPPINGS: dict[str, type] = {}  # the nodes register here
