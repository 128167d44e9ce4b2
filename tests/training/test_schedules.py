"""Several concepts in turn, attacks that are renewed now and then, and the retain term in steps of its own."""

from __future__ import annotations

import copy
import dataclasses
import pathlib
from typing import Any

import pytest
import torch
from torch import Tensor

from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.training import BankConfig, RunConfig, TrainConfig
from advunlearn.errors import AdvUnlearnError, TrainingDiverged
from advunlearn.losses import erase_loss, retain_loss
from advunlearn.models.loading import TextToImage
from advunlearn.models.text_encoder import encode, trainable_parameters
from advunlearn.models.tokenizer import tokenize
from advunlearn.training.adversary import AdversarialState
from advunlearn.training.bank import Banks, make_banks
from advunlearn.training.checkpoint import Checkpoints
from advunlearn.training.events import Progress
from advunlearn.training.official import FreshSampler
from advunlearn.training.trainer import Trainer, train

RETAIN = ["a dog", "a photo of a castle"]
BANK = BankConfig(trajectories=4, retain_trajectories=4, sampling_steps=3, draws_per_sample=0.75)
CONFIG = TrainConfig(iterations=4, warmup=1, batch=2, retain_batch=2, retain_weight=0.5, lr=1e-4)
ATTACK = AdversaryConfig(steps=2, restarts=1)
PAIR = ConceptConfig(concept="church\nsailboat", schedule="round_robin")


@pytest.fixture(scope="module")
def model(tiny_model: TextToImage) -> TextToImage:
    """What is tested here is the run around the mathematics."""
    return tiny_model


def banks_of(model: TextToImage, concept: ConceptConfig, generator: torch.Generator) -> Banks:
    return make_banks(model, RunConfig(concept=concept, bank=BANK), RETAIN, generator)


def test_schedules_and_what_they_ask_for() -> None:
    joined = ConceptConfig(concept="church\nanchor\nnudity", schedule="joined")
    assert joined.prompts == ("a church, an anchor and nudity",) and joined.anchors == ("",)
    assert ConceptConfig(concept="gore\nnsfw", kind="prompt", schedule="joined").prompts == ("gore and nsfw",)
    styles = ConceptConfig(concept="ink\nfluent", kind="style", schedule="joined")
    assert styles.prompts[1] == "a bird, ink and fluent style" and styles.anchors[1] == "a bird"
    assert len(styles.prompts) == len(styles.anchors) == 16
    assert ConceptConfig(schedule="joined").prompts == ConceptConfig().prompts
    assert [PAIR.prompts_in_turn(i) for i in (-1, 0, 1, 2)] == [range(1, 2), range(1), range(1, 2), range(1)]
    two = ConceptConfig(concept="ink\nfluent", kind="style", schedule="round_robin")
    assert two.prompts_in_turn(1) == range(16, 32) and all("fluent" in two.prompts[i] for i in range(16, 32))
    assert ConceptConfig(concept="church\nanchor").prompts_in_turn(1) is None


@pytest.mark.parametrize(
    ("mode", "every", "turns"),
    # Counted from the end of the warm-up, which is one iteration: the turn changes where the attack is renewed.
    [("esd", 2, [1, 0, 1, 0]), ("fast", 1, [1, 0, 1, 0]), ("fast", 2, [1, 0, 0, 1])],
)
def test_concepts_take_turns(model: TextToImage, mode: str, every: int, turns: list[int]) -> None:
    banks, seen = banks_of(model, PAIR, torch.Generator().manual_seed(0)), []
    draw = banks.concept.draw

    def spy(*args: Any, **options: Any) -> Any:
        drawn = draw(*args, **options)
        seen.append(set(drawn.prompt.tolist()))
        return drawn

    banks.concept.draw = spy  # type: ignore[method-assign]
    rows: list[set[int]] = []

    def note(progress: Progress) -> None:
        if progress.phase == "train":
            rows.append(set().union(*seen))
            seen.clear()

    attack = dataclasses.replace(ATTACK, attack_interval=every)
    train(
        model,
        RunConfig(concept=PAIR, attack=attack, train=dataclasses.replace(CONFIG, mode=mode), bank=BANK),
        RETAIN,
        callback=note,
        banks=banks,
    )  # type: ignore[arg-type]
    assert rows == [{turn} for turn in turns]


def test_fresh_samples_are_of_the_concept_whose_turn_it_is(model: TextToImage) -> None:
    bank = make_banks(
        model, RunConfig(concept=PAIR, bank=BANK), [], torch.Generator().manual_seed(0), make=FreshSampler
    ).concept
    assert set(bank.draw(4).prompt.tolist()) == {0, 1}
    assert set(bank.draw(4, range(1, 2)).prompt.tolist()) == {1}


def test_a_bank_too_small_for_turns_is_refused(model: TextToImage) -> None:
    styles = ConceptConfig(concept="ink\nfluent", kind="style", schedule="round_robin")
    with pytest.raises(AdvUnlearnError, match="each of the 32 prompts, but the bank has 4"):
        train(model, RunConfig(concept=styles, attack=ATTACK, train=CONFIG, bank=BANK), RETAIN)


