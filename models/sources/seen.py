"""Which keys a source has yielded, in 8 bytes a key and some air instead of the key itself.

An open-addressing table of digests: a `set` of a million ints takes 90 MB, this 16 MB.
"""

from __future__ import annotations

import hashlib
from array import array


class SeenKeys:
    """Two of a million different keys share a digest with a probability of about 3e-8."""

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._used = 0

    def add(self, key: str) -> bool:
        """Note a key; False if it was there already."""
        number = _number(key)
        at = _find(self._slots, number)
        if self._slots[at]:
            return False
        self._slots[at] = number
        self._used += 1
        if 3 * self._used > 2 * len(self._slots):
            self._grow()
        return True

    def __contains__(self, key: str) -> bool:
        return bool(self._slots[_find(self._slots, _number(key))])

    def __len__(self) -> int:
        return self._used

    def _grow(self) -> None:
        larger = array("Q", bytes(16 * len(self._slots)))
        for number in self._slots:
            if number:
                larger[_find(larger, number)] = number
        self._slots = larger


def _number(key: str) -> int:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1  # 0 marks a free slot


def _find(slots: array[int], number: int) -> int:
    """Where a number is, or the free slot where it belongs."""
    mask = len(slots) - 1
    at = number & mask
    while slots[at] and slots[at] != number:
        at = (at + 1) & mask
    return at
