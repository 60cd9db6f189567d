"""Batched searches, and the engine over an index that no snapshot answers for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
from fakes import COLOURS, ColourEncoder
from readers import MemoryHolder, in_memory
from services import APPLE, FLAG, SKY, build_colours
from starlette.testclient import TestClient

from indexer.filters.language import parse_filter
from indexer.search.options import NEAR_DUPLICATE, SearchOptions
from indexer.search.reader import IndexReader
from indexer.search.snapshot import Snapshot, open_snapshot
from service.engine.engine import Engine
from service.engine.queries import TextQuery
from service.engine.retrieval import Ask, BatchedSearch, DirectSearch
from service.http.app import create_app

NAMES = list(COLOURS)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    with open_snapshot(build_colours(tmp_path_factory.mktemp("b") / "c.index"), fingerprint=None) as s:  # noqa: E501  # fmt: skip
        yield s


class Watched:
    """A snapshot that remembers how many queries each search had."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.sizes: list[int] = []
        self.held = threading.Event()

    def search(self, queries_QD, *asked):  # type: ignore[no-untyped-def]
        assert self.held.wait(20)
        self.sizes.append(len(queries_QD))
        return self._snapshot.search(queries_QD, *asked)


def test_searches_that_ask_alike_share_a_run_and_get_what_they_would_alone(
    snapshot: Snapshot,
) -> None:
    watched, batched, direct = Watched(snapshot), BatchedSearch(), DirectSearch()
    encoder = ColourEncoder()
    filters = [None, parse_filter({"field": "year", "gte": 2000}), None]
    wanted = []
    for number in range(24):
        query = encoder.embed_texts([encoder.prepare_text(NAMES[number % len(NAMES)])])
        options = SearchOptions(
            k=2 + number % 2,
            target=("images", "texts")[number // 12],  # type: ignore[arg-type]
            filter=filters[number % 3],
        )
        wanted.append((options, query))
    calls = [batched.submit(Ask(watched, options), query) for options, query in wanted]  # type: ignore[arg-type]
    watched.held.set()
    for call, (options, query) in zip(calls, wanted, strict=True):
        assert call.result() == direct.submit(Ask(snapshot, options), query).result()
    # k x target x filter: 8 kinds, of which the first ran alone
    assert len(watched.sizes) <= 9
    assert sum(watched.sizes) == 24
    assert batched.stop(20)


# -- an index that no snapshot answers for --------------------------------------------------------

SEARCHES: list[dict[str, Any]] = [
    {"query": {"text": "red"}},
    {"query": {"text": "blue"}, "k": 2, "offset": 1},
    {"query": {"text": "红"}, "target": "texts", "include": ["attributes", "embedding"]},
    {"query": {"id": APPLE}, "include": ["thumbnail"], "k": 2},
    {"query": {"text": "red"}, "deduplicate": 0.7, "min_score": 0.1},
    {"query": [{"text": "red"}, {"id": SKY, "weight": -0.5}], "exact": True, "effort": 7},
    {"query": {"embedding": [1.0] * 9}, "k": 3},
    {"query": {"id": "nothing"}},
]


@pytest.fixture(scope="module")
def clients(snapshot: Snapshot) -> Iterator[tuple[TestClient, TestClient]]:
    reader: IndexReader = in_memory(snapshot)
    with (
        TestClient(create_app(Engine(ColourEncoder(), snapshot))) as real,
        TestClient(create_app(Engine(ColourEncoder(), reader))) as fake,
    ):
        yield real, fake


def alike(one: Any, other: Any) -> bool:
    """Equal but for times and the last bits of floats: a stored row is rounded to float16."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            alike(one[key], other[key])
            for key in one
            if key not in ("took_ms", "timings", "instance")
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float) or isinstance(other, float):
        return bool(one == pytest.approx(other, abs=2e-3))
    return bool(one == other)


@pytest.mark.parametrize("body", SEARCHES, ids=str)
def test_searches_cannot_tell_who_answers(clients: Any, body: dict[str, Any]) -> None:
    real, fake = (client.post("/v1/search", json=body) for client in clients)
    assert (real.status_code, alike(real.json(), fake.json())) == (fake.status_code, True)


@pytest.mark.parametrize(
    "path",
    ["/v1/index", "/v1/indexes", "/readyz", "/v1/items/nothing"]
    + [f"/v1/items/{quote(one, safe='')}{part}" for one in (APPLE, FLAG) for part in ("", "/thumbnail")],  # noqa: E501
)  # fmt: skip
def test_items_and_descriptions_cannot_either(clients: Any, path: str) -> None:
    real, fake = (client.get(path) for client in clients)
    assert real.status_code == fake.status_code
    if real.headers["content-type"].startswith("image/"):
        assert real.content == fake.content
    else:
        assert alike(real.json(), fake.json())


def test_numbers_cannot_either(clients: Any) -> None:
    body = {"text": "red", "modality": "image", "num_images": 4, "indice_name": "default"}
    real, fake = (client.post("/knn-service", json=body).json() for client in clients)
    assert len(real) == 4
    assert alike(real, fake)


def test_one_object_travels_from_the_surface_to_the_reader(snapshot: Snapshot) -> None:
    reader = in_memory(snapshot)
    wanted = SearchOptions(k=3, target="texts", deduplicate=True, exact=True, effort=3)
    Engine(ColourEncoder(), reader).search(TextQuery("red"), wanted)
    (asked,) = reader.asked
    assert asked == replace(wanted, include=frozenset())
    assert asked.deduplicate == NEAR_DUPLICATE


def test_a_held_index_is_swapped_whoever_answers(snapshot: Snapshot) -> None:
    old = in_memory(snapshot)
    holder = MemoryHolder(old)
    engine = Engine(ColourEncoder(), holder)
    with engine.pin() as before:
        holder.newest = replace(old, version=old.version + 1, items={})
        assert holder.refresh()
        with engine.pin() as after:
            assert after.search(TextQuery("red")).hits == ()
            assert after.search(TextQuery("red")).index_version == old.version + 1
        assert len(before.search(TextQuery("red")).hits) == 4
