"""The guard's rules, on graphs as a user could submit them. `tests/host/test_guard.py` submits them to the host."""

from __future__ import annotations

import copy
import json
import pathlib
import re
from typing import Any

import pytest
from pack import import_from_pack

rules = import_from_pack("nodes.guard.rules")
settings = import_from_pack("nodes.guard.settings")
errors = import_from_pack("advunlearn.errors")
CONFIG = settings.GuardConfig(encoder="robust.safetensors")
ENCODER = ["advunlearn_guard", 0]

KINDS = {
    name: rules.NodeKind(
        inputs=dict(zip(inputs.split()[::2], inputs.split()[1::2], strict=True)),
        outputs=tuple(outputs.split()),
        builtin=builtin,
        is_output=name.startswith(("Save", "CLIPSave")),
    )
    for name, inputs, outputs, builtin in (
        ("CheckpointLoaderSimple", "ckpt_name COMBO", "MODEL CLIP VAE", True),
        ("CLIPLoader", "clip_name COMBO type COMBO", "CLIP", True),
        ("DualCLIPLoader", "clip_name1 COMBO clip_name2 COMBO type COMBO", "CLIP", True),
        ("TripleCLIPLoader", "clip_name1 COMBO clip_name2 COMBO clip_name3 COMBO", "CLIP", True),
        ("LoraLoader", "model MODEL clip CLIP lora_name COMBO strength_clip FLOAT", "MODEL CLIP", True),
        ("CLIPSetLastLayer", "clip CLIP stop_at_clip_layer INT", "CLIP", True),
        ("CLIPMergeSimple", "clip1 CLIP clip2 CLIP ratio FLOAT", "CLIP", True),
        ("CLIPSave", "clip CLIP filename_prefix STRING", "", True),
        ("AdvUnlearnLoadRobustCLIP", "encoder COMBO strength FLOAT clip CLIP", "CLIP STRING", False),
        ("CLIPTextEncode", "clip CLIP text STRING", "CONDITIONING", True),
        ("ConditioningCombine", "conditioning_1 CONDITIONING conditioning_2 CONDITIONING", "CONDITIONING", True),
        (
            "ConditioningAverage",
            "conditioning_to CONDITIONING conditioning_from CONDITIONING conditioning_to_strength FLOAT",
            "CONDITIONING",
            True,
        ),
        ("PrimitiveFloat", "value FLOAT", "FLOAT", True),
        ("ConditioningMultiply", "conditioning CONDITIONING multiplier FLOAT", "CONDITIONING", True),
        ("LoadTrainingDataset", "folder_name COMBO", "LATENT CONDITIONING", True),
        ("TrainLoraNode", "model MODEL latents LATENT positive CONDITIONING", "LORA_MODEL LOSS_MAP INT", True),
        ("ComfySwitchNode", "switch BOOLEAN on_true COMFY_MATCHTYPE_V3", "COMFY_MATCHTYPE_V3", True),
        ("FluxProUltraImageNode", "prompt STRING", "IMAGE", False),
        ("EfficientSampler", "text STRING seed INT", "IMAGE", False),
        ("LoadImage", "image COMBO", "IMAGE MASK", True),
        ("EmptyLatentImage", "width INT", "LATENT", True),
        ("KSampler", "model MODEL positive CONDITIONING negative CONDITIONING latent_image LATENT", "LATENT", True),
        ("VAEDecode", "samples LATENT vae VAE", "IMAGE", True),
        ("SaveImage", "images IMAGE", "", True),
    )
}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """Return a node of a graph."""
    return {"class_type": kind, "inputs": inputs}


def make_graph(clip: Any = ("ckpt", 1), **nodes: dict[str, Any]) -> dict[str, Any]:
    """Return a graph from text to an image; further nodes are added or replaced."""
    clip = list(clip) if isinstance(clip, tuple) else clip
    return {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name="sd15.safetensors"),
        "positive": node("CLIPTextEncode", clip=clip, text="a church"),
        "negative": node("CLIPTextEncode", clip=clip, text=""),
        "empty": node("EmptyLatentImage", width=64),
        "sample": node(
            "KSampler",
            model=["ckpt", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["empty", 0],
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["ckpt", 2]),
        "save": node("SaveImage", images=["decode", 0]),
        **nodes,
    }


def guard(graph: Any, **changes: Any) -> dict[str, Any]:
    """Return the guarded graph."""
    config = settings.GuardConfig(**{"encoder": CONFIG.encoder, **changes})
    return rules.guard_graph(graph, KINDS.get, config)[0]


def find_reason(graph: Any, **changes: Any) -> str:
    """Return why a graph is refused."""
    with pytest.raises(rules.GraphRefused) as caught:
        guard(graph, **changes)
    return str(caught.value)


