"""Measure an encoder inside the graph: what comes back, and what is left of everything else."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io

from ..advunlearn.config.attacks import ATTACK_NAMES, DEFAULT_ATTACKS, chosen_attacks
from ..advunlearn.config.concept import ConceptConfig
from ..advunlearn.config.evaluation import EvaluateConfig
from .judges import Judge
from .widgets import advanced, output, resolution, schema, settings, widget

# Of the menu; every other entry is an attack's own name.
SETS = {"both": DEFAULT_ATTACKS, "all": ("all",), "none": ()}
MENU = ("both", *DEFAULT_ATTACKS, *(name for name in ATTACK_NAMES if name not in DEFAULT_ATTACKS), "all", "none")
PARTS = 100  # of an attack, on the progress bar
DEFAULTS = {
    "cases": 8,
    "attack_steps": 30,
    "judge_interval": 15,
    "repeats": 1,
}  # a graph is looked at, not left overnight


class EvaluateRobustness(io.ComfyNode):
    """Before and after at one budget."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return schema(
            node_id="AdvUnlearnEvaluate",
            display_name="Evaluate Robustness",
            description="Ask two CLIPs for the same concept: by name, by its other names, and under attack; and for "
            "everything else.",
            search_aliases=["attack success rate", "ASR"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="a Stable Diffusion 1.x model"),
                io.Clip.Input("clip_before", tooltip="the CLIP before erasing"),
                io.Clip.Input("clip_after", tooltip="the robust CLIP"),
                io.Vae.Input("vae", tooltip="draws the pictures that the judge looks at"),
                Judge.Input("judge", tooltip="says what a picture shows"),
                widget(ConceptConfig, "concept"),
                widget(ConceptConfig, "kind"),
                io.Combo.Input(
                    "attack",
                    options=list(MENU),
                    tooltip="the test attacks; both: unlearndiffatk and soft_prefix; all of them take a while",
                ),
                widget(EvaluateConfig, "cases", default=DEFAULTS["cases"]),
                widget(EvaluateConfig, "attack_steps", default=DEFAULTS["attack_steps"]),
                widget(EvaluateConfig, "seed"),
                resolution("size of the pictures"),
                widget(EvaluateConfig, "judge_interval", default=DEFAULTS["judge_interval"], fold=True),
                widget(EvaluateConfig, "attack_tokens", fold=True),
                widget(EvaluateConfig, "sampling_steps", fold=True),
                widget(EvaluateConfig, "guidance_scale", fold=True),
                widget(EvaluateConfig, "repeats", default=DEFAULTS["repeats"], fold=True),
                advanced(
                    io.String,
                    "prompts",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="your own prompts that ask for the concept, one a line; empty: made from its name",
                ),
                advanced(
                    io.String,
                    "retained_prompts",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="what is to be kept, one a line: prompt | label, with a label of the judge, or a "
                    "prompt alone; empty: the miniature's own, or nothing with other judges",
                ),
                advanced(
                    io.String,
                    "routes",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="the concept's other names for the attack routes, one a line; empty: those that are known",
                ),
            ],
            outputs=[
                io.Image.Output("IMAGE", tooltip="a row each: before clean and attacked, after clean and attacked"),
                output(io.String, "report", tooltip="the table"),
                output(io.String, "scores", tooltip="the same as JSON"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip_before: Any,
        clip_after: Any,
        vae: Any,
        judge: Any,
        attack: str,
        resolution: int,
        prompts: str = "",
        retained_prompts: str = "",
        routes: str = "",
        **values: Any,
    ) -> io.NodeOutput:
        """Measure both CLIPs; return pictures, table and scores."""
        from ..advunlearn.evaluation.evaluator import Evaluator, Subject
        from ..advunlearn.prompts.prompt_files import parse_lines
        from ..advunlearn.reporting import report as tables
        from ..advunlearn.reporting.images import overview
        from . import clip_l, host

        concept, config = settings(ConceptConfig, values), settings(EvaluateConfig, values)
        report: dict[str, Any] = {"concept": concept.concept, "models": {}}
        rows = {}
        with host.gradients():
            before = host.text_to_image(model, clip_before, vae, resolution)
            evaluator = Evaluator(
                before,
                judge,
                concept,
                config,
                prompts=parse_lines(prompts),
                retained=parse_lines(retained_prompts),
                routes=parse_lines(routes),
            )
            names = chosen_attacks(SETS.get(attack, (attack,)), evaluator.lacking)
            bar = host.Bar(2 * PARTS * max(1, len(names)), cls.hidden.unique_id)
            report |= evaluator.described()
            after = clip_l.text_encoder(clip_after, before.denoiser.device)
            subjects = {"before": evaluator.original, "after": Subject(after, before.denoiser)}
            for i, (name, subject) in enumerate(subjects.items()):

                def follow(what: str, step: int, total: int, i: int = i) -> None:
                    place = names.index(what)
                    bar.update((i * len(names) + place) * PARTS + PARTS * step // total)

                evaluator.on_progress = follow
                measured = evaluator.measure(subject, names)
                report["models"][name] = measured.to_dict()
                rows |= {f"{name}\n{what}": measured.pictures[what] for what in ("clean", *names)}
            bar.update(bar.total)
            image = host.image_of(overview(rows))
        return io.NodeOutput(image, tables.table(report), json.dumps(report))
