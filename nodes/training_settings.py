"""Settings of a training run in nodes of their own; Train AdvUnlearn Encoder runs without them."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from comfy_api.latest import io

from ..advunlearn.config.base import DTYPES
from ..advunlearn.config.io import OutputConfig
from ..advunlearn.config.training import SECTIONS
from .widgets import CATEGORY, output, preset_widget, read_changes, schema, widget

SUBCATEGORY = f"{CATEGORY}/settings"
COMFYUI_DTYPE = "default"
SAMPLE_EVERY = 25  # iterations; smaller than the library's default, since images on a node cost no disk
MODES = ("advunlearn", "fast", "esd", "official")
# Settings that Train AdvUnlearn Encoder shows itself, and those of runs that the nodes do not have.
SHOWN_ELSEWHERE = {
    "concept": ("concept", "kind"),
    # `memory` chooses to offload; `_node_inputs` has `encoders`.
    "train": ("iterations", "seed", "train_method", "encoders", "offload"),
}
NODE_SETTINGS = ("dtype", "sample_every", "encoder_dtype", "keep_every")  # no settings of the library
RULE = (
    "Connected, the node changes exactly what it shows; -1, 'preset' and an empty text leave a setting to the preset."
)

Training = io.Custom("ADVUNLEARN_TRAINING")
Attack = io.Custom("ADVUNLEARN_ATTACK")
Bank = io.Custom("ADVUNLEARN_BANK")


def section_inputs(section: str) -> list[Any]:
    """Return an input for each setting of a section, by default left to the preset."""
    skipped = SHOWN_ELSEWHERE.get(section, ())
    names = [field.name for field in dataclasses.fields(SECTIONS[section]) if field.name not in skipped]  # type: ignore[arg-type]
    return [preset_widget(section, name, only=MODES if name == "mode" else ()) for name in names]


class TrainingSettings(io.ComfyNode):
    """The optimisation: mode, learning rate, batches, loss weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AdvUnlearnTrainingSettings",
            display_name="AdvUnlearn Training Settings",
            category=SUBCATEGORY,
            description=f"Mode, learning rate, batches and loss weights of Train AdvUnlearn Encoder. {RULE}",
            inputs=[*section_inputs("train"), *section_inputs("concept"), *_node_inputs()],
            outputs=[output(Training, "training", tooltip="for the input training of Train AdvUnlearn Encoder")],
        )

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        """Return the settings that differ from the preset's, by section; `node` has those of the node itself."""
        changes = {section: read_changes(SECTIONS[section], values) for section in ("concept", "train")}
        node = {name: values[name] for name in NODE_SETTINGS if name in values}
        return io.NodeOutput({**changes, "node": node})


class SectionSettings(io.ComfyNode):
    """The settings of one section of a run."""

    section: ClassVar[str]
    kind: ClassVar[Any]  # of the output
    description: ClassVar[str]

    @classmethod
    def define_schema(cls) -> io.Schema:
        title = f"{cls.section.title()} Settings"
        return schema(
            node_id=f"AdvUnlearn{title.replace(' ', '')}",
            display_name=f"AdvUnlearn {title}",
            category=SUBCATEGORY,
            description=f"{cls.description} {RULE}",
            inputs=section_inputs(cls.section),
            outputs=[output(cls.kind, cls.section, tooltip=f"for the input {cls.section} of Train AdvUnlearn Encoder")],
        )

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        """Return the settings that differ from the preset's."""
        return io.NodeOutput({cls.section: read_changes(SECTIONS[cls.section], values)})


class AttackSettings(SectionSettings):
    """The adversary inside training."""

    section, kind = "attack", Attack
    description = "The adversary that Train AdvUnlearn Encoder trains against."


class BankSettings(SectionSettings):
    """The trajectory bank."""

    section, kind = "bank", Bank
    description = (
        "The trajectory bank of Train AdvUnlearn Encoder: samples of the model that are taken once and drawn many "
        "times."
    )


def _node_inputs() -> list[Any]:
    """Return the inputs that are no settings of the library."""
    return [
        io.Combo.Input(
            "dtype",
            options=[COMFYUI_DTYPE, *DTYPES],
            optional=True,
            tooltip=f"dtype in which the UNet computes during training ({COMFYUI_DTYPE}: ComfyUI's choice); the "
            "trained weights are always float32",
        ),
        io.Int.Input(
            "sample_every",
            default=SAMPLE_EVERY,
            min=0,
            max=100000,
            optional=True,
            tooltip="show sample images of the concept and of a retained prompt on the node every N iterations "
            "(0: never)",
        ),
        widget(OutputConfig, "encoder_dtype", optional=True),
        widget(OutputConfig, "keep_every", optional=True),
        # Last, so that the values of saved graphs keep their positions.
        preset_widget("train", "encoders"),
    ]
