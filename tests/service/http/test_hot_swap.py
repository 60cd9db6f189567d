"""A new version under a running engine: pinned requests keep theirs, strangers are refused."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import ColourEncoder
from indexes import build, record
from starlette.testclient import TestClient

from indexer.search.holder import SnapshotHolder
from indexer.search.options import SearchOptions
from models.errors import DiptychError
from service.engine.engine import Engine
from service.engine.queries import TextQuery
from service.engine.watcher import IndexWatcher
from service.http.app import ServiceSettings, create_app


@pytest.fixture
def index(tmp_path: Path) -> Path:
    path = tmp_path / "photos.index"
    build([record("one", "red")], path)
    return path


@pytest.fixture
def engine(index: Path) -> Iterator[Engine]:
    engines: list[Engine] = []

    def warm(snapshot: object) -> None:
        for each in engines:
            each.try_out(snapshot)  # type: ignore[arg-type]

    with SnapshotHolder(index, fingerprint=None, warm=warm) as holder:
        engines.append(Engine(ColourEncoder(), holder, name="photos"))
        yield engines[0]


def found(engine: Engine) -> tuple[int, int]:
    """Version and number of pictures that answer."""
    answer = engine.search(TextQuery("red"), SearchOptions(k=100))
    return answer.index_version, len(answer.hits)


def test_a_pinned_engine_stays_with_its_version_and_the_next_has_the_new_one(
    engine: Engine, index: Path
) -> None:
    watcher = IndexWatcher([engine], poll_s=0)
    assert not watcher.look(engine)
    with engine.pin() as before:
        assert found(before) == (1, 1)
        build([record("two", "red")], index)
        assert watcher.look(engine)
        with engine.pin() as after:
            assert found(after) == (2, 2)
            assert found(before) == (1, 1), "until it is let go"
    assert not watcher.look(engine)


def test_without_a_pin_an_engine_that_may_change_is_not_searched(engine: Engine) -> None:
    with pytest.raises(AssertionError, match="pinned"):
        engine.search(TextQuery("red"))


def test_an_index_of_another_pair_is_refused_and_told_once(
    engine: Engine, index: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = IndexWatcher([engine], poll_s=0)
    other = tmp_path / "others.index"
    build([record("stranger", "red")], other, ColourEncoder(name="others"))
    kept = tmp_path / "kept"
    index.rename(kept)
    other.rename(index)
    with caplog.at_level(logging.INFO, logger="diptych.service"):
        assert not watcher.look(engine)
        assert not watcher.look(engine)
    with engine.pin() as pinned:
        assert found(pinned) == (1, 1)
    assert [record_.levelname for record_ in caplog.records] == ["ERROR"]
    assert "encoder-mismatch" in caplog.text
    index.rename(other)
    with caplog.at_level(logging.INFO, logger="diptych.service"):
        assert not watcher.look(engine), "an index that is gone is no reason to stop either"
    assert "index-not-found" in caplog.text
    kept.rename(index)
    build([record("two", "red")], index)
    assert watcher.look(engine)


def test_an_engine_is_not_made_over_another_pairs_index(index: Path) -> None:
    with SnapshotHolder(index, fingerprint=None) as holder, pytest.raises(DiptychError):
        Engine(ColourEncoder(name="others"), holder)


def test_every_route_answers_from_the_new_version_and_label_sets_stay(
    engine: Engine, index: Path
) -> None:
    with TestClient(create_app(engine, ServiceSettings(poll_s=0.02))) as client:
        assert client.get("/readyz").status_code == 200
        labels = {"images": ["aaaa"], "labels": ["red", "blue"]}
        client.post("/v1/classify", json=labels)
        matrices = engine.classifier._cache
        build([record("two", "red", "a red caption")], index)
        for _ in range(500):
            if client.get("/v1/index").json()["version"] == 2:
                break
        answer = client.post("/v1/search", json={"query": {"text": "red"}, "k": 10})
        assert answer.headers["Index-Version"] == "2"
        assert answer.json()["index_version"] == 2
        assert len(answer.json()["hits"]) == 2
        item = client.get("/v1/items/" + answer.json()["hits"][0]["id"])
        assert item.headers["Index-Version"] == "2"
        assert client.get("/v1/indexes").json()["indexes"][0]["version"] == 2
        assert engine.classifier._cache is matrices
