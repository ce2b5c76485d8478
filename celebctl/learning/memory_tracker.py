"""How much memory a piece of work holds at once, counted tensor by tensor; on tensors without numbers it takes none."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter  # pyright: ignore[reportUnknownVariableType]


def storage_key(tensor: torch.Tensor) -> int:
    """The same for all views of one piece of memory; tensors without numbers have no address to tell them apart by."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


class MemoryTracker(TorchDispatchMode):
    """Within it, every storage that an operation makes counts from its making to its end.

    now, peak: bytes at this moment and at most. Not seen: what a kernel takes for itself while it runs, and storages of
    ``before``, such as weights, of which operations make views.
    """

    def __init__(self, before: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.now = self.peak = 0
        self._before = {storage_key(tensor) for tensor in before}
        self._live: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_iter(made):
            if isinstance(one, torch.Tensor):
                self._count(one, storage_key(one))
        return made

    def _count(self, tensor: torch.Tensor, key: int) -> None:
        if key not in self._live and key not in self._before:
            storage = tensor.untyped_storage()
            self._live[key] = storage.nbytes()
            self.now += self._live[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._live.pop(key, 0)
