"""Load and save robust text encoders."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from comfy_api.latest import io

from ..advunlearn import __version__
from ..advunlearn.config.io import CONVERSIONS
from ..advunlearn.errors import AdvUnlearnError
from ..advunlearn.files import find_name_fault
from ..advunlearn.formats import released as hub
from . import folders
from .status import Status, refuse, with_status
from .widgets import output, schema

# ComfyUI saves checkpoints itself, and the published code does not run in it.
FORMATS = {kind: text for kind, text in CONVERSIONS.items() if kind not in ("checkpoint", "pt")}
NONE = "none"
EMBEDDINGS = ("allow", "refuse")


class LoadRobustCLIP(io.ComfyNode):
    """Replace the CLIP-L of a CLIP by an encoder from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AdvUnlearnLoadRobustCLIP",
            display_name="Load Robust CLIP",
            description="Replace the CLIP-L text encoder of a CLIP by a robust one. Its other text encoders stay "
            "as they are.",
            search_aliases=["unlearn", "erase concept", "safe clip"],
            inputs=[
                io.Combo.Input(
                    "encoder",
                    options=[*folders.list_encoders(), NONE],
                    tooltip="an encoder in models/text_encoders, models/clip, output/clip or models/advunlearn: a file "
                    "from this pack, CLIPTextModel weights, a CLIPTextModel folder (its name ends in /), a .pt file of "
                    "the published code, or a full Stable Diffusion checkpoint",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-2.0,
                    max=3.0,
                    step=0.05,
                    tooltip="interpolates the weights: 0 is the input CLIP, 1 the robust encoder, both bit-exact; "
                    "below 1 the concept comes back (on the miniature, at 0.5 in 27 of 40 images, at 0.3 in all); "
                    "below 0 and above 1 extrapolates",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="the CLIP of an SD 1.x, SDXL, SD3, Flux or HunyuanVideo model; without one, the node makes "
                    "a CLIP for SD 1.x",
                ),
                io.Combo.Input(
                    "released",
                    options=[NONE, *hub.RELEASED_ENCODERS],
                    default=NONE,
                    optional=True,
                    tooltip="instead of encoder: one released by the authors of the method, downloaded from "
                    f"huggingface.co/{hub.RELEASED_REPO} into models/advunlearn (up to 500 MB) the first time the "
                    "node runs",
                ),
                io.Combo.Input(
                    "embeddings",
                    options=list(EMBEDDINGS),
                    default=EMBEDDINGS[0],
                    optional=True,
                    tooltip="refuse: embedding:NAME in a prompt is read as plain text, so that a prompt has only what "
                    "can be typed; concept inversion and soft prefixes are then out of its reach",
                ),
            ],
            outputs=[io.Clip.Output("CLIP", tooltip="a copy of the CLIP with the new CLIP-L")],
        )

    @classmethod
    def validate_inputs(cls, encoder: str | None = None, released: str | None = NONE) -> bool | str:
        """Reject a missing file before the graph runs; the host passes None for a linked input.

        No choice at all is refused when the node runs: a new node on a host without encoders has none to offer.
        """
        if released not in (None, NONE, *hub.RELEASED_ENCODERS):
            known = ", ".join(hub.RELEASED_ENCODERS)
            return refuse("released", f"there is no released encoder {released!r}; choose one of {known}")
        if released != NONE or encoder in (None, NONE):
            return True
        try:
            return bool(folders.find_encoder(encoder))
        except AdvUnlearnError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, encoder: str | None, released: str | None = NONE, **_: Any) -> Any:
        """Return a value that changes with the file, so that the host loads a changed file again.

        The host passes None for a linked input; then the file is unknown, and a NaN equals no earlier value.
        """
        if encoder is None or released is None:
            return float("nan")
        try:
            path = folders.find_encoder(encoder) if released == NONE else hub.find_fetched(released, folders.FETCHED)
        except AdvUnlearnError:
            path = None
        file = path and path.stat()
        return (encoder, released, file.st_mtime_ns, file.st_size) if file else (encoder, released)

    @classmethod
    @with_status
    def execute(
        cls,
        status: Status,
        encoder: str,
        strength: float,
        clip: Any = None,
        released: str = NONE,
        embeddings: str = EMBEDDINGS[0],
    ) -> io.NodeOutput:
        """Return the CLIP with the encoder. Raises AdvUnlearnError if the encoder does not fit."""
        from ..advunlearn.formats.text_encoders import read_encoder
        from . import clip_l

        if encoder == NONE and released == NONE:
            raise AdvUnlearnError(
                "no encoder is chosen: choose one under encoder (Train AdvUnlearn Encoder saves them into output/clip; "
                "others belong into models/text_encoders), or one under released, which is then downloaded"
            )
        if clip is None and strength != 1:
            raise AdvUnlearnError(
                f"strength is {strength}, but there is no CLIP to interpolate with; connect one, or set strength to 1"
            )
        path = folders.find_encoder(encoder) if released == NONE else download(released, status)
        tensors, _ = read_encoder(path)
        source = encoder if released == NONE else f"the released encoder {released!r}"
        if clip is None:
            clip_l.check(tensors, source)
            robust = clip_l.make_clip(tensors)
        else:
            robust = clip_l.replace_encoder(clip, tensors, strength, source)
        status.show(f"loaded {source}")
        return io.NodeOutput(clip_l.refuse_embeddings(robust) if embeddings == "refuse" else robust)


