"""Settings files and metadata that are damaged or hostile."""

from __future__ import annotations

import pathlib

import pytest
import torch

from advunlearn.cli.config_file import read_settings
from advunlearn.errors import AdvUnlearnError
from advunlearn.formats.inspect import format_facts, format_value, inspect_file
from advunlearn.formats.text_encoders import export_state, write_encoder
from advunlearn.models.loading import TextToImage

FILES = {
    ('{"train": ' * 100_000, ".json"): "nested too deeply",
    ("[" * 100_000, ".yaml"): "nested too deeply|cannot be read as YAML",
    ('{"train": {"lr": 1%s}}' % ("0" * 400), ".json"): "train.lr is a number of 401 digits, which is too large",
    ('{"train": {"lr": 1%s}}' % ("0" * 5000), ".json"): "cannot be read as JSON|is a number of",
    ('{"model": "\\ud800"}', ".json"): "surrogates not allowed",
    ('model: "\\ud800"', ".yaml"): "cannot be read as YAML",
    ('{"train": {"lr": 1e-4, "lr": 1e-5}}', ".json"): "'lr' occurs twice; keep one of them",
    ("model: a\nmodel: b\n", ".yaml"): "'model' occurs twice; keep one of them",
    ("train:\n  lr: 1e-4\n  lr: 1e-5\n", ".yml"): "'lr' occurs twice; keep one of them",
    ("? [a, b]\n: c\n", ".yaml"): "cannot be read as YAML|is no setting",
    ('{"%s": 1}' % ("x" * 10**6), ".json"): "is no setting",
}


@pytest.mark.parametrize(("content", "ending"), FILES, ids=range(len(FILES)))
def test_a_bad_settings_file_is_an_error_of_a_few_lines(content: str, ending: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / f"settings{ending}"
    path.write_text(content)
    with pytest.raises(AdvUnlearnError, match=FILES[content, ending]) as error:
        read_settings(path)
    assert len(str(error.value)) < 1300


@pytest.mark.parametrize("ending", [".json", ".yaml"])
def test_a_byte_order_mark_is_not_part_of_the_settings(ending: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / f"settings{ending}"
    path.write_text('{"model": "a"}', encoding="utf-8-sig")
    assert read_settings(path)["ModelConfig.model"] == "a"


def test_info_prints_no_control_characters_and_no_megabytes(tiny_model: TextToImage, tmp_path: pathlib.Path) -> None:
    metadata = {"a": "\x1b[31mred\x07\n", "b\x1b": "x" * 10**6, "c": "[" * 100_000}
    state = {name: tensor.clone() for name, tensor in export_state(tiny_model.text_encoder).items()}
    assert isinstance(state["text_projection.weight"], torch.Tensor)
    file = write_encoder(tmp_path / "a.safetensors", state, metadata)
    text = format_facts(inspect_file(str(file)))
    assert "  a: \\x1b[31mred\\x07\\n\n" in text and "  b\\x1b: xxx" in text and "... (1000000 characters)" in text
    assert len(text) < 10_000 and all(char.isprintable() or char == "\n" for char in text)
    assert format_value("caf\u00e9 \u72d7") == "caf\u00e9 \u72d7"
