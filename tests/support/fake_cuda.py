"""CUDA tensors without CUDA: torch's fake tensors, which know their device, with values that the CPU computes.

Inside `fake_cuda` a whole run works as on a GPU, losses and `.item()` included. Two tensors on different devices, a
generator on another one, and reading a CUDA tensor with numpy raise as they do there. What only CUDA's own kernels
refuse, such as a dtype, is not seen.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import safetensors.torch
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map

from advunlearn.memory.shape_mode import list_items, map_items

CPU = torch.device("cpu")
CUDA = torch.device("cuda:0")
META = torch.device("meta")  # where torch's C++ thinks that CUDA tensors are
aten = torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)  # by indices of any device
COPYING = (aten.copy.default, aten.copy_.default, aten._foreach_copy_.default)  # from any device


@contextlib.contextmanager
def fake_cuda() -> Iterator[None]:
    """Let tensors be on CUDA devices; those made outside are on the CPU."""
    with (
        fake_mode(),
        ValuesMode(),
        DeviceMode(),
        mock.patch("torch.utils.swap_tensors", swap_tensors),
        mock.patch("torch.save", write_values(torch.save)),
        mock.patch("safetensors.torch.save_file", write_values(safetensors.torch.save_file)),
    ):
        yield


@functools.cache
def fake_mode() -> FakeTensorMode:
    """Return the one mode of all contexts, which may then use each other's tensors."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def read_values(tensor: Tensor) -> Tensor:
    """Return a tensor's values as a plain tensor on the CPU."""
    return tensor.cpu_values if isinstance(tensor, FakeTensor) else tensor  # type: ignore[attr-defined,no-any-return]


class ValuesMode(TorchDispatchMode):
    """A mode over FakeTensorMode that answers in its place: every operation runs on values, and devices are checked."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch wraps every call and imports its compiler for that

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Check the devices, run one operation on values, and wrap its results."""
        if func is torch.ops.prim.device.default:
            # Asked by torch's C++, for which CUDA needs a driver; Python asks the fake tensor.
            return CPU if args[0].device == CPU else META
        kwargs = kwargs or {}
        tensors = [item for item in list_items((args, tuple(kwargs.values()))) if isinstance(item, Tensor)]
        device = find_device(func, args, kwargs, tensors)
        changed = {id(read_values(tensor)): tensor for tensor in tensors}

        def wrap(item: Any) -> Any:
            if not isinstance(item, Tensor):
                return item
            if id(item) not in changed:
                return make_fake(item, device)
            if changed[id(item)].device != device:
                raise RuntimeError(f"{func}: a result on {device} for a tensor on {changed[id(item)].device}")
            return changed[id(item)]

        with unset_fake_temporarily():
            result = func(*map_items(put_on_cpu, args), **{k: map_items(put_on_cpu, v) for k, v in kwargs.items()})
            return map_items(wrap, result)


def put_on_cpu(item: Any) -> Any:
    """Return the values of a tensor, the CPU for any device, and anything else as it is."""
    if isinstance(item, Tensor):
        return read_values(item)
    return CPU if isinstance(item, torch.device) else item


def make_fake(values: Tensor, device: torch.device) -> Tensor:
    """Return a fake tensor on a device with these values."""
    like = torch.empty_strided(values.shape, values.stride(), dtype=values.dtype, device=META)
    fake = FakeTensor(fake_mode(), like, device)
    fake.cpu_values = values  # type: ignore[attr-defined]
    return fake


def find_device(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[Tensor]) -> torch.device:
    """Return the device of an operation's results. Raises RuntimeError for mixed devices that CUDA refuses."""
    given = kwargs.get("device")  # of a new tensor, or of a copy
    if given is not None:
        device = CUDA if given == META else torch.device(given)
    elif func in COPYING:
        device = tensors[0].device
    elif func in INDEXING:
        indices = {id(index) for index in args[1] if index is not None and index.device == CPU}
        device = find_common_device(func, [tensor for tensor in tensors if id(tensor) not in indices])
    else:
        device = find_common_device(func, tensors)
    generator = kwargs.get("generator") or next((arg for arg in args if isinstance(arg, torch.Generator)), None)
    if generator is not None and generator.device.type != device.type:
        raise RuntimeError(f"{func}: a {generator.device.type} generator draws for {device.type}")
    return device


def find_common_device(func: Any, tensors: Sequence[Tensor]) -> torch.device:
    """Return the one device of tensors; a number on the CPU may meet tensors of any device."""
    devices = {tensor.device for tensor in tensors if tensor.dim() or tensor.device != CPU} or {CPU}
    if len(devices) > 1:
        raise RuntimeError(f"{func}: tensors on {' and '.join(sorted(map(str, devices), reverse=True))}")
    return devices.pop()


class DeviceMode(TorchFunctionMode):
    """A mode for calls that torch answers in C++ from a tensor's memory or device, before any operation runs."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Make a call, or what stands for it here."""
        return CALLS.get(func, func)(*args, **(kwargs or {}))


def move(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Do as Tensor.to."""
    copy = kwargs.pop("copy", False)
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    same = device in (None, tensor.device) and dtype in (None, tensor.dtype) and memory_format is None
    return tensor if same and not copy else aten._to_copy(tensor, dtype=dtype, device=device)


def read_list(tensor: Tensor) -> Any:
    """Do as Tensor.tolist."""
    with _disable_current_modes():
        return read_values(tensor).tolist()


def read_array(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Do as Tensor.numpy, which only reads the computer's memory."""
    if tensor.device != CPU:
        raise TypeError(f"can't convert {tensor.device} device type tensor to numpy. Use Tensor.cpu() first")
    with _disable_current_modes():
        return read_values(tensor).detach().numpy()


def get_item(tensor: Tensor, index: Any) -> Tensor:
    """Do as Tensor.__getitem__, whose C++ makes a tensor of a list where it thinks that the indexed one is."""
    if isinstance(index, tuple):
        return tensor[tuple(torch.tensor(each) if isinstance(each, list) else each for each in index)]
    return tensor[torch.tensor(index) if isinstance(index, list) else index]


def make_like(tensor: Tensor, data: Any, **options: Any) -> Tensor:
    """Do as Tensor.new_tensor."""
    return torch.tensor(data, **{"device": tensor.device, "dtype": tensor.dtype, **options})


def copy_deeply(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """Do as Tensor.__deepcopy__."""
    return memo.setdefault(id(tensor), tensor.detach().clone())


CALLS: dict[Any, Callable[..., Any]] = {
    Tensor.__array__: read_array,
    Tensor.__getitem__: get_item,
    Tensor.__deepcopy__: copy_deeply,
    Tensor.cpu: lambda tensor: move(tensor, CPU),
    Tensor.new_tensor: make_like,
    Tensor.numpy: read_array,
    Tensor.to: move,
    Tensor.tolist: read_list,
}


def write_values(save: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that saves as `save` does, which reads the memory of tensors."""

    def save_values(content: Any, *args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return save(tree_map(put_on_cpu, content), *args, **kwargs)

    return save_values


def swap_tensors(a: Tensor, b: Tensor) -> None:
    """Swap two tensors, as `Module.to` does with fake ones: torch's own refuses those that it refers to itself."""
    a.__dict__, b.__dict__ = b.__dict__, a.__dict__
    torch._C._swap_tensor_impl(a, b)
