"""Random histories of an index against a dict and numpy.

Hypothesis builds, updates, reopens and searches; a dict holds what should be there and a loop over
it says what every search must answer, scores and order included.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from directions import DIM, WORDS, HashEncoder, direction, picture
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from indexes import build, mean_shown

from indexer.format.manifest import read_manifest
from indexer.maintain.verify import verify_index
from indexer.search.options import SearchOptions
from indexer.search.relevance_file import read_background
from indexer.search.snapshot import Snapshot, open_snapshot
from models.errors import NotFoundError
from models.images.decode import decode_image
from models.sources.records import Record
from models.vectors import Vectors

KEYS = [f"k{i}" for i in range(12)]


PICTURES = [picture(shade) for shade in range(5)]
Content = tuple[int | None, tuple[str, ...]]
contents = st.tuples(
    st.one_of(st.none(), st.integers(0, 4)), st.lists(st.sampled_from(WORDS), max_size=3).map(tuple)
).filter(lambda content: content[0] is not None or content[1])


class IndexHistory(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.path = self.directory / "x.index"
        self.model: dict[str, Content] = {}
        self.encoder = HashEncoder()
        self.snapshot: Snapshot | None = None
        self.version = 0

    def teardown(self) -> None:
        if getattr(self, "snapshot", None) is not None:
            assert self.snapshot is not None
            self.snapshot.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    @rule(
        batch=st.dictionaries(st.sampled_from(KEYS), contents, max_size=8),
        segment_rows=st.sampled_from([1, 3, 100]),
        batch_size=st.sampled_from([1, 2, 32]),
    )
    def put(self, batch: dict[str, Content], segment_rows: int, batch_size: int) -> None:
        rows = [
            Record(
                key,
                f"u:{key}",
                None if shade is None else PICTURES[shade],
                {"en": words} if words else {},
            )
            for key, (shade, words) in batch.items()
        ]
        before = self.encoder.images_embedded, self.encoder.texts_embedded
        report = build(
            rows, self.path, self.encoder, segment_rows=segment_rows, batch_size=batch_size
        )
        changed = {key: new for key, new in batch.items() if self.model.get(key) != new}
        added = [key for key in changed if key not in self.model]
        assert (report.added, report.updated) == (len(added), len(changed) - len(added))
        assert report.unchanged == len(batch) - len(changed)
        assert self.encoder.images_embedded - before[0] == sum(
            shade is not None for shade, _ in changed.values()
        )
        assert self.encoder.texts_embedded - before[1] == sum(
            len(words) for _, words in changed.values()
        )
        self.model.update(batch)
        assert (report.images, report.texts) == (len(self.images()), len(self.texts()))
        self.version = report.version
        if self.snapshot is not None:
            self.snapshot.close()
        self.snapshot = open_snapshot(self.path, fingerprint=self.encoder.fingerprint)
        assert self.snapshot.version == report.version
        self.background()

    def background(self) -> None:
        """Whatever was added, replaced or carried over: it is that of the live rows."""
        manifest = read_manifest(self.path)
        stored = read_background(self.path, manifest)
        if not self.model:
            assert stored is None
            return
        assert stored is not None
        assert stored.targets["images"].rows == len(self.images())
        assert stored.targets["texts"].rows == len(self.texts())
        for target, rows in (("images", self.images()), ("texts", self.texts())):
            mean_D = mean_shown(rows.values(), DIM)
            np.testing.assert_allclose(stored.mean_D[target], mean_D, atol=1e-3)  # float16 rows

    def images(self) -> dict[str, Vectors]:
        return {
            key: direction(shade) for key, (shade, _) in self.model.items() if shade is not None
        }

    def texts(self) -> dict[str, Vectors]:
        return {
            f"{key}#en/{n}": direction(1000 + WORDS.index(word))
            for key, (_, words) in self.model.items()
            for n, word in enumerate(words)
        }

    @precondition(lambda self: self.snapshot is not None)
    @rule(
        seed=st.integers(0, 10**6),
        k=st.integers(1, 50),
        offset=st.integers(0, 20),
        wanted_kind=st.sampled_from(["images", "texts"]),
    )
    def search(self, seed: int, k: int, offset: int, wanted_kind: str) -> None:
        assert self.snapshot is not None
        query_D = direction(seed)
        stored = self.images() if wanted_kind == "images" else self.texts()
        scored = []
        for key, vector_D in stored.items():
            row_D = vector_D.astype(np.float16).astype(np.float64)
            score = np.float32(sum(a * float(b) for a, b in zip(row_D, query_D, strict=True)))
            scored.append((-float(score), key))
        wanted = sorted(scored)[offset : offset + k]
        [hits] = self.snapshot.search(
            query_D[None], SearchOptions(k=k, target=wanted_kind, offset=offset)
        )  # type: ignore[arg-type]
        assert [hit.item.id for hit in hits] == [key for _, key in wanted]
        for hit, (negative, _) in zip(hits, wanted, strict=True):
            assert abs(hit.score + negative) < 1e-6

    @precondition(lambda self: self.snapshot is not None)
    @rule(key=st.sampled_from(KEYS))
    def look_up(self, key: str) -> None:
        assert self.snapshot is not None
        for item_id, vector_D in {**self.images(), **self.texts()}.items():
            if item_id.split("#")[0] == key:
                np.testing.assert_allclose(self.snapshot.vector(item_id), vector_D, atol=1e-3)
                assert self.snapshot.item(item_id).id == item_id
        if key not in self.images():
            texts = {one for one in self.texts() if one.split("#")[0] == key}
            try:
                found = self.snapshot.item(key).id
            except NotFoundError:
                assert not texts
            else:
                assert found in texts, "a record of texts alone is read by its key"

    @precondition(lambda self: self.snapshot is not None)
    @rule()
    def verify(self) -> None:
        report = verify_index(self.path)
        assert report.ok, report.problems
        assert report.version == self.version


IndexHistory.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestIndexHistory = IndexHistory.TestCase


def test_the_encoder_of_this_test_tells_contents_apart() -> None:
    """The negative control: directions differ, so a mixed-up row could not go unnoticed."""
    encoder = HashEncoder()
    rows = encoder.embed_images([encoder.prepare_image(decode_image(p)) for p in PICTURES])
    cosines = rows @ rows.T - np.eye(5, dtype=np.float32)
    assert cosines.max() < 0.999
