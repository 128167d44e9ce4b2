"""Retain sets: shipped ones, filtered by a concept's words and by what is seen with it, and a user's own file."""

from __future__ import annotations

import pathlib
from collections import Counter
from typing import Any

import pytest

from advunlearn.cli.commands.train import load_retain_prompts
from advunlearn.cli.flags import run_settings, settings
from advunlearn.cli.main import build_parser
from advunlearn.config import concept as wording
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.io import ModelConfig, RetainConfig
from advunlearn.config.training import BankConfig
from advunlearn.miniature.captions import retain_prompts
from advunlearn.prompts import retain
from advunlearn.prompts.co_occurring import CO_OCCURRING


def test_imagenets_classes_are_sentences_each_once() -> None:
    prompts = retain.all_prompts("imagenet")
    assert len(prompts) == len(set(prompts)) == 998  # of 1000 classes two pairs have one name
    assert {"a photo of a tench", "a photo of an hourglass", "a photo of sunglasses"} <= set(prompts)
    assert all(prompt.isascii() and "(" not in prompt and "/" not in prompt for prompt in prompts)
    assert "tench" in retain.class_names("imagenet") and "hourglass" in retain.class_names("imagenet")


def test_what_is_seen_together_with_a_concept_is_left_out_too() -> None:
    church = retain.shipped_prompts(["church"], "imagenet")
    assert len(church) == 998 - 7  # the church itself and six that go with it
    assert "a photo of an altar" not in church and "a photo of a mosque" in church  # a neighbour is to be kept
    own = retain.shipped_prompts(["church"], "imagenet", ["palace", "bell tower", ""])
    assert len(own) == 998 - 3 and "a photo of an altar" in own and "a photo of a palace" not in own
    assert len(retain.shipped_prompts(["church"], "imagenet", [])) == 997
    two = retain.shipped_prompts(["Church", "tench"], "imagenet")
    assert len(two) == 998 - 7 - 2  # the tench, and a casting reel
    assert "a photo of a dogma" in retain.remove_phrases(["a photo of a dogma", "Hot dogs"], ["dog"])


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
    assert retain.remove_phrases([*lost, *kept], [wording.bare_name(concept)]) == kept


@pytest.mark.parametrize(
    ("concept", "lost", "kept"),
    [
        ("knife", ["two knives", "a Knife"], ["knitting"]),
        ("knives", ["a knife"], []),
        ("mouse", ["mice", "a computer mouse"], ["a moose"]),
        ("butterfly", ["butterflies"], ["butter"]),
        ("person", ["people at a table"], ["a personal computer"]),
        ("people", ["a person"], []),
        ("teeth", ["a tooth"], []),
        ("bus", ["buses"], ["a bush"]),
        ("glass", ["glasses"], ["gas"]),
        ("news", [], ["a new car"]),
        ("church of england", ["churches of England"], ["a church"]),
        ("caf\u00e9", ["a cafe\u0301", "a caf\u00e9", "CAF\u00c9S", "a cafe"], ["coffee"]),
        ("cafe\u0301", ["a caf\u00e9"], []),
        ("Pok\u00e9mon", ["a pokemon"], []),
        ("\u732b", ["\u4e00\u53ea\u732b\u5728\u684c\u5b50\u4e0a"], ["\u4e00\u53ea\u72d7"]),  # cat; dog
        (
            "\u30ac\u30e9\u30b9",
            ["\u8d64\u3044\u30ab\u3099\u30e9\u30b9\u306e\u74f6"],
            ["\u30ab\u30e9\u30b9"],
        ),  # glass; crow
        ("\uace0\uc591\uc774", ["\uace0\uc591\uc774\uac00 \uc788\ub2e4"], ["\uac1c\uac00 \uc788\ub2e4"]),  # cat; dog
        ("\uff23\uff21\uff34", ["a cat"], []),  # full-width letters
        (
            "\u0915\u0941\u0924\u094d\u0924\u093e",
            ["\u0915\u0941\u0924\u094d\u0924\u093e"],
            ["\u0915\u0924"],
        ),  # dog: marks stay
        ("self-harm", ["self harm", "a scene of self-harm"], ["harm"]),
    ],
)
def test_every_form_of_the_concept_is_left_out(concept: str, lost: list[str], kept: list[str]) -> None:
    assert retain.remove_phrases([*lost, *kept], [wording.bare_name(concept)]) == kept


