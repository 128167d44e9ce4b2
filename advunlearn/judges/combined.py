"""Several judges as one: a picture shows what any of them sees, or what all of them see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..config.concept import ConceptConfig
from ..config.evaluation import CombinedConfig
from ..errors import AdvUnlearnError
from .base import Judge, JudgeOutput


class CombinedJudge:
    """Judges that each have a label of their own for a name; here the name is the label.

    All must see the concept. Of a label to be kept those decide that know it. Features are the first judge's that has
    some. Raises AdvUnlearnError for fewer than two judges.
    """

    def __init__(self, judges: Sequence[Judge], config: CombinedConfig | None = None) -> None:
        if len(judges) < 2:
            raise AdvUnlearnError(f"{len(judges)} judge cannot be combined; give two or more, A+B")
        self.judges, self.config = list(judges), config or CombinedConfig()
        self.known: dict[str, list[tuple[int, str]]] = {}  # name -> which judges know it, and by which label
        self.concepts: dict[str, list[str]] = {}  # name of a concept -> each judge's label

    def concept_label(self, concept: ConceptConfig) -> str:
        """See `Judge.concept_label`: the concept's name, which every judge must know."""
        name = concept.concept.strip()
        self.concepts[name] = [judge.concept_label(concept) for judge in self.judges]
        self.known[name] = list(enumerate(self.concepts[name]))
        return name

    def label(self, name: str) -> str:
        """See `Judge.label`: the name, where at least one of the judges knows it."""
        found, errors = [], []
        for number, judge in enumerate(self.judges):
            try:
                found.append((number, judge.label(name)))
            except AdvUnlearnError as error:
                errors.append(str(error))
        if not found:
            raise AdvUnlearnError("; ".join(errors))
        self.known.setdefault(name, found)
        return name

    def look(self, images: Tensor, concept: str) -> JudgeOutput:
        """See `Judge.look`. A picture's labels are the names asked for that it shows."""
        seen = [judge.look(images, label) for judge, label in zip(self.judges, self.concepts[concept], strict=True)]
        rule = any if self.config.shown_by == "any" else all

        def shown(picture: int) -> frozenset[str]:
            said = {
                name: [label in seen[j].labels[picture] for j, label in known] for name, known in self.known.items()
            }
            return frozenset(name for name, each in said.items() if rule(each))

        features = next((s.features for s in seen if s.features is not None), None)
        return JudgeOutput([shown(picture) for picture in range(len(images))], features)

    def settings(self) -> dict[str, Any]:
        """See `Judge.settings`."""
        each = [judge.settings() for judge in self.judges]
        names = " + ".join(str(about.get("judge", "?")) for about in each)
        return {"judge": names, **self.config.to_dict(), "judges": each}
