"""What a file of weights is, and how it differs from a base."""

from __future__ import annotations

import json
import pathlib
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import AdvUnlearnError
from ..files import TEXT_ENCODER_WEIGHTS, UNET_WEIGHTS, compute_digest
from .detect import (
    DIFFUSERS_UNET,
    OPENCLIP_MARK,
    UNET_PREFIX,
    count_layers,
    detect_checkpoint_kind,
    detect_weights_kind,
    name_clip_encoder,
)
from .openclip import CLIP_G_PREFIX, from_openclip, is_clip_g
from .single_file import detect_prediction_type
from .text_encoders import (
    PROJECTION,
    TEXT_PREFIX,
    extract_encoder,
    find_clip_l_prefix,
    find_encoder_prefixes,
    get_shapes,
    hash_encoder,
    map_encoder_names,
    require_encoder_shapes,
)
from .weights import Weights, describe_mismatch, find_weights_file, open_weights

TABLE = TEXT_PREFIX + "embeddings.token_embedding.weight"
FIRST, SECOND, ITS_UNET = "encoder", "second_encoder", "unet"  # networks that are compared; the second is SDXL's CLIP-G
Networks = dict[str, dict[str, Tensor]]


def get_layer_group(name: str) -> str:
    """Return the part of a network that a tensor belongs to.

    Of a text encoder 'layer 3', 'token_embedding', 'final_layer_norm'; of a UNet 'down_blocks.0', 'time_embedding'.
    """
    if not name.startswith(TEXT_PREFIX):
        found = re.match(r"(?:down|up)_blocks\.\d+|[^.]+", name)
        return found[0] if found else name
    layer = re.search(r"\blayers\.(\d+)\.", name)
    return f"layer {layer[1]}" if layer else name.split(".")[-2]


