"""What a user may ask of an evaluation: prompt sets with labels and seeds, pictures, several files; and what stays."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch
from PIL import Image

from advunlearn.attacks.base import AttackContext
from advunlearn.attacks.seed_search import SeedSearch
from advunlearn.cli.main import build_parser, main
from advunlearn.config.attacks import SeedSearchConfig
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.evaluation.cases import make_cases
from advunlearn.evaluation.evaluator import Evaluator
from advunlearn.evaluation.inputs import EvaluationInputs
from advunlearn.evaluation.target_images import load_target_images
from advunlearn.evaluation.user_prompts import UserPrompt, read_user_prompts
from advunlearn.judges.convnet import ConvJudge
from advunlearn.models.ddim import draw_noise
from advunlearn.models.loading import TextToImage

CHURCH = ConceptConfig(concept="church")
SET = """case_number,prompt,evaluation_seed,label
0,"a chapel, at night",7,castle
1,a dog,,Dog
"""


def test_a_prompt_set_has_columns_for_labels_and_seeds(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "set.csv"
    file.write_text(SET)
    rows = read_user_prompts(file, "prompt")
    assert rows == [UserPrompt("a chapel, at night", "castle", 7), UserPrompt("a dog", "Dog", None)]
    file.write_text("prompt,seed\na dog,3\n")
    assert read_user_prompts(file, "prompt") == [UserPrompt("a dog", "", 3)]
    file.write_text("a dog\na cat\n")  # one column
    assert read_user_prompts(file, "prompt") == [UserPrompt("a dog"), UserPrompt("a cat")]
    (tmp_path / "set.txt").write_text("a dog | dog\n")
    assert read_user_prompts(tmp_path / "set.txt", "line", labels=True) == [UserPrompt("a dog", "dog")]
    file.write_text("prompt,seed\na dog,first\n")
    with pytest.raises(AdvUnlearnError, match="the seed of 'a dog' is 'first'; give a whole number, 0 or more"):
        read_user_prompts(file, "prompt")


def test_labels_and_seeds_reach_the_cases(judge: ConvJudge) -> None:
    rows = [UserPrompt("a chapel", "castle", 7), UserPrompt("a dog", "Dog")]
    cases = make_cases(CHURCH, judge, 3, 2, rows, rows)
    assert cases.plain == ["a chapel", "a dog", "a chapel"] and cases.seeds == [7, None, None]
    assert [(r.prompt, r.object, r.seed) for r in cases.retained] == [
        ("a chapel", "castle", 7),
        ("a dog", "dog", None),
        ("a dog", "dog", None),
    ]


def test_a_seed_is_that_of_the_picture_alone_and_the_others_keep_theirs(model: TextToImage, judge: ConvJudge) -> None:
    config = EvaluateConfig(cases=3, sampling_steps=2, repeats=0)
    plain = Evaluator(model, judge, CHURCH, config, EvaluationInputs(prompts=["a", "b", "c"]))
    own = Evaluator(
        model,
        judge,
        CHURCH,
        config,
        EvaluationInputs(prompts=[UserPrompt("a"), UserPrompt("b", seed=7), UserPrompt("c")]),
    )
    assert torch.equal(own.noise[1], draw_noise(7, model.denoiser.latent_shape))
    assert torch.equal(own.noise[::2], plain.noise[::2]) and not torch.equal(own.noise[1], plain.noise[1])
    assert own.describe()["own_prompts"] == ["a", {"prompt": "b", "label": "", "seed": 7}, "c"]


def test_a_seed_search_says_by_which_seed_the_noise_came(context: AttackContext) -> None:
    attack = SeedSearch(context, SeedSearchConfig(), torch.Generator().manual_seed(0))
    seeds = set()
    for _ in range(2):
        noise = attack.result().noise
        for text, own in zip(attack.prompts(), noise if noise is not None else (), strict=True):
            assert torch.equal(own, draw_noise(text["noise_seed"], own.shape))
            seeds.add(text["noise_seed"])
        attack.step()
    assert len(seeds) == 4


def test_what_is_seen_together_with_a_concept(judge: ConvJudge) -> None:
    family = {row.object for row in make_cases(CHURCH, judge, 1, 1).neighbours}
    cases = make_cases(CHURCH, judge, 1, 2)
    assert {row.object for row in cases.co_occurring} == family and len(cases.co_occurring) == 2 * len(family)
    assert not any(row.object in row.prompt.split() for row in cases.co_occurring)  # by its words, not its name
    assert not make_cases(ConceptConfig(concept="ink", kind="style"), judge, 1, 1).co_occurring

    class Knows:
        def concept_label(self, concept: ConceptConfig) -> str:
            return "church"

        def label(self, name: str) -> str:
            if name != "altar":
                raise AdvUnlearnError("unknown")
            return "altar, holy table"

    (row,) = make_cases(CHURCH, Knows(), 1, 1).co_occurring  # type: ignore[arg-type]
    assert (row.prompt, row.object) == ("a photo of the altar", "altar, holy table")


def test_own_pictures_are_the_targets(model: TextToImage, judge: ConvJudge, tmp_path: pathlib.Path) -> None:
    noise = torch.randn(3, *model.denoiser.latent_shape, generator=torch.Generator().manual_seed(0))
    config = EvaluateConfig(cases=2, sampling_steps=6, repeats=0)
    evaluator = Evaluator(model, judge, CHURCH, config)
    drawn = evaluator.generate_from_prompts(evaluator.original, ["a church"] * 3, noise)
    for i, image in enumerate(drawn):
        array = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    images = load_target_images(tmp_path, model)
    assert images.latents.shape == noise.shape and images.describe()["count"] == 3
    assert (model.decode(images.latents) - drawn).abs().mean() < 0.05  # the autoencoder gives them back
    own = Evaluator(model, judge, CHURCH, config, EvaluationInputs(target_images=images))
    target, examples = own.make_targets()
    assert torch.equal(target.x_0, images.latents[:2]) and torch.equal(examples.x_0, images.latents)
    assert torch.equal(examples.ids[2], target.ids[0]) and own.describe()["own_images"]["sha256"] == images.digest
    (tmp_path / "4.png").write_text("no picture")
    with pytest.raises(AdvUnlearnError, match=r"4\.png could not be read as an image .*; remove it from the folder"):
        load_target_images(tmp_path, model)
    with pytest.raises(AdvUnlearnError, match="no such folder; give one with images"):
        load_target_images(tmp_path / "nowhere", model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdvUnlearnError, match="has no image"):
        load_target_images(tmp_path / "empty", model)


def test_encoder_files_may_stand_anywhere_but_among_the_attacks(capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser()
    args = parser.parse_args(["evaluate", "a", "--attacks", "all", "--encoders", "b", "c", "--out", "d"])
    assert (args.files, args.encoders, args.attacks, args.out) == (["a"], ["b", "c"], ["all"], "d")
    with pytest.raises(SystemExit):
        parser.parse_args(["evaluate", "--attacks", "all", "a.safetensors"])
    said = capsys.readouterr().err
    assert "'a.safetensors' is no attack; give all or some of" in said and "after --encoders" in said


def test_every_decision_is_stored_with_its_picture_prompt_and_seed(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a picture that a seed search drew is drawn again by that seed."""
    (tmp_path / "set.csv").write_text("prompt,seed\na dog,5\na church,6\n")
    quick = ["--cases", "2", "--sampling-steps", "2", "--repeats", "1", "--device", "cpu", "--json"]
    flags = ["--attacks", "seed_search", "--attack-steps", "2", "--prompts", str(tmp_path / "set.csv")]
    out = tmp_path / "out"
    assert main(["evaluate", *quick, *flags, "--out", str(out)]) == 0
    model = json.loads(capsys.readouterr().out)["models"]["original"]
    assert model["utility"]["co_occurring_accuracy"]["total"] == 5
    cases = model["cases"]
    assert set(cases) == {"clean", "seed_search", "retained", "co_occurring", "pairs", "backgrounds", "in_prompt"}
    for what, rows in cases.items():
        assert [row["case"] for row in rows] == list(range(len(rows)))
        assert all((out / row["picture"]).is_file() for row in rows)
        assert all(f"/{what}/" in row["picture"] and row["prompt"] and row["seed"] == 1000 for row in rows)
    assert [row["noise_seed"] for row in cases["clean"]] == [5, 6]
    assert sum(row["success"] for row in cases["clean"]) == model["asr"]["clean"]["success"]
    right = [row["object_right"] for row in cases["retained"]]
    assert sum(right) == model["utility"]["retained_accuracy"]["correct"] and len(right) == 63
    dog = cases["seed_search"][0]  # a dog is no church whatever the noise
    assert dog["prompt"] == "a dog" and dog["step"] == 2 and not dog["success"]
    again = ["sample", dog["prompt"], "--seed", str(dog["noise_seed"]), "--count", "1", "--sampling-steps", "2"]
    assert main([*again, "--device", "cpu", "--out", str(tmp_path / "again.png")]) == 0
    kept, drawn = Image.open(out / dog["picture"]), Image.open(tmp_path / "again.png")
    difference = torch.tensor(list(drawn.resize(kept.size, Image.Resampling.NEAREST).tobytes())).float()
    assert (difference - torch.tensor(list(kept.tobytes())).float()).abs().max() <= 2
    page = (out / "report.html").read_text()
    assert "An orange frame" in page and "Seen together" in page
    (tmp_path / "retained.txt").write_text("a cat\n")
    flags += ["--retained", str(tmp_path / "retained.txt"), "--no-pictures", "--out", str(tmp_path / "bare")]
    assert main(["evaluate", *quick, *flags]) == 0
    assert not (tmp_path / "bare" / "cases").exists()
