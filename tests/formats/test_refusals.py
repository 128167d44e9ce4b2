"""The table of refusals in docs/guide/formats.md: every row is run, and what is said is compared word for word."""

from __future__ import annotations

import pathlib
import re
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from encoder_layouts import openclip_layout, t5_layout, transformers_layout
from safetensors.torch import save, save_file

from advunlearn.cli.main import main
from advunlearn.formats.encoder_config import compute_encoder_shapes
from advunlearn.formats.single_file import load_sd15_config
from advunlearn.formats.tensors import write_safetensors

DOC = pathlib.Path(__file__).parents[2] / "docs" / "guide" / "formats.md"
Tensors = dict[str, torch.Tensor]
UNET, CLIP = "model.diffusion_model.", "cond_stage_model.transformer.text_model."


def rows() -> dict[str, tuple[list[str], str]]:
    """Return the table: of each file the command that is given it, and what that says."""
    table = DOC.read_text(encoding="utf-8").split("## Refused files")[1]
    found = re.findall(r"^\| (.+?) \| `(.+?)` \| (.+?) \|$", table, re.M)
    return {file: (command.split(), says) for file, command, says in found}


def encoder(width: int = 768, **more: torch.Tensor) -> Tensors:
    """Return CLIP-L's tensors, all zero and in eight bits (fp8)."""
    shapes = compute_encoder_shapes(load_sd15_config("text_encoder"))
    return {
        k: torch.zeros([width if n == 768 else n for n in v], dtype=torch.float8_e4m3fn) for k, v in shapes.items()
    } | more


