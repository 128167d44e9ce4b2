"""Settings of an evaluation and of single test attacks in nodes of their own, which show what is used without them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from comfy_api.latest import io

from ..advunlearn.config.attacks import (
    AttackConfig,
    CCEConfig,
    MMAConfig,
    P4DConfig,
    PEZConfig,
    RingABellConfig,
    SoftPrefixConfig,
    UnlearnDiffAtkConfig,
)
from ..advunlearn.config.evaluation import EvaluateConfig
from ..advunlearn.errors import AdvUnlearnError
from .status import Status, with_status
from .training_settings import SUBCATEGORY
from .widgets import output, schema, settings, synonyms_input, widget

# Smaller than the library's defaults: people wait for a graph.
DEFAULTS = {"cases": 8, "attack_steps": 30, "judge_interval": 15, "repeats": 1}
BUDGET = ("judge_interval", "attack_tokens", "sampling_steps", "guidance_scale", "repeats", "restarts")

Evaluation = io.Custom("ADVUNLEARN_EVALUATION")
TestAttack = io.Custom("ADVUNLEARN_TEST_ATTACK")
SHOWN_ELSEWHERE = ("steps", "tokens")  # of the attack: the node that runs it has them
Settings = Mapping[str, Mapping[str, Any]]  # by attack


def attack_settings_input(tooltip: str) -> Any:
    """Return the optional input for the settings of test attacks."""
    return TestAttack.Input("attack_settings", optional=True, tooltip=tooltip)


class TestAttackSettings(io.ComfyNode):
    """The settings of one test attack, or of several that share them."""

    title: ClassVar[str]
    attacks: ClassVar[tuple[str, ...]]
    config: ClassVar[type[AttackConfig]]

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = " and ".join(cls.attacks)
        return schema(
            node_id=f"AdvUnlearn{cls.title.replace(' ', '').replace('-', '')}Settings",
            display_name=f"{cls.title} Settings",
            category=SUBCATEGORY,
            description=f"The settings of {names}, for Adversarial Prompt Attack and Evaluate Robustness. Steps and "
            "tokens are on those nodes.",
            search_aliases=["attack settings", *cls.attacks],
            inputs=[
                *(
                    cls._make_widget(field.name)
                    for field in dataclasses.fields(cls.config)
                    if field.name not in SHOWN_ELSEWHERE
                ),
                TestAttack.Input("more", optional=True, tooltip="the settings of another attack, for an evaluation"),
            ],
            outputs=[output(TestAttack, "attack_settings", tooltip=f"settings of {names}")],
        )

    @classmethod
    @with_status
    def execute(cls, status: Status, more: Settings | None = None, **values: Any) -> io.NodeOutput:
        """Return the settings by attack. Raises AdvUnlearnError for values that do not go together."""
        own = settings(cls.config, values).to_dict()
        chosen = {name: own[name] for name in values}
        return io.NodeOutput({**(more or {}), **dict.fromkeys(cls.attacks, chosen)})

    @classmethod
    def _make_widget(cls, name: str) -> Any:
        """Return the input of a setting; its default is that of the evaluation where that has one."""
        shared = cls.config.shared.get(name)
        default = getattr(EvaluateConfig(), shared) if shared else None
        return widget(cls.config, name, default=default, optional=True)


class UnlearnDiffAtkSettings(TestAttackSettings):
    title, attacks, config = "UnlearnDiffAtk", ("unlearndiffatk",), UnlearnDiffAtkConfig


class SoftPrefixSettings(TestAttackSettings):
    title, attacks, config = "Soft Prefix", ("soft_prefix",), SoftPrefixConfig


class P4DSettings(TestAttackSettings):
    title, attacks, config = "P4D", ("p4d_n", "p4d_k"), P4DConfig


class PEZSettings(TestAttackSettings):
    title, attacks, config = "PEZ", ("pez",), PEZConfig


class RingABellSettings(TestAttackSettings):
    title, attacks, config = "Ring-A-Bell", ("ring_a_bell",), RingABellConfig


class MMASettings(TestAttackSettings):
    title, attacks, config = "MMA", ("mma",), MMAConfig


class CCESettings(TestAttackSettings):
    title, attacks, config = "CCE", ("cce",), CCEConfig


def check_attack_settings(given: Settings | None, attacks: Sequence[str]) -> Settings:
    """Return the connected settings. Raises AdvUnlearnError if all of them are of other attacks than those that run."""
    if given and not set(given) & set(attacks):
        raise AdvUnlearnError(
            f"attack_settings has the settings of {', '.join(given)}, but the attack is {', '.join(attacks) or 'none'};"
            " connect the settings node of that attack, or choose the other one"
        )
    return given or {}


class EvaluationSettings(io.ComfyNode):
    """The rest of an evaluation's budget."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AdvUnlearnEvaluationSettings",
            display_name="AdvUnlearn Evaluation Settings",
            category=SUBCATEGORY,
            description="Sampling, attack budget and synonyms of Evaluate Robustness.",
            inputs=[
                *(widget(EvaluateConfig, name, default=DEFAULTS.get(name), optional=True) for name in BUDGET),
                synonyms_input("for the attack synonym_search"),
            ],
            outputs=[output(Evaluation, "evaluation", tooltip="for the input evaluation of Evaluate Robustness")],
        )

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        """Return the settings by name."""
        return io.NodeOutput(values)
