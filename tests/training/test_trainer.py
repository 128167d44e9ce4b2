from __future__ import annotations

import dataclasses

import pytest
import torch

from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.training import BankConfig, RunConfig, TrainConfig
from advunlearn.errors import AdvUnlearnError, TrainingDiverged
from advunlearn.models.loading import TextToImage
from advunlearn.training.bank import make_banks
from advunlearn.training.events import Progress
from advunlearn.training.trainer import TrainResult, train

RETAIN = ["a dog", "a photo of a castle"]
ATTACK = AdversaryConfig(steps=2, restarts=2)
QUICK = TrainConfig(iterations=3, warmup=1, batch=4, retain_weight=1.0, retain_batch=2, lr=1e-4)


def run(
    model: TextToImage, concept: ConceptConfig, bank: BankConfig, attack: AdversaryConfig = ATTACK, **changes: object
) -> TrainResult:
    config = dataclasses.replace(QUICK, **changes)  # type: ignore[arg-type]
    return train(model, RunConfig(concept=concept, attack=attack, train=config, bank=bank), RETAIN)


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def changed(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    return {k for k in a if not torch.equal(a[k], b[k])}


@pytest.mark.parametrize(
    ("mode", "method"),
    [(mode, "text_encoder") for mode in ("advunlearn", "fast", "esd", "esd_unet")] + [("advunlearn", "notime")],
)
def test_same_seed_same_weights_and_the_callers_model_is_untouched(
    tiny_model: TextToImage, concept: ConceptConfig, small_bank: BankConfig, mode: str, method: str
) -> None:
    encoder, unet = weights(tiny_model.text_encoder), weights(tiny_model.denoiser.unet)
    flags = [p.requires_grad for m in (tiny_model.text_encoder, tiny_model.denoiser.unet) for p in m.parameters()]
    a, b, other = (
        run(tiny_model, concept, small_bank, mode=mode, train_method=method, seed=seed) for seed in (0, 0, 1)
    )
    trained = [r.encoder if r.denoiser is tiny_model.denoiser else r.denoiser.unet for r in (a, b, other)]
    assert not changed(weights(trained[0]), weights(trained[1]))
    assert changed(weights(trained[0]), weights(trained[2]))  # another seed must differ, or the test cannot fail
    assert not changed(encoder, weights(tiny_model.text_encoder)) and not changed(
        unet, weights(tiny_model.denoiser.unet)
    )
    assert flags == [
        p.requires_grad for m in (tiny_model.text_encoder, tiny_model.denoiser.unet) for p in m.parameters()
    ]
    assert a.iterations == 3 and a.losses == b.losses


def test_several_concepts_are_erased_together(model: TextToImage, small_bank: BankConfig) -> None:
    config = dataclasses.replace(QUICK, mode="esd", iterations=8)

    def moved(concept: str) -> tuple[float, float]:
        seen: list[Progress] = []
        names = ConceptConfig(concept=concept)
        result = train(
            model, RunConfig(concept=names, attack=ATTACK, train=config, bank=small_bank), callback=seen.append
        )
        assert all(p.encoder is result.encoder for p in seen if p.phase == "train")
        church, dog = model.encode(["a church", "a dog"]) - model.encode(["a church", "a dog"], result.encoder)
        return church.norm().item(), dog.norm().item()

    # A concept moves what is near it too: named itself it moves further than as the other one's neighbour.
    church, dog = moved("church\ndog")
    assert dog > 1.5 * moved("church")[1] and church > 1.5 * moved("dog")[0]


def test_losses_by_mode_and_warmup(tiny_model: TextToImage, concept: ConceptConfig, small_bank: BankConfig) -> None:
    rows = run(tiny_model, concept, small_bank).losses
    assert "attack_start" not in rows[0] and "attack_start" in rows[1]
    assert all(r["loss"] == pytest.approx(r["erase"] + r["retain"], rel=1e-5) for r in rows)
    weighted = run(tiny_model, concept, small_bank, iterations=2, retain_weight=0.5).losses[1]
    assert weighted["loss"] == pytest.approx(weighted["erase"] + 0.5 * weighted["retain"], rel=1e-5)
    official, esd, alone = (
        run(tiny_model, concept, small_bank, iterations=2, **changes).losses
        for changes in ({"mode": "official"}, {"mode": "esd"}, {"retain_weight": 0.0})
    )
    assert "retain" in official[1]  # its banks are empty, and draw
    assert set(esd[1]) == set(alone[0]) == {"loss", "erase"}


def test_first_losses_are_what_eq_3_and_6_give(
    model: TextToImage, concept: ConceptConfig, small_bank: BankConfig
) -> None:
    # Before any step the encoder is the original: eps = eps_o(c), so eq. (3) is (1 + eta)^2 |eps_o(c) - eps_o(0)|^2,
    # and the retain term is zero.
    generator = torch.Generator().manual_seed(0)
    banks = make_banks(model, RunConfig(concept=concept, bank=small_bank), RETAIN, generator)
    state = generator.get_state()
    row = train(
        model, RunConfig(concept=concept, attack=ATTACK, train=QUICK, bank=small_bank), RETAIN, banks=banks
    ).losses[0]
    generator.set_state(state)
    banks.concept.draws = 0
    draw = banks.concept.draw(QUICK.batch)
    assert row["erase"] == pytest.approx(4 * (draw.cond - draw.anchor).square().mean().item(), rel=1e-3)
    assert row["retain"] == pytest.approx(0, abs=1e-7)


def test_attack_lowers_its_loss_inside_training(
    model: TextToImage, concept: ConceptConfig, small_bank: BankConfig
) -> None:
    attack = AdversaryConfig(steps=10, step_size=0.2, restarts=4)
    rows = run(model, concept, small_bank, attack, iterations=6, warmup=4, lr=3e-4).losses[4:]
    assert sum(r["attack_end"] for r in rows) < sum(r["attack_start"] for r in rows)


def test_fast_takes_one_attack_step(tiny_model: TextToImage, concept: ConceptConfig, small_bank: BankConfig) -> None:
    seen: list[Progress] = []
    config = dataclasses.replace(QUICK, mode="fast")
    train(
        tiny_model,
        RunConfig(concept=concept, attack=ATTACK, train=config, bank=small_bank),
        RETAIN,
        callback=lambda p: seen.append(p),
    )
    assert [p.attack_step for p in seen if p.phase == "attack"] == [1, 1]
    assert [p.iteration for p in seen if p.phase == "train"] == [1, 2, 3]


def test_a_callback_stops_the_run_or_breaks_it_and_nothing_leaks(
    tiny_model: TextToImage, concept: ConceptConfig, small_bank: BankConfig
) -> None:
    stopped = train(
        tiny_model,
        RunConfig(concept=concept, attack=ATTACK, train=QUICK, bank=small_bank),
        RETAIN,
        callback=lambda p: p.phase == "train" and p.iteration == 2,
    )
    assert stopped.iterations == 2
    before = weights(tiny_model.text_encoder)

    def cancel(progress: Progress) -> None:
        if progress.phase == "attack" and progress.attack_step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            tiny_model, RunConfig(concept=concept, attack=ATTACK, train=QUICK, bank=small_bank), RETAIN, callback=cancel
        )
    assert not changed(before, weights(tiny_model.text_encoder))
    assert not any(p.requires_grad for p in tiny_model.text_encoder.parameters())


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(
    tiny_model: TextToImage, concept: ConceptConfig, small_bank: BankConfig
) -> None:
    banks, same = (
        make_banks(tiny_model, RunConfig(concept=concept, bank=small_bank), RETAIN, torch.Generator().manual_seed(0))
        for _ in range(2)
    )

    def poison(progress: Progress) -> None:
        if progress.phase == "train" and progress.iteration == 2:
            banks.concept.eps_cond.fill_(float("nan"))

    first = train(
        tiny_model,
        RunConfig(concept=concept, attack=ATTACK, train=QUICK, bank=small_bank),
        RETAIN,
        callback=lambda p: p.phase == "train" and p.iteration == 1,
        banks=same,
    )
    good = weights(first.encoder)
    with pytest.raises(TrainingDiverged, match="Lower lr") as caught:
        train(
            tiny_model,
            RunConfig(concept=concept, attack=ATTACK, train=QUICK, bank=small_bank),
            RETAIN,
            callback=poison,
            banks=banks,
        )
    result = caught.value.result
    assert isinstance(result, TrainResult) and result.iterations == 1
    assert changed(weights(tiny_model.text_encoder), weights(result.encoder))
    assert not changed(good, weights(result.encoder))  # the weights that gave the last finite loss


