"""Take a text encoder out of one container and put it into another."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..config.io import CONVERSIONS
from ..config.training import ENCODER_NAMES
from ..errors import AdvUnlearnError
from ..files import write_safetensors
from .detect import count_layers, detect_checkpoint_kind
from .lora import LORA_TE, LORA_TE1, LORA_TE2, extract_lora, save_lora
from .openclip import CLIP_G_PREFIX, extract_sdxl_encoder, in_checkpoint, is_clip_g
from .text_encoders import (
    compute_encoder_shapes,
    find_clip_l_prefix,
    find_encoder_config,
    find_encoder_prefixes,
    get_shapes,
    map_encoder_names,
    require_encoder_shapes,
    write_encoder,
    write_encoder_folder,
)
from .weights import Weights, open_weights

NEEDS_BASE = ("lora", "checkpoint")
# Of a checkpoint's own metadata: no longer true once a tensor is another one.
STALE = ("modelspec.hash_sha256",)


@dataclass(frozen=True)
class ConversionResult:
    """What was written."""

    path: pathlib.Path
    text: str  # for people
    facts: dict[str, Any]  # for programs


def require_writable(out: pathlib.Path, kind: str, overwrite: bool, *sources: str) -> None:
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
    part: str = ENCODER_NAMES[0],
) -> ConversionResult:
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
    out = pathlib.Path(out)
    if kind not in CONVERSIONS:
        raise AdvUnlearnError(f"cannot convert to {kind!r}; there are {', '.join(CONVERSIONS)}")
    if kind in NEEDS_BASE and not base:
        raise AdvUnlearnError(f"--to {kind} needs --base: {CONVERSIONS[kind]}")
    require_writable(out, kind, overwrite, source, *([base] if base else []))
    with open_weights(source) as weights:
        tensors, metadata = extract_sdxl_encoder(weights, part), weights.metadata
    if kind == "lora" and base:
        return _lora(out, source, tensors, metadata, base, rank)
    if kind == "checkpoint" and base:
        return _checkpoint(out, source, tensors, metadata, base)
    config = find_encoder_config(tensors, source, *([base] if base else []))
    require_encoder_shapes(compute_encoder_shapes(config), tensors, source)
    if kind == "diffusers":
        write_encoder_folder(out, tensors, config, metadata)
    else:
        write_encoder(out, tensors, metadata)
    what = f"{CONVERSIONS[kind]}: {count_layers(tensors)} layers of {config['hidden_size']}"
    return ConversionResult(out, f"wrote {out}, {what}", {"file": str(out), "tensors": len(tensors)})


def _lora(
    out: pathlib.Path, source: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], base: str, rank: int
) -> ConversionResult:
    second, beside = is_clip_g(tensors), pathlib.Path(base) / "text_encoder_2"  # of an SDXL folder
    with open_weights(beside if second and beside.is_dir() else base) as weights:
        old = extract_sdxl_encoder(weights, ENCODER_NAMES[second])
        of_sdxl = beside.is_dir() or any(name.startswith(CLIP_G_PREFIX) for name in weights.names)
    require_encoder_shapes(get_shapes(old), tensors, source)
    made = extract_lora(old, tensors, rank, LORA_TE2 if second else LORA_TE1 if of_sdxl else LORA_TE)
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
    return ConversionResult(out, text, {"file": str(out), "rank": rank, "layers": layers, "residual": made.residual})


def _clip_l_in(weights: Weights, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return what CLIP-L's tensors replace in a checkpoint, by the names there."""
    base = weights.source
    there = map_encoder_names(weights, find_clip_l_prefix(weights))
    if not detect_checkpoint_kind(weights.names, weights.shape):
        raise AdvUnlearnError(f"{base} is a text encoder alone; give the full checkpoint that it is to go into")
    if len(find_encoder_prefixes(weights)) > 1:
        raise AdvUnlearnError(f"{base} holds its text encoder twice; save it once more with one copy")
    require_encoder_shapes({name: weights.shape(n) for name, n in there.items()}, tensors, source)
    return {n: tensors[name].contiguous() for name, n in there.items()}


def _checkpoint(
    out: pathlib.Path, source: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], base: str
) -> ConversionResult:
    if pathlib.Path(base).is_dir():
        raise AdvUnlearnError(f"{base} is a folder; --to checkpoint needs a checkpoint in one file as --base")
    with open_weights(base) as weights:
        new = in_checkpoint(weights, tensors, source) if is_clip_g(tensors) else _clip_l_in(weights, tensors, source)
        what = detect_checkpoint_kind(weights.names, weights.shape)
        state = {name: weights.read(name).contiguous() for name in weights.names} | new
        recipe = {k: v for k, v in metadata.items() if k.startswith("advunlearn.") and k != "advunlearn.format"}
        kept = {k: v for k, v in weights.metadata.items() if k not in STALE}
        write_safetensors(out, state, {"format": "pt"} | kept | recipe)
    rest = len(state) - len(new)
    text = f"wrote {out}, {what} with this text encoder; its other {rest} tensors are those of {base}, bit for bit"
    return ConversionResult(out, text, {"file": str(out), "replaced": len(new), "kept": rest, "checkpoint": what})
