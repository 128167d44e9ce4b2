"""What mode `official` does differently: every switch alone against the paper's way."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from advunlearn.attacks.pgd import pgd
from advunlearn.attacks.prompt_slots import position_slots
from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.presets import preset_values
from advunlearn.config.quirks import NONE, OFFICIAL, Quirks, parse_quirks, quirk_names
from advunlearn.config.training import SECTIONS, BankConfig, RunConfig, TrainConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.files import CLIP_TOKENIZER
from advunlearn.models.diffusers_denoiser import DiffusersDenoiser
from advunlearn.models.loading import TextToImage
from advunlearn.models.tokenizer import tokenize
from advunlearn.training.bank import TrajectoryBank, TrajectorySampler
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


@pytest.mark.parametrize(
    ("prompt", "kept", "settings"),
    [
        ("church", "church</w>", {}),
        # One word; of the tokens behind the first, as many are dropped as the attack has.
        ("nudity", "nu", {}),
        ("self-harm", "self</w> harm</w>", {}),
        ("self-harm", "self</w>", {"tokens": 2}),
        ("sexual, nudity", "sexual</w> ,</w> dity</w>", {}),
        # In position add the dropped tokens, as many as there are words, are replaced by the one that follows.
        ("self-harm", "self</w> harm</w> harm</w>", {"position": "add"}),
        # Nothing follows the dropped tokens.
        (" ".join(["a"] * 40), " ".join(["a</w>"] * 40), {"position": "add"}),
    ],
)
def test_words_are_counted_for_tokens(prompt: str, kept: str, settings: dict[str, Any]) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(CLIP_TOKENIZER)
    eos = tokenizer.eos_token_id
    ids = tokenize(tokenizer, [prompt])
    cut, sizes = cut_to_words(ids, [prompt], AdversaryConfig(**{"tokens": 1} | settings), eos)
    assert cut.shape == ids.shape and sizes.tolist() == [len(prompt.split())]
    content = cut[0, 1 : int((cut[0] == eos).int().argmax())].tolist()
    assert tokenizer.convert_ids_to_tokens(content) == kept.split()
    assert cut[0, 0] == ids[0, 0] and (cut[0, 1 + len(content) :] == eos).all()


def test_slots_stand_behind_words_and_before_what_follows_them() -> None:
    # "self harm" with one word: a slot behind the prompt stands behind "self", as there.
    ids = torch.tensor([[1, 10, 11, 2, 2, 2]])
    slots = position_slots(ids, 1, "suffix", 2, size=torch.tensor([1]))
    assert slots.ids.tolist() == [[1, 10, 0, 11, 2, 2]] and slots.at.tolist() == [[2]]
    assert position_slots(ids, 1, "suffix", 2).at.tolist() == [[3]]


class NoiseLevels:
    """A denoiser that is told its timesteps; it predicts zero, so that a step only scales the latents."""

    device, latent_shape = torch.device("cpu"), (1, 1, 1)
    alphas_cumprod = torch.linspace(0.9991, 0.0047, 1000)

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []  # timestep and batch of each prediction

    def noise_pred(self, x_t: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
        assert len(t.unique()) == 1
        self.told.append((int(t[0]), len(x_t)))
        return torch.zeros_like(x_t)


def published_source(anchored: bool = True, steps: int = 50) -> tuple[PublishedSampler, NoiseLevels]:
    denoiser = NoiseLevels()
    config, empty = BankConfig(sampling_steps=steps), torch.zeros(1, 1, 1)
    sampler = TrajectorySampler(denoiser, lambda rows: empty.expand(len(rows), 1, 1), empty, 1, config, None, anchored)  # type: ignore[arg-type]
    return PublishedSampler(sampler, 0, torch.Generator().manual_seed(0)), denoiser


@pytest.mark.parametrize(
    ("timestep", "steps", "level"),
    [(999, 1, 941), (980, 1, 941), (500, 25, 461), (40, 48, 1), (59, 48, 1), (39, 49, 0), (20, 49, 0), (0, 49, 0)],
)
def test_latents_are_cleaner_than_the_unet_is_told(timestep: int, steps: int, level: int) -> None:
    # The schedule starts at 961, with noise: 961, 941, ..., 1. With predictions of zero each step divides by the root
    # of alpha and multiplies by the next one's, so the latents' scale says their noise level.
    source, denoiser = published_source()
    x_t = source.draw(1, timestep=timestep).x_t
    schedule = [961 - 20 * i for i in range(steps)]
    assert denoiser.told == [*((t, 2) for t in schedule), (timestep, 1), (timestep, 1)]
    noise = torch.randn((1, 1, 1, 1), generator=torch.Generator().manual_seed(0))
    alphas = denoiser.alphas_cumprod
    assert x_t.item() == pytest.approx((noise * (alphas[level] / alphas[961]).sqrt()).item(), rel=1e-4)


def test_all_timesteps_are_drawn() -> None:
    source, _ = published_source()
    t = source.draw_timesteps(20_000)
    assert t.min() == 0 and t.max() == 999
    assert (t < 40).float().mean() == pytest.approx(0.04, abs=0.005)  # 3.6 standard deviations of 0.0014


def test_samples_cost_what_they_cost_in_the_published_code() -> None:
    # Two retained samples at timestep 990: one step of 2 F each, and one prediction each; no anchor is predicted. One
    # timestep serves both, so they are sampled in one batch.
    source, denoiser = published_source(anchored=False)
    source.draw(2, timestep=990)
    assert denoiser.told == [(961, 4), (990, 2)]
    denoiser.told.clear()
    # The prompts of a draw cost nothing.
    assert source.draw_prompts(3).tolist() == [0, 0, 0] and not denoiser.told
    # At timesteps of their own, none is sampled beyond it.
    source.draw_timesteps = lambda count: torch.tensor([990, 970])  # type: ignore[method-assign]
    source.draw(2)
    assert sum(batch for _, batch in denoiser.told) == 1 * 2 + 2 * 2 + 2


def test_what_a_draw_costs_in_steps_of_a_trajectory() -> None:
    # Of four samples: a bank samples one trajectory's step for every four draws; fresh sampling goes to one of ten
    # steps, 5.5 on average; the published way takes 9, 9, 8, ..., 1 steps, 5.4 on average, and the predictions.
    config = BankConfig(sampling_steps=10, draws_per_sample=4)
    costs = [kind.steps_per_draw(4, config) for kind in (TrajectoryBank, FreshSampler, PublishedSampler)]
    assert costs == pytest.approx([1.0, 4 * 5.5, 4 * (5.4 + 1)])
    assert PublishedSampler.steps_per_draw(4, config, anchored=False) == pytest.approx(4 * (5.4 + 0.5))


@pytest.mark.parametrize(("mode", "retain_mode"), [("official", "loss"), ("official", "step"), ("advunlearn", "loss")])
def test_one_timestep_serves_a_batch(
    tiny_model: TextToImage, concept: ConceptConfig, mode: Any, retain_mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    noise_pred = DiffusersDenoiser.noise_pred

    def spy(self: DiffusersDenoiser, x_t: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
        if conditioning.requires_grad:
            seen.append(t)
        return noise_pred(self, x_t, t, conditioning)

    monkeypatch.setattr(DiffusersDenoiser, "noise_pred", spy)
    config = TrainConfig(
        mode=mode, quirks="one_timestep", iterations=2, warmup=0, batch=2, retain_batch=2, retain_mode=retain_mode
    )
    attack = AdversaryConfig(steps=2, restarts=3, tokens=1)
    bank = BankConfig(sampling_steps=10, trajectories=4, retain_trajectories=4)
    train(tiny_model, RunConfig(concept=concept, attack=attack, train=config, bank=bank), ["a dog", "a cat"])
    training = [4] if retain_mode == "loss" else [2, 2]
    assert [len(t) for t in seen] == 2 * [3, 3, *training]
    assert all(len(t.unique()) == 1 for t in seen) and len(torch.cat(seen).unique()) > 1


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
