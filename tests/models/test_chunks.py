"""Prompts of more than 75 tokens, in chunks as ComfyUI encodes them; `tests/host` compares with its own encoder."""

from __future__ import annotations

import pathlib
from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_sdxl

from advunlearn.attacks.base import AttackContext
from advunlearn.attacks.prompt_slots import content_tokens, interleaved_slots, prefix_slots
from advunlearn.attacks.single_prompt import attack_prompt
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.config.training import BankConfig, RunConfig, TrainConfig
from advunlearn.evaluation.evaluator import Evaluator
from advunlearn.evaluation.inputs import EvaluationInputs
from advunlearn.judges.convnet import ConvJudge
from advunlearn.models.chunks import content_positions, count_chunks, pack_chunks, unpack_chunks
from advunlearn.models.loading import TextToImage, load
from advunlearn.models.prompt_tokens import fit_tokenizer
from advunlearn.models.text_encoder import embedding_table, encode
from advunlearn.models.tokenizer import num_chunks, tokenize
from advunlearn.training.trainer import train

FILLER = "dog " * 75
LONG = FILLER + "church"  # 76 tokens: the concept stands behind the cut


@pytest.mark.parametrize(("size", "chunks"), [(0, 1), (75, 1), (76, 2), (150, 2), (151, 3)])
def test_a_chunk_takes_75_tokens(size: int, chunks: int) -> None:
    assert count_chunks(size, 77) == chunks


def test_a_row_has_start_and_end_in_every_chunk_and_no_start_in_an_absent_one() -> None:
    assert pack_chunks([1, 2, 3, 4, 5], 5, 2, 8, 9, 0) == [8, 1, 2, 3, 9, 8, 4, 5, 9, 0]
    assert pack_chunks([1, 2, 3], 5, 2, 8, 9, 0) == [8, 1, 2, 3, 9, 0, 0, 0, 0, 0]
    assert pack_chunks(range(1, 8), 5, 2, 8, 9, 0) == [8, 1, 2, 3, 9, 8, 4, 5, 6, 9]  # the seventh is cut
    assert pack_chunks([], 5, 2, 8, 9, 0) == [8, 9, 0, 0, 0, 0, 0, 0, 0, 0]
    assert content_positions(5, 5) == [1, 2, 3, 6, 7]
    for tokens in ([], [1, 2, 3], [1, 2, 3, 4, 5]):
        assert unpack_chunks(pack_chunks(tokens, 5, 2, 8, 9, 0), 5, 9) == tokens


def test_only_prompts_that_need_it_make_a_model_encode_in_chunks(tiny_model: TextToImage) -> None:
    assert tiny_model.fit_prompts([FILLER, "a dog"]) is tiny_model and tiny_model.fit_prompts([]) is tiny_model
    assert replace(tiny_model, long_prompts="cut").fit_prompts([LONG]).encode([LONG]).shape[1] == 77
    for prompt, inserted, chunks in ((LONG, 0, 2), (FILLER, 1, 2), ("dog " * 151, 0, 3), ("dog " * 1000, 0, 4)):
        fitted = tiny_model.fit_prompts([prompt, "a dog"], inserted)
        assert num_chunks(fitted.tokenizer) == chunks and num_chunks(tiny_model.tokenizer) == 1
        assert tokenize(fitted.tokenizer, [prompt]).shape == (1, 77 * chunks)


def test_every_chunk_is_encoded_by_itself_and_a_short_prompt_is_repeated(tiny_model: TextToImage) -> None:
    model = tiny_model.fit_prompts([LONG])
    parts = tiny_model.encode([FILLER, "church", "a dog"])
    expected = [torch.cat([parts[0], parts[1]]), torch.cat([parts[2], parts[2]])]
    assert torch.allclose(model.encode([LONG, "a dog"]), torch.stack(expected), atol=1e-6)
    cut = tiny_model.encode([LONG])  # the control: without chunks the concept is not there
    assert torch.allclose(cut, parts[:1], atol=1e-6)
    three = tiny_model.fit_prompts(["dog " * 150 + "church"]).encode([LONG])
    assert torch.allclose(three[0], expected[0].repeat(3, 1), atol=1e-6)  # two chunks in a run with three: six


def test_repeated_hidden_states_change_no_prediction(tiny_model: TextToImage) -> None:
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([300, 700])
    once = tiny_model.encode(["a dog", "a church"])
    with torch.no_grad():
        short, repeated = (tiny_model.denoiser.noise_pred(x, t, c) for c in (once, once.repeat(1, 3, 1)))
    assert torch.allclose(short, repeated, atol=1e-5)


def test_sdxl_has_the_pooled_output_of_the_first_chunk(tmp_path: pathlib.Path) -> None:
    plain = load(str(tiny_sdxl(tmp_path / "xl")))
    model = plain.fit_prompts([LONG])
    parts = plain.encode([FILLER, "church", "a dog"])
    joined = torch.cat([parts[0, :77], parts[1, :77], parts[0, 77:]])
    repeated = torch.cat([parts[2, :77], parts[2, :77], parts[2, 77:]])
    assert torch.allclose(model.encode([LONG, "a dog"]), torch.stack([joined, repeated]), atol=1e-6)


