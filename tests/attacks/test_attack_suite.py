"""Every attack, driven by one table."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attack_table import BLIND, TINY, attacked, cancelled, objective, state_of

from advunlearn.attacks.base import AttackContext, ReferenceModel
from advunlearn.attacks.registry import ATTACKS, attack_settings, make_attack
from advunlearn.attacks.single_prompt import attack_prompt
from advunlearn.attacks.vocabulary import typed_vocabulary
from advunlearn.config import attacks as attack_config
from advunlearn.config.concept import ConceptConfig
from advunlearn.config.evaluation import EvaluateConfig
from advunlearn.errors import AdvUnlearnError


def test_the_table_has_every_attack() -> None:
    assert tuple(ATTACKS) == attack_config.ATTACK_NAMES == (*TINY,)
    for name, kind in ATTACKS.items():
        assert kind.name == name and kind.config_class.__doc__


@pytest.mark.parametrize("name", [name for name, kind in ATTACKS.items() if hasattr(kind, "chunk")])
def test_an_attack_in_chunks_finds_what_it_finds_in_one(
    name: str, context: AttackContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, losses = attacked(name, context, steps=2)
    monkeypatch.setattr(ATTACKS[name], "chunk", 1)
    chunked, losses_in_chunks = attacked(name, context, steps=2)
    assert losses_in_chunks == pytest.approx(losses, rel=1e-4)
    assert torch.allclose(chunked.result().embeddings, at_once.result().embeddings, atol=1e-4)


@pytest.mark.parametrize("name", attack_config.ATTACK_NAMES)
def test_every_attack(name: str, context: AttackContext) -> None:
    encoders = (context.encoder, context.reference.encoder, *context.denoiser.modules())
    before, flags = state_of(*encoders), [p.requires_grad for m in encoders for p in m.parameters()]
    attack, losses = attacked(name, context)
    found = attack.result()
    # The model is unchanged, and nothing is left in its gradients.
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(*encoders), strict=True))
    assert flags == [p.requires_grad for m in encoders for p in m.parameters()]
    assert all(p.grad is None for m in encoders for p in m.parameters())
    # One conditioning a case, and one loss a step.
    assert found.conditioning.shape == (2, 77, 192) and not found.conditioning.requires_grad
    assert len(losses) == attack.steps == TINY[name]["steps"]
    # A cancelled attack keeps its result, which equals that of as many steps with the same seed, and of no other seed.
    first, other = (attacked(name, context, seed, steps=2)[0].result() for seed in (1, 2))
    again = cancelled(name, context, 2).result()
    assert torch.equal(first.conditioning, again.conditioning) and torch.equal(first.embeddings, again.embeddings)
    if name not in ("synonym_search", "emphasis"):  # nothing is drawn in these
        drawn = (f.conditioning if f.noise is None else f.noise for f in (first, other))
        assert not torch.equal(*drawn)
    # Tokenizing the text gives the found tokens again, and encoding it gives the result's conditioning.
    texts = attack.prompts()
    assert bool(texts) is ATTACKS[name].discrete
    for text, conditioning in zip(texts, found.conditioning, strict=False):
        assert text["exact"]
        if name == "emphasis":  # its text has a weight, which the tokenizer does not read
            continue
        assert torch.allclose(context.encode([text["prompt"]])[0], conditioning, atol=1e-5)
    # Its objective falls, and the denoising loss of the images is lower than at its start, unless it uses the original
    # encoder only.
    if name in BLIND:
        return
    if name in ("ring_a_bell", "mma", "pez"):
        assert losses[-1] < losses[0]
    if name == "ring_a_bell":
        return
    start, _ = attacked(name, context, steps=0)
    assert objective(context, found.conditioning) < objective(context, start.result().conditioning)


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("unlearndiffatk", "target images"),
        ("soft_prefix", "target images"),
        ("cce", "target images"),
        ("p4d_n", "the text encoder before erasing"),
        ("p4d_k", "the text encoder before erasing"),
        ("pez", "the text encoder before erasing"),
        ("mma", "the text encoder before erasing"),
        ("ring_a_bell", "the text encoder before erasing"),
        ("synonym_search", "synonyms of the concept"),
    ],
)
def test_what_an_attack_lacks_is_one_sentence(name: str, lacks: str, context: AttackContext) -> None:
    bare = replace(context, reference=ReferenceModel(), synonyms=())
    if lacks == "target images":
        bare = replace(bare, targets=replace(context.targets, x_0=context.targets.x_0[:0]))
    with pytest.raises(AdvUnlearnError, match=f"{name} lacks {lacks}.*; give that, or choose another attack$"):
        make_attack(name, bare, attack_settings(name, EvaluateConfig()), 0)


def test_bad_settings_and_names(context: AttackContext) -> None:
    with pytest.raises(AdvUnlearnError, match="attack is 'gcg'; it must be one of random_prefix, seed_search"):
        attack_settings("gcg", EvaluateConfig())
    with pytest.raises(AdvUnlearnError, match="population is 1; it must be between 2"):
        attack_settings("ring_a_bell", EvaluateConfig(), {"population": 1})
    words = context.tokenizer.batch_decode(typed_vocabulary(context.tokenizer)[:, None])
    with pytest.raises(AdvUnlearnError, match="no token is left to search; forbid fewer words"):
        attacked("mma", context, forbidden="\n".join({word.strip()[0] for word in words}))
    with pytest.raises(AdvUnlearnError, match="synonym_search makes attempts that only a judge can compare"):
        attack_prompt(
            AttackContext.for_prompt(
                context.denoiser, context.encoder, context.tokenizer, "a church", context.targets.x_0[:1]
            ),
            "synonym_search",
        )


def test_the_shared_budget_goes_over_the_published_and_flags_over_both() -> None:
    config = EvaluateConfig(attack_steps=7, attack_tokens=3, attack_lr=0.2, prefix_lr=0.4, prefix_radius=2.0)
    made = {name: attack_settings(name, config) for name in attack_config.ATTACK_NAMES}
    assert (made["p4d_n"].steps, made["p4d_n"].tokens, made["p4d_n"].lr) == (7, 3, 0.1)  # type: ignore[attr-defined]
    assert (made["cce"].steps, made["cce"].tokens) == (7, 1)  # type: ignore[attr-defined]
    assert made["unlearndiffatk"].lr == 0.2  # type: ignore[attr-defined]
    assert (made["soft_prefix"].lr, made["soft_prefix"].radius) == (0.4, 2.0)  # type: ignore[attr-defined]
    assert made["synonym_search"].steps == 100000
    assert attack_settings("p4d_n", config, {"tokens": 9}).tokens == 9  # type: ignore[attr-defined]


def test_a_prompt_attack_by_a_newer_name(context: AttackContext) -> None:
    found = attack_prompt(
        AttackContext.for_prompt(
            context.denoiser,
            context.encoder,
            context.tokenizer,
            "a church",
            context.targets.x_0[:1],
            reference=context.reference,
        ),
        "pez",
        restarts=2,
        config=EvaluateConfig(attack_steps=12, attack_tokens=4),
    )
    assert found.exact and len(found.text.split()) == 4 and found.loss < found.loss_before
    assert torch.allclose(context.encode([found.text]), found.conditioning, atol=1e-5)
    assert found.surrounding_text == ("", "")  # nothing but what was found


@pytest.mark.parametrize(
    ("name", "around"), [("soft_prefix", ("", "photo of a dog")), ("cce", ("photo of a", "")), ("p4d_k", None)]
)
def test_where_the_embeddings_found_stand(context: AttackContext, name: str, around: tuple[str, str] | None) -> None:
    found = attack_prompt(
        AttackContext.for_prompt(
            context.denoiser,
            context.encoder,
            context.tokenizer,
            "photo of a dog",
            context.targets.x_0[:1],
            reference=context.reference,
            concept=ConceptConfig(concept="dog"),
        ),
        name,
        restarts=1,
        config=EvaluateConfig(attack_steps=0, attack_tokens=2),
        overrides={"word_interval": 2} if name == "p4d_k" else None,
    )
    assert found.surrounding_text == around
