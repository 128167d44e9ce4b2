"""CLIP as a judge without training: the concept against other names (Radford et al., arXiv 2103.00020, section 3.1)."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.concept import ConceptConfig
from ..config.evaluation import ZeroShotConfig
from ..errors import AdvUnlearnError
from ..prompts import retain
from .base import JudgeOutput, match, weights_hash
from .folders import Preprocessor, load_pretrained


class ZeroShotJudge:
    """A picture shows the one label whose prompt lies nearest to it by cosine, among the candidates and the concept.

    Candidates are `config.labels`, or the 80 COCO classes; a concept that is none of them is added. Success is the
    argmax: what it means depends on the candidates, so compare only figures with the same ones.
    Raises AdvUnlearnError when the folder holds no whole CLIP.
    """

    def __init__(self, folder: str | pathlib.Path, config: ZeroShotConfig | None = None, device: str = "cpu") -> None:
        from transformers import CLIPModel, CLIPTokenizer

        self.folder, self.config, self.device = pathlib.Path(folder), config or ZeroShotConfig(), device
        self.model = load_pretrained(CLIPModel, folder, device)
        self.weights = weights_hash(self.model)
        self.prepare = Preprocessor(folder)
        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise AdvUnlearnError(
                f"judge {str(folder)!r}: its tokenizer could not be read ({error}); copy the files that came with it"
            ) from error
        self.labels = list(self.config.candidates) or retain.class_names()
        self.embedded: dict[str, Tensor] = {}  # (D,) of each label, embedded once

    def concept_label(self, concept: ConceptConfig) -> str:
        """See `Judge.concept_label`: a candidate of that name, or the concept itself, which is then one more."""
        name = concept.concept.strip()
        name = next((label for label in self.labels if label.casefold() == name.casefold()), name)
        if self.labels == [name]:
            raise AdvUnlearnError(
                f"labels is {self.config.labels!r}, so every picture would show {name!r}; give labels it competes with"
            )
        return name

    def label(self, name: str) -> str:
        """See `Judge.label`: one of the candidates."""
        return match(name, self.labels, "the CLIP judge")

    @torch.no_grad()
    def look(self, images: Tensor, concept: str) -> JudgeOutput:
        """See `Judge.look`. Features are CLIP's image embeddings (B, D)."""
        labels = list(dict.fromkeys([*self.labels, concept]))
        names, features = self._names(labels), self._pictures(images)  # (L, D), (B, D)
        nearest = (F.normalize(features, dim=-1) @ names.T).argmax(1).tolist()
        return JudgeOutput([frozenset({labels[i]}) for i in nearest], features.float().cpu())

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return max(100 cos, 0) of each picture (B, 3, H, W) and its prompt (B,): CLIP score (arXiv 2104.08718)."""
        texts = torch.cat([self._embed_texts(prompts[i : i + 64]) for i in range(0, len(prompts), 64)])
        cosine = (F.normalize(self._pictures(images), dim=-1) * texts).sum(-1)
        return (100 * cosine).clamp(min=0).float().cpu()

    def _pictures(self, images: Tensor) -> Tensor:
        """Return the image embeddings (B, D)."""
        parts = [self.model.vision_model(v.to(self.device)).pooler_output for v in self.prepare(images)]
        return self.model.visual_projection(torch.cat(parts))

    def _names(self, labels: list[str]) -> Tensor:
        """Return the unit text embeddings (L, D) of the labels' prompts."""
        new = [label for label in labels if label not in self.embedded]
        if new:
            self.embedded.update(zip(new, self._embed(new), strict=True))
        return torch.stack([self.embedded[label] for label in labels])

    def _embed(self, labels: list[str]) -> Tensor:
        return self._embed_texts([self.config.template.format(label) for label in labels])

    def _embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Return the unit text embeddings (B, D) of prompts."""
        batch = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=77, return_tensors="pt")
        out = self.model.text_model(
            input_ids=batch["input_ids"].to(self.device), attention_mask=batch["attention_mask"].to(self.device)
        )
        return F.normalize(self.model.text_projection(out.pooler_output), dim=-1)

    def settings(self) -> dict[str, Any]:
        """See `Judge.settings`."""
        kind = {"judge": "clip", "folder": self.folder.name, "weights": self.weights}
        return kind | {"template": self.config.template, "labels": self.labels}
