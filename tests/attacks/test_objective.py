"""No attack ends worse in its own objective than where it began."""

from __future__ import annotations

import pytest
import torch
from attack_table import BLIND, TINY, attacked

from advunlearn.attacks.base import Attack, AttackContext
from advunlearn.attacks.best import BestPoints
from advunlearn.attacks.gradient_attack import GradientAttack
from advunlearn.attacks.registry import ATTACKS, attack_settings, make_attack
from advunlearn.attacks.ring_a_bell import select_best
from advunlearn.config.attacks import JUDGE_ONLY
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.models.text_encoder import frozen

SEARCHES = [name for name, kind in ATTACKS.items() if issubclass(kind, GradientAttack)]


def misled(name: str, context: AttackContext, steps: int, **overrides: str) -> Attack:
    """Run a search that climbs its loss instead of descending it."""
    settings = attack_settings(name, EvaluateConfig(), TINY[name] | {"steps": steps, **overrides})
    with frozen(context.encoder, *context.denoiser.modules()):
        attack = make_attack(name, context, settings, 1)
        assert isinstance(attack, GradientAttack)
        attack.optimizer.param_groups[0]["lr"] *= -1
        attack.run()
    return attack


def test_every_attack_has_an_objective_unless_each_step_is_judged() -> None:
    # So that the next test leaves no attack out: the others have no loss in which they could end worse.
    without = [name for name, kind in ATTACKS.items() if kind.objective is Attack.objective]
    assert tuple(without) == JUDGE_ONLY == BLIND


# One step ends before the second comparison, four behind it.
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in BLIND])
def test_no_attack_ends_worse_than_it_began(
    name: str, steps: int, context: AttackContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("advunlearn.attacks.gradient_attack.COMPARED_LEVELS", 2)
    monkeypatch.setattr("advunlearn.attacks.gradient_attack.COMPARE_INTERVAL", 3)
    before = attacked(name, context, steps=0)[0].objective()
    # The default of `keep` is tested: it is not given.
    end = misled(name, context, steps) if name in SEARCHES else attacked(name, context, steps=steps)[0]
    after = end.objective()
    assert before is not None and after is not None and before.isfinite().all()
    assert (after <= before).all()
    if name in SEARCHES and steps > 1:  # the control: the last point of the same steps is worse
        last = misled(name, context, steps, keep="last").objective()
        assert last is not None and (last > before).any()


def test_what_is_compared_does_not_change_what_is_drawn(context: AttackContext) -> None:
    # The losses of the steps are of the same draws, whether points are compared or not.
    assert attacked("soft_prefix", context)[1] == attacked("soft_prefix", context, keep="last")[1]


def test_the_objective_is_the_result_s_mean_loss_over_fixed_draws(context: AttackContext) -> None:
    with frozen(context.encoder, *context.denoiser.modules()):
        attack, _ = attacked("soft_prefix", context, steps=2)
        assert isinstance(attack, GradientAttack)
        by_hand = torch.zeros(2)
        for x_t, t, noise in attack.fixed_draws:
            with torch.no_grad():
                predicted = context.denoiser.noise_pred(x_t, t, attack.result().conditioning)
            by_hand += (predicted - noise).square().flatten(1).mean(1) / 8
        assert len(attack.fixed_draws) == 8
        assert torch.allclose(attack.objective(), by_hand, atol=1e-6)


def test_the_best_points_by_hand() -> None:
    best = BestPoints(torch.tensor([[1], [2]]))
    best.update(torch.tensor([[3], [4]]), torch.tensor([0.5, 0.5]))
    best.update(torch.tensor([[5], [6]]), torch.tensor([0.7, 0.4]))
    assert best.points.tolist() == [[3], [6]] and best.losses.tolist() == pytest.approx([0.5, 0.4])


def test_the_best_distinct_prompts_by_hand() -> None:
    prompts = torch.tensor([[1, 2], [3, 4], [1, 2], [5, 6]])
    tokens, losses = select_best(prompts, torch.tensor([0.3, 0.1, 0.3, 0.2]), 3)
    assert tokens.tolist() == [[3, 4], [5, 6], [1, 2]] and losses.tolist() == pytest.approx([0.1, 0.2, 0.3])
