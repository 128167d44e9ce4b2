"""Image metrics that need the user's own weight files: CLIP score, FID and LPIPS."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import AdvUnlearnError
from ..files import compute_digest
from ..judges.zero_shot import ZeroShotJudge
from .metrics import frechet_distance

BATCH_SIZE = 32


class ImageMetrics:
    """Metrics of the retained images.

    Args:
        clip: folder of a CLIP in transformers' format; "" for no CLIP score.
        inception: TorchScript file of a feature extractor for images (B, 3, H, W) in uint8, for example
            `inception-2015-12-05.pt`; "" for no FID. With another extractor it is a Frechet distance, not FID.
        device: where the metrics are computed.
        lpips: TorchScript file of a distance between two images, each (B, 3, H, W) in [-1, 1]; "" for no LPIPS.

    Raises AdvUnlearnError for a file that cannot be read.
    """

    def __init__(self, clip: str = "", inception: str = "", device: str = "cpu", lpips: str = "") -> None:
        self.device = device
        self.files: dict[str, str] = {}  # metric -> file name and hash of its weights
        self.clip = ZeroShotJudge(clip, device=device) if clip else None
        if self.clip is not None:
            self.files["clip_score"] = f"{pathlib.Path(clip).name}, weights {self.clip.weights}"
        self.inception = self._load_torchscript("fid", inception, "a feature extractor")
        self.lpips = self._load_torchscript("lpips", lpips, "a distance between two images")

    def _load_torchscript(self, metric: str, path: str, what: str) -> torch.nn.Module | None:
        """Return the network of a TorchScript file and note the file's hash; None without a file."""
        if not path:
            return None
        file = pathlib.Path(path)
        if not file.is_file():
            raise AdvUnlearnError(f"{path}: no such file; give the TorchScript file of {what}")
        try:
            network: torch.nn.Module = torch.jit.load(path, map_location=self.device).train(False)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise AdvUnlearnError(f"{path} is no TorchScript file ({reason}); export {what}") from error
        self.files[metric] = f"{file.name}, weights {compute_digest(file)[:12]}"
        return network

    def settings(self) -> dict[str, str]:
        """Return the entries of the report: the files of the metrics and the hashes of their weights."""
        return self.files

    def measure(
        self, prompts: Sequence[str], images: Tensor, reference: Tensor, same_noise: Tensor | None = None
    ) -> dict[str, float]:
        """Return those of `clip_score`, `fid` and `lpips` that have weights.

        Args:
            prompts: N prompts of the images.
            images: (N, 3, H, W) in [0, 1].
            reference: (M, 3, H, W) the images with which FID compares them.
            same_noise: (N, 3, H, W) the original model's images of the same prompts and noise, for LPIPS.

        CLIP score is the mean of max(100 cos, 0) of image and prompt (arXiv 2104.08718, without its factor 2.5). FID
        (arXiv 1706.08500) is too large for few images: only compare values of the same number of images. LPIPS (arXiv
        1801.03924) is the mean distance.
        """
        metrics = {}
        if self.clip is not None:
            metrics["clip_score"] = round(float(self.clip.score(images, prompts).mean()), 4)
        if self.inception is not None and min(len(images), len(reference)) > 1:
            distance = frechet_distance(self.extract_features(images), self.extract_features(reference))
            metrics["fid"] = round(distance, 4)
        if self.lpips is not None and same_noise is not None:
            metrics["lpips"] = round(float(self.measure_distances(images, same_noise).mean()), 4)
        return metrics

    @torch.no_grad()
    def measure_distances(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the LPIPS distances (N,) between the images of `a` and `b`, both (N, 3, H, W) in [0, 1].

        Raises AdvUnlearnError for a network that returns another number of distances.
        """
        assert self.lpips is not None
        parts = []
        for pair in zip(a.split(BATCH_SIZE), b.split(BATCH_SIZE), strict=True):
            distances = self.lpips(*((part * 2 - 1).to(self.device) for part in pair))
            parts.append(distances.flatten().float().cpu())
        result = torch.cat(parts)
        if len(result) != len(a):
            raise AdvUnlearnError(
                f"{self.files['lpips']}: {len(result)} distances for {len(a)} pairs of images; it must return one for "
                "each pair"
            )
        return result

    @torch.no_grad()
    def extract_features(self, images: Tensor) -> Tensor:
        """Return the extractor's features (N, D) of images (N, 3, H, W) in [0, 1]."""
        assert self.inception is not None
        parts = []
        for part in (images * 255).round().to(torch.uint8).split(BATCH_SIZE):
            try:  # the published inception-2015-12-05.pt returns classes unless it is asked for features
                output = self.inception(part.to(self.device), return_features=True)
            except RuntimeError:
                output = self.inception(part.to(self.device))
            parts.append(output.flatten(1).float().cpu())
        return torch.cat(parts)
