"""The training run: draw, attack, loss, step, report."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import torch
from torch import Tensor

from ..attacks.pgd import AttackResult
from ..config.adversary import AdversaryConfig
from ..config.concept import ConceptConfig
from ..config.training import BankConfig, TrainConfig
from ..errors import AdvUnlearnError, TrainingDiverged
from ..losses import erase_loss, retain_loss
from ..models import DiffusersDenoiser
from ..models.denoiser import checkpointed
from ..models.loading import TextToImage
from ..models.text_encoder import encode, frozen, gradients_for, tokenize, trainable_parameters
from .adversary import AdversarialState, Adversaries
from .bank import Banks, BankSamples, TrajectoryBank, make_banks
from .checkpoint import Checkpoints, RunState
from .distributed import SINGLE, Processes
from .events import Callback, Progress, TrainResult, filling
from .quirks import NONE, Quirks, bank_kind, cut_to_words, parse_quirks
from .sharded_bank import sharded
from .validation import check, check_shared


class Trainer:
    """One run on a copy of the encoder, or of the UNet where `train_method` says so."""

    def __init__(
        self,
        model: TextToImage,
        concept: ConceptConfig,
        attack: AdversaryConfig,
        config: TrainConfig,
        banks: Banks,
        retain_prompts: Sequence[str],
        generator: torch.Generator,
        quirks: Quirks = NONE,
        processes: Processes = SINGLE,
    ) -> None:
        self.concept, self.config, self.banks, self.processes = concept, config, banks, processes
        self.attack = attack.in_mode(config.mode)
        self.quirks, self.period = quirks, attack.attack_interval if config.attacks else 1
        self.encoder, self.denoiser = model.text_encoder, model.denoiser
        if config.unet_method:
            assert isinstance(model.denoiser, DiffusersDenoiser)  # `check` saw to that
            self.denoiser = trained = model.denoiser.trainable_copy()
            self.parameters = trained.trainable_parameters(config.unet_method)
        else:
            self.encoder = copy.deepcopy(model.text_encoder)
            chosen = config.trainable, config.num_layers, config.final_norm, config.encoders
            self.parameters = trainable_parameters(self.encoder, *chosen)
        device = self.denoiser.device
        self.ids = tokenize(model.tokenizer, concept.prompts).to(device)  # (P, L)
        cut = quirks.words_for_tokens
        ids = cut_to_words(self.ids, concept.prompts, model.tokenizer.eos_token_id) if cut else self.ids
        self.adversaries = Adversaries(model, concept, ids, self.attack, banks.concept, generator, quirks, processes)
        self.retain_ids = tokenize(model.tokenizer, retain_prompts or [""]).to(device)
        adam = torch.optim.Adam(self.parameters, lr=config.lr)
        self.state = RunState(self.parameters, adam, banks, generator, processes)

    def find_adversarial(self, on_step: Callable[[int, float], None]) -> AttackResult:
        """Attack the current encoder, eq. (4): one attacked prompt for each of `restarts` draws."""
        with gradients_for(self.parameters, False):
            number = max(0, len(self.state.history) - self.config.warmup) // self.period
            found, result = self.adversaries.find(self.encoder, self.denoiser, self.state.latest, number, on_step)
        self.state.latest = found
        return result

    def concept_context(self, draw: BankSamples, adversarial: AdversarialState | None) -> Tensor:
        """Encode this process's concept prompts (b, L, D): of all B the first part is clean, the rest attacked."""
        ids = self.ids[draw.prompt]
        if adversarial is None:
            return encode(self.encoder, ids)
        first, clean = self.processes.rows(self.config.batch).start, round(self.config.clean_share * self.config.batch)
        clean, before = min(max(0, clean - first), len(ids)), max(0, first - clean)
        turn = len(self.state.history) - self.config.warmup
        contexts = self.adversaries.contexts(self.encoder, draw.prompt[clean:], adversarial, turn, before)
        return torch.cat(([encode(self.encoder, ids[:clean])] if clean else []) + contexts)

    def loss(self, adversarial: AdversarialState | None) -> dict[str, Tensor]:
        """Eq. (6), or eq. (3) alone where nothing is retained or that has its own steps: one denoiser batch for all."""
        draw = self.processes.share(self.banks.concept.draw(self.config.batch))
        x_t, t, context = draw.x_t, draw.t, self.concept_context(draw, adversarial)
        bank = self._retained("loss")
        kept = None if bank is None else self.processes.share(bank.draw(self.config.retain_batch))
        if kept is not None:
            x_t, t = torch.cat([x_t, kept.x_t]), torch.cat([t, kept.t])
            context = torch.cat([context, encode(self.encoder, self.retain_ids[kept.prompt])])
        predicted = self.denoiser.noise_pred(x_t, t, context)
        erase = erase_loss(predicted[: len(draw)], draw.anchor, draw.cond, self.concept.negative_guidance)
        erase = self.processes.part(erase, self.config.batch)
        if kept is None:
            return {"loss": erase, "erase": erase}
        retain = self.processes.part(retain_loss(predicted[len(draw) :], kept.cond), self.config.retain_batch)
        return {"loss": erase + self.config.retain_weight * retain, "erase": erase, "retain": retain}

    def _retained(self, by: str) -> TrajectoryBank | None:
        """Return where retained samples come from, if this run has them in its loss or in steps of their own."""
        return self.banks.retain if self.config.retains and self.config.retain_mode == by else None

    def loss_retained(self, bank: TrajectoryBank) -> dict[str, Tensor]:
        """Second term of eq. (6), for a step of its own."""
        kept = self.processes.share(bank.draw(self.config.retain_batch))
        predicted = self.denoiser.noise_pred(kept.x_t, kept.t, encode(self.encoder, self.retain_ids[kept.prompt]))
        retain = self.processes.part(retain_loss(predicted, kept.cond), self.config.retain_batch)
        return {"loss": self.config.retain_weight * retain, "retain": retain}

    def run(self, callback: Callback | None = None, checkpoints: Checkpoints | None = None) -> TrainResult:
        """Train. A callback that returns True stops the run after its iteration; the result says how far it came.

        With `checkpoints`, the state is kept before the first iteration, now and then, at the end, and when anything
        interrupts the run.
        Raises TrainingDiverged, with the last good state as its `result`, when a loss is not finite.
        """
        report, state, config = callback or (lambda progress: None), self.state, self.config
        state.keep_good()
        with self.processes.interrupts(), self._training(), state.kept(checkpoints):
            while len(state.history) < config.iterations:
                i = len(state.history)
                state.begin()
                self.banks.concept.only = self.concept.prompts_in_turn((i - config.warmup) // self.period)
                found = self._attack(i, report)
                losses = self.loss(state.latest if config.attacks and i >= config.warmup else None)
                row = self._backward(losses)
                if found is not None:
                    row |= {"attack_start": found.losses[0], "attack_end": found.losses[-1]}
                state.keep_good()
                row |= self._steps_apart()
                state.step(row)
                seen = Progress("train", i + 1, config.iterations, 0, row, self.encoder, self.denoiser, state.history)
                stop = report(seen)
                if checkpoints and (i + 1) % checkpoints.every == 0:
                    state.save(checkpoints)
                if self.processes.agreed(bool(stop)):
                    break
        return self._result(state.history)

    def _steps_apart(self) -> dict[str, float]:
        """Retain mode step: take the erasing step and all retain steps but the last, whose gradients stay."""
        row: dict[str, float] = {}
        bank = self._retained("step")
        if bank is not None:
            for _ in range(self.config.retain_steps):
                self.state.step_apart()
                row["retain"] = self._backward(self.loss_retained(bank))["retain"]
        return row

    def _backward(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """Take gradients; return the values. Where one is not finite, go back to the last good weights."""
        self.state.adam.zero_grad()
        losses["loss"].backward()
        self.processes.add(parameter.grad for parameter in self.parameters)
        row = dict(zip(losses, self.processes.totals(value.item() for value in losses.values()), strict=True))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, math.inf).item()
        if not math.isfinite(row["loss"] + norm):
            self.state.go_back()
            raise TrainingDiverged(
                f"loss {row['loss']}, gradient norm {norm} in iteration {len(self.state.history) + 1}; the last good "
                f"weights are kept. Lower lr (now {self.config.lr}) or the attack's step size",
                self._result(self.state.history[: self.state.good_iterations]),
            )
        return row

    def _attack(self, iteration: int, report: Callback) -> AttackResult | None:
        """Find this iteration's adversarial embeddings; None while there is no adversary or its last finds are used."""
        attacked = iteration - self.config.warmup
        if not self.config.attacks or attacked < 0 or attacked % self.period:
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


def train(
    model: TextToImage,
    concept: ConceptConfig,
    attack: AdversaryConfig | None = None,
    config: TrainConfig | None = None,
    bank: BankConfig | None = None,
    retain_prompts: Sequence[str] = (),
    callback: Callback | None = None,
    banks: Banks | None = None,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    quirks: Quirks | None = None,
    processes: Processes = SINGLE,
) -> TrainResult:
    """Erase a concept from a copy of a model's text encoder, or of its UNet where `train_method` says so.

    Args:
        model: the original model; it is unchanged afterwards, also after an error.
        concept, attack, config, bank: the settings.
        retain_prompts: prompts whose predictions are to stay as they are; of a list that is longer than the bank its
            beginning, so see `retain.shuffle`.
        callback: progress and cancel.
        banks: trajectories to share between runs; sampled when not given.
        checkpoints: where the run keeps its state.
        resume: go on from that state. On a CPU the weights end up the same, bit for bit, as without the interruption;
            on a GPU as far as its own arithmetic repeats itself.
        quirks: what to do as the published code does, in place of what `config` says.
        processes: share the work among them; all call this with the same arguments, but for the callback.

    Raises AdvUnlearnError for settings that cannot work and TrainingDiverged for a loss that is not finite.
    """
    if resume and (checkpoints is None or banks is not None):
        raise AdvUnlearnError("resume needs checkpoints to go on from, and takes its banks from them")
    attack, config, bank = attack or AdversaryConfig(), config or TrainConfig(), bank or BankConfig()
    generator = torch.Generator().manual_seed(config.seed)
    quirks = quirks or parse_quirks(config.mode, config.quirks)
    retained = list(retain_prompts) if config.retains else []
    kind = bank_kind(config.mode, quirks)
    size = len(banks.concept) if banks else bank.trajectories * kind.keeps
    check(model, concept, attack, config, retained, banks, size)
    check_shared(processes.count, attack, config, bank, kind)
    kind = sharded(processes) if processes.count > 1 else kind
    settings = {
        "concept": concept.to_dict(),
        "attack": attack.to_dict(),
        "train": config.to_dict(),
        "bank": bank.to_dict(),
        "retain_prompts": retained,
        "quirks": asdict(quirks),
        **(model.fingerprints() if checkpoints else {}),
    }
    state, kept = checkpoints.load(settings) if checkpoints and resume else (None, None)
    banks = banks or make_banks(model, concept, retained, bank, generator, filling(callback), kind, kept)
    trainer = Trainer(model, concept, attack, config, banks, retain_prompts, generator, quirks, processes)
    trainer.state.settings = settings
    if state:
        trainer.state.restore(state)
        if len(state["history"]) > config.iterations:
            raise AdvUnlearnError(
                f"the run has come to iteration {len(state['history'])} already; give at least as many iterations"
            )
    return trainer.run(callback, checkpoints)
