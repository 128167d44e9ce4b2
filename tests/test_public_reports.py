"""What was reported of other projects, tried here; docs/lab-notes/robustness.md names the reports."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from advunlearn import miniature
from advunlearn.errors import AdvUnlearnError
from advunlearn.evaluation.target_images import load_target_images, read_image
from advunlearn.evaluation.user_prompts import parse_user_prompts
from advunlearn.formats.ldm_keys import build_checkpoint_state
from advunlearn.formats.tensors import write_safetensors
from advunlearn.formats.text_encoders import export_state, hash_encoder, read_encoder
from advunlearn.models.encoder_files import embedding_file
from advunlearn.models.loading import TextToImage
from advunlearn.models.unet_files import load_unet
from advunlearn.prompts.prompt_files import read_prompt_file

ROOT = pathlib.Path(__file__).parents[1]


def save_image(path: pathlib.Path, **options: object) -> None:
    """Write a picture whose left half is red and whose right half is blue."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8, 0] = pixels[:, 8:, 2] = 255
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]


def test_files_that_a_system_puts_beside_images_are_no_images(tiny_model: TextToImage, tmp_path: pathlib.Path) -> None:
    save_image(tmp_path / "a.png")
    for name in (".DS_Store", "Thumbs.db", "._a.png", "desktop.ini"):
        (tmp_path / name).write_bytes(b"Mac OS X")
    assert len(load_target_images(tmp_path, tiny_model).latents) == 1


def test_an_image_that_is_turned_by_its_metadata_is_upright(tmp_path: pathlib.Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # "the 0th row is the right side": to be shown turned by 90 degrees clockwise
    save_image(tmp_path / "plain.png")
    save_image(tmp_path / "turned.png", exif=turned)
    plain, upright = (read_image(tmp_path / f"{name}.png", 16, 16) for name in ("plain", "turned"))
    assert plain[:, 0, 0].tolist() == [1, 0, 0] and plain[:, 0, 15].tolist() == [0, 0, 1]  # red left, blue right
    assert upright[:, 0, 0].tolist() == [1, 0, 0] and upright[:, 15, 0].tolist() == [0, 0, 1]  # red above, blue below
    assert torch.equal(upright, plain.rot90(-1, (1, 2)))


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: pathlib.Path) -> None:
    values = np.array([[0, 257 * 64, 257 * 128, 65535]], np.uint16).repeat(4, 0)
    Image.fromarray(values).save(tmp_path / "deep.png")
    grey = (read_image(tmp_path / "deep.png", 4, 4) * 255).round()[:, 0]
    assert grey.tolist() == [[0, 64, 128, 255]] * 3


