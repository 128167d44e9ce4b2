"""The attacks in an evaluation, and on the command line."""

from __future__ import annotations

import pathlib

import pytest
import torch
from attack_table import BLIND

from advunlearn.attacks.base import AttackContext
from advunlearn.cli.main import main
from advunlearn.config import attacks as attack_config
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.evaluation.attack_run import AttackLog
from advunlearn.evaluation.evaluator import Evaluator, Subject
from advunlearn.evaluation.inputs import EvaluationInputs
from advunlearn.judges.convnet import ConvJudge
from advunlearn.models.counting import count_forwards
from advunlearn.models.loading import TextToImage


def test_work_is_counted_by_sample_and_gradient(model: TextToImage) -> None:
    denoiser = count_forwards(model.denoiser)
    x, t, context = torch.zeros(2, 4, 8, 8), torch.zeros(2, dtype=torch.long), model.encode(["a", "b"])
    denoiser.noise_pred(x, t, context)
    assert denoiser.forwards == 2
    with torch.no_grad():
        denoiser.noise_pred(x, t, context.clone().requires_grad_(True))
    assert denoiser.forwards == 4
    denoiser.noise_pred(x, t, context.clone().requires_grad_(True))
    assert denoiser.forwards == 10 and denoiser.latent_shape == model.denoiser.latent_shape


def test_bookkeeping_by_hand() -> None:
    """Three cases, the first won without attack, two restarts of the others."""
    run = AttackLog(torch.tensor([True, False, False]), torch.zeros(3, 1, 1, 1), 2)
    assert run.rows.tolist() == [1, 1, 2, 2]
    images, words = torch.arange(1.0, 5.0).view(4, 1, 1, 1), torch.arange(4.0).view(4, 1, 1)
    notes = [{"prompt": name, "exact": name == "one"} for name in ("one", "two", "three", "four")]
    run.record(5, images, torch.tensor([True, False, False, False]), torch.arange(4), notes, words)
    assert run.images.flatten().tolist() == [0, 1, 4] and run.find_open_rows().tolist() == [2, 3]
    run.record(6, images[:2], torch.tensor([False, True]), run.find_open_rows(), notes[:2], words[:2])
    assert run.curve == [[0, 1], [5, 2], [6, 3]] and run.images.flatten().tolist() == [0, 1, 2]
    assert {case: float(word) for case, word in run.embeddings.items()} == {1: 0.0, 2: 1.0}
    # No view, which would keep the embeddings of all rows in memory.
    assert all(word.untyped_storage().nbytes() == word.nbytes for word in run.embeddings.values())
    counts = run.count_successes()
    assert [counts[k]["success"] for k in ("without_attack", "by_attack", "sum")] == [1, 2, 3]
    assert counts["exact"] == 1  # only one of the prompts found can be typed
    assert counts["without_attack"]["interval"] == pytest.approx([0.0615, 0.7923], abs=1e-4)
    rows = run.make_rows([{"case": case, "prompt": "plain"} for case in range(3)])
    assert rows[1] == {"case": 1, "prompt": "one", "exact": True, "success": True, "without_attack": False, "step": 5}
    assert rows[0] == {"case": 0, "prompt": "plain", "success": True, "without_attack": True}


def test_a_case_that_does_not_come_back_says_what_its_last_picture_was_drawn_of() -> None:
    run = AttackLog(torch.tensor([False]), torch.zeros(1, 1, 1, 1), 1)
    for step in (1, 2):
        at = run.find_open_rows()
        picture, miss = torch.full((1, 1, 1, 1), step), torch.tensor([False])
        run.record(step, picture, miss, at, [{"prompt": f"p{step}"}], at[None, None])
    (row,) = run.make_rows([{"case": 0, "prompt": "plain"}])
    assert row["prompt"] == "p2" and row["step"] == 2 and not row["success"] and float(run.images) == 2
    assert not run.successful_notes() and not run.embeddings


