"""Search by words in an index that was written before there was such a thing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fakes import ColourEncoder
from indexes import build, opened, record

from indexer.format.version import open_version
from indexer.maintain.optimize import optimize
from indexer.search.options import SearchOptions
from models.errors import InputError

GOLD = Path(__file__).parents[2] / "gold" / "index-format-1" / "index"


def test_an_old_index_says_what_it_lacks_and_optimize_adds_it(tmp_path: Path) -> None:
    path = tmp_path / "i"
    shutil.copytree(GOLD, path)
    # an upgraded index may hold both kinds of segments
    build([record("new", "red", "a brand new word")], path)
    encoder = ColourEncoder()
    query = encoder.embed_texts([encoder.prepare_text("red")])
    with opened(path) as snapshot, pytest.raises(InputError, match="before search by words") as why:
        snapshot.search(query, SearchOptions(k=3, hybrid=0.5), texts=["brand"])
    assert why.value.code == "no-words"
    assert "index optimize" in (why.value.hint or "")
    encoder.texts_embedded = encoder.images_embedded = 0
    optimize(path)
    assert encoder.texts_embedded == encoder.images_embedded == 0
    with opened(path) as snapshot:
        [hits] = snapshot.search(query, SearchOptions(k=1, hybrid=1.0), texts=["brand"])
        assert hits[0].item.id == "new"
        for hit in snapshot.search(query, SearchOptions(k=100))[0]:
            # every word of every caption finds its picture
            captions = [one.text or "" for one in snapshot.captions(hit.item.id)]
            for text in [*captions, hit.item.text or ""]:
                if text:
                    found = snapshot.search(query, SearchOptions(k=100, hybrid=1.0), texts=[text])[
                        0
                    ]
                    worded = [one.item.id for one in found if (one.fused or 0) > 0]
                    assert hit.item.id in worded
    version = open_version(path)
    assert all(segment.items.has_words for segment in version.segments)
    version.close()
    before = [segment.entry.id for segment in version.segments]
    optimize(path)
    version = open_version(path)
    assert [segment.entry.id for segment in version.segments] == before  # nothing left to do
    version.close()
