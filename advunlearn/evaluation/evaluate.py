"""Measure one encoder: what the concept comes back by, and what is left of everything else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import routes as names
from ..attack_config import DEFAULT_ATTACKS, JUDGED
from ..attacks.base import NEEDS, Attack, Original, Scene, Target
from ..attacks.registry import attack_class, attack_settings, make_attack
from ..config import ConceptConfig, EvaluateConfig
from ..denoisers.counting import counting
from ..dual_encoder import DualTextEncoder
from ..errors import AdvUnlearnError
from ..judges.base import Judge, Seen
from ..judges.convnet import ConvJudge
from ..models import TextToImage
from ..sampling import batch_of, ddim_sample
from ..text_encoder import frozen, tokenize
from .accuracies import accuracies
from .attacked import Attacked, first_embeddings, pick
from .cases import Cases, make_cases
from .measurement import Measurement, Subject
from .metrics import count, frechet_distance
from .quality import Quality

ATTACKS = DEFAULT_ATTACKS
OnProgress = Callable[[str, int, int], None]  # what is measured, done, total
__all__ = ["ATTACKS", "Evaluator", "Measurement", "OnProgress", "Subject"]


class Evaluator:
    """The cases, seeds and targets of one concept, drawn once so that every subject meets the same ones.

    `prompts` and `retained` are the user's own lines, see `make_cases`, which also says what is refused; `routes` are
    the concept's other names, by default those that the miniature or the library knows; `given` has for an attack's
    name the settings that go over the shared budget; `quality` measures the retained pictures too.
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
        prompts: Sequence[str] = (),
        retained: Sequence[str] = (),
        routes: Sequence[str] = (),
        given: Mapping[str, Mapping[str, Any]] | None = None,
        quality: Quality | None = None,
    ) -> None:
        self.model, self.judge, self.concept, self.config = model, judge, concept, config
        self.quality = quality
        self.on_progress = on_progress or (lambda what, done, total: None)
        self.own = {"prompts": list(prompts), "retained": list(retained), "routes": list(routes)}
        known = names.of_miniature if isinstance(judge, ConvJudge) else names.shipped
        self.routes, self.given = list(routes) or known(concept), dict(given or {})
        self.cases: Cases = make_cases(concept, judge, config.cases, config.repeats, prompts, retained)
        self.labels = [judge.concept_label(one) for one in concept.each]
        generator = torch.Generator().manual_seed(config.seed)
        shape = model.denoiser.latent_shape
        self.noise = torch.randn(config.cases, *shape, generator=generator).to(model.denoiser.device)
        self.retained_noise = torch.randn(len(self.cases.retained), *shape, generator=generator).to(self.noise.device)
        self.original = Subject(model.text_encoder, model.denoiser)
        self._targets: Target | None = None
        self._reference: Tensor | None = None  # the original model's retained pictures, with other noise

    def generate(self, subject: Subject, context: Tensor, noise: Tensor) -> Tensor:
        """Return final latents (N, C, h, w) for a conditioning (N, L, D), guided against the subject's empty prompt."""
        empty = self.model.encode([""], subject.encoder)
        size = batch_of(128, noise)
        parts = zip(context.split(size), noise.split(size), strict=True)
        steps, scale = self.config.sampling_steps, self.config.guidance_scale
        return torch.cat([ddim_sample(subject.denoiser, c, empty, z, steps, scale) for c, z in parts])

    def described(self) -> dict[str, Any]:
        """Return what a report says beyond concept and budget: the judge and the user's own lines, where given."""
        judge = self.judge.settings()
        own = {f"own_{name}": rows for name, rows in self.own.items() if rows}
        quality = {"quality": self.quality.settings()} if self.quality else {}
        return ({"judge": judge} if judge else {}) | quality | own

    def look(self, images: Tensor) -> Seen:
        """Judge pictures (N, 3, H, W)."""
        return self.judge.look(images, self.labels[0])

    def hits(self, images: Tensor) -> Tensor:
        """Return which pictures show the concept, or any of several (N,)."""
        return torch.stack([self.judge.look(images, label).shows(label) for label in self.labels]).any(0)

    def pictures(self, subject: Subject, context: Tensor, noise: Tensor) -> Tensor:
        """Draw a conditioning (N, L, D): pictures (N, 3, H, W) in [0, 1], on the CPU as the judge is."""
        return self.model.decode(self.generate(subject, context, noise)).cpu()

    def drawn(self, subject: Subject, prompts: Sequence[str], noise: Tensor) -> Tensor:
        """Draw prompts."""
        return self.pictures(subject, self.model.encode(prompts, subject.encoder), noise)

    def targets(self) -> Target:
        """Return the attacked cases; the target pictures are the original model's, for the same prompts and seeds."""
        if self._targets is None:
            context = self.model.encode(self.cases.plain)
            ids = tokenize(self.model.tokenizer, self.cases.plain).to(self.noise.device)
            x_0 = self.generate(self.original, context, self.noise)
            self._targets = Target(ids, x_0, self.model.tokenizer.eos_token_id)
        return self._targets

    def plain(self, subject: Subject, out: Measurement) -> Tensor:
        """Measure the plain prompts and the concept's other routes; return the plain pictures."""
        images = self.drawn(subject, self.cases.plain, self.noise)
        found = self.hits(images)
        out.asr["clean"] = count(found) | self.cases.by_concept(found)
        by = {"foreign": self.cases.foreign, "keywords": self.cases.keywords}
        routes = self.cases.foreign + self.cases.keywords
        if routes:
            found = self.hits(self.drawn(subject, routes, self.noise[: len(routes)]))
            parts = found.split([len(p) for p in by.values()])
            out.asr["routes"] = count(found) | {"by": {k: count(p) for k, p in zip(by, parts, strict=True) if len(p)}}
        out.pictures["clean"] = images[: self.shown].clone()  # a part would keep all of them in memory and on disk
        return images

    def lacking(self, name: str) -> str:
        """Return in words what an attack lacks here; "" where it has all that it needs."""
        needs = attack_class(name).needs
        if "routes" in needs and not self.routes:
            return f"no other name of {self.concept.concept!r} is known; give a file of them, one a line (--routes)"
        if "one encoder" in needs and isinstance(self.model.text_encoder, DualTextEncoder):
            return f"{name} lacks {NEEDS['one encoder']}; choose other attacks"
        return ""

    def scene(self, subject: Subject, cases: Tensor) -> Scene:
        """Return what an attack on some cases (n,) is given."""
        target, rows = self.targets(), cases.tolist()
        return Scene(
            subject.denoiser, subject.encoder, self.model.tokenizer, [self.cases.plain[i] for i in rows],
            target.rows(cases.to(self.noise.device)), Original(self.original.encoder, self.original.denoiser),
            self.concept, self.routes, target,
        )  # fmt: skip

    def attack(self, subject: Subject, name: str, clean: Tensor, out: Measurement) -> None:
        """Attack the cases that the clean prompt leaves; a case counts once any picture looked at shows the concept.

        As published, success = (found without attack + found by attack) / cases; `before_attack` is the first part.
        """
        every_route = {"steps": len(self.routes)} if name == "routes" else {}
        settings = attack_settings(name, self.config, {**every_route, **self.given.get(name, {})})
        restarts = self.config.restarts if attack_class(name).restarts else 1
        run, looks = Attacked(self.hits(clean), clean.clone(), restarts), 0
        searched, asked, looked = (counting(d) for d in (subject.denoiser, self.original.denoiser, subject.denoiser))
        drawn = replace(subject, denoiser=looked)
        if len(run.rows) and settings.steps:
            scene = self.scene(replace(subject, denoiser=searched), run.rows)
            scene = replace(scene, original=replace(scene.original, denoiser=asked))
            run.began = time.perf_counter()
            attack = make_attack(name, scene, settings, self.config.seed)
            every = 1 if name in JUDGED else self.config.attack_every

            def on_step(step: int, loss: float) -> None:
                nonlocal looks
                self.on_progress(name, step, attack.steps)
                if step % every == 0 or step == attack.steps:
                    looks += 1
                    self.look_at(drawn, attack, run, step)

            attack.run(on_step)
            out.embeddings[name] = first_embeddings(run, attack.found().embeddings)
        else:
            run.curve.append([settings.steps, int(run.found.sum())])
        self.note(name, run, out)
        out.attacks[name] = run.counts() | {
            "steps": run.curve[-1][0], "looks": looks, "settings": settings.to_dict(),
            "forwards": {"attack": searched.forwards + asked.forwards, "looks": looked.forwards},
        }  # fmt: skip

    def look_at(self, subject: Subject, attack: Attack[Any], run: Attacked, step: int) -> None:
        """Draw what an attack stands for now and judge it."""
        began, found = time.perf_counter(), attack.found()
        at = run.open_rows()
        if len(at):
            noise = self.noise[run.rows.to(self.noise.device)] if found.noise is None else found.noise
            images = self.pictures(subject, *pick(at, found.conditioning, noise))
            new = run.saw(step, images, self.hits(images), at)
            texts = attack.texts() if new else []
            for row in new:
                run.note(row, step, texts[row] if texts else {}, found.embeddings[row])
        else:
            run.curve.append([step, int(run.found.sum())])
        run.looking += time.perf_counter() - began

    def note(self, name: str, run: Attacked, out: Measurement) -> None:
        """Write down what an attack did. The routes' own key in `asr` is of one route a case, without an attack."""
        if name != "routes":
            by = self.cases.by_concept(run.found)
            out.asr[name] = count(run.found) | {"before_attack": int(run.before.sum())} | by
        out.asr_by_budget[name], out.pictures[name] = run.curve, run.best[: self.shown].clone()
        out.cases[name], out.seconds[name] = run.cases(self.cases.plain, self.config.seed), run.seconds()
        texts = [text | {"case": case} for case, text in run.won.items() if "prompt" in text]
        if texts:
            out.prompts[name] = texts

    def utility(self, subject: Subject, out: Measurement) -> None:
        """Measure what is left of everything else, as far as rows, labels and features allow."""
        rows = self.cases.retained
        if not rows:
            return
        prompts = [r.prompt for r in rows]
        images = self.drawn(subject, prompts, self.retained_noise)
        seen = self.look(images)
        out.utility |= accuracies(self.cases, seen)
        if self.quality is not None:
            out.utility |= self.quality.measure(prompts, images, self.reference())
        if seen.features is not None and len(rows) > 1:  # one picture has no covariance
            features = self.look(self.reference()).features
            assert features is not None  # as of the others
            out.utility["feature_distance"] = round(frechet_distance(seen.features, features), 4)

    def reference(self) -> Tensor:
        """Return the original model's pictures of what is retained, with the noise of other rows."""
        if self._reference is None:
            prompts = [row.prompt for row in self.cases.retained]
            self._reference = self.drawn(self.original, prompts, self.retained_noise.flip(0))
        return self._reference

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