def checkpoint(channels: int = 4, width: int = 768, clip: bool = True, vae: bool = True) -> Tensors:
    """Return what tells one checkpoint from another."""
    state = {UNET + "input_blocks.0.0.weight": torch.zeros(1, channels, 1, 1)}
    state[UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"] = torch.zeros(1, width)
    state |= transformers_layout(768, 12, CLIP) if clip else {}
    return state | ({"first_stage_model.decoder.conv_in.weight": torch.zeros(1)} if vae else {})


def sdxl(channels: int = 4, width: int = 2048, **more: torch.Tensor) -> Tensors:
    """Return what tells a complete SDXL checkpoint."""
    second = openclip_layout(1280, 32, "conditioner.embedders.1.model.")
    return checkpoint(channels, width) | second | {key.replace("__", "."): value for key, value in more.items()}


def transformer(*names: str) -> Callable[[pathlib.Path], str]:
    """Return how to write a checkpoint of a diffusion transformer, in ComfyUI's layout."""
    return safetensors(lambda: {UNET + name: torch.zeros(1) for name in names} | t5_layout("text_encoders.t5xxl."))


def without(state: Tensors, *names: str) -> Tensors:
    return {k: v for k, v in state.items() if k not in names}


class Evil:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must never run",))


def safetensors(
    make: Callable[[], Tensors], name: str = "file.safetensors", metadata: dict[str, str] | None = None
) -> Callable[[pathlib.Path], str]:
    """Return how to write a safetensors file; its name is returned."""

    def write(folder: pathlib.Path) -> str:
        save_file({k: v.clone() for k, v in make().items()}, folder / name, metadata)
        return name

    return write


def pickle(value: Callable[[], Any], name: str) -> Callable[[pathlib.Path], str]:
    """Return how to write a pickle."""

    def write(folder: pathlib.Path) -> str:
        torch.save(value(), folder / name)
        return name

    return write


def plain(name: str, content: bytes | None) -> Callable[[pathlib.Path], str]:
    """Return how to write a file of bytes, or a folder."""

    def write(folder: pathlib.Path) -> str:
        (folder / name).mkdir() if content is None else (folder / name).write_bytes(content)
        return name

    return write


def changed_file(folder: pathlib.Path) -> str:
    """Write a file of this library and change its last byte."""
    content = bytearray(write_safetensors(folder / "file.safetensors", {"a": torch.zeros(1)}, {}).read_bytes())
    content[-1] ^= 1
    (folder / "file.safetensors").write_bytes(content)
    return "file.safetensors"


def compressed_pickle(folder: pathlib.Path) -> str:
    """Write what `torch.save` writes, compressed."""
    torch.save({"a": torch.zeros(1000)}, folder / "file.pt")
    with zipfile.ZipFile(folder / "file.pt") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / "file.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    return "file.pt"


def script_program(folder: pathlib.Path) -> str:
    """Write the records by which a TorchScript program is told."""
    with zipfile.ZipFile(folder / "file.pt", "w") as archive:
        archive.writestr("file/constants.pkl", b"")
        archive.writestr("file/code/a.py", b"")
    return "file.pt"


LORA = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.zeros(1)}
NORM = "text_model.encoder.layers.11.layer_norm2.weight"
FILES: dict[str, Callable[[pathlib.Path], str]] = {
    "nothing there": lambda folder: "file.safetensors",
    "an empty folder": plain("place", None),
    "text named .safetensors": plain("file.safetensors", b"hello"),
    "a pickle with code in it": pickle(lambda: {"a": Evil()}, "file.pt"),
    "a damaged pickle": plain("file.bin", b"hello"),
    "a LoRA": safetensors(lambda: LORA),
    "one NaN in an encoder": safetensors(lambda: encoder() | {NORM: torch.tensor([torch.nan] + [0.0] * 767)}),
    "an encoder of integers": safetensors(lambda: encoder() | {NORM: torch.zeros(768, dtype=torch.int8)}),
    "a changed file of this library": changed_file,
    "an expanded tensor": pickle(lambda: {"a": torch.zeros(1).expand(10**9)}, "file.pt"),
    "a compressed pickle": compressed_pickle,
    "a Git LFS pointer": plain("file.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
    "a web page": plain("file.safetensors", b"<!doctype html><html></html>"),
    "GGUF": plain("file.safetensors", b"GGUF\x03\0\0\0"),
    "a pickle named .safetensors": pickle(lambda: {"a": torch.zeros(1)}, "file.safetensors"),
    "safetensors named .ckpt": plain("file.ckpt", save({"a": torch.zeros(1)})),
    "a TorchScript program": script_program,
    "a textual inversion embedding": safetensors(lambda: {"emb_params": torch.zeros(2, 768)}),
    "a LoHa": safetensors(lambda: {"lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a": torch.zeros(1)}),
    "LongCLIP": safetensors(
        lambda: encoder() | {"text_model.embeddings.position_embedding.weight": torch.zeros(248, 768)}
    ),
    "T5": safetensors(t5_layout),
    "CLIP's vision encoder": safetensors(
        lambda: (
            transformers_layout(1024, 24, "vision_model.")
            | {"vision_model.embeddings.patch_embedding.weight": torch.zeros(1024)}
        )
    ),
    "CLIP-G in OpenCLIP's layout": safetensors(lambda: openclip_layout(1280, 32)),
    "CLIP-G without its projection": safetensors(lambda: encoder(1280)),
    "SD 2's text encoder": safetensors(lambda: encoder(1024)),
    "an encoder with a tensor missing": safetensors(lambda: without(encoder(), NORM)),
    "an encoder with a tensor too many": safetensors(
        lambda: encoder() | {"text_model.encoder.layers.12.mlp.fc1.bias": torch.zeros(3072)}
    ),
    "an encoder with a tensor of another shape": safetensors(lambda: encoder() | {NORM: torch.zeros(767)}),
    "an encoder of a shape of its own": safetensors(lambda: encoder(96)),
    "the published .pt, its copies differing": pickle(
        lambda: (
            {f"text_encoder.{k}": v.half() for k, v in encoder().items()}
            | {k.removeprefix("text_model."): v.half() + (k == NORM) for k, v in encoder().items()}
        ),
        "file.pt",
    ),
    "other tensors": safetensors(lambda: {"b": torch.zeros(1), "a": torch.zeros(1)}),
    "SD 1.x for inpainting": safetensors(lambda: checkpoint(9)),
    "instruct-pix2pix": safetensors(lambda: checkpoint(8)),
    "SD 2": safetensors(lambda: checkpoint(4, 1024, False) | openclip_layout(1024, 24, "cond_stage_model.model.")),
    "SDXL with half of its tensors": safetensors(sdxl),
    "SDXL without CLIP-G": safetensors(lambda: checkpoint(4, 2048)),
    "SDXL for inpainting": safetensors(lambda: sdxl(9)),
    "SDXL for image editing": safetensors(lambda: sdxl(8)),
    "SDXL's refiner": safetensors(lambda: sdxl(4, 1280)),
    "SDXL Turbo": safetensors(sdxl, "sd_xl_turbo_1.0_fp16.safetensors"),
    "SDXL Lightning": safetensors(sdxl, "juggernautXL_v9Rdphoto2Lightning.safetensors"),
    "Hyper-SDXL, by its title": safetensors(sdxl, metadata={"modelspec.title": "my merge with Hyper-SDXL 8 steps"}),
    "SDXL LCM, a LoRA merged": safetensors(sdxl, "sdxl-lcm.safetensors"),
    "SDXL LCM, the whole UNet": safetensors(
        lambda: sdxl(model__diffusion_model__time_embed__cond_proj__weight=torch.zeros(1))
    ),
    "CosXL": safetensors(lambda: sdxl(edm_vpred__sigma_max=torch.zeros(1))),
    "Playground 2.5": safetensors(lambda: sdxl(edm_mean=torch.zeros(1), edm_std=torch.zeros(1))),
    "SDXL with flow matching": safetensors(sdxl, metadata={"modelspec.prediction_type": "rectified_flow"}),
    "SD 1.x LCM": safetensors(checkpoint, "dreamshaper_8LCM.safetensors"),
    "SD 3": transformer("joint_blocks.0.context_block.attn.qkv.weight"),
    "Flux": transformer("double_blocks.0.img_attn.qkv.weight"),
    "Flux, the transformer alone": safetensors(lambda: {"double_blocks.0.img_attn.qkv.weight": torch.zeros(1)}),
    "HunyuanVideo": transformer(
        "txt_in.individual_token_refiner.blocks.0.norm1.weight", "double_blocks.0.img_attn.qkv.weight"
    ),
    "HiDream": transformer("caption_projection.0.linear.weight", "double_stream_blocks.0.block.attn1.to_q.weight"),
    "Kandinsky 5": transformer("visual_transformer_blocks.0.cross_attention.key_norm.weight"),
    "another transformer": transformer("blocks.0.attn.qkv.weight"),
    "a LoRA as model": safetensors(lambda: LORA),
    "an encoder alone as model": safetensors(encoder),
    "a UNet in diffusers' names": safetensors(lambda: {"down_blocks.0.resnets.0.norm1.weight": torch.zeros(1)}),
    "SD 1.x without text encoder": safetensors(lambda: checkpoint(clip=False)),
    "SD 1.x without autoencoder": safetensors(lambda: checkpoint(vae=False)),
    "SD 1.x with half of its tensors": safetensors(checkpoint),
    "an encoder alone as --base of a checkpoint": safetensors(encoder),
    "a model folder as --base of a checkpoint": plain("place", None),
    "OUT that is there": safetensors(encoder),
    "OUT that is IN": safetensors(encoder),
    "OUT with another ending": safetensors(encoder),
    "no base": safetensors(encoder),
    "a base of another width": safetensors(encoder),
    "no difference to the base": safetensors(encoder),
}


def said(file: str, command: list[str], folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a row's command; return what it says, with FILE and OUT for the names of this machine."""
    name = FILES[file](folder)
    if "IN" in command:
        save_file(encoder(), folder / "in.safetensors")
    (folder / "there.safetensors").touch()
    words = {"FILE": name, "OUT": "out.safetensors", "THERE": "there.safetensors", "IN": "in.safetensors"}
    code = main([words.get(word, word) for word in command])
    captured = capsys.readouterr()
    assert code == 2 and captured.out == "" and captured.err.count("\n") == 1
    assert not (folder / "out.safetensors").exists() and (folder / "there.safetensors").stat().st_size == 0
    text = captured.err.strip().removeprefix(f"advunlearn {command[0]}: ")
    for word, there in words.items():
        text = text.replace(f"'{there}'", word).replace(there, word)
    return text


@pytest.mark.parametrize("file", FILES)
def test_the_table_of_refusals(
    file: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command, says = rows()[file]
    pattern = ".+".join(re.escape(part) for part in says.split("..."))  # ... is a library's own reason
    text = said(file, command, tmp_path, capsys)
    assert re.fullmatch(pattern, text), text


def test_the_table_has_no_other_rows() -> None:
    assert set(rows()) == set(FILES)
