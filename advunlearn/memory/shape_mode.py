"""FakeTensorMode, quicker for programs that repeat their operations, as networks repeat their layers.

torch's own mode describes every operation from its arguments in Python, which takes most of an estimate's time.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

Kind = Literal["new", "alias", "other"]
Builder = Callable[[list[Tensor | None]], Any]  # makes an operation's result of tensors
META = torch.device("meta")


class Layout(NamedTuple):
    """A tensor without its values."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@functools.cache
def shape_mode() -> ShapeMode:
    """Return the one mode of all estimates, which remembers their operations."""
    return ShapeMode()


class ShapeMode(FakeTensorMode):
    """A FakeTensorMode with the same results.

    The layout of new tensors is remembered by the layouts of the arguments. Views and changes in place run on the
    tensors' meta tensors at once. Everything else is left to torch.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.layouts: dict[Hashable, tuple[Builder, list[Layout | None]]] = {}  # by operation and arguments

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch wraps every call

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation without values."""
        kwargs = kwargs or {}
        kind = classify(func)
        tensors = [item for item in list_items((args, tuple(kwargs.values()))) if isinstance(item, Tensor)]
        if kind == "other" or not all(isinstance(tensor, FakeTensor) for tensor in tensors):
            return super().__torch_dispatch__(func, types, args, kwargs)
        if kind == "new":
            return self._make_new(func, types, args, kwargs, tensors)
        device = tensors[0].device
        with in_kernel_invocation_manager(self):  # in which every tensor's device is meta
            return map_items(lambda item: self._wrap(item, device), func(*args, **kwargs))

    def _make_new(self, func: Any, types: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> Any:
        """Return new tensors, of remembered layouts if there are any."""
        key = (func, describe(args), *((name, describe(value)) for name, value in kwargs.items()))
        if key not in self.layouts:
            result: Any = super().__torch_dispatch__(func, types, args, kwargs)
            outputs: list[Tensor | None] = [result] if isinstance(result, Tensor) else list(result)
            if own_storages(outputs, tensors):
                layouts = [None if output is None else get_layout(output) for output in outputs]
                self.layouts[key] = (find_builder(result), layouts)
            return result
        build, layouts = self.layouts[key]
        with in_kernel_invocation_manager(self):
            return build([None if layout is None else self._make_tensor(layout) for layout in layouts])

    def _make_tensor(self, layout: Layout) -> Tensor:
        values = torch.empty_strided(layout.shape, layout.stride, dtype=layout.dtype, device=META)
        return FakeTensor(self, values, layout.device)

    def _wrap(self, item: Any, device: torch.device) -> Any:
        return FakeTensor(self, item, device) if isinstance(item, Tensor) and not isinstance(item, FakeTensor) else item


@functools.cache
def classify(func: Any) -> Kind:
    """Return what an operation returns: new tensors, its arguments or views of them, or something else."""
    if func is torch.ops.aten._unsafe_view.default:
        return "alias"  # its schema does not say so
    schema = func._schema
    tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    if not schema.returns or tags & set(func.tags):
        return "other"
    if any(str(output.type) not in ("Tensor", "List[Tensor]") for output in schema.returns):
        return "other"
    if all(item.alias_info is None for item in (*schema.arguments, *schema.returns)):
        return "new"
    # With a device, a view can be a copy from another one.
    return "other" if any(argument.name == "device" for argument in schema.arguments) else "alias"


def find_builder(result: Any) -> Builder:
    """Return what makes a result like this one: a tensor, a list or a tuple."""
    if isinstance(result, Tensor):
        return operator.itemgetter(0)
    return list if isinstance(result, list) else tuple


def list_items(item: Any) -> Iterator[Any]:
    """Yield an argument of an operation, or each of a list or a tuple."""
    if isinstance(item, list | tuple):
        for part in item:
            yield from list_items(part)
    else:
        yield item


def map_items(function: Callable[[Any], Any], item: Any) -> Any:
    """Apply a function to an argument or a result of an operation, or to each of a list or a tuple."""
    if isinstance(item, list | tuple):
        parts = [map_items(function, part) for part in item]
        return parts if isinstance(item, list) else tuple(parts)
    return function(item)


def describe(item: Any) -> Hashable:
    """Return what the layout of a result depends on in an argument: of tensors the layout, else type and value."""
    if isinstance(item, Tensor):
        return get_layout(item)
    if isinstance(item, list | tuple):
        return tuple(map(describe, item))
    return type(item), item


def get_layout(tensor: Tensor) -> Layout:
    """Return the layout of a tensor."""
    return Layout(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


def own_storages(outputs: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> bool:
    """Return whether each output has a storage of its own, of the size that its layout needs."""
    storages = {tensor.untyped_storage()._cdata for tensor in inputs}
    for output in outputs:
        if output is None:
            continue
        storage = output.untyped_storage()
        if storage._cdata in storages or storage.nbytes() != count_bytes(output):
            return False
        storages.add(storage._cdata)
    return True


def count_bytes(tensor: Tensor) -> int:
    """Return the size of the smallest storage for a tensor's layout."""
    if not tensor.numel():
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (1 + last) * tensor.element_size()
