"""How good pictures are by measures that need weights, which are the user's own files: CLIP score and FID."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import AdvUnlearnError
from ..files import digest_of
from ..judges.zero_shot import ZeroShotJudge
from .metrics import frechet_distance

BATCH = 32


class Quality:
    """Measures of retained pictures.

    Args:
        clip: folder of a CLIP in transformers' form, or nothing: no CLIP score.
        inception: TorchScript file of a feature extractor that takes pictures (B, 3, H, W) in bytes, such as
            `inception-2015-12-05.pt`, or nothing: no FID. With any other extractor it is a Frechet distance, not FID.
        device: where they compute.

    Raises AdvUnlearnError for what cannot be read.
    """

    def __init__(self, clip: str = "", inception: str = "", device: str = "cpu") -> None:
        self.device = device
        self.about: dict[str, str] = {}
        self.clip = ZeroShotJudge(clip, device=device) if clip else None
        if self.clip is not None:
            self.about["clip_score"] = f"{pathlib.Path(clip).name}, weights {self.clip.weights}"
        self.inception: Any = None
        if inception:
            if not pathlib.Path(inception).is_file():
                raise AdvUnlearnError(f"{inception}: no such file; give the TorchScript file of a feature extractor")
            try:
                self.inception = torch.jit.load(inception, map_location=device).train(False)
            except RuntimeError as error:
                first = str(error).strip().splitlines()[0]
                raise AdvUnlearnError(f"{inception} is no TorchScript file ({first}); export the extractor") from error
            self.about["fid"] = f"{pathlib.Path(inception).name}, weights {digest_of(pathlib.Path(inception))[:12]}"

    def settings(self) -> dict[str, str]:
        """Return what a report says of the measures: their files, and the hashes of their weights."""
        return self.about

    def measure(self, prompts: Sequence[str], images: Tensor, reference: Tensor) -> dict[str, float]:
        """Return `clip_score` and `fid` of pictures (N, 3, H, W) of N prompts, against reference pictures (M, 3, H, W).

        CLIP score is the mean of max(100 cos, 0) of picture and prompt (arXiv 2104.08718, without its factor 2.5); FID
        is that of arXiv 1706.08500, which few pictures make too large: compare equal numbers of them only.
        """
        found = {}
        if self.clip is not None:
            found["clip_score"] = round(float(self.clip.score(images, prompts).mean()), 4)
        if self.inception is not None and min(len(images), len(reference)) > 1:
            found["fid"] = round(frechet_distance(self.features(images), self.features(reference)), 4)
        return found

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return the extractor's features (N, D) of pictures (N, 3, H, W) in [0, 1]."""
        parts = []
        for part in (images * 255).round().to(torch.uint8).split(BATCH):
            try:  # what is handed around as inception-2015-12-05.pt gives classes unless it is asked for features
                output = self.inception(part.to(self.device), return_features=True)
            except RuntimeError:
                output = self.inception(part.to(self.device))
            parts.append(output.flatten(1).float().cpu())
        return torch.cat(parts)
