"""The one place that reads and writes text encoders. Strict: keys and shapes are checked before a weight is used.

transformers 5 dropped the `text_model.` prefix that every other loader of CLIP-L expects; what is written here always
carries it, whatever the installed version, and both layouts are read.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import AdvUnlearnError
from .files import WEIGHTS, write_atomic
from .identify import describe, require_width

PREFIX, PROJECTION = "text_model.", "text_projection.weight"
FORMAT = "advunlearn.text_encoder.v1"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Where CLIP-L's `encoder.` and `embeddings.` stand: the most telling prefix first.
HOMES = (
    "cond_stage_model.transformer.text_model.",  # SD 1.x checkpoints
    "conditioner.embedders.0.transformer.text_model.",  # SDXL checkpoints
    "text_encoders.clip_l.transformer.text_model.",  # checkpoints that ComfyUI saved
    "clip_l.transformer.text_model.",
    "text_encoder.text_model.",  # the published trainer's .pt
    "cond_stage_model.transformer.",  # the first SD checkpoints
    "text_model.",
    "",
)


def portable_state(encoder: Any) -> dict[str, Tensor]:
    """Return an encoder's weights under `text_model.` keys, with the identity projection that loaders ask for."""
    state = {}
    for name, tensor in encoder.state_dict().items():
        if not name.endswith("position_ids"):
            state[PREFIX + name.removeprefix(PREFIX)] = tensor.detach().cpu().contiguous()
    width, dtype = encoder.config.hidden_size, next(iter(state.values())).dtype
    state[PROJECTION] = torch.eye(width, dtype=dtype)
    return state


def load_state(encoder: Any, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy weights under either layout into an encoder, all or nothing.

    Raises AdvUnlearnError that names an encoder of another width, or the first missing, unknown or mis-shaped key.
    """
    require_width(tensors, encoder.config.hidden_size, source)
    own = encoder.state_dict()
    bare = {name.removeprefix(PREFIX): name for name in own if not name.endswith("position_ids")}
    given = {
        k.removeprefix(PREFIX): v for k, v in tensors.items() if k != PROJECTION and not k.endswith("position_ids")
    }
    for word, keys in (("lacks", bare.keys() - given.keys()), ("has unknown", given.keys() - bare.keys())):
        if keys:
            raise AdvUnlearnError(
                f"{source} {word} {len(keys)} of {len(bare)} tensors, first {min(keys)!r}: it is not a text encoder "
                "of this model's shape; give a CLIP text encoder trained from the same base"
            )
    for name, tensor in given.items():
        if tensor.shape != own[bare[name]].shape:
            raise AdvUnlearnError(
                f"{source}: {name!r} has shape {tuple(tensor.shape)}, this model needs {tuple(own[bare[name]].shape)}"
            )
    encoder.load_state_dict({bare[k]: v.to(own[bare[k]].dtype) for k, v in given.items()}, strict=False)


def save_encoder(path: str | pathlib.Path, encoder: Any, metadata: Mapping[str, Any]) -> pathlib.Path:
    """Write one safetensors file, atomically; `metadata` values that are not text are stored as JSON."""
    text = {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in metadata.items()}
    # Not `save_file`, which makes a file that only its owner can read.
    return write_atomic(path, save(portable_state(encoder), {"format": "pt", "advunlearn.format": FORMAT, **text}))


def save_folder(path: str | pathlib.Path, encoder: Any) -> pathlib.Path:
    """Write a CLIPTextModel folder for diffusers, with `text_model.` keys whatever transformers' version."""
    path = pathlib.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    encoder.config.save_pretrained(path)
    state = {k: v for k, v in portable_state(encoder).items() if k != PROJECTION}
    write_atomic(path / WEIGHTS[0], save(state, {"format": "pt"}))
    return path


def weights_file(path: str | pathlib.Path) -> pathlib.Path:
    """Return the file of weights that a path names: itself, or what `save_pretrained` wrote into a folder."""
    path = pathlib.Path(path)
    if path.is_dir():
        places = [path / sub / name for sub in (".", "text_encoder") for name in WEIGHTS]
        found = [place for place in places if place.is_file()]
        if not found:
            raise AdvUnlearnError(f"{path} holds none of {', '.join(WEIGHTS)}; give a text encoder's folder or file")
        return found[0]
    if not path.is_file():
        raise AdvUnlearnError(f"{path}: no such file; give the encoder.safetensors that a training run wrote")
    return path


@contextlib.contextmanager
def opened(path: str | pathlib.Path) -> Iterator[tuple[list[str], Callable[[str], Tensor], dict[str, str]]]:
    """Open a file of weights: its tensors' names, a function that reads one, its metadata.

    Pickles are read through `weights_only`, which runs no code. Raises AdvUnlearnError when nothing can be read.
    """
    path = weights_file(path)
    if path.suffix in PICKLES:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # what a damaged pickle raises is anybody's guess
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise AdvUnlearnError(
                f"{path} cannot be read as weights alone ({reason}); nothing in it was run. "
                "Convert it to safetensors where you trust it"
            ) from error
        state = state.get("state_dict", state) if isinstance(state, dict) else {}
        tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
        yield list(tensors), tensors.__getitem__, {}
        return
    try:
        file = safe_open(path, "pt").__enter__()
    except (SafetensorError, OSError) as error:
        raise AdvUnlearnError(
            f"{path} is not a readable safetensors file ({error}); give encoder.safetensors"
        ) from error
    try:
        yield list(file.keys()), file.get_tensor, dict(file.metadata() or {})
    finally:
        file.__exit__(None, None, None)


def home_of_clip_l(names: Sequence[str], read: Callable[[str], Tensor], source: str) -> str:
    """Return the prefix under which a file holds CLIP-L's text encoder.

    Known are our files and CLIPTextModel folders (with and without `text_model.`), the published trainer's files, which
    hold every tensor twice, and full Stable Diffusion 1.x and SDXL checkpoints.
    Raises AdvUnlearnError that says what the file is instead.
    """
    have = set(names)
    for start in HOMES:
        layer, vision = start + "encoder.layers.0.layer_norm1.weight", start + "embeddings.patch_embedding.weight"
        if layer in have and vision not in have:
            return start
    what = describe(names, read)
    found = f"it is {what}" if what else f"its first tensor is {min(names, default='nothing')!r}"
    raise AdvUnlearnError(f"{source} holds no CLIP-L text encoder: {found}")


def read_encoder(path: str | pathlib.Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a CLIP text encoder's tensors under `text_model.` keys, and the metadata of the file that holds them.

    Raises AdvUnlearnError when the file is missing, cannot be read, or holds no CLIP text encoder.
    """
    with opened(path) as (names, read, metadata):
        start = home_of_clip_l(names, read, str(path))
        inside = tuple(start + part for part in ("encoder.", "embeddings.", "final_layer_norm."))
        wanted = [n for n in names if n.startswith(inside) and not n.endswith("position_ids")]
        return {PREFIX + n.removeprefix(start): read(n) for n in wanted}, metadata


def load_encoder(path: str | pathlib.Path, like: Any) -> tuple[Any, dict[str, str]]:
    """Return a copy of the encoder `like` with the weights of a file, and the file's metadata."""
    import copy

    tensors, metadata = read_encoder(path)
    encoder = copy.deepcopy(like)
    load_state(encoder, tensors, str(path))
    return encoder, metadata
