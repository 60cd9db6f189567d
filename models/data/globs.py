"""Include and exclude patterns for the paths below a folder.

    *.jpg            a name, at any depth (no slash in the pattern)
    2024/*.jpg       a path from the top; * stays within one name
    raw/**           everything below raw;  **/raw/*.png  raw at any depth
    [ab]?.png        one of some characters, any one character

Case counts. A folder that is excluded is not entered. It knows no files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from models.errors import SourceError

_MAX_LENGTH = 1000
_PIECES = re.compile(r"\*\*/|\*\*|\*+|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)


class Globs:
    """Which paths are wanted: any include (all, if there are none) and no exclude."""

    def __init__(self, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> None:
        """Raises SourceError for a pattern that is empty or absurdly long."""
        self._include = [_compile(pattern) for pattern in include]
        self._exclude = [_compile(pattern) for pattern in exclude]

    def wanted(self, path: bytes) -> bool:
        """Whether a file is read; its path is relative, with forward slashes."""
        if not self._include and not self._exclude:
            return True
        text = os.fsdecode(path)
        included = not self._include or any(one.fullmatch(text) for one in self._include)
        return included and not any(one.fullmatch(text) for one in self._exclude)

    def pruned(self, path: bytes) -> bool:
        """Whether a folder is passed over whole."""
        if not self._exclude:
            return False
        text = os.fsdecode(path)
        return any(one.fullmatch(text) or one.fullmatch(text + "/") for one in self._exclude)


def _compile(pattern: str) -> re.Pattern[str]:
    if not pattern or len(pattern) > _MAX_LENGTH:
        raise SourceError(f"{pattern[:40]!r} is not a pattern", code="bad-pattern")
    anchored = "/" in pattern.rstrip("/")
    body = "".join(_translate(piece) for piece in _PIECES.findall(pattern.removeprefix("/")))
    try:
        return re.compile(body if anchored else f"(?:.*/)?{body}", re.DOTALL)
    except re.error as error:
        raise SourceError(f"{pattern!r} is not a pattern: {error}", code="bad-pattern") from error


def _translate(piece: str) -> str:
    if piece == "**/":
        return "(?:.*/)?"
    if piece == "**":
        return ".*"
    if piece.startswith("*"):
        return "[^/]*"
    if piece == "?":
        return "[^/]"
    if len(piece) > 1:
        negated = piece[1] == "!"
        inner = piece[2:-1] if negated else piece[1:-1]
        escaped = inner.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
        return f"[{'^/' if negated else ''}{escaped.replace('^', chr(92) + '^')}]"
    return re.escape(piece)
