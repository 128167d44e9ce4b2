"""Convert a text encoder from one file format to another."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..config.io import CONVERSIONS
from ..config.training import ENCODER_NAMES
from ..errors import AdvUnlearnError
from ..files import TEXT_ENCODER_WEIGHTS, JsonDict
from .detect import count_layers, detect_checkpoint_kind
from .encoder_config import compute_encoder_shapes, find_encoder_config
from .lora import LORA_TE, LORA_TE1, LORA_TE2, extract_lora, save_lora
from .sdxl_encoders import CLIP_G_PREFIX, build_clip_g_replacement, extract_sdxl_encoder, is_clip_g
from .tensors import write_safetensors
from .text_encoders import (
    count_added_tokens,
    find_clip_l_prefix,
    find_encoder_prefixes,
    map_encoder_names,
    require_encoder_shapes,
    write_encoder,
    write_encoder_folder,
    write_published,
)
from .weights import Weights, get_shapes, open_weights

# Metadata of a checkpoint that is wrong once a tensor is replaced.
STALE_METADATA = ("modelspec.hash_sha256",)


@dataclass(frozen=True)
class ConversionResult:
    """The result of `convert`: the path, one sentence, and the same as data."""

    path: pathlib.Path
    text: str
    facts: JsonDict


@dataclass(frozen=True)
class SourceEncoder:
    """A text encoder read from a file: its tensors under `text_model.` keys, and the file's metadata."""

    path: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def require_writable(out: pathlib.Path, kind: str, overwrite: bool, *sources: str) -> None:
    """Raise AdvUnlearnError if a file would be lost, or the output's name does not fit its kind."""
    if kind == "diffusers":
        if out.suffix == ".safetensors" or out.is_file():
            raise AdvUnlearnError(f"{str(out)!r}: diffusers is a folder; give a folder's name")
        written = [out / "config.json", out / TEXT_ENCODER_WEIGHTS[0]]
    else:
        ending = ".pt" if kind == "pt" else ".safetensors"
        if out.suffix != ending:
            raise AdvUnlearnError(f"{str(out)!r}: {kind} is written as one file; give a name that ends in {ending}")
        if out.is_dir():
            raise AdvUnlearnError(f"{str(out)!r} is a folder; give a file's name")
        written = [out]
    for source in sources:
        if pathlib.Path(source).exists() and any(path.exists() and path.samefile(source) for path in (out, *written)):
            raise AdvUnlearnError(f"{str(out)!r} is an input; give another name")
    if existing := [path for path in written if path.exists() and not overwrite]:
        raise AdvUnlearnError(f"{existing[0]} already exists; give another name, or --overwrite")


def convert(
    source: str,
    out: str | pathlib.Path,
    kind: str,
    base: str | None = None,
    rank: int = 32,
    overwrite: bool = False,
    part: str = ENCODER_NAMES[0],
) -> ConversionResult:
    """Write the text encoder of a file, CLIP-L or CLIP-G, in another format. Its tensors stay the same bit for bit.

    Args:
        source: a file or folder that holds a CLIP text encoder.
        out: the file or folder to write.
        kind: one of `CONVERSIONS`.
        base: a file or a folder: for a LoRA the encoder before training, for a checkpoint the one to copy. Otherwise
            it is needed only if nothing else has the encoder's configuration.
        rank: the rank of a LoRA.
        overwrite: whether an existing output may be replaced.
        part: 'clip_l' or 'clip_g': which encoder of an SDXL checkpoint to take.

    Raises AdvUnlearnError for a file without a text encoder, one of another shape, and if a file would be lost.
    """
    out = pathlib.Path(out)
    if kind not in CONVERSIONS:
        raise AdvUnlearnError(f"cannot convert to {kind!r}; there are {', '.join(CONVERSIONS)}")
    if kind in ("lora", "checkpoint") and not base:
        raise AdvUnlearnError(f"--to {kind} needs --base: {CONVERSIONS[kind]}")
    bases = [base] if base else []
    require_writable(out, kind, overwrite, source, *bases)
    with open_weights(source) as weights:
        encoder = SourceEncoder(source, extract_sdxl_encoder(weights, part), weights.metadata)
        added = count_added_tokens(weights)
    if kind == "lora" and base:
        return _write_lora(out, encoder, base, rank)
    if kind == "checkpoint" and base:
        return _write_checkpoint(out, encoder, base)
    config = find_encoder_config(encoder.tensors, source, *bases)
    require_encoder_shapes(compute_encoder_shapes(config), encoder.tensors, source)
    if kind == "diffusers":
        write_encoder_folder(out, encoder.tensors, config, encoder.metadata)
    elif kind == "pt":
        write_published(out, encoder.tensors)
    else:
        write_encoder(out, encoder.tensors, encoder.metadata)
    size = f"{count_layers(encoder.tensors)} layers of {config['hidden_size']}"
    size += f"; {added} added token embeddings are left out" if added else ""
    facts = {"file": str(out), "tensors": len(encoder.tensors)}
    return ConversionResult(out, f"wrote {out}, {CONVERSIONS[kind]}: {size}", facts)


