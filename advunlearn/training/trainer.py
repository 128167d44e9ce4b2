"""The training loop: draw, attack, loss, step, report."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor

from ..attacks.pgd import Minimiser, pgd
from ..config.quirks import parse_quirks
from ..config.training import RunConfig
from ..errors import AdvUnlearnError, TrainingDiverged
from ..losses import erase_loss, retain_loss
from ..models.denoiser import checkpointed
from ..models.diffusers_denoiser import DiffusersDenoiser
from ..models.loading import TextToImage
from ..models.placement import on_device
from ..models.text_encoder import encode, encoder_parts, frozen, gradients_for, trainable_copy, trainable_parameters
from ..models.tokenizer import num_chunks, tokenize
from .adversary import Adversary, CleanPrompt, Draw, divide
from .bank import Banks, BankSamples, SampleSource, make_banks
from .checkpoint import Checkpoints, RunState
from .distributed import SINGLE, Processes, ShardedBank
from .events import Callback, Progress, TrainResult, report_filling
from .inversion_adversary import InversionAdversary
from .micro_batches import split_batch
from .official import PublishedAttack, cut_to_words, fit_long_prompts, source_class
from .offload import CPU, OffloadedAdam, offloaded_modules
from .prompt_adversary import PromptAdversary
from .schedule import Schedule
from .validation import check_processes, check_run

Losses = dict[str, Tensor]  # "loss", which is differentiated, and its terms


class Trainer:
    """One run on a copy of the text encoder, or of the UNet if `train_method` says so.

    Args:
        model: the original model; it is not changed.
        run: the settings.
        banks: the sources of samples.
        retain_prompts: the retained prompts.
        generator: source of the adversaries' random draws.
        processes: share the work of every batch.
    """

    def __init__(
        self,
        model: TextToImage,
        run: RunConfig,
        banks: Banks,
        retain_prompts: Sequence[str],
        generator: torch.Generator,
        processes: Processes = SINGLE,
    ) -> None:
        self.run_config = run
        self.config = run.train
        self.banks = banks
        self.processes = processes
        self.one_timestep = parse_quirks(run.train.mode, run.train.quirks).one_timestep
        self.schedule = Schedule.from_config(run)
        self.encoder = model.text_encoder
        self.denoiser = model.denoiser
        if run.train.unet_method:
            assert isinstance(model.denoiser, DiffusersDenoiser)  # checked by `check_run`
            self.denoiser = trained = model.denoiser.trainable_copy()
            self.parameters = trained.trainable_parameters(run.train.unet_method)
        else:
            self.encoder = trainable_copy(model.text_encoder, run.train.encoders, model.denoiser.device)
            self.parameters = trainable_parameters(
                self.encoder, run.train.trainable, run.train.num_layers, run.train.final_norm, run.train.encoders
            )
        device = self.denoiser.device
        with on_device(encoder_parts(model.text_encoder).values(), device):
            self.adversaries = make_adversaries(model, run, generator, processes)
        clean_ids = tokenize(model.tokenizer, run.concept.prompts).to(device)  # (P, L)
        self.warmup_adversaries: list[Adversary] = [CleanPrompt(clean_ids)]
        self.retain_ids = tokenize(model.tokenizer, retain_prompts or [""]).to(device)  # (R, L)
        adam = (OffloadedAdam if run.train.offload else torch.optim.Adam)(self.parameters, lr=run.train.lr)
        self.state = RunState(self.parameters, adam, banks, generator, processes, run.train.offload)

    def run(self, callback: Callback | None = None, checkpoints: Checkpoints | None = None) -> TrainResult:
        """Train. A callback that returns True stops the run after the current iteration.

        With `checkpoints`, the state is saved before the first iteration, at intervals, at the end, and if anything
        interrupts the run.
        Raises TrainingDiverged, with the last good weights as its `result`, if a loss is not finite.
        """
        report = callback or (lambda progress: None)
        state, iterations = self.state, self.config.iterations
        state.keep_good_weights()
        with self.processes.deferred_interrupts(), self._training(), state.checkpoint_on_exit(checkpoints):
            while len(state.history) < iterations:
                i = len(state.history)
                state.start_iteration()
                attack_losses = self.attack(i, report) if self.schedule.starts_attack(i) else None
                row = self._backward(self.losses(i))
                if attack_losses:
                    row |= {"attack_start": attack_losses[0], "attack_end": attack_losses[-1]}
                state.keep_good_weights()
                row |= self._retain_steps()
                state.step(row)
                progress = Progress("train", i + 1, iterations, 0, row, self.encoder, self.denoiser, state.history)
                stop = report(progress)
                if checkpoints and (i + 1) % checkpoints.every == 0:
                    state.save(checkpoints)
                if self.processes.any_rank(bool(stop)):
                    break
        return self._result(state.history)

    def attack(self, iteration: int, report: Callback) -> list[float]:
        """Let every adversary attack the current model, eq. (4); return the prompt adversary's losses."""
        draw = Draw(self.banks.concept, self._prompts_in_turn(iteration), self.one_timestep)
        number = self.schedule.attacks_before(iteration)
        done = 0  # steps of the adversaries before
        losses: dict[str, list[float]] = {}

        def on_step(step: int, loss: float) -> None:
            report(Progress("attack", iteration, self.config.iterations, done + step, {"attack": loss}))

        with gradients_for(self.parameters, False):
            found = dict(self.state.adversarial)
            for adversary in self.adversaries:
                last = found.get(adversary.name, {})
                found[adversary.name], losses[adversary.name] = adversary.find(
                    self.encoder, self.denoiser, draw, last, number, on_step
                )
                done += adversary.num_steps
        self.state.adversarial = found
        return losses.get(PromptAdversary.name, [])

    def losses(self, iteration: int) -> Iterator[Losses]:
        """Draw an iteration's batch; yield the loss of each micro-batch. Their sum is the loss of the batch."""
        timestep = self._shared_timestep()
        concept = self._draw(self.banks.concept, self.config.batch, timestep, self._prompts_in_turn(iteration))
        source = self._retain_source("loss")
        retained = None if source is None else self._draw(source, self.config.retain_batch, timestep)
        for concept_part, retained_part in split_batch(concept, retained, self.config.micro_batch):
            yield self.loss(iteration, concept_part, retained_part)

    def losses_retained(self, source: SampleSource) -> Iterator[Losses]:
        """Draw the batch of a retain step; yield the loss of each micro-batch."""
        retained = self._draw(source, self.config.retain_batch, self._shared_timestep())
        for start in range(0, len(retained), self.config.micro_batch or len(retained)):
            yield self.loss(0, None, retained[start : start + (self.config.micro_batch or len(retained))])

    def loss(self, iteration: int, concept: BankSamples | None, retained: BankSamples | None) -> Losses:
        """Eq. (6), or one of its terms if there are samples of that one only; one denoiser batch for both terms."""
        parts: list[tuple[BankSamples, Tensor]] = []  # samples and their conditioning (B, L, D)
        if concept is not None:
            parts.append((concept, self.encode_concept(concept, iteration)))
        if retained is not None:
            parts.append((retained, encode(self.encoder, self.retain_ids[retained.prompt])))
        predicted = self.denoiser.noise_pred(
            torch.cat([samples.x_t for samples, _ in parts]),
            torch.cat([samples.t for samples, _ in parts]),
            torch.cat([conditioning for _, conditioning in parts]),
        )
        losses: Losses = {}
        if concept is not None:
            eta = self.run_config.concept.negative_guidance
            erase = erase_loss(predicted[: len(concept)], concept.anchor, concept.cond, eta)
            losses["erase"] = concept.weight * erase
        if retained is not None:
            retain = retain_loss(predicted[-len(retained) :], retained.cond)
            losses["retain"] = retained.weight * retain
        weights = {"erase": 1.0, "retain": self.config.retain_weight}
        loss = functools.reduce(torch.add, (weights[name] * term for name, term in losses.items()))
        return {"loss": loss, **losses}

    def encode_concept(self, samples: BankSamples, iteration: int) -> Tensor:
        """Encode the concept's prompts (B, L, D), divided among the adversaries; in the warm-up all are clean."""
        adversaries = self.adversaries if self.schedule.is_attacked(iteration) else self.warmup_adversaries
        turn = iteration - self.schedule.warmup
        numbers = divide(adversaries, self.config.batch, turn)  # of each one's samples; together the whole batch
        first = list(accumulate((len(taken) for taken in numbers), initial=0))  # of each one's samples in the batch
        encoded: dict[int, Tensor] = {}
        # The clean prompts come last: the order of encoding is the order in which gradients are summed, and decides the
        # last bits of the weights.
        for n in (*range(1, len(adversaries)), 0):
            start = max(first[n], samples.first)
            stop = min(first[n + 1], samples.first + len(samples))
            if start < stop:  # otherwise other processes have them
                prompts = samples.prompt[start - samples.first : stop - samples.first]
                taken = torch.arange(start - first[n], stop - first[n], device=prompts.device) + numbers[n].start
                found = self.state.adversarial.get(adversaries[n].name, {})
                encoded[n] = adversaries[n].encode(self.encoder, prompts, taken, found)
        return torch.cat([encoded[n] for n in sorted(encoded)])

    def _shared_timestep(self) -> int | None:
        """Draw the timestep of a whole batch, of a run with that quirk."""
        return self.banks.concept.draw_timestep() if self.one_timestep else None

    def _draw(
        self, source: SampleSource, count: int, timestep: int | None, prompts: range | None = None
    ) -> BankSamples:
        """Draw a batch; return this process's part of it."""
        return self.processes.shard(source.draw(count, prompts, timestep))

    def _prompts_in_turn(self, iteration: int) -> range | None:
        return self.run_config.concept.prompts_in_turn(self.schedule.turn(iteration))

    def _retain_source(self, mode: str) -> SampleSource | None:
        """Return the source of retained samples if this run has a retain term of that mode."""
        return self.banks.retain if self.config.retains and self.config.retain_mode == mode else None

    def _retain_steps(self) -> dict[str, float]:
        """In retain mode `step`, take the erasing step and all retain steps but the last, whose gradients stay."""
        row: dict[str, float] = {}
        if (source := self._retain_source("step")) is not None:
            for _ in range(self.config.retain_steps):
                self.state.extra_step()
                row["retain"] = self._backward(self.losses_retained(source))["retain"]
        return row

    def _backward(self, parts: Iterable[Losses]) -> dict[str, float]:
        """Sum the gradients of micro-batches; return the values. If one is not finite, roll back and raise."""
        self.state.adam.zero_grad()
        sums: dict[str, float] = {}
        for losses in parts:
            losses["loss"].backward()
            sums |= {name: sums.get(name, 0.0) + value.item() for name, value in losses.items()}
        self.processes.all_reduce_(parameter.grad for parameter in self.parameters)
        row = dict(zip(sums, self.processes.sum_values(sums.values()), strict=True))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, math.inf).item()
        if not math.isfinite(row["loss"] + norm):
            self.state.rollback()
            raise TrainingDiverged(
                f"loss {row['loss']}, gradient norm {norm} in iteration {len(self.state.history) + 1}; the last good "
                f"weights are kept. Lower lr (now {self.config.lr}) or the attack's step size",
                self._result(self.state.history[: self.state.good_iterations]),
            )
        return row

    @contextmanager
    def _training(self) -> Iterator[None]:
        """Let only the trained parameters require gradients; the flags of shared modules are restored."""
        recomputed = checkpointed(self.denoiser.blocks() if self.config.checkpointing else ())
        with frozen(self.encoder, *self.denoiser.modules()), gradients_for(self.parameters, True), recomputed:
            yield

    def _result(self, history: list[dict[str, float]]) -> TrainResult:
        return TrainResult(self.encoder, self.denoiser, history, len(history))


