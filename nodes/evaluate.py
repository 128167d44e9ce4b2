"""Evaluate an encoder inside the graph: attack success rate on the concept, utility on everything else."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..advunlearn.config.attacks import ATTACK_NAMES, DEFAULT_ATTACKS, choose_attacks
from ..advunlearn.config.concept import ConceptConfig
from ..advunlearn.config.evaluation import EvaluateConfig
from .evaluation_settings import DEFAULTS, Evaluation, attack_settings_input, check_attack_settings
from .judges import Judge
from .loaded_files import check_loaded_files
from .status import Status, with_status
from .widgets import output, resolution, schema, seed, settings, widget

if TYPE_CHECKING:
    from ..advunlearn.evaluation.evaluator import Evaluator, Subject
    from ..advunlearn.evaluation.inputs import EvaluationInputs
    from ..advunlearn.evaluation.metrics import Measurement

# Entries of the menu that stand for several attacks or for none.
GROUPS = {"both": DEFAULT_ATTACKS, "all": ("all",), "none": ()}
MENU = ("both", *DEFAULT_ATTACKS, *(name for name in ATTACK_NAMES if name not in DEFAULT_ATTACKS), "all", "none")
UNITS = 100  # of the progress bar, per attack


class EvaluateRobustness(io.ComfyNode):
    """Compare two encoders at the same attack budget."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AdvUnlearnEvaluate",
            display_name="Evaluate Robustness",
            description="Compare two CLIPs: how often each generates the concept (by name, by synonyms, under attack), "
            "and how well it still generates everything else.",
            search_aliases=["attack success rate", "ASR"],
            is_output_node=True,
            inputs=[
                *compared_inputs("clip_before", "clip_after"),
                io.Combo.Input(
                    "attack",
                    options=list(MENU),
                    tooltip="test attacks; both: unlearndiffatk and soft_prefix; all: every attack, slow",
                ),
                widget(EvaluateConfig, "cases", default=DEFAULTS["cases"]),
                widget(EvaluateConfig, "attack_steps", default=DEFAULTS["attack_steps"]),
                # The order refuses the values of earlier workflow files, which the page restores by position.
                seed(EvaluateConfig),
                resolution("size of the images"),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="your own prompts for the concept, one per line (empty: made from its name)",
                ),
                io.String.Input(
                    "retained_prompts",
                    default="",
                    multiline=True,
                    tooltip="your own retained prompts, one per line: prompt | label, with a label of the judge, or "
                    "only a prompt (empty: the miniature's objects with its judge, none with other judges)",
                ),
                Evaluation.Input(
                    "evaluation",
                    optional=True,
                    tooltip="AdvUnlearn Evaluation Settings; without one, the defaults that it shows",
                ),
                attack_settings_input("settings of test attacks; without them, the defaults that their nodes show"),
            ],
            outputs=[
                io.Image.Output("IMAGE", tooltip="one row each: before and after, clean and attacked"),
                output(io.String, "report", tooltip="table of the counts"),
                output(io.String, "scores", tooltip="the report as JSON"),
            ],
        )

    @classmethod
    @with_status
    def execute(
        cls,
        status: Status,
        model: Any,
        clip_before: Any,
        clip_after: Any,
        vae: Any,
        judge: Any,
        attack: str,
        resolution: int,
        prompts: str,
        retained_prompts: str,
        evaluation: Any = None,
        attack_settings: Any = None,
        **values: Any,
    ) -> io.NodeOutput:
        """Evaluate both CLIPs; return images, table and scores.

        Raises AdvUnlearnError for a concept or a label that the judge does not know, and for the settings of attacks
        that do not run.
        """
        from ..advunlearn.evaluation.inputs import EvaluationInputs
        from ..advunlearn.prompts.prompt_files import parse_lines
        from ..advunlearn.reporting import report as tables
        from ..advunlearn.reporting.images import overview
        from . import host

        check_loaded_files(cls.hidden)
        options = {**DEFAULTS, "synonyms": "", **(evaluation or {})}
        inputs = EvaluationInputs(
            prompts=parse_lines(prompts),
            retained=parse_lines(retained_prompts),
            synonyms=parse_lines(options["synonyms"]),
            attack_settings=attack_settings or {},
        )
        with host.enable_gradients():
            status.show("loading the model")
            evaluator, after = make_evaluator(
                status,
                host.make_model(model, clip_before, vae, resolution),
                clip_after,
                judge,
                settings(ConceptConfig, values),
                settings(EvaluateConfig, {**options, **values}),
                inputs,
            )
            names = choose_attacks(GROUPS.get(attack, (attack,)), evaluator.find_missing)
            check_attack_settings(attack_settings, names)
            measured = measure_both(status, evaluator, after, names)
            rows = {
                f"{name}\n{what}": measurement.images[what]
                for name, measurement in measured.items()
                for what in ("clean", *names)
            }
            image = host.to_image(overview(rows))
        models = {name: measurement.to_dict() for name, measurement in measured.items()}
        report = {"concept": evaluator.concept.name, "models": models, **evaluator.describe()}
        return io.NodeOutput(image, tables.format_table(report), json.dumps(report))


def measure_both(status: Status, evaluator: Evaluator, after: Subject, names: Sequence[str]) -> dict[str, Measurement]:
    """Return what an evaluator measures on the original CLIP, "before", and on another one, "after"."""
    from . import host

    bar = host.Bar(2 * UNITS * max(1, len(names)), status.node_id)
    measured = {}
    for i, (name, subject) in enumerate({"before": evaluator.original, "after": after}.items()):
        evaluator.on_progress = show_progress(status, bar, names, f"CLIP {name} erasing: ", i * len(names))
        measured[name] = evaluator.measure(subject, names)
    bar.update(bar.total)
    status.show("done")
    return measured


def compared_inputs(before: str, after: str) -> list[Any]:
    """Return the inputs of a comparison of two CLIPs, whose ids are given: the model, the judge and the concept."""
    return [
        io.Model.Input("model", tooltip="a Stable Diffusion 1.x or SDXL model"),
        io.Clip.Input(before, tooltip="the CLIP before erasing"),
        io.Clip.Input(after, tooltip="the robust CLIP"),
        io.Vae.Input("vae", tooltip="decodes the images for the judge"),
        Judge.Input("judge", tooltip="decides what an image shows"),
        widget(ConceptConfig, "concept"),
        widget(ConceptConfig, "kind"),
    ]


def make_evaluator(
    status: Status,
    original: Any,
    clip: Any,
    judge: Any,
    concept: ConceptConfig,
    config: EvaluateConfig,
    inputs: EvaluationInputs,
) -> tuple[Evaluator, Subject]:
    """Return the evaluator of an adapted model, whose predictions are signs of life, and another CLIP as a subject.

    Raises AdvUnlearnError for a CLIP of another family than the MODEL, and for a concept that the judge does not know.
    """
    from ..advunlearn.evaluation.evaluator import Evaluator, Subject
    from . import host

    original.denoiser.on_predict = status.beat
    subject = Subject(host.make_other_encoder(original, clip), original.denoiser)
    return Evaluator(original, judge, concept, config, inputs), subject


def show_progress(
    status: Status, bar: Any, names: Sequence[str], prefix: str = "", done: int = 0
) -> Callable[[str, int, int], None]:
    """Show that sampling begins; return the callback that shows an attack's steps, `done` attacks after the first."""

    def follow(what: str, step: int, total: int) -> None:
        status.update(f"{prefix}{what}, {step} of {total}")
        bar.update((done + names.index(what)) * UNITS + UNITS * step // total)

    status.show(f"{prefix}sampling without an attack")
    return follow
