"""Several files named at once: brace ranges, and names joined by `::`. Opens nothing."""

from __future__ import annotations

import re
from pathlib import Path

from models.errors import SourceError

MAX_SHARDS = 1_000_000
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand_shards(spec: str) -> list[str]:
    """Shard names of a specification: brace ranges, and several separated by `::`.

    Example:
        >>> expand_shards("a-{08..10}.tar")
        ['a-08.tar', 'a-09.tar', 'a-10.tar']

    Raises:
        SourceError: a range that is empty, or more than a million shards.
    """
    if "{" not in spec and "::" not in spec:
        return [spec]
    if Path(spec).exists():  # a name may contain braces
        return [spec]
    shards: list[str] = []
    for pattern in spec.split("::"):
        pending = [pattern]
        while pending:
            name = pending.pop()
            found = _RANGE.search(name)
            if found is None:
                shards.append(name)
                continue
            first, last = found[1], found[2]
            numbers = range(int(first), int(last) + 1)
            if not numbers:
                raise SourceError(f"the range {found[0]} in {spec!r} is empty")
            if len(numbers) + len(shards) + len(pending) > MAX_SHARDS:
                raise SourceError(f"{spec!r} names more than {MAX_SHARDS} shards")
            pending += [
                f"{name[: found.start()]}{number:0{len(first)}d}{name[found.end() :]}"
                for number in reversed(numbers)
            ]
    return shards
