"""A model's folder with a part that does not fit is refused in one line; nothing random or unused gets into a model."""

from __future__ import annotations

import json
import pathlib
import shutil
import socket
import urllib.request
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file

from advunlearn import miniature
from advunlearn.cli.main import main
from advunlearn.miniature import checkpoint
from advunlearn.models.loading import load
from advunlearn.models.meta_model import skeleton

Tensors = dict[str, torch.Tensor]
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def lost(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: v for k, v in tensors.items() if k != name}


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        (UNET, lost("conv_out.bias"), "its unet lacks 1 tensors, first 'conv_out.bias'"),
        (VAE, lost("decoder.layers.0.bias"), "its vae lacks 1 tensors, first 'decoder.layers.0.bias'"),
        (TEXT, lost("text_model.final_layer_norm.bias"), "its text_encoder lacks 1 tensors, first"),
        (UNET, lambda t: t | {"more.weight": torch.zeros(2)}, "its unet has unknown 1 tensors, first 'more.weight'"),
        (VAE, lambda t: t | {"more.weight": torch.zeros(2)}, "its vae has unknown 1 tensors, first 'more.weight'"),
        (UNET, lambda t: t | {"conv_out.bias": torch.zeros(5)}, "could not be read: "),
    ],
)
def test_a_part_that_does_not_fit_is_refused(
    file: str,
    change: Callable[[Tensors], Tensors],
    says: str,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(miniature.path(), tmp_path / "model")
    save_file(change(load_file(folder / file)), folder / file, {"format": "pt"})
    assert main(["sample", "a dog", "--model", str(folder), "--out", str(tmp_path / "x.png")]) == 2
    error = capsys.readouterr().err
    assert f"model {str(folder)!r}" in error and says in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ("unet/config.json", {"in_channels": 9}, "the UNet takes 9 channels and returns 4: an inpainting model"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "the scheduler predicts 'sample'; only"),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "a flow-matching model",
        ),
        ("scheduler/scheduler_config.json", {"use_flow_sigmas": True}, "is a flow-matching model"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "a model of EDM's noise schedule"),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "LCMScheduler"},
            "distilled to a few steps without guidance",
        ),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "takes the guidance scale as an input"),
    ],
)
def test_another_kind_of_model_is_refused(
    part: str, change: dict[str, object], says: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(miniature.path(), tmp_path / "model")
    config = json.loads((folder / part).read_text())
    (folder / part).write_text(json.dumps(config | change))
    if "time_cond_proj_dim" in change:
        tensors = load_file(folder / UNET)
        tensors["time_embedding.cond_proj.weight"] = torch.zeros(64, 256).half()
        save_file(tensors, folder / UNET, {"format": "pt"})
    if "in_channels" in change:
        tensors = load_file(folder / UNET)
        save_file(tensors | {"conv_in.weight": torch.zeros(64, 9, 3, 3).half()}, folder / UNET, {"format": "pt"})
    assert main(["sample", "a dog", "--model", str(folder), "--out", str(tmp_path / "x.png")]) == 2
    error = capsys.readouterr().err
    assert f"model {str(folder)!r}" in error and says in error and error.count("\n") == 1


@pytest.mark.parametrize("command", ["sample", "estimate"])
def test_a_few_step_model_in_the_hugging_face_cache_is_refused_by_its_name(
    command: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "models--stabilityai--sd-turbo"
    shutil.copytree(miniature.path(), root / "snapshots" / "0123")
    argv = ["sample", "a dog", "--out", str(tmp_path / "x.png")] if command == "sample" else ["estimate"]
    assert main([*argv, "--model", str(root)]) == 2
    assert "is named 'turbo'" in capsys.readouterr().err


def test_nothing_is_asked_of_a_network(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refused(name: str) -> Callable[..., None]:
        def call(*_: object, **__: object) -> None:
            asked.append(name)
            raise OSError("no network")

        return call

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refused(name))
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refused(name))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    folder = shutil.copytree(miniature.path(), tmp_path / "model")
    assert load(str(folder)).encode(["a dog"]).shape == (1, 77, 192)
    for name in ("sd15", "sdxl", str(folder)):
        assert skeleton(name, torch.device("cpu"), torch.float16).tokenizer("a dog").input_ids
    single = checkpoint.write_checkpoint(tmp_path / "file.safetensors")
    assert load(str(single)).encode(["a dog"]).shape == (1, 77, 768)
    assert asked == []
    with pytest.raises(OSError, match="no network"):
        urllib.request.urlopen("http://huggingface.co")
    assert asked
