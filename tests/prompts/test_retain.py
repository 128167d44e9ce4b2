"""Retain sets: shipped ones, filtered by a concept's words and by what is seen with it, and a user's own file."""

from __future__ import annotations

import pathlib
import shutil
from collections import Counter
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from advunlearn.cli.commands.train import retained, run_settings
from advunlearn.cli.config_file import resolved
from advunlearn.cli.flags import settings
from advunlearn.cli.main import build_parser, main
from advunlearn.config import concept as wording
from advunlearn.config import presets
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.training import BankConfig, RunConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.evaluation.cases import retain_prompts
from advunlearn.miniature import captions
from advunlearn.prompts import retain


def test_imagenets_classes_are_sentences_each_once() -> None:
    prompts = retain.shipped("imagenet")
    assert len(prompts) == len(set(prompts)) == 998  # of 1000 classes two pairs have one name
    assert {"a photo of a tench", "a photo of an hourglass", "a photo of sunglasses"} <= set(prompts)
    assert all(prompt.isascii() and "(" not in prompt and "/" not in prompt for prompt in prompts)
    assert "tench" in retain.classes("imagenet") and "hourglass" in retain.classes("imagenet")


def test_what_is_seen_together_with_a_concept_is_left_out_too() -> None:
    church = retain.chosen(["church"], "imagenet")
    assert len(church) == 998 - 7  # the church itself and six that go with it
    assert "a photo of an altar" not in church and "a photo of a mosque" in church  # a neighbour is to be kept
    own = retain.chosen(["church"], "imagenet", ["palace", "bell tower", ""])
    assert len(own) == 998 - 3 and "a photo of an altar" in own and "a photo of a palace" not in own
    assert len(retain.chosen(["church"], "imagenet", [])) == 997
    two = retain.chosen(["Church", "tench"], "imagenet")
    assert len(two) == 998 - 7 - 2  # the tench, and a casting reel
    assert "a photo of a dogma" in retain.without(["a photo of a dogma", "Hot dogs"], ["dog"])


@pytest.mark.parametrize(
    ("concept", "lost", "kept"),
    [
        ("a photo of a gun", ["a photo of a gun", "a machine gun", "guns"], ["a photo of a dog", "a gunner"]),
        ("a church", ["A church", "two churches"], ["a photo of a house", "a mosque"]),
        ("churches", ["a church"], ["a chair"]),
        ("church of england", ["the Church of England"], ["a photo of a church", "a map of england"]),
        ("garbage truck", ["a garbage truck", "garbage trucks"], ["a tow truck", "garbage"]),
        ("Van Gogh", ["a house, van gogh style"], ["a moving van"]),
        ("in the style of Van Gogh", ["a Van Gogh"], ["a style of its own"]),
        ("t-shirt", ["a T-shirt", "t shirts"], ["a sweatshirt", "a shirt"]),
        ("!", [], ["a dog!"]),
    ],
)
def test_what_means_the_concept_is_left_out_and_no_more(concept: str, lost: list[str], kept: list[str]) -> None:
    assert retain.without([*lost, *kept], [wording.bare_name(concept)]) == kept


@pytest.mark.parametrize("concept", ["a photo of a gun", "a church", "an image of the church", "church of england"])
@pytest.mark.parametrize("kind", ["prompt", "object"])
def test_a_sentence_leaves_what_a_shipped_set_is_for(concept: str, kind: Any) -> None:
    prompts = retain.chosen(ConceptConfig(concept=concept, kind=kind).names)
    assert sorted(prompts) == sorted(retain.shipped())  # of COCO's eighty none is a gun or a church
    plain = retain_prompts(ConceptConfig(concept="church"))
    assert retain_prompts(ConceptConfig(concept="a photo of a church", kind=kind)) == plain


def test_every_word_of_the_lists_leaves_something_out_and_cocos_set_is_as_it_was() -> None:
    prompts = retain.shipped("imagenet")
    for name, words in presets.CO_OCCURRING.items():
        assert all(retain.without(prompts, [word]) != prompts for word in words), name
        assert retain.chosen([name]) == retain.mixed(retain.without(retain.shipped(), [name]))


