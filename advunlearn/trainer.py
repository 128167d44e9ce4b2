"""The training run: draw, attack, loss, step, report."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .attacks.pgd import AttackResult, pgd, starting_point
from .checkpoint import Checkpoints, RunState
from .config import AttackConfig, BankConfig, ConceptConfig, TrainConfig
from .denoisers import Denoiser, DiffusersDenoiser
from .denoisers.base import checkpointed
from .errors import AdvUnlearnError, TrainingDiverged
from .events import Callback, Progress, filling
from .losses import attack_loss, erase_loss, retain_loss
from .models import TextToImage
from .quirks import NONE, Quirks, bank_kind, cut_to_words, quirks_of
from .text_encoder import (
    embedding_table,
    encode,
    frozen,
    gradients_for,
    insert_prefix,
    tokenize,
    trainable_parameters,
)
from .trajectories import Banks, Triples, make_banks


@dataclass(frozen=True)
class TrainResult:
    """What a run made. The model that was passed in is unchanged; these are copies."""

    encoder: Any  # CLIPTextModel
    denoiser: Denoiser
    losses: list[dict[str, float]]
    iterations: int  # done; fewer than asked for when stopped


class Trainer:
    """One run on a copy of the encoder (or, for the `esd_unet` baseline, of the UNet)."""

    def __init__(
        self,
        model: TextToImage,
        concept: ConceptConfig,
        attack: AttackConfig,
        config: TrainConfig,
        banks: Banks,
        retain_prompts: Sequence[str],
        generator: torch.Generator,
        quirks: Quirks = NONE,
    ) -> None:
        self.concept, self.config, self.banks, self.generator = concept, config, banks, generator
        self.attack = replace(attack, steps=1, update="sign") if config.mode == "fast" else attack
        self.quirks = quirks
        self.encoder, self.denoiser = model.text_encoder, model.denoiser
        if config.mode == "esd_unet":
            assert isinstance(model.denoiser, DiffusersDenoiser)  # `check` saw to that
            self.denoiser = unet = model.denoiser.trainable_copy()
            self.parameters = [p for name, p in unet.unet.named_parameters() if "attn2" in name]
        else:
            self.encoder = copy.deepcopy(model.text_encoder)
            self.parameters = trainable_parameters(self.encoder, config.trainable, config.layers)
        device = self.denoiser.device
        self.ids = tokenize(model.tokenizer, concept.prompts).to(device)  # (P, L)
        cut = quirks.words_for_tokens
        self.attacked_ids = cut_to_words(self.ids, concept.prompts, model.tokenizer.eos_token_id) if cut else self.ids
        self.retain_ids = tokenize(model.tokenizer, retain_prompts).to(device) if retain_prompts else None
        self.eos = model.tokenizer.eos_token_id
        self.table = embedding_table(model.text_encoder).detach()
        self.sigma = self.table.float().std().item()
        self.state = RunState(self.parameters, torch.optim.Adam(self.parameters, lr=config.lr), banks, generator)

    def find_adversarial(self, on_step: Callable[[int, float], None]) -> AttackResult:
        """Attack the current encoder, eq. (4): one prefix for each of `restarts` draws."""
        count = self.attack.restarts
        kept = self.banks.concept.draw(count)
        start = self.state.latest
        if start is None or self.attack.start != "latest":
            start = starting_point(self.table, self.attack, count, self.generator)

        def objective(embeddings: Tensor) -> Tensor:
            draw = kept if self.attack.redraw == "iteration" else self.banks.concept.draw(count)
            ids, span = insert_prefix(self.attacked_ids[draw.prompt], self.attack.tokens, self.eos)
            context = encode(self.encoder, ids, embeddings, span)
            return attack_loss(self.denoiser.noise_pred(draw.x_t, draw.t, context), draw.cond)

        with gradients_for(self.parameters, False):
            result = pgd(objective, start, self.attack, self.sigma, on_step, self.quirks)
        self.state.latest = result.embeddings
        return result

    def concept_context(self, draw: Triples, adversarial: Tensor | None) -> Tensor:
        """Encode the concept's prompts (B, L, D): the first part clean, the rest behind the prefixes found."""
        ids, clean = self.ids[draw.prompt], len(draw.prompt)
        if adversarial is None:
            return encode(self.encoder, ids)
        clean = round(self.config.clean_share * clean)
        behind = self.attacked_ids[draw.prompt[clean:]]
        attacked, span = insert_prefix(behind, adversarial.shape[1], self.eos)
        rows = torch.arange(len(attacked), device=ids.device) % len(adversarial)
        contexts = [encode(self.encoder, attacked, adversarial[rows], span)] if len(attacked) else []
        return torch.cat(([encode(self.encoder, ids[:clean])] if clean else []) + contexts)

    def loss(self, adversarial: Tensor | None) -> dict[str, Tensor]:
        """Eq. (6), or eq. (3) alone for ESD: one denoiser batch for concept and retained prompts."""
        draw = self.banks.concept.draw(self.config.batch)
        x_t, t, context = draw.x_t, draw.t, self.concept_context(draw, adversarial)
        kept = self.banks.retain.draw(self.config.retain_batch) if self.config.retains and self.banks.retain else None
        if kept is not None and self.retain_ids is not None:
            retained = encode(self.encoder, self.retain_ids[kept.prompt])
            x_t, t, context = torch.cat([x_t, kept.x_t]), torch.cat([t, kept.t]), torch.cat([context, retained])
        predicted = self.denoiser.noise_pred(x_t, t, context)
        erase = erase_loss(predicted[: len(draw.t)], draw.anchor, draw.cond, self.concept.negative_guidance)
        if kept is None:
            return {"loss": erase, "erase": erase}
        retain = retain_loss(predicted[len(draw.t) :], kept.cond)
        return {"loss": erase + self.config.retain_weight * retain, "erase": erase, "retain": retain}

    def run(self, callback: Callback | None = None, checkpoints: Checkpoints | None = None) -> TrainResult:
        """Train. A callback that returns True stops the run after its iteration; the result says how far it came.

        With `checkpoints`, the state is kept now and then, at the end, and when anything interrupts the run.
        Raises TrainingDiverged, with the last good state as its `result`, when a loss is not finite.
        """
        report, state = callback or (lambda progress: None), self.state
        good = [p.detach().clone() for p in self.parameters]
        with self._training(), state.kept(checkpoints):
            while len(state.history) < self.config.iterations:
                i = len(state.history)
                state.begin()
                found = self._attack(i, report)
                losses = self.loss(None if found is None else found.embeddings)
                state.adam.zero_grad()
                losses["loss"].backward()
                row = {name: value.item() for name, value in losses.items()}
                if found is not None:
                    row |= {"attack_start": found.losses[0], "attack_end": found.losses[-1]}
                norm = torch.nn.utils.clip_grad_norm_(self.parameters, math.inf).item()
                if not math.isfinite(row["loss"] + norm):
                    torch._foreach_copy_([p.data for p in self.parameters], good)
                    raise TrainingDiverged(
                        f"loss {row['loss']}, gradient norm {norm} in iteration {i + 1}; the last good weights "
                        f"are kept. Lower lr (now {self.config.lr}) or the attack's step size",
                        self._result(state.history[:-1]),
                    )
                torch._foreach_copy_(good, [p.detach() for p in self.parameters])
                state.step(row)
                seen = Progress(
                    "train", i + 1, self.config.iterations, 0, row, self.encoder, self.denoiser, state.history
                )
                stop = report(seen)
                if checkpoints and (i + 1) % checkpoints.every == 0:
                    state.save(checkpoints)
                if stop:
                    break
        return self._result(state.history)

    def _attack(self, iteration: int, report: Callback) -> AttackResult | None:
        """Find this iteration's adversarial prefixes, or None while there is no adversary."""
        if not self.config.attacks or iteration < self.config.warmup:
            return None

        def on_step(step: int, loss: float) -> None:
            report(Progress("attack", iteration, self.config.iterations, step, {"attack": loss}))

        return self.find_adversarial(on_step)

    @contextmanager
    def _training(self) -> Iterator[None]:
        """Let only the chosen parameters require gradients; flags of shared modules are restored."""
        again = checkpointed(self.denoiser.blocks() if self.config.checkpointing else ())
        with frozen(self.encoder, *self.denoiser.modules()), gradients_for(self.parameters, True), again:
            yield

    def _result(self, history: list[dict[str, float]]) -> TrainResult:
        return TrainResult(self.encoder, self.denoiser, history, len(history))


