"""Save the text encoders of a CLIP."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from comfy_api.latest import io

from ..advunlearn import __version__
from ..advunlearn.config.io import CONVERSIONS
from ..advunlearn.errors import AdvUnlearnError
from ..advunlearn.files import find_name_fault
from . import folders
from .status import Status, refuse, with_status
from .widgets import output, schema

# ComfyUI saves checkpoints itself, and the published code does not run in it.
FORMATS = {kind: text for kind, text in CONVERSIONS.items() if kind not in ("checkpoint", "pt")}


class SaveRobustCLIP(io.ComfyNode):
    """Save the CLIP-L of a CLIP, and SDXL's CLIP-G, in one of three formats."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AdvUnlearnSaveRobustCLIP",
            display_name="Save Robust CLIP",
            description="Save the CLIP-L text encoder of a CLIP, and SDXL's CLIP-G next to it, including LoRAs and "
            "other patches.",
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="the CLIP whose CLIP-L is saved, and for SDXL its CLIP-G"),
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

        status.show("saving")
        with folders.lock_name(name):
            if format == "lora":
                saved = save_lora_file(clip, base, name, rank, file_metadata(cls.hidden))
            else:
                with host.enable_gradients():
                    saved = save_clip(clip, name, format, file_metadata(cls.hidden))
        status.show(f"saved as {saved[0]}")
        return saved


def save_lora_file(clip: Any, base: Any, name: str, rank: int, metadata: dict[str, str]) -> io.NodeOutput:
    """Save the difference between two CLIPs as a LoRA.

    Raises AdvUnlearnError without `base`, and for one that is of another family.
    """
    from ..advunlearn.formats.lora import Lora, extract_lora, save_lora
    from . import clip_l, text_encoders

    if base is None:
        raise AdvUnlearnError("a LoRA is the difference between two encoders; connect the CLIP before training to base")
    if text_encoders.is_sdxl(base) != text_encoders.is_sdxl(clip):
        raise AdvUnlearnError(
            "one of clip and base is SDXL's, the other is not; connect the CLIP before training to base"
        )
    path, listed = folders.new_path(name, "loras")
    tensors, residuals = {}, []
    for part in text_encoders.list_parts(base):
        states = (clip_l.read_state(each, part) for each in (base, clip))
        lora = extract_lora(*states, rank, clip_l.find_lora_prefix(base, part))
        tensors |= lora.tensors
        residuals.append(lora.residual)
    save_lora(path, Lora(tensors, max(residuals)), metadata)
    shown = " and ".join(f"{residual:.1%}" for residual in residuals)
    return io.NodeOutput(listed, f"{path}: LoRA of rank {rank}, residual {shown} of the difference")


def save_clip(clip: Any, name: str, format: str, metadata: dict[str, str]) -> io.NodeOutput:
    """Save the CLIP-L of a CLIP, and for SDXL its CLIP-G, as files or folders."""
    import torch

    from ..advunlearn.formats.text_encoders import save_encoder, save_encoder_folder
    from . import clip_l, text_encoders

    files = text_encoders.new_paths(name, text_encoders.list_parts(clip))
    report = []
    for part, (path, _) in files.items():
        encoder = clip_l.make_part(clip, part, torch.device("cpu"))
        if format == "diffusers":
            folder = save_encoder_folder(path.with_suffix(""), encoder, metadata)
            report.append(f"{folder}: {type(encoder).__name__} folder")
        else:
            report.append(f"{save_encoder(path, encoder, metadata)}: {text_encoders.TITLES[part]} text encoder")
    listed = next(iter(files.values()))[1]
    if format == "diffusers":
        listed = pathlib.PurePath(listed).with_suffix("").as_posix() + "/"
    return io.NodeOutput(listed, "\n".join(report))


def file_metadata(hidden: Any) -> dict[str, str]:
    """Return the metadata of a saved file: version and graph, which the host's own save nodes store too."""
    from comfy.cli_args import args

    graph = {} if args.disable_metadata else {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}
    return {
        "advunlearn.version": __version__,
        "advunlearn.source": "Save Robust CLIP",
        **{name: json.dumps(value) for name, value in graph.items()},
    }
