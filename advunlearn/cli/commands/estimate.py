"""`advunlearn estimate`: the memory and the work of a training run."""

from __future__ import annotations

import functools
from argparse import Namespace

import torch

from ...config.io import ModelConfig, RetainConfig
from ...memory.estimate import Estimator
from ...memory.fit import describe_fit, fit_cards
from ...memory.plan import Plan
from ...models.meta_model import skeleton
from ..flags import run_settings, settings
from ..inputs import parse_device
from .output import print_result
from .train import load_retain_prompts


def run(args: Namespace) -> None:
    """Estimate a run, and find settings that fit on common devices."""
    config, run = settings(ModelConfig, args), run_settings(args)
    device = parse_device(config)
    prompts = load_retain_prompts(settings(RetainConfig, args), run.concept, config.model)
    model = functools.cache(lambda dtype: skeleton(config.model, device, getattr(torch, dtype)))
    plan = Plan(
        run=run,
        dtype=config.dtype,
        resolution=args.resolution or model(config.dtype).denoiser.latent_shape[-1] * 8,
    )
    estimator = functools.cache(lambda dtype: Estimator(model(dtype), prompts, device))
    measure = functools.cache(lambda plan: estimator(plan.dtype)(plan))
    result = measure(plan)
    fits = {f"{size} GB": describe_fit(plan, advice) for size, advice in fit_cards(measure, plan).items()}
    rows = "".join(f"\n  {card:>5}: {advice}" for card, advice in fits.items())
    text = f"{result.text()}\nto fit on a device with this much memory, a tenth of it to spare:{rows}"
    print_result(args, result.to_dict() | {"fits": fits}, text)
