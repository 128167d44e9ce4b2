"""The quicker FakeTensorMode: the same layouts and the same estimates as torch's own, with fewer calls of it."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import tiny_sd
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from advunlearn.config.training import RunConfig
from advunlearn.memory.estimate import Estimator
from advunlearn.memory.plan import Estimate, Plan
from advunlearn.memory.shape_mode import ShapeMode
from advunlearn.models.meta_model import skeleton

CPU = torch.device("cpu")
RUN = RunConfig.from_dict(
    {
        "train": {"iterations": 3, "warmup": 1, "batch": 3, "retain_batch": 2},
        "attack": {"steps": 2, "restarts": 2},
        "bank": {"trajectories": 2, "retain_trajectories": 2, "sampling_steps": 2},
    }
)
RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "the defaults": {},
    "micro-batches": {"train": {"micro_batch": 1, "checkpointing": True}},
    "inversion": {"attack": {"inversion_tokens": 1}},
    "the UNet": {"train": {"train_method": "xattn"}},
}
OPERATIONS: dict[str, Callable[[Tensor], Any]] = {
    "a product of matrices": lambda x: x @ x.transpose(-1, -2),
    "a linear layer on 3 dimensions": lambda x: F.linear(x, x[0]),
    "a norm, of several results": lambda x: torch.native_layer_norm(x, [4], None, None, 1e-5),
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]),
    "views": lambda x: [x.expand(5, 2, 4, 4), x[:, 1:], x.t() if x.dim() == 2 else x.mT, *x.chunk(2)],
    "a change in place": lambda x: [x.mul_(2), x],
    "a change of dtype": lambda x: [x.half(), x.to(torch.float32), x.long().float() + 1],
    "numbers of two types": lambda x: [x.long() + 1, x.long() + 1.0],
    "a copy of a layout": lambda x: [torch.empty_like(x.mT), x.mT.contiguous(), x.mT.clone()],
    "an index": lambda x: x[torch.tensor([0, 0, 1])],
    "a gradient": lambda x: torch.autograd.grad(F.gelu(x.requires_grad_(True)).sum(), x),
}


def describe(result: Any) -> list[Any]:
    """Return all that an estimate sees of results: layout, device, and which share a storage."""
    tensors: Iterable[Tensor] = [result] if isinstance(result, Tensor) else result
    storages: dict[int, int] = {}
    rows = []
    for tensor in tensors:
        assert isinstance(tensor, FakeTensor)
        storage = tensor.untyped_storage()
        number = storages.setdefault(storage._cdata, len(storages))
        rows.append((tensor.shape, tensor.stride(), tensor.dtype, tensor.device, storage.nbytes(), number))
    return rows


@pytest.mark.parametrize("name", OPERATIONS)
def test_results_have_the_layout_that_torch_gives_them(name: str) -> None:
    with FakeTensorMode():
        expected = describe(OPERATIONS[name](torch.empty(2, 4, 4)))
    with ShapeMode():
        for _ in range(2):  # the second time from memory
            assert describe(OPERATIONS[name](torch.empty(2, 4, 4))) == expected


def test_what_was_seen_once_is_not_described_again(monkeypatch: pytest.MonkeyPatch) -> None:
    described = []
    dispatch = FakeTensorMode.dispatch

    def note(mode: FakeTensorMode, func: Any, *rest: Any) -> Any:
        if func is not torch.ops.prim.device.default:  # which a `LiveMemory` answers
            described.append(func)
        return dispatch(mode, func, *rest)

    monkeypatch.setattr(FakeTensorMode, "dispatch", note)
    with ShapeMode():
        x = torch.empty(2, 4, 4)
        F.gelu(x @ x)
        seen = len(described)
        F.gelu(x @ x)
        assert seen > 0 and len(described) == seen
        F.gelu(x[:, :2] @ x)  # another layout
        assert len(described) > seen


@pytest.fixture(scope="module")
def smallest_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tiny_sd(tmp_path_factory.mktemp("smallest") / "model", depth=1)


@pytest.mark.parametrize("name", [next(iter(RUNS)), *(pytest.param(n, marks=pytest.mark.slow) for n in list(RUNS)[1:])])
def test_an_estimate_is_the_same_in_both_modes(name: str, smallest_folder: pathlib.Path) -> None:
    shape = skeleton(str(smallest_folder), CPU, torch.bfloat16)
    plan = Plan(run=RUN.replace(**RUNS[name]), resolution=64)

    def estimate_in(mode: FakeTensorMode) -> Estimate:
        estimator = Estimator(shape, ["a dog"], CPU)
        vars(estimator)["mode"] = mode
        return estimator(plan)

    assert estimate_in(ShapeMode()) == estimate_in(FakeTensorMode(allow_non_fake_inputs=True))
