"""The guard in the real ComfyUI: what a user could submit over HTTP to get around the robust encoder.

Every way that the guard closes by rewriting is first shown to work on a server without it.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from .conftest import CHECKPOINT, IN_CHECKPOINT
from .graphs import Graph, get_images, is_same_image, load_graph, sample_graph, sample_images
from .server import HostError, Server, node

pytestmark = pytest.mark.host
ROBUST, OTHER, LORA = "robust.safetensors", "other.safetensors", "text.safetensors"
SETTINGS = json.dumps({"encoder": ROBUST})


def fill(base: pathlib.Path, checkpoint: pathlib.Path) -> None:
    """Put a robust encoder, another one, a LoRA of the text encoder, an embedding and a pack into a host's folders."""
    tensors = load_file(checkpoint)
    state = {k.removeprefix(IN_CHECKPOINT): v.clone() for k, v in tensors.items() if k.startswith(IN_CHECKPOINT)}
    state = {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in state.items()}
    for name, scale in ((ROBUST, 1.25), (OTHER, 0.8)):
        norm = {"text_model.final_layer_norm.weight": state["text_model.final_layer_norm.weight"] * scale}
        save_file({**state, **norm}, base / "models" / "text_encoders" / name)
    (base / "models" / "loras").mkdir(exist_ok=True)
    key = "lora_te_text_model_encoder_layers_11_mlp_fc2"
    lora = {"lora_up.weight": torch.ones(768, 1), "lora_down.weight": torch.ones(1, 3072), "alpha": torch.tensor(1.0)}
    save_file({f"{key}.{name}": value for name, value in lora.items()}, base / "models" / "loras" / LORA)
    save_file({"clip_l": torch.full((1, 768), 0.05)}, base / "models" / "embeddings" / "vector.safetensors")
    shutil.copy(pathlib.Path(__file__).with_name("other_pack.py"), base / "custom_nodes")


Start = Callable[..., Server]


