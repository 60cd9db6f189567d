"""Small sources, and indexes built from them with the colour encoder, for tests of `indexer/`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fakes import COLOURS, ColourEncoder, solid

from indexer.ingest.build import BuildOptions, BuildReport, build_index
from indexer.search.options import SearchOptions
from indexer.search.snapshot import Snapshot, open_snapshot
from models.sources.records import Record, Reject, Row, Source

NAMES = list(COLOURS)
PICTURES = {name: solid(name, size=(8, 8)) for name in NAMES}


class ListSource(Source):
    """A source that yields the rows it was given; an exception among them is raised."""

    kind = "list"

    def __init__(self, rows: Iterable[Row | Exception], name: str = "list") -> None:
        self.name = name
        self.rows = list(rows)

    def count(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        for row in self.rows:
            if isinstance(row, Exception):
                raise row
            yield row


def record(
    key: str, colour: str | None, *captions: str, language: str = "en", **attributes: object
) -> Record:
    """A record whose picture is a solid colour, or that has no picture."""
    return Record(
        key=key,
        uri=f"file:///pictures/{key}.png",
        image=None if colour is None else PICTURES[colour],
        texts={language: captions} if captions else {},
        attributes=attributes,
    )


def reject(key: str) -> Reject:
    return Reject("list", key, "test-reject", "refused by the source")


def build(
    rows: Iterable[Row | Exception],
    out: Path,
    encoder: ColourEncoder | None = None,
    **options: object,
) -> BuildReport:
    settings = BuildOptions(**{"batch_size": 4, **options})  # type: ignore[arg-type]
    return build_index([ListSource(rows)], out, encoder or ColourEncoder(), options=settings)


def opened(path: Path) -> Snapshot:
    return open_snapshot(path, fingerprint=ColourEncoder().fingerprint)


def ids(snapshot: Snapshot, query: str, k: int = 1000, target: str = "images") -> list[str]:
    """Ids of the hits of a text query, best first."""
    encoder = ColourEncoder()
    vectors = encoder.embed_texts([encoder.prepare_text(query)])
    return [hit.item.id for hit in snapshot.search(vectors, SearchOptions(k=k, target=target))[0]]  # type: ignore[arg-type]


def rejects_of(path: Path) -> list[dict[str, str]]:
    import json

    file = path.with_name(path.name + ".rejects.jsonl")
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="ascii").splitlines()]


def scratch(path: Path) -> Sequence[str]:
    """What is left in an index's scratch directory."""
    return sorted(entry.name for entry in (path / "scratch").iterdir())


def mean_shown(rows: Iterable[npt.NDArray[Any]], dim: int) -> npt.NDArray[np.float64]:
    """The loop behind `relevance.mean_vector` where every row is sampled, float64 [D]."""
    stored = [np.asarray(row, dtype=np.float64) for row in rows]
    weights = [1 / max(1.0, sum(max(0.0, float(a @ b)) ** 2 for b in stored)) for a in stored]
    total = sum((w * a for w, a in zip(weights, stored, strict=True)), np.zeros(dim))
    return total / (sum(weights) or 1.0)
