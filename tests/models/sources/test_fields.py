"""Field paths, caption normalisation, and what a metadata object says."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.sources.fields import (
    ReadOptions,
    caption_lines,
    clean_captions,
    interpret,
    parse_object,
    select,
)
from models.sources.records import RefusedError

DATA = {"captions": {"en": ["a cat", "one cat"], "zh_CN": "猫"}, "names": ["tabby", "cat"], "n": 3}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("captions.en", ["a cat", "one cat"]),
        ("captions.en.1", "one cat"),
        ("names.0", "tabby"),
        ("names.-1", "cat"),
        ("names.2", None),
        ("names.-3", None),
        ("names.x", None),
        ("n.deeper", None),
        ("captions.fr", None),
        ("names.99999999999999999999", None),
        ("", None),
    ],
)
def test_select(path: str, found: object) -> None:
    assert select(DATA, path) == found


def test_captions_by_language_get_proper_tags() -> None:
    fields = interpret(DATA)
    assert fields.texts == {"en": ("a cat", "one cat"), "zh-CN": ("猫",)}
    assert fields.attributes == {"names": ["tabby", "cat"], "n": 3}


@pytest.mark.parametrize(
    ("text_field", "texts"),
    [
        ("captions.en", {"en": ("a cat", "one cat")}),
        ("captions.zh_CN", {"zh-CN": ("猫",)}),
        ("captions.en.0", {"en": ("a cat",)}),
        ("names", {"und": ("tabby", "cat")}),
        ("names.0", {"und": ("tabby",)}),
        ("absent", {}),
    ],
)
def test_text_field(text_field: str, texts: dict[str, tuple[str, ...]]) -> None:
    assert interpret(DATA, ReadOptions(text_field=(text_field,))).texts == texts


def test_a_name_taken_from_a_list_leaves_the_list_as_an_attribute() -> None:
    fields = interpret(DATA, ReadOptions(text_field=("names.0",), label_field="names.1"))
    assert fields.label == "cat"
    assert fields.attributes["names"] == ["tabby", "cat"]
    assert "names" not in interpret(DATA, ReadOptions(text_field="names")).attributes


def test_first_caption_key_wins_and_the_others_stay() -> None:
    fields = interpret({"title": "T", "caption": "C", "label": 7, "attributes": {"year": 2020}})
    assert fields.texts == {"und": ("C",)}
    assert fields.label == "7"
    assert fields.attributes == {"title": "T", "year": 2020}


def test_keys_that_are_no_language_tags_are_undetermined() -> None:
    texts = interpret({"captions": {"short": "a cat", "long": ["a tabby cat"]}}).texts
    assert texts == {"und": ("a cat", "a tabby cat")}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"caption": 3}, "bad-caption"),
        ({"caption": ["a", 3]}, "bad-caption"),
        ({"captions": {"en": {"deeper": "x"}}}, "bad-caption"),
        ({"label": [1]}, "bad-label"),
        ({"label": True}, "bad-label"),
        ({"label": 1.5}, "bad-label"),
    ],
)
def test_wrong_types_are_named(data: dict[str, object], code: str) -> None:
    with pytest.raises(RefusedError) as caught:
        interpret(data)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"\xff{}",
        b"[" * 100_000,
        b'{"a":' * 200 + b"1" + b"}" * 200,
    ],
)
def test_what_is_not_an_object_of_standard_json_is_refused(data: bytes) -> None:
    with pytest.raises(RefusedError):
        parse_object(data)


def test_a_byte_order_mark_is_tolerated() -> None:
    assert parse_object(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
    assert caption_lines(b"\xef\xbb\xbfa cat\r\na dog") == ["a cat", "a dog"]


def test_captions_are_normalised() -> None:
    assert clean_captions(["  e\u0301  ", "", " \t", "a\x00b", "\x00"]) == ("é", "ab")


@given(st.lists(st.text()))
def test_clean_captions_are_stable_and_never_empty(captions: list[str]) -> None:
    cleaned = clean_captions(captions)
    assert clean_captions(cleaned) == cleaned
    assert all(text and unicodedata.is_normalized("NFC", text) for text in cleaned)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda child: st.lists(child) | st.dictionaries(st.text(), child),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON))
def test_any_object_is_either_interpreted_or_refused_by_name(data: dict[str, object]) -> None:
    parsed = parse_object(json.dumps(data).encode())
    assert parsed == data
    try:
        code, attributes = None, interpret(parsed).attributes
    except RefusedError as error:
        code, attributes = error.code, {}
    assert code in {None, "bad-caption", "bad-label"}
    json.dumps(attributes)
