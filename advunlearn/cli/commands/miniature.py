"""`advunlearn miniature`: write the miniature in the shape of Stable Diffusion 1.5."""

from __future__ import annotations

import pathlib
from argparse import Namespace

from ...errors import AdvUnlearnError
from ...miniature import checkpoint
from .output import print_result


def run(args: Namespace) -> None:
    """Write the widened miniature, as a checkpoint or as a diffusers folder."""
    path = pathlib.Path(args.to)
    if path.suffix == ".safetensors":
        checkpoint.write_checkpoint(path)
        text = f"wrote {path}: it loads wherever a Stable Diffusion 1.5 checkpoint does"
    elif path.suffix or path.is_file():
        raise AdvUnlearnError(f"--to is {args.to!r}; give a file that ends in .safetensors, or a folder")
    else:
        checkpoint.write_folder(path)
        text = f"wrote {path}: a diffusers folder in the shape of Stable Diffusion 1.5"
    print_result(args, {"file": str(path)}, text)
