"""Long random lives of an index against a dict and loops: 5,000 operations here, 200,000 slowly.

Put (upsert), delete, delete by filter, mirror, optimize, rollback, purge and reopen change both;
every search must give exactly what a loop over the dict gives, order and scores included, filters
too. The small fault a test like this exists for is one that no reader would think of.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from directions import HashEncoder, direction, picture
from indexes import ListSource
from ramdisk import in_memory

from indexer.filters.declared import parse_fields
from indexer.filters.language import parse_filter
from indexer.ingest.build import BuildOptions, build_index
from indexer.maintain.edit import delete_items, rollback
from indexer.maintain.optimize import optimize
from indexer.maintain.purge import purge
from indexer.maintain.verify import verify_index
from indexer.search.options import SearchOptions
from indexer.search.snapshot import Snapshot, open_snapshot
from indexer.store.history import history
from models.errors import NotFoundError
from models.sources.records import Record
from models.vectors import Vectors

SHADES = 40
PICTURES = [picture(5 * shade) for shade in range(SHADES)]
WORDS = [f"w{i}" for i in range(6)]
WEIGHTS = {
    "search": 60,
    "look_up": 20,
    "put": 8,
    "delete": 4,
    "delete_by_filter": 1,
    "mirror": 1,
    "optimize": 1,
    "rollback": 1,
    "purge": 1,
    "reopen": 2,
    "verify": 1,
}


@dataclass(frozen=True)
class Content:
    """What a record holds: the shade of its picture, its words, and its year."""

    shade: int | None
    words: tuple[str, ...]
    year: int


State = dict[str, Content]


@dataclass
class Life:
    """An index and the dict it must equal.

    Attributes:
        erased: keys that were deleted and not put back by an express wish.
        versions: state and number of every version a rollback may go to.
        done: how often each operation did something.
    """

    path: Path
    rng: random.Random
    pool: list[str]
    state: State = field(default_factory=dict)
    erased: set[str] = field(default_factory=set)
    ever_deleted: set[str] = field(default_factory=set)
    versions: dict[int, State] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    encoder: HashEncoder = field(default_factory=HashEncoder)
    snapshot: Snapshot | None = None

    def live(self, operations: int) -> None:
        self.put()
        names, weights = zip(*WEIGHTS.items(), strict=True)
        for name in self.rng.choices(names, weights, k=operations):
            getattr(self, name)()
            self.done[name] += 1
        self.verify()
        if self.snapshot is not None:
            self.snapshot.close()

    def put(self) -> None:
        batch = {key: self.content() for key in self.rng.sample(self.pool, self.rng.randint(1, 8))}
        wish = self.rng.random() < 0.2
        self.build(batch, allow_erased=wish)
        if wish:
            self.erased -= set(batch)
        new = {key: content for key, content in batch.items() if key not in self.erased}
        self.state = self.state | new  # never in place: older versions keep theirs
        self.reopen()

    def mirror(self) -> None:
        """A source that holds what is there but for a little, and something new."""
        gone = set(self.rng.sample(sorted(self.state), min(3, len(self.state))))
        batch = {key: content for key, content in self.state.items() if key not in gone}
        batch[self.rng.choice(self.pool)] = self.content()
        self.build(batch, mirror=True, mirror_all=True)
        # what is gone from a source was not deleted by anybody: it may come back with it
        self.state = {key: new for key, new in batch.items() if key not in self.erased}
        self.reopen()

    def delete(self) -> None:
        live = self.rng.sample(sorted(self.state), min(self.rng.randint(1, 3), len(self.state)))
        report = delete_items(self.path, [*live, "nobody"])
        assert report.missing == ["nobody"]
        assert report.erased == len(live)
        self.bury(set(live))

    def delete_by_filter(self) -> None:
        year = self.rng.randint(2000, 2009)
        delete_items(self.path, filter=parse_filter({"field": "year", "eq": year}))
        self.bury(
            {k for k, c in self.state.items() if c.year == year and c.shade is not None},
        )

    def bury(self, keys: set[str]) -> None:
        self.erased |= keys
        self.ever_deleted |= keys
        self.state = {key: content for key, content in self.state.items() if key not in keys}
        self.reopen()

    def optimize(self) -> None:
        optimize(self.path)
        self.reopen()
        assert self.snapshot is not None
        assert self.snapshot.info().segments <= 2
        assert self.snapshot.info().tombstones == 0

    def rollback(self) -> None:
        kept = [about.version for about in history(self.path) if not about.current]
        kept = [version for version in kept if version in self.versions]
        if kept:
            to = self.rng.choice(kept)
            rollback(self.path, to)
            old = self.versions[to]
            self.state = {key: content for key, content in old.items() if key not in self.erased}
            self.reopen()

    def purge(self) -> None:
        report = purge(self.path)
        assert report.found == []
        self.versions.clear()
        self.reopen()

    def reopen(self) -> None:
        if self.snapshot is not None:
            self.snapshot.close()
        self.snapshot = open_snapshot(self.path, fingerprint=self.encoder.fingerprint)
        self.versions[self.snapshot.version] = self.state
        info = self.snapshot.info()
        assert (info.images, info.texts) == (len(self.images()), len(self.texts()))

    def verify(self) -> None:
        report = verify_index(self.path)
        assert report.ok, report.problems

    def search(self) -> None:
        assert self.snapshot is not None
        kind = self.rng.choice(["images", "texts"])
        query_D = direction(self.rng.randrange(10**6))
        k, offset = self.rng.randint(1, 30), self.rng.choice([0, 0, 7])
        low = self.rng.randint(2000, 2012)
        filtered = self.rng.random() < 0.4
        stored = self.images() if kind == "images" else self.texts()
        scored = []
        for item, (vector_D, year) in stored.items():
            if filtered and year < low:
                continue
            row_D = vector_D.astype(np.float16).astype(np.float64)
            scored.append((-float(np.float32(row_D @ query_D.astype(np.float64))), item))
        wanted = sorted(scored)[offset : offset + k]
        [hits] = self.snapshot.search(
            query_D[None],
            SearchOptions(
                k=k,
                target=kind,
                offset=offset,
                filter=parse_filter({"field": "year", "gte": low}) if filtered else None,
            ),
        )
        # a rounded row may be a hair longer than 1; a cosine is not
        scores = np.clip([-score for score, _ in wanted], -1.0, 1.0)
        np.testing.assert_allclose([hit.score for hit in hits], scores, atol=1e-6)
        # the loop sums in another order, so what ties within a rounding may change places
        if len({round(score, 6) for score, _ in wanted}) == len(wanted):
            assert [hit.item.id for hit in hits] == [item for _, item in wanted]

    def look_up(self) -> None:
        assert self.snapshot is not None
        key = self.rng.choice(self.pool)
        content = self.state.get(key)
        if content is None:
            with pytest.raises(NotFoundError):
                self.snapshot.item(key)
            return
        item = self.snapshot.item(key)
        if content.shade is None:  # texts alone are read by their key
            assert (item.modality, item.text in content.words) == ("text", True)
            return
        assert item.attributes == {"year": content.year}
        assert item.text == (content.words[0] if content.words else None)
        assert [one.text for one in self.snapshot.captions(key)] == list(content.words)
        np.testing.assert_allclose(
            self.snapshot.vector(key), direction(5 * content.shade), atol=1e-3
        )

    def build(self, batch: State, **options: object) -> None:
        rows = [
            Record(
                key,
                f"u:{key}",
                None if content.shade is None else PICTURES[content.shade],
                {"en": content.words} if content.words else {},
                attributes={"year": content.year},
            )
            for key, content in batch.items()
        ]
        settings = BuildOptions(
            batch_size=4,
            segment_rows=self.rng.choice([3, 100]),
            fields=parse_fields(["year:int"]),
            thumbnails=False,
            **options,  # type: ignore[arg-type]
        )
        build_index([ListSource(rows)], self.path, self.encoder, options=settings)

    def content(self) -> Content:
        words = tuple(self.rng.choices(WORDS, k=self.rng.randint(0, 2)))
        shade = self.rng.randrange(SHADES) if not words or self.rng.random() < 0.8 else None
        return Content(shade, words, self.rng.randint(2000, 2009))

    def images(self) -> dict[str, tuple[Vectors, int]]:
        return {
            key: (direction(5 * content.shade), content.year)
            for key, content in self.state.items()
            if content.shade is not None
        }

    def texts(self) -> dict[str, tuple[Vectors, int]]:
        return {
            f"{key}#en/{number}": (direction(1000 + WORDS.index(word)), content.year)
            for key, content in self.state.items()
            for number, word in enumerate(content.words)
        }


def live(operations: int, seed: int, pool: int) -> Life:
    with in_memory() as home:
        life = Life(home / "x.index", random.Random(seed), [f"k{i:04}" for i in range(pool)])
        life.live(operations)
    return life


def test_5000_operations() -> None:
    life = live(5000, seed=7, pool=60)
    assert set(life.done) == set(WEIGHTS), "some operation was never tried"
    assert len(life.ever_deleted) > 30


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(10))
def test_200000_operations_in_ten_lives(seed: int) -> None:
    live(20_000, seed=1000 + seed, pool=1000 if seed % 2 else 100)
