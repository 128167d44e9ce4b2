"""What mode `official` does differently: every switch alone against the paper's way."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from advunlearn.attacks.pgd import pgd
from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.presets import preset_values
from advunlearn.config.quirks import NONE, OFFICIAL, Quirks, parse_quirks, quirk_names
from advunlearn.config.training import SECTIONS, BankConfig, RunConfig, TrainConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.models.loading import TextToImage
from advunlearn.models.text_encoder import tokenize
from advunlearn.training.bank import TrajectoryBank, make_banks
from advunlearn.training.official import FreshSampler, PublishedAttack, PublishedSampler, cut_to_words
from advunlearn.training.trainer import train


def quadratic(x: Tensor) -> Tensor:
    """|x - 1|^2 of each row."""
    return (x - 1).square().flatten(1).sum(1)


@pytest.mark.parametrize(("steps", "end"), [(1, 0.0), (3, 0.2)])
def test_the_last_attack_step_is_lost(steps: int, end: float) -> None:
    config, start = AdversaryConfig(steps=steps, step_size=0.1), torch.zeros(1, 1, 1)
    published = PublishedAttack(Quirks(result_before_last_step=True))(quadratic, start, config, 1.0).embeddings.item()
    assert published == pytest.approx(end)
    assert pgd(quadratic, start, config, 1.0).embeddings.item() == pytest.approx(end + 0.1)


def test_a_gradient_that_is_never_zeroed_keeps_its_direction() -> None:
    # 0 -> 0.75 -> 1.5, where the gradient turns: 2 * (1.5 - 1) = 1. Added to the sign that was left, -1, it is 0: the
    # point stays; taken afresh it goes back to 0.75.
    config, start = AdversaryConfig(steps=3, step_size=0.75), torch.zeros(1, 1, 1)
    assert pgd(quadratic, start, config, 1.0).embeddings.item() == 0.75
    published = PublishedAttack(Quirks(gradient_accumulates=True))
    assert published(quadratic, start, config, 1.0).embeddings.item() == 1.5


def test_words_are_counted_for_tokens(model: TextToImage) -> None:
    prompts, eos = ["a sailboat", "church"], model.tokenizer.eos_token_id
    ids = tokenize(model.tokenizer, prompts)
    cut = cut_to_words(ids, prompts, eos)
    # "a sailboat" is the tokens a, sail, boat: two words leave "a sail".
    assert cut[0, :4].tolist() == [*ids[0, :3].tolist(), eos] and ids[0, 3] != eos
    assert torch.equal(cut[1], ids[1])


def test_latents_are_cleaner_than_the_unet_is_told(tiny_model: TextToImage, concept: ConceptConfig) -> None:
    config = BankConfig(sampling_steps=50, trajectories=4, retain_trajectories=4)

    def draw(kind: Any, count: int) -> Tensor:
        seen: list[Tensor] = []

        class Spy(kind):  # type: ignore[misc]
            def sample_at(self, k: Tensor, prompts: range | None = None) -> Any:
                drawn = super().sample_at(k, prompts)
                seen.append(drawn.t)
                return drawn

        banks = make_banks(
            tiny_model, RunConfig(concept=concept, bank=config), [], torch.Generator().manual_seed(3), make=Spy
        )
        return banks.concept.draw(count).t - seen[0]

    assert draw(FreshSampler, 2).eq(0).all()
    late = draw(PublishedSampler, 5)
    assert late.min() >= 39 and late.max() <= 58 and len(late.unique()) > 3


def test_what_a_draw_costs_in_steps_of_a_trajectory() -> None:
    # Of four triples: a bank samples one trajectory's step for every four draws; fresh sampling goes as far with each
    # of the four as the largest of four numbers from 1 to 10, and the published way makes the predictions once more.
    config = BankConfig(sampling_steps=10, draws_per_sample=4)
    costs = [kind.steps_per_draw(4, config) for kind in (TrajectoryBank, FreshSampler, PublishedSampler)]
    fresh = 4 * (10 - 15333 / 10**4)  # 1 + 16 + 81 + ... + 9 ** 4
    assert costs == pytest.approx([1.0, fresh, fresh + 4])


def test_mode_official_is_all_of_them_and_samples_anew(tiny_model: TextToImage, concept: ConceptConfig) -> None:
    assert all(dataclasses.asdict(OFFICIAL).values()) and not any(dataclasses.asdict(NONE).values())
    config = TrainConfig(mode="official", iterations=2, warmup=1, batch=2, retain_batch=2, retain_weight=0.5, lr=1e-4)
    attack, bank = AdversaryConfig(steps=2, restarts=1, tokens=1), BankConfig(sampling_steps=4)

    def run(quirks: str = "") -> dict[str, Tensor]:
        settings = dataclasses.replace(config, quirks=quirks)
        run = RunConfig(concept=concept, attack=attack, train=settings, bank=bank)
        return train(tiny_model, run, ["a dog"]).encoder.state_dict()

    official, again, tidy = run(), run(), run("none")
    assert all(torch.equal(official[k], again[k]) for k in official)
    assert any(not torch.equal(official[k], tidy[k]) for k in official)


@pytest.mark.parametrize(
    ("mode", "names", "quirks"),
    [
        ("official", "", OFFICIAL),
        ("advunlearn", "", NONE),
        ("official", "none", NONE),
        ("fast", "words_for_tokens, cleaner_latents", Quirks(words_for_tokens=True, cleaner_latents=True)),
        ("official", "gradient_accumulates", Quirks(gradient_accumulates=True)),
    ],
)
def test_quirks_are_a_setting(mode: str, names: str, quirks: Quirks) -> None:
    assert parse_quirks(mode, names) == quirks == parse_quirks(mode, quirk_names(quirks))
    for wrong in ("words", "none, words_for_tokens"):
        with pytest.raises(AdvUnlearnError, match="there are result_before_last_step, .*or none alone"):
            TrainConfig(quirks=wrong)


@pytest.mark.parametrize("quirk", [field.name for field in dataclasses.fields(Quirks)])
def test_each_quirk_changes_what_a_run_gives_by_its_name(tiny_model: TextToImage, quirk: str) -> None:
    # Of two tokens, so that a prompt's words are fewer; three steps, so that gradients can add up to another direction.
    concept, config = ConceptConfig(concept="sailboat"), TrainConfig(iterations=2, warmup=0, batch=2, retain_weight=0.0)
    attack, bank = AdversaryConfig(steps=3, restarts=1, tokens=1), BankConfig(sampling_steps=3, trajectories=2)

    def run(names: str = "") -> dict[str, Tensor]:
        settings = dataclasses.replace(config, quirks=names)
        run = RunConfig(concept=concept, attack=attack, train=settings, bank=bank)
        return train(tiny_model, run).encoder.state_dict()

    plain, named = run(), run(quirk)
    assert any(not torch.equal(named[k], plain[k]) for k in named)


def test_presets_are_the_published_numbers_and_leave_custom_alone() -> None:
    assert all(preset_values("custom", section) == {} for section in SECTIONS)
    nudity = RunConfig().replace(**{section: preset_values("nudity", section) for section in SECTIONS})
    assert nudity.concept.prompts == ("nudity",) and nudity.train.retain_weight == 0.3 and nudity.train.lr == 1e-5
    assert nudity.attack.steps == 30 and nudity.attack.unit == "absolute" and nudity.bank.sampling_steps == 50
    assert nudity.attack.start == "token"  # rows of the embedding table; `random` is noise here
    for name in ("style", "object"):
        assert TrainConfig(**preset_values(name, "train")).retain_weight == 0.5
        assert "concept" not in preset_values(name, "concept")
