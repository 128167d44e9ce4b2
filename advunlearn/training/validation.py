"""Checks of a run's settings against the model, before anything is sampled."""

from __future__ import annotations

from collections.abc import Sequence

from ..config.adversary import AdversaryConfig
from ..config.training import RunConfig
from ..errors import AdvUnlearnError
from ..models.diffusers_denoiser import DiffusersDenoiser
from ..models.loading import TextToImage
from ..models.prompt_tokens import check_prompt_length
from ..models.text_encoder import encoder_parts
from ..models.tokenizer import Tokenizer
from .bank import Banks, TrajectoryBank
from .official import source_class
from .prompt_adversary import num_adversarial_tokens


def check_run(model: TextToImage, run: RunConfig, retain_prompts: Sequence[str], banks: Banks | None) -> None:
    """Raise AdvUnlearnError for settings that cannot work with a model.

    Args:
        model: the original model.
        run: the settings.
        retain_prompts: the retained prompts.
        banks: the caller's own banks, if any.
    """
    concept, config = run.concept, run.train
    if config.retains and (not retain_prompts or (banks is not None and banks.retain is None)):
        raise AdvUnlearnError(
            "there are no retained prompts but retain_weight is above 0; give some, or set retain_weight to 0"
        )
    if config.unet_method and not isinstance(model.denoiser, DiffusersDenoiser):
        raise AdvUnlearnError(
            f"train_method {config.unet_method} needs a diffusers UNet, which this model does not have; "
            "train its text encoder"
        )
    if config.encoders != "both" and len(encoder_parts(model.text_encoder)) == 1:
        raise AdvUnlearnError(f"encoders is {config.encoders}, but this model has one text encoder; set it to both")
    check_prompt_length(model.tokenizer, concept.prompts)
    if config.attacks:
        check_attack(model.tokenizer, concept.prompts, run.attack)
    if concept.schedule == "round_robin" and source_class(config).prefilled:
        bank = banks.concept if banks else None
        size = len(bank) if isinstance(bank, TrajectoryBank) else run.bank.trajectories
        if size < len(concept.prompts):
            raise AdvUnlearnError(
                f"schedule round_robin needs a trajectory of each of the {len(concept.prompts)} prompts, but the bank "
                f"has {size}; give at least that many, or use schedule mixed"
            )


def check_attack(tokenizer: Tokenizer, prompts: Sequence[str], config: AdversaryConfig) -> None:
    """Raise AdvUnlearnError if a prompt has no room for the attack, or the attack none for its `start_text`."""
    check_prompt_length(tokenizer, prompts, config.inserted)
    count = num_adversarial_tokens(tokenizer, prompts, config)
    size = len(tokenizer(config.start_text).input_ids) - 2
    if config.start == "text" and size > count:
        remedy = "raise tokens" if config.position != "add" else "use no more tokens than the concept has"
        raise AdvUnlearnError(
            f"start_text {config.start_text!r} has {size} tokens and the attack {count}; shorten it or {remedy}"
        )


def check_processes(count: int, run: RunConfig) -> None:
    """Raise AdvUnlearnError for settings that `count` processes cannot share."""
    if count == 1:
        return
    config, attack, bank = run.train, run.attack, run.bank
    if not source_class(config).prefilled:
        raise AdvUnlearnError(
            f"mode {config.mode} samples new trajectories for every draw, which {count} processes cannot share; "
            "train in one process"
        )
    if config.attacks and attack.inversion_tokens:
        raise AdvUnlearnError(
            f"{count} processes cannot share the inversion adversary; set inversion_tokens to 0, or train in one "
            "process"
        )
    divided = {"batch": config.batch, "bank trajectories": bank.trajectories}
    if config.retains:
        divided |= {"retain_batch": config.retain_batch, "bank retain_trajectories": bank.retain_trajectories}
    if config.attacks:
        divided["attack restarts"] = attack.restarts
    for name, size in divided.items():
        if size < count:
            raise AdvUnlearnError(
                f"{name} is {size}, which {count} processes cannot share; give at least {count}, or start fewer "
                "processes"
            )
