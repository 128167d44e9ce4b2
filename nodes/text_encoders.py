"""The host's CLIP as the library's text encoder and back: CLIP-L alone, or SDXL's CLIP-L and CLIP-G."""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.sdxl_clip
import torch
from torch import Tensor

from ..advunlearn.config.training import ENCODER_NAMES, Encoders
from ..advunlearn.errors import AdvUnlearnError
from ..advunlearn.files import TEXT_ENCODER_WEIGHTS
from ..advunlearn.formats.detect import CLIP_G_WIDTH, PROJECTION, TEXT_PREFIX, require_width
from ..advunlearn.formats.inspect import decode_metadata
from ..advunlearn.formats.sdxl_encoders import CLIP_G_PREFIX, extract_sdxl_encoder, is_clip_g
from ..advunlearn.formats.text_encoders import export_state
from ..advunlearn.formats.weights import describe_mismatch, get_shapes, open_weights
from ..advunlearn.models.encoder_files import select_part_metadata
from ..advunlearn.models.sdxl_text_encoder import DualTextEncoder
from ..advunlearn.models.text_encoder import encoder_parts
from . import clip_l, folders

CLIP_L, CLIP_G = ENCODER_NAMES
TITLES = {CLIP_L: "CLIP-L", CLIP_G: "CLIP-G"}
FULL = {CLIP_L: 1.0, CLIP_G: 1.0}
SDXL_LAYERS = (None, -2)  # of CLIP Set Last Layer that change nothing for SDXL
States = dict[str, dict[str, Tensor]]  # weights under `text_model.` keys by the encoder's name


def is_sdxl(clip: Any) -> bool:
    """Return whether a CLIP is SDXL's. SD3's and HiDream's may consist of the same two encoders, used differently."""
    return isinstance(clip.cond_stage_model, comfy.sdxl_clip.SDXLClipModel)


def list_parts(clip: Any) -> tuple[str, ...]:
    """Return the names of the encoders of a CLIP that are trained and saved: CLIP-L, and SDXL's CLIP-G."""
    return ENCODER_NAMES if is_sdxl(clip) else (CLIP_L,)


def make_text_encoder(clip: Any, device: torch.device) -> Any:
    """Return a CLIP's encoder in float32 on a device: a CLIPTextModel, or a DualTextEncoder for SDXL's two.

    Raises AdvUnlearnError for a CLIP without CLIP-L, and for SDXL's with another layer than the one before the last.
    """
    if not is_sdxl(clip):
        return clip_l.make_text_encoder(clip, device)
    if clip.layer_idx not in SDXL_LAYERS:
        raise AdvUnlearnError(
            f"this CLIP stops at layer {clip.layer_idx} (CLIP Set Last Layer), and SDXL was trained with layer -2; "
            "remove that node"
        )
    first, second = (clip_l.make_part(clip, name, device) for name in ENCODER_NAMES)
    return DualTextEncoder(first, second).train(False)


@functools.cache
def read_clip_g_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of CLIP-G's weights under `text_model.` keys, and its projection's."""
    with torch.device("meta"):
        model = comfy.sdxl_clip.SDXLClipG(device="meta", dtype=torch.float16)
    state = get_shapes(model.transformer.state_dict())
    return {k: v for k, v in state.items() if k.startswith((TEXT_PREFIX, PROJECTION)) and "position_ids" not in k}


def check_clip_g(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise AdvUnlearnError that names the first key that does not fit CLIP-G."""
    require_width(tensors, CLIP_G_WIDTH, source)
    if mismatch := describe_mismatch(read_clip_g_shapes(), get_shapes(tensors), "CLIP-G's "):
        raise AdvUnlearnError(f"{source} {mismatch}; give a CLIP-G of SDXL")


def replace_parts(clip: Any, states: States, source: str, strengths: Mapping[str, float] = FULL) -> Any:
    """Return a clone of a CLIP with new weights of one or both encoders, each base + strength * (new - base).

    Raises AdvUnlearnError for weights that do not fit, and for a CLIP-G in a CLIP that has none.
    """
    robust = clip
    if CLIP_L in states:
        robust = clip_l.replace_encoder(robust, states[CLIP_L], strengths[CLIP_L], source)
    if CLIP_G in states:
        if getattr(clip.cond_stage_model, CLIP_G, None) is None:
            raise AdvUnlearnError(f"{source} is a CLIP-G, and this CLIP has none; connect the CLIP of an SDXL model")
        check_clip_g(states[CLIP_G], source)
        robust = robust.clone()
        patches = {f"{CLIP_G}.transformer.{name}": (tensor,) for name, tensor in states[CLIP_G].items()}
        robust.add_patches(patches, strengths[CLIP_G], 1 - strengths[CLIP_G])
    return robust


def export_parts(encoder: Any, encoders: Encoders = "both") -> States:
    """Return the trained parts of an encoder: CLIP-L alone, or the chosen ones of SDXL's two."""
    parts = encoder_parts(encoder)
    states = {}
    for name, part in parts.items():
        if len(parts) == 1 or encoders in ("both", name):
            state = export_state(part)
            states[name] = {k: v for k, v in state.items() if name == CLIP_G or k != PROJECTION}
    return states


