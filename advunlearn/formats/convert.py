"""Take a text encoder out of one container and put it into another."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .. import miniature
from ..config.io import CONVERSIONS
from ..errors import AdvUnlearnError
from ..files import write_safetensors
from ..models.sdxl_text_encoder import NAMES
from .detect import checkpoint_of, layer_count
from .lora import FIRST, SECOND, SINGLE, lora, save_lora
from .openclip import HOME, in_checkpoint, is_clip_g, read_part
from .text_encoders import (
    config_of,
    home_of_clip_l,
    homes_of,
    names_in,
    require_state,
    shapes_of,
    text_shapes,
    write_encoder,
    write_folder,
)
from .weights import Weights, opened

NEEDS_BASE = ("lora", "checkpoint")
# Of a checkpoint's own metadata: no longer true once a tensor is another one.
STALE = ("modelspec.hash_sha256",)


@dataclass(frozen=True)
class Converted:
    """What was written."""

    path: pathlib.Path
    text: str  # for people
    facts: dict[str, Any]  # for programs


def place_of(base: str) -> str:
    """Return where the text encoder of a base is: of 'miniature', of a file or of a folder."""
    return str(miniature.path()) if base == "miniature" else base


def require_free(out: pathlib.Path, kind: str, overwrite: bool, *sources: str) -> None:
    """Raise AdvUnlearnError where something would be lost, or the name does not fit what is written."""
    if kind != "diffusers" and out.suffix != ".safetensors":
        raise AdvUnlearnError(f"{str(out)!r}: {kind} is written as one file; give a name that ends in .safetensors")
    if kind == "diffusers" and (out.suffix == ".safetensors" or out.is_file()):
        raise AdvUnlearnError(f"{str(out)!r}: diffusers is a folder; give a folder's name")
    if out.is_dir() and kind != "diffusers":
        raise AdvUnlearnError(f"{str(out)!r} is a folder; give a file's name")
    written = [out / "config.json", out / "model.safetensors"] if kind == "diffusers" else [out]
    same = [
        s for s in sources if pathlib.Path(s).exists() and any(w.exists() and w.samefile(s) for w in (out, *written))
    ]
    if same:
        raise AdvUnlearnError(f"{str(out)!r} is what is read; give another name")
    if lost := [place for place in written if place.exists() and not overwrite]:
        raise AdvUnlearnError(f"{lost[0]} is there already; give another name, or --overwrite")


def convert(
    source: str,
    out: str | pathlib.Path,
    kind: str,
    base: str | None = None,
    rank: int = 32,
    overwrite: bool = False,
    part: str = NAMES[0],
) -> Converted:
    """Write the text encoder of a file, CLIP-L or CLIP-G, in another form; its tensors stay as they are, bit for bit.

    Args:
        source: a file or folder that holds a CLIP text encoder.
        out: what to write.
        kind: one of `CONVERSIONS`.
        base: 'miniature', a file or a folder: for a LoRA the encoder before training, for a checkpoint the one to
            copy; otherwise asked for only where nothing else tells the encoder's configuration.
        rank: of a LoRA.
        overwrite: whether what is there may be replaced.
        part: 'clip_l' or 'clip_g': which is meant where a checkpoint of SDXL has both.

    Raises AdvUnlearnError for a file without a text encoder, one of another shape, and where something would be lost.
    """
    out, source = pathlib.Path(out), place_of(source)
    if kind not in CONVERSIONS:
        raise AdvUnlearnError(f"cannot convert to {kind!r}; there are {', '.join(CONVERSIONS)}")
    if kind in NEEDS_BASE and not base:
        raise AdvUnlearnError(f"--to {kind} needs --base: {CONVERSIONS[kind]}")
    where = place_of(base) if base else None
    require_free(out, kind, overwrite, source, *([where] if where else []))
    with opened(source) as weights:
        tensors, metadata = read_part(weights, part), weights.metadata
    if kind == "lora" and where:
        return _lora(out, source, tensors, metadata, where, rank)
    if kind == "checkpoint" and where:
        return _checkpoint(out, source, tensors, metadata, where)
    config = config_of(tensors, source, *([where] if where else []))
    require_state(text_shapes(config), tensors, source)
    if kind == "diffusers":
        write_folder(out, tensors, config, metadata)
    else:
        write_encoder(out, tensors, metadata)
    what = f"{CONVERSIONS[kind]}: {layer_count(tensors)} layers of {config['hidden_size']}"
    return Converted(out, f"wrote {out}, {what}", {"file": str(out), "tensors": len(tensors)})


def _lora(
    out: pathlib.Path, source: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], base: str, rank: int
) -> Converted:
    second, beside = is_clip_g(tensors), pathlib.Path(base) / "text_encoder_2"  # of an SDXL folder
    with opened(beside if second and beside.is_dir() else base) as weights:
        old = read_part(weights, NAMES[second])
        of_sdxl = beside.is_dir() or any(name.startswith(HOME) for name in weights.names)
    require_state(shapes_of(old), tensors, source)
    made = lora(old, tensors, rank, SECOND if second else FIRST if of_sdxl else SINGLE)
    if not made.tensors:
        raise AdvUnlearnError(f"no linear layer differs from {base}: there is nothing to write into a LoRA")
    save_lora(
        out,
        made,
        {k: v for k, v in metadata.items() if k.startswith("advunlearn.")}
        | {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)},
    )
    layers = len(made.tensors) // 3
    text = (
        f"wrote {out}, a LoRA of rank {rank} in {layers} linear layers; "
        f"it leaves out {made.residual:.2%} of the difference"
    )
    return Converted(out, text, {"file": str(out), "rank": rank, "layers": layers, "residual": made.residual})


def _clip_l_in(weights: Weights, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return what CLIP-L's tensors replace in a checkpoint, by the names there."""
    base = weights.source
    there = names_in(weights, home_of_clip_l(weights))
    if not checkpoint_of(weights.names, weights.shape):
        raise AdvUnlearnError(f"{base} is a text encoder alone; give the full checkpoint that it is to go into")
    if len(homes_of(weights)) > 1:
        raise AdvUnlearnError(f"{base} holds its text encoder twice; save it once more with one copy")
    require_state({name: weights.shape(n) for name, n in there.items()}, tensors, source)
    return {n: tensors[name].contiguous() for name, n in there.items()}


def _checkpoint(
    out: pathlib.Path, source: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], base: str
) -> Converted:
    if pathlib.Path(base).is_dir():
        raise AdvUnlearnError(f"{base} is a folder; --to checkpoint needs a checkpoint in one file as --base")
    with opened(base) as weights:
        new = in_checkpoint(weights, tensors, source) if is_clip_g(tensors) else _clip_l_in(weights, tensors, source)
        what = checkpoint_of(weights.names, weights.shape)
        state = {name: weights.read(name).contiguous() for name in weights.names} | new
        recipe = {k: v for k, v in metadata.items() if k.startswith("advunlearn.") and k != "advunlearn.format"}
        kept = {k: v for k, v in weights.metadata.items() if k not in STALE}
        write_safetensors(out, state, {"format": "pt"} | kept | recipe)
    rest = len(state) - len(new)
    text = f"wrote {out}, {what} with this text encoder; its other {rest} tensors are those of {base}, bit for bit"
    return Converted(out, text, {"file": str(out), "replaced": len(new), "kept": rest, "checkpoint": what})