def download(name: str, status: Status) -> pathlib.Path:
    """Return the path of a released encoder; download it first if necessary, with progress and cancel on the node."""
    from . import host

    bar = host.Bar(1, status.node_id)

    def report(done: int, total: int) -> None:
        bar.total = total
        bar.update(done)
        status.update(f"downloading {name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB")

    return hub.fetch_encoder(name, folders.FETCHED, report)


class SaveRobustCLIP(io.ComfyNode):
    """Save the CLIP-L of a CLIP in one of three formats."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AdvUnlearnSaveRobustCLIP",
            display_name="Save Robust CLIP",
            description="Save the CLIP-L text encoder of a CLIP, including LoRAs and other patches.",
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="the CLIP whose CLIP-L is saved"),
                io.String.Input(
                    "name", default="robust_clip", tooltip="file name, in output/clip (a LoRA: in output/loras)"
                ),
                io.Combo.Input(
                    "format", options=list(FORMATS), tooltip="; ".join(f"{k}: {v}" for k, v in FORMATS.items())
                ),
                io.Int.Input(
                    "rank",
                    default=32,
                    min=1,
                    max=768,
                    tooltip="rank of the LoRA; the report has the error of the approximation",
                ),
                io.Clip.Input("base", optional=True, tooltip="the CLIP before training; only for format lora"),
            ],
            outputs=[
                output(
                    io.String,
                    "encoder_name",
                    tooltip="the name of the saved encoder in Load Robust CLIP; the file name of a LoRA",
                ),
                output(io.String, "report", tooltip="path and format of the file, and the error of a LoRA"),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        """Reject an invalid name before the graph runs; the host passes None for a linked input."""
        fault = name is not None and find_name_fault(name, folders=True)
        return refuse("name", fault) if fault else True

    @classmethod
    @with_status
    def execute(cls, status: Status, clip: Any, name: str, format: str, rank: int, base: Any = None) -> io.NodeOutput:
        """Save the encoder; return its name and a report.

        Raises AdvUnlearnError for an invalid name, and for a LoRA without `base`.
        """
        from . import host

        with folders.lock_name(name):
            if format == "lora":
                return save_lora_file(clip, base, name, rank, file_metadata(cls.hidden))
            with host.enable_gradients():
                return save_clip(clip, name, format, file_metadata(cls.hidden))


def save_lora_file(clip: Any, base: Any, name: str, rank: int, metadata: dict[str, str]) -> io.NodeOutput:
    """Save the difference between two CLIPs as a LoRA. Raises AdvUnlearnError without `base`."""
    from ..advunlearn.formats.lora import extract_lora, save_lora
    from . import clip_l

    if base is None:
        raise AdvUnlearnError("a LoRA is the difference between two encoders; connect the CLIP before training to base")
    path, listed = folders.new_path(name, "loras")
    lora = extract_lora(clip_l.read_state(base), clip_l.read_state(clip), rank, clip_l.find_lora_prefix(base))
    save_lora(path, lora, metadata)
    return io.NodeOutput(listed, f"{path}: LoRA of rank {rank}, residual {lora.residual:.1%} of the difference")


def save_clip(clip: Any, name: str, format: str, metadata: dict[str, str]) -> io.NodeOutput:
    """Save the CLIP-L of a CLIP as a file or a folder."""
    import torch

    from ..advunlearn.formats.text_encoders import save_encoder, save_encoder_folder
    from . import clip_l

    path, listed = folders.new_path(name)
    encoder = clip_l.make_text_encoder(clip, torch.device("cpu"))
    if format == "diffusers":
        path = save_encoder_folder(path.with_suffix(""), encoder, metadata)
        listed = pathlib.PurePath(listed).with_suffix("").as_posix() + "/"
        return io.NodeOutput(listed, f"{path}: CLIPTextModel folder")
    save_encoder(path, encoder, metadata)
    return io.NodeOutput(listed, f"{path}: CLIP-L text encoder")


def file_metadata(hidden: Any) -> dict[str, str]:
    """Return the metadata of a saved file: version and graph, which the host's own save nodes store too."""
    from comfy.cli_args import args

    graph = {} if args.disable_metadata else {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}
    return {
        "advunlearn.version": __version__,
        "advunlearn.source": "Save Robust CLIP",
        **{name: json.dumps(value) for name, value in graph.items()},
    }
