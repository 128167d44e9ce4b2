"""What Adversarial Prompt Attack draws, what a judge says of it, and what a prompt may have besides words."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from .graphs import CHECKPOINT, Graph, attack_node, get_images, recognise_objects, sample_graph
from .server import HostError, Server, node

pytestmark = pytest.mark.host
JUDGE = {"judge": node("AdvUnlearnLoadJudge", judge="miniature")}


def attack_graph(prompt: str, attack: str = "soft_prefix", **changes: Any) -> Graph:
    """Return an attack, and what it returns."""
    return {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "attack": attack_node(prompt, attack, **changes),
        "prompt": node("PreviewAny", source=("attack", 1)),
        "report": node("PreviewAny", source=("attack", 4)),
        "save": node("SaveImage", images=("attack", 5), filename_prefix="sides"),
    }


def cut_pictures(sheet: torch.Tensor) -> list[torch.Tensor]:
    """Return both sides of a sheet of 2 x 2 pictures each, (4, 3, 64, 64): four times enlarged, each in a frame."""
    corners = [(sheet.shape[-2] - 528 + y, x) for y in (4, 268) for x in (4, 268)]
    sides = [
        torch.stack([sheet[0, :, y : y + 256, x + left : x + left + 256] for y, x in corners]) for left in (0, 540)
    ]
    return [side[..., ::4, ::4] for side in sides]


def test_an_attack_shows_pictures_without_and_with_it_and_the_judges_verdict(server: Server) -> None:
    """A church as the target of "a dog": the judge must see the churches that the sheet shows, and no other ones."""
    graph = attack_graph(
        "a dog",
        steps=25,
        restarts=2,
        concept="church",
        target=("sample", 0),
        vae=("ckpt", 2),
        judge=("judge", 0),
        pictures=4,
    )
    outputs = server.run(sample_graph("a church", steps=10) | JUDGE | graph)
    sheet = get_images(server, outputs)
    without, attacked = ([name == "church" for name in recognise_objects(side)] for side in cut_pictures(sheet))
    report = outputs["report"]["text"][0].splitlines()
    assert sum(without) == 0 < sum(attacked)
    assert report[1] == f"the attack succeeded: church in {sum(attacked)} of 4 pictures, without it in 0"
    numbers = ", ".join(str(i) for i, yes in enumerate(attacked, start=1) if yes)
    assert report[2] == f"pictures that show church: without the attack none; with the attack {numbers}"
    assert report[3].startswith("embedding:adv_soft_prefix")
    (shown,) = outputs["attack"]["images"]  # the preview on the node
    assert server.image(shown).size == (sheet.shape[-1], sheet.shape[-2])
    _, node_id, said = server.texts[-1]
    assert node_id == "attack" and said.startswith(report[1])


def test_an_attack_without_a_vae_shows_rough_previews(server: Server) -> None:
    outputs = server.run(attack_graph("a church"))
    sheet = get_images(server, outputs)
    assert sheet.shape[-1] == 2 * 264 + 12 and sheet.std() > 0.1
    assert "the attack" not in outputs["report"]["text"][0]


def test_a_judge_that_cannot_say_anything_and_no_pictures_are_refused_before_the_search(server: Server) -> None:
    start = server.log.stat().st_size
    with pytest.raises(HostError, match="judge is connected but vae is not"):
        server.run(JUDGE | attack_graph("a church", judge=("judge", 0)))
    with pytest.raises(HostError, match="knows no thing in the prompt 'zeppelin'"):
        graph = attack_graph("a church", judge=("judge", 0), vae=("ckpt", 2), concept="zeppelin")
        server.run(JUDGE | graph)
    none = {"none": node("PrimitiveInt", value=0)}
    with pytest.raises(HostError, match="pictures is 0; it must be at least 1"):
        server.run(none | attack_graph("a church", pictures=("none", 0)))
    assert b"attacking" not in server.log.read_bytes()[start:]


def test_weights_and_embeddings_of_an_attacked_prompt_are_named_one_by_one(server: Server) -> None:
    path = server.base / "models" / "embeddings" / "known.safetensors"
    save_file({"clip_l": torch.zeros(2, 768)}, path)
    prompt = "a (red (church:1.3)) by embedding:known at night"
    with pytest.raises(HostError) as refused:
        server.run(attack_graph(prompt))
    said = "the prompt has (red:1.1), (church:1.3), embedding:known, but attacks take plain words"
    assert said in str(refused.value) and "Attack 'a red church by at night'" in str(refused.value)
    with pytest.raises(HostError, match="has 298 tokens; the text encoder takes 300 of prompt and 3 adversarial"):
        server.run(attack_graph("dog " * 298))


def test_brackets_that_are_no_weights_are_attacked_as_the_host_reads_them(server: Server) -> None:
    outputs = server.run(attack_graph(r"a \(red\) church", "unlearndiffatk"))
    prompt = outputs["prompt"]["text"][0]
    assert re.search(r"\\\( ?red ?\\\)", prompt) and prompt.endswith("church"), prompt
