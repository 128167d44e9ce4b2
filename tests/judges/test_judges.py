"""The judges: each against decisions known by hand, on tiny models of transformers' own classes."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import torch
from tiny_models import COLOURS, colour_classifier, colour_clip, constant_classifier, patches

from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import ClassifierConfig, ZeroShotConfig
from advunlearn.errors import AdvUnlearnError
from advunlearn.judges.base import JudgeOutput, match_label, split_pixels
from advunlearn.judges.classifier import ClassifierJudge
from advunlearn.judges.convnet import ConvJudge
from advunlearn.judges.load import make_judge
from advunlearn.judges.zero_shot import ZeroShotJudge

LABELS = ["church, church building", "crane", "crane", "maillot", "maillot, tank suit", "tench_fish", "gas pump"]
ORDER = ["blue", "red", "green", "red", "blue"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return colour_classifier(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return colour_clip(tmp_path_factory.mktemp("clip"))


def concept(name: str) -> ConceptConfig:
    return ConceptConfig(concept=name)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("church", "church, church building"),
        ("Church Building", "church, church building"),
        ("church, church building", "church, church building"),
        ("crane", "crane"),  # two classes of one name are one label
        ("maillot", "maillot"),  # the whole label before a part of another
        ("tank suit", "maillot, tank suit"),
        ("Tench fish", "tench_fish"),
    ],
)
def test_a_name_finds_its_label(name: str, label: str) -> None:
    assert match_label(name, LABELS, "it") == label


def test_a_name_that_finds_none_or_several_is_refused_with_what_is_near() -> None:
    with pytest.raises(AdvUnlearnError, match="it has no label 'chruch'; similar: 'church, church building'"):
        match_label("chruch", LABELS, "it")
    with pytest.raises(AdvUnlearnError, match="the first of its 7 labels: 'church, church building', 'crane'"):
        match_label("xyzzy", LABELS, "it")
    with pytest.raises(AdvUnlearnError, match="'a' may be 'a, b' or 'c, a'; give it the full label"):
        match_label("a", ["a, b", "c, a"], "it")
    with pytest.raises(AdvUnlearnError, match="has no label ''"):
        match_label("", ["a,", "b"], "it")


def test_seen_and_pixels_by_hand() -> None:
    seen = JudgeOutput([frozenset({"a", "b"}), frozenset(), frozenset({"b"})])
    assert seen.shows("b").tolist() == [True, False, True] and seen.shows("c").tolist() == [False] * 3
    image = torch.zeros(1, 3, 2, 3)
    image[0, 0, 1, 2], image[0, 2, 0, 0] = 1.0, 0.5
    (parts,) = split_pixels(image)
    assert parts[0].shape == (2, 3, 3) and parts[0].dtype == np.uint8
    assert parts[0][1, 2].tolist() == [255, 0, 0] and parts[0][0, 0].tolist() == [0, 0, 128]
    assert [len(part) for part in split_pixels(torch.zeros(5, 3, 1, 1), 2)] == [2, 2, 1]


def test_the_miniatures_judge_sees_what_its_logits_say(judge: ConvJudge) -> None:
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = judge(images)
    seen = judge.look(images, "church")
    for i, labels in enumerate(seen.labels):
        o, s, b = (int(part[i].argmax()) for part in (logits.object, logits.style, logits.background))
        objects = {judge.objects[o]} if o < len(judge.objects) else set()
        assert labels == objects | {judge.styles[s], f"{judge.backgrounds[b]} background"}
    assert seen.features is not None and torch.equal(seen.features, logits.features)
    assert not set(judge.objects) & set(judge.styles)  # so that one set can hold both
    assert judge.label("INK") == "ink" and judge.label("church") == "church"
    assert judge.settings()["judge"] == "miniature"


@pytest.mark.parametrize("size", [16, 64])
def test_a_classifier_folder_judges_by_its_labels(classifier: pathlib.Path, size: int) -> None:
    judge = ClassifierJudge(classifier)
    label = judge.concept_label(concept("Red"))
    seen = judge.look(patches(ORDER, size), label)
    assert label == "red" and seen.labels == [frozenset({c}) for c in ORDER]
    assert seen.shows(label).tolist() == [False, True, False, True, False]
    assert seen.features is not None and seen.features.shape == (5, 16)


def test_a_classifier_is_given_what_it_was_trained_on(classifier: pathlib.Path) -> None:
    judge, images = ClassifierJudge(classifier), (patches(ORDER) * 255).round() / 255
    (values,) = judge.prepare(images)
    assert torch.allclose(values, images * 2 - 1, atol=1e-6)
    hidden = judge.model(values, output_hidden_states=True).hidden_states[-1]
    features = judge.look(images, "red").features
    assert features is not None and torch.allclose(features, hidden.mean(1), atol=1e-6)


def test_top_k_counts_the_likeliest_labels(tmp_path: pathlib.Path) -> None:
    folder = constant_classifier(tmp_path / "resnet", {"tench": 0.0, "church, church building": 2.0, "dog": 1.0})
    for top_k, labels in ((1, ["church, church building"]), (2, ["church, church building", "dog"])):
        judge = ClassifierJudge(folder, ClassifierConfig(top_k=top_k))
        seen = judge.look(torch.rand(20, 3, 24, 16), judge.concept_label(concept("dog")))
        assert seen.labels == [frozenset(labels)] * 20
        assert seen.shows(judge.label("church")).all() and seen.shows(judge.label("dog")).all() == (top_k == 2)
        assert seen.features is not None and seen.features.shape == (20, 6)
    assert ClassifierJudge(folder, ClassifierConfig(top_k=99)).look(torch.rand(1, 3, 8, 8), "dog").labels[0] == {
        "tench",
        "church, church building",
        "dog",
    }
    with pytest.raises(AdvUnlearnError, match="the classifier has no label 'chruch'; similar: 'church, church"):
        judge.concept_label(concept("chruch"))


def test_clip_says_which_label_is_nearest(clip: pathlib.Path) -> None:
    judge = ZeroShotJudge(clip, ZeroShotConfig(labels="green, blue"))
    label = judge.concept_label(concept("red"))
    seen = judge.look(patches(ORDER), label)
    assert judge.labels == ["green", "blue"] and seen.labels == [frozenset({c}) for c in ORDER]
    # Without red among the candidates every picture is one of the others.
    others = judge.look(patches(["red", "green", "blue"]), judge.concept_label(concept("Green")))
    assert [c for labels in others.labels for c in labels][1:] == ["green", "blue"] and not others.shows("red").any()
    # The same as the model's own forward pass.
    (values,) = judge.prepare(patches(ORDER))
    text = judge.tokenizer([f"a photo of a {c}" for c in COLOURS], padding=True, return_tensors="pt")
    out = judge.model(pixel_values=values, **text)
    assert [list(COLOURS)[i] for i in out.logits_per_image.argmax(1)] == ORDER
    assert seen.features is not None
    assert torch.allclose(torch.nn.functional.normalize(seen.features, dim=-1), out.image_embeds, atol=1e-5)


def test_clip_competes_with_coco_unless_told_otherwise(clip: pathlib.Path) -> None:
    judge = ZeroShotJudge(clip)
    assert len(judge.labels) == 80 and judge.labels[:2] == ["person", "bicycle"]
    assert judge.concept_label(concept("Dog")) == "dog" and judge.concept_label(concept("church")) == "church"
    assert judge.label("Hot Dog") == "hot dog" and judge.settings()["labels"] == judge.labels
    with pytest.raises(AdvUnlearnError, match="the CLIP judge has no label 'dgo'; similar: 'dog'"):
        judge.label("dgo")
    with pytest.raises(AdvUnlearnError, match="every image would show 'Church'"):
        ZeroShotJudge(clip, ZeroShotConfig(labels="Church")).concept_label(concept("church"))
    for template in ("a photo", "{} and {}", "{0}", "a {} {x}"):
        with pytest.raises(AdvUnlearnError, match="template is"):
            ZeroShotConfig(template=template)


def test_a_folder_says_which_judge_it_holds(
    classifier: pathlib.Path, clip: pathlib.Path, judge: ConvJudge, tmp_path: pathlib.Path
) -> None:
    judge.save_pretrained(tmp_path / "mini")
    made = {
        "miniature": ConvJudge,
        str(tmp_path / "mini"): ConvJudge,
        str(classifier): ClassifierJudge,
        str(clip): ZeroShotJudge,
        f"clip:{clip}": ZeroShotJudge,
    }
    for name, kind in made.items():
        assert type(make_judge(name)) is kind


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ('{"model_type": "clip_text_model", "architectures": ["CLIPTextModel"]}', "names CLIPTextModel; give a folder"),
        ('{"_class_name": "UNet"}', "names neither an architecture nor a model_type"),
        ("[]", "config.json is a list"),
        ("{", "is not JSON"),
        (None, "no config.json there"),
    ],
)
def test_a_folder_that_holds_no_judge_is_refused(config: str | None, says: str, tmp_path: pathlib.Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(AdvUnlearnError, match=says):
        make_judge(str(tmp_path))


def test_weights_that_would_be_random_are_refused(classifier: pathlib.Path, tmp_path: pathlib.Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(classifier / "model.safetensors")
    headless = {k: v for k, v in tensors.items() if not k.startswith("classifier")}
    save_file(headless, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((classifier / "config.json").read_text())
    with pytest.raises(AdvUnlearnError, match="lacks 2 weights, first 'classifier.bias'"):
        ClassifierJudge(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((classifier / "model.safetensors").read_bytes())
    with pytest.raises(AdvUnlearnError, match="preprocessor_config.json could not be used"):
        ClassifierJudge(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(AdvUnlearnError, match="could not be read"):
        ClassifierJudge(tmp_path)
    with pytest.raises(AdvUnlearnError, match="lacks .* weights"):
        ZeroShotJudge(classifier)