def make_adversaries(
    model: TextToImage, run: RunConfig, generator: torch.Generator, processes: Processes = SINGLE
) -> list[Adversary]:
    """Return a run's adversaries, in the order in which their samples stand in a batch; the clean prompt is the first.

    Args:
        model: the original model.
        run: the settings.
        generator: source of every random draw.
        processes: share the prompt adversary's attacks among them.
    """
    concept, attack = run.concept, run.attack.in_mode(run.train.mode)
    encoder, tokenizer = model.text_encoder, model.tokenizer
    ids = tokenize(tokenizer, concept.prompts).to(model.denoiser.device)  # (P, L)
    if not run.train.attacks:
        return [CleanPrompt(ids)]
    quirks = parse_quirks(run.train.mode, run.train.quirks)
    attacked, sizes = ids, None
    if quirks.words_for_tokens:
        attacked, sizes = cut_to_words(ids, concept.prompts, attack, tokenizer.eos_token_id)
    micro = run.train.micro_batch
    published = quirks.result_before_last_step or quirks.gradient_accumulates
    minimise: Minimiser = PublishedAttack(quirks) if published else pgd
    adversaries: list[Adversary] = [
        CleanPrompt(ids, run.train.clean_share),
        PromptAdversary(
            encoder, tokenizer, concept.prompts, attacked, attack, generator, minimise, processes, micro, sizes
        ),
    ]
    if attack.inversion_tokens:
        adversaries.append(InversionAdversary(encoder, tokenizer, concept, attack, generator, micro))
    return adversaries


