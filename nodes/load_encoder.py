"""Load a robust text encoder into a CLIP."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..advunlearn.errors import AdvUnlearnError
from ..advunlearn.formats import released as hub
from . import encoder_list, folders
from .status import Status, refuse, with_status
from .widgets import output, schema

NONE = "none"
EMBEDDINGS = ("allow", "refuse")
PARTNER = "auto"  # the file that was saved together with the chosen one


class LoadRobustCLIP(io.ComfyNode):
    """Replace the CLIP-L of a CLIP, and of SDXL's the CLIP-G, by encoders from files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="AdvUnlearnLoadRobustCLIP",
            display_name="Load Robust CLIP",
            description="Replace the CLIP-L text encoder of a CLIP by a robust one, and SDXL's CLIP-G too if the "
            "file or the file next to it has one. Its other text encoders stay as they are.",
            search_aliases=["unlearn", "erase concept", "safe clip"],
            inputs=_load_inputs(),
            outputs=[
                io.Clip.Output("CLIP", tooltip="a copy of the CLIP with the new encoder"),
                output(
                    io.String,
                    "report",
                    tooltip="what the file states: concept, recipe, scores, base model, and the encoder's hash",
                ),
            ],
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
            return bool(encoder_list.find_entry(encoder))
        except AdvUnlearnError as error:
            return refuse("encoder", error)

    @classmethod
    def fingerprint_inputs(
        cls, encoder: str | None, released: str | None = NONE, second_encoder: str | None = PARTNER, **_: Any
    ) -> Any:
        """Return a value that changes with the files, so that the host loads a changed file again.

        The host passes None for a linked input; then the file is unknown, and a NaN equals no earlier value.
        """
        if encoder is None or released is None or second_encoder is None:
            return float("nan")
        try:
            path = encoder_list.find_entry(encoder) if released == NONE else hub.find_fetched(released, folders.FETCHED)
            paths = [path, find_second(path, second_encoder)] if path else []
        except AdvUnlearnError:
            paths = []
        files = [path.stat() for path in paths if path]
        return (
            encoder,
            released,
            second_encoder,
            *map(str, paths),
            *((file.st_mtime_ns, file.st_size) for file in files),
        )

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
        second_encoder: str = PARTNER,
        strength_clip_g: float = 1.0,
    ) -> io.NodeOutput:
        """Return the CLIP with the encoder, or with both of a pair, and what the file states of it.

        Raises AdvUnlearnError if one does not fit, and if the other file of a pair is missing.
        """
        from . import clip_l, encoder_report, text_encoders

        require_choice(encoder, released, clip, {"strength": strength, "strength_clip_g": strength_clip_g})
        path = encoder_list.find_entry(encoder) if released == NONE else download(released, status)
        second = find_second(path, second_encoder)
        if second is None and second_encoder == PARTNER:
            text_encoders.check_partner(path, clip)
        states = text_encoders.choose_parts(clip, text_encoders.read_parts(path, *([second] if second else [])))
        source = describe_choice(encoder, released, path)
        strengths = {text_encoders.CLIP_L: strength, text_encoders.CLIP_G: strength_clip_g}
        if clip is None:
            robust = text_encoders.make_clip(states, source)
        else:
            robust = text_encoders.replace_parts(clip, states, source, strengths)
        status.show(f"loaded {source}: {text_encoders.describe_parts(states, strengths)}")
        report = encoder_report.describe_encoder(source, path, states)
        return io.NodeOutput(clip_l.refuse_embeddings(robust) if embeddings == "refuse" else robust, report)


def _load_inputs() -> list[Any]:
    """Return the inputs of Load Robust CLIP; their order is part of saved graphs."""
    return [
        io.Combo.Input(
            "encoder",
            options=[*encoder_list.offer_encoders(), NONE],
            tooltip="newest of NAME: the encoder that was saved last under that name. Otherwise an "
            "encoder in models/text_encoders, models/clip, output/clip or models/advunlearn: a file from this "
            "pack (for SDXL either file of the pair NAME_clip_l, NAME_clip_g), CLIPTextModel weights, a "
            "CLIPTextModel folder (its name ends in /), a .pt file of the published code, or a full Stable "
            "Diffusion checkpoint",
        ),
        _strength_input(
            "strength",
            "interpolates CLIP-L's weights: 0 is the input CLIP, 1 the robust encoder, both bit-exact; "
            "below 1 the concept comes back (on the miniature, at 0.5 in 27 of 40 images, at 0.3 in all); "
            "below 0 and above 1 extrapolates",
        ),
        io.Clip.Input(
            "clip",
            optional=True,
            tooltip="the CLIP of an SD 1.x, SDXL, SD3, Flux, HunyuanVideo, HiDream or Kandinsky 5 model. SD "
            "1.x reads nothing else; SDXL and SD3 read CLIP-G (and T5) as well; the last four read "
            "only CLIP-L's pooled vector, and their other encoders decide most. Without one, the "
            "node makes a CLIP for SD 1.x, or, from a pair, for SDXL",
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
        io.Combo.Input(
            "second_encoder",
            options=[PARTNER, NONE, *folders.list_encoders()],
            default=PARTNER,
            optional=True,
            tooltip="SDXL: the file of the other encoder. auto: the one that was saved together with encoder, "
            "NAME_clip_g for NAME_clip_l; an SDXL checkpoint has both",
        ),
        _strength_input(
            "strength_clip_g",
            "SDXL: interpolates CLIP-G's weights, as strength does CLIP-L's, if a CLIP-G is loaded",
            optional=True,
        ),
    ]


def _strength_input(id: str, tooltip: str, optional: bool = False) -> Any:
    return io.Float.Input(id, default=1.0, min=-2.0, max=3.0, step=0.05, optional=optional, tooltip=tooltip)


def describe_choice(encoder: str, released: str, path: pathlib.Path) -> str:
    """Return the name of the chosen encoder for messages; an entry that stands for the newest file gets the file's."""
    if released != NONE:
        return f"the released encoder {released!r}"
    return f"{encoder} ({path.name})" if encoder.startswith(encoder_list.NEWEST) else encoder


def require_choice(encoder: str, released: str, clip: Any, strengths: Mapping[str, float]) -> None:
    """Raise AdvUnlearnError if no encoder is chosen, and for a strength that needs a CLIP where there is none."""
    if encoder == NONE and released == NONE:
        raise AdvUnlearnError(
            "no encoder is chosen: choose one under encoder (Train AdvUnlearn Encoder saves them into output/clip; "
            "others belong into models/text_encoders), or one under released, which is then downloaded"
        )
    for name, strength in strengths.items():
        if clip is None and strength != 1:
            raise AdvUnlearnError(
                f"{name} is {strength}, but there is no CLIP to interpolate with; connect one, or set {name} to 1"
            )


def find_second(path: pathlib.Path, choice: str) -> pathlib.Path | None:
    """Return the file of the other encoder of a pair, by the value of `second_encoder`; None if there is none."""
    from . import text_encoders

    if choice == PARTNER:
        return text_encoders.find_partner(path)
    return None if choice == NONE else folders.find_encoder(choice)


def download(name: str, status: Status) -> pathlib.Path:
    """Return the path of a released encoder; download it first if necessary, with progress and cancel on the node."""
    from . import host

    bar = host.Bar(1, status.node_id)

    def report(done: int, total: int) -> None:
        bar.total = total
        bar.update(done)
        status.update(f"downloading {name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB")

    return hub.fetch_encoder(name, folders.FETCHED, report)
