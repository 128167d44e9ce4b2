"""The nodes in the real ComfyUI, over HTTP, on the miniature."""

from __future__ import annotations

import json
import os
import pathlib
import re
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import colour_classifier

from advunlearn.cli.folder_lock import lock_folder

from .conftest import CHECKPOINT
from .graphs import (
    IMAGES,
    SETTINGS_NODES,
    attack_node,
    get_images,
    is_same_image,
    load_graph,
    recognise_objects,
    sample_graph,
    sample_images,
    train_graph,
)
from .server import HostError, Server, node

pytestmark = pytest.mark.host


def test_every_node_is_there_with_a_tooltip_on_every_input_and_output(server: Server) -> None:
    nodes = {name: described for name, described in server.get("object_info").items() if name.startswith("AdvUnlearn")}
    assert len(nodes) == 21
    for name, described in nodes.items():
        kind = "AdvUnlearn/settings" if name.endswith("Settings") else "AdvUnlearn"
        assert described["category"] == kind and described["description"]
        inputs = {**described["input"].get("required", {}), **described["input"].get("optional", {})}
        assert all(options[1].get("tooltip") for options in inputs.values()), name
        assert len(described["output_tooltips"]) == len(described["output"]) and all(described["output_tooltips"]), name


def test_the_widened_miniature_generates_what_the_prompt_names(server: Server) -> None:
    images = sample_images(server, sample_graph("a castle", images=IMAGES, steps=10))
    assert recognise_objects(images) == ["castle"] * IMAGES


def test_a_trained_encoder_is_read_by_every_loader(server: Server, encoder: pathlib.Path) -> None:
    tensors = load_file(encoder)
    assert "text_projection.weight" in tensors and len(tensors) == 197
    robust = sample_images(server, load_graph(encoder=encoder.name))
    assert (robust - sample_images(server, sample_graph())).abs().mean() > 0.02
    without_clip = load_graph(encoder=encoder.name)
    del without_clip["robust"]["inputs"]["clip"]
    assert (sample_images(server, without_clip) - robust).abs().max() < 0.05
    stock = sample_graph(clip=("robust", 0)) | {
        "robust": node("CLIPLoader", clip_name=encoder.name, type="stable_diffusion")
    }
    assert (sample_images(server, stock) - robust).abs().max() < 0.05


def test_a_patched_clip_is_saved_with_its_patches_as_a_file_and_as_a_lora(
    server: Server, base: pathlib.Path, encoder: pathlib.Path
) -> None:
    graph = {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "robust": node("AdvUnlearnLoadRobustCLIP", encoder=encoder.name, strength=1.0, clip=("ckpt", 1)),
        "file": node("AdvUnlearnSaveRobustCLIP", clip=("robust", 0), name="again", format="safetensors", rank=8),
        "lora": node(
            "AdvUnlearnSaveRobustCLIP", clip=("robust", 0), base=("ckpt", 1), name="again", format="lora", rank=8
        ),
        "report": node("PreviewAny", source=("lora", 1)),
    }
    assert "residual" in server.run(graph)["report"]["text"][0]
    for file in ("clip/again_00001_.safetensors", "loras/again_00001_.safetensors"):
        with safe_open(base / "output" / file, "pt") as saved:
            assert json.loads(saved.metadata()["prompt"])["file"]["class_type"] == "AdvUnlearnSaveRobustCLIP"
    tensors, again = load_file(encoder), load_file(base / "output" / "clip" / "again_00001_.safetensors")
    assert tensors.keys() == again.keys() and all(torch.equal(again[k], tensors[k]) for k in tensors)


def test_training_leaves_the_users_clip_alone_and_reports_the_run(server: Server) -> None:
    graph = train_graph("small")
    before = sample_images(server, sample_graph())
    outputs = server.run(graph | sample_graph(clip=("train", 0)))
    report = outputs["report"]["text"][0]
    assert "esd on 'church' (object): 2 iterations" in report and "GB (estimated)" in report
    assert not torch.equal(get_images(server, outputs), before)
    again = sample_graph() | {"again": node("PreviewAny", source="not cached")}
    assert is_same_image(sample_images(server, again), before)


