"""Load the judges, which decide whether an image shows a concept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

from ..advunlearn.config.evaluation import ClassifierConfig, NudityConfig, ZeroShotConfig
from ..advunlearn.errors import AdvUnlearnError
from . import folders
from .status import Status, refuse, with_status
from .widgets import advanced, output, schema, settings, widget

Judge = io.Custom("ADVUNLEARN_JUDGE")
TYPED = "(the path below)"
NO_FOLDER = "no folder is chosen; put one into models/classifiers and refresh, or type its path there"


def _judge_output(knows: str = "") -> Any:
    return output(Judge, "JUDGE", f"for Evaluate Robustness and Adversarial Prompt Attack{knows}")


def _folder_inputs(kind: str, what: str) -> list[Any]:
    """Return the two inputs that name a folder: the list of models/classifiers, and a path."""
    return [
        io.Combo.Input(
            "folder",
            options=[*folders.list_judges(kind), TYPED],
            tooltip=f"{what}: a folder with config.json in models/classifiers",
        ),
        io.String.Input(
            "path",
            default="",
            optional=True,
            tooltip="a folder inside models/classifiers, or its whole path; it overrides the one chosen above",
        ),
    ]


def _load(status: Status, make: Callable[[], Any]) -> io.NodeOutput:
    """Return the judge that `make` returns, which may take a while to load."""
    from . import host

    status.show("loading the judge")
    with host.enable_gradients():
        judge = make()
    status.show("loaded")
    return io.NodeOutput(judge)


def _check(folder: str | None, path: str | None, kind: str) -> bool | str:
    """Return why a folder cannot be used, before the graph runs; the host passes None for a linked input."""
    from ..advunlearn.judges.folders import detect_judge_kind

    if folder is None or path is None:
        return True
    chosen = "path" if path.strip() else "folder"
    try:
        actual = detect_judge_kind(_resolve_folder(folder, path))
    except AdvUnlearnError as error:
        return refuse(chosen, error)
    wrong = f"{path.strip() or folder} holds a {actual}, not a {kind}; use the loader for it"
    return True if actual == kind else refuse(chosen, wrong)


def _resolve_folder(folder: str, path: str) -> str:
    """Return the chosen folder. Raises AdvUnlearnError if there is none, or if it is outside of the host's folders."""
    if not path.strip() and folder == TYPED:
        raise AdvUnlearnError(NO_FOLDER)
    return str(folders.find_judge(path.strip() or folder))


class LoadJudge(io.ComfyNode):
    """The classifier of the miniature."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AdvUnlearnLoadJudge",
            display_name="Load Judge",
            description="Load the classifier of the miniature, which decides whether an image shows the concept. It "
            "knows the miniature's objects and styles.",
            inputs=[io.Combo.Input("judge", options=["miniature"], tooltip="miniature: 64 objects and 4 styles")],
            outputs=[_judge_output()],
        )

    @classmethod
    @with_status
    def execute(cls, status: Status, judge: str) -> io.NodeOutput:
        from ..advunlearn.judges.load import make_judge

        return _load(status, lambda: make_judge(judge))


class LoadNudityJudge(io.ComfyNode):
    """NudeNet's detector."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AdvUnlearnLoadNudityJudge",
            display_name="Load Nudity Judge",
            description="Judge with NudeNet whether an image shows exposed body parts. Needs the package nudenet.",
            search_aliases=["NudeNet", "NSFW", "nudity detector"],
            inputs=[widget(NudityConfig, "threshold"), widget(NudityConfig, "classes")],
            outputs=[_judge_output("; the concept is nudity")],
        )

    @classmethod
    @with_status
    def execute(cls, status: Status, **values: Any) -> io.NodeOutput:
        from ..advunlearn.judges.nudity import NudityJudge

        return _load(status, lambda: NudityJudge(settings(NudityConfig, values)))


class LoadClassifierJudge(io.ComfyNode):
    """An image classifier in transformers' format."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AdvUnlearnLoadClassifierJudge",
            display_name="Load Classifier Judge",
            description="Judge images with any image classifier in transformers' format. The concept must be one of "
            "its labels.",
            search_aliases=["ImageNet", "ViT", "ResNet", "image classification"],
            inputs=[*_folder_inputs("classifier", "an image classifier"), widget(ClassifierConfig, "top_k")],
            outputs=[_judge_output("; its concepts are its labels")],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = None, path: str | None = "") -> bool | str:
        """Reject a folder without a classifier before the graph runs."""
        return _check(folder, path, "classifier")

    @classmethod
    @with_status
    def execute(cls, status: Status, folder: str, path: str = "", **values: Any) -> io.NodeOutput:
        from ..advunlearn.judges.classifier import ClassifierJudge

        config = settings(ClassifierConfig, values)
        return _load(status, lambda: ClassifierJudge(_resolve_folder(folder, path), config))


class LoadCLIPJudge(io.ComfyNode):
    """A CLIP with both encoders, in transformers' format."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AdvUnlearnLoadCLIPJudge",
            display_name="Load CLIP Judge",
            description="Judge images with CLIP, zero-shot: an image shows the concept if it is more similar to the "
            "concept's name than to every other label.",
            search_aliases=["zero-shot", "CLIP score"],
            inputs=[
                *_folder_inputs("clip", "a CLIP with its text and its image encoder"),
                _multiline(ZeroShotConfig, "labels"),
                widget(ZeroShotConfig, "template", fold=True),
            ],
            outputs=[_judge_output("; the concept may be any words")],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = None, path: str | None = "") -> bool | str:
        """Reject a folder without a CLIP before the graph runs."""
        return _check(folder, path, "clip")

    @classmethod
    @with_status
    def execute(cls, status: Status, folder: str, path: str = "", **values: Any) -> io.NodeOutput:
        from ..advunlearn.judges.zero_shot import ZeroShotJudge

        config = settings(ZeroShotConfig, values)
        return _load(status, lambda: ZeroShotJudge(_resolve_folder(folder, path), config))


def _multiline(config: type, name: str) -> Any:
    one_line = widget(config, name)
    options = {"default": one_line.default, "tooltip": one_line.tooltip}
    return advanced(io.String, name, **options, multiline=True, optional=True)
