"""What a cell of a table that others wrote means: converted where that is plain, else refused.

Every function takes a value as pyarrow gives it and what to call it. Each row is judged alone: one
that is refused (`RefusedRowError`) is left out with its reason, and the others go on. The formats
call it (`indexer.transfer.parquet_files`, `indexer.transfer.clip_retrieval`); it knows none.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from typing import Any, Final

from indexer.format.items import Picture

MAX_ID_BYTES: Final = 2048
_HASH: Final = re.compile(r"[0-9a-fA-F]{64}")
_JPEG: Final = b"\xff\xd8\xff"
_DIGEST_BYTES: Final = 16


class RefusedRowError(ValueError):
    """A row cannot be stored; the message says why, for people."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What stands for a cell that pyarrow cannot turn into a value."""

    why: str


def cells(column: Any) -> list[Any]:
    """The values of an Arrow array; one that has no Python form costs its own cell only."""
    try:
        found: list[Any] = column.to_pylist()
        return found
    except (ValueError, OverflowError):  # invalid UTF-8, a nanosecond, a year 292,277
        return [_cell(one) for one in column]


def _cell(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError) as error:
        try:
            return scalar.cast("string").as_py()
        except (ValueError, OverflowError, NotImplementedError):
            return Unreadable((str(error) or type(error).__name__).splitlines()[0])


def text_of(value: Any, what: str) -> str | None:
    """A text: numbers, truth values and dates as they are written, bytes as UTF-8.

    Raises:
        RefusedRowError: it is a list, an object, or not Unicode.
    """
    value = plain(value, what)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # what a column of whole numbers with a gap becomes in pandas
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    raise RefusedRowError(f"its {what} is {_kind(value)}, not text")


def id_of(value: Any, what: str) -> str | None:
    """An id, or None where there is none.

    Raises:
        RefusedRowError: as `text_of`, and where it is too long or a number that is not whole.
    """
    if isinstance(value, bool) or (isinstance(value, float) and value % 1 and value == value):
        raise RefusedRowError(f"its {what} is {value}, neither text nor a whole number")
    found = text_of(value, what)
    if found and len(found.encode()) > MAX_ID_BYTES:
        raise RefusedRowError(f"its {what} has more than {MAX_ID_BYTES} bytes")
    return found or None


def texts_of(value: Any, what: str) -> tuple[str, ...]:
    """One text or a list of them; what is missing or empty is left out.

    Raises:
        RefusedRowError: as `text_of`, for any of them.
    """
    ones = value if isinstance(value, list) else [value]
    return tuple(text for one in ones if (text := text_of(one, what)))


def attributes_of(value: Any) -> dict[str, Any]:
    """An object: JSON, a struct, or a map with names for keys; nothing is an empty one.

    Raises:
        RefusedRowError: it is something else, or no JSON can hold it.
    """
    if isinstance(value, bytes | str):
        try:
            value = json.loads(value) if value else {}
        except (ValueError, RecursionError) as error:
            raise RefusedRowError("its attributes are not JSON") from error
    if isinstance(value, list) and value and all(_is_entry(one) for one in value):
        value = dict(value)  # how pyarrow gives a map
    found = plain(value, "attributes")
    if found is None:  # nothing, or NaN, which is how pandas writes it
        return {}
    if not isinstance(found, dict):
        raise RefusedRowError(f"its attributes are {_kind(found)}, not an object")
    return found


def _is_entry(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)


def hash_of(value: Any) -> str | None:
    """A content hash as an index keeps it (sha256, hex), or None: another is no claim of ours."""
    if isinstance(value, str) and _HASH.fullmatch(value):
        return value.lower()
    return None


def thumbnail_of(value: Any) -> bytes | None:
    """The bytes of a JPEG, or None for anything else."""
    return value if isinstance(value, bytes) and value.startswith(_JPEG) else None


def picture_of(value: Any) -> Picture | None:
    """What an export notes of a picture, or None for anything else."""
    if not isinstance(value, dict) or set(value) != {"width", "height", "size", "pixels"}:
        return None
    width, height, size, pixels = (value[name] for name in ("width", "height", "size", "pixels"))
    if not all(type(one) is int and one >= 0 for one in (width, height, size)):
        return None
    if not isinstance(pixels, bytes) or len(pixels) != _DIGEST_BYTES:
        return None
    return Picture(width, height, size, pixels)


def origin_of(value: Any) -> int | None:
    """Where an export says that a record came from (`NewRow.origin`), or None."""
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


def others(row: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """The columns that have no meaning here, as attributes.

    Raises:
        RefusedRowError: one of them cannot be read.
    """
    return {name: plain(row[name], name) for name in row.keys() - set(known)}


def plain(value: Any, what: str) -> Any:
    """A cell as JSON can hold it: dates as ISO 8601, decimals as numbers, bytes as UTF-8 or hex.

    Raises:
        RefusedRowError: it cannot be read, is not Unicode, or is nested too deeply.
    """
    try:
        found = _plain(value)
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RefusedRowError(f"its {what} is not Unicode") from error
    except (RecursionError, ValueError) as error:
        raise RefusedRowError(f"its {what} cannot be read: {error}") from error
    return found


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Unreadable):
        raise ValueError(value.why)
    if isinstance(value, Decimal):
        whole = value.is_finite() and value == value.to_integral_value()
        value = int(value) if whole else float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value)


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a text", bool: "a truth value"}
    return names.get(type(value), "a number")