def test_a_cancelled_run_that_is_resumed_ends_bit_for_bit_like_one_without_a_break(
    server: Server, base: pathlib.Path
) -> None:
    changes: dict[str, Any] = {"training": {"mode": "advunlearn"}, "iterations": 3}
    unbroken = server.run(train_graph("unbroken", **changes))["name"]["text"][0]
    prompt_id = server.queue(train_graph("cut", **changes))
    folder = base / "output" / "advunlearn" / "cut"
    # The bar counts two trajectories, then one unit for the warm-up and two for every other iteration.
    server.wait_for_progress("train", 2 + 3)
    server.request("interrupt", {})
    with pytest.raises(HostError, match="execution_interrupted"):
        server.wait(prompt_id)
    assert (folder / "state.pt").is_file() and not list((base / "output" / "clip").glob("cut*"))
    resumed = server.run(train_graph("cut", resume=True, **changes))["name"]["text"][0]
    a, b = (load_file(base / "output" / "clip" / name) for name in (unbroken, resumed))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("mode", "changes", "n_retained"),
    [
        ("fast", {"memory": "low", "attack": {"position": "replace"}, "retain_set": "imagenet"}, 992),
        ("official", {"retain_set": "none", "bank": {"sampling_steps": 4}}, 1),
    ],
)
def test_the_other_adversarial_modes_run_and_report_their_losses(
    server: Server, mode: str, changes: dict[str, Any], n_retained: int
) -> None:
    training = {"mode": mode, "retain_weight": 1.0} | ({"dtype": "bfloat16"} if mode == "official" else {})
    graph = train_graph(mode, training=training, retain_prompts="a red house", **changes)
    report = server.run(graph)["report"]["text"][0]
    assert "attack_end" in report and re.search(r", retain \d", report), report
    assert f"retains {n_retained} prompts" in report, report


