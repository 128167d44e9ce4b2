from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from advunlearn import miniature
from advunlearn.cli.main import main
from advunlearn.config.training import BankConfig
from advunlearn.models.ddim import ddim_sample, ddim_timesteps
from advunlearn.models.denoiser import add_noise
from advunlearn.models.diffusers_denoiser import DiffusersDenoiser
from advunlearn.models.loading import TextToImage
from advunlearn.training.bank import TrajectoryBank, TrajectorySampler
from advunlearn.training.official import FreshSampler


@pytest.mark.parametrize("steps", [1, 4, 20, 50, 1000])
def test_timesteps_are_those_of_stable_diffusions_ddim(steps: int) -> None:
    scheduler = DDIMScheduler.from_pretrained(miniature.path() / "scheduler")
    scheduler.set_timesteps(steps)
    assert ddim_timesteps(steps).tolist() == scheduler.timesteps.clamp(max=999).tolist()


def test_sampling_equals_the_diffusers_sampler(model: TextToImage) -> None:
    scheduler = DDIMScheduler.from_pretrained(miniature.path() / "scheduler")
    scheduler.set_timesteps(5)
    cond, uncond = model.encode(["a church", "a dog"]), model.encode([""])
    x = noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for t in scheduler.timesteps:
            eps = model.denoiser.unet(torch.cat([x, x]), t, torch.cat([uncond.expand_as(cond), cond])).sample
            eps_0, eps_c = eps.chunk(2)
            x = scheduler.step(eps_0 + 3.0 * (eps_c - eps_0), t, x).prev_sample
    ours = ddim_sample(model.denoiser, cond, uncond, noise, 5, 3.0)
    assert (ours - x).abs().max() < 1e-4
    assert (ours - noise).abs().max() > 0.1


def test_v_prediction_is_turned_into_noise(model: TextToImage) -> None:
    # With v = sqrt(a) noise - sqrt(1 - a) x_0 the noise is sqrt(a) v + sqrt(1 - a) x_t: a UNet that returns the true v
    # must give back the true noise.
    x_0, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([10, 500, 990])
    a = model.denoiser.alphas_cumprod[t].view(-1, 1, 1, 1)

    class TrueVelocity(torch.nn.Module):
        dtype, config = torch.float32, model.denoiser.unet.config

        def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> object:
            return type("Output", (), {"sample": a.sqrt() * noise - (1 - a).sqrt() * x_0})

    scheduler = DDIMScheduler.from_pretrained(miniature.path() / "scheduler", prediction_type="v_prediction")
    denoiser = DiffusersDenoiser(TrueVelocity(), scheduler)
    x_t = add_noise(x_0, noise, t, denoiser.alphas_cumprod)
    assert (denoiser.noise_pred(x_t, t, torch.zeros(3, 77, 192)) - noise).abs().max() < 1e-5


def bank_of(model: TextToImage, config: BankConfig, size: int = 4, kind: Any = TrajectoryBank) -> Any:
    prompts = model.encode(["a church", "a dog"])
    generator = torch.Generator().manual_seed(0)
    sampler = TrajectorySampler(model.denoiser, lambda rows: prompts[rows], model.encode([""]), 2, config)
    return kind(sampler, size, generator)


@pytest.mark.parametrize("kind", [TrajectoryBank, FreshSampler])
def test_triples_are_exact(model: TextToImage, small_bank: BankConfig, kind: Any) -> None:
    bank = bank_of(model, small_bank, kind=kind)
    draw, cond = bank.draw(4), model.encode(["a church", "a dog"])
    with torch.no_grad():
        for eps, context in ((draw.anchor, model.encode([""]).expand(4, -1, -1)), (draw.cond, cond[draw.prompt])):
            assert (model.denoiser.noise_pred(draw.x_t, draw.t, context) - eps).abs().max() < 1e-4
            # at any other timestep the prediction is another one: the comparison can fail
            assert (model.denoiser.noise_pred(draw.x_t, (draw.t + 40) % 1000, context) - eps).abs().max() > 1e-3


def test_bank_is_reproducible_and_refreshed_after_its_share_of_draws(model: TextToImage) -> None:
    config = BankConfig(sampling_steps=4, draws_per_sample=2.0)
    a, b = bank_of(model, config), bank_of(model, config)
    before = a.x_t.clone()
    assert torch.equal(a.x_t, b.x_t)
    for _ in range(7):  # 28 draws: below 2 draws for each of the 16 triples
        a.draw(4)
        a.refresh()
    assert a.n_sampled == 4 and torch.equal(a.x_t, before)
    a.draw(4)
    a.refresh()
    assert a.n_sampled == 8 and not torch.equal(a.x_t, before)


def test_half_precision_storage_costs_half_and_stays_close(model: TextToImage, small_bank: BankConfig) -> None:
    full = bank_of(model, small_bank)
    half = bank_of(model, BankConfig(sampling_steps=4, dtype="float16"))
    assert half.x_t.nbytes * 2 == full.x_t.nbytes
    assert 0 < (half.x_t.float() - full.x_t).abs().max() < 1e-2


def test_small_bank_covers_every_object_and_prompts_take_turns(model: TextToImage) -> None:
    from advunlearn.miniature import captions
    from advunlearn.miniature.captions import retain_prompts

    prompts = retain_prompts(["church"])
    words = {
        o: {o, captions.keyword_synonym(o), *captions.foreign_synonyms(o)} for o in captions.objects() if o != "church"
    }
    covered = {o for o, names in words.items() if any(n in p for n in names for p in prompts[:96])}
    assert covered == set(words)
    config = BankConfig(sampling_steps=1, draws_per_sample=0.01)
    bank = bank_of(model, config, size=1)
    assert bank.prompt.tolist() == [0]
    bank.draw(1)
    bank.refresh()
    assert bank.prompt.tolist() == [1] and bank.n_sampled == 2


@pytest.mark.parametrize(("name", "kind"), [("x.png", "PNG"), ("x.JPG", "JPEG"), ("x.webp", "WEBP")])
def test_pictures_are_what_their_name_says(name: str, kind: str, tmp_path: pathlib.Path) -> None:
    flags = ["--count", "1", "--sampling-steps", "1", "--out", str(tmp_path / name)]
    assert main(["sample", "a dog", *flags]) == 0
    assert Image.open(tmp_path / name).format == kind