def test_retain_term_without_prompts_is_refused(
    tiny_model: TextToImage, concept: ConceptConfig, small_bank: BankConfig
) -> None:
    with pytest.raises(AdvUnlearnError, match="no retained prompts"):
        train(tiny_model, RunConfig(concept=concept, attack=ATTACK, train=QUICK, bank=small_bank), [])
    assert (
        train(
            tiny_model,
            RunConfig(
                concept=concept, attack=ATTACK, train=dataclasses.replace(QUICK, retain_weight=0.0), bank=small_bank
            ),
            [],
        ).iterations
        == 3
    )


def test_a_styles_anchor_is_the_original_prediction_for_the_subject_alone(
    model: TextToImage, small_bank: BankConfig
) -> None:
    style = ConceptConfig(concept="ink", kind="style")
    bank = make_banks(model, RunConfig(concept=style, bank=small_bank), [], torch.Generator().manual_seed(0)).concept
    draw = bank.draw(3)
    subjects = model.encode([style.anchors[i] for i in draw.prompt.tolist()])
    with torch.no_grad():
        expected = model.denoiser.noise_pred(draw.x_t, draw.t, subjects)
        empty = model.denoiser.noise_pred(draw.x_t, draw.t, model.encode([""] * 3))
    assert torch.allclose(draw.anchor, expected, atol=1e-4)
    assert not torch.allclose(draw.anchor, empty, atol=1e-2)


def test_a_bank_is_renewed_between_iterations_only(tiny_model: TextToImage, concept: ConceptConfig) -> None:
    config = BankConfig(trajectories=2, retain_trajectories=2, sampling_steps=2, draws_per_sample=1.0)
    bank = make_banks(tiny_model, RunConfig(concept=concept, bank=config), [], torch.Generator().manual_seed(0)).concept
    before = bank.x_t.clone()
    bank.draw(3)
    bank.refresh()  # 3 draws of 2 x 2 triples: not yet
    assert torch.equal(bank.x_t, before)
    bank.draw(1)
    assert torch.equal(bank.x_t, before)
    bank.refresh()
    assert not torch.equal(bank.x_t, before)
