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
from ..files import digest_of
from ..identify import checkpoint_of, clip_of, describe, layer_count
from .convert import place_of
from .encoders import PREFIX, encoder_hash, encoder_in, home_of_clip_l, homes_of, names_in, require_state, shapes_of
from .single_file import prediction_type
from .weights import Weights, opened, weights_file


def group_of(name: str) -> str:
    """Return the part of a text encoder that a tensor belongs to: 'layer 3', 'token_embedding', 'final_layer_norm'."""
    layer = re.search(r"\blayers\.(\d+)\.", name)
    return f"layer {layer[1]}" if layer else name.split(".")[-2]


def parsed(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return a file's metadata, JSON in it read, without the `advunlearn.` before our own."""

    def value(text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return text

    return {k.removeprefix("advunlearn."): value(v) for k, v in sorted(metadata.items())}


def differences(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Any]:
    """Compare two encoders of one shape, `text_model.` keys, by their values in fp32.

    Returns:
        equal: names of the tensors that are the same; changed: those that are not; relative_change: of every part,
        |encoder - base| / |base|, Frobenius norm over its tensors; total: the same over all.
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


def information(source: str, base: str | None = None) -> dict[str, Any]:
    """Return what a file is: kind, size, hash, dtypes, recipe and scores, and with a base the differences to it.

    Raises AdvUnlearnError for a file that cannot be read or that nobody can tell, or a base that does not compare.
    """
    path = weights_file(place_of(source))
    with opened(path) as weights:
        facts: dict[str, Any] = {
            "file": source, "kind": kind_of(weights), "bytes": path.stat().st_size, "sha256": digest_of(path),
            "tensors": len(weights.names), "metadata": parsed(weights.metadata),
        }  # fmt: skip
        tensors = encoder_in(weights) if homes_of(weights) else {}
        dtypes = Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values())
        if tensors:
            table = tensors.get(PREFIX + "embeddings.token_embedding.weight")
            if table is None:
                raise AdvUnlearnError(f"{source} has no token embedding table: it is not a whole text encoder")
            facts |= {
                "layers": layer_count(tensors), "width": table.shape[1], "vocabulary": table.shape[0],
                "dtype": dict(dtypes), "encoder_sha256": encoder_hash(tensors),
            }  # fmt: skip
        if base:
            if not tensors:
                raise AdvUnlearnError(f"{source} is {facts['kind']}; only text encoders are compared with a base")
            with opened(place_of(base)) as reference:
                old = encoder_in(reference)
                require_state(shapes_of(old), tensors, source)
                said = facts["metadata"].get("base_sha256")
                facts["base"] = {
                    "file": base, "encoder_sha256": encoder_hash(old),
                    "trained_from_it": said == encoder_hash(old) if said else None,
                    **differences(tensors, old), "others": others(weights, reference),
                }  # fmt: skip
    return facts


def in_words(facts: Mapping[str, Any]) -> str:
    """Return `information` as lines of text."""
    lines = [f"{facts['file']}: {facts['kind']}"]
    for name in ("bytes", "sha256", "encoder_sha256", "dtype", "tensors"):
        if name in facts:
            value = facts[name]
            lines.append(f"  {name}: {', '.join(f'{v} {k}' for k, v in value.items()) if name == 'dtype' else value}")
    lines += [f"  {k}: {v if isinstance(v, str) else json.dumps(v)}" for k, v in facts["metadata"].items()]
    if base := facts.get("base"):
        whether = {True: "it was trained from it", False: "it was trained from another one", None: ""}
        lines.append(f"  against {base['file']}: " + ", ".join(filter(None, [
            f"{len(base['equal'])} of {len(base['equal'] + base['changed'])} tensors equal",
            f"relative change {base['total']:.3%}", whether[base["trained_from_it"]],
        ])))  # fmt: skip
        lines += [f"    {part:<20} {change:.3%}" for part, change in base["relative_change"].items()]
        if (rest := base["others"]) is not None:
            lines.append(f"    outside the text encoder {rest['equal']} of {rest['of']} tensors are equal, bit for bit")
    return "\n".join(lines)
