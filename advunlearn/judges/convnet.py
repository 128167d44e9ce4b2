"""The miniature's judge: a small convolutional classifier of object, style and background."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..config.concept import ConceptConfig, bare_name
from ..errors import AdvUnlearnError
from ..models.text_encoder import frozen
from .base import JudgeOutput, background_label, hash_weights, match_label


def find_names(text: str, names: Sequence[str]) -> list[str]:
    """Return the names that occur in a text as words, except inside another found name: no dog in "a hot dog"."""
    inside = [name for name in names if re.search(rf"\b{re.escape(name)}\b", text)]
    return [name for name in inside if not any(name != other and name in other for other in inside)]


@dataclass(frozen=True)
class ConvJudgeLogits:
    """The judge's class logits for B images, and the features that they are computed from."""

    object: Tensor  # (B, objects + 1); the last class is "none of these"
    style: Tensor  # (B, styles)
    background: Tensor  # (B, backgrounds)
    features: Tensor  # (B, 128)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """Halve the resolution with two 3x3 convolutions."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class ConvJudge(nn.Module):
    """Classify 64 x 64 images. `objects`, `styles` and `backgrounds` name the classes in logit order."""

    def __init__(self, objects: list[str], styles: list[str], backgrounds: list[str], width: int = 32) -> None:
        super().__init__()
        self.objects = list(objects)
        self.styles = list(styles)
        self.backgrounds = list(backgrounds)
        self.width = width
        self.trunk = nn.Sequential(
            _block(3, width), _block(width, 2 * width), _block(2 * width, 4 * width), _block(4 * width, 4 * width)
        )
        self.project = nn.Linear(16 * width, 128)
        self.object_head = nn.Linear(128, len(objects) + 1)
        self.style_head = nn.Linear(128, len(styles))
        self.background_head = nn.Linear(128, len(backgrounds))

    def forward(self, images: Tensor) -> ConvJudgeLogits:
        """Judge `images` (B, 3, H, W) in [0, 1]."""
        h = self.trunk(images * 2 - 1)
        h = F.relu(self.project(F.adaptive_avg_pool2d(h, 2).flatten(1)))
        return ConvJudgeLogits(self.object_head(h), self.style_head(h), self.background_head(h), h)

    def concept_label(self, concept: ConceptConfig) -> str:
        """Return an object or a style, by the concept's kind; for a prompt, the one object or style that it names."""
        text = bare_name(concept.name)
        known = self.styles if concept.kind == "style" else self.objects
        if text in known:
            return text
        names = find_names(text, self.objects) or find_names(text, self.styles) if concept.kind == "prompt" else []
        if len(names) == 1:
            return names[0]
        if names:
            raise AdvUnlearnError(f"the prompt {concept.name!r} names {', '.join(names)}; give one of them")
        what = "thing in the prompt" if concept.kind == "prompt" else concept.kind
        styles = "" if concept.kind == "style" else f" (and the styles {', '.join(self.styles)})"
        raise AdvUnlearnError(f"the judge knows no {what} {concept.name!r}; it knows {', '.join(known)}{styles}")

    def label(self, name: str) -> str:
        """Return an object or a style."""
        return match_label(name, [*self.objects, *self.styles], "the judge")

    @torch.no_grad()
    def look(self, images: Tensor, concept: str) -> JudgeOutput:
        """Judge images; each has one style, one background and at most one object. Features are (B, 128)."""
        with frozen(self):
            logits = self(images)
        classes = [head.argmax(1).tolist() for head in (logits.object, logits.style, logits.background)]
        labels = [
            frozenset({*self.objects[o : o + 1], self.styles[s], background_label(self.backgrounds[b])})
            for o, s, b in zip(*classes, strict=True)
        ]
        return JudgeOutput(labels, logits.features)

    def settings(self) -> dict[str, object]:
        """Return the judge's entry in a report."""
        return {"judge": "miniature", "weights": hash_weights(self)}

    def save_pretrained(self, folder: str | pathlib.Path) -> None:
        """Write `config.json` and fp16 `model.safetensors` into `folder`."""
        path = pathlib.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        config = {"objects": self.objects, "styles": self.styles, "backgrounds": self.backgrounds, "width": self.width}
        (path / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        tensors = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in self.state_dict().items()}
        save_file(tensors, path / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | pathlib.Path) -> ConvJudge:
        """Read a judge written by `save_pretrained`, in fp32 and evaluation mode."""
        path = pathlib.Path(folder)
        judge = cls(**json.loads((path / "config.json").read_text(encoding="utf-8")))
        judge.load_state_dict(load_file(path / "model.safetensors"))
        return judge.train(False)
