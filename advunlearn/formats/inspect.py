"""Describe a file of weights, and compare it with a base."""

from __future__ import annotations

import json
import pathlib
import re
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import AdvUnlearnError
from ..files import TEXT_ENCODER_WEIGHTS, UNET_WEIGHTS, JsonDict, compute_digest
from .detect import (
    DIFFUSERS_UNET,
    OPENCLIP_MARK,
    PROJECTION,
    TEXT_PREFIX,
    UNET_PREFIX,
    count_layers,
    detect_checkpoint_kind,
    detect_weights_kind,
    get_size,
    name_clip_encoder,
)
from .openclip import from_openclip
from .sdxl_encoders import CLIP_G_PREFIX, is_clip_g
from .single_file import detect_prediction_type
from .text_encoders import (
    extract_encoder,
    find_clip_l_prefix,
    find_encoder_prefixes,
    hash_encoder,
    is_openai_clip_l,
    map_encoder_names,
    require_encoder_shapes,
)
from .weights import Weights, describe_mismatch, find_weights_file, get_shapes, open_weights

Facts = JsonDict  # what is known of a file, as JSON
Networks = dict[str, dict[str, Tensor]]  # "encoder" (CLIP-L or any single one), "second_encoder" (CLIP-G), "unet"

LONGEST_VALUE = 2000  # characters of metadata that are printed; --json has all
TOKEN_EMBEDDING = TEXT_PREFIX + "embeddings.token_embedding.weight"


def decode_metadata(metadata: Mapping[str, str]) -> Facts:
    """Return a file's metadata with its JSON values decoded, and without the prefix `advunlearn.` of this library's."""
    return {key.removeprefix("advunlearn."): _decode_value(value) for key, value in sorted(metadata.items())}