def test_a_graph_gets_the_robust_encoder_and_stays_the_same_otherwise() -> None:
    graph = make_graph()
    before = copy.deepcopy(graph)
    guarded, changes = rules.guard_graph(graph, KINDS.get, CONFIG)
    assert graph == before  # the submitted graph is not changed
    expected = copy.deepcopy(graph)
    expected["positive"]["inputs"]["clip"] = expected["negative"]["inputs"]["clip"] = ENCODER
    inputs = {"encoder": "robust.safetensors", "strength": 1.0, "embeddings": "refuse"}
    expected["advunlearn_guard"] = node("AdvUnlearnLoadRobustCLIP", **inputs)
    assert guarded == expected
    assert changes == [
        f"node {name}: clip is the robust encoder instead of output 1 of node ckpt" for name in ("positive", "negative")
    ]


SOURCES = {
    "another encoder": {"x": node("CLIPLoader", clip_name="clip_l.safetensors", type="stable_diffusion")},
    "two encoders": {"x": node("DualCLIPLoader", clip_name1="l", clip_name2="g", type="sdxl")},
    "three encoders": {"x": node("TripleCLIPLoader", clip_name1="l", clip_name2="g", clip_name3="t5")},
    "another layer": {"x": node("CLIPSetLastLayer", clip=["ckpt", 1], stop_at_clip_layer=-12)},
    "a merge": {"x": node("CLIPMergeSimple", clip1=["ckpt", 1], clip2=["ckpt", 1], ratio=0.0)},
    "strength 0": {"x": node("AdvUnlearnLoadRobustCLIP", encoder="robust.safetensors", strength=0.0, clip=["ckpt", 1])},
}


@pytest.mark.parametrize("nodes", SOURCES.values(), ids=SOURCES)
def test_a_node_that_only_makes_a_clip_is_left_out(nodes: dict[str, Any]) -> None:
    guarded = guard(make_graph(("x", 0), **nodes))
    assert guarded == guard(make_graph()) and "x" not in guarded


def test_a_lora_changes_the_denoiser_and_not_the_text_encoder() -> None:
    lora = node("LoraLoader", model=["ckpt", 0], clip=["ckpt", 1], lora_name="style", strength_clip=1.0)
    graph = make_graph(("lora", 1), lora=lora)
    graph["sample"]["inputs"]["model"] = ["lora", 0]
    guarded = guard(graph)
    assert guarded["sample"]["inputs"]["model"] == ["lora", 0]
    assert guarded["lora"]["inputs"]["clip"] == guarded["positive"]["inputs"]["clip"] == ENCODER


def test_a_clip_is_replaced_behind_a_node_that_passes_anything_on() -> None:
    switch = node("ComfySwitchNode", switch=True, on_true=["ckpt", 1])
    guarded = guard(make_graph(("switch", 0), switch=switch))
    assert guarded["switch"]["inputs"]["on_true"] == guarded["positive"]["inputs"]["clip"] == ENCODER


def test_a_value_where_a_clip_belongs_is_replaced_too() -> None:
    assert guard(make_graph("ckpt"))["positive"]["inputs"]["clip"] == ENCODER


def test_the_hosts_own_forms_of_a_link_do_not_hide_a_clip() -> None:
    """The host follows all of them: a wrapped link once it has been validated, the others by Python's indexing."""
    for value in (["ckpt", -2], ["ckpt", 1.0], ["ckpt", True]):
        assert "which is no link to an output of a node" in find_reason(make_graph(value))
    for value in ({"__value__": ["ckpt", 1]}, {"__value__": {"__value__": ["ckpt", 1]}}):
        assert "the link of clip is wrapped as a value" in find_reason(make_graph(value))
    # Lists of choices and of numbers are wrapped in the same way, and are no links.
    for value in (["a", "b"], [0.5, 1]):
        assert guard(make_graph(empty=node("EmptyLatentImage", width={"__value__": value})))


REFUSED = {
    "conditionings from a file": (
        {"x": node("LoadTrainingDataset", folder_name="uploaded")},
        "LoadTrainingDataset handles CONDITIONING",
    ),
    "training": (
        {"x": node("TrainLoraNode", model=["ckpt", 0], latents=["empty", 0], positive=["positive", 0])},
        "TrainLoraNode handles CONDITIONING, LORA_MODEL, LOSS_MAP, MODEL",
    ),
    "scaling of a conditioning": (
        {"x": node("ConditioningMultiply", conditioning=["positive", 0], multiplier=50.0)},
        "ConditioningMultiply handles CONDITIONING",
    ),
    "saving the encoder": ({"x": node("CLIPSave", clip=["ckpt", 1], filename_prefix="x")}, "CLIPSave handles CLIP"),
    "a service elsewhere": ({"x": node("FluxProUltraImageNode", prompt="a church")}, "no nodes of other packs"),
    "another pack": ({"x": node("EfficientSampler", text="a church", seed=0)}, "no nodes of other packs"),
    "an unknown class": ({"x": node("NoSuchNode")}, "there is no node class 'NoSuchNode'"),
    "the guard's own id": ({"advunlearn_guard": node("CLIPLoader", clip_name="l", type="x")}, "cannot be used"),
    "a link to nowhere": ({"save": node("SaveImage", images=["gone", 0])}, "is no link to an output of a node"),
    "no class": ({"x": {"inputs": {}}}, "node x has no class_type or no inputs"),
    "no inputs": ({"x": {"class_type": "LoadImage", "inputs": ["ckpt", 1]}}, "node x has no class_type or no inputs"),
}


