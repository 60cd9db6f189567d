"""Sources that are wrong in every way we could think of, and what each must give.

    python tests/support/bad_sources.py DIR     writes the whole corpus into DIR, one folder a case

A `Case` makes its files in an empty folder and says what reading gives, row by row: `ok`, or the
code of the reject; `!code` for a `SourceError` on opening or while reading. The tables are in
`bad_manifests.py`, `bad_tables.py`, `bad_folders.py` and `bad_shards.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakes import solid

from models.errors import SourceError
from models.sources import Reject, open_source

RED = solid("red", size=(8, 8))
BLUE = solid("blue", size=(8, 8))


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[Path], str]
    """Writes files into a folder -> the specification to open."""
    expected: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


def outcome(spec: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """What reading a source gives, in the words of `Case.expected`."""
    found = []
    try:
        for row in open_source(spec, **options):
            found.append(row.code if isinstance(row, Reject) else "ok")
            if isinstance(row, Reject):
                assert row.source
                assert row.detail
                assert "\n" not in row.detail
    except SourceError as error:
        found.append(f"!{error.code}" if "\n" not in error.message else "!several-lines")
    return tuple(found)


def all_cases() -> list[Case]:
    from bad_folders import FOLDERS
    from bad_manifests import MANIFESTS
    from bad_shards import SHARDS
    from bad_tables import TABLES

    return [*MANIFESTS, *TABLES, *FOLDERS, *SHARDS]


def main(target: Path) -> None:
    for case in all_cases():
        folder = target / case.name
        folder.mkdir(parents=True)
        print(f"{case.make(folder)}\t{' '.join(case.expected)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