def save_parts(
    name: str, encoder: Any, encoders: Encoders, metadata: Mapping[str, object], dtype: torch.dtype | None
) -> tuple[pathlib.Path, str]:
    """Save the trained parts of an encoder; return the first file and the name under which the host lists it.

    SDXL's are NAME_00001_clip_l.safetensors and NAME_00001_clip_g.safetensors, for Load Robust CLIP and the host's
    DualCLIPLoader.
    """
    from ..advunlearn.formats.text_encoders import save_encoder

    parts = encoder_parts(encoder)
    files = new_paths(name, list(parts), encoders)
    for part, (path, _) in files.items():
        save_encoder(path, parts[part], select_part_metadata(metadata, part), dtype)
    return next(iter(files.values()))


def new_paths(name: str, parts: Sequence[str], encoders: Encoders = "both") -> dict[str, tuple[pathlib.Path, str]]:
    """Return new numbered paths of the chosen encoders, and the names under which the host will list them.

    One of several encoders has its own name at the end. All paths are chosen before the first file is written, which
    changes the number.
    """
    if len(parts) == 1:
        return {parts[0]: folders.new_path(name)}
    chosen = [part for part in parts if encoders in ("both", part)]
    return {part: folders.new_path(name, suffix=f"{part}.safetensors") for part in chosen}


def find_partner(path: pathlib.Path) -> pathlib.Path | None:
    """Return the file of the other encoder that this library wrote together with a file, or None.

    Both must be of this library: many folders hold a clip_l.safetensors and a clip_g.safetensors of other origin, and
    whoever chooses one of them does not ask for the other.
    """
    partner = name_partner(path)
    return partner if partner and partner.is_file() and _is_ours(path) and _is_ours(partner) else None


def name_partner(path: pathlib.Path) -> pathlib.Path | None:
    """Return the other path of a pair: the files, or their folders, are NAME_clip_l and NAME_clip_g."""
    named = path.parent if path.name in TEXT_ENCODER_WEIGHTS else path
    for own, other in (ENCODER_NAMES, ENCODER_NAMES[::-1]):
        if match := re.fullmatch(rf"((?:.*_)?){own}((?:\.safetensors)?)", named.name):
            partner = named.with_name(match[1] + other + match[2])
            return partner / path.name if named != path else partner
    return None


def check_partner(path: pathlib.Path, clip: Any) -> None:
    """Raise AdvUnlearnError for a file that lacks the other encoder of its pair, for a CLIP that has both encoders.

    Of two encoders that were trained together each learned a part: with one of them the concept comes back.
    """
    partner = name_partner(path)
    if partner is None or getattr(getattr(clip, "cond_stage_model", None), CLIP_G, None) is None:
        return
    with open_weights(path) as weights:
        recipe = decode_metadata(weights.metadata).get("recipe")
    train = recipe.get("train") if isinstance(recipe, Mapping) else None
    if isinstance(train, Mapping) and train.get("encoders") == "both":
        raise AdvUnlearnError(
            f"{path.name} was trained together with the encoder in {partner.name}, which is missing next to it, and "
            "with one of the two the concept comes back; put the other file there, choose it as second_encoder, or set "
            "second_encoder to none to load this one alone"
        )


def _is_ours(path: pathlib.Path) -> bool:
    with open_weights(path) as weights:
        return any(name.startswith("advunlearn.") for name in weights.metadata)


def read_parts(*paths: pathlib.Path) -> States:
    """Return the text encoders in files by name: of one file, of the two files of a pair, or of an SDXL checkpoint.

    Raises AdvUnlearnError for a file that holds none, and for two files that hold the same encoder.
    """
    states: States = {}
    for path in paths:
        with open_weights(path) as weights:
            is_checkpoint = any(name.startswith(CLIP_G_PREFIX) for name in weights.names)
            for part in ENCODER_NAMES if is_checkpoint else ENCODER_NAMES[:1]:
                tensors = extract_sdxl_encoder(weights, part)
                name = CLIP_G if is_clip_g(tensors) else CLIP_L
                if name in states:
                    raise AdvUnlearnError(
                        f"{path} and {paths[0]} both hold a {TITLES[name]}; choose a file with the other encoder as "
                        "second_encoder, or none"
                    )
                states[name] = tensors
    return states


def choose_parts(clip: Any, states: States) -> States:
    """Return the encoders to load into a CLIP (None: a new one): of a pair only CLIP-L, if the CLIP has no CLIP-G."""
    if clip is not None and len(states) > 1 and getattr(clip.cond_stage_model, CLIP_G, None) is None:
        return {CLIP_L: states[CLIP_L]}
    return states


def make_clip(states: States, source: str) -> Any:
    """Make a CLIP for Stable Diffusion 1.x of CLIP-L, and for SDXL of a pair."""
    if CLIP_L not in states:
        raise AdvUnlearnError(f"{source} is a CLIP-G alone; connect the CLIP of an SDXL model to clip")
    clip_l.check(states[CLIP_L], source)
    if CLIP_G in states:
        check_clip_g(states[CLIP_G], source)
    return clip_l.make_clip(states[CLIP_L], states.get(CLIP_G))


def describe_parts(states: States, strengths: Mapping[str, float] = FULL) -> str:
    """Return which encoders are loaded, and at which strength, for the node's status."""
    names = [name for name in ENCODER_NAMES if name in states]
    return " and ".join(TITLES[name] + f" at {strengths[name]:g}" * (strengths[name] != 1) for name in names)
