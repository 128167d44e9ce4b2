"""How the shipped workflows stand on the screen: steps as groups, a note that says what to do first, model links.

Each opens at the zoom that fits all of it, see `fit_view`: within `SCREEN` its texts can be read at 1080p.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graphs import SD15, SDXL

SCREEN = (2100, 1150)  # of the graph, in its own units
ROOM, HEAD = 20, 50  # around the nodes of a group; its title
WINDOW = (1920, 1080)  # of the browser, in pixels
EDGES = (80, 110, 30, 60)  # left, top, right and bottom, in pixels, that the page's bars take of the window
TITLE = 30  # height of a node's title
NOTE = (380, 330)
PROMPT = (300, 110)
LINE, COLUMN = 42, 240  # distances of collapsed nodes
# Heights that nodes of these widths have when they have run: with their texts, and the picture of a training.
TRAINED, ATTACKED, LOADED = 1110, 900, 330
HUGGING_FACE = "https://huggingface.co"
MODELS = {
    SD15: f"{HUGGING_FACE}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{SD15}",
    SDXL: f"{HUGGING_FACE}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/{SDXL}",
}
MINIATURE = (
    "No Stable Diffusion needed: the miniature that comes with the pack takes its place.\n\n"
    "**First** write it, unless *Load Checkpoint* has it: in `custom_nodes/advunlearn`, with ComfyUI's Python,"
    "\n\n`python -m advunlearn miniature --to ../../models/checkpoints/miniature.safetensors`\n\n"
    "Then press R on this page, and **Run**.\n\n"
)
TRAIN_FIRST = (
    "**First** run the workflow *train*: it makes the encoder that this one loads, the *newest of "
    "robust_miniature*. Then press **Run**.\n\n"
)


@dataclass(frozen=True)
class Group:
    """A step: a box with a title around some nodes."""

    title: str
    nodes: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Where the nodes of a workflow stand, and what it says."""

    note: str  # Markdown, in the upper left corner
    description: str
    places: dict[int, tuple[int, int, int, int]]  # node id -> x, y, width, height; the height 0: as it is
    groups: tuple[Group, ...]
    collapsed: tuple[int, ...] = ()
    note_size: tuple[int, int] = field(default=NOTE)
    grown: Mapping[int, int] = field(default_factory=dict)  # node id -> height when it has run, for which there is room


def fit_view(graph: Mapping[str, Any]) -> dict[str, Any]:
    """Return the zoom and the offset of a workflow in the page's format with which a 1080p window shows all of it.

    The page fits a template by itself; it opens files and what is dropped on it at the stored view.
    """
    boxes = [group["bounding"] for group in graph["groups"]]
    boxes += [[x, y - TITLE, width, height + TITLE] for node in graph["nodes"] for x, y, width, height in [_box(node)]]
    left, top = (min(box[axis] for box in boxes) for axis in (0, 1))
    size = [max(box[axis] + box[2 + axis] for box in boxes) - start for axis, start in ((0, left), (1, top))]
    room = [WINDOW[axis] - EDGES[axis] - EDGES[2 + axis] for axis in (0, 1)]
    scale = min(1.0, math.floor(100 * min(room[0] / size[0], room[1] / size[1])) / 100)
    return {"scale": scale, "offset": [round(EDGES[0] / scale - left), round(EDGES[1] / scale - top)]}


def _box(node: Mapping[str, Any]) -> list[float]:
    collapsed = node.get("flags", {}).get("collapsed")
    return [*node["pos"], *((COLUMN, 0) if collapsed else node["size"])]


