"""Strict JSON: what Python's reader would let through, and what would keep it busy."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.middleware.problems import ProblemError
from service.http.requests.bodies import decode_base64, parse_json

MALFORMED = {
    "empty": b"",
    "open": b"{",
    "trailing comma": b'{"a": 1,}',
    "two documents": b"{} {}",
    "byte order mark": b"\xef\xbb\xbf{}",
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "invalid utf-8": b'{"a": "\xff"}',
    "nan": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "1e400": b'{"a": 1e400}',
    "10,000 digits": b'{"a": ' + b"9" * 10_000 + b"}",
    "4,000 digits": b"4" * 4_000,
    "duplicate keys": b'{"a": 1, "a": 2}',
    "duplicate keys below": b'[{"a": {"b": 1, "b": 1}}]',
    "depth 100,000": b"[" * 100_000,
    "depth 50,000, closed": b"[" * 50_000 + b"]" * 50_000,
    "depth 33": b"[" * 33 + b"]" * 33,
    "depth of objects": b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    "a million keys": b"{" + b",".join(b'"%d":1' % n for n in range(1_000_000)) + b"}",
    "control character": b'"\x01"',
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_documents_are_400_at_once(body: bytes) -> None:
    begun = perf_counter()
    with pytest.raises(ProblemError) as caught:
        parse_json(body)
    assert perf_counter() - begun < 0.5
    assert caught.value.problem.code == "malformed-json"
    assert caught.value.status_code == 400


@pytest.mark.parametrize("body", [b'"\\ud800"', b'{"a": ["x\\u0000"]}', b'{"\\udfff": 1}'])
def test_text_that_is_not_unicode_is_422(body: bytes) -> None:
    with pytest.raises(ProblemError) as caught:
        parse_json(body)
    assert caught.value.problem.code == "invalid-text"
    assert caught.value.status_code == 422


def test_a_surrogate_pair_is_one_character() -> None:
    assert parse_json(b'"\\ud83d\\ude00"') == "😀"


def test_depth_32_is_read() -> None:
    assert parse_json(b"[" * 31 + b"1" + b"]" * 31)


ordinary = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda below: (
        st.lists(below, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5),
            below,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(ordinary)
def test_ordinary_documents_are_read_as_python_reads_them(document: object) -> None:
    body = json.dumps(document).encode()
    assert parse_json(body) == json.loads(body)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with suppress(ProblemError):  # anything else fails the test
        parse_json(body)


@given(st.binary(min_size=1))
def test_base64_bare_and_as_a_data_uri(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    assert decode_base64(text) == data
    assert decode_base64("data:image/png;base64," + text) == data


@pytest.mark.parametrize(
    "text", ["a", "ab c", "a===", "http://x/y.png", "data:image/png,abcd", "data:;base64", "é==="]
)
def test_broken_base64_is_none(text: str) -> None:
    assert decode_base64(text) is None
