"""What a file of weights is, and how it differs from a base."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import AdvUnlearnError
from ..files import UNET_WEIGHTS, WEIGHTS, digest_of
from ..identify import DIFFUSERS_UNET, checkpoint_of, clip_of, describe, layer_count
from .clip_g import HOME, read_part
from .convert import place_of
from .encoders import PREFIX, encoder_hash, encoder_in, home_of_clip_l, homes_of, names_in, require_state, shapes_of
from .single_file import prediction_type
from .weights import Weights, mismatch, opened, weights_file

TABLE = PREFIX + "embeddings.token_embedding.weight"


def group_of(name: str) -> str:
    """Return the part of a network that a tensor belongs to.

    Of a text encoder 'layer 3', 'token_embedding', 'final_layer_norm'; of a UNet 'down_blocks.0', 'time_embedding'.
    """
    if layer := re.search(r"\blayers\.(\d+)\.", name):
        return f"layer {layer[1]}"
    block = re.match(r"(?:down|up)_blocks\.\d+|mid_block|time_embedding", name)
    return block[0] if block else name.split(".")[-2]


def parsed(metadata: Mapping[str, str]) -> dict[str, Any]:
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
        for part in (group_of(name), "total"):
            moved[part] += (a - b).square().sum().item()  # type: ignore[assignment]
            size[part] += b.square().sum().item()  # type: ignore[assignment]
    change = {part: (moved[part] / size[part]) ** 0.5 if size[part] else float(moved[part] > 0) for part in size}
    total = change.pop("total")
    order = sorted(change, key=lambda part: (not part.startswith("token"), not part.startswith("pos"),
                                             int(part[6:]) if part.startswith("layer ") else 1 << 20))  # fmt: skip
    return {
        "equal": sorted(equal), "changed": sorted(base.keys() - set(equal)),
        "relative_change": {part: change[part] for part in order}, "total": total,
    }  # fmt: skip


def kind_of(weights: Weights) -> str:
    """Return what a file is, in words. Raises AdvUnlearnError when nobody can tell."""
    checkpoint = checkpoint_of(weights.names, weights.shape)
    if homes := homes_of(weights):
        names = list(names_in(weights, homes[0]))
        width = weights.shape(homes[0] + "encoder.layers.0.layer_norm1.weight")[0]
        inside = f"{clip_of(width, layer_count(names))}"
        if not checkpoint:
            return f"a CLIP text encoder: {inside}"
        if second := [name.removeprefix(HOME) for name in weights.names if name.startswith(HOME)]:
            inside += f"; and {describe(second, lambda name: weights.shape(HOME + name))}"
        return f"{checkpoint}, {prediction_type(weights)} prediction, with a CLIP text encoder: {inside}"
    if not (what := checkpoint or describe(weights.names, weights.shape)):
        home_of_clip_l(weights)  # raises, and says what it found instead
    return what


def others(weights: Weights, base: Weights) -> dict[str, int] | None:
    """Return how many of the tensors outside the text encoder are those of the base bit for bit, of how many.

    None where either has no others.
    """
    outside = [
        {n for n in some.names if not n.startswith(homes_of(some)[0])} if homes_of(some)[0] else set()
        for some in (weights, base)
    ]
    if not all(outside):
        return None
    both = outside[0] & outside[1]
    equal = sum(same_bits(weights.read(name), base.read(name)) for name in both)
    return {"equal": equal, "of": len(outside[0] | outside[1])}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same dtype, shape and bits, those of NaNs included."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if not a.dim():
        a, b = a[None], b[None]
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def encoder_facts(tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Return a text encoder's size, dtypes and hash. Raises AdvUnlearnError for a part of one."""
    if TABLE not in tensors:
        raise AdvUnlearnError(f"{source} has no token embedding table: it is not a whole text encoder")
    vocabulary, width = tensors[TABLE].shape
    return {
        "layers": layer_count(tensors), "width": width, "vocabulary": vocabulary, "dtype": dtypes_of(tensors),
        "encoder_sha256": encoder_hash(tensors),
    }  # fmt: skip


def dtypes_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return how many tensors there are of each dtype."""
    return dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()))


def second_encoder(weights: Weights) -> dict[str, Tensor]:
    """Return SDXL's second text encoder where a checkpoint has it beside the first."""
    return read_part(weights, "clip_g") if any(name.startswith(HOME) for name in weights.names) else {}