def pictures(
    first: int,
    x: int,
    y: int,
    picture: tuple[int, int],
    prompt: bool = True,
    enlarged: bool = True,
    columns: int = 1,
) -> tuple[dict[int, tuple[int, int, int, int]], tuple[int, ...]]:
    """Return the places of text to image, ids from `first`: a prompt over collapsed nodes, images to the right."""
    collapsed = tuple(first + k for k in (1, 2, 3, 4, 5) if k != 5 or enlarged)
    width = PROMPT[0] + COLUMN * (columns - 1)
    places = {first: (x, y, width, PROMPT[1])} if prompt else {}
    top = y + (PROMPT[1] + 60 if prompt else 30)
    places |= {id: (x + COLUMN * (k % columns), top + LINE * (k // columns), 0, 0) for k, id in enumerate(collapsed)}
    return places | {first + 6: (x + width + 30, y, *picture)}, collapsed


def stack(rows: list[tuple[int, int]], x: int, picture: tuple[int, int], **options: Any) -> tuple[Any, tuple[int, ...]]:
    """Return the places of several rows of pictures, each as (first id, y)."""
    made = [pictures(first, x, y, picture, **options) for first, y in rows]
    places = {id: place for part, _ in made for id, place in part.items()}
    return places, tuple(id for _, part in made for id in part)


def make_train(note: str, description: str, enlarged: bool) -> Layout:
    """Lay out a training and what its encoder draws."""
    shown, collapsed = stack([(10, 70), (20, 570)], 1300, (400, 400), enlarged=enlarged)
    return Layout(
        note=note,
        description=description,
        places={1: (20, 510, 380, 100), 2: (460, 70, 420, 0), 3: (900, 70, 340, 560), **shown},
        groups=(
            Group("1. Load a model", (1,)),
            Group("2. Train a robust text encoder", (2, 3)),
            Group("3. What it has forgotten", tuple(id for id in shown if id < 20)),
            Group("3. What it has kept", tuple(id for id in shown if id >= 20)),
        ),
        collapsed=collapsed,
        grown={2: TRAINED},
    )


def make_comparison(note: str, description: str, enlarged: bool = True, replaced: str = "its CLIP-L") -> Layout:
    """Lay out one prompt with the CLIP before and after."""
    shown, collapsed = stack([(10, 70), (20, 570)], 900, (460, 400), enlarged=enlarged)
    return Layout(
        note=note,
        description=description,
        places={1: (20, 510, 380, 100), 2: (460, 70, 380, 250), **shown},
        groups=(
            Group("1. Load a model", (1,)),
            Group(f"2. Replace {replaced}", (2,)),
            Group("3. Before", tuple(id for id in shown if id < 20)),
            Group("3. After", tuple(id for id in shown if id >= 20)),
        ),
        collapsed=collapsed,
        grown={2: LOADED},
    )


def make_attack() -> Layout:
    """Lay out an attack, the pictures without and with it, and a use of its result."""
    collapsed = (21, 22, 23, 24, 25)
    used = {id: (1700, 100 + LINE * k, 0, 0) for k, id in enumerate(collapsed)} | {26: (1700, 340, 400, 400)}
    return Layout(
        note=f"## Attack a robust encoder\n\n{TRAIN_FIRST}The attack searches for words that bring the church back. "
        "Its pictures show what the prompt draws without and with these words; the judge frames the churches and says "
        "whether the attack succeeded.",
        description="Search for a prompt that brings an erased concept back: pictures and a judge's verdict.",
        places={
            1: (20, 510, 380, 100),
            2: (20, 690, 380, 250),
            5: (20, 1070, 380, 60),
            3: (460, 70, 420, 0),
            6: (940, 70, 700, 520),
            4: (940, 670, 700, 300),
        }
        | used,
        groups=(
            Group("1. Load model, robust CLIP and judge", (1, 2, 5)),
            Group("2. Attack it", (3,)),
            Group("3. Without and with the attack", (6, 4)),
            Group("4. Use the prompt that it found", tuple(used)),
        ),
        collapsed=collapsed,
        grown={2: LOADED, 3: ATTACKED},
    )


def make_evaluation() -> Layout:
    """Lay out an evaluation."""
    return Layout(
        note=f"## Before and after\n\n{TRAIN_FIRST}It attacks the CLIP before and after, and counts how often a judge "
        "sees a church, and how often the other prompts are still drawn right. A few minutes on a CPU.",
        description="Attack a CLIP before and after erasing: pictures and counts.",
        places={
            1: (20, 510, 380, 100),
            2: (20, 690, 380, 250),
            3: (20, 1070, 380, 60),
            4: (460, 70, 400, 0),
            7: (460, 740, 400, 0),
            6: (900, 70, 480, 340),
            5: (900, 480, 640, 600),
        },
        groups=(
            Group("1. Load model, robust CLIP and judge", (1, 2, 3)),
            Group("2. Evaluate", (4, 7)),
            Group("3. Counts and pictures", (5, 6)),
        ),
        grown={2: LOADED},
    )


def make_sweep() -> Layout:
    """Lay out three strengths."""
    rows = [(10, 70), (20, 470), (30, 870)]
    shown, collapsed = stack(rows, 900, (300, 300), columns=2)
    places = {1: (20, 510, 380, 100)} | {2 + k: (460, 70 + 400 * k, 380, 250) for k in range(3)} | shown
    return Layout(
        note=f"## How much robust encoder\n\n{TRAIN_FIRST}Strength interpolates the weights: 0 is the CLIP as it was, "
        "1 the robust one. In between, the concept fades.",
        description="One prompt at three strengths of a robust encoder.",
        places=places,
        groups=(
            Group("1. Load a model", (1,)),
            *(
                Group(f"{2 + k}. Strength {strength}", (2 + k, *(id for id in shown if id // 10 == k + 1)))
                for k, strength in enumerate(("0", "0.5", "1"))
            ),
        ),
        collapsed=collapsed,
    )


def tell_what_to_fetch(file: str) -> str:
    """Return the beginning of the note of a training on a checkpoint from the web."""
    return (
        f"**First** fetch [{file}]({MODELS[file]}) into `models/checkpoints`, or take a checkpoint that you have. "
        "Press R, and choose it in *Load Checkpoint*. Write what it shall forget into **concept**. Then press **Run**."
        "\n\n"
    )


LAYOUTS = {
    "train": make_train(
        f"## Train on the miniature\n\n{MINIATURE}The node says what it does and how long it takes, and shows its "
        "losses and what it draws before and after. In the end it has forgotten churches, and still draws castles. "
        "Without a GPU that takes up to ten minutes.\n\n"
        "Then open *load-and-replace*: it uses the encoder that was saved.",
        "Erase a concept from the miniature: no Stable Diffusion and no GPU needed.",
        enlarged=True,
    ),
    "train-sd15": make_train(
        f"## Train on Stable Diffusion 1.5\n\n{tell_what_to_fetch(SD15)}The node says how much memory it takes and how "
        "long it will be. Cancel keeps a run that has begun to train: turn on **resume** to go on.\n\n"
        "The encoder is saved into output/clip. In your own workflow, put *Load Robust CLIP* between the checkpoint's "
        "CLIP and the prompts, and choose *newest of robust_sd15*.",
        "Erase a concept from Stable Diffusion 1.5, with the published settings.",
        enlarged=False,
    ),
    "train-sdxl": make_train(
        f"## Train on SDXL\n\n{tell_what_to_fetch(SDXL)}Both text encoders train: with **memory** on auto that fits on "
        "24 GB. With less, connect *AdvUnlearn Training Settings* and choose one under **encoders**; the concept can "
        "then come back through the other.\n\n"
        "The pair is saved into output/clip. Then open *sdxl*: it uses the pair, as your own workflow can.",
        "Erase a concept from SDXL: both text encoders, with the published settings.",
        enlarged=False,
    ),
    "load-and-replace": make_comparison(
        f"## Use a robust encoder\n\n{TRAIN_FIRST}The same prompt and the same noise, with the CLIP of the checkpoint "
        "and with the robust one.",
        "One prompt with the CLIP of a checkpoint and with a robust one.",
    ),
    "attack": make_attack(),
    "before-and-after": make_evaluation(),
    "strength-sweep": make_sweep(),
    "sdxl": make_comparison(
        "## Robust encoders in SDXL\n\n**First** run the workflow *train-sdxl*: it makes the pair that this one loads, "
        "the *newest of robust_sdxl*. Then press **Run**.\n\n"
        "The node loads CLIP-L and the CLIP-G next to it; each has its strength. With one under **released**, only "
        "CLIP-L is replaced, and CLIP-G still knows the concept.",
        "One prompt with SDXL's two text encoders and with a robust pair.",
        enlarged=False,
        replaced="both text encoders",
    ),
}
