"""Files and their URIs: there and back, whatever bytes a name is made of."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from models.sources.files import file_of, file_uri, name_of
from models.sources.records import Record

PARTS = st.binary(min_size=1, max_size=12).filter(lambda raw: not {0, 47} & set(raw))


@given(st.lists(PARTS, min_size=1, max_size=3))
def test_a_uri_names_its_file_without_loss(parts: list[bytes]) -> None:
    path = b"/" + b"/".join(parts)
    uri = file_uri(path)
    assert file_of(uri) == Path(os.fsdecode(path))
    assert name_of(Record("key", uri, None)) == Path(os.fsdecode(path)).name


def test_a_member_and_what_is_not_here_have_no_file() -> None:
    member = file_uri(b"/shards/a.tar", b"deep/r\xe9d.png")
    assert file_of(member) is None
    assert file_of("https://photos.example/a.png") is None
    assert name_of(Record("key", member, None)) == "r\\xe9d.png"
    assert name_of(Record("of/a key.png", "https://photos.example/a", None)) == "a key.png"
