"""Tensors in files: checks of their values, their SHA-256, and the safetensors writer that uses both."""

from __future__ import annotations

import hashlib
import math
import pathlib
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from ..errors import AdvUnlearnError, shorten_error
from ..files import replace_atomically

TENSORS_HASH = "advunlearn.tensors_sha256"  # metadata of every safetensors file of this library
# Buffers of the noise schedule in a checkpoint. No network has them, and with zero terminal SNR one is infinite.
SCHEDULE_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "logvar",
    "lvlb_weights",
)


def is_finite(tensor: Tensor) -> bool:
    """Return whether a floating tensor has no NaN and no infinity. Needs no memory of the tensor's size."""
    if not tensor.numel():
        return True
    if tensor.element_size() == 1:  # torch compares no fp8 numbers
        return _is_fp8_finite(tensor.detach().contiguous().view(torch.uint8), tensor.dtype)
    low, high = tensor.detach().aminmax()  # NaN in either if there is any
    return math.isfinite(low) and math.isfinite(high)


def _is_fp8_finite(bits: Tensor, dtype: torch.dtype) -> bool:
    if dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        first_special = 0x7F if dtype == torch.float8_e4m3fn else 0x7C  # the bits of NaN, and of infinity
        return int((bits & 0x7F).max()) < first_special
    return not bool((bits == 0x80).any())  # the NaN of the kinds without a negative zero


def require_finite(name: str, tensor: Tensor, source: str) -> None:
    """Raise AdvUnlearnError for a tensor with a NaN or an infinity; other dtypes than floating ones have none."""
    if not tensor.dtype.is_floating_point or tensor.is_meta or name in SCHEDULE_BUFFERS or is_finite(tensor):
        return
    values = tensor.detach().float()
    kind = "NaN" if values.isnan().any() else "infinite numbers"
    count = int((~values.isfinite()).sum())
    raise AdvUnlearnError(
        f"{source}: {name!r} has {kind} ({count} of {tensor.numel()} values are not finite); a model with it draws "
        "nothing: take an earlier file, or make it again"
    )


def require_weight(name: str, tensor: Tensor, source: str) -> None:
    """Raise AdvUnlearnError for a tensor that is no weight: another dtype than floating, NaN, or an infinity."""
    if not tensor.dtype.is_floating_point:
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise AdvUnlearnError(
            f"{source}: {name!r} holds {dtype} numbers, and weights are floating-point; quantized files are not read: "
            "give one in fp32, fp16 or bf16"
        )
    require_finite(name, tensor, source)


def require_all_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise AdvUnlearnError that names the first tensor, by name, with a NaN or an infinity."""
    for name in sorted(tensors):
        require_finite(name, tensors[name], source)


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors: of their names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        update_digest(digest, name, tensors[name])
    return digest.hexdigest()


def update_digest(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    """Add a tensor to a hash."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    digest.update(f"{name}\0{dtype}\0{list(tensor.shape)}\0".encode("utf-8", "surrogatepass"))
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def hash_tree(tree: object) -> str:
    """Return the SHA-256 of nested dicts, lists and tuples of tensors, numbers and text."""
    digest = hashlib.sha256()
    leaves, _ = tree_flatten_with_path(tree)
    for path, leaf in leaves:
        name = keystr(path)
        if isinstance(leaf, Tensor):
            update_digest(digest, name, leaf)
        else:
            digest.update(f"{name}\0{leaf!r}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def write_safetensors(
    path: str | pathlib.Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> pathlib.Path:
    """Write contiguous tensors to a safetensors file, atomically and without a copy of all of them in memory.

    The metadata gets their SHA-256, which `open_weights` compares. Raises AdvUnlearnError for a NaN or an infinity.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    require_all_finite(tensors, f"{path} was not written")
    with replace_atomically(path) as partial:
        partial.write_bytes(b"")
        mode = partial.stat().st_mode  # `save_file` makes a file that only its owner can read
        try:
            save_file(dict(tensors), partial, {**metadata, TENSORS_HASH: hash_tensors(tensors)})
        except SafetensorError as error:  # such as a full disk
            raise OSError(f"{path} could not be written: {shorten_error(error)}") from error
        partial.chmod(mode)
    return pathlib.Path(path)
