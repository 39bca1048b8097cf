"""Counts the live bytes of a dry run on fake tensors, operation by operation.

The idea comes from torch.distributed._tools.mem_tracker: a dispatch mode sees each operation's outputs, and a weak
reference reports when their storage is freed. Fake tensors have shapes and no data, so nothing is computed.
"""

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that counts the bytes of new storages, by the phase in which each was allocated.

    `most` is the largest number of live bytes, and `peak` is its breakdown by phase. Storages of `known` tensors do
    not count.
    """

    def __init__(self, phase: str, known: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = phase
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.most = self.total = 0
        self.seen: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()
        for tensor in known:
            self.seen[tensor.untyped_storage()] = ["", 0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        if self.total > self.most:
            self.most, self.peak = self.total, self.live.copy()
        return output

    def _add(self, storage: Any) -> None:
        if storage in self.seen:
            return
        entry = self.seen[storage] = [self.phase, storage.nbytes()]
        self._count(entry, 1)
        weakref.finalize(storage, self._count, entry, -1)

    def _count(self, entry: list[Any], sign: int) -> None:
        phase, size = entry
        self.live[phase] += sign * size
        self.total += sign * size

    def move(self, tensor: torch.Tensor, phase: str) -> None:
        """Counts a live tensor under another phase than the one in which it was allocated."""
        entry = self.seen.get(tensor.untyped_storage())
        if entry is not None and entry[1]:
            self._count(entry, -1)
            entry[0] = phase
            self._count(entry, 1)
