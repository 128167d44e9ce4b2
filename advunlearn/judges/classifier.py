"""Any image classifier in a transformers folder: an ImageNet ViT or ResNet, for example."""

from __future__ import annotations

import pathlib
from typing import Any

import torch
from torch import Tensor

from ..config.concept import ConceptConfig
from ..config.evaluation import ClassifierConfig
from .base import JudgeOutput, match, weights_hash
from .folders import Preprocessor, load_pretrained


class ClassifierJudge:
    """A picture shows the labels of the classifier's `top_k` highest logits. Its labels are config.json's id2label.

    Raises AdvUnlearnError when the folder has no image classifier, or one without trained weights.
    """

    def __init__(self, folder: str | pathlib.Path, config: ClassifierConfig | None = None, device: str = "cpu") -> None:
        from transformers import AutoModelForImageClassification

        self.folder, self.config, self.device = pathlib.Path(folder), config or ClassifierConfig(), device
        self.model = load_pretrained(AutoModelForImageClassification, folder, device)
        self.prepare = Preprocessor(folder)
        names = self.model.config.id2label
        self.labels = [names[i] for i in range(len(names))]
        self.weights = weights_hash(self.model)

    def concept_label(self, concept: ConceptConfig) -> str:
        """See `Judge.concept_label`: the label that the concept names."""
        return self.label(concept.concept.strip())

    def label(self, name: str) -> str:
        """See `Judge.label`; tolerant as `match` is."""
        return match(name, self.labels, "the classifier")

    @torch.no_grad()
    def look(self, images: Tensor, concept: str) -> JudgeOutput:
        """See `Judge.look`. Features are the last hidden states (B, D), averaged over tokens or places."""
        count, labels, features = min(self.config.top_k, len(self.labels)), [], []
        for values in self.prepare(images):
            out = self.model(values.to(self.device), output_hidden_states=True)
            labels += [frozenset(self.labels[i] for i in row) for row in out.logits.topk(count).indices.tolist()]
            if out.hidden_states:
                features.append(_pooled(out.hidden_states[-1]).float().cpu())
        return JudgeOutput(labels, torch.cat(features) if features else None)

    def settings(self) -> dict[str, Any]:
        """See `Judge.settings`."""
        return {"judge": "classifier", "folder": self.folder.name, "weights": self.weights, **self.config.to_dict()}


def _pooled(hidden: Tensor) -> Tensor:
    """Average (B, D, h, w) over places, or (B, tokens, D) over tokens."""
    return hidden.mean((2, 3)) if hidden.dim() == 4 else hidden.mean(1)
