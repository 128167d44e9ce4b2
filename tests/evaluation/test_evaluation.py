from __future__ import annotations

import copy
import pathlib

import pytest
import torch

from advunlearn.attacks.vocabulary import describe_prefix
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.evaluation.evaluator import Evaluator, Subject
from advunlearn.evaluation.inputs import EvaluationInputs
from advunlearn.evaluation.metrics import Measurement, count_hits, find_image_fault, frechet_distance
from advunlearn.judges.convnet import ConvJudge
from advunlearn.miniature import captions
from advunlearn.models.loading import TextToImage
from advunlearn.prompts import retain
from advunlearn.prompts.prompt_files import read_prompts
from advunlearn.reporting.images import FRAME, draw_side_by_side, grid, overview
from advunlearn.reporting.page import render
from advunlearn.reporting.report import format_table, list_successes


def test_frechet_distance_by_hand() -> None:
    # One dimension: means 0 and 4, variances 2 and 8: 16 + 2 + 8 - 2 sqrt(2 * 8) = 18.
    a, b = torch.tensor([[-1.0], [1.0]]), torch.tensor([[2.0], [6.0]])
    assert frechet_distance(a, b) == pytest.approx(18.0)
    assert frechet_distance(b, b) == pytest.approx(0.0, abs=1e-9)
    wide = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(wide, wide + 1) == pytest.approx(6.0, rel=1e-4)  # six means moved by one


def test_counts_are_counts() -> None:
    assert count_hits(torch.tensor([True, False, True])) == {"success": 2, "total": 3}
    assert count_hits(torch.tensor([False]), "correct") == {"correct": 0, "total": 1}


def test_retain_set_leaves_the_concepts_words_out(tmp_path: pathlib.Path) -> None:
    assert retain.remove_phrases(["a photo of a dog", "Hot dogs", "a dogma", "a cat"], ["dog"]) == ["a dogma", "a cat"]
    assert retain.remove_phrases(["a palm", "palm trees"], ["palm tree"]) == ["a palm"]
    assert len(retain.all_prompts()) == 80 and retain.all_prompts()[0] == "a photo of a person"
    (tmp_path / "mine.txt").write_text("# mine\n\na red house \n")
    assert read_prompts(tmp_path / "mine.txt") == ["a red house"]
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(AdvUnlearnError, match="holds no prompt"):
        read_prompts(tmp_path / "empty.txt")


def test_original_model_shows_the_concept_by_every_route_and_attacks_only_add(
    model: TextToImage, judge: ConvJudge
) -> None:
    config = EvaluateConfig(cases=8, attack_steps=2, judge_interval=1, repeats=1, sampling_steps=8)
    evaluator, again = (
        Evaluator(
            model,
            judge,
            ConceptConfig(concept="church"),
            config,
            EvaluationInputs(retained=["a dog | dog", "a cat | cat"]),
        )
        for _ in range(2)
    )
    measured = evaluator.measure(evaluator.original)
    assert measured.asr["clean"]["success"] >= 6 and measured.asr["synonyms"]["success"] >= 5
    assert set(measured.asr["synonyms"]["by"]) == {"foreign", "keywords"}
    for name, curve in measured.asr_by_budget.items():
        successes = [hits for _, hits in curve]
        assert curve[0][0] == 0 and curve[-1][0] == 2
        assert successes == sorted(successes) and successes[0] == measured.asr["clean"]["success"]
        assert successes[-1] == measured.asr[name]["success"] >= measured.asr[name]["before_attack"] == successes[0]
    assert "feature_distance" in measured.utility
    assert again.measure(again.original).to_dict() == measured.to_dict()


def test_an_encoder_that_says_nothing_counts_as_erased_and_as_useless(model: TextToImage, judge: ConvJudge) -> None:
    import copy

    from advunlearn.evaluation.evaluator import Subject

    mute = copy.deepcopy(model.text_encoder)
    norm = next(m for n, m in mute.named_modules() if n.endswith("final_layer_norm"))
    norm.weight.zero_()
    config = EvaluateConfig(cases=4, attack_steps=2, judge_interval=1, repeats=1, sampling_steps=6)
    rows = [f"{captions.caption(o)} | {o}" for o in judge.objects if o != "church"][:16]
    evaluator = Evaluator(model, judge, ConceptConfig(concept="church"), config, EvaluationInputs(retained=rows))
    measured = evaluator.measure(Subject(mute, model.denoiser))
    original = evaluator.measure(evaluator.original, attacks=())
    assert measured.asr["clean"]["success"] == 0
    kept, before = (m.utility["retained_accuracy"]["correct"] for m in (measured, original))
    assert kept < 3 < 11 < before
    assert measured.utility["feature_distance"] > 2 * original.utility["feature_distance"]
    # Every case that the plain prompt leaves is attacked, and looked at when it should be.
    assert all([steps for steps, _ in curve] == [0, 1, 2] for curve in measured.asr_by_budget.values())