def test_what_is_transparent_is_white(tmp_path: pathlib.Path) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:, :2] = (255, 0, 0, 255)
    pixels[:, 2:] = (0, 255, 0, 0)  # a colour that nobody sees
    Image.fromarray(pixels).save(tmp_path / "a.png")
    row = read_image(tmp_path / "a.png", 4, 4)[:, 0].T
    assert row[0].tolist() == [1, 0, 0] and row[3].tolist() == [1, 1, 1]


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "bomb"])
def test_a_file_that_is_no_image_is_named(
    content: bytes | str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    if isinstance(content, str):
        save_image(path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # the picture has more than twice as many
    else:
        path.write_bytes(content)
    with pytest.raises(AdvUnlearnError, match=r"a\.png could not be read as an image .*; remove it from the folder"):
        read_image(path, 8, 8)


def opens_text_without_encoding(call: ast.Call) -> bool:
    """Return whether a call reads or writes text in the encoding of the system."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name not in ("read_text", "write_text", "open") or any(k.arg == "encoding" for k in call.keywords):
        return False
    modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    is_file = isinstance(call.func, ast.Name) or getattr(getattr(call.func, "value", None), "id", "") != "Image"
    return name != "open" or (is_file and bool(modes or not call.args) and not any("b" in mode for mode in modes))


def test_no_text_is_read_in_the_encoding_of_the_system() -> None:
    found = []
    for path in [*(ROOT / "advunlearn").rglob("*.py"), *(ROOT / "nodes").rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and opens_text_without_encoding(node)]
        found += [f"{path.relative_to(ROOT)}:{call.lineno}" for call in calls]
    assert found == []
    control = ast.parse("path.read_text()").body[0].value  # type: ignore[attr-defined]
    assert opens_text_without_encoding(control)


def test_a_table_whose_first_column_has_no_name_is_read_by_the_other_names(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "test.csv"
    path.write_text(
        ',prompt,evaluation_seed,case_number\n0,"a photo of garbage truck",3016,0\n1,"a photo of bird",3017,1\n'
    )
    rows = parse_user_prompts(read_prompt_file(str(path), "prompt"))
    assert [(row.prompt, row.seed) for row in rows] == [("a photo of garbage truck", 3016), ("a photo of bird", 3017)]


def test_safetensors_without_metadata_and_with_positions_are_read(
    tiny_model: TextToImage, tmp_path: pathlib.Path
) -> None:
    state = export_state(tiny_model.text_encoder)
    positions = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    save_file({name: tensor.clone() for name, tensor in (state | positions).items()}, tmp_path / "a.safetensors")
    tensors, metadata = read_encoder(tmp_path / "a.safetensors")
    assert metadata == {} and hash_encoder(tensors) == hash_encoder(state)


def test_diffusers_uses_the_embedding_of_an_attack(tiny_model: TextToImage, tmp_path: pathlib.Path) -> None:
    embedding = torch.randn(2, 192, generator=torch.Generator().manual_seed(0)).half()
    pipeline = StableDiffusionPipeline.from_pretrained(miniature.path())
    file = write_safetensors(
        tmp_path / "adv.safetensors", {"clip_l": embedding}, {"format": "pt"}
    )  # as `embedding_file` names it
    assert list(embedding_file(torch.zeros(2, 32), tiny_model.text_encoder)) == ["clip_l"]
    pipeline.load_textual_inversion(str(file), token="<adv>")
    ids = pipeline.tokenizer(pipeline.maybe_convert_prompt("a <adv>", pipeline.tokenizer)).input_ids
    found = pipeline.text_encoder.get_input_embeddings().weight[ids[2:-1]]
    assert torch.equal(found.half(), embedding)


def pickled(state: dict[str, torch.Tensor], path: pathlib.Path) -> pathlib.Path:
    torch.save(state, path)
    return path


def in_any_order(state: dict[str, torch.Tensor], path: pathlib.Path) -> pathlib.Path:
    checkpoint = build_checkpoint_state(state, {}, {}, 1.0)
    torch.save({name: checkpoint[name] for name in sorted(checkpoint, reverse=True)}, path)
    return path


@pytest.mark.parametrize("write", [pickled, in_any_order])
def test_a_unet_alone_as_a_pickle_in_any_order_is_read_and_is_no_encoder(
    model: TextToImage, tmp_path: pathlib.Path, write: Callable[[dict[str, torch.Tensor], pathlib.Path], pathlib.Path]
) -> None:
    denoiser = model.denoiser
    path = write(denoiser.unet.state_dict(), tmp_path / "Diffusers-UNet.pt")  # type: ignore[attr-defined]
    loaded, _ = load_unet(path, denoiser)  # type: ignore[arg-type]
    assert loaded.fingerprint() == denoiser.fingerprint()
    with pytest.raises(AdvUnlearnError, match=r"holds no CLIP-L text encoder: it is a .*UNet|its first tensor is"):
        read_encoder(path)


def test_an_encoder_is_written_with_the_projection_that_loaders_ask_for(
    tiny_model: TextToImage, tmp_path: pathlib.Path
) -> None:
    state = export_state(tiny_model.text_encoder)
    write_safetensors(tmp_path / "a.safetensors", state, {})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["text_projection.weight"], torch.eye(32))
