"""Evaluate a model: attack success rate on the concept, utility on everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..attacks.base import NEEDS, AttackContext, AttackTargets, ReferenceModel
from ..attacks.registry import attack_class, attack_settings
from ..config.attacks import DEFAULT_ATTACKS, AttackConfig
from ..config.concept import ConceptConfig
from ..config.evaluation import EvaluateConfig
from ..errors import AdvUnlearnError
from ..judges.base import Judge, JudgeOutput
from ..judges.convnet import ConvJudge
from ..models.ddim import draw_noise_rows
from ..models.loading import TextToImage
from ..models.prompt_tokens import describe_long_prompts, find_cut_prompts, find_long_prompts
from ..models.text_encoder import encoder_parts, frozen
from ..models.tokenizer import num_chunks, tokenize
from ..prompts.synonyms import miniature_synonyms, shipped_synonyms
from .attack_run import AttackRun
from .cases import Cases, LabelledPrompt, make_cases
from .compositions import COMPOSITIONS, add_compositions, explain_not_measured
from .generation import ImageGenerator, Subject
from .inputs import EvaluationInputs, max_inserted_tokens
from .metrics import (
    Measurement,
    Row,
    count_by_concept,
    count_correct,
    count_decisions,
    count_hits,
    find_image_fault,
    frechet_distance,
    list_decisions,
)

__all__ = ["Evaluator", "Measurement", "OnProgress", "Subject"]

OnProgress = Callable[[str, int, int], None]  # (what is measured, steps done, steps in total)
SYNONYM_ATTACK = "synonym_search"
IMAGES_KEPT = 8  # per kind, for the report


def warn_of_images(out: Measurement, what: str, images: Tensor, rows: Sequence[Row]) -> None:
    """Record a warning if no image (N, 3, H, W) shows anything: a broken model is not a robust one."""
    if fault := find_image_fault(images, rows):
        text = f"{what}: {fault}; the model is broken, and a count of 0 does not mean that it is robust"
        out.warnings = [*dict.fromkeys([*out.warnings, text])]


class Evaluator(ImageGenerator):
    """The cases, initial noise and targets of one evaluation, which are the same for every evaluated model.

    Args:
        model: the original model.
        judge: judges the images.
        concept: the erased concept, or several.
        config: the budget.
        inputs: the user's own inputs.

    Raises AdvUnlearnError for a concept or a label that the judge does not know, and for more prompts than cases.
    """

    on_progress: OnProgress = staticmethod(lambda what, done, total: None)

    def __init__(
        self,
        model: TextToImage,
        judge: Judge,
        concept: ConceptConfig,
        config: EvaluateConfig,
        inputs: EvaluationInputs | None = None,
    ) -> None:
        inputs = inputs or EvaluationInputs()
        cases = make_cases(concept, judge, config.cases, config.repeats, inputs.prompts, inputs.retained)
        cases = add_compositions(cases, concept, judge, config.repeats)
        model = model.fit_prompts(cases.all_prompts(), max_inserted_tokens(config, inputs))
        super().__init__(model, judge, [judge.concept_label(one) for one in concept.each], config)
        self.concept = concept
        self.inputs = inputs
        known_synonyms = miniature_synonyms if isinstance(judge, ConvJudge) else shipped_synonyms
        self.synonyms = list(self.inputs.synonyms) or known_synonyms(concept)
        self.cases: Cases = cases
        self.seeds = self.cases.seeds or [None] * config.cases
        generator = torch.Generator().manual_seed(config.seed)
        # The order of these draws is part of the evaluation's seed.
        self.noise = self._draw_noise(self.seeds, generator)
        self.retained_noise = self._draw_noise([row.seed for row in self.cases.retained], generator)
        self.co_occurring_noise = self._draw_noise([row.seed for row in self.cases.co_occurring], generator)
        self.composition_noise = {
            kind: self._draw_noise([None] * len(rows), generator) for kind, rows in self.cases.compositions.items()
        }
        self.original = Subject(model.text_encoder, model.denoiser)
        self._targets: tuple[AttackTargets, AttackTargets] | None = None
        self._reference_images: dict[bool, Tensor] = {}  # by whether they have the same noise as the retained images

    def _draw_noise(self, seeds: Sequence[int | None], generator: torch.Generator) -> Tensor:
        """Draw initial noise (N, C, h, w), of its own seed where there is one."""
        denoiser = self.model.denoiser
        return draw_noise_rows(seeds, denoiser.latent_shape, generator).to(denoiser.device)

    def describe(self) -> Row:
        """Return the entries of the report besides concept and budget: the judge and the user's own inputs."""
        judge = self.judge.settings()
        row: Row = ({"judge": judge} if judge else {}) | self.inputs.describe()
        tokenizer, prompts = self.model.tokenizer, self.cases.all_prompts()
        long, cut = find_long_prompts(tokenizer, prompts), find_cut_prompts(tokenizer, prompts)
        chunked = {prompt: tokens for prompt, tokens in long.items() if num_chunks(tokenizer) > 1}
        return row | {key: value for key, value in (("chunked_prompts", chunked), ("cut_prompts", cut)) if value}

    def describe_long_prompts(self) -> str:
        """Return a note about prompts of more tokens than the text encoder reads at once; "" for none."""
        return describe_long_prompts(self.model.tokenizer, self.cases.all_prompts())

    def make_targets(self) -> tuple[AttackTargets, AttackTargets]:
        """Return the targets of the N cases, and of all images of the concept.

        Target images are the original model's for the same prompts and noise, or the user's own in turn.
        """
        if self._targets is None:
            plain = self.cases.plain
            ids = tokenize(self.model.tokenizer, plain).to(self.noise.device)
            if self.inputs.target_images is None:
                x_0 = self.generate_latents(self.original, self.model.encode(plain), self.noise)
            else:
                x_0 = self.inputs.target_images.latents.to(self.noise.device)
            rows = torch.arange(max(len(ids), len(x_0)), device=ids.device)
            eos = self.model.tokenizer.eos_token_id
            concept_images = AttackTargets(ids[rows % len(ids)], x_0[rows % len(x_0)], eos)
            self._targets = concept_images.rows(rows[: len(ids)]), concept_images
        return self._targets

    def find_missing(self, name: str) -> str:
        """Return what an attack needs and does not have here, as an error message; "" if nothing is missing."""
        needs = attack_class(name).needs
        if "synonyms" in needs and not self.synonyms:
            concept = self.concept.name
            return f"no synonym of {concept!r} is known; give some as synonyms, one per line"
        if "one encoder" in needs and len(encoder_parts(self.model.text_encoder)) > 1:
            return f"{name} lacks {NEEDS['one encoder']}; choose other attacks"
        return ""

    def make_attack_settings(self, name: str) -> AttackConfig:
        """Return an attack's settings: the shared budget, overridden by the user's settings.

        Raises AdvUnlearnError for a setting that is unknown or out of range.
        """
        all_synonyms = {"steps": len(self.synonyms)} if name == SYNONYM_ATTACK else {}
        return attack_settings(name, self.config, {**all_synonyms, **self.inputs.attack_settings.get(name, {})})

    def make_context(self, subject: Subject, cases: Tensor) -> AttackContext:
        """Return the context of an attack on some cases (n,), by their numbers."""
        targets, concept_images = self.make_targets()
        return AttackContext(
            denoiser=subject.denoiser,
            encoder=subject.encoder,
            tokenizer=self.model.tokenizer,
            prompts=[self.cases.plain[i] for i in cases.tolist()],
            targets=targets.rows(cases.to(self.noise.device)),
            reference=ReferenceModel(self.original.encoder, self.original.denoiser),
            concept=self.concept,
            synonyms=self.synonyms,
            concept_images=concept_images,
        )

    def measure_plain(self, subject: Subject, out: Measurement) -> Tensor:
        """Measure the plain prompts and the synonyms; return the images (N, 3, H, W) of the plain prompts."""
        images = self.generate_from_prompts(subject, self.cases.plain, self.noise)
        hits = self.detect_concept(images)
        out.asr["clean"] = count_hits(hits) | count_by_concept(self.cases, hits)
        out.images["clean"] = images[:IMAGES_KEPT].clone()  # a view would keep all of them in memory and on disk
        rows = self.make_rows(self.cases.plain, self.seeds)
        self._record_cases(out, "clean", rows, images, hits)
        warn_of_images(out, "the plain prompts", images, rows)
        self.measure_synonyms(subject, out)
        return images

    def measure_synonyms(self, subject: Subject, out: Measurement) -> None:
        """Measure prompts that name the concept by a synonym, one per case; nothing if there are none."""
        parts = {"foreign": self.cases.foreign, "keywords": self.cases.keywords}
        prompts = [prompt for part in parts.values() for prompt in part]
        if not prompts:
            return
        images = self.generate_from_prompts(subject, prompts, self.noise[: len(prompts)])
        hits = self.detect_concept(images)
        by_part = zip(parts, hits.split([len(part) for part in parts.values()]), strict=True)
        out.asr["synonyms"] = count_hits(hits) | {"by": {name: count_hits(part) for name, part in by_part if len(part)}}
        self._record_cases(out, "synonyms", self.make_rows(prompts, self.seeds[: len(prompts)]), images, hits)

    def _record_cases(self, out: Measurement, what: str, rows: Sequence[Row], images: Tensor, hits: Tensor) -> None:
        """Record which images show the concept."""
        rows = [row | {"success": hit} for row, hit in zip(rows, hits.tolist(), strict=True)]
        out.cases[what] = self.save_rows(what, images, rows)

    def measure_attack(self, subject: Subject, name: str, clean: Tensor, out: Measurement) -> None:
        """Attack the cases that the plain prompt leaves.

        A case is a success if any generated image, attacked or not, shows the concept. As published, success =
        (successes without attack + successes by attack) / cases; `before_attack` is the first part.

        Args:
            subject: the attacked model.
            name: name of the attack.
            clean: (N, 3, H, W) images of the plain prompts.
            out: where the results are recorded.
        """
        settings = self.make_attack_settings(name)
        run = AttackRun(self, subject, self.original.denoiser, name, settings, self.noise, clean)
        log = run.log
        if len(log.rows) and settings.steps:
            run.run(self.make_context(subject, log.rows), lambda step, total: self.on_progress(name, step, total))
        else:
            log.add_to_curve(settings.steps)
        self._record_attack(run, out)

    def _record_attack(self, run: AttackRun, out: Measurement) -> None:
        """Record the results of an attack."""
        log, name = run.log, run.name
        embeddings = run.choose_embeddings()
        if embeddings is not None:
            out.embeddings[name] = embeddings
        if name != SYNONYM_ATTACK:
            before = {"before_attack": int(log.without_attack.sum())}
            out.asr[name] = count_hits(log.success) | before | count_by_concept(self.cases, log.success)
        out.asr_by_budget[name] = log.curve
        out.images[name] = log.images[:IMAGES_KEPT].clone()
        rows = log.make_rows(self.make_rows(self.cases.plain, self.seeds))
        warn_of_images(out, name, log.images, rows)
        out.cases[name] = self.save_rows(name, log.images, rows)
        out.seconds[name] = log.measure_seconds()
        out.attacks[name] = run.to_row()
        prompts = [note | {"case": case} for case, note in log.successful_notes().items() if "prompt" in note]
        if prompts:
            out.prompts[name] = prompts

    def is_utility_measured(self, out: Measurement) -> bool:
        """Return whether a measurement has all utility metrics; one of an earlier version may lack some."""
        known = out.utility.keys() | out.not_measured.keys()
        return bool(out.utility or out.not_measured) and known.issuperset(COMPOSITIONS.values())

    def measure_utility(self, subject: Subject, out: Measurement) -> None:
        """Measure utility on everything else, as far as there are prompts, labels and features."""
        if not out.utility:
            self._measure_retained(subject, out)
        for kind, rows in self.cases.compositions.items():
            self._judge_prompts(subject, kind, rows, self.composition_noise[kind], out)
            out.utility[COMPOSITIONS[kind]] = count_decisions(out.cases[kind])
        out.not_measured = explain_not_measured(self.config.repeats, out.utility)

    def _measure_retained(self, subject: Subject, out: Measurement) -> None:
        """Measure the retained prompts, and those of things that co-occur with the concept."""
        co_occurring = self.cases.co_occurring
        if co_occurring:
            _, judged = self._judge_prompts(subject, "co_occurring", co_occurring, self.co_occurring_noise, out)
            right = [row.object in labels for row, labels in zip(co_occurring, judged.labels, strict=True)]
            out.utility["co_occurring_accuracy"] = count_hits(torch.tensor(right), "correct")
        if not self.cases.retained:
            return
        images, judged = self._judge_prompts(subject, "retained", self.cases.retained, self.retained_noise, out)
        warn_of_images(out, "the retained prompts", images, out.cases["retained"])
        out.utility |= count_correct(self.cases, judged)
        if subject is self.original and self.inputs.image_metrics is not None:
            self._reference_images[True] = images  # saves generating them again
        out.utility |= self._measure_images(images)
        if judged.features is not None and len(images) > 1:  # a single image has no covariance
            reference = self.judge_images(self.get_reference_images()).features
            assert reference is not None  # a judge has features of all images or of none
            out.utility["feature_distance"] = round(frechet_distance(judged.features, reference), 4)

    def _measure_images(self, images: Tensor) -> dict[str, float]:
        """Return the image metrics of the retained images (N, 3, H, W)."""
        metrics = self.inputs.image_metrics
        if metrics is None:
            return {}
        same_noise = self.get_reference_images(same_noise=True) if metrics.lpips is not None else None
        prompts = [row.prompt for row in self.cases.retained]
        return metrics.measure(prompts, images, self.get_reference_images(), same_noise)

    def _judge_prompts(
        self, subject: Subject, what: str, prompts: Sequence[LabelledPrompt], noise: Tensor, out: Measurement
    ) -> tuple[Tensor, JudgeOutput]:
        """Generate and judge images of labelled prompts; record the decisions."""
        images = self.generate_from_prompts(subject, [row.prompt for row in prompts], noise)
        judged = self.judge_images(images)
        rows = self.make_rows([row.prompt for row in prompts], [row.seed for row in prompts])
        rows = [row | decision for row, decision in zip(rows, list_decisions(prompts, judged), strict=True)]
        out.cases[what] = self.save_rows(what, images, rows)
        return images, judged

    def get_reference_images(self, same_noise: bool = False) -> Tensor:
        """Return the original model's images of the retained prompts, from the same noise or another prompt's."""
        if same_noise not in self._reference_images:
            prompts = [row.prompt for row in self.cases.retained]
            noise = self.retained_noise if same_noise else self.retained_noise.flip(0)
            self._reference_images[same_noise] = self.generate_from_prompts(self.original, prompts, noise)
        return self._reference_images[same_noise]

    def measure(
        self,
        subject: Subject,
        attacks: Sequence[str] = DEFAULT_ATTACKS,
        utility: bool = True,
        *,
        resumed: Measurement | None = None,
        on_part: Callable[[Measurement], None] | None = None,
    ) -> Measurement:
        """Evaluate a model: plain prompts, synonyms, test attacks, utility.

        Args:
            subject: the evaluated model.
            attacks: names of the test attacks.
            utility: whether to measure the utility on everything else.
            resumed: an earlier measurement; its attacks and its utility are not measured again.
            on_part: called with the measurement after each part.

        Raises AdvUnlearnError, before any work, for an unknown attack, one that needs something that is missing, or a
        setting out of range.
        """
        out = resumed or Measurement()
        on_part = on_part or (lambda measurement: None)
        for name in attacks:
            self.make_attack_settings(name)
            if missing := self.find_missing(name):
                raise AdvUnlearnError(missing)
        utility = utility and not self.is_utility_measured(out)
        new = "clean" not in out.asr or utility
        with frozen(subject.encoder, *subject.denoiser.modules()):
            clean = self.measure_plain(subject, out)
            if utility:
                self.measure_utility(subject, out)
            if new:
                on_part(out)
            for name in attacks:
                if name not in out.attacks:
                    self.measure_attack(subject, name, clean, out)
                    on_part(out)
        return out
