"""CLIP score and FID: by hand on pictures that differ in their colour alone."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch
from tiny_models import COLOURS, colour_clip, patches
from torch import Tensor, nn
from transformers import CLIPModel

from advunlearn.cli.main import main
from advunlearn.errors import AdvUnlearnError
from advunlearn.evaluation.image_metrics import ImageMetrics

NAMES = list(COLOURS)


class Means(nn.Module):
    """Gives the mean colour, or, like the Inception that is handed around, classes unless asked for features."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        if not return_features:
            return torch.zeros(len(images), 2)
        return images.float().mean((2, 3))


class Plain(nn.Module):
    """Gives the mean colour, and knows no other argument."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3))[:, :, None, None]


class Apart(nn.Module):
    """Gives the mean difference of two pictures in [-1, 1], as LPIPS gives its distances: (B, 1, 1, 1)."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean((1, 2, 3), keepdim=True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return colour_clip(tmp_path_factory.mktemp("quality") / "clip")


def scripted(network: nn.Module, folder: pathlib.Path) -> pathlib.Path:
    """Write a network as TorchScript; return the file."""
    path = folder / "network.pt"
    torch.jit.script(network).save(path)  # type: ignore[no-untyped-call]
    return path


@pytest.fixture(scope="module")
def means(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return scripted(Means(), tmp_path_factory.mktemp("means"))


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return scripted(Apart(), tmp_path_factory.mktemp("apart"))


def test_clip_score_is_the_cosine_of_picture_and_prompt(clip: pathlib.Path) -> None:
    images, prompts = patches(NAMES), [f"a photo of a {name}" for name in NAMES]
    own, wrong = (ImageMetrics(str(clip)).measure(p, images, images)["clip_score"] for p in (prompts, prompts[::-1]))
    assert 0 <= wrong < own <= 100
    model = CLIPModel.from_pretrained(clip)
    quality = ImageMetrics(str(clip))
    assert quality.clip is not None
    pixels = torch.cat(list(quality.clip.prepare(images)))
    text = quality.clip.tokenizer(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(pixel_values=pixels, **text).logits_per_image / model.logit_scale.exp()
    assert own == pytest.approx(float((100 * logits.diag()).clamp(min=0).mean()), abs=1e-3)


def test_fid_is_the_distance_of_the_features(means: pathlib.Path, tmp_path: pathlib.Path) -> None:
    grey = torch.full((4, 3, 8, 8), 0.2)
    grey[::2] += 40 / 255
    brighter = grey + 10 / 255
    # The same spread, and each of three means moved by ten bytes.
    measured = ImageMetrics(inception=str(means)).measure([], brighter, grey)
    assert measured == {"fid": pytest.approx(300.0, rel=0.02)}
    assert ImageMetrics(inception=str(means)).measure([], grey, grey)["fid"] == pytest.approx(0.0, abs=1e-3)
    assert ImageMetrics(inception=str(scripted(Plain(), tmp_path))).measure([], brighter, grey) == measured
    assert ImageMetrics(inception=str(means)).measure([], brighter[:1], grey) == {}  # one picture has no spread


def test_lpips_is_the_mean_distance_one_by_one(apart: pathlib.Path) -> None:
    pictures = torch.linspace(0, 0.9, 40 * 3 * 4).view(40, 3, 2, 2)  # more than one batch
    quality, none = ImageMetrics(lpips=str(apart)), torch.zeros(0)
    assert quality.measure([], pictures, none, pictures) == {"lpips": 0.0}
    moved = pictures + 0.1 * (torch.arange(40) % 2).view(-1, 1, 1, 1)  # half of them by 0.1, which is 0.2 of [-1, 1]
    assert quality.measure([], moved, none, pictures) == {"lpips": pytest.approx(0.1)}
    assert quality.measure([], moved, none) == {}
    assert "weights" in quality.settings()["lpips"]
    quality.lpips = lambda a, b: (a - b).abs().mean()
    with pytest.raises(AdvUnlearnError, match="2 distances for 40 pairs of images; it must return one for each"):
        quality.measure([], moved, none, pictures)


def test_what_cannot_be_read_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "text.pt").write_text("no script")
    with pytest.raises(AdvUnlearnError, match="is no TorchScript file"):
        ImageMetrics(inception=str(tmp_path / "text.pt"))
    with pytest.raises(AdvUnlearnError, match="no such file; give the TorchScript file"):
        ImageMetrics(inception="nowhere.pt")
    with pytest.raises(AdvUnlearnError, match="give the TorchScript file of a distance between two images"):
        ImageMetrics(lpips="nowhere.pt")
    with pytest.raises(AdvUnlearnError, match="no such folder"):
        ImageMetrics(clip="nowhere")


def test_the_report_has_them_beside_the_others(
    clip: pathlib.Path,
    means: pathlib.Path,
    apart: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--cases", "2", "--attack-steps", "0", "--attacks", "pez", "--sampling-steps", "2", "--repeats", "1"]
    flags += ["--clip-score", str(clip), "--fid", str(means), "--lpips", str(apart)]
    flags += ["--out", str(tmp_path), "--device", "cpu", "--json"]
    assert main(["evaluate", *flags]) == 0
    utility = json.loads(capsys.readouterr().out)["models"]["original"]["utility"]
    assert utility["clip_score"] >= 0 and utility["fid"] > 0 and utility["lpips"] == 0 and "feature_distance" in utility
    page = (tmp_path / "report.html").read_text()
    assert "CLIP score" in page and "FID" in page and "LPIPS" in page
