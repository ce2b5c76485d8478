"""A second device for torch without one: tensors that say they are on it, compute on the CPU, and do not mix.

torch's own "meta" device lends its name, so nothing has to be built. A tensor there is a wrapper around one on the CPU.
The rules are those of CUDA: all tensors of an operation are on one device, but for CPU tensors without dimensions
(scalars) and CPU indices.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("meta")
aten: Any = torch.ops.aten
return_and_correct_aliasing: Any = vars(_python_dispatch)["return_and_correct_aliasing"]
#: Copies between devices, and operations that take CPU indices into a tensor of another device.
_BETWEEN = {aten._to_copy.default, aten.copy_.default}
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor}


class OtherDeviceTensor(torch.Tensor):
    """``data_`` is the tensor on the CPU."""

    data_: torch.Tensor

    @staticmethod
    def __new__(cls: Any, data: torch.Tensor) -> Any:
        made: Any = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, data.shape, strides=data.stride(), storage_offset=data.storage_offset(), dtype=data.dtype,
            device=DEVICE, requires_grad=data.requires_grad,
        )  # fmt: skip
        made.data_ = data
        return made

    def __repr__(self, *_: object, **__: object) -> str:
        return f"OtherDeviceTensor({self.data_!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on the device of its tensors. Raises RuntimeError for tensors of two devices, as CUDA does."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = any(isinstance(tensor, OtherDeviceTensor) for tensor in tensors)
    wanted = kwargs.get("device")
    if there and func not in _BETWEEN:
        first = args[0] if func in _INDEXING else None
        for tensor in tensors:
            index = first is not None and tensor is not first and tensor.dtype in (torch.int64, torch.bool)
            if (
                not isinstance(tensor, OtherDeviceTensor)
                and tensor.dim()
                and not (index and isinstance(first, OtherDeviceTensor))
            ):
                raise RuntimeError(f"{func}: expected all tensors to be on the same device, cpu and {DEVICE} found")
        if isinstance(first, torch.Tensor) and not isinstance(first, OtherDeviceTensor):
            raise RuntimeError(f"{func}: indices should be on the same device as the indexed tensor")
    if wanted is not None:
        there = torch.device(wanted) == DEVICE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    inner = tree_map_only(OtherDeviceTensor, lambda tensor: tensor.data_, (args, kwargs))
    out: Any = func(*inner[0], **inner[1])
    if func is aten.copy_.default:
        return args[0]
    if there:
        out = tree_map_only(torch.Tensor, OtherDeviceTensor, out)
    if any(isinstance(tensor, OtherDeviceTensor) for tensor in tensors) and there:
        return return_and_correct_aliasing(func, args, kwargs, out)
    return out


class _Factories(TorchDispatchMode):
    """Operations that begin with CPU tensors or none, and may end on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class _FromData(TorchFunctionMode):
    """torch.tensor and torch.as_tensor copy to their device beneath the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            return func(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        return func(*args, **kwargs)


@contextmanager
def other_device() -> Generator[None]:
    """Within it, tensors and modules move to :data:`DEVICE` and back. There is no autocasting there."""
    real = torch.autocast

    def autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device_type == DEVICE.type else real(device_type, *args, **kwargs)

    with mock.patch("torch.autocast", autocast), _FromData(), _Factories():
        yield
