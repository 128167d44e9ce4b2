"""`advunlearn miniature`: write the miniature in the shape of Stable Diffusion 1.5 or XL."""

from __future__ import annotations

import pathlib
from argparse import Namespace

from ...errors import AdvUnlearnError
from ...miniature import checkpoint, sdxl
from .output import print_result

WRITERS = {
    "sd15": (checkpoint.write_checkpoint, checkpoint.write_folder),
    "sdxl": (sdxl.write_sdxl_checkpoint, sdxl.write_sdxl_folder),
}
TITLES = {"sd15": "Stable Diffusion 1.5", "sdxl": "SDXL"}


def run(args: Namespace) -> None:
    """Write the miniature, as a checkpoint or as a diffusers folder."""
    path = pathlib.Path(args.to)
    (write_file, write_folder), title = WRITERS[args.family], TITLES[args.family]
    if path.suffix == ".safetensors":
        write_file(path)
        text = f"wrote {path}: it loads wherever {title} checkpoints do"
    elif path.suffix or path.is_file():
        raise AdvUnlearnError(f"--to is {args.to!r}; give a file that ends in .safetensors, or a folder")
    else:
        write_folder(path)
        text = f"wrote {path}: a diffusers folder in the shape of {title}"
    print_result(args, {"file": str(path)}, text)
