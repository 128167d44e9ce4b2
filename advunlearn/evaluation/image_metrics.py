"""How good pictures are by measures that need weights, the user's own files: CLIP score, FID and LPIPS."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import AdvUnlearnError
from ..files import compute_digest
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
        lpips: TorchScript file of a distance between two pictures, each (B, 3, H, W) in [-1, 1], or nothing: no LPIPS.

    Raises AdvUnlearnError for what cannot be read.
    """

    def __init__(self, clip: str = "", inception: str = "", device: str = "cpu", lpips: str = "") -> None:
        self.device = device
        self.about: dict[str, str] = {}
        self.clip = ZeroShotJudge(clip, device=device) if clip else None
        if self.clip is not None:
            self.about["clip_score"] = f"{pathlib.Path(clip).name}, weights {self.clip.weights}"
        self.inception = self._scripted("fid", inception, "a feature extractor")
        self.lpips = self._scripted("lpips", lpips, "a distance between two pictures")

    def _scripted(self, name: str, path: str, what: str) -> Any:
        """Return the network of a TorchScript file and note its hash; None without a file."""
        if not path:
            return None
        file = pathlib.Path(path)
        if not file.is_file():
            raise AdvUnlearnError(f"{path}: no such file; give the TorchScript file of {what}")
        try:
            network = torch.jit.load(path, map_location=self.device).train(False)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            raise AdvUnlearnError(f"{path} is no TorchScript file ({first}); export {what}") from error
        self.about[name] = f"{file.name}, weights {compute_digest(file)[:12]}"
        return network

    def settings(self) -> dict[str, str]:
        """Return what a report says of the measures: their files, and the hashes of their weights."""
        return self.about

    def measure(
        self, prompts: Sequence[str], images: Tensor, reference: Tensor, same: Tensor | None = None
    ) -> dict[str, float]:
        """Return `clip_score`, `fid` and `lpips` of pictures, those that there are weights for.

        Args:
            prompts: of N pictures.
            images: (N, 3, H, W) in [0, 1].
            reference: (M, 3, H, W), what the FID compares them with.
            same: (N, 3, H, W), the pictures that should have stayed as they were, which LPIPS compares one by one.

        CLIP score is the mean of max(100 cos, 0) of picture and prompt (arXiv 2104.08718, without its factor 2.5); FID
        is that of arXiv 1706.08500, which few pictures make too large: compare equal numbers of them only; LPIPS
        (arXiv 1801.03924) is the mean distance.
        """
        found = {}
        if self.clip is not None:
            found["clip_score"] = round(float(self.clip.score(images, prompts).mean()), 4)
        if self.inception is not None and min(len(images), len(reference)) > 1:
            found["fid"] = round(frechet_distance(self.features(images), self.features(reference)), 4)
        if self.lpips is not None and same is not None:
            found["lpips"] = round(float(self.distances(images, same).mean()), 4)
        return found

    @torch.no_grad()
    def distances(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance (N,) of each picture of `a` from its like in `b`, both (N, 3, H, W) in [0, 1].

        Raises AdvUnlearnError for a network that gives another number of distances.
        """
        pairs = zip(a.split(BATCH), b.split(BATCH), strict=True)
        parts = [self.lpips(*((part * 2 - 1).to(self.device) for part in pair)) for pair in pairs]
        found = torch.cat([part.flatten().float().cpu() for part in parts])
        if len(found) != len(a):
            raise AdvUnlearnError(
                f"{self.about['lpips']}: {len(found)} distances for {len(a)} pairs of pictures; it must give one for "
                "each"
            )
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