@pytest.fixture(scope="module")
def start(host: pathlib.Path, checkpoint: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """A function that starts a server with the files of `fill`, by its guard's settings ("": no guard) and options."""
    started = []

    def run(settings: str, *options: str) -> Server:
        path = tmp_path_factory.mktemp("operator") / "guard.json"
        path.write_text(settings)
        environment = {"ADVUNLEARN_GUARD": str(path)} if settings else {}
        server = Server(host, tmp_path_factory.mktemp("server"), *options, **environment)
        (server.base / "models" / "checkpoints" / CHECKPOINT).hardlink_to(checkpoint)
        fill(server.base, checkpoint)
        started.append(server)
        server.start()
        return server

    yield run
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def guarded(start: Start) -> Server:
    """A server with the guard."""
    return start(SETTINGS)


@pytest.fixture(scope="module")
def unguarded(start: Start) -> Server:
    """A server without the guard, with the same files and the same other pack."""
    return start("")


@pytest.fixture(scope="module")
def by_hand(unguarded: Server) -> torch.Tensor:
    """The picture of a graph in which the user has loaded the robust encoder."""
    return sample_images(unguarded, load_graph(encoder=ROBUST))


def draw_with(clip: Any, **nodes: dict[str, Any]) -> Graph:
    """Return a graph whose texts are encoded by a CLIP."""
    graph = sample_graph() | nodes
    for name in ("positive", "negative"):
        graph[name]["inputs"]["clip"] = clip
    return graph


def draw_with_source(kind: str, output: int = 0, **inputs: Any) -> Graph:
    """Return a graph whose CLIP comes from a node."""
    return draw_with(["source", output], source=node(kind, **inputs))


def available(server: Server, graph: Graph) -> bool:
    """Return whether this version of the host has all nodes of a graph."""
    known = server.get("object_info")
    return all(each["class_type"] in known for each in graph.values())


REWRITTEN = {
    "the checkpoint's encoder": sample_graph(),
    "another encoder": draw_with_source("CLIPLoader", clip_name=OTHER, type="stable_diffusion"),
    "a LoRA of the text encoder": draw_with_source(
        "LoraLoader",
        output=1,
        model=("ckpt", 0),
        clip=("ckpt", 1),
        lora_name=LORA,
        strength_model=1.0,
        strength_clip=1.0,
    ),
    "another last layer": draw_with_source("CLIPSetLastLayer", clip=("ckpt", 1), stop_at_clip_layer=-2),
    "strength below 1": load_graph(encoder=ROBUST, strength=0.3),
    "a merge of encoders": draw_with(
        ["source", 0],
        other=node("CLIPLoader", clip_name=OTHER, type="stable_diffusion"),
        source=node("CLIPMergeSimple", clip1=("ckpt", 1), clip2=("other", 0), ratio=0.5),
    ),
    "other attention weights": draw_with_source(
        "CLIPAttentionMultiply", clip=("ckpt", 1), q=2.0, k=1.0, v=1.0, out=1.0
    ),
    "a switch": draw_with_source("ComfySwitchNode", switch=True, on_true=("ckpt", 1), on_false=("ckpt", 1)),
    "ids as in a subgraph": {
        f"7:{name}": {
            **each,
            "inputs": {k: [f"7:{v[0]}", v[1]] if isinstance(v, list) else v for k, v in each["inputs"].items()},
        }
        for name, each in sample_graph().items()
    },
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_a_graph_with_another_clip_gives_the_picture_of_the_robust_encoder(
    name: str, guarded: Server, unguarded: Server, by_hand: torch.Tensor
) -> None:
    graph = REWRITTEN[name]
    if not available(unguarded, graph):
        pytest.skip("this version of the host lacks a node of the graph")
    save_id = next(each for each in graph if each.endswith("save"))

    def draw(server: Server) -> torch.Tensor:
        return get_images(server, server.run(graph), save_id)

    assert (draw(unguarded) - by_hand).abs().mean() > 1e-3  # without the guard it does get around the encoder
    assert is_same_image(draw(guarded), by_hand)


@pytest.mark.parametrize("count", [2, 3])
def test_loaders_of_several_encoders_give_the_picture_of_the_robust_encoder(
    count: int, guarded: Server, by_hand: torch.Tensor
) -> None:
    """Without a control: the other encoders of such a model take gigabytes."""
    names = {f"clip_name{i}": OTHER for i in range(1, count + 1)}
    graph = {
        2: draw_with_source("DualCLIPLoader", **names, type="sdxl"),
        3: draw_with_source("TripleCLIPLoader", **names),
    }[count]
    assert is_same_image(sample_images(guarded, graph), by_hand)


def test_a_graph_with_the_robust_encoder_gives_the_same_picture(guarded: Server, by_hand: torch.Tensor) -> None:
    assert is_same_image(sample_images(guarded, load_graph(encoder=ROBUST)), by_hand)


def test_an_embedding_is_read_as_text(guarded: Server, unguarded: Server) -> None:
    taken, text = "a embedding:vector", "a embedding : vector"  # the same tokens, but no embedding
    with_embedding = sample_images(unguarded, load_graph(taken, encoder=ROBUST))
    as_text = sample_images(unguarded, load_graph(text, encoder=ROBUST))
    assert (with_embedding - as_text).abs().mean() > 1e-3
    assert is_same_image(sample_images(guarded, sample_graph(taken)), as_text)


@pytest.mark.parametrize("prompt", ["a church through a handler", "a church through a late handler"])
def test_the_guard_sees_what_the_handlers_of_other_packs_have_changed(
    prompt: str, guarded: Server, unguarded: Server
) -> None:
    graph = load_graph(prompt, encoder=ROBUST)  # of this prompt, both handlers of the other pack change the encoder
    robust = sample_images(unguarded, load_graph(prompt + " ", encoder=ROBUST))  # the same tokens, which they leave
    assert (sample_images(unguarded, graph) - robust).abs().mean() > 1e-3
    assert is_same_image(sample_images(guarded, graph), robust)


def test_what_is_no_graph_at_all_is_refused(guarded: Server) -> None:
    with pytest.raises(HostError, match=r"the graph could not be checked \(AttributeError"):
        guarded.request("prompt", [])


# The host follows all of these as links to the checkpoint's CLIP.
ODD_LINKS: dict[str, Any] = {
    "a negative output": ["ckpt", -2],
    "a fractional output": ["ckpt", 1.0],
    "a wrapped link": {"__value__": ["ckpt", 1]},
}
REFUSED = {
    **{name: (draw_with(link), "link") for name, link in ODD_LINKS.items()},
    "hooks": (
        draw_with(
            ["set", 0],
            hook=node("CreateHookLora", lora_name=LORA, strength_model=1.0, strength_clip=1.0),
            set=node("SetClipHooks", clip=("ckpt", 1), apply_to_conds=True, schedule_clip=False, hooks=("hook", 0)),
        ),
        "CreateHookLora handles HOOKS",
    ),
    "a scaled conditioning": (
        sample_graph() | {"x": node("ConditioningMultiply", conditioning=("positive", 0), multiplier=9.0)},
        "ConditioningMultiply",
    ),
    "an average that extrapolates": (
        sample_graph()
        | {
            "weight": node("PrimitiveFloat", value=50.0),
            "x": node(
                "ConditioningAverage",
                conditioning_to=("positive", 0),
                conditioning_from=("negative", 0),
                conditioning_to_strength=("weight", 0),
            ),
        },
        "conditioning_to_strength is linked",
    ),
    "a saved conditioning": (
        sample_graph() | {"x": node("LoadTrainingDataset", folder_name="x")},
        "LoadTrainingDataset",
    ),
    "a training": (
        sample_graph()
        | {"x": node("TrainLoraNode", model=("ckpt", 0), latents=("empty", 0), positive=("positive", 0))},
        "TrainLoraNode handles CONDITIONING",
    ),
    "the pack's training": (
        sample_graph() | {"x": node("AdvUnlearnTrain", model=("ckpt", 0), clip=("ckpt", 1), concept="church")},
        "no nodes of other packs, such as AdvUnlearnTrain",
    ),
    "an image as conditioning": (
        sample_graph() | {"x": node("unCLIPConditioning", conditioning=("positive", 0), strength=1.0)},
        "unCLIPConditioning handles CLIP_VISION_OUTPUT",
    ),
    "a hypernetwork": (
        sample_graph() | {"x": node("HypernetworkLoader", model=("ckpt", 0), hypernetwork_name="x", strength=1.0)},
        "HypernetworkLoader handles MODEL",
    ),
    "saving the encoder": (
        sample_graph() | {"x": node("CLIPSave", clip=("ckpt", 1), filename_prefix="x")},
        "CLIPSave handles CLIP",
    ),
    "the report of another encoder": (
        load_graph(encoder=ROBUST) | {"x": node("PreviewAny", source=("robust", 1))},
        "such as AdvUnlearnLoadRobustCLIP",
    ),
    "another pack": (sample_graph() | {"x": node("TextToImage", text="a church")}, "such as TextToImage"),
    "an unknown class": (sample_graph() | {"x": node("NoSuchNode")}, "no node class"),
    "the guard's id": (
        sample_graph() | {"advunlearn_guard": node("CLIPLoader", clip_name=OTHER, type="stable_diffusion")},
        "cannot be used",
    ),
    "no inputs": (sample_graph() | {"x": {"class_type": "LoadImage"}}, "no class_type or no inputs"),
    "a class that is no text": (sample_graph() | {"x": {"class_type": ["A"], "inputs": {}}}, "no class_type"),
    "no graph": ([1], "not an object of nodes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_graph_that_might_go_around_the_encoder_is_refused_with_the_reason(name: str, guarded: Server) -> None:
    graph, reason = REFUSED[name]
    with pytest.raises(HostError, match=reason) as caught:
        guarded.queue(graph)
    assert "Custom validation failed" in str(caught.value)


def test_the_odd_links_work_without_the_guard(unguarded: Server, by_hand: torch.Tensor) -> None:
    """So that refusing them closes something."""
    plain = sample_images(unguarded, sample_graph())
    for name, link in ODD_LINKS.items():
        try:
            picture = sample_images(unguarded, draw_with(link))
        except HostError as error:
            assert name == "a fractional output", error  # the one that the host's validation stops
            continue
        assert is_same_image(picture, plain), name


def test_a_refused_graph_stays_refused_if_only_a_part_is_to_run(guarded: Server) -> None:
    graph = draw_with(["ckpt", -2])
    with pytest.raises(HostError, match="no link to an output of a node"):
        guarded.request("prompt", {"prompt": graph, "partial_execution_targets": ["save"]})


def upload(server: Server, name: str, data: bytes, folder: str) -> None:
    """Upload a file into a folder of the output, as the page does with images."""
    fields = {"type": "output", "subfolder": folder}
    parts = [f'--x\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()]
    head = f'--x\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode()
    body = b"".join(parts) + head + data + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    url = f"http://127.0.0.1:{server.port}/upload/image"
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("folder", "kind"), [("checkpoints", "CheckpointLoaderSimple"), ("loras", "LoraLoader"), ("late", "LoraLoader")]
)
def test_a_model_that_a_user_uploads_cannot_be_loaded(
    folder: str, kind: str, guarded: Server, unguarded: Server
) -> None:
    for server in (guarded, unguarded):
        upload(server, "uploaded.safetensors", save({"x": torch.zeros(1)}), folder)
        listed = "uploaded.safetensors" in json.dumps(server.get(f"object_info/{kind}"))
        assert listed == (server is unguarded)


@pytest.mark.parametrize(
    ("settings", "options", "reason"),
    [
        ("[]", (), "settings cannot be used: .*guard.json is no JSON object"),
        (SETTINGS, ("--enable-assets",), "ComfyUI was started with --enable-assets, so that a user can upload models"),
    ],
)
def test_every_graph_is_refused_if_the_guard_cannot_hold(
    settings: str, options: tuple[str, ...], reason: str, host: pathlib.Path, start: Start
) -> None:
    if any(option not in (host / "comfy" / "cli_args.py").read_text() for option in options):
        pytest.skip("this version of the host lacks the option")
    with pytest.raises(HostError, match=reason):
        start(settings, *options).queue({"load": node("PreviewAny", source="x")})


def test_without_settings_there_is_no_guard(unguarded: Server, guarded: Server) -> None:
    assert unguarded.get("object_info/AdvUnlearnRefusal") == {}
    assert "AdvUnlearnRefusal" in guarded.get("object_info/AdvUnlearnRefusal")


def test_the_log_says_what_was_changed_and_refused(guarded: Server, by_hand: torch.Tensor) -> None:
    sample_images(guarded, sample_graph())
    with pytest.raises(HostError):
        guarded.queue(REFUSED["another pack"][0])
    log = guarded.log.read_text()
    assert "node positive: clip is the robust encoder instead of output 1 of node ckpt" in log
    assert "refused: node x: this server accepts no nodes of other packs, such as TextToImage" in log
