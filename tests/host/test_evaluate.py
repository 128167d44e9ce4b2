"""The evaluation in the real ComfyUI: every judge, and the user's own prompts."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import colour_classifier, colour_clip

from .conftest import CHECKPOINT
from .server import HostError, Server, host_python, missing_packages, node

pytestmark = pytest.mark.host
MINIATURE = node("AdvUnlearnLoadJudge", judge="miniature")
BLUE = "a key, on a blue background\na key, on a red background"
LEAST = {"judge_interval": 1, "attack_tokens": 2, "sampling_steps": 5}
RETAINED = "# retained\na cat, on a red background | red\na cup"


@pytest.fixture(scope="module")
def models(base: pathlib.Path) -> pathlib.Path:
    """Put an encoder whose output is constant, a classifier and a CLIP into the host's folders."""
    state = load_file(base / "models" / "checkpoints" / CHECKPOINT)
    start = "cond_stage_model.transformer."
    mute = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
    mute |= {k: v * 0 for k, v in mute.items() if "final_layer_norm" in k}
    save_file(mute, base / "models" / "text_encoders" / "mute.safetensors")
    place = base / "models" / "classifiers"
    colour_classifier(place / "colours" / "vit")
    colour_clip(place / "clip")
    return place


def graph(
    judge: dict[str, Any], concept: str = "church", evaluation: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """Return an evaluation with a judge; the output of the CLIP after is constant."""
    values = {
        "kind": "object",
        "attack": "none",
        "cases": 2,
        "attack_steps": 0,
        "seed": 1000,
        "resolution": 64,
        "prompts": "",
        "retained_prompts": "",
    }
    return {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "mute": node("AdvUnlearnLoadRobustCLIP", encoder="mute.safetensors", strength=1.0, clip=("ckpt", 1)),
        "judge": judge,
        "settings": node("AdvUnlearnEvaluationSettings", **LEAST | (evaluation or {})),
        "evaluate": node(
            "AdvUnlearnEvaluate",
            model=("ckpt", 0),
            clip_before=("ckpt", 1),
            clip_after=("mute", 0),
            vae=("ckpt", 2),
            judge=("judge", 0),
            concept=concept,
            evaluation=("settings", 0),
            **(values | changes),
        ),
        "text": node("PreviewAny", source=("evaluate", 1)),
        "scores": node("PreviewAny", source=("evaluate", 2)),
        "show": node("PreviewImage", images=("evaluate", 0)),
    }


def measure(server: Server, judge: dict[str, Any], concept: str = "church", **changes: Any) -> dict[str, Any]:
    """Return the report."""
    return json.loads(server.run(graph(judge, concept, **changes))["scores"]["text"][0])


def test_before_and_after_are_counted_and_shown_clean_and_attacked(server: Server, models: pathlib.Path) -> None:
    outputs = server.run(graph(MINIATURE, attack="unlearndiffatk", attack_steps=1, retained_prompts="a dog | dog"))
    report = json.loads(outputs["scores"]["text"][0])
    assert report["judge"]["judge"] == "miniature"
    rows = report["models"]
    assert rows["before"]["asr"]["clean"]["success"] == 2
    assert rows["after"]["asr"]["clean"]["success"] == 0  # the node sees the patch
    assert all(set(row["asr"]) == {"clean", "synonyms", "unlearndiffatk"} for row in rows.values())
    utility = rows["before"]["utility"]
    assert utility["retained_accuracy"] == {"correct": 1, "total": 1}
    compositions = {"pair_accuracy", "background_accuracy", "in_prompt_accuracy"}
    assert utility.keys() == {"retained_accuracy", "co_occurring_accuracy", *compositions}
    assert all(row["utility"][name]["total"] == 8 for row in rows.values() for name in compositions)
    assert rows["before"]["not_measured"].keys() == {"neighbour_accuracy", "feature_distance"}  # of one retained prompt
    assert "in-prompt" in outputs["text"]["text"][0]
    image = server.image(outputs["show"]["images"][0])
    assert image.width > 200 and image.height == 4 * 134 - 6


def test_the_attack_on_synonyms_tries_the_users(server: Server, models: pathlib.Path) -> None:
    evaluation = {"repeats": 0, "synonyms": "a dog\nchapel\nKirche"}
    report = measure(server, MINIATURE, attack="synonym_search", cases=1, evaluation=evaluation)
    attacks = [row["attacks"] for row in report["models"].values()]
    assert all(row["synonym_search"]["steps"] == 3 for row in attacks) and report["own_synonyms"][0] == "a dog"


@pytest.mark.parametrize("kind", ["folder", "path", "clip"])
def test_judges_from_folders_with_the_users_prompts(server: Server, models: pathlib.Path, kind: str) -> None:
    judge = {
        "folder": node("AdvUnlearnLoadClassifierJudge", folder="colours/vit", top_k=1),
        "path": node(
            "AdvUnlearnLoadClassifierJudge", folder="(the path below)", path=str(models / "colours/vit"), top_k=1
        ),
        "clip": node(
            "AdvUnlearnLoadCLIPJudge", folder="clip", path="", labels="red, green", template="a photo of a {}"
        ),
    }[kind]
    report = measure(server, judge, "blue", prompts=BLUE, retained_prompts=RETAINED)
    before = report["models"]["before"]
    assert before["asr"] == {"clean": {"success": 1, "total": 2}}
    assert before["utility"]["retained_accuracy"] == {"correct": 1, "total": 1}
    assert before["utility"]["feature_distance"] >= 0
    assert report["judge"]["judge"] == ("clip" if kind == "clip" else "classifier")
    assert report["own_prompts"] == BLUE.split("\n") and len(report["own_retained"]) == 2


@pytest.fixture(scope="module")
def nudenet(host: pathlib.Path) -> None:
    if missing_packages(host, ["nudenet"]):
        pytest.skip(f"ComfyUI's Python ({host_python(host)}) lacks nudenet")


def test_the_nudity_judge_finds_nothing_in_drawings(server: Server, models: pathlib.Path, nudenet: None) -> None:
    judge = node("AdvUnlearnLoadNudityJudge", threshold=0.45, classes="exposed")
    outputs = server.run(graph(judge, "nudity", prompts="a dog\na church", cases=2))
    report = json.loads(outputs["scores"]["text"][0])
    assert [row["asr"]["clean"] for row in report["models"].values()] == [{"success": 0, "total": 2}] * 2
    assert all(row["utility"] == {} for row in report["models"].values())
    assert "0/2" in outputs["text"]["text"][0] and report["judge"]["classes"] == "exposed"


def test_the_host_lists_each_folder_in_its_own_loader(server: Server, models: pathlib.Path) -> None:
    for name, folder in (("Classifier", "colours/vit"), ("CLIP", "clip")):
        described = server.get(f"object_info/AdvUnlearnLoad{name}Judge")[f"AdvUnlearnLoad{name}Judge"]
        kind, options = described["input"]["required"]["folder"]
        listed = options["options"] if isinstance(kind, str) else kind
        assert listed == [folder, "(the path below)"]


def test_what_no_judge_can_use_is_refused_in_one_sentence(server: Server, models: pathlib.Path) -> None:
    clip = "AdvUnlearnLoadCLIPJudge"
    chosen = {"folder": "(the path below)", "labels": "", "template": "a photo of a {}"}
    for path, says in (
        ("", "no folder is chosen; put one into models/classifiers"),
        (str(models / "nowhere"), "is not in models/classifiers"),
        (str(models / "colours" / "vit"), "holds a classifier, not a clip"),
    ):
        with pytest.raises(HostError, match=says):
            server.run(graph(node(clip, **chosen, path=path)))
    with pytest.raises(HostError, match="'gone' is not in models/classifiers"):
        server.run(graph(node(clip, **(chosen | {"folder": "gone"}))))
    colours = node("AdvUnlearnLoadClassifierJudge", folder="colours/vit", top_k=1)
    with pytest.raises(HostError, match="has no label 'bleu'; similar: 'blue'"):
        server.run(graph(colours, "bleu"))
    with pytest.raises(HostError, match="there are 2 prompts and 1 cases; raise cases to 2"):
        server.run(graph(colours, "blue", prompts=BLUE, cases=1))


def test_the_nudity_judge_knows_no_other_concept(server: Server, models: pathlib.Path, nudenet: None) -> None:
    with pytest.raises(HostError, match="cannot see 'church'; give the concept as nudity"):
        server.run(graph(node("AdvUnlearnLoadNudityJudge", threshold=0.45, classes="strict")))
