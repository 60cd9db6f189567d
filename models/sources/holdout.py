"""A repeatable part of a source, set aside by key.

One record in N is held out, chosen by a hash of its key: the same records in every run, on every
machine, whatever the order or the rest of the source. Training leaves them out, evaluation takes
only them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from models.sources.records import Plan, Record, Row, Source, parts_of


def is_held_out(key: str, one_in: int) -> bool:
    """Whether sha256(key), read as a number, is divisible by `one_in`."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()) % one_in == 0


class HoldOut:
    """A source restricted to its held-out records, or to all others. Rejects pass through."""

    def __init__(self, source: Source, one_in: int, *, held_out: bool) -> None:
        self._source = source
        self._one_in = one_in
        self._held_out = held_out

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def kind(self) -> str:
        return self._source.kind

    def count(self) -> int | None:
        total = self._source.count()
        if total is None:
            return None
        part = total // self._one_in
        return part if self._held_out else total - part

    def plan(self) -> Plan:
        """The source's own: rows of the other part are read too."""
        return self._source.plan()

    def parts(self) -> list[Source]:
        """The source's own parts, restricted alike."""
        return [
            HoldOut(part, self._one_in, held_out=self._held_out) for part in parts_of(self._source)
        ]

    def __iter__(self) -> Iterator[Row]:
        for row in self._source:
            wanted = (
                not isinstance(row, Record) or is_held_out(row.key, self._one_in) == self._held_out
            )
            if wanted:
                yield row
