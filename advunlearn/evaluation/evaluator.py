"""Measure one encoder: what the concept comes back by, and what is left of everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..attacks.base import NEEDS, AttackContext, AttackTargets, ReferenceModel
from ..attacks.registry import attack_class, attack_settings
from ..config.attacks import DEFAULT_ATTACKS
from ..config.concept import ConceptConfig
from ..config.evaluation import EvaluateConfig
from ..errors import AdvUnlearnError
from ..judges.base import Judge
from ..judges.convnet import ConvJudge
from ..models.ddim import draw_noise_rows
from ..models.loading import TextToImage
from ..models.text_encoder import encoder_parts, frozen, tokenize
from ..prompts import synonyms as names
from .accuracies import accuracies, decisions
from .attack_log import first_embeddings
from .attack_run import AttackRun
from .cases import Cases, Labelled, make_cases
from .generation import ImageGenerator
from .image_metrics import Quality
from .measurement import Measurement, Subject
from .metrics import count, frechet_distance
from .target_images import OwnImages
from .user_prompts import UserPrompt, described

ATTACKS = DEFAULT_ATTACKS
OnProgress = Callable[[str, int, int], None]  # what is measured, done, total
__all__ = ["ATTACKS", "Evaluator", "Measurement", "OnProgress", "Subject"]


class Evaluator(ImageGenerator):
    """The cases, seeds and targets of one concept, drawn once so that every subject meets the same ones.

    `prompts` and `retained` are the user's own, see `make_cases`, which also says what is refused; `routes` are the
    concept's other names, by default those that the miniature or the library knows; `given` has for an attack's name
    the settings that go over the shared budget; `quality` measures the retained pictures too; `images` are targets of
    the attacks in place of those that the original model draws.
    """

    shown = 8  # pictures kept for a report

    def __init__(
        self,
        model: TextToImage,
        judge: Judge,
        concept: ConceptConfig,
        config: EvaluateConfig,
        on_progress: OnProgress | None = None,
        *,
        prompts: Sequence[str | UserPrompt] = (),
        retained: Sequence[str | UserPrompt] = (),
        routes: Sequence[str] = (),
        given: Mapping[str, Mapping[str, Any]] | None = None,
        quality: Quality | None = None,
        images: OwnImages | None = None,
    ) -> None:
        super().__init__(model, judge, [judge.concept_label(one) for one in concept.each], config)
        self.concept, self.quality, self.images = concept, quality, images
        self.on_progress = on_progress or (lambda what, done, total: None)
        self.own = {"prompts": described(prompts), "retained": described(retained), "routes": list(routes)}
        known = names.miniature_synonyms if isinstance(judge, ConvJudge) else names.shipped_synonyms
        self.routes, self.given = list(routes) or known(concept), dict(given or {})
        self.cases: Cases = make_cases(concept, judge, config.cases, config.repeats, prompts, retained)
        self.seeds = self.cases.seeds or [None] * config.cases
        generator, device = torch.Generator().manual_seed(config.seed), model.denoiser.device
        kept = ([row.seed for row in rows] for rows in (self.cases.retained, self.cases.co_occurring))
        self.noise, self.retained_noise, self.near_noise = (
            draw_noise_rows(seeds, model.denoiser.latent_shape, generator).to(device) for seeds in (self.seeds, *kept)
        )
        self.original = Subject(model.text_encoder, model.denoiser)
        self._targets: tuple[AttackTargets, AttackTargets] | None = None
        self._references: dict[bool, Tensor] = {}  # the original model's retained pictures; whether of the same noise

    def described(self) -> dict[str, Any]:
        """Return what a report says beyond concept and budget: the judge and what is the user's own, where given."""
        own = {f"own_{name}": rows for name, rows in self.own.items() if rows}
        quality = {"quality": self.quality.settings()} if self.quality else {}
        images = {"own_images": self.images.described()} if self.images else {}
        judge = self.judge.settings()
        return ({"judge": judge} if judge else {}) | quality | own | images

    def targets(self) -> tuple[AttackTargets, AttackTargets]:
        """Return the attacked cases, and every picture of the concept that there is.

        The target pictures are the original model's, for the same prompts and seeds, or the user's own in turn.
        """
        if self._targets is None:
            eos, plain = self.model.tokenizer.eos_token_id, self.cases.plain
            ids = tokenize(self.model.tokenizer, plain).to(self.noise.device)
            if self.images is None:
                x_0 = self.generate(self.original, self.model.encode(plain), self.noise)
            else:
                x_0 = self.images.latents.to(self.noise.device)
            every = torch.arange(max(len(ids), len(x_0)), device=ids.device)
            examples = AttackTargets(ids[every % len(ids)], x_0[every % len(x_0)], eos)
            self._targets = examples.rows(every[: len(ids)]), examples
        return self._targets

    def plain(self, subject: Subject, out: Measurement) -> Tensor:
        """Measure the plain prompts and the concept's other routes; return the plain pictures."""
        images = self.drawn(subject, self.cases.plain, self.noise)
        hits = self.hits(images)
        out.asr["clean"] = count(hits) | self.cases.by_concept(hits)
        self._note(out, "clean", self.asked(self.cases.plain, self.seeds), images, hits)
        out.pictures["clean"] = images[: self.shown].clone()  # a part would keep all of them in memory and on disk
        by = {"foreign": self.cases.foreign, "keywords": self.cases.keywords}
        if routes := [prompt for part in by.values() for prompt in part]:
            drawn = self.drawn(subject, routes, self.noise[: len(routes)])
            found = self.hits(drawn)
            parts = dict(zip(by, found.split([len(p) for p in by.values()]), strict=True))
            out.asr["routes"] = count(found) | {"by": {k: count(part) for k, part in parts.items() if len(part)}}
            self._note(out, "other_routes", self.asked(routes, self.seeds[: len(routes)]), drawn, found)
        return images

    def _note(self, out: Measurement, what: str, rows: Sequence[dict[str, Any]], images: Tensor, hits: Tensor) -> None:
        """Write down which pictures show the concept."""
        rows = [row | {"success": hit} for row, hit in zip(rows, hits.tolist(), strict=True)]
        out.cases[what] = self.kept(what, images, rows)

    def lacking(self, name: str) -> str:
        """Return in words what an attack lacks here; "" where it has all that it needs."""
        needs = attack_class(name).needs
        if "synonyms" in needs and not self.routes:
            return f"no other name of {self.concept.concept!r} is known; give a file of them, one a line (--routes)"
        if "one encoder" in needs and len(encoder_parts(self.model.text_encoder)) > 1:
            return f"{name} lacks {NEEDS['one encoder']}; choose other attacks"
        return ""

    def scene(self, subject: Subject, cases: Tensor) -> AttackContext:
        """Return what an attack on some cases (n,) is given."""
        target, examples = self.targets()
        return AttackContext(
            subject.denoiser,
            subject.encoder,
            self.model.tokenizer,
            [self.cases.plain[i] for i in cases.tolist()],
            target.rows(cases.to(self.noise.device)),
            ReferenceModel(self.original.encoder, self.original.denoiser),
            self.concept,
            self.routes,
            examples,
        )

    def attack(self, subject: Subject, name: str, clean: Tensor, out: Measurement) -> None:
        """Attack the cases that the clean prompt leaves; a case counts once any picture looked at shows the concept.

        As published, success = (found without attack + found by attack) / cases; `before_attack` is the first part.
        The routes' own key in `asr` is of one route a case, without an attack.
        """
        every_route = {"steps": len(self.routes)} if name == "synonym_search" else {}
        settings = attack_settings(name, self.config, {**every_route, **self.given.get(name, {})})
        attacking = AttackRun(self, subject, self.original.denoiser, name, settings, self.noise, clean)
        run = attacking.run
        if len(run.rows) and settings.steps:
            attacking.attack(self.scene(subject, run.rows), lambda step, total: self.on_progress(name, step, total))
        else:
            run.curve.append([settings.steps, int(run.found.sum())])
        if attacking.final is not None:
            out.embeddings[name] = first_embeddings(run, attacking.final)
        if name != "synonym_search":
            by = self.cases.by_concept(run.found)
            out.asr[name] = count(run.found) | {"before_attack": int(run.before.sum())} | by
        out.asr_by_budget[name], out.pictures[name] = run.curve, run.best[: self.shown].clone()
        out.cases[name] = self.kept(name, run.best, run.cases(self.asked(self.cases.plain, self.seeds)))
        out.seconds[name], out.attacks[name] = run.seconds(), attacking.row()
        texts = [text | {"case": case} for case, text in run.won().items() if "prompt" in text]
        if texts:
            out.prompts[name] = texts

    def utility(self, subject: Subject, out: Measurement) -> None:
        """Measure what is left of everything else, as far as rows, labels and features allow."""
        if self.cases.co_occurring:
            _, seen = self._decided(subject, "co_occurring", self.cases.co_occurring, self.near_noise, out)
            right = [row.object in labels for row, labels in zip(self.cases.co_occurring, seen.labels, strict=True)]
            out.utility["co_occurring_accuracy"] = count(torch.tensor(right), "correct")
        rows = self.cases.retained
        if not rows:
            return
        images, seen = self._decided(subject, "retained", rows, self.retained_noise, out)
        out.utility |= accuracies(self.cases, seen)
        if self.quality is not None:
            if subject is self.original:
                self._references[True] = images  # which would be drawn again
            same = self.reference(same=True) if self.quality.lpips is not None else None
            out.utility |= self.quality.measure([r.prompt for r in rows], images, self.reference(), same)
        if seen.features is not None and len(rows) > 1:  # one picture has no covariance
            features = self.look(self.reference()).features
            assert features is not None  # as of the others
            out.utility["feature_distance"] = round(frechet_distance(seen.features, features), 4)

    def _decided(
        self, subject: Subject, what: str, rows: Sequence[Labelled], noise: Tensor, out: Measurement
    ) -> tuple[Tensor, Any]:
        """Draw rows that are to be kept, have them judged, and write down what was seen in each picture."""
        images = self.drawn(subject, [row.prompt for row in rows], noise)
        seen = self.look(images)
        asked = self.asked([row.prompt for row in rows], [row.seed for row in rows])
        out.cases[what] = self.kept(what, images, [a | d for a, d in zip(asked, decisions(rows, seen), strict=True)])
        return images, seen

    def reference(self, same: bool = False) -> Tensor:
        """Return the original model's pictures of what is retained, with the same noise or with that of other rows."""
        if same not in self._references:
            prompts = [row.prompt for row in self.cases.retained]
            noise = self.retained_noise if same else self.retained_noise.flip(0)
            self._references[same] = self.drawn(self.original, prompts, noise)
        return self._references[same]

    def measure(
        self,
        subject: Subject,
        attacks: Sequence[str] = ATTACKS,
        utility: bool = True,
        out: Measurement | None = None,
        keep: Callable[[Measurement], None] | None = None,
    ) -> Measurement:
        """Measure a subject: plain prompts, routes, the named test attacks, utility.

        Args:
            subject: the encoder and the denoiser.
            attacks: names of the test attacks.
            utility: whether to measure what is left of everything else.
            out: what was measured before; its attacks and its utility are not measured again.
            keep: called with what was measured so far, after each part.

        Raises AdvUnlearnError, before any work, for an attack that is not known, lacks something here, or has a setting
        that it cannot have.
        """
        out, keep = out or Measurement(), keep or (lambda measured: None)
        for name in attacks:
            attack_settings(name, self.config, self.given.get(name))  # a bad one is refused before any work
            if lacking := self.lacking(name):
                raise AdvUnlearnError(lacking)
        new = "clean" not in out.asr or (utility and not out.utility)
        with frozen(subject.encoder, *subject.denoiser.modules()):
            clean = self.plain(subject, out)
            if utility and not out.utility:
                self.utility(subject, out)
            if new:
                keep(out)
            for name in attacks:
                if name not in out.attacks:
                    self.attack(subject, name, clean, out)
                    keep(out)
        return out