def test_an_attack_is_trained_on_until_it_is_renewed(
    model: TextToImage, concept: ConceptConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[AdversarialState | None] = []
    loss = Trainer.loss

    def spy(self: Trainer, iteration: int, *parts: Any) -> dict[str, Tensor]:
        given.append(self.state.adversarial.get("prompt"))
        return loss(self, iteration, *parts)

    monkeypatch.setattr(Trainer, "loss", spy)
    rows = train(
        model,
        RunConfig(concept=concept, attack=dataclasses.replace(ATTACK, attack_interval=2), train=CONFIG, bank=BANK),
        RETAIN,
    ).losses
    assert ["attack_start" in row for row in rows] == [False, True, False, True]
    assert given[0] is None and given[1] is given[2]
    assert given[1] and given[3] and not torch.equal(given[1]["embeddings"], given[3]["embeddings"])


@pytest.mark.parametrize("steps", [1, 2])
def test_retain_steps_are_adams_next_steps_on_the_second_term(
    model: TextToImage, concept: ConceptConfig, steps: int
) -> None:
    config = dataclasses.replace(CONFIG, iterations=1, warmup=0, mode="fast", clean_share=1.0)
    config = dataclasses.replace(config, retain_mode="step", retain_steps=steps)
    attack = dataclasses.replace(ATTACK, steps=1, restarts=1, resample="iteration")
    generator = torch.Generator().manual_seed(0)
    banks = banks_of(model, concept, generator)
    state = generator.get_state()
    result = train(model, RunConfig(concept=concept, attack=attack, train=config, bank=BANK), RETAIN, banks=banks)

    generator.set_state(state)
    encoder = copy.deepcopy(model.text_encoder)
    parameters = trainable_parameters(encoder)
    for p in parameters:
        p.requires_grad_(True)
    adam = torch.optim.Adam(parameters, lr=config.lr)
    ids, kept_ids = tokenize(model.tokenizer, concept.prompts), tokenize(model.tokenizer, RETAIN)
    retained = []
    banks.concept.draw(1)  # the attack's, whose finds a clean_share of 1 leaves unused
    for step in range(1 + steps):
        draw = (banks.retain or banks.concept).draw(2) if step else banks.concept.draw(2)
        context = encode(encoder, (kept_ids if step else ids)[draw.prompt])
        predicted = model.denoiser.noise_pred(draw.x_t, draw.t, context)
        term = retain_loss(predicted, draw.cond) if step else erase_loss(predicted, draw.anchor, draw.cond)
        retained += [term.item()] if step else []
        adam.zero_grad()
        (0.5 * term if step else term).backward()
        adam.step()
    assert result.losses[0]["retain"] == pytest.approx(retained[-1]) and retained[0] > 0
    assert result.losses[0]["loss"] == result.losses[0]["erase"]
    trained = zip(encoder.parameters(), result.encoder.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in trained)
    start = zip(encoder.parameters(), model.text_encoder.parameters(), strict=True)
    assert not all(torch.allclose(a, b, atol=1e-6) for a, b in start)


def test_a_retain_step_that_diverges_gives_back_the_iteration_before_it(
    model: TextToImage, concept: ConceptConfig
) -> None:
    config = dataclasses.replace(CONFIG, retain_mode="step", mode="fast")
    banks, same = (banks_of(model, concept, torch.Generator().manual_seed(0)) for _ in range(2))

    def poison(progress: Progress) -> None:
        if progress.phase == "train" and progress.iteration == 2:
            assert banks.retain
            banks.retain.eps_cond.fill_(float("nan"))

    with pytest.raises(TrainingDiverged) as caught:
        train(
            model,
            RunConfig(concept=concept, attack=ATTACK, train=config, bank=BANK),
            RETAIN,
            callback=poison,
            banks=banks,
        )
    good = train(
        model,
        RunConfig(concept=concept, attack=ATTACK, train=config, bank=BANK),
        RETAIN,
        callback=lambda p: p.phase == "train" and p.iteration == 2,
        banks=same,
    )
    assert caught.value.result.iterations == good.iterations == 2
    pairs = zip(caught.value.result.encoder.parameters(), good.encoder.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_run_with_all_of_it_goes_on_bit_for_bit(
    model: TextToImage, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, attack = dataclasses.replace(CONFIG, retain_mode="step"), dataclasses.replace(ATTACK, attack_interval=2)
    calls, term = [0], Trainer.losses_retained

    def run(folder: str = "", cancel: Any = None, seed: int = 0) -> list[Tensor]:
        keep = Checkpoints(tmp_path / folder) if folder else None
        seeded, resume = dataclasses.replace(config, seed=seed), bool(keep and keep.exists())
        result = train(
            model,
            RunConfig(concept=PAIR, attack=attack, train=seeded, bank=BANK),
            RETAIN,
            callback=cancel,
            checkpoints=keep,
            resume=resume,
        )
        return list(result.encoder.parameters())

    def in_an_attack(progress: Progress) -> None:
        if progress.phase == "attack" and progress.iteration == 3:
            raise KeyboardInterrupt

    def between_two_steps(self: Trainer, bank: Any) -> dict[str, Tensor]:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return term(self, bank)

    with pytest.raises(KeyboardInterrupt):
        run("attack", in_an_attack)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "losses_retained", between_two_steps)
        run("steps")
    kept = torch.load(tmp_path / "steps" / "state.pt", weights_only=True)["history"]
    assert len(kept) == 2  # the iteration that was interrupted between its steps is taken back, and no more
    whole = run()
    for other, same in ((run("attack"), True), (run("steps"), True), (run(seed=1), False)):
        assert all(torch.equal(a, b) for a, b in zip(whole, other, strict=True)) is same
