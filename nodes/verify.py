"""Verify an encoder inside the graph: attacks, compared with thresholds."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io

from ..advunlearn.config.attacks import choose_attacks
from ..advunlearn.config.concept import ConceptConfig
from ..advunlearn.config.evaluation import EvaluateConfig
from ..advunlearn.config.verification import DEFAULT_BUDGET, VERIFY_BUDGETS, VerifyConfig
from .evaluate import UNITS, compared_inputs, make_evaluator, show_progress
from .loaded_files import check_loaded_files
from .status import Status, with_status
from .widgets import output, resolution, schema, settings, synonyms_input, widget


class VerifyRobustCLIP(io.ComfyNode):
    """Compare an encoder's evaluation with thresholds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AdvUnlearnVerify",
            display_name="Verify Robust CLIP",
            description="Attack a robust CLIP and compare the result with thresholds: attack success rate on the "
            "concept, accuracy of everything else.",
            search_aliases=["threshold", "pass or fail", "ASR"],
            is_output_node=True,
            inputs=[
                *compared_inputs("original_clip", "clip"),
                io.Combo.Input(
                    "budget",
                    options=list(VERIFY_BUDGETS),
                    default=DEFAULT_BUDGET,
                    tooltip="quick: two attacks of 40 steps on 20 cases; full: five attacks of 200 steps on 100 cases",
                ),
                widget(VerifyConfig, "max_asr"),
                widget(VerifyConfig, "min_retained"),
                io.String.Input(
                    "retained_prompts",
                    default="",
                    multiline=True,
                    tooltip="your own retained prompts, one per line: prompt | label, with a label of the judge "
                    "(empty: the miniature's objects with its judge; none with other judges, which needs min_retained "
                    "0)",
                ),
                resolution("size of the images"),
                synonyms_input("for the attack synonym_search of the budget full"),
            ],
            outputs=[
                output(io.Boolean, "passed", tooltip="whether every threshold is met"),
                output(io.String, "report", tooltip="a line for each threshold"),
                output(io.String, "result", tooltip="checks, hashes, settings, prompts and metrics as JSON"),
            ],
        )

    @classmethod
    @with_status
    def execute(
        cls,
        status: Status,
        model: Any,
        original_clip: Any,
        clip: Any,
        vae: Any,
        judge: Any,
        budget: str,
        retained_prompts: str,
        resolution: int,
        synonyms: str = "",
        **values: Any,
    ) -> io.NodeOutput:
        """Return whether the CLIP passes, a report, and the result as JSON.

        Raises AdvUnlearnError for a concept or a label that the judge does not know, for a threshold that needs
        retained prompts where there are none, and for a budget that needs synonyms where none are known.
        """
        from ..advunlearn.evaluation.inputs import EvaluationInputs
        from ..advunlearn.evaluation.verification import format_verification, verify
        from ..advunlearn.prompts.prompt_files import parse_lines
        from . import host

        check_loaded_files(cls.hidden)
        attacks, config = VERIFY_BUDGETS[budget]
        with host.enable_gradients():
            status.show("loading the model")
            evaluator, subject = make_evaluator(
                status,
                host.make_model(model, original_clip, vae, resolution),
                clip,
                judge,
                settings(ConceptConfig, values),
                EvaluateConfig(**config),
                EvaluationInputs(retained=parse_lines(retained_prompts), synonyms=parse_lines(synonyms)),
            )
            names = choose_attacks(attacks, evaluator.find_missing)
            bar = host.Bar(UNITS * len(names), status.node_id)
            evaluator.on_progress = show_progress(status, bar, names)
            result = verify(evaluator, subject, names, settings(VerifyConfig, values)) | {"budget": budget}
            bar.update(bar.total)
            status.show("passed" if result["passed"] else "failed")
        return io.NodeOutput(result["passed"], format_verification(result), json.dumps(result))
