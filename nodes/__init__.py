"""The ComfyUI nodes. This is the only folder that imports ComfyUI; heavy imports wait until a node runs."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .attack import AdversarialPromptAttack
from .evaluate import EvaluateRobustness
from .evaluation_settings import (
    CCESettings,
    EvaluationSettings,
    MMASettings,
    P4DSettings,
    PEZSettings,
    RingABellSettings,
    SoftPrefixSettings,
    UnlearnDiffAtkSettings,
)
from .guard import host as guard
from .judges import LoadClassifierJudge, LoadCLIPJudge, LoadJudge, LoadNudityJudge
from .load_encoder import LoadRobustCLIP
from .save_encoder import SaveRobustCLIP
from .saved_graphs import accept_old_graphs
from .train import TrainAdvUnlearnEncoder
from .training_settings import AttackSettings, BankSettings, TrainingSettings
from .verify import VerifyRobustCLIP

NODES: list[type[io.ComfyNode]] = [
    TrainAdvUnlearnEncoder,
    AdversarialPromptAttack,
    LoadRobustCLIP,
    SaveRobustCLIP,
    EvaluateRobustness,
    VerifyRobustCLIP,
    LoadJudge,
    LoadNudityJudge,
    LoadClassifierJudge,
    LoadCLIPJudge,
    TrainingSettings,
    AttackSettings,
    BankSettings,
    EvaluationSettings,
    UnlearnDiffAtkSettings,
    SoftPrefixSettings,
    P4DSettings,
    PEZSettings,
    RingABellSettings,
    MMASettings,
    CCESettings,
]


class AdvUnlearnExtension(ComfyExtension):
    """The node pack, and the guard where the operator has turned it on."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the node classes."""
        return [*NODES, *guard.install()]


async def comfy_entrypoint() -> AdvUnlearnExtension:
    """Return the extension; the host calls this once at its start."""
    accept_old_graphs()
    return AdvUnlearnExtension()
