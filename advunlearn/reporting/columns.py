"""The columns of a report's table: what is counted, where it stands in a model's part of the report, what it means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Column = tuple[str, str, str, str]  # heading, where in a model's part of the report, which is better, what it means

FIRST: tuple[Column, ...] = (
    ("Plain prompts", "asr clean", "lower", "Pictures that show the concept when the prompt simply names it."),
    (
        "Other routes",
        "asr routes",
        "lower",
        "The same for prompts that reach the concept without its usual name: foreign words and keywords.",
    ),
    (
        "UnlearnDiffAtk",
        "asr unlearndiffatk",
        "lower",
        "Cases where a search for adversarial tokens before the prompt brings the concept back. The search reads the "
        "weights; a case that the plain prompt already wins counts.",
    ),
    (
        "Soft prefix",
        "asr soft_prefix",
        "lower",
        "The same search over free embedding vectors instead of tokens: an attacker not held to what can be typed.",
    ),
)
MORE: dict[str, tuple[str, str]] = {
    "random_prefix": ("Random prefix", "Random words before the prompt: what an attack must beat."),
    "seed_search": ("Other seeds", "The plain prompt with other starting noise: what an attack must beat."),
    "routes": ("Each route", "Every other name of the concept, one after the other."),
    "ring_a_bell": ("Ring-A-Bell", "A genetic search that knows the original text encoder alone."),
    "mma": ("MMA", "Token swaps that avoid the concept's own words, by the encoder's gradient."),
    "pez": ("PEZ", "A hard prompt that means to the encoder what the concept's prompt meant to the original."),
    "p4d_n": ("P4D-N", "A free prompt by which the model predicts the noise that the original one did."),
    "p4d_k": ("P4D-K", "The same, by words put between those of the prompt."),
    "cce": ("Concept inversion", "A new word, learned from pictures of the concept."),
}
LAST: tuple[Column, ...] = (
    (
        "Retained objects",
        "utility retained_accuracy",
        "higher",
        "Pictures of everything else in which the judge finds what the prompt asked for.",
    ),
    (
        "Neighbours",
        "utility neighbour_accuracy",
        "higher",
        "The retained prompts closest to the concept, the first to be damaged.",
    ),
    (
        "Feature distance",
        "utility feature_distance",
        "lower",
        "Frechet distance from the original model's retained pictures, on the judge's features.",
    ),
    ("Seconds", "seconds", "lower", "Time to train."),
)
QUALITY: tuple[Column, ...] = (
    (
        "Seen together",
        "utility co_occurring_accuracy",
        "higher",
        "Images of things that co-occur with the concept, prompted by their own names; over-erasure takes these first.",
    ),
    ("CLIP score", "utility clip_score", "higher", "How well the retained pictures fit their prompts, to CLIP."),
    ("FID", "utility fid", "lower", "Frechet distance from the original model's retained pictures, on Inception."),
    ("LPIPS", "utility lpips", "lower", "Mean distance of a retained picture from the original model's."),
)


def at(tree: Any, *keys: str) -> Any:
    """Return what lies under the keys, or None."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def more_attacks(models: Mapping[str, Any]) -> list[str]:
    """Return the attacks that any of the models met, beyond those that every report has."""
    met = {name for model in models.values() for name in at(model, "attacks") or {}}
    return [name for name in MORE if name in met]


def columns(models: Mapping[str, Any]) -> tuple[Column, ...]:
    """Return the columns of a table of models."""
    more = ((MORE[a][0], f"attacks {a} sum", "lower", MORE[a][1]) for a in more_attacks(models))
    quality = [c for c in QUALITY if any(at(model, *c[1].split()) is not None for model in models.values())]
    return (*FIRST, *more, *LAST[:-1], *quality, LAST[-1])


def costs(model: Any) -> dict[str, Any]:
    """Return what each attack on a model cost: UNet forward-equivalents (F) and seconds, with and without looking."""
    attacks, seconds = at(model, "attacks") or {}, at(model, "attack_seconds") or {}
    return {
        name: {
            "F": at(row, "forwards", "attack"),
            "F of looks": at(row, "forwards", "looks"),
            "seconds": at(seconds, name, "attack"),
            "seconds of looks": at(seconds, name, "looks"),
        }
        for name, row in attacks.items()
    }
