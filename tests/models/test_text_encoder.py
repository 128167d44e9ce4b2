from __future__ import annotations

import copy
import json
import pathlib

import pytest
import torch
from torch import Tensor
from transformers import CLIPTextModel

from advunlearn.errors import AdvUnlearnError
from advunlearn.models.loading import TextToImage, load
from advunlearn.models.prompt_tokens import end_position, find_span, insert_slots
from advunlearn.models.text_encoder import (
    embedding_table,
    encode,
    frozen,
    gradients_for,
    set_clip_skip,
    trainable_parameters,
)
from advunlearn.models.tokenizer import Tokenizer, tokenize

PIECES = json.loads((pathlib.Path(__file__).parents[1] / "data" / "clip_pieces.json").read_text())


def content(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer(text).input_ids[1:-1]


def insert_prefix(ids: Tensor, count: int, eos: int, placeholder: int = 0) -> tuple[Tensor, slice]:
    return insert_slots(ids, ids.new_zeros(len(ids), count), eos, placeholder)[0], slice(1, 1 + count)


def test_words_split_into_the_pieces_of_the_full_clip_tokenizer(model: TextToImage) -> None:
    tokenizer = model.tokenizer
    wrong = {w: p for w, p in PIECES.items() if tokenizer.convert_ids_to_tokens(content(tokenizer, w)) != p}
    assert not wrong
    assert PIECES["nudity"] == ["nu", "dity</w>"]
    assert sum(len(p) > 1 for p in PIECES.values()) > 100


@pytest.mark.parametrize(("word", "size"), [("church", 1), ("nudity", 2), ("skydive", 2)])
def test_span_counts_tokens_not_words(model: TextToImage, word: str, size: int) -> None:
    ids = model.tokenizer(f"a photo of a {word}, on a blue background").input_ids
    span = find_span(ids, content(model.tokenizer, word))
    # start token, a, photo, of, a: the word begins at 5 and has as many places as it has tokens
    assert span == slice(5, 5 + size)
    assert model.tokenizer.decode(ids[span]).strip() == word


def test_span_of_a_phrase_that_is_not_there(model: TextToImage) -> None:
    with pytest.raises(AdvUnlearnError, match="do not occur"):
        find_span(content(model.tokenizer, "a dog"), content(model.tokenizer, "church"))


def test_prefix_goes_behind_the_start_token_and_the_end_moves(model: TextToImage) -> None:
    eos = model.tokenizer.eos_token_id
    ids = tokenize(model.tokenizer, ["a church"])
    longer, span = insert_prefix(ids, 2, eos, placeholder=7)
    bos, a, church = ids[0, :3].tolist()
    assert longer[0, :6].tolist() == [bos, 7, 7, a, church, eos]
    assert span == slice(1, 3) and longer.shape == ids.shape == (1, 77)
    assert end_position(ids, eos).tolist() == [3]
    assert end_position(longer, eos).tolist() == [5]


def test_a_prompt_that_overflows_keeps_its_end_token(model: TextToImage) -> None:
    eos = model.tokenizer.eos_token_id
    ids = tokenize(model.tokenizer, ["church " * 100])
    longer, _ = insert_prefix(ids, 3, eos)
    assert longer.shape == (1, 77)
    assert end_position(longer, eos).tolist() == [76]


def test_embeddings_of_real_tokens_encode_like_the_tokens(model: TextToImage) -> None:
    encoder, eos = model.text_encoder, model.tokenizer.eos_token_id
    (dog,) = content(model.tokenizer, "dog")
    ids = tokenize(model.tokenizer, ["a church", "a red rose"])
    longer, span = insert_prefix(ids, 1, eos, placeholder=dog)
    row = embedding_table(encoder)[dog].view(1, 1, -1).expand(2, 1, -1)
    wrong, _ = insert_prefix(ids, 1, eos, placeholder=0)
    with torch.no_grad():
        assert torch.equal(encode(encoder, wrong, row, span), encode(encoder, longer))
        assert not torch.allclose(encode(encoder, wrong), encode(encoder, longer))  # the hook is gone, and mattered


def test_embeddings_must_fit_their_places(model: TextToImage) -> None:
    ids = tokenize(model.tokenizer, ["a church"])
    with pytest.raises(ValueError, match="do not fit"):
        encode(model.text_encoder, ids, torch.zeros(1, 2, 192), slice(1, 2))


def test_what_trains_leaves_the_embeddings_out(model: TextToImage) -> None:
    chosen, everything = (trainable_parameters(model.text_encoder, what) for what in ("layers", "all"))
    assert len(everything) - len(chosen) == 2  # token and position table
    assert len(chosen) == 4 * 16 + 2  # four layers of 16 tensors and the final norm


def test_the_first_layers_are_counted_as_numbers_and_parts_can_be_chosen(model: TextToImage) -> None:
    encoder = model.text_encoder
    assert len(trainable_parameters(encoder, "layers", 1)) == 16 + 2
    assert len(trainable_parameters(encoder, "attention")) == 4 * 8
    assert len(trainable_parameters(encoder, "mlp", 3)) == 3 * 4
    config = copy.deepcopy(encoder.config)
    config.num_hidden_layers = 12
    deep = CLIPTextModel(config)
    two = {id(p) for p in trainable_parameters(deep, "attention", 2)}
    names = {n.split("layers.")[1].split(".")[0] for n, p in deep.named_parameters() if id(p) in two}
    assert names == {"0", "1"}  # not 10 nor 11
    with pytest.raises(AdvUnlearnError, match="has 4 layers; give at most that"):
        trainable_parameters(encoder, "layers", 5)


def test_flags_come_back_also_after_an_error() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
    module[0].weight.requires_grad_(False)
    module[1].eval()
    module.training = True
    before = [p.requires_grad for p in module.parameters()], [m.training for m in module.modules()]
    with pytest.raises(RuntimeError), frozen(module), gradients_for([module[0].bias], True):
        assert [p.requires_grad for p in module.parameters()] == [False, True]
        assert not any(m.training for m in module.modules())
        raise RuntimeError
    assert before == ([p.requires_grad for p in module.parameters()], [m.training for m in module.modules()])


def test_bf16_agrees_with_fp32_forwards_and_backwards(model: TextToImage) -> None:
    half = load("miniature", dtype=torch.bfloat16)
    assert next(half.text_encoder.parameters()).dtype == torch.float32  # what trains keeps its precision
    ids = tokenize(model.tokenizer, ["a church", "a dog, ink style"])
    ids, span = insert_prefix(ids, 2, model.tokenizer.eos_token_id)
    start = torch.randn(2, 2, 192, generator=torch.Generator().manual_seed(0)) * 0.02
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    gradients = []
    for m in (model, half):
        prefix = start.clone().requires_grad_(True)
        output = m.denoiser.noise_pred(x, torch.tensor([300, 700]), encode(m.text_encoder, ids, prefix, span))
        assert output.dtype == torch.float32
        gradients.append(torch.autograd.grad(output.square().sum(), prefix)[0].flatten(1))
    assert torch.nn.functional.cosine_similarity(*gradients).min() > 0.99
    assert not torch.equal(*gradients)  # it did compute in bf16


def test_skipped_layers_have_no_part_in_the_conditioning_and_do_not_train(model: TextToImage) -> None:
    ids = tokenize(model.tokenizer, ["a church", "a photo of a dog"])
    encoder = copy.deepcopy(model.text_encoder)
    plain = encode(encoder, ids)
    set_clip_skip(encoder, 1)
    states = encoder(ids, output_hidden_states=True).hidden_states  # of the input and after each of four layers
    norm = next(m for name, m in encoder.named_modules() if name.endswith("final_layer_norm"))
    skipped = encode(encoder, ids)
    assert torch.equal(skipped, norm(states[3])) and not torch.allclose(skipped, plain, atol=0.1)
    chosen = trainable_parameters(copy.deepcopy(encoder), "all")  # a copy skips as many
    last = [p for name, p in encoder.named_parameters() if "layers.3." in name]
    assert len(chosen) == len(list(encoder.parameters())) - len(last) and last
    for parameter in last:
        parameter.data.zero_()
    assert torch.equal(encode(encoder, ids), skipped)
    set_clip_skip(encoder, 0)
    with pytest.raises(AdvUnlearnError, match="at most 3"):
        set_clip_skip(encoder, 4)


def test_embeddings_are_replaced_where_layers_are_skipped(model: TextToImage) -> None:
    encoder = copy.deepcopy(model.text_encoder)
    set_clip_skip(encoder, 2)
    ids = tokenize(model.tokenizer, ["a church"])
    own = embedding_table(encoder)[ids[:, 1:3]]
    assert torch.allclose(encode(encoder, ids, own, slice(1, 3)), encode(encoder, ids), atol=1e-6)
    assert not torch.allclose(encode(encoder, ids, -own, slice(1, 3)), encode(encoder, ids), atol=0.1)