def encoder_against(weights: Weights, base: str, said: str | None) -> dict[str, Any]:
    """Return how a file's text encoders differ from a base's; `said` is the hash of what the first was trained from."""
    tensors = encoder_in(weights)
    with opened(place_of(base)) as reference:
        old = encoder_in(reference)
        require_state(shapes_of(old), tensors, weights.source)
        own = encoder_hash(old)
        facts = {
            "file": base, "encoder_sha256": own, "trained_from_it": said == own if said else None,
            **differences(tensors, old), "others": others(weights, reference),
        }  # fmt: skip
        second = second_encoder(weights), second_encoder(reference)
        if all(second):
            require_state(shapes_of(second[1]), second[0], weights.source)
            facts["second_encoder"] = differences(*second)
    return facts


def unet_against(weights: Weights, tensors: Mapping[str, Tensor], base: str) -> dict[str, Any]:
    """Return how a diffusers UNet differs from a base's: its file, its folder, or the folder of the model it is in."""
    advice = "a diffusers UNet's folder, or that of a model which has one"
    with opened(weights_file(place_of(base), UNET_WEIGHTS, "unet", advice)) as reference:
        old = {name: reference.read(name) for name in reference.names}
        if wrong := mismatch(shapes_of(old), shapes_of(tensors)):
            raise AdvUnlearnError(f"{weights.source} {wrong}: it is not a UNet of {base}'s shape; give {advice}")
        return {"file": base, "trained_from_it": None, **differences(tensors, old), "others": None}


def information(source: str, base: str | None = None) -> dict[str, Any]:
    """Return what a file is: kind, size, hash, dtypes, recipe and scores, and with a base the differences to it.

    Raises AdvUnlearnError for a file that cannot be read or that nobody can tell, or a base that does not compare.
    """
    path = weights_file(place_of(source), (*WEIGHTS, *UNET_WEIGHTS))
    with opened(path) as weights:
        facts: dict[str, Any] = {
            "file": source, "kind": kind_of(weights), "bytes": path.stat().st_size, "sha256": digest_of(path),
            "tensors": len(weights.names), "metadata": parsed(weights.metadata),
        }  # fmt: skip
        if homes_of(weights):
            facts |= encoder_facts(encoder_in(weights), source)
            if second := second_encoder(weights):
                facts["second_encoder"] = encoder_facts(second, source)
            if base:
                facts["base"] = encoder_against(weights, base, facts["metadata"].get("base_sha256"))
        elif facts["kind"] == DIFFUSERS_UNET:
            tensors = {name: weights.read(name) for name in weights.names}
            facts["dtype"] = dtypes_of(tensors)
            if base:
                facts["base"] = unet_against(weights, tensors, base)
        elif base:
            raise AdvUnlearnError(f"{source} is {facts['kind']}; only text encoders and UNets are compared with a base")
    return facts


def in_words(facts: Mapping[str, Any]) -> str:
    """Return `information` as lines of text."""
    lines = [f"{facts['file']}: {facts['kind']}"]
    for name in ("bytes", "sha256", "encoder_sha256", "dtype", "tensors"):
        if name in facts:
            value = facts[name]
            lines.append(f"  {name}: {', '.join(f'{v} {k}' for k, v in value.items()) if name == 'dtype' else value}")
    if second := facts.get("second_encoder"):
        lines.append(f"  second encoder's encoder_sha256: {second['encoder_sha256']}")
    lines += [f"  {k}: {v if isinstance(v, str) else json.dumps(v)}" for k, v in facts["metadata"].items()]
    if base := facts.get("base"):
        whether = {True: "it was trained from it", False: "it was trained from another one", None: ""}
        lines.append(f"  against {base['file']}: " + ", ".join(filter(None, [
            f"{len(base['equal'])} of {len(base['equal'] + base['changed'])} tensors equal",
            f"relative change {base['total']:.3%}", whether[base["trained_from_it"]],
        ])))  # fmt: skip
        lines += [f"    {part:<20} {change:.3%}" for part, change in base["relative_change"].items()]
        if second := base.get("second_encoder"):
            equal, both = len(second["equal"]), len(second["equal"] + second["changed"])
            lines.append(f"    second encoder: {equal} of {both} tensors equal, relative change {second['total']:.3%}")
        if (rest := base["others"]) is not None:
            lines.append(f"    outside the text encoder {rest['equal']} of {rest['of']} tensors are equal, bit for bit")
    return "\n".join(lines)