def test_what_is_left_out_is_listed() -> None:
    church = ConceptConfig(concept="church")
    out = retain.list_left_out(church, "imagenet", ["a dog", "an altar"])
    assert len(out) == 7 and "a photo of an altar" in out and "a photo of a church" in out  # a user's own line stays
    assert retain.list_left_out(church, "none", ["a dog", "an altar"], ["altar"]) == ["an altar"]
    assert retain.list_left_out(ConceptConfig(concept="cat, dogs"), "coco") == [
        "a photo of a cat",
        "a photo of a dog",
        "a photo of a hot dog",
    ]


def test_the_miniature_knows_a_concept_in_the_plural_too() -> None:
    one, several = ConceptConfig(concept="church"), ConceptConfig(concept="Churches")
    assert retain.make_retain_prompts(several, "miniature") == retain.make_retain_prompts(one, "miniature")
    out = retain.list_left_out(several, "miniature")
    assert "a church" in out and "a kirche" in out and not set(out) & set(retain.make_retain_prompts(one, "miniature"))
    ink = retain.list_left_out(ConceptConfig(concept="ink", kind="style"), "miniature")
    assert len(ink) == 64 and ink[0] == "a dog, ink style"


@pytest.mark.parametrize("concept", ["a photo of a gun", "a church", "an image of the church", "church of england"])
@pytest.mark.parametrize("kind", ["prompt", "object"])
def test_a_sentence_leaves_what_a_shipped_set_is_for(concept: str, kind: Any) -> None:
    prompts = retain.shipped_prompts(ConceptConfig(concept=concept, kind=kind).names)
    assert sorted(prompts) == sorted(retain.all_prompts())  # of COCO's eighty none is a gun or a church
    assert retain_prompts(["a photo of a church"], kind) == retain_prompts(["church"])


def test_every_word_of_the_lists_leaves_something_out_and_cocos_set_is_as_it_was() -> None:
    prompts = retain.all_prompts("imagenet")
    for name, words in CO_OCCURRING.items():
        assert all(retain.remove_phrases(prompts, [word]) != prompts for word in words), name
        assert retain.shipped_prompts([name]) == retain.shuffle(retain.remove_phrases(retain.all_prompts(), [name]))


def test_the_beginning_of_a_mixed_list_is_of_the_whole() -> None:
    prompts = retain.all_prompts("imagenet")
    mixed = retain.shuffle(prompts)
    assert sorted(mixed) == sorted(prompts) and mixed[0] == prompts[0] and retain.shuffle(mixed) == mixed
    place = {prompt: i for i, prompt in enumerate(prompts)}
    tenths = Counter(place[prompt] // 100 for prompt in mixed[: BankConfig().retain_trajectories])
    assert set(tenths) == set(range(10)) and min(tenths.values()) >= 10
    assert retain.shuffle([]) == [] and retain.shuffle(["a dog"]) == ["a dog"]


def test_a_run_retains_of_a_list_that_is_longer_than_its_bank(tmp_path: pathlib.Path) -> None:
    concept, path = ConceptConfig(concept="church"), tmp_path / "mine.txt"
    path.write_text("\n".join(f"line {i}" for i in range(1000)))
    for config in (RetainConfig(retain_set="imagenet"), RetainConfig(retain_set="none", retain=str(path))):
        prompts = load_retain_prompts(config, concept, "sd15")
        assert prompts == retain.shuffle(prompts) and len(prompts) > 980
    assert load_retain_prompts(RetainConfig(), concept, "miniature") == retain_prompts(["church"])


def test_the_flags_choose_among_sets_and_files(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("a red house\na red hat\n")

    def prompts(*flags: str) -> list[str]:
        args = build_parser().parse_args(["train", *flags])
        return load_retain_prompts(
            settings(RetainConfig, args), run_settings(args).concept, settings(ModelConfig, args).model
        )

    assert prompts() == prompts("--retain-set", "miniature") != prompts("--retain-set", "coco")
    assert prompts("--model", "folder") == prompts("--retain-set", "coco") == retain.shuffle(retain.all_prompts())
    assert len(prompts("--retain-set", "imagenet", "--concept", "church")) == 991
    assert len(prompts("--retain-set", "imagenet", "--retain-without", "palace, bell tower")) == 995
    # A user's own lines come first and are added to the set; without a set they are all there is.
    assert prompts("--retain", str(path)) == ["a red house", "a red hat", *prompts()]
    assert prompts("--retain", str(path), "--retain-set", "none") == ["a red house", "a red hat"]
    assert prompts("--retain", str(path), "--retain-set", "none", "--retain-without", "hat") == ["a red house"]
    assert prompts("--retain-set", "none") == []