def test_the_evaluator_runs_any_attack_and_says_what_it_cost(
    context: AttackContext, model: TextToImage, judge: ConvJudge
) -> None:
    config = EvaluateConfig(cases=2, attack_steps=1, judge_interval=1, attack_tokens=3, sampling_steps=6, restarts=2)
    given = {"ring_a_bell": {"population": 4, "positions": 6}, "mma": {"candidates": 4}, "cce": {"batch": 2}}
    evaluator = Evaluator(
        model,
        judge,
        context.concept or ConceptConfig(),
        config,
        EvaluationInputs(synonyms=["kirche", "kerk"], prompts=["a church"], attack_settings=given),
    )
    measured = evaluator.measure(Subject(context.encoder, model.denoiser), attack_config.ATTACK_NAMES, utility=False)
    assert set(measured.attacks) == set(attack_config.ATTACK_NAMES)
    assert measured.asr["clean"]["success"] == 0  # a church is a dog to this encoder
    for name, row in measured.attacks.items():
        assert row["sum"]["success"] == row["without_attack"]["success"] + row["by_attack"]["success"]
        assert row["sum"]["success"] == sum(case["success"] for case in measured.cases[name])
        assert row["restarts"] == (1 if name in ("cce", "synonym_search", "emphasis") else 2)  # these have one start
        assert set(measured.seconds[name]) == {"attack", "looks"} and len(measured.cases[name]) == 2
    forwards = {name: row["forwards"]["attack"] for name, row in measured.attacks.items()}
    # 2 cases, 2 restarts, a step: a gradient is 3 F a row, P4D asks the original too; CCE has its own batch. Start and
    # end are compared at 8 noise levels, for which P4D asks the original once.
    assert forwards["unlearndiffatk"] == forwards["soft_prefix"] == 4 * (3 + 2 * 8)
    assert forwards["p4d_n"] == forwards["p4d_k"] == 4 * (4 + 3 * 8) and forwards["cce"] == 2 * (3 + 2 * 8)
    assert all(forwards[n] == 0 for n in (*BLIND, "ring_a_bell", "mma", "pez"))
    assert measured.attacks["random_prefix"]["forwards"]["looks"] == 4 * 6 * 2  # rows, sampling steps, guidance
    # A church by its German name is a church still.
    assert measured.attacks["synonym_search"]["by_attack"]["success"] == 2
    assert measured.asr_by_budget["synonym_search"] == [[0, 0], [1, 2], [2, 2]]
    assert measured.prompts["synonym_search"][0]["prompt"] == "a kirche" and "synonym_search" not in measured.asr
    assert measured.embeddings["cce"].shape == (1, 192)


def test_a_concept_without_other_names(model: TextToImage, judge: ConvJudge) -> None:
    evaluator = Evaluator(model, judge, ConceptConfig(concept="church"), EvaluateConfig(cases=1))
    evaluator.synonyms = []
    with pytest.raises(AdvUnlearnError, match="no synonym of 'church' is known; give some as synonyms, one per line"):
        evaluator.measure(evaluator.original, ["synonym_search"])


def test_the_commands_take_any_attack(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--cases", "2", "--attack-steps", "1", "--judge-interval", "1", "--sampling-steps", "2", "--repeats", "0"]
    small = [
        "--ring-a-bell-population",
        "4",
        "--ring-a-bell-positions",
        "6",
        "--mma-candidates",
        "4",
        "--cce-batch",
        "2",
    ]
    prompts, names = tmp_path / "prompts.txt", tmp_path / "names.txt"
    prompts.write_text("a dog\n")
    names.write_text("kirche\n")
    own = ["--prompts", str(prompts), "--synonyms", str(names)]
    assert (
        main(["evaluate", "--attacks", "all", "--out", str(tmp_path / "e"), "--cce-batch", "2", *quick, *small, *own])
        == 0
    )
    head = capsys.readouterr().out.splitlines()[0]
    assert all(name in head for name in ("synonym_search", "ring_a_bell", "p4d_k", "cce"))
    page = (tmp_path / "e" / "report.html").read_text()
    assert "Concept inversion" in page and "Cost of the attacks" in page
    assert main(["attack", "--method", "cce", "--cce-tokens", "2", "--out", str(tmp_path / "a"), *quick, *own]) == 0
    from safetensors.torch import load_file

    assert load_file(tmp_path / "a" / "cce.safetensors")["clip_l"].shape == (2, 192)
    assert main(["attack", "--method", "mma", "--mma-top", "0", "--out", str(tmp_path / "b"), *quick]) == 2
    assert "top is 0; it must be between 1" in capsys.readouterr().err
