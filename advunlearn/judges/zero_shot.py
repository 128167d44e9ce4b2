"""CLIP as a zero-shot judge: the concept against other labels (Radford et al., arXiv 2103.00020, section 3.1)."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.concept import ConceptConfig
from ..config.evaluation import ZeroShotConfig
from ..errors import AdvUnlearnError
from ..prompts import retain
from .base import JudgeOutput, hash_weights, match_label
from .folders import Preprocessor, load_pretrained


class ZeroShotJudge:
    """An image shows the one label whose prompt is nearest to it by cosine, among the candidates and the concept.

    Candidates are `config.labels`, or the 80 COCO classes; a concept that is none of them is added. Since the decision
    depends on the candidates, only numbers with the same candidates are comparable.
    Raises AdvUnlearnError when the folder contains no complete CLIP.
    """

    backgrounds: Sequence[str] = ()

    def __init__(self, folder: str | pathlib.Path, config: ZeroShotConfig | None = None, device: str = "cpu") -> None:
        from transformers import CLIPModel, CLIPTokenizer

        self.folder = pathlib.Path(folder)
        self.config = config or ZeroShotConfig()
        self.device = device
        self.model = load_pretrained(CLIPModel, folder, device)
        self.weights = hash_weights(self.model)
        self.prepare = Preprocessor(folder)
        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise AdvUnlearnError(
                f"judge {str(folder)!r}: its tokenizer could not be read ({error}); copy the files that came with it"
            ) from error
        self.labels = self.objects = list(self.config.candidates) or retain.class_names()
        self.embedded: dict[str, Tensor] = {}  # (D,) per label

    def concept_label(self, concept: ConceptConfig) -> str:
        """Return the candidate with the concept's name, or the name itself, which `look` adds to the candidates."""
        name = concept.name
        name = next((label for label in self.labels if label.casefold() == name.casefold()), name)
        if self.labels == [name]:
            raise AdvUnlearnError(
                f"labels is {self.config.labels!r}, so every image would show {name!r}; give labels it competes with"
            )
        return name

    def label(self, name: str) -> str:
        """Return one of the candidates."""
        return match_label(name, self.labels, "the CLIP judge")

    @torch.no_grad()
    def look(self, images: Tensor, concept: str) -> JudgeOutput:
        """Judge images; features are CLIP's image embeddings (B, D)."""
        labels = list(dict.fromkeys([*self.labels, concept]))
        label_embeddings = self._embed_labels(labels)  # (L, D)
        features = self._embed_images(images)  # (B, D)
        nearest = (F.normalize(features, dim=-1) @ label_embeddings.T).argmax(1).tolist()
        return JudgeOutput([frozenset({labels[i]}) for i in nearest], features.float().cpu())

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the CLIP score, max(100 cos, 0), of images (B, 3, H, W) and their prompts, (B,) (arXiv 2104.08718)."""
        texts = torch.cat([self._embed_texts(prompts[i : i + 64]) for i in range(0, len(prompts), 64)])
        cosine = (F.normalize(self._embed_images(images), dim=-1) * texts).sum(-1)
        return (100 * cosine).clamp(min=0).float().cpu()

    def _embed_images(self, images: Tensor) -> Tensor:
        """Return the image embeddings (B, D)."""
        parts = [self.model.vision_model(v.to(self.device)).pooler_output for v in self.prepare(images)]
        return self.model.visual_projection(torch.cat(parts))

    def _embed_labels(self, labels: list[str]) -> Tensor:
        """Return the unit text embeddings (L, D) of the labels' prompts."""
        new = [label for label in labels if label not in self.embedded]
        if new:
            self.embedded.update(zip(new, self._embed_texts(list(map(self.config.template.format, new))), strict=True))
        return torch.stack([self.embedded[label] for label in labels])

    def _embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Return the unit text embeddings (B, D) of prompts."""
        batch = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=77, return_tensors="pt")
        out = self.model.text_model(
            input_ids=batch["input_ids"].to(self.device), attention_mask=batch["attention_mask"].to(self.device)
        )
        return F.normalize(self.model.text_projection(out.pooler_output), dim=-1)

    def settings(self) -> dict[str, object]:
        """Return the judge's entry in a report."""
        kind = {"judge": "clip", "folder": self.folder.name, "weights": self.weights}
        return kind | {"template": self.config.template, "labels": self.labels}
