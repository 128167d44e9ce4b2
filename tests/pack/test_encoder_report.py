"""What Load Robust CLIP says of a file, whose metadata anybody may have written."""

from __future__ import annotations

import pathlib

import pytest
import torch
from pack import import_from_pack
from safetensors.torch import save_file

report = import_from_pack("nodes.encoder_report")


def describe(tmp_path: pathlib.Path, metadata: dict[str, str]) -> list[str]:
    """Return the lines about a file with metadata."""
    tensors = {"text_model.final_layer_norm.bias": torch.zeros(2)}
    save_file(tensors, tmp_path / "encoder.safetensors", metadata)
    return report.describe_encoder("chosen", tmp_path / "encoder.safetensors", {"clip_l": tensors}).splitlines()


def test_a_file_that_states_nothing_is_described_by_its_hash(tmp_path: pathlib.Path) -> None:
    first, digest, recipe = describe(tmp_path, {})
    assert first == "chosen" and digest.startswith("SHA-256 of the weights: clip_l ") and len(digest.split()[-1]) == 12
    assert recipe == "recipe: the file states none"


def test_scores_base_and_concept_are_shown(tmp_path: pathlib.Path) -> None:
    scores = '{"asr": {"clean": {"success": 1, "total": 6}, "other": 3}}'
    metadata = {"scores": scores, "base_model": "sd15", "base_sha256": "0123456789abcdef", "concept": "church"}
    lines = describe(tmp_path, {f"advunlearn.{key}": value for key, value in metadata.items()})
    assert lines[1:3] == ["concept: church (object)", "base model: sd15, SHA-256 0123456789ab"]
    assert lines[-1] == "the concept came back: clean 1 of 6"


@pytest.mark.parametrize(
    "recipe", ['{"train": 3}', '{"train": {"lr": "x"}}', '{"concept": {"concept": []}}', '{"a": {}}']
)
@pytest.mark.parametrize("scores", ["[]", '{"asr": 1}', '{"asr": {"clean": null}}'])
def test_metadata_of_another_form_does_not_stop_the_node(tmp_path: pathlib.Path, recipe: str, scores: str) -> None:
    lines = describe(tmp_path, {"advunlearn.recipe": recipe, "advunlearn.scores": scores})
    assert lines[2].startswith("recipe: ") and len(lines) == 3
