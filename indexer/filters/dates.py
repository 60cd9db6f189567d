"""Dates as they are written (ISO 8601, and EXIF's own form), as numbers that a field can hold.

A date may be known to the year, the month or the day only: `2024`, `2024-05`, `2024-05-17`, or with
a time, `2024-05-17T10:30:00+02:00`. So a text stands for a span of time, [start, end), and what is
stored of it is when that begins and how much of it is known:

    stored = (microseconds from 1970-01-01 to the start, in UTC) * 4 + grain

It sorts as the moments do, and fits 64 bits from year 1 to 9999. A time without a zone is taken as
UTC. `indexer.filters.declared` reads values with it, `indexer.filters.sql` what filters compare
them with, `indexer.search.facets` shows them. Pure functions of text and numbers.
"""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple

YEAR, MONTH, DAY, TIME = range(4)
"""Grains: how much of a date is known."""
GRAIN_BITS: Final = 2
GRAINS: Final = (1 << GRAIN_BITS) - 1
FORMS: Final = "2024, 2024-05, 2024-05-17 or 2024-05-17T10:30:00Z"
"""What is accepted, for messages."""

# EXIF writes 2024:05:17 10:30:00; ASCII digits only, which \d is not
_FORM: Final = re.compile(
    r"(?P<year>[0-9]{4})(?:(?P<mark>[-:])(?P<month>[0-9]{2})(?:(?P=mark)(?P<day>[0-9]{2})"
    r"(?:[Tt ](?P<hour>[0-9]{2})(?::(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})"
    r"(?:[.,](?P<fraction>[0-9]{1,9}))?)?)?(?P<zone>[Zz]|[+-][0-9]{2}(?::?[0-9]{2})?)?)?)?)?"
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY: Final = _EPOCH.toordinal()
_SECOND: Final = 1_000_000
_MINUTE: Final = 60 * _SECOND
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR
_FIRST: Final = (1 - _EPOCH_DAY) * _DAY
_LAST: Final = (date.max.toordinal() + 1 - _EPOCH_DAY) * _DAY


class Span(NamedTuple):
    """What a written date stands for: microseconds [start, end) from 1970 in UTC, and its grain."""

    start: int
    end: int
    grain: int

    @property
    def stored(self) -> int:
        return self.start << GRAIN_BITS | self.grain

    @property
    def bounds(self) -> tuple[int, int]:
        """What is stored of every date that begins within it lies in [low, high)."""
        return self.start << GRAIN_BITS, self.end << GRAIN_BITS


def parse_date(text: str) -> Span:
    """A written date; blanks around it, and the NUL at the end of EXIF's, are passed over.

    Raises:
        ValueError: no date of these forms, or none of the calendar; says why.

    Example:
        >>> span = parse_date("2024:05:17 10:30:00")
        >>> show_date(span.stored), show_date(parse_date("2024-05").stored)
        ('2024-05-17T10:30:00Z', '2024-05')
    """
    match = _FORM.fullmatch(text.strip(" \t\r\n\0"))
    if match is None:
        raise ValueError(f"{text[:40]!r} is no date; write {FORMS}")
    year, month, day = int(match["year"]), int(match["month"] or 1), int(match["day"] or 1)
    if not (year >= 1 and 1 <= month <= 12 and 1 <= day <= monthrange(year, month)[1]):
        raise ValueError(f"{text[:40]!r} is no day of the calendar")
    start = (date(year, month, day).toordinal() - _EPOCH_DAY) * _DAY
    if match["hour"] is None:
        grain = DAY if match["day"] else MONTH if match["month"] else YEAR
        days = {DAY: 1, MONTH: monthrange(year, month)[1], YEAR: 337 + monthrange(year, 2)[1]}
        return Span(start, start + days[grain] * _DAY, grain)
    hour, minute, second = (int(match[part] or 0) for part in ("hour", "minute", "second"))
    if hour > 23 or minute > 59 or second > 59:
        raise ValueError(f"{text[:40]!r} is no time of a day")
    start += hour * _HOUR + minute * _MINUTE + second * _SECOND - _offset(match["zone"] or "Z")
    width = _SECOND if match["second"] else _MINUTE if match["minute"] else _HOUR
    if match["fraction"]:
        digits = match["fraction"][:6]  # no clock that people name dates by says more
        width = 10 ** (6 - len(digits))
        start += int(digits) * width
    if not _FIRST <= start < _LAST:
        raise ValueError(f"{text[:40]!r} lies, in UTC, outside the years 1 to 9999")
    return Span(start, start + width, TIME)


def _offset(zone: str) -> int:
    """Microseconds by which a zone is ahead of UTC."""
    if zone in "Zz":
        return 0
    hours, minutes = int(zone[1:3]), int(zone[3:].lstrip(":") or 0)
    if hours > 23 or minutes > 59:
        raise ValueError(f"{zone} is no offset from UTC")
    return (hours * _HOUR + minutes * _MINUTE) * (-1 if zone[0] == "-" else 1)


def moment_of(stored: int) -> int:
    """When a stored date begins, however much of it is known."""
    return stored >> GRAIN_BITS


def show_date(stored: int) -> str:
    """A stored date as text, as far as it is known, in UTC; `parse_date` reads it again."""
    text = (_EPOCH + timedelta(microseconds=moment_of(stored))).isoformat()
    grain = stored & GRAINS
    return text.replace("+00:00", "Z") if grain == TIME else text[: (4, 7, 10)[grain]]