def _write_lora(out: pathlib.Path, encoder: SourceEncoder, base: str, rank: int) -> ConversionResult:
    is_second = is_clip_g(encoder.tensors)
    second_folder = pathlib.Path(base) / "text_encoder_2"  # of a diffusers folder of SDXL
    with open_weights(second_folder if is_second and second_folder.is_dir() else base) as weights:
        old = extract_sdxl_encoder(weights, ENCODER_NAMES[is_second])
        is_sdxl = second_folder.is_dir() or any(name.startswith(CLIP_G_PREFIX) for name in weights.names)
    require_encoder_shapes(get_shapes(old), encoder.tensors, encoder.path)
    prefix = LORA_TE2 if is_second else LORA_TE1 if is_sdxl else LORA_TE
    lora = extract_lora(old, encoder.tensors, rank, prefix)
    if not lora.tensors:
        raise AdvUnlearnError(f"no linear layer differs from {base}: there is nothing to write into a LoRA")
    recipe = {k: v for k, v in encoder.metadata.items() if k.startswith("advunlearn.")}
    kohya = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    save_lora(out, lora, recipe | kohya)
    layers = len(lora.tensors) // 3
    text = (
        f"wrote {out}, a LoRA of rank {rank} in {layers} linear layers; "
        f"it leaves out {lora.residual:.2%} of the difference"
    )
    return ConversionResult(out, text, {"file": str(out), "rank": rank, "layers": layers, "residual": lora.residual})


def _write_checkpoint(out: pathlib.Path, encoder: SourceEncoder, base: str) -> ConversionResult:
    if pathlib.Path(base).is_dir():
        raise AdvUnlearnError(f"{base} is a folder; --to checkpoint needs a checkpoint in one file as --base")
    with open_weights(base) as weights:
        build = build_clip_g_replacement if is_clip_g(encoder.tensors) else _build_clip_l_replacement
        replacement = build(weights, encoder.tensors, encoder.path)
        kind = detect_checkpoint_kind(weights.names, weights.shape)
        state = {name: weights.copy(name).contiguous() for name in weights.names} | replacement
        base_metadata = {k: v for k, v in weights.metadata.items() if k not in STALE_METADATA}
        recipe = {k: v for k, v in encoder.metadata.items() if k.startswith("advunlearn.") and k != "advunlearn.format"}
        write_safetensors(out, state, {"format": "pt"} | base_metadata | recipe)
    rest = len(state) - len(replacement)
    text = f"wrote {out}, {kind} with this text encoder; its other {rest} tensors are those of {base}, bit for bit"
    facts = {"file": str(out), "replaced": len(replacement), "kept": rest, "checkpoint": kind}
    return ConversionResult(out, text, facts)


def _build_clip_l_replacement(weights: Weights, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the tensors that replace CLIP-L in a checkpoint, by their names there."""
    names = map_encoder_names(weights, find_clip_l_prefix(weights))
    if not detect_checkpoint_kind(weights.names, weights.shape):
        raise AdvUnlearnError(f"{weights.source} is a text encoder alone; give the full checkpoint to put it into")
    if len(find_encoder_prefixes(weights)) > 1:
        raise AdvUnlearnError(f"{weights.source} holds its text encoder twice; save it again with one copy")
    require_encoder_shapes({name: weights.shape(stored) for name, stored in names.items()}, tensors, source)
    return {stored: tensors[name].contiguous() for name, stored in names.items()}
