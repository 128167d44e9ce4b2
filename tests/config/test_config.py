from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from advunlearn.attacks.registry import ATTACKS
from advunlearn.cli.flags import settings
from advunlearn.cli.main import build_parser
from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.attacks import MMAConfig
from advunlearn.config.base import choices
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig, ZeroShotConfig
from advunlearn.config.io import ModelConfig, OutputConfig, RetainConfig
from advunlearn.config.lists import split_list
from advunlearn.config.training import BankConfig, RunConfig, TrainConfig
from advunlearn.errors import AdvUnlearnError

CONFIGS = (
    ConceptConfig,
    AdversaryConfig,
    BankConfig,
    TrainConfig,
    ModelConfig,
    RetainConfig,
    OutputConfig,
    EvaluateConfig,
    *(kind.config_class for kind in ATTACKS.values()),
)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_has_help_and_a_range_or_choices(config: type) -> None:
    for field in dataclasses.fields(config):
        assert field.metadata["help"]
        if field.type not in ("str", "bool"):
            assert choices(config, field.name) or field.metadata["low"] is not None, field.name


@pytest.mark.parametrize(
    ("config", "wrong", "says"),
    [
        (TrainConfig, {"mode": "advunlern"}, "must be one of advunlearn, fast, esd, official, esd_unet"),
        (TrainConfig, {"iterations": 0}, "iterations is 0; it must be between 1"),
        (TrainConfig, {"lr": float("nan")}, "lr is nan"),
        (AdversaryConfig, {"steps": -1}, "steps is -1"),
        (ConceptConfig, {"concept": "  "}, "concept is empty"),
        (EvaluateConfig, {"cases": 0}, "cases is 0"),
    ],
)
def test_bad_settings_say_what_was_found(config: type, wrong: dict[str, object], says: str) -> None:
    with pytest.raises(AdvUnlearnError, match=says):
        config(**wrong)


def test_settings_are_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().lr = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        TrainConfig("esd")  # type: ignore[misc]


def test_flags_come_from_the_settings_and_a_command_can_have_defaults_of_its_own() -> None:
    args = build_parser().parse_args(["train", "--lr", "0.001", "--attack-steps", "7", "--bank-dtype", "float16"])
    assert settings(TrainConfig, args).lr == 0.001
    assert settings(AdversaryConfig, args) == AdversaryConfig(steps=7)
    assert settings(BankConfig, args).dtype == "float16"
    assert settings(TrainConfig, args, lr=0.5, seed=3) == TrainConfig(lr=0.001, seed=3)


@pytest.mark.parametrize(
    ("name", "kind", "prompt"),
    [
        ("church", "object", "a church"),
        ("anchor", "object", "an anchor"),
        ("a photo of a church", "object", "a photo of a church"),
        ("the Eiffel tower", "object", "the Eiffel tower"),
        ("ink", "style", "a dog, ink style"),
    ],
)
def test_concept_prompts(name: str, kind: str, prompt: str) -> None:
    assert ConceptConfig(concept=name, kind=kind).prompts[0] == prompt  # type: ignore[arg-type]


def test_several_concepts_are_lines_and_a_prompt_is_taken_as_it_is() -> None:
    several = ConceptConfig(concept="church\n\n  anchor ")
    assert several.names == ("church", "anchor") and several.prompts == ("a church", "an anchor")
    assert several.anchors == ("", "")
    styles = ConceptConfig(concept="ink\nfluent", kind="style")
    assert len(styles.prompts) == len(styles.anchors) and styles.anchors[16:18] == ("a dog", "a bird")
    assert styles.prompts[16] == "a dog, fluent style"
    assert ConceptConfig(concept="nudity", kind="prompt").prompts == ("nudity",)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat, dog", ("cat", "dog")),
        ("cat;dog;", ("cat", "dog")),
        ("cat, dog, and bird", ("cat", "dog", "bird")),
        ("cat\uff0cdog\uff1bbird\u3001fish", ("cat", "dog", "bird", "fish")),
        ("church\r\n anchor, key\n", ("church", "anchor", "key")),
        ('"Lock, Stock", gun', ("Lock, Stock", "gun")),
        ("'salt and pepper', gun", ("salt and pepper", "gun")),
        ("\u201csalt and pepper\u201d", ("salt and pepper",)),
        ("\u300c\u732b\u3001\u72ac\u300d\u3001\u9ce5", ("\u732b\u3001\u72ac", "\u9ce5")),
        ("'90s, Rembrandt's dog", ("'90s", "Rembrandt's dog")),
        ('the "big, bad" wolf', ('the "big, bad" wolf',)),
        ("R&B", ("R&B",)),
        ("sandcastle", ("sandcastle",)),
        ("cat\uff64dog\ufe50bird\u060cfish", ("cat", "dog", "bird", "fish")),  # half-width, small, Arabic
        ("[cat, dog]", ("cat", "dog")),
        ("- cat\n* dog\n\u2022 bird", ("cat", "dog", "bird")),
        ("1. cat\n2. dog", ("cat", "dog")),
        ("- cat\r- dog", ("cat", "dog")),
        ("\xb7cat\n\u30fbdog\n+ bird", ("cat", "dog", "bird")),
        ("-cat", ("-cat",)),
        ("1\u3001cat\n2\u3001dog", ("cat", "dog")),
        ("(1) cat\n(2) dog", ("cat", "dog")),
        ("1.cat\n2.dog", ("cat", "dog")),
        ("1.5 ton truck\n2.5 ton truck", ("1.5 ton truck", "2.5 ton truck")),
        ("1. FC Cologne", ("1. FC Cologne",)),
        ("\u3010cat, dog\u3011", ("cat", "dog")),
        ("\u300ecat, dog\u300f, \u2018cat, bird\u2019", ("cat, dog", "cat, bird")),
        ("dog, ET the alien", ("dog", "ET the alien")),
        ("cat, or dog, & bird", ("cat", "dog", "bird")),
        ("\ufeffcat\u200b", ("cat",)),  # invisible characters, which the tokenizer sees
        ("\uff23\uff21\uff34", ("CAT",)),
    ],
)
@pytest.mark.parametrize("kind", ["object", "style"])
def test_a_list_of_concepts_is_split_and_quotes_protect(text: str, names: tuple[str, ...], kind: Any) -> None:
    concept = ConceptConfig(concept=text, kind=kind)
    assert concept.names == names
    assert tuple(one.names[0] for one in concept.each) == names == tuple(one.name for one in concept.each)


