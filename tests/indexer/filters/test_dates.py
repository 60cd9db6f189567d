"""Dates: what is read as one, and that what is stored of it sorts as the moments do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.filters.dates import DAY, MONTH, TIME, YEAR, moment_of, parse_date, show_date
from indexer.filters.declared import parse_fields, values_of
from indexer.filters.language import check_filter, parse_filter
from models.errors import InvalidFilterError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("text", "shown", "grain"),
    [
        ("2024", "2024", YEAR), ("2024-05", "2024-05", MONTH), ("2024-05-17", "2024-05-17", DAY),
        ("0001", "0001", YEAR), ("9999-12", "9999-12", MONTH), ("2024-02-29", "2024-02-29", DAY),
        ("2024-05-17T10:30:00Z", "2024-05-17T10:30:00Z", TIME),
        ("2024-05-17 10:30", "2024-05-17T10:30:00Z", TIME),
        ("2024-05-17T10", "2024-05-17T10:00:00Z", TIME),
        ("2024-05-17t10:30:00z", "2024-05-17T10:30:00Z", TIME),
        ("2024-05-17T00:30:00+02:00", "2024-05-16T22:30:00Z", TIME),
        ("2024-05-17T23:30:00-0130", "2024-05-18T01:00:00Z", TIME),
        ("2024-05-17T10:30:00.25", "2024-05-17T10:30:00.250000Z", TIME),
        ("2024-05-17T10:30:00,123456789Z", "2024-05-17T10:30:00.123456Z", TIME),
        ("1969-12-31T23:59:59.999999Z", "1969-12-31T23:59:59.999999Z", TIME),
        # EXIF's own form
        ("2024:05:17 10:30:00", "2024-05-17T10:30:00Z", TIME), ("2024:05:17", "2024-05-17", DAY),
        ("2024:05:17 10:30:00\0", "2024-05-17T10:30:00Z", TIME),
        ("2024:05:17 10:30:00+09:00", "2024-05-17T01:30:00Z", TIME),
        (" 2024-05-17 ", "2024-05-17", DAY),
    ],
)  # fmt: skip
def test_what_is_read_as_a_date(text: str, shown: str, grain: int) -> None:
    span = parse_date(text)
    assert (show_date(span.stored), span.grain) == (shown, grain)
    assert parse_date(shown).stored == span.stored
    assert span.start < span.end


@pytest.mark.parametrize(
    "text",
    [
        "", "24", "2024-5", "2024-13", "2024-00", "2024-02-30", "2023-02-29", "0000", "0000-01-01",
        "0000:00:00 00:00:00", "    :  :     :  :  ", "2024-05:17", "2024/05/17", "17.05.2024",
        "20240517", "2024-W20", "2024-05-17T24:00", "2024-05-17T10:60", "2024-05-17T10:30:61",
        "2024-05-17T10:30:00+24:00", "2024-05-17T10:30:00 CEST", "2024-05-17Z", "+2024", "-2024",
        "12024", "٢٠٢٤", "yesterday", "9999-12-31T23:30-01:00", "0001-01-01T00:30+01:00",
        "2024-05-17T10:30:00.", "2024-05-17T", "2024-",
    ],
)  # fmt: skip
def test_what_is_no_date(text: str) -> None:
    with pytest.raises(ValueError, match=r"no date|no day|no time|no offset|outside the years"):
        parse_date(text)
    values, problems = values_of({"taken": text}, parse_fields(["taken:date"]))
    assert (values, len(problems)) == ((None,), 1)
    with pytest.raises(InvalidFilterError, match="2024-05"):
        check_filter(parse_filter({"field": "taken", "lt": text}), parse_fields(["taken:date"]))


@pytest.mark.parametrize("found", [2024, 1715941800.5, True, ["2024"], {"$date": "2024"}])
def test_only_text_is_a_date(found: object) -> None:
    values, problems = values_of({"taken": found}, parse_fields(["taken:date"]))
    assert (values, problems[0][:37]) == ((None,), "taken: expected a date as text, found")


MOMENTS = st.datetimes(
    min_value=datetime(2, 1, 1),
    max_value=datetime(9998, 12, 31),
    timezones=st.integers(-23 * 60, 23 * 60).map(lambda m: timezone(timedelta(minutes=m))),
)


@given(MOMENTS, MOMENTS)
def test_stored_moments_sort_as_moments(one: datetime, other: datetime) -> None:
    stored = [parse_date(moment.isoformat()).stored for moment in (one, other)]
    assert [moment_of(number) for number in stored] == [micros(one), micros(other)]
    assert (stored[0] < stored[1]) == (one < other)
    assert all(-(2**63) <= number < 2**63 for number in stored)
    assert datetime.fromisoformat(show_date(stored[0])) == one


@given(MOMENTS)
def test_a_prefix_spans_what_begins_with_it(moment: datetime) -> None:
    text = moment.astimezone(UTC).isoformat(timespec="microseconds")
    number = micros(moment)
    for length in (4, 7, 10, 13, 16, 19, 21, 26):
        start, end, _ = parse_date(text[:length])
        assert start <= number < end
        assert show_date(parse_date(text[:length]).stored).startswith(text[: min(length, 10)])
        last = EPOCH + timedelta(microseconds=end - 1)
        assert last.isoformat(timespec="microseconds")[:length] == text[:length]


def test_a_long_list_of_dates_is_one_test() -> None:
    import sqlite3

    from indexer.filters.sql import condition
    from indexer.format.field_table import columns_of

    fields = parse_fields(["taken:date"])
    days = [f"{year}-{month:02}-17" for year in range(1950, 2033) for month in range(1, 13)]
    wanted = parse_filter({"not": {"field": "taken", "in": days}})
    check_filter(wanted, fields)
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE fields(row INTEGER PRIMARY KEY, f0 INTEGER)")
    stored = [parse_date(day).stored for day in (days[0], "1950-01-18", days[-1], "1950-01")]
    db.executemany("INSERT INTO fields VALUES (?, ?)", enumerate(stored))
    where = condition(wanted, columns_of(fields))
    rows = db.execute(f"SELECT row FROM fields WHERE {where.sql}", where.values)
    assert [row for (row,) in rows] == [1, 3], "a month is not known to be one of its days"