@pytest.mark.parametrize("with_vae", [True, False])
def test_a_run_on_two_concepts_shows_its_losses_and_its_samples(server: Server, with_vae: bool) -> None:
    graph = train_graph(
        "two", concept="church\ncastle", iterations=1, training={"sample_every": 1}, retain_prompts="a dog"
    )
    if with_vae:
        graph["train"]["inputs"]["vae"] = ["ckpt", 2]
    server.last_picture = None
    assert "'church', 'castle'" in server.run(graph)["report"]["text"][0]
    shown = server.last_picture
    # The curves, and two rows of samples below them, which take 308 of 596 rows.
    assert shown is not None and shown.width > 400 and shown.height / shown.width == pytest.approx(596 / 512, abs=0.02)
    samples = np.asarray(shown)[shown.height // 2 :].astype(float)
    assert samples.std() > 20  # not an empty strip


@pytest.mark.parametrize(
    ("attack", "size", "text", "original"),
    [
        ("unlearndiffatk", 3, "dog", {}),
        ("soft_prefix", 3, "dog", {}),
        ("p4d_k", 2, "dog", {"original_clip": ("ckpt", 1)}),
        ("mma", 3, "", {"original_clip": ("ckpt", 1)}),
        ("cce", 1, "photo of a embedding:adv_cce", {}),
    ],
)
def test_an_attack_returns_conditioning_prompt_and_embedding(
    server: Server, base: pathlib.Path, attack: str, size: int, text: str, original: dict[str, Any]
) -> None:
    graph = sample_graph() | {
        "attack": attack_node(
            "photo of a dog", attack, restarts=1 if attack == "mma" else 2, concept="dog", **original
        ),
        "prompt": node("PreviewAny", source=("attack", 1)),
        "report": node("PreviewAny", source=("attack", 4)),
    }
    graph["sample"]["inputs"]["positive"] = ["attack", 0]
    outputs = server.run(graph)
    prompt = outputs["prompt"]["text"][0]
    assert text in prompt and "denoising loss" in outputs["report"]["text"][0]
    assert attack != "mma" or "dog" not in prompt
    embedding = load_file(base / "models" / "embeddings" / f"adv_{attack}.safetensors")["clip_l"]
    assert embedding.shape == (size, 768)
    # The returned conditioning and that of the typed prompt are the same.
    assert is_same_image(sample_images(server, sample_graph(prompt)), get_images(server, outputs))


@pytest.mark.parametrize(("attack", "size"), [("unlearndiffatk", 3), ("soft_prefix", 3), ("p4d_k", 21)])
def test_a_prompt_of_two_chunks_is_attacked_with_all_its_words(
    server: Server, base: pathlib.Path, attack: str, size: int
) -> None:
    words = 60 if attack == "p4d_k" else 73  # which leave no room for the attack's tokens in one chunk of 75
    graph = {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "attack": attack_node("small " * (words - 1) + "dog", attack, original_clip=("ckpt", 1)),
        "prompt": node("PreviewAny", source=("attack", 1)),
        "report": node("PreviewAny", source=("attack", 4)),
    }
    outputs = server.run(graph)
    prompt, report = outputs["prompt"]["text"][0], outputs["report"]["text"][0]
    assert prompt.split().count("small") >= words - 1 and "dog" in prompt and "may differ" not in report, report
    assert load_file(base / "models" / "embeddings" / f"adv_{attack}.safetensors")["clip_l"].shape == (size, 768)


def test_a_prompt_of_more_than_four_chunks_is_refused(server: Server) -> None:
    graph = {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "attack": attack_node("dog " * 298, "soft_prefix"),
    }
    says = "has 298 tokens; the text encoder takes 300 of prompt and 3 adversarial tokens together; shorten it"
    with pytest.raises(HostError, match=says):
        server.run(graph)


def test_an_attack_aims_at_the_connected_target(server: Server) -> None:
    def attack(prompt: str, **target: Any) -> dict[str, Any]:
        return attack_node(prompt, "soft_prefix", tokens=1, embedding_name="target", **target)

    source = sample_graph("a church", steps=10)
    graph = source | {
        "latent": attack("a church", target=("sample", 0)),
        "image": attack("a church", image=("decode", 0), vae=("ckpt", 2)),
        "other": attack("a dog", target=("sample", 0)),
    }
    graph |= {f"{name}_loss": node("PreviewAny", source=(name, 3)) for name in ("latent", "image", "other")}
    outputs = server.run(graph)
    latent, image, other = (
        json.loads(outputs[f"{name}_loss"]["text"][0])["loss"][0] for name in ("latent", "image", "other")
    )
    # The same image as latents and through the VAE; a dog describes it badly.
    assert abs(image - latent) < 0.05 * latent and other > 1.25 * latent, (latent, image, other)
    with pytest.raises(HostError, match="image is connected but vae is not"):
        server.run(source | {"attack": attack("a church", image=("decode", 0))})
    with pytest.raises(HostError, match="ring_a_bell needs the CLIP before erasing; connect it to original_clip"):
        server.run(source | {"attack": attack_node("a church", "ring_a_bell", target=("sample", 0))})


@pytest.mark.parametrize("attack", ["soft_prefix", "cce"])
def test_an_attack_that_finds_embeddings_does_not_start_on_a_clip_that_refuses_them(
    server: Server, base: pathlib.Path, attack: str
) -> None:
    graph = load_graph(released="church", embeddings="refuse")
    graph["attack"] = attack_node("a church", attack, clip=("robust", 0), embedding_name="refused")
    with pytest.raises(HostError, match=f"{attack} finds embeddings, but this CLIP refuses .* to allow"):
        server.run(graph)
    assert not (base / "models" / "embeddings" / "refused.safetensors").exists()


@pytest.mark.parametrize(
    ("kind", "value", "name", "says"),
    [("PrimitiveString", " ", "prompt", "prompt is empty"), ("PrimitiveInt", 0, "restarts", "restarts is 0")],
)
def test_what_cannot_be_attacked_is_refused_where_it_comes_by_a_link(
    server: Server, kind: str, value: str | int, name: str, says: str
) -> None:
    graph = {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "value": node(kind, value=value),
        "attack": attack_node("a dog", "soft_prefix"),
    }
    graph["attack"]["inputs"][name] = ["value", 0]
    with pytest.raises(HostError, match=says):
        server.run(graph)


def test_bad_input_is_refused_in_one_sentence(server: Server, base: pathlib.Path) -> None:
    with pytest.raises(HostError, match="warmup is 2 of 2 iterations"):
        server.run(train_graph("bad", training={"mode": "advunlearn", "warmup": 2}))
    (base / "models" / "text_encoders" / "t5.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(HostError, match="is not a readable safetensors file"):
        server.run(load_graph(encoder="t5.safetensors"))
    with pytest.raises(HostError, match="nothing.safetensors"):
        server.run(load_graph(encoder="nothing.safetensors"))


BAD_NAME = "../../escaped"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (BAD_NAME, "is invalid; use letters"),
        ("-rf", "is invalid; use letters"),
        ("nul.txt", "is that of a device on Windows"),
        ("a.", "is invalid; use letters"),
    ],
)
@pytest.mark.parametrize("kind", ["train", "attack", "save"])
def test_a_bad_name_is_refused_where_it_is_typed_and_where_it_comes_by_a_link(
    server: Server, base: pathlib.Path, kind: str, name: str, says: str
) -> None:
    graph = {"ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT), "text": node("PrimitiveString", value=name)}
    graph |= {socket: made for socket, made in train_graph("a").items() if socket in SETTINGS_NODES}
    made, widget = {
        "train": (train_graph("a")["train"], "save_name"),
        "attack": (attack_node("a dog", "soft_prefix"), "embedding_name"),
        "save": (node("AdvUnlearnSaveRobustCLIP", clip=("ckpt", 1), name="a", format="safetensors", rank=8), "name"),
    }[kind]
    before = sorted(base.rglob("*"))
    for value in (name, ["text", 0]):
        with pytest.raises(HostError, match=says):
            server.run(graph | {"made": made | {"inputs": made["inputs"] | {widget: value}}})
    after = sorted(base.rglob("*"))
    assert [path for path in after if path not in before and path.suffix in (".safetensors", ".pt")] == []


def test_a_save_name_leaves_room_for_the_names_of_intermediate_encoders(server: Server, base: pathlib.Path) -> None:
    graph = train_graph("n" * 189) | {"text": node("PrimitiveString", value="n" * 189)}
    for value in ("n" * 189, ["text", 0]):
        graph["train"]["inputs"]["save_name"] = value
        with pytest.raises(HostError, match="is longer than 188 bytes"):
            server.run(graph)
    name = "n" * 188
    server.run(train_graph(name, training={"keep_every": 1}))
    saved = {path.name for path in (base / "output" / "clip").glob("nnn*")}
    assert saved == {f"{name}_at_1_00001_.safetensors", f"{name}_00001_.safetensors"}


def test_a_cancel_while_intermediate_encoders_are_compared_keeps_the_encoder(
    server: Server, base: pathlib.Path
) -> None:
    prompts = "a dog\na castle\na house\na car"  # of each an image is sampled
    start = server.log.stat().st_size
    prompt_id = server.queue(train_graph("compared", training={"keep_every": 1}, retain_prompts=prompts))
    server.wait_for_log("comparing the intermediate encoders", start)
    server.request("interrupt", {})
    with pytest.raises(HostError, match="execution_interrupted"):
        server.wait(prompt_id)
    file = "compared_00001_.safetensors"
    assert f"saved as {file}; the comparison of intermediate encoders was stopped" in server.log.read_text()
    assert (base / "output" / "clip" / file).is_file()
    assert not (base / "output" / "advunlearn" / "compared" / "state.pt").exists()


def test_a_judge_outside_of_its_folders_is_refused_where_it_comes_by_a_link(
    server: Server, base: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    colour_classifier(tmp_path / "vit")
    graph = {
        "text": node("PrimitiveString", value=str(tmp_path / "vit")),
        "judge": node("AdvUnlearnLoadClassifierJudge", folder="(the path below)", path=("text", 0), top_k=1),
        "show": node("PreviewAny", source=("judge", 0)),
    }
    for path in (["text", 0], str(tmp_path / "vit"), "../checkpoints"):
        graph["judge"]["inputs"]["path"] = path
        with pytest.raises(HostError, match="is outside of .*classifiers"):
            server.run(graph)


def test_a_name_that_another_process_uses_is_refused_and_the_owner_is_named(server: Server, base: pathlib.Path) -> None:
    folder = base / "output" / "advunlearn" / "busy"
    folder.mkdir(parents=True)
    with lock_folder(folder), pytest.raises(HostError, match=f"is in use by process {os.getpid()} on .*another name"):
        server.run(train_graph("busy"))
    assert server.run(train_graph("busy"))["name"]["text"][0] == "busy_00001_.safetensors" and not folder.exists()