def test_grid_and_overview_sizes() -> None:
    images = torch.rand(5, 3, 8, 8)
    assert grid(images, 3).size == (3 * 8 + 2 * 2, 2 * 8 + 2)
    assert overview({"a": images, "b\nc": images}, scale=1, margin=100).size == (100 + 5 * 8 + 4 * 2, 2 * 8 + 6)


def test_pictures_that_show_the_concept_are_framed() -> None:
    sheet = torch.tensor(list(grid(torch.zeros(3, 3, 8, 8), 3, framed=[False, True]).tobytes())).view(8, 28, 3)
    assert sheet[0, 10].tolist() == sheet[7, 17].tolist() == list(FRAME) and sheet[3, 13].sum() == 0  # edge, middle
    assert sheet[:, :8].sum() == sheet[:, 20:].sum() == 0
    rows = [{"success": False}, {"success": True}]
    assert (
        list_successes(Measurement(cases={"clean": rows}), "clean") == [False, True]
        and list_successes(Measurement(), "pez") == []
    )


def test_small_pictures_are_enlarged_side_by_side_under_their_titles() -> None:
    black, grey = torch.zeros(3, 3, 64, 64), torch.full((3, 3, 64, 64), 0.5)
    sheet = draw_side_by_side(["plain\na dog", "attacked\n" + "x " * 99], [black, grey], [(), [True]])
    # Two columns of 64 pixels four times enlarged, 4 pixels around each for a frame, 12 between the blocks.
    width, head, second = 2 * 264, 3 * 2 * 264 // 20, 2 * 264 + 12
    assert sheet.size == (second + width, head + width)
    pixels = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8).view(sheet.height, sheet.width, 3)
    assert pixels[head + 4 : head + 260, 4:260].sum() == 0 and pixels[head + 3, 100].tolist() == [255] * 3
    framed = pixels[head : head + 264, second : second + 264]
    assert framed[0, 0].tolist() == framed[263, 263].tolist() == framed[3, 100].tolist() == list(FRAME)
    assert (framed[4:260, 4:260] == 128).all()  # the frame is around the picture, not over it
    assert pixels[head, second + 300].tolist() == [255] * 3  # the next picture has none
    titles = pixels[:head].float().mean(2)
    assert titles[:, :width].min() < 50 and titles[:, second:].min() < 50
    assert titles[:, width:second].min() == 255  # the long title is cut at the end of its block


def test_an_adversarial_prompt_says_whether_it_can_be_retyped(model: TextToImage) -> None:
    token = model.tokenizer.convert_tokens_to_ids
    whole, pieces = torch.tensor([token("dog</w>"), token("rose</w>")]), torch.tensor([token("nu"), token("dity</w>")])
    lone = torch.tensor([token("nu"), token("nu")])
    assert describe_prefix(model.tokenizer, whole, "a church") == {
        "prompt": "dog rose a church",
        "tokens": ["dog</w>", "rose</w>"],
        "exact": True,
    }
    joined = describe_prefix(model.tokenizer, pieces, "a church")
    assert joined["prompt"] == "nudity a church" and joined["exact"]
    assert not describe_prefix(model.tokenizer, lone, "a church")["exact"]


def test_images_that_show_nothing_are_told_from_images_without_the_concept() -> None:
    rows = [{"case": case, "prompt": "a church"} for case in range(3)]
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert find_image_fault(images, rows) == ""
    assert find_image_fault(images[:0], []) == ""
    assert find_image_fault(torch.rand(3, 3, 1, 1).expand(3, 3, 8, 8), rows) == "all 3 images are blank"
    assert find_image_fault(images[:1].expand(3, -1, -1, -1), rows) == "all 3 images are identical"
    assert find_image_fault(images[:1].expand(3, -1, -1, -1), [rows[0] | {"noise_seed": 5}] * 3) == ""
    images[1, 0, 0, 0] = torch.nan
    assert find_image_fault(images, rows) == "1 of 3 images are not finite"


def test_a_broken_encoder_is_not_called_robust(model: TextToImage, judge: ConvJudge) -> None:
    config = EvaluateConfig(cases=4, attack_steps=1, judge_interval=1, sampling_steps=2)
    evaluator = Evaluator(model, judge, ConceptConfig(concept="church"), config)
    broken = copy.deepcopy(model.text_encoder)
    next(broken.parameters()).data.fill_(torch.nan)
    measured = evaluator.measure(Subject(broken, model.denoiser), (), utility=False)
    assert measured.asr["clean"] == {"success": 0, "total": 4}
    (warning,) = measured.warnings
    assert warning.startswith("the plain prompts: 4 of 4 images are not finite; the model is broken, and a count of 0")
    report = {"concept": "church", "models": {"mine": measured.to_dict()}}
    assert f"WARNING: mine, {warning}" in format_table(report) and "WARNING: mine, the plain" in render(report, {}, {})
    intact = evaluator.measure(evaluator.original, (), utility=False)
    assert intact.warnings == [] and "warnings" not in intact.to_dict()
