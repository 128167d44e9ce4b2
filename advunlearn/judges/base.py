"""The protocol of judges, which decide what images show, and the lookup of a judge's labels by name."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..config.concept import ConceptConfig
from ..errors import AdvUnlearnError


@dataclass(frozen=True)
class JudgeOutput:
    """A judge's output for B images."""

    labels: list[frozenset[str]]  # per image
    features: Tensor | None = None  # (B, D), for a Frechet distance; None if the judge has no features

    def shows(self, label: str) -> Tensor:
        """Return whether each image shows `label`, (B,) bool."""
        return torch.tensor([label in labels for labels in self.labels], dtype=torch.bool)


def background_label(colour: str) -> str:
    """Return a judge's label of a background: "blue background"."""
    return f"{colour} background"


class Judge(Protocol):
    """Decides what images show, in terms of its own labels."""

    @property
    def objects(self) -> Sequence[str]:
        """The labels of objects, which prompts can name; () if there are none."""
        ...

    @property
    def backgrounds(self) -> Sequence[str]:
        """The colours of backgrounds that it recognizes, see `background_label`; () if there are none."""
        ...

    def concept_label(self, concept: ConceptConfig) -> str:
        """Return the concept's label. Raises AdvUnlearnError when the judge does not know the concept."""
        ...

    def label(self, name: str) -> str:
        """Return the label of a name. Raises AdvUnlearnError when the judge has none."""
        ...

    def look(self, images: Tensor, concept: str) -> JudgeOutput:
        """Judge images (B, 3, H, W) in [0, 1]; `concept` is the label from `concept_label`."""
        ...

    def settings(self) -> dict[str, object]:
        """Return the judge's entry in a report: its kind, the hash of its weights, and its settings."""
        ...


def hash_weights(module: nn.Module) -> str:
    """Return a short SHA-256 of all weights of a module, which tells apart judges in folders of the same name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:12]


def split_pixels(images: Tensor, size: int = 16) -> Iterator[list[np.ndarray]]:
    """Yield images (B, 3, H, W) in [0, 1] as lists of at most `size` RGB arrays (H, W, 3) of uint8."""
    for part in images.split(size):
        yield list((part.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy())


def _normalize(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def match_label(name: str, labels: Sequence[str], judge: str) -> str:
    """Return the label that equals `name`, or one of whose parts between commas does, ignoring case.

    "church" finds ImageNet's "church, church building". Equal labels count as one.
    Raises AdvUnlearnError, with similar labels when there is no match, and with all matches when there are several.
    """
    wanted = _normalize(name)
    parts = {part: label for label in labels for part in map(_normalize, label.split(",")) if part}
    matches = [label for label in labels if _normalize(label) == wanted]
    matches = matches or [label for label in labels if wanted in map(_normalize, label.split(","))]
    if len(set(matches)) == 1 and wanted:
        return matches[0]
    if matches and wanted:
        raise AdvUnlearnError(f"{name!r} may be {' or '.join(map(repr, matches))}; give {judge} the full label")
    near = dict.fromkeys(parts[part] for part in difflib.get_close_matches(wanted, list(parts), 6))
    hint = "similar: " if near else f"the first of its {len(labels)} labels: "
    raise AdvUnlearnError(f"{judge} has no label {name!r}; {hint}{', '.join(map(repr, near or labels[:6]))}")
