"""Include and exclude patterns for the paths below a folder.

    *.jpg            a name, at any depth (no slash in the pattern)
    2024/*.jpg       a path from the top; * stays within one name
    raw/**           everything below raw;  **/raw/*.png  raw at any depth
    [ab]?.png        one of some characters, any one character

Case counts. A folder that is excluded (`raw`, `raw/`, `raw/**`) is not entered. It knows no files.
Names are matched one by one, so that no pattern takes more than patterns x names steps.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from models.errors import SourceError

_MAX_LENGTH = 1000


class Globs:
    """Which paths are wanted: any include (all, if there are none) and no exclude."""

    def __init__(self, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> None:
        """Raises SourceError for a pattern that is empty or absurdly long."""
        self._include = [_parse(pattern) for pattern in include]
        self._exclude = [_parse(pattern) for pattern in exclude]

    def wanted(self, path: bytes) -> bool:
        """Whether a file is read; its path is relative, with forward slashes."""
        if not self._include and not self._exclude:
            return True
        names = os.fsdecode(path).split("/")
        included = not self._include or any(one.matches(names) for one in self._include)
        return included and not any(
            one.matches(names) for one in self._exclude if not one.only_folders
        )

    def pruned(self, path: bytes) -> bool:
        """Whether a folder is passed over whole."""
        names = os.fsdecode(path).split("/")
        return any(one.matches(names) for one in self._exclude)


@dataclass(frozen=True, slots=True)
class _Pattern:
    names: tuple[re.Pattern[str] | None, ...]
    """One for each name of a path; None for `**`, any number of names."""
    only_folders: bool

    def matches(self, names: list[str]) -> bool:
        """Go through the path once, with all places in the pattern it could be at."""
        places = self._reach({0})
        for name in names:
            following = set()
            for place in places:
                if place == len(self.names):
                    continue
                wanted = self.names[place]
                if wanted is None:
                    following.add(place)
                elif wanted.match(name):
                    following.add(place + 1)
            places = self._reach(following)
        return len(self.names) in places

    def _reach(self, places: set[int]) -> set[int]:
        """With what follows a `**`, which may stand for nothing."""
        for place in sorted(places):
            while place < len(self.names) and self.names[place] is None:
                place += 1
                places.add(place)
        return places


def _parse(pattern: str) -> _Pattern:
    stripped = pattern.strip("/")
    if not stripped or len(pattern) > _MAX_LENGTH:
        raise SourceError(f"{pattern[:40]!r} is not a pattern", code="bad-pattern")
    names = stripped.split("/")
    if len(names) == 1 and not pattern.startswith("/"):
        names = ["**", *names]
    # fnmatch's translation never backtracks from one * into an earlier one
    compiled = (None if name == "**" else re.compile(fnmatch.translate(name)) for name in names)
    return _Pattern(tuple(compiled), pattern.endswith("/"))