@pytest.mark.parametrize(("nodes", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_node_that_might_go_around_the_encoder_is_refused(nodes: dict[str, Any], reason: str) -> None:
    assert reason in find_reason(make_graph(**nodes))


def test_the_weight_of_an_average_is_a_number_whose_range_the_host_checks() -> None:
    texts = {"conditioning_to": ["positive", 0], "conditioning_from": ["negative", 0]}
    number = make_graph(x=node("ConditioningAverage", **texts, conditioning_to_strength=0.5))
    assert guard(number)["x"] == number["x"]
    weight = node("PrimitiveFloat", value=50.0)
    linked = node("ConditioningAverage", **texts, conditioning_to_strength=["weight", 0])
    assert "conditioning_to_strength is linked" in find_reason(make_graph(weight=weight, x=linked))


@pytest.mark.parametrize("graph", [None, [], "graph", 1])
def test_what_is_no_graph_is_refused(graph: Any) -> None:
    assert "not an object of nodes" in find_reason(graph)


def test_the_operator_allows_and_refuses_further_classes() -> None:
    other = make_graph(x=node("EfficientSampler", text="a church", seed=0))
    assert guard(other, allow=["EfficientSampler"])["x"] == other["x"]
    image = make_graph(x=node("LoadImage", image="church.png"))
    assert guard(image)["x"] == image["x"]
    assert "does not accept LoadImage" in find_reason(image, refuse=["LoadImage"])
    assert "does not accept LoadImage" in find_reason(image, refuse=["LoadImage"], allow=["LoadImage"])


def test_entries_that_reach_into_the_hosts_cache_are_left_out() -> None:
    graph = make_graph()
    graph["positive"] |= {"is_changed": "x", "_meta": {"title": "prompt"}}
    assert set(guard(graph)["positive"]) == {"class_type", "inputs", "_meta"}


def test_refused_embeddings_are_noted_and_allowed_ones_taken() -> None:
    graph = make_graph(positive=node("CLIPTextEncode", clip=["ckpt", 1], text="a embedding:church"))
    note = "node positive: embedding: in text is read as text"
    assert note in rules.guard_graph(graph, KINDS.get, CONFIG)[1]
    allowed = settings.GuardConfig(encoder="robust.safetensors", embeddings="allow")
    guarded, changes = rules.guard_graph(graph, KINDS.get, allowed)
    assert note not in changes and guarded["advunlearn_guard"]["inputs"]["embeddings"] == "allow"


def test_a_graph_without_text_needs_no_encoder() -> None:
    graph = {"load": node("LoadImage", image="x.png"), "save": node("SaveImage", images=["load", 0])}
    assert guard(graph) == graph


def test_every_node_that_is_known_by_name_stands_in_one_list() -> None:
    lists = (*rules.TEXT_NODES, *rules.CONDITIONING_NODES, *rules.MODEL_NODES, *rules.SAMPLING_NODES)
    names = (*lists, *rules.PASSING_NODES)
    assert len(names) == len(set(names)) == len(rules.KNOWN_NODES)


def test_several_text_encoders_come_from_the_hosts_loader() -> None:
    both = settings.GuardConfig(encoder="l", other_encoders=["g"]).encoder_nodes()
    assert both["advunlearn_guard_loader"] == node("DualCLIPLoader", clip_name1="l", clip_name2="g", type="sdxl")
    assert both["advunlearn_guard"]["inputs"]["clip"] == ["advunlearn_guard_loader", 0]
    three = settings.GuardConfig(encoder="l", other_encoders=["g", "t5"]).encoder_nodes()
    names = {"clip_name1": "l", "clip_name2": "g", "clip_name3": "t5"}
    assert three["advunlearn_guard_loader"] == node("TripleCLIPLoader", **names)


def test_the_guard_is_off_unless_the_operator_turns_it_on(tmp_path: pathlib.Path) -> None:
    assert settings.find_settings(tmp_path, {}) is None
    (tmp_path / "guard.json").write_text("{}")
    assert settings.find_settings(tmp_path, {}) == tmp_path / "guard.json"
    named = settings.find_settings(tmp_path, {"ADVUNLEARN_GUARD": "/etc/guard.json"})
    assert named == pathlib.Path("/etc/guard.json")  # whether it exists or not: a missing file must not turn it off


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read"),
        ("[]", "is no JSON object"),
        ("{}", "encoder is missing"),
        ('{"encoder": "x", "embedding": "refuse"}', "embedding is no setting of GuardConfig"),
        ('{"encoder": "x", "embeddings": "off"}', "it must be one of refuse, allow"),
        ('{"encoder": "x", "allow": "LoadImage"}', "it must be a list of names"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(content: str, reason: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "guard.json"
    path.write_text(content)
    with pytest.raises(errors.AdvUnlearnError, match=re.escape(reason)):
        settings.read_settings(path)


def test_settings_are_read_from_a_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "guard.json"
    path.write_text(json.dumps({"encoder": "robust.safetensors", "refuse": ["LoadImage"]}))
    assert settings.read_settings(path) == settings.GuardConfig(encoder="robust.safetensors", refuse=["LoadImage"])
