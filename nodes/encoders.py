"""Load and save robust text encoders."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from comfy_api.latest import io

from ..advunlearn import __version__
from ..advunlearn.config.io import CONVERSIONS
from ..advunlearn.errors import AdvUnlearnError
from ..advunlearn.formats import released as hub
from . import folders
from .widgets import file_name, output, schema

FORMATS = {kind: text for kind, text in CONVERSIONS.items() if kind != "checkpoint"}  # ComfyUI saves checkpoints
NONE = "none"


class LoadRobustCLIP(io.ComfyNode):
    """Replace CLIP-L by an encoder from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return schema(
            node_id="AdvUnlearnLoadRobustCLIP",
            display_name="Load Robust CLIP",
            description="Put a robust text encoder in place of a model's CLIP-L. Everything else of the CLIP stays.",
            search_aliases=["unlearn", "erase concept", "safe clip"],
            inputs=[
                io.Combo.Input(
                    "encoder",
                    options=[*folders.encoder_files(), NONE],
                    tooltip="an encoder in models/text_encoders, models/clip, output/clip or models/advunlearn: a file "
                    "of this pack, a CLIPTextModel's weights or folder (its name ends in /), the published trainer's "
                    ".pt, or a full Stable Diffusion checkpoint",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-2.0,
                    max=3.0,
                    step=0.05,
                    tooltip="0 is the CLIP as it came, 1 the robust encoder, both exactly; between and beyond: a line",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="the CLIP of SD 1.x, SDXL, SD3, Flux or HunyuanVideo; without one: a CLIP for SD 1.x",
                ),
                io.Combo.Input(
                    "released",
                    options=[NONE, *hub.RELEASED_ENCODERS],
                    default=NONE,
                    optional=True,
                    tooltip="in place of encoder: one that the method's authors released, fetched from "
                    f"huggingface.co/{hub.RELEASED_REPO} into models/advunlearn (up to 500 MB) the first time the "
                    "node runs",
                ),
            ],
            outputs=[io.Clip.Output("CLIP", tooltip="the CLIP with its CLIP-L replaced; the input is unchanged")],
        )

    @classmethod
    def validate_inputs(cls, encoder: str | None = None, released: str | None = NONE) -> bool | str:
        """Refuse a file that is not there before the graph runs; None is a name that a link brings."""
        if released not in (None, NONE, *hub.RELEASED_ENCODERS):
            return f"no released encoder is called {released!r}; there are {', '.join(hub.RELEASED_ENCODERS)}"
        if released != NONE or encoder is None:
            return True
        try:
            return "choose an encoder, or a released one" if encoder == NONE else bool(folders.encoder_path(encoder))
        except AdvUnlearnError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, encoder: str, released: str = NONE, **_: Any) -> Any:
        """Load again when the file has changed under its name."""
        try:
            path = (
                folders.encoder_path(encoder or "") if released == NONE else hub.find_fetched(released, folders.FETCHED)
            )
        except AdvUnlearnError:
            path = None
        status = path and path.stat()
        return (encoder, released, status.st_mtime_ns, status.st_size) if status else (encoder, released)

    @classmethod
    def execute(cls, encoder: str, strength: float, clip: Any = None, released: str = NONE) -> io.NodeOutput:
        """Return the patched CLIP."""
        from ..advunlearn.formats.text_encoders import read_encoder
        from . import clip_l

        if clip is None and strength != 1:
            raise AdvUnlearnError(
                f"strength is {strength} but there is no CLIP to mix with; connect one, or set it to 1"
            )
        path = folders.encoder_path(encoder) if released == NONE else fetched(released)
        tensors, _ = read_encoder(path)
        source = encoder if released == NONE else f"the released encoder {released!r}"
        if clip is None:
            clip_l.check(tensors, source)
            return io.NodeOutput(clip_l.clip_from(tensors))
        return io.NodeOutput(clip_l.with_encoder(clip, tensors, strength, source))


def fetched(name: str) -> pathlib.Path:
    """Return a released encoder's weights, fetched with progress on the node unless they are there; cancel works."""
    from . import host

    bar = host.Bar(1)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done)

    return hub.fetch_encoder(name, folders.FETCHED, show)


class SaveRobustCLIP(io.ComfyNode):
    """Write the CLIP-L of a CLIP in one of three forms."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return schema(
            node_id="AdvUnlearnSaveRobustCLIP",
            display_name="Save Robust CLIP",
            description="Save the CLIP-L text encoder of a CLIP, patches included.",
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="the CLIP whose CLIP-L is saved"),
                io.String.Input(
                    "name", default="robust_clip", tooltip="file name in output/clip, of a LoRA in output/loras"
                ),
                io.Combo.Input(
                    "format", options=list(FORMATS), tooltip="; ".join(f"{k}: {v}" for k, v in FORMATS.items())
                ),
                io.Int.Input("rank", default=32, min=1, max=768, tooltip="rank of the LoRA; the residual is reported"),
                io.Clip.Input("base", optional=True, tooltip="the CLIP before training, for a LoRA"),
            ],
            outputs=[
                output(io.String, "encoder_name", tooltip="its name in Load Robust CLIP; of a LoRA its file name"),
                output(io.String, "report", tooltip="what was written, and what a LoRA left out"),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, name: str, format: str, rank: int, base: Any = None) -> io.NodeOutput:
        """Save; return the name and a report."""
        import torch

        from ..advunlearn.formats.lora import extract_lora, save_lora
        from ..advunlearn.formats.text_encoders import save_encoder, save_encoder_folder
        from . import clip_l, host

        if wrong := file_name(name):
            raise AdvUnlearnError(wrong)
        path, listed = folders.new_path(name, "loras" if format == "lora" else "clip")
        if format == "lora":
            if base is None:
                raise AdvUnlearnError("a LoRA is a difference: connect the CLIP before training to base")
            made = extract_lora(clip_l.state_of(base), clip_l.state_of(clip), rank, clip_l.lora_start(base))
            save_lora(path, made, about(cls.hidden))
            return io.NodeOutput(listed, f"{path}: LoRA of rank {rank}, residual {made.residual:.1%} of the difference")
        with host.gradients():
            encoder = clip_l.text_encoder(clip, torch.device("cpu"))
            if format == "diffusers":
                path = save_encoder_folder(path.with_suffix(""), encoder, about(cls.hidden))
                listed = pathlib.PurePath(listed).with_suffix("").as_posix() + "/"
                return io.NodeOutput(listed, f"{path}: CLIPTextModel folder")
            save_encoder(path, encoder, about(cls.hidden))
        return io.NodeOutput(listed, f"{path}: CLIP-L text encoder")


def about(hidden: Any) -> dict[str, str]:
    """Return what a saved file says of itself: the version, and the graph that made it, as the host's own savers do."""
    from comfy.cli_args import args

    graph = {} if args.disable_metadata else {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}
    return {
        "advunlearn.version": __version__,
        "advunlearn.source": "Save Robust CLIP",
        **{name: json.dumps(value) for name, value in graph.items()},
    }