@pytest.mark.parametrize(
    "text",
    [
        "cat and dog",
        "cat AND dog",
        "cat or dog",
        "cat & dog",
        "cat&dog",
        "cat + dog",
        "cat/dog",
        "cat|dog",
        "cat\tdog",
        "cat \xb7 dog",
        "cat\u30fbdog",
        "cat und dog",
        "cat et dog",
        "cat y dog",
        "cat \u548c dog",
    ],
)
def test_a_name_that_may_be_a_list_is_asked_about_and_both_answers_work(text: str) -> None:
    with pytest.raises(AdvUnlearnError) as error:
        ConceptConfig(concept=text)
    message = str(error.value)
    several = re.search(r"by commas: (.*?); for one", message)
    one = re.search(r"in quotes: (.*?) \(in a shell", message)
    assert several and one
    assert ConceptConfig(concept=several[1]).names == ("cat", "dog")
    assert ConceptConfig(concept=one[1]).names == (text,)


@pytest.mark.parametrize("text", ["cat\uff06dog", "cat\uff0fdog", "cat\uff5cdog", "cat\u3000\uff0b\u3000dog"])
def test_full_width_signs_are_read_as_the_ascii_ones(text: str) -> None:
    with pytest.raises(AdvUnlearnError, match="may be one concept or several; for several .* by commas: cat, dog"):
        ConceptConfig(concept=text)


def test_every_list_takes_the_same_separators() -> None:
    assert split_list("a, b; c\uff0cd\u3001e\r\nf,,") == ["a", "b", "c", "d", "e", "f"]
    assert MMAConfig(forbidden="Nude\uff1bnaked").forbidden_words("church") == ("nude", "naked")
    assert ZeroShotConfig(labels="a church; a dog\na church").candidates == ("a church", "a dog")


@pytest.mark.parametrize(
    ("text", "says"), [('"cat, dog', 'quote " is not closed'), (" , ;", "names nothing"), ('""', "names nothing")]
)
def test_a_list_that_cannot_be_read_says_why(text: str, says: str) -> None:
    with pytest.raises(AdvUnlearnError, match=says):
        ConceptConfig(concept=text)


def test_a_prompt_is_verbatim_whatever_is_in_it() -> None:
    text = 'a cat, a dog and "a bird"; ink/style'
    assert ConceptConfig(concept=f"{text}\nnudity", kind="prompt").prompts == (text, "nudity")


def test_a_style_is_erased_on_many_subjects_and_anchored_on_each() -> None:
    style, thing = ConceptConfig(concept="ink", kind="style"), ConceptConfig(concept="church")
    assert style.prompts[:2] == ("a dog, ink style", "a bird, ink style") and style.anchors[:2] == ("a dog", "a bird")
    assert len(style.prompts) == len(style.anchors) > 10
    assert thing.anchors == ("",)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"train": {"lr": "fast"}}, "lr is 'fast'; it must be a number"),
        ({"train": {"iterations": 1.5}}, "iterations is 1.5; it must be an integer"),
        ({"train": {"checkpointing": 1}}, "checkpointing is 1; it must be true or false"),
        ({"concept": {"concept": ["cat", "dog"]}}, "it must be a text"),
        ({"train": 3}, "3 is no TrainConfig; give its settings by name"),
    ],
)
def test_a_recipe_with_values_of_another_type_is_refused(recipe: dict[str, Any], says: str) -> None:
    with pytest.raises(AdvUnlearnError, match=says):
        RunConfig.from_dict(recipe)
    assert RunConfig.from_dict({"train": {"lr": 1}}).train.lr == 1