def decode_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return a file's metadata, JSON in it read, without the `advunlearn.` before our own."""

    def value(text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return text

    return {k.removeprefix("advunlearn."): value(v) for k, v in sorted(metadata.items())}


def differences(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Any]:
    """Compare two networks of one shape, text encoders under `text_model.` keys, by their values in fp32.

    Returns:
        equal: names of the tensors that are the same; changed: those that are not; relative_change: of every part,
        |network - base| / |base|, Frobenius norm over its tensors; total: the same over all.
    """
    equal, moved, size = [], Counter[str](), Counter[str]()
    for name, old in base.items():
        a, b = tensors[name].float(), old.float()
        equal += [name] if torch.equal(a, b) else []
        for part in (get_layer_group(name), "total"):
            moved[part] += (a - b).square().sum().item()  # type: ignore[assignment]
            size[part] += b.square().sum().item()  # type: ignore[assignment]
    change = {part: (moved[part] / size[part]) ** 0.5 if size[part] else float(moved[part] > 0) for part in size}
    total = change.pop("total")
    order = sorted(
        change,
        key=lambda part: (
            not part.startswith("token"),
            not part.startswith("pos"),
            int(part[6:]) if part.startswith("layer ") else 1 << 20,
        ),
    )
    return {
        "equal": sorted(equal),
        "changed": sorted(base.keys() - set(equal)),
        "relative_change": {part: change[part] for part in order},
        "total": total,
    }


def describe_weights(weights: Weights) -> str:
    """Return what a file is, in words. Raises AdvUnlearnError when nobody can tell."""
    whole = any(name.startswith(UNET_PREFIX) for name in weights.names)
    checkpoint, encoders = detect_checkpoint_kind(weights.names, weights.shape) if whole else "", []
    if homes := find_encoder_prefixes(weights):
        names = list(map_encoder_names(weights, homes[0]))
        width = weights.shape(homes[0] + "encoder.layers.0.layer_norm1.weight")[0]
        encoders.append(f"a CLIP text encoder: {name_clip_encoder(width, count_layers(names))}")
    if any(name.startswith(CLIP_G_PREFIX) and OPENCLIP_MARK in name for name in weights.names):
        inside = [name.removeprefix(CLIP_G_PREFIX) for name in weights.names if name.startswith(CLIP_G_PREFIX)]
        encoders.append(detect_weights_kind(inside, lambda name: weights.shape(CLIP_G_PREFIX + name)))
    if checkpoint and encoders:
        return f"{checkpoint}, {detect_prediction_type(weights)} prediction, with {'; and '.join(encoders)}"
    if not (what := checkpoint or "; and ".join(encoders) or detect_weights_kind(weights.names, weights.shape)):
        find_clip_l_prefix(weights)  # raises, and says what it found instead
    return what


def networks(weights: Weights, kind: str) -> Networks:
    """Return the networks of a file that can be compared, by name.

    Raises AdvUnlearnError for a part of a text encoder, and for one that is there twice and differs.
    """
    found: Networks = {}
    if find_encoder_prefixes(weights):
        tensors = extract_encoder(weights)
        if TABLE not in tensors:
            raise AdvUnlearnError(f"{weights.source} has no token embedding table: it is not a whole text encoder")
        second = is_clip_g(tensors)
        found[SECOND if second else FIRST] = tensors | (
            {PROJECTION: weights.read(PROJECTION)} if second and PROJECTION in weights.names else {}
        )
    inside = {
        name.removeprefix(CLIP_G_PREFIX): weights.read(name) for name in weights.names if name.startswith(CLIP_G_PREFIX)
    }
    if TABLE in (beside := from_openclip(inside)):
        found.setdefault(SECOND, beside)
    if kind == DIFFUSERS_UNET:
        found[ITS_UNET] = {name: weights.read(name) for name in weights.names}
    return found


def others(weights: Weights, base: Weights) -> dict[str, int] | None:
    """Return how many of the tensors outside the text encoders are those of the base bit for bit, of how many.

    None where either has no others.
    """
    outside = [
        {n for n in some.names if not n.startswith((*find_encoder_prefixes(some), CLIP_G_PREFIX))}
        for some in (weights, base)
    ]
    if not all(outside):
        return None
    both = outside[0] & outside[1]
    equal = sum(is_bit_equal(weights.read(name), base.read(name)) for name in both)
    return {"equal": equal, "of": len(outside[0] | outside[1])}


def is_bit_equal(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same dtype, shape and bits, those of NaNs included."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if not a.dim():
        a, b = a[None], b[None]
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def describe_network(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a network's dtypes, and of a text encoder its size and hash."""
    facts = {"dtype": dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()))}
    if TABLE not in tensors:
        return facts
    vocabulary, width = tensors[TABLE].shape
    return {
        "layers": count_layers(tensors),
        "width": width,
        "vocabulary": vocabulary,
        **facts,
        "encoder_sha256": hash_encoder(tensors),
    }


def against(weights: Weights, kind: str, own: Networks, base: str, said: str | None) -> dict[str, Any]:
    """Return how a file's networks differ from a base's; `said` is the hash of the encoder that one was trained from.

    Raises AdvUnlearnError for a base that has none of them, or has them in another shape.
    """
    place = pathlib.Path(base)
    if ITS_UNET in own:
        place = find_weights_file(place, UNET_WEIGHTS, ("unet",), "a UNet's folder, or that of a model which has one")
    elif FIRST not in own and (place / "text_encoder_2").is_dir():
        place = place / "text_encoder_2"
    with open_weights(place) as reference:
        what = describe_weights(reference)
        old = networks(reference, what)
        both = [name for name in own if name in old]
        if not both:
            raise AdvUnlearnError(
                f"{weights.source} is {kind}, and {base} is {what}: they have nothing in common; give as base the "
                "model, or the part of it, that the file was trained from"
            )
        first, *more = both
        compared = {name: differences(own[name], comparable(own[name], old[name], weights.source)) for name in both}
        hashes = {name: hash_encoder(old[name]) for name in both if name != ITS_UNET}
        return {
            "file": base,
            "encoder_sha256": hashes.get(first),
            "trained_from_it": said in hashes.values() if said and hashes else None,
            **compared[first],
            "others": others(weights, reference) if hashes else None,
            **{name: compared[name] for name in more},
        }


def comparable(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
    """Return what of a base a network is compared with: all of it, but for a projection that only one of them has.

    Raises AdvUnlearnError for a network of another shape.
    """
    if TABLE in base:
        require_encoder_shapes(get_shapes(base), tensors, source)
        base = {name: tensor for name, tensor in base.items() if name in tensors}
        tensors = {name: tensors[name] for name in base}
    if wrong := describe_mismatch(get_shapes(base), get_shapes(tensors)):
        raise AdvUnlearnError(f"{source} {wrong}: it is not of this base's shape; give what it was trained from")
    return base


def inspect_file(source: str, base: str | None = None) -> dict[str, Any]:
    """Return what a file is: kind, size, hash, dtypes, recipe and scores, and with a base the differences to it.

    Raises AdvUnlearnError for a file that cannot be read or that nobody can tell, or a base that does not compare.
    """
    advice = "a file of weights, the folder of a text encoder or of a UNet, or that of a model which has one"
    path = find_weights_file(source, (*TEXT_ENCODER_WEIGHTS, *UNET_WEIGHTS), ("text_encoder", "unet"), advice)
    with open_weights(path) as weights:
        kind = describe_weights(weights)
        facts: dict[str, Any] = {
            "file": source,
            "kind": kind,
            "bytes": path.stat().st_size,
            "sha256": compute_digest(path),
            "tensors": len(weights.names),
            "metadata": decode_metadata(weights.metadata),
        }
        own = networks(weights, kind)
        for number, tensors in enumerate(own.values()):
            facts |= {SECOND: describe_network(tensors)} if number else describe_network(tensors)
        if base and not own:
            raise AdvUnlearnError(f"{source} is {kind}; what is compared with a base are text encoders and UNets")
        if base:
            facts["base"] = against(weights, kind, own, base, facts["metadata"].get("base_sha256"))
    return facts


def format_facts(facts: Mapping[str, Any]) -> str:
    """Return `inspect_file` as lines of text."""
    lines = [f"{facts['file']}: {facts['kind']}"]
    for name in ("bytes", "sha256", "encoder_sha256", "dtype", "tensors"):
        if name in facts:
            value = facts[name]
            lines.append(f"  {name}: {', '.join(f'{v} {k}' for k, v in value.items()) if name == 'dtype' else value}")
    if second := facts.get(SECOND):
        lines.append(f"  second encoder's encoder_sha256: {second['encoder_sha256']}")
    lines += [f"  {k}: {v if isinstance(v, str) else json.dumps(v)}" for k, v in facts["metadata"].items()]
    if base := facts.get("base"):
        whether = {True: "it was trained from it", False: "it was trained from another one", None: ""}
        lines.append(
            f"  against {base['file']}: "
            + ", ".join(
                filter(
                    None,
                    [
                        f"{len(base['equal'])} of {len(base['equal'] + base['changed'])} tensors equal",
                        f"relative change {base['total']:.3%}",
                        whether[base["trained_from_it"]],
                    ],
                )
            )
        )
        lines += [f"    {part:<20} {change:.3%}" for part, change in base["relative_change"].items()]
        if second := base.get(SECOND):
            equal, both = len(second["equal"]), len(second["equal"] + second["changed"])
            lines.append(f"    second encoder: {equal} of {both} tensors equal, relative change {second['total']:.3%}")
        if (rest := base["others"]) is not None:
            lines.append(f"    outside the text encoders {rest['equal']} of {rest['of']} tensors equal, bit for bit")
    return "\n".join(lines)