@pytest.mark.parametrize("words", [73, 80])
def test_tokens_in_front_move_the_others_into_the_next_chunk(tiny_model: TextToImage, words: int) -> None:
    prompt = "dog " * (words - 1) + "church"
    tokenizer = fit_tokenizer(tiny_model.tokenizer, [prompt], inserted=5)
    cat = tokenizer("cat").input_ids[1]
    slots = prefix_slots(tokenize(tokenizer, [prompt]), 5, tokenizer)
    assert slots.ids.shape == (1, 154) and slots.at.tolist() == [[1, 2, 3, 4, 5]]
    filled = slots.fill(torch.full((1, 5), cat))
    typed = tokenize(tokenizer, ["cat " * 5 + prompt])
    assert torch.equal(filled, typed) and len(content_tokens(filled, tokenizer)[0]) == words + 5
    rows = embedding_table(tiny_model.text_encoder)[torch.full((1, 5), cat)]
    expected = encode(tiny_model.text_encoder, typed)
    assert torch.allclose(slots.encode(tiny_model.text_encoder, rows), expected, atol=1e-6)
    assert slots.surrounding_text(0, tokenizer) == ("", prompt)


def test_slots_between_words_stand_in_both_chunks(tiny_model: TextToImage) -> None:
    tokenizer = fit_tokenizer(tiny_model.tokenizer, [LONG])
    slots = interleaved_slots([LONG], 38, tokenizer, torch.device("cpu"))  # in front of words 0, 38 and 76 (the end)
    # Content indices 0, 39 and 78; the last is the fourth of the second chunk: 77 + 1 + 3.
    assert slots.at.tolist() == [[1, 40, 81]]


def test_slots_without_room_are_left_out_and_the_words_stay(tiny_model: TextToImage) -> None:
    prompt = "dog " * 72 + "church"  # 73 tokens: room for two slots of 25
    slots = interleaved_slots([prompt, "a dog"], 3, tiny_model.tokenizer, torch.device("cpu"))
    assert slots.at.tolist() == [[1, 5], [1, 77]]  # in front of words 0 and 3; the second prompt has one slot
    church = tiny_model.tokenizer("church").input_ids[1]
    assert content_tokens(slots.ids, tiny_model.tokenizer)[0][-1] == church
    assert interleaved_slots([FILLER], 3, tiny_model.tokenizer, torch.device("cpu")).at.tolist() == [[1]]


@pytest.mark.parametrize("name", ["unlearndiffatk", "soft_prefix", "p4d_k", "mma", "pez", "ring_a_bell", "cce"])
def test_every_attack_works_on_a_long_prompt(tiny_model: TextToImage, name: str) -> None:
    evaluator = Evaluator(
        tiny_model,
        ConvJudge(["church", "dog"], ["ink"], ["red"], 8),
        ConceptConfig(),
        EvaluateConfig(cases=1, repeats=0, attack_tokens=2, sampling_steps=1),
        EvaluationInputs(prompts=[LONG], target_images=None),
    )
    context: AttackContext = evaluator.make_context(evaluator.original, torch.tensor([0]))
    small = {"mma": {"candidates": 2}, "ring_a_bell": {"population": 4}}.get(name, {})
    result = attack_prompt(context, name, restarts=1, config=EvaluateConfig(attack_steps=1), overrides=small)
    assert result.conditioning.shape == (1, 154, 32) and result.conditioning.isfinite().all()


def test_a_concept_that_stands_last_in_a_long_prompt_counts(model: TextToImage, judge: ConvJudge) -> None:
    prompt = "a photo " * 37 + "of the a church"  # the concept is the 78th token
    counts = {}
    for how in ("chunks", "cut"):
        config = EvaluateConfig(cases=4, repeats=0, sampling_steps=8)
        evaluator = Evaluator(
            replace(model, long_prompts=how), judge, ConceptConfig(), config, EvaluationInputs(prompts=[prompt])
        )
        counts[how] = evaluator.measure(evaluator.original, (), utility=False).asr["clean"]["success"]
    assert counts["chunks"] >= 3 and counts["cut"] == 0, counts


def test_a_long_retained_prompt_trains_in_chunks_and_official_cuts_it(tiny_model: TextToImage) -> None:
    def trained(mode: str, retained: list[str], how: str) -> torch.Tensor:
        config = TrainConfig(mode=mode, iterations=2, warmup=1, batch=1, retain_batch=1, lr=1e-3)  # type: ignore[arg-type]
        bank = BankConfig(trajectories=1, retain_trajectories=1, sampling_steps=2)
        model = replace(tiny_model, long_prompts=how)
        result = train(model, RunConfig(train=config, bank=bank).replace(attack={"steps": 1}), retained)
        return torch.cat([p.detach().flatten() for p in result.encoder.parameters()])

    for mode in ("advunlearn", "official"):
        assert torch.equal(trained(mode, [FILLER], "chunks"), trained(mode, [FILLER], "cut"))  # it fits
    assert not torch.equal(trained("advunlearn", [LONG], "chunks"), trained("advunlearn", [LONG], "cut"))
    assert torch.equal(trained("official", [LONG], "chunks"), trained("official", [LONG], "cut"))
