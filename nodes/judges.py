"""Load what says whether a picture shows a concept."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..advunlearn.config.evaluation import ClassifierConfig, NudityConfig, ZeroShotConfig
from ..advunlearn.errors import AdvUnlearnError
from . import folders
from .widgets import advanced, output, schema, settings, widget

Judge = io.Custom("ADVUNLEARN_JUDGE")
TYPED = "(the path below)"
NOWHERE = "no folder is chosen; put one into models/classifiers and refresh, or type its path"


def _judge(tooltip: str = "for Evaluate Robustness") -> Any:
    return output(Judge, "JUDGE", tooltip)


def _folder_inputs(kind: str, what: str) -> list[Any]:
    """Return the two ways to name a folder: the host's list, and a path."""
    return [
        io.Combo.Input(
            "folder",
            options=[*folders.judge_folders(kind), TYPED],
            tooltip=f"{what}, a folder with config.json in models/classifiers",
        ),
        io.String.Input(
            "path",
            default="",
            optional=True,
            tooltip="a folder elsewhere on this machine; wins over the one chosen above",
        ),
    ]


def _check(folder: str | None, path: str | None, kind: str) -> bool | str:
    """Say why a folder cannot be read before the graph runs; None is what a link brings."""
    from ..advunlearn.judges.folders import kind_of

    if folder is None or path is None:
        return True
    try:
        found = kind_of(_place(folder, path))
    except AdvUnlearnError as error:
        return str(error)
    return True if found == kind else f"{path.strip() or folder} holds a {found}, not a {kind}: take that one's loader"


def _place(folder: str, path: str) -> str:
    """Return the folder that was meant. Raises AdvUnlearnError when none was."""
    if not path.strip() and folder == TYPED:
        raise AdvUnlearnError(NOWHERE)
    return path.strip() or str(folders.judge_folder(folder))


class LoadJudge(io.ComfyNode):
    """The classifier that is shipped."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return schema(
            node_id="AdvUnlearnLoadJudge",
            display_name="Load Judge",
            description="Load the classifier that decides whether a picture shows the concept. The one that is shipped "
            "knows the miniature's objects and styles.",
            inputs=[io.Combo.Input("judge", options=["miniature"], tooltip="miniature: 64 objects and 4 styles")],
            outputs=[_judge()],
        )

    @classmethod
    def execute(cls, judge: str) -> io.NodeOutput:
        """Return the judge."""
        from ..advunlearn.judges.load import load
        from . import host

        with host.gradients():
            return io.NodeOutput(load(judge))


class LoadNudityJudge(io.ComfyNode):
    """NudeNet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return schema(
            node_id="AdvUnlearnLoadNudityJudge",
            display_name="Load Nudity Judge",
            description="Judge pictures with NudeNet: do they show exposed parts of a body? Needs the package nudenet.",
            search_aliases=["NudeNet", "NSFW", "nudity detector"],
            inputs=[widget(NudityConfig, "threshold"), widget(NudityConfig, "classes")],
            outputs=[_judge("for Evaluate Robustness; its concept is nudity")],
        )

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        """Return the judge."""
        from ..advunlearn.judges.nudity import NudityJudge

        return io.NodeOutput(NudityJudge(settings(NudityConfig, values)))


class LoadClassifierJudge(io.ComfyNode):
    """An image classifier of transformers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return schema(
            node_id="AdvUnlearnLoadClassifierJudge",
            display_name="Load Classifier Judge",
            description="Judge pictures with any image classifier in a transformers folder. The concept is one of its "
            "labels.",
            search_aliases=["ImageNet", "ViT", "ResNet", "image classification"],
            inputs=[*_folder_inputs("classifier", "an image classifier"), widget(ClassifierConfig, "top_k")],
            outputs=[_judge("for Evaluate Robustness; its concepts are its labels")],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = None, path: str | None = "") -> bool | str:
        """Refuse what is no classifier's folder."""
        return _check(folder, path, "classifier")

    @classmethod
    def execute(cls, folder: str, path: str = "", **values: Any) -> io.NodeOutput:
        """Return the judge."""
        from ..advunlearn.judges.classifier import ClassifierJudge
        from . import host

        with host.gradients():
            return io.NodeOutput(ClassifierJudge(_place(folder, path), settings(ClassifierConfig, values)))


class LoadCLIPJudge(io.ComfyNode):
    """A whole CLIP of transformers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return schema(
            node_id="AdvUnlearnLoadCLIPJudge",
            display_name="Load CLIP Judge",
            description="Judge pictures with CLIP, untrained: a picture shows the concept when its name lies nearer to "
            "it than every other label's.",
            search_aliases=["zero-shot", "CLIP score"],
            inputs=[
                *_folder_inputs("clip", "a CLIP with both its towers"),
                _multiline(ZeroShotConfig, "labels"),
                widget(ZeroShotConfig, "template", fold=True),
            ],
            outputs=[_judge("for Evaluate Robustness; its concepts are any words")],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = None, path: str | None = "") -> bool | str:
        """Refuse what is no CLIP's folder."""
        return _check(folder, path, "clip")

    @classmethod
    def execute(cls, folder: str, path: str = "", **values: Any) -> io.NodeOutput:
        """Return the judge."""
        from ..advunlearn.judges.zero_shot import ZeroShotJudge
        from . import host

        with host.gradients():
            return io.NodeOutput(ZeroShotJudge(_place(folder, path), settings(ZeroShotConfig, values)))


def _multiline(config: type, name: str) -> Any:
    made = widget(config, name)
    return advanced(io.String, name, default=made.default, multiline=True, optional=True, tooltip=made.tooltip)
