"""What is refused before a run samples anything."""

from __future__ import annotations

from collections.abc import Sequence

from ..attacks.adversarial_prompts import check_attack
from ..config.adversary import AdversaryConfig
from ..config.concept import ConceptConfig
from ..config.training import BankConfig, TrainConfig
from ..errors import AdvUnlearnError
from ..models import DiffusersDenoiser
from ..models.loading import TextToImage
from ..models.prompt_tokens import check_room
from ..models.sdxl_text_encoder import DualTextEncoder
from .bank import Banks, TrajectoryBank


def check(
    model: TextToImage,
    concept: ConceptConfig,
    attack: AdversaryConfig,
    config: TrainConfig,
    retained: Sequence[str],
    banks: Banks | None,
    trajectories: int,
) -> None:
    """Raise AdvUnlearnError for what cannot work, before anything is sampled; `trajectories` are the concept's."""
    if config.retains and (not retained or (banks is not None and banks.retain is None)):
        raise AdvUnlearnError(
            "there are no retained prompts but retain_weight is above 0; give some, or set retain_weight to 0"
        )
    if config.unet_method and not isinstance(model.denoiser, DiffusersDenoiser):
        raise AdvUnlearnError(f"{config.unet_method} trains a diffusers UNet; this model has none: train its encoder")
    if config.encoders != "both" and not isinstance(model.text_encoder, DualTextEncoder):
        raise AdvUnlearnError(f"encoders is {config.encoders}, but this model has one text encoder; leave it at both")
    check_room(model.tokenizer, concept.prompts)
    if config.attacks:
        check_attack(model.tokenizer, concept.prompts, attack)
    if concept.schedule == "round_robin" and 0 < trajectories < len(concept.prompts):
        raise AdvUnlearnError(
            f"schedule round_robin needs a trajectory of each of the {len(concept.prompts)} prompts, and the bank has "
            f"{trajectories}; give at least that many, or use schedule mixed"
        )


def check_shared(
    processes: int, attack: AdversaryConfig, config: TrainConfig, bank: BankConfig, kind: type[TrajectoryBank]
) -> None:
    """Raise AdvUnlearnError for what so many processes cannot share; `kind` is where the samples come from."""
    if processes == 1:
        return
    if kind is not TrajectoryBank:
        raise AdvUnlearnError(
            f"mode {config.mode} samples anew for every draw, which {processes} processes cannot share; train in one"
        )
    if config.attacks and attack.inversion_tokens:
        raise AdvUnlearnError(
            f"{processes} processes cannot share the second adversary's words; set words to 0, or train in one process"
        )
    shared = {"batch": config.batch, "bank trajectories": bank.trajectories}
    if config.retains:
        shared |= {"retain_batch": config.retain_batch, "bank retain_trajectories": bank.retain_trajectories}
    if config.attacks:
        shared["attack restarts"] = attack.restarts
    for name, count in shared.items():
        if count < processes:
            raise AdvUnlearnError(
                f"{name} is {count}, which {processes} processes cannot share; give at least {processes}, or start "
                "fewer processes"
            )
