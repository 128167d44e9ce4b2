from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from advunlearn.attacks.base import AttackContext, AttackTargets
from advunlearn.attacks.pgd import pgd, starting_point
from advunlearn.attacks.projections import project_linf, project_simplex
from advunlearn.attacks.registry import attack_settings, make_attack
from advunlearn.attacks.search_spaces import EmbeddingBall
from advunlearn.attacks.single_prompt import attack_prompt
from advunlearn.attacks.soft_prefix import SoftPrefix
from advunlearn.attacks.unlearndiffatk import UnlearnDiffAtk
from advunlearn.attacks.vocabulary import search_vocabulary
from advunlearn.config.adversary import AdversaryConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.models.ddim import ddim_sample
from advunlearn.models.loading import TextToImage
from advunlearn.models.prompt_tokens import insert_slots
from advunlearn.models.text_encoder import embedding_table, encode, frozen
from advunlearn.models.tokenizer import tokenize


def quadratic(x: Tensor) -> Tensor:
    """|x - 1|^2 of each row."""
    return (x - 1).square().flatten(1).sum(1)


def test_one_signed_step_by_hand() -> None:
    # The gradient of (x - 1)^2 at 0, 3 and 1 is -2, 4 and 0: a step of 0.5 sigma, sigma 2, goes to 1, 2 and 1.
    start = torch.tensor([[[0.0, 3.0, 1.0]]])
    result = pgd(quadratic, start, AdversaryConfig(steps=1, step_size=0.5), sigma=2.0)
    assert result.embeddings.flatten().tolist() == [1.0, 2.0, 1.0]
    assert result.losses == [5.0]


def test_the_gradient_is_taken_afresh_in_every_step() -> None:
    # 0 -> 0.75 -> 1.5 -> 0.75: had the first gradients been kept, the sign would not turn at 1.
    path: list[float] = []

    def objective(x: Tensor) -> Tensor:
        path.append(x.item())
        return quadratic(x)

    pgd(objective, torch.zeros(1, 1, 1), AdversaryConfig(steps=4, step_size=0.75), sigma=1.0)
    assert path == [0.0, 0.75, 1.5, 0.75]


def test_the_last_step_counts() -> None:
    objective = quadratic
    steps = [pgd(objective, torch.zeros(1, 1, 1), AdversaryConfig(steps=k, step_size=0.1), 1.0) for k in (1, 2, 3)]
    assert [round(r.embeddings.item(), 6) for r in steps] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("update", ["sign", "adam"])
def test_ball_bounds_the_attack(update: str) -> None:
    config = AdversaryConfig(steps=20, step_size=0.2, update=update, radius=0.25)  # type: ignore[arg-type]
    moved = pgd(quadratic, torch.zeros(1, 1, 3), config, sigma=2.0).embeddings
    assert moved.flatten().tolist() == pytest.approx([0.5] * 3)


@pytest.mark.parametrize(("start", "is_row"), [("token", True), ("random", False)])
def test_starting_points(start: str, is_row: bool) -> None:
    table = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * 3
    config = AdversaryConfig(tokens=2, start=start)  # type: ignore[arg-type]
    points = starting_point(table, config, 400, torch.Generator().manual_seed(1))
    assert points.shape == (400, 2, 6)
    assert (points[..., None, :] == table).all(-1).any(-1).all().item() is is_row
    assert points.std().item() == pytest.approx(table.std().item(), rel=0.1)


def test_projection_on_the_ball() -> None:
    centre = torch.tensor([0.0, 10.0])
    assert project_linf(torch.tensor([3.0, 9.5]), centre, 1.0).tolist() == [1.0, 9.5]
    assert project_linf(torch.tensor([3.0, 9.5]), centre, 0.0).tolist() == [3.0, 9.5]


@pytest.mark.parametrize(
    ("point", "nearest"),
    [([0.5, 0.5], [0.5, 0.5]), ([1.0, 1.0], [0.5, 0.5]), ([2.0, 0.0], [1.0, 0.0]), ([0.9, 0.5, -3.0], [0.7, 0.3, 0.0])],
)
def test_projection_on_the_simplex_by_hand(point: list[float], nearest: list[float]) -> None:
    assert project_simplex(torch.tensor(point)).tolist() == pytest.approx(nearest)


def test_projection_on_the_simplex_is_nearest_among_many() -> None:
    g = torch.Generator().manual_seed(0)
    w = torch.randn(8, 5, generator=g)
    p = project_simplex(w)
    assert torch.allclose(p.sum(-1), torch.ones(8)) and (p >= 0).all()
    others = torch.distributions.Dirichlet(torch.ones(5)).sample((1000,))
    assert ((w[:, None] - others).norm(dim=-1).amin(1) >= (w - p).norm(dim=-1) - 1e-6).all()


def test_gradient_to_the_prefix_agrees_with_finite_differences(model: TextToImage) -> None:
    encoder, unet = model.text_encoder, model.denoiser.unet
    prompt = tokenize(model.tokenizer, ["a church"])
    ids, _ = insert_slots(prompt, prompt.new_zeros(1, 1), model.tokenizer.eos_token_id)
    span = slice(1, 2)
    g = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 1, 4, 8, 8, generator=g).double()
    prefix = embedding_table(encoder)[600].view(1, 1, -1).double().clone().requires_grad_(True)
    direction = torch.randn(prefix.shape, generator=g, dtype=torch.float64) * prefix.std().item()
    with frozen(encoder, unet):
        try:
            encoder.double(), unet.double()
            torch.set_default_dtype(torch.float64)  # older transformers make their masks of it

            def loss(p: Tensor) -> Tensor:
                conditioning = encode(encoder, ids, p, span)
                return (unet(x, torch.tensor([400]), conditioning).sample - noise).square().mean()

            (gradient,) = torch.autograd.grad(loss(prefix), prefix)
            with torch.no_grad():
                h = 1e-4
                numeric = (loss(prefix + h * direction) - loss(prefix - h * direction)) / (2 * h)
        finally:
            torch.set_default_dtype(torch.float32)
            encoder.float(), unet.float()
    analytic = (gradient * direction).sum()
    assert analytic.abs() > 1e-6
    assert (analytic - numeric).abs() / numeric.abs() < 1e-4


