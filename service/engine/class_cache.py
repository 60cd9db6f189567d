"""Class matrices that were asked for before, bounded by bytes; no maths of its own."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from models.vectors import Vectors

_CACHE_BYTES = 64 << 20


class ClassMatrixCache:
    """Least recently used class matrices [C, D] by key; safe to call from many threads."""

    def __init__(self, max_bytes: int = _CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, Vectors] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get_or_make(self, key: str, make: Callable[[], Vectors]) -> Vectors:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        # made outside the lock: two callers may both make it, which costs time but never blocks
        # a caller whose matrix is already here
        class_CD = make()
        with self._lock:
            if key not in self._kept and class_CD.nbytes <= self._max_bytes:
                self._kept[key] = class_CD
                self._bytes += class_CD.nbytes
            while self._bytes > self._max_bytes:
                _, dropped_CD = self._kept.popitem(last=False)
                self._bytes -= dropped_CD.nbytes
        return class_CD