def test_the_beginning_of_a_mixed_list_is_of_the_whole() -> None:
    prompts = retain.shipped("imagenet")
    mixed = retain.mixed(prompts)
    assert sorted(mixed) == sorted(prompts) and mixed[0] == prompts[0] and retain.mixed(mixed) == mixed
    place = {prompt: i for i, prompt in enumerate(prompts)}
    tenths = Counter(place[prompt] // 100 for prompt in mixed[: BankConfig().retain_trajectories])
    assert set(tenths) == set(range(10)) and min(tenths.values()) >= 10
    assert retain.mixed([]) == [] and retain.mixed(["a dog"]) == ["a dog"]


def test_a_run_retains_of_a_list_that_is_longer_than_its_bank(tmp_path: pathlib.Path) -> None:
    concept, path = ConceptConfig(concept="church"), tmp_path / "mine.txt"
    path.write_text("\n".join(f"line {i}" for i in range(1000)))
    for own in (RunConfig(model="sd15", retain_set="imagenet"), RunConfig(model="sd15", retain=str(path))):
        prompts = retained(own, concept)
        assert prompts == retain.mixed(prompts) and len(prompts) > 980
    assert retained(RunConfig(model="miniature"), concept) == retain_prompts(concept)


def test_a_csv_file_has_a_column_of_prompts_or_its_first(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text('\ufeffcase,Prompt\n1,"a dog, ink style"\n# not me\n\n2,\n3, a cat\n', encoding="utf-8")
    assert retain.read(path) == ["a dog, ink style", "a cat"]
    path.write_text("a dog,1\na cat,2\n")
    assert retain.read(path) == ["a dog", "a cat"]
    (tmp_path / "mine.txt").write_text("a dog, ink style\n")
    assert retain.read(tmp_path / "mine.txt") == ["a dog, ink style"]  # a comma is one of the sentence's
    path.write_text("case,prompt\n")
    with pytest.raises(AdvUnlearnError, match="holds no prompt"):
        retain.read(path)


def test_the_flags_choose_among_sets_and_files(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("a red house\na red hat\n")

    def prompts(*flags: str) -> list[str]:
        args = build_parser().parse_args(["train", *flags])
        return retained(settings(RunConfig, args), run_settings(args)[0])

    assert prompts() == prompts("--retain-set", "miniature") != prompts("--retain-set", "coco")
    assert prompts("--model", "folder") == prompts("--retain-set", "coco") == retain.mixed(retain.shipped())
    assert len(prompts("--retain-set", "imagenet", "--concept", "church")) == 991
    assert len(prompts("--retain-set", "imagenet", "--retain-without", "palace, bell tower")) == 995
    assert prompts("--retain", str(path)) == ["a red house", "a red hat"]
    assert prompts("--retain", str(path), "--retain-without", "hat") == ["a red house"]


def test_a_bundle_names_several_concepts_that_the_miniature_knows() -> None:
    parser, argv = build_parser(), ["train", "--bundle", "vehicles", "--kind", "object"]
    args = resolved(parser.parse_args(argv), parser, argv)
    assert run_settings(args)[0] == ConceptConfig(concept="\n".join(presets.BUNDLES["vehicles"]))
    assert all(name in captions.objects() for names in presets.BUNDLES.values() for name in names)


def test_a_bundle_beside_a_concept_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--bundle", "vehicles", "--concept", "church"]) == 2
    assert "--concept and --bundle vehicles both name" in capsys.readouterr().err


def test_concepts_are_erased_separately_each_in_a_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    quick = ["--iterations", "1", "--warmup", "0", "--mode", "esd", "--bank-trajectories", "2", "--batch", "2"]
    flags = ["--separately", "--concept", "church\npalm tree", "--bank-sampling-steps", "2"]
    flags += ["--sample-every", "0", "--out", str(tmp_path)]
    assert main(["train", "--json", *flags, *quick]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["church", "config.json", "palm_tree"]
    assert capsys.readouterr().out.count('"concept": {"concept": "palm tree"') == 1
    first = load_file(tmp_path / "palm_tree" / "encoder.safetensors")
    # As if it had been interrupted between the two: what is done stays, what had not begun begins, settings are known.
    shutil.rmtree(tmp_path / "palm_tree")
    assert main(["train", "--separately", "--resume", "--out", str(tmp_path)]) == 0
    again = load_file(tmp_path / "palm_tree" / "encoder.safetensors")
    assert all(torch.equal(first[k], again[k]) for k in first)


def test_concepts_that_would_share_a_folder_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    assert main(["train", "--separately", "--concept", "C++\nC#", "--out", str(tmp_path)]) == 2
    assert "do not give a folder each" in capsys.readouterr().err and not list(tmp_path.iterdir())
