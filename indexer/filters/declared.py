"""Declares filterable fields, and reads their values from one record's attributes.

A field is declared once, when the index is made: a name, a type, and the path at which a record's
attributes hold it. `label` and `language` are fields of every index. Pure functions; what stores
the values is `indexer.format.field_table`, what asks for them `indexer.filters.language`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

from indexer.filters.dates import parse_date
from models.errors import InputError
from models.sources.fields import select

FieldType = Literal["int", "float", "str", "bool", "str[]", "date"]
Value: TypeAlias = int | float | str | tuple[str, ...] | None
"""A stored value: truth values as 0 and 1, dates as `indexer.filters.dates` numbers them, None
where the record has none."""

MAX_FIELDS: Final = 32
MAX_CHARACTERS: Final = 1000
"""Of a string value, stored or asked for; longer ones are no category, and facets list them."""
MAX_ENTRIES: Final = 1000
"""Of a `str[]` value."""

FIELD_TYPES: Final[tuple[str, ...]] = get_args(FieldType)
# no quotes, brackets or separators: a name can stand in any message, option or pointer
_NAME: Final = re.compile(r"[^\W\d]\w*(-\w+)*")
_PATH: Final = re.compile(r"[^.,:=\s]+(\.[^.,:=\s]+)*")
_SPEC: Final = re.compile(r"(?P<name>[^=:]+)(=(?P<path>[^=:]+))?(:(?P<type>[^=:]+))?")
_INT64: Final = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Field:
    """A filterable field; `path` is dotted, as `models.sources.fields.select` reads it.

    Raises:
        InputError: a name, type or path that cannot be declared.
    """

    name: str
    type: FieldType
    path: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or len(self.name) > 64:
            raise InputError(
                f"{self.name[:80]!r} cannot name a field: use letters, digits, _ and -, 64 at most"
            )
        if self.type not in FIELD_TYPES:
            raise InputError(
                f"field {self.name} cannot have type {self.type[:20]!r}; "
                f"the types are {', '.join(FIELD_TYPES)}"
            )
        if not self.path:
            object.__setattr__(self, "path", self.name)
        if not _PATH.fullmatch(self.path) or len(self.path) > 200:
            raise InputError(f"field {self.name}: {self.path[:80]!r} is not a dotted path")

    def __str__(self) -> str:
        return f"{self.name} ({self.type})"


BUILT_IN: Final = (Field("label", "str"), Field("language", "str"))
"""Fields of every index, taken from the item itself."""


def parse_fields(specs: Iterable[str]) -> tuple[Field, ...]:
    """`NAME[=PATH][:TYPE]` declarations, also several in one string with commas between.

    The path is the name, and the type `str`, where they are left out.

    Raises:
        InputError: not of that form, or as `check_fields`.

    Example:
        >>> [str(field) for field in parse_fields(["year=taken.year:int,brand", "tags:str[]"])]
        ['year (int)', 'brand (str)', 'tags (str[])']
    """
    fields = []
    for spec in (part.strip() for text in specs for part in text.split(",")):
        match = _SPEC.fullmatch(spec)
        if match is None:
            raise InputError(
                f"{spec[:80]!r} declares no field", hint="write NAME:TYPE or NAME=PATH:TYPE"
            )
        # an unknown type is refused by Field, by name
        kind: FieldType = match["type"] or "str"  # type: ignore[assignment]
        fields.append(Field(match["name"], kind, match["path"] or ""))
    return check_fields(fields)


def check_fields(fields: Sequence[Field]) -> tuple[Field, ...]:
    """The fields, if an index can declare them together.

    Raises:
        InputError: too many, a name twice, or the name of a built-in field.
    """
    if len(fields) > MAX_FIELDS:
        raise InputError(f"{len(fields)} fields are declared; the limit is {MAX_FIELDS}")
    taken = {field.name for field in BUILT_IN}
    for field in fields:
        if field.name in {one.name for one in BUILT_IN}:
            raise InputError(f"{field.name} is a field of every index; it needs no declaration")
        if field.name in taken:
            raise InputError(f"field {field.name} is declared twice")
        taken.add(field.name)
    return tuple(fields)


def values_of(
    attributes: Mapping[str, Any], fields: Sequence[Field]
) -> tuple[tuple[Value, ...], list[str]]:
    """The values of one record, in the order of `fields`, and what was wrong with the others.

    Types are not converted: text is no number, a number no truth value. A whole float is a whole
    number, as JSON does not tell them apart. A value of the wrong type counts as missing.
    """
    values: list[Value] = []
    problems = []
    for field in fields:
        found = attributes.get(field.path)
        if found is None:
            found = select(attributes, field.path)
        value, why = (None, None) if found is None else _READERS[field.type](found)
        values.append(value)
        if why is not None:
            problems.append(f"{field.name}: {why}")
    return tuple(values), problems


_Read: TypeAlias = tuple[Value, str | None]


def _int(found: Any) -> _Read:
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    if isinstance(found, bool) or not isinstance(found, int):
        return None, f"expected a whole number, found {_kind(found)}"
    return (found, None) if found in _INT64 else (None, "the number needs more than 64 bits")


def _float(found: Any) -> _Read:
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None, f"expected a number, found {_kind(found)}"
    try:
        return float(found), None
    except OverflowError:
        return None, "the number is too large"


def _bool(found: Any) -> _Read:
    if not isinstance(found, bool):
        return None, f"expected true or false, found {_kind(found)}"
    return int(found), None


def _str(found: Any) -> _Read:
    if not isinstance(found, str):
        return None, f"expected text, found {_kind(found)}"
    if len(found) > MAX_CHARACTERS:
        return None, f"the text has {len(found)} characters; the limit is {MAX_CHARACTERS}"
    return (found, None) if "\0" not in found else (None, "the text holds NUL")


def _list(found: Any) -> _Read:
    if not isinstance(found, list):
        return None, f"expected a list of texts, found {_kind(found)}"
    if len(found) > MAX_ENTRIES:
        return None, f"the list has {len(found)} entries; the limit is {MAX_ENTRIES}"
    entries = []
    for one in found:
        entry, why = _str(one)
        if why is not None:
            return None, f"in the list: {why}"
        assert isinstance(entry, str)
        entries.append(entry)
    return tuple(dict.fromkeys(entries)), None


def _date(found: Any) -> _Read:
    if not isinstance(found, str):
        return None, f"expected a date as text, found {_kind(found)}"
    try:
        return parse_date(found).stored, None
    except ValueError as error:
        return None, str(error)


_READERS: Final = {
    "int": _int,
    "float": _float,
    "bool": _bool,
    "str": _str,
    "str[]": _list,
    "date": _date,
}


def _kind(found: Any) -> str:
    names = {str: "text", bool: "a truth value", list: "a list", dict: "an object"}
    return "null" if found is None else names.get(type(found), "a number")
