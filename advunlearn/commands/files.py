"""Commands about files: write the miniature, fetch an encoder, say what one is."""

from __future__ import annotations

import json
import pathlib
from argparse import Namespace
from typing import Any

from .. import released
from ..errors import AdvUnlearnError
from ..formats import read_encoder
from ..identify import layer_count
from ..progress import Bar
from .common import finish


def miniature(args: Namespace) -> None:
    """Write the widened miniature."""
    from ..miniature import checkpoint

    path = pathlib.Path(args.to)
    if path.suffix == ".safetensors":
        checkpoint.write(path)
        finish(args, {"file": str(path)}, f"wrote {path}: it loads wherever a Stable Diffusion 1.5 checkpoint does")
    elif path.suffix or path.is_file():
        raise AdvUnlearnError(f"--to is {args.to!r}; give a file that ends in .safetensors, or a folder")
    else:
        checkpoint.write_folder(path)
        finish(args, {"file": str(path)}, f"wrote {path}: a diffusers folder in the shape of Stable Diffusion 1.5")


def info(args: Namespace) -> None:
    """Say what an encoder file is."""
    tensors, metadata = read_encoder(args.file)
    layers = layer_count(tensors)
    table = next((v for k, v in tensors.items() if k.endswith("token_embedding.weight")), None)
    if table is None:
        raise AdvUnlearnError(f"{args.file} has no token embedding table: it is not a whole text encoder")
    vocabulary, width = table.shape
    facts = {"file": args.file, "layers": layers, "width": width, "vocabulary": vocabulary, "tensors": len(tensors)}
    recipe = {k.removeprefix("advunlearn."): _parsed(v) for k, v in sorted(metadata.items())}
    lines = [f"{args.file}: CLIP text encoder, {layers} layers of {width}, {vocabulary} tokens"]
    lines += [f"  {k}: {v if isinstance(v, str) else json.dumps(v)}" for k, v in recipe.items()]
    finish(args, facts | {"metadata": recipe}, "\n".join(lines))


def fetch(args: Namespace) -> None:
    """Fetch a released encoder."""
    bar = Bar(args.name)
    try:
        path = released.fetch(args.name, args.to, lambda done, total: bar.update("bytes", done, total))
    finally:
        bar.close()
    finish(args, {"file": str(path)}, f"{path}: give it to --encoder, or put its folder into models/text_encoders")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
