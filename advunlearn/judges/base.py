"""What an evaluation needs of a judge, and how a name finds a judge's label."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..config.concept import ConceptConfig
from ..errors import AdvUnlearnError


@dataclass(frozen=True)
class JudgeOutput:
    """What a judge sees in B pictures."""

    labels: list[frozenset[str]]  # of each picture
    features: Tensor | None = None  # (B, D), for a Frechet distance; None where the judge has none

    def shows(self, label: str) -> Tensor:
        """Return in which pictures the judge sees `label`, (B,) bool."""
        return torch.tensor([label in labels for labels in self.labels], dtype=torch.bool)


class Judge(Protocol):
    """Says what pictures show, by its own labels."""

    def concept_label(self, concept: ConceptConfig) -> str:
        """Return the label that stands for the concept. Raises AdvUnlearnError when the judge cannot see it."""
        ...

    def label(self, name: str) -> str:
        """Return the label that `name` names. Raises AdvUnlearnError when the judge has none."""
        ...

    def look(self, images: Tensor, concept: str) -> JudgeOutput:
        """Judge pictures (B, 3, H, W) in [0, 1]; `concept` is what `concept_label` returned."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return what a report says of the judge: which it is, its weights' hash, and what it is set to."""
        ...


def weights_hash(module: nn.Module) -> str:
    """Return a short SHA-256 of all weights of a module: another judge may lie in a folder of the same name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:12]


def pixels(images: Tensor, size: int = 16) -> Iterator[list[np.ndarray]]:
    """Yield pictures (B, 3, H, W) in [0, 1] as lists of at most `size` RGB arrays (H, W, 3) of bytes."""
    for part in images.split(size):
        yield list((part.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy())


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def match(name: str, labels: Sequence[str], judge: str) -> str:
    """Return the label that `name` names: the whole of it, or one of its parts between commas; case does not matter.

    ImageNet's "church, church building" is found by "church". Labels that read alike are one label.
    Raises AdvUnlearnError with near matches when there is none, and with all of them when there are several.
    """
    wanted = _plain(name)
    parts = {part: label for label in labels for part in map(_plain, label.split(",")) if part}
    found = [label for label in labels if _plain(label) == wanted]
    found = found or [label for label in labels if wanted in map(_plain, label.split(","))]
    if len(set(found)) == 1 and wanted:
        return found[0]
    if found and wanted:
        raise AdvUnlearnError(f"{name!r} may be {' or '.join(map(repr, found))}; give {judge} the whole label")
    near = dict.fromkeys(parts[part] for part in difflib.get_close_matches(wanted, list(parts), 6))
    hint = "near it are " if near else f"its {len(labels)} labels begin with "
    raise AdvUnlearnError(f"{judge} has no label {name!r}; {hint}{', '.join(map(repr, near or labels[:6]))}")