def check(model: TextToImage, config: TrainConfig, retained: Sequence[str], banks: Banks | None) -> None:
    """Raise AdvUnlearnError for what cannot work, before anything is sampled."""
    if config.retains and (not retained or (banks is not None and banks.retain is None)):
        raise AdvUnlearnError(
            "there are no retained prompts but retain_weight is above 0; give some, or set retain_weight to 0"
        )
    if config.mode == "esd_unet" and not isinstance(model.denoiser, DiffusersDenoiser):
        raise AdvUnlearnError("mode esd_unet trains a diffusers UNet, and this model has none; use another mode")


def train(
    model: TextToImage,
    concept: ConceptConfig,
    attack: AttackConfig | None = None,
    config: TrainConfig | None = None,
    bank: BankConfig | None = None,
    retain_prompts: Sequence[str] = (),
    callback: Callback | None = None,
    banks: Banks | None = None,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    quirks: Quirks | None = None,
) -> TrainResult:
    """Erase a concept from a copy of a model's text encoder (mode `esd_unet`: of its UNet).

    Args:
        model: the original model; it is unchanged afterwards, also after an error.
        concept, attack, config, bank: the settings.
        retain_prompts: prompts whose predictions are to stay as they are.
        callback: progress and cancel.
        banks: trajectories to share between runs; sampled when not given.
        checkpoints: where the run keeps its state.
        resume: go on from that state. On a CPU the weights end up the same, bit for bit, as without the interruption;
            on a GPU as far as its own arithmetic repeats itself.
        quirks: what to do as the published code does; all of it in mode `official` unless given, else nothing.

    Raises AdvUnlearnError for settings that cannot work and TrainingDiverged for a loss that is not finite.
    """
    if resume and (checkpoints is None or banks is not None):
        raise AdvUnlearnError("resume needs checkpoints to go on from, and takes its banks from them")
    attack, config, bank = attack or AttackConfig(), config or TrainConfig(), bank or BankConfig()
    generator = torch.Generator().manual_seed(config.seed)
    quirks = quirks or quirks_of(config.mode)
    retained = list(retain_prompts) if config.retains else []
    check(model, config, retained, banks)
    settings = {
        "concept": concept.to_dict(), "attack": attack.to_dict(), "train": config.to_dict(), "bank": bank.to_dict(),
        "retain_prompts": retained, "quirks": asdict(quirks), **(model.fingerprints() if checkpoints else {}),
    }  # fmt: skip
    state, kept = checkpoints.load(settings) if checkpoints and resume else (None, None)
    if state and kept:
        kept = {name: {**tensors, **state["counters"][name]} for name, tensors in kept.items()}
    kind = bank_kind(config.mode, quirks)
    banks = banks or make_banks(model, concept, retained, bank, generator, filling(callback), kind, kept)
    trainer = Trainer(model, concept, attack, config, banks, retain_prompts, generator, quirks)
    trainer.state.settings = settings
    if state:
        trainer.state.restore(state)
        if len(state["history"]) > config.iterations:
            raise AdvUnlearnError(
                f"the run has come to iteration {len(state['history'])} already; give at least as many iterations"
            )
    return trainer.run(callback, checkpoints)