def make_context(model: TextToImage, count: int) -> AttackContext:
    g = torch.Generator().manual_seed(0)
    ids = tokenize(model.tokenizer, ["a dog"] * count)
    x_0 = torch.randn(count, *model.denoiser.latent_shape, generator=g)
    targets = AttackTargets(ids, x_0, model.tokenizer.eos_token_id)
    return AttackContext(model.denoiser, model.text_encoder, model.tokenizer, ["a dog"] * count, targets)


def attack_on(context: AttackContext, name: str, **given: float) -> UnlearnDiffAtk | SoftPrefix:
    attack = make_attack(name, context, attack_settings(name, EvaluateConfig(), given), 1)
    assert isinstance(attack, UnlearnDiffAtk | SoftPrefix)
    return attack


def test_the_vocabulary_leaves_out_special_tokens_and_bytes(model: TextToImage) -> None:
    words = model.tokenizer.convert_ids_to_tokens(search_vocabulary(model.tokenizer).tolist())
    assert "church</w>" in words and "<|endoftext|>" not in words and min(map(len, words)) > 1


@pytest.mark.parametrize("name", ["unlearndiffatk", "soft_prefix"])
def test_searches_stay_in_their_sets(model: TextToImage, name: str) -> None:
    table = embedding_table(model.text_encoder)
    with frozen(model.text_encoder, model.denoiser.unet):
        more = {"radius": 0.5} if name == "soft_prefix" else {}
        attack = attack_on(make_context(model, 3), name, steps=4, tokens=2, lr=0.3, **more)
        before = attack.search.result().clone()
        assert len(attack.run()) == 4
    assert not torch.equal(attack.search.result(), before)
    if isinstance(attack, UnlearnDiffAtk):
        w = attack.search.parameter.detach()
        assert (w >= 0).all() and torch.allclose(w.sum(-1), torch.ones(3, 2), atol=1e-5)
        assert torch.equal(attack.search.result(), table[attack.search.token_ids()])
    else:
        assert isinstance(attack.search, EmbeddingBall)
        assert attack.search.radius == pytest.approx(0.5 * table.std().item())
        assert (attack.search.result() - attack.search.centre).abs().max() <= attack.search.radius + 1e-6


@pytest.mark.parametrize("name", ["unlearndiffatk", "soft_prefix"])
def test_attacking_in_parts_is_attacking_at_once(model: TextToImage, name: str) -> None:
    found = []
    for chunk in (64, 2):
        with frozen(model.text_encoder, model.denoiser.unet):
            attack = attack_on(make_context(model, 3), name, steps=2, tokens=2, lr=0.01)
            attack.chunk = chunk
            attack.run()
        found.append(attack.search.parameter.detach())
    assert torch.allclose(*found, atol=1e-5)


def test_attack_brings_the_target_nearer(model: TextToImage) -> None:
    """A dog's prompt, attacked towards pictures of a church, must lose more than a random prefix does."""
    g, count = torch.Generator().manual_seed(3), 6
    noise = torch.randn(count, *model.denoiser.latent_shape, generator=g)
    church = ddim_sample(model.denoiser, model.encode(["a church"] * count), model.encode([""]), noise, 10, 3.0)
    targets = AttackTargets(tokenize(model.tokenizer, ["a dog"] * count), church, model.tokenizer.eos_token_id)
    attack = attack_on(
        replace(make_context(model, count), targets=targets), "soft_prefix", steps=25, tokens=3, radius=3.0
    )

    def mean_loss() -> float:
        h, total = torch.Generator().manual_seed(9), 0.0
        with torch.no_grad():
            for t in range(100, 900, 100):
                z = torch.randn(church.shape, generator=h)
                a = model.denoiser.alphas_cumprod[t]
                eps = model.denoiser.noise_pred(
                    a.sqrt() * church + (1 - a).sqrt() * z,
                    torch.full((count,), t),
                    attack.result().conditioning,
                )
                total += (eps - z).square().mean().item() / 8
        return total

    before = mean_loss()
    with frozen(model.text_encoder, model.denoiser.unet):
        attack.run()
    assert mean_loss() < 0.97 * before


@pytest.mark.parametrize("name", ["unlearndiffatk", "soft_prefix"])
def test_one_prompt_is_attacked_and_the_best_prefix_comes_back(model: TextToImage, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, *model.denoiser.latent_shape, generator=generator)
    church = ddim_sample(model.denoiser, model.encode(["a church"]), model.encode([""]), noise, 10, 3.0)
    config = EvaluateConfig(attack_steps=25, attack_tokens=3)
    steps: list[int] = []
    found = attack_prompt(
        AttackContext.for_prompt(model.denoiser, model.text_encoder, model.tokenizer, "a dog", church),
        name,
        restarts=3,
        config=config,
        on_step=lambda step, loss: steps.append(step),
    )
    assert found.embeddings.shape == (3, 192) and found.conditioning.shape == (1, 77, 192)
    assert steps == list(range(1, 26)) and len(found.losses) == 25
    assert found.loss < found.loss_before  # "a dog" with the prefix explains the church better than without
    assert found.text.endswith("a dog")
    if found.exact:
        assert torch.allclose(model.encode([found.text]), found.conditioning, atol=1e-5)
