"""A source as the files it is made of, so that training can read them in another order each epoch.

Only sources of several files have parts; a folder or a single file is its own only part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from models.data.records import Source


@runtime_checkable
class Divisible(Protocol):
    """A source that knows its parts; together they hold the same records."""

    def parts(self) -> Sequence[Source]: ...


def parts_of(source: Source) -> list[Source]:
    """The parts of a source, in its own order; the source itself where it has none."""
    return list(source.parts()) if isinstance(source, Divisible) else [source]