def train(
    model: TextToImage,
    run: RunConfig | None = None,
    retain_prompts: Sequence[str] = (),
    *,
    callback: Callback | None = None,
    banks: Banks | None = None,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    processes: Processes = SINGLE,
) -> TrainResult:
    """Erase a concept from a copy of a model's text encoder, or of its UNet if `train_method` says so.

    Args:
        model: the original model; it is unchanged afterwards, also after an error.
        run: the settings.
        retain_prompts: prompts whose predictions must not change. Of a list longer than the bank only the beginning is
            sampled, so shuffle it: see `prompts.retain.shuffle`.
        callback: receives the progress; returns True to stop.
        banks: banks to share between runs; sampled if not given.
        checkpoints: where the run saves its state.
        resume: continue from that state. On a CPU the final weights are bit-identical to those of an uninterrupted run;
            on a GPU as far as its arithmetic is deterministic.
        processes: share the work; all call this with the same arguments, except for the callback.

    Raises AdvUnlearnError for settings that cannot work, TrainingDiverged for a loss that is not finite.
    """
    if resume and (checkpoints is None or banks is not None):
        raise AdvUnlearnError("resume needs checkpoints, and takes its banks from them; pass checkpoints and no banks")
    run = run or RunConfig()
    generator = torch.Generator().manual_seed(run.train.seed)
    retained = list(retain_prompts) if run.train.retains else []
    check_run(model, run, retained, banks)
    check_processes(processes.count, run)
    model = fit_long_prompts(model, run.train, retained)
    settings = {**run.to_dict(), "retain_prompts": retained, **(model.fingerprints() if checkpoints else {})}
    if (chunks := num_chunks(model.tokenizer)) > 1:
        settings["chunks"] = chunks
    state, bank_state = checkpoints.load(settings) if checkpoints and resume else (None, None)
    if banks is None:
        make = source_class(run.train) if processes.count == 1 else functools.partial(ShardedBank, processes=processes)
        banks = make_banks(model, run, retained, generator, report_filling(callback), make, bank_state)
    with on_device(offloaded_modules(model, run.train) if run.train.offload else (), CPU):
        trainer = Trainer(model, run, banks, retain_prompts, generator, processes)
        trainer.state.settings = settings
        if state:
            trainer.state.restore(state)
            if len(state["history"]) > run.train.iterations:
                raise AdvUnlearnError(
                    f"the run has already done {len(state['history'])} iterations; set iterations to at least that"
                )
        return trainer.run(callback, checkpoints)