def _decode_value(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def is_bit_equal(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same dtype, shape and bits, those of NaNs included."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))


def get_layer_group(name: str) -> str:
    """Return the part of a network that a tensor belongs to.

    Of a text encoder 'layer 3', 'token_embedding' or 'final_layer_norm'; of a UNet 'down_blocks.0' or 'time_embedding'.
    """
    if not name.startswith(TEXT_PREFIX):
        block = re.match(r"(?:down|up)_blocks\.\d+|[^.]+", name)
        return block[0] if block else name
    layer = re.search(r"\blayers\.(\d+)\.", name)
    return f"layer {layer[1]}" if layer else name.split(".")[-2]


def compare_networks(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Facts:
    """Compare two networks of the same shapes by their values in fp32. Text encoders have `text_model.` keys.

    Returns a dict with
        equal: the names of the tensors that are the same;
        changed: those of the others;
        relative_change: of every part, |network - base| / |base|, Frobenius norm over its tensors;
        total: the same over all tensors.
    """
    equal: list[str] = []
    change: defaultdict[str, float] = defaultdict(float)
    size: defaultdict[str, float] = defaultdict(float)
    for name, base_tensor in base.items():
        new, old = tensors[name].float(), base_tensor.float()
        if torch.equal(new, old):
            equal.append(name)
        for group in (get_layer_group(name), "total"):
            change[group] += (new - old).square().sum().item()
            size[group] += old.square().sum().item()
    relative = {g: (change[g] / size[g]) ** 0.5 if size[g] else float(change[g] > 0) for g in size}
    total = relative.pop("total")
    return {
        "equal": sorted(equal),
        "changed": sorted(base.keys() - set(equal)),
        "relative_change": {group: relative[group] for group in sorted(relative, key=_order_group)},
        "total": total,
    }


def _order_group(group: str) -> tuple[bool, bool, int]:
    """Return a sort key: embeddings, then the layers by number, then the rest."""
    layer = int(group.removeprefix("layer ")) if group.startswith("layer ") else 1 << 20
    return not group.startswith("token"), not group.startswith("pos"), layer


def describe_weights(weights: Weights) -> str:
    """Return a description of a file. Raises AdvUnlearnError for an unknown kind."""
    is_checkpoint = any(name.startswith(UNET_PREFIX) for name in weights.names)
    checkpoint = detect_checkpoint_kind(weights.names, weights.shape) if is_checkpoint else ""
    encoders = "; and ".join(_describe_encoders(weights))
    if checkpoint and encoders:
        return f"{checkpoint}, {detect_prediction_type(weights)} prediction, with {encoders}"
    kind = checkpoint or encoders or detect_weights_kind(weights.names, weights.shape)
    if not kind:
        find_clip_l_prefix(weights)  # raises an error that names the first tensor
    return kind


def _describe_encoders(weights: Weights) -> list[str]:
    encoders = []
    if prefixes := find_encoder_prefixes(weights):
        layers = count_layers(map_encoder_names(weights, prefixes[0]))
        width = get_size(weights.shape(prefixes[0] + "encoder.layers.0.layer_norm1.weight"))
        encoders.append(f"a CLIP text encoder: {name_clip_encoder(width, layers)}")
    if any(name.startswith(CLIP_G_PREFIX) and OPENCLIP_MARK in name for name in weights.names):
        names = [name.removeprefix(CLIP_G_PREFIX) for name in weights.names if name.startswith(CLIP_G_PREFIX)]
        encoders.append(detect_weights_kind(names, lambda name: weights.shape(CLIP_G_PREFIX + name)))
    return encoders


def extract_networks(weights: Weights, kind: str) -> Networks:
    """Return the networks of a file that can be compared with a base's; `kind` is its description.

    Raises AdvUnlearnError for an incomplete text encoder, and for two copies of one that differ.
    """
    networks: Networks = {}
    if find_encoder_prefixes(weights) or is_openai_clip_l(weights):
        tensors = extract_encoder(weights)
        if TOKEN_EMBEDDING not in tensors or tensors[TOKEN_EMBEDDING].dim() != 2:
            raise AdvUnlearnError(f"{weights.source} has no token embedding table: its text encoder is incomplete")
        if not is_clip_g(tensors):
            networks["encoder"] = tensors
        else:
            if PROJECTION in weights.names:
                tensors[PROJECTION] = weights.read(PROJECTION)
            networks["second_encoder"] = tensors
    names = [name for name in weights.names if name.startswith(CLIP_G_PREFIX)]
    clip_g = from_openclip({name.removeprefix(CLIP_G_PREFIX): weights.read(name) for name in names})
    if TOKEN_EMBEDDING in clip_g and clip_g[TOKEN_EMBEDDING].dim() == 2:
        networks.setdefault("second_encoder", clip_g)
    if kind == DIFFUSERS_UNET:
        networks["unet"] = {name: weights.read(name) for name in weights.names}
    return networks


def describe_network(tensors: Mapping[str, Tensor]) -> Facts:
    """Return a network's dtypes, and of a text encoder its size and hash."""
    dtypes: dict[str, int] = {}
    for tensor in tensors.values():
        dtype = str(tensor.dtype).removeprefix("torch.")
        dtypes[dtype] = dtypes.get(dtype, 0) + 1
    if TOKEN_EMBEDDING not in tensors:
        return {"dtype": dtypes}
    vocabulary, width = tensors[TOKEN_EMBEDDING].shape
    return {
        "layers": count_layers(tensors),
        "width": width,
        "vocabulary": vocabulary,
        "dtype": dtypes,
        "encoder_sha256": hash_encoder(tensors),
    }


def compare_with_base(weights: Weights, kind: str, networks: Networks, base: str, base_hash: str | None) -> Facts:
    """Compare a file's networks with a base's.

    Args:
        weights, kind, networks: the file, its description and its networks.
        base: a file or a folder.
        base_hash: the hash of the encoder that the file's was trained from, as the file states it.

    Raises AdvUnlearnError for a base without any of the networks, or with another shape.
    """
    with open_weights(_find_base_file(base, networks)) as reference:
        base_kind = describe_weights(reference)
        base_networks = extract_networks(reference, base_kind)
        both = [name for name in networks if name in base_networks]
        if not both:
            raise AdvUnlearnError(
                f"{weights.source} is {kind}, and {base} is {base_kind}: they have nothing in common; give as base the "
                "model, or the part of it, that the file was trained from"
            )
        compared = {}
        for name in both:
            comparable = _select_comparable(networks[name], base_networks[name], weights.source)
            compared[name] = compare_networks(networks[name], comparable)
        hashes = {name: hash_encoder(base_networks[name]) for name in both if name != "unet"}
        first, *more = both
        return {
            "file": base,
            "encoder_sha256": hashes.get(first),
            "trained_from_it": base_hash in hashes.values() if base_hash and hashes else None,
            **compared[first],
            "others": count_equal_others(weights, reference) if hashes else None,
            **{name: compared[name] for name in more},
        }


def _find_base_file(base: str, networks: Networks) -> pathlib.Path:
    """Return the file or folder of a base that holds what a file's networks are compared with."""
    path = pathlib.Path(base)
    if "unet" in networks:
        return find_weights_file(path, UNET_WEIGHTS, ("unet",), "a UNet's folder, or the folder of a model with one")
    second_folder = path / "text_encoder_2"
    return second_folder if "encoder" not in networks and second_folder.is_dir() else path


def _select_comparable(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
    """Return the base's tensors to compare: all except a projection that only one of the two has.

    Raises AdvUnlearnError for networks of different shapes.
    """
    if TOKEN_EMBEDDING in base:
        require_encoder_shapes(get_shapes(base), tensors, source)
        base = {name: tensor for name, tensor in base.items() if name in tensors}
        tensors = {name: tensors[name] for name in base}
    if wrong := describe_mismatch(get_shapes(base), get_shapes(tensors)):
        raise AdvUnlearnError(f"{source} {wrong}: it is not of this base's shape; give what it was trained from")
    return base


def count_equal_others(weights: Weights, base: Weights) -> dict[str, int] | None:
    """Count the tensors outside the text encoders that are equal to the base's bit for bit, and all of them.

    None if one of the files has no tensors outside its text encoders.
    """
    names, base_names = (
        {name for name in file.names if not name.startswith((*find_encoder_prefixes(file), CLIP_G_PREFIX))}
        for file in (weights, base)
    )
    if not names or not base_names:
        return None
    equal = sum(is_bit_equal(weights.copy(name), base.copy(name)) for name in names & base_names)
    return {"equal": equal, "of": len(names | base_names)}


def inspect_file(source: str, base: str | None = None) -> Facts:
    """Return a file's kind, size, hash, dtypes, recipe and scores, and with a base the differences to it.

    Raises AdvUnlearnError for a file that cannot be read, one of an unknown kind, or a base that cannot be compared.
    """
    advice = "a file of weights, the folder of a text encoder or of a UNet, or the folder of a model with one"
    path = find_weights_file(source, (*TEXT_ENCODER_WEIGHTS, *UNET_WEIGHTS), ("text_encoder", "unet"), advice)
    with open_weights(path) as weights:
        kind = describe_weights(weights)
        facts: Facts = {
            "file": source,
            "kind": kind,
            "bytes": path.stat().st_size,
            "sha256": compute_digest(path),
            "tensors": len(weights.names),
            "metadata": decode_metadata(weights.metadata),
        }
        networks = extract_networks(weights, kind)
        for number, tensors in enumerate(networks.values()):
            facts |= {"second_encoder": describe_network(tensors)} if number else describe_network(tensors)
        if base and not networks:
            raise AdvUnlearnError(f"{source} is {kind}; only text encoders and UNets can be compared with a base")
        if base:
            base_hash = facts["metadata"].get("base_sha256")
            facts["base"] = compare_with_base(weights, kind, networks, base, base_hash)
    return facts


def format_facts(facts: Facts) -> str:
    """Return the result of `inspect_file` as lines of text."""
    lines = [f"{facts['file']}: {facts['kind']}"]
    if "dtype" in facts:
        facts = facts | {"dtype": ", ".join(f"{count} {dtype}" for dtype, count in facts["dtype"].items())}
    for name in ("bytes", "sha256", "encoder_sha256", "dtype", "tensors"):
        if name in facts:
            lines.append(f"  {name}: {facts[name]}")
    if second := facts.get("second_encoder"):
        lines.append(f"  second encoder's encoder_sha256: {second['encoder_sha256']}")
    for name, value in facts["metadata"].items():
        lines.append(f"  {format_value(name)}: {format_value(value if isinstance(value, str) else json.dumps(value))}")
    if base := facts.get("base"):
        lines += _format_comparison(base)
    return "\n".join(lines)


def format_value(text: str) -> str:
    """Return text of a file for a terminal: control characters escaped, and the end of a long one left out."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[:LONGEST_VALUE])
    return f"{shown} ... ({len(text)} characters)" if len(text) > LONGEST_VALUE else shown


def _format_comparison(base: Facts) -> list[str]:
    trained_from = {True: ", it was trained from it", False: ", it was trained from another one", None: ""}
    lines = [f"  against {base['file']}: {_format_change(base)}{trained_from[base['trained_from_it']]}"]
    lines += [f"    {group:<20} {change:.3%}" for group, change in base["relative_change"].items()]
    if second := base.get("second_encoder"):
        lines.append(f"    second encoder: {_format_change(second)}")
    if (others := base["others"]) is not None:
        lines.append(f"    outside the text encoders {others['equal']} of {others['of']} tensors equal, bit for bit")
    return lines


def _format_change(comparison: Facts) -> str:
    equal = len(comparison["equal"])
    total = equal + len(comparison["changed"])
    return f"{equal} of {total} tensors equal, relative change {comparison['total']:.3%}"
