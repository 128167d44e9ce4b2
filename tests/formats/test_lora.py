from __future__ import annotations

import pathlib

import pytest
import torch
from safetensors.torch import load_file

from advunlearn.errors import AdvUnlearnError
from advunlearn.formats.lora import extract_lora, factorize, save_lora
from advunlearn.formats.text_encoders import export_state, save_encoder_folder
from advunlearn.models.encoder_files import load_encoder
from advunlearn.models.loading import TextToImage

LAYER = "text_model.encoder.layers.0.mlp.fc1"


def test_the_best_rank_one_part_of_a_diagonal_is_its_largest_entry() -> None:
    up, down = factorize(torch.diag(torch.tensor([3.0, 4.0])), 1)
    assert torch.allclose(up @ down, torch.diag(torch.tensor([0.0, 4.0])), atol=1e-6)


def test_residual_is_what_is_left_over_of_the_difference() -> None:
    # A difference of diag(3, 4): rank 1 keeps the 4, so 3 of sqrt(9 + 16) = 5 are left; rank 2 keeps all.
    base, trained = {LAYER + ".weight": torch.zeros(2, 2)}, {LAYER + ".weight": torch.diag(torch.tensor([3.0, 4.0]))}
    assert extract_lora(base, trained, 1).residual == pytest.approx(0.6)
    assert extract_lora(base, trained, 2).residual == pytest.approx(0.0, abs=1e-6)
    # A bias has no place in a LoRA: 12 of sqrt(25 + 144) = 13.
    base[LAYER + ".bias"], trained[LAYER + ".bias"] = torch.zeros(1), torch.tensor([12.0])
    assert extract_lora(base, trained, 2).residual == pytest.approx(12 / 13)


def test_added_at_strength_one_a_full_rank_lora_gives_the_trained_layer(
    model: TextToImage, tmp_path: pathlib.Path
) -> None:
    base = {k: v for k, v in export_state(model.text_encoder).items() if k.startswith("text_model.")}
    noise = torch.randn(768, 192, generator=torch.Generator().manual_seed(0))
    trained = base | {LAYER + ".weight": base[LAYER + ".weight"] + noise}
    tensors = load_file(save_lora(tmp_path / "lora.safetensors", extract_lora(base, trained, 192)))
    key = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    assert set(tensors) == {f"{key}.lora_up.weight", f"{key}.lora_down.weight", f"{key}.alpha"}
    scale = tensors[f"{key}.alpha"] / len(tensors[f"{key}.lora_down.weight"])
    merged = base[LAYER + ".weight"] + scale * tensors[f"{key}.lora_up.weight"] @ tensors[f"{key}.lora_down.weight"]
    assert torch.allclose(merged, trained[LAYER + ".weight"], atol=1e-4)


def test_no_difference_is_an_empty_lora_and_bad_input_is_refused() -> None:
    base = {LAYER + ".weight": torch.ones(2, 2)}
    made = extract_lora(base, base, 4)
    assert made.tensors == {} and made.residual == 0
    with pytest.raises(AdvUnlearnError, match="rank is 0"):
        extract_lora(base, base, 0)
    with pytest.raises(AdvUnlearnError, match="not in both encoders"):
        extract_lora(base, {LAYER + ".weight": torch.ones(3, 2)}, 1)


def test_a_saved_folder_loads_in_transformers_with_prefixed_keys(model: TextToImage, tmp_path: pathlib.Path) -> None:
    from transformers import CLIPTextModel

    folder = save_encoder_folder(tmp_path / "text_encoder", model.text_encoder)
    assert all(k.startswith("text_model.") for k in load_file(folder / "model.safetensors"))
    loaded = CLIPTextModel.from_pretrained(folder)
    own = model.text_encoder.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in loaded.state_dict().items())
    read, _ = load_encoder(folder, model.text_encoder)
    assert all(torch.equal(v, own[k]) for k, v in read.state_dict().items())
