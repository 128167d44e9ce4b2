"""A judge from any image classifier in a transformers folder, for example an ImageNet ViT or ResNet."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ..config.concept import ConceptConfig
from ..config.evaluation import ClassifierConfig
from .base import JudgeOutput, hash_weights, match_label
from .folders import Preprocessor, load_pretrained


class ClassifierJudge:
    """An image shows the labels of the classifier's `top_k` highest logits. The labels are config.json's id2label.

    Raises AdvUnlearnError when the folder has no image classifier, or one without trained weights.
    """

    backgrounds: Sequence[str] = ()

    def __init__(self, folder: str | pathlib.Path, config: ClassifierConfig | None = None, device: str = "cpu") -> None:
        from transformers import AutoModelForImageClassification

        self.folder = pathlib.Path(folder)
        self.config = config or ClassifierConfig()
        self.device = device
        self.model = load_pretrained(AutoModelForImageClassification, folder, device)
        self.prepare = Preprocessor(folder)
        names = self.model.config.id2label
        self.labels = self.objects = [names[i] for i in range(len(names))]
        self.weights = hash_weights(self.model)

    def concept_label(self, concept: ConceptConfig) -> str:
        """Return the label with the concept's name."""
        return self.label(concept.name)

    def label(self, name: str) -> str:
        """Return the label that `match_label` finds."""
        return match_label(name, self.labels, "the classifier")

    @torch.no_grad()
    def look(self, images: Tensor, concept: str) -> JudgeOutput:
        """Judge images; features are the last hidden states (B, D), averaged over tokens or pixels."""
        count = min(self.config.top_k, len(self.labels))
        labels: list[frozenset[str]] = []
        features: list[Tensor] = []
        for values in self.prepare(images):
            out = self.model(values.to(self.device), output_hidden_states=True)
            labels += [frozenset(self.labels[i] for i in row) for row in out.logits.topk(count).indices.tolist()]
            if out.hidden_states:
                features.append(_pool(out.hidden_states[-1]).float().cpu())
        return JudgeOutput(labels, torch.cat(features) if features else None)

    def settings(self) -> dict[str, object]:
        """Return the judge's entry in a report."""
        return {"judge": "classifier", "folder": self.folder.name, "weights": self.weights, **self.config.to_dict()}


def _pool(hidden: Tensor) -> Tensor:
    """Average (B, D, h, w) over pixels, or (B, tokens, D) over tokens."""
    return hidden.mean((2, 3)) if hidden.dim() == 4 else hidden.mean(1)
