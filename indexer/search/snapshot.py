"""A snapshot: one committed version of an index, opened, verified and ready to search.

It never changes; a newer version is another snapshot. Every method may be called from several
threads. It embeds nothing: queries come as vectors, and the fingerprint tells whether they belong.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from indexer.filters.declared import BUILT_IN
from indexer.filters.language import Filter, check_filter
from indexer.format.checking import Verify
from indexer.format.items import Item
from indexer.format.manifest import (
    Head,
    Modality,
    RelevanceEntry,
    check_encoder,
    read_head,
    read_manifest,
)
from indexer.format.segment import Segment
from indexer.format.version import OpenVersion, open_version
from indexer.search.background import Background, QueryKind
from indexer.search.facets import Facet, facets
from indexer.search.relevance import read_background
from indexer.search.searcher import Hit, Searcher, Target
from models.encoder import Fingerprint
from models.errors import IndexCorruptError, NotFoundError
from models.vectors import Vectors, unit_rows

__all__ = ["Hit", "IndexInfo", "Item", "Snapshot", "Target", "open_snapshot", "read_fingerprint"]


_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What an index is; `bytes` counts the files of this version, `created` dates it (ISO 8601)."""

    version: int
    uuid: str
    created: str
    writer: str
    model: str
    fingerprint: str
    dim: int
    images: int
    texts: int
    segments: int
    tombstones: int
    bytes: int
    sources: list[dict[str, str]]
    fields: list[dict[str, str]]
    relevance: dict[str, Any] | None = None
    """Per target what hits are judged against: rows measured, queries, kinds; None: nothing."""
    degraded: list[str] = field(default_factory=list)
    """Search structures that are damaged; their segments are searched exactly, which is slower."""

    structures: list[dict[str, Any]] = field(default_factory=list)
    """ANN structures: the target, rows, and what `indexer.format.entries.AnnEntry` says."""

    wordless: int = 0
    """Segments of format 1, which lack what hybrid search needs."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Snapshot:
    """See the module. Get one from `open_snapshot`; close it, or use it as a context manager."""

    def __init__(self, version: OpenVersion) -> None:
        self._open = version
        self._background: Background | None = read_background(version.root, version.manifest)
        self._live = [~dead for dead in version.dead]
        self._parts: dict[Modality, list[int]] = {"image": [], "text": []}
        self._searcher = Searcher(version, self._live)
        self._degraded = [
            segment.ann_damage.message for segment in version.segments if segment.ann_damage
        ]
        for damage in self._degraded:
            _LOG.warning(
                "%s: %s; the segment is searched exactly until `diptych index repair` rebuilds it",
                version.root,
                damage,
            )
        self._facets: tuple[Facet, ...] | None = None
        self._counting = threading.Lock()
        for position, segment in enumerate(version.segments):
            self._parts[segment.entry.modality].append(position)

    @property
    def version(self) -> int:
        return self._open.manifest.version

    @property
    def fingerprint(self) -> Fingerprint:
        """The encoder pair whose vectors the index holds."""
        return self._open.manifest.fingerprint

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its files. No other method may be called afterwards."""
        self._open.close()

    def info(self) -> IndexInfo:
        manifest = self._open.manifest
        return IndexInfo(
            version=manifest.version,
            uuid=manifest.index,
            created=manifest.created,
            writer=manifest.writer,
            model=manifest.fingerprint.model,
            fingerprint=manifest.fingerprint.digest,
            dim=manifest.dim,
            images=manifest.live.images,
            texts=manifest.live.texts,
            segments=len(manifest.segments),
            tombstones=manifest.tombstones.count if manifest.tombstones else 0,
            # no system call: the directory may be gone while the snapshot is still served
            bytes=len(manifest.encode()) + sum(e.size for e in manifest.files().values()),
            sources=[source.model_dump() for source in manifest.sources],
            fields=[asdict(one) for one in (*manifest.declared, *BUILT_IN)],
            relevance=None if manifest.relevance is None else _about(manifest.relevance),
            degraded=list(self._degraded),
            structures=[
                {
                    "target": f"{segment.modality}s",
                    "rows": segment.rows,
                    **segment.ann.model_dump(exclude={"canaries"}),
                }
                for segment in manifest.segments
                if segment.ann is not None
            ],
            wordless=sum(not segment.items.has_words for segment in self._open.segments),
        )

    def relevance(
        self, query_D: Vectors, scores_K: Sequence[float], *, kind: QueryKind, target: Target
    ) -> list[float] | None:
        """How far hits of these scores stand above this index's background, each in (0, 1).

        One half is the gate below which nothing fits well; see `indexer.search.background`.

        Args:
            query_D: the query, a unit vector [D].
            scores_K: cosines of hits of `target`.
            kind: what the query was made of: `text`, `image`, or both (`mixed`).

        Returns:
            One number per score, never falling as the score rises; None where the index keeps no
            background, or too few items to judge by.
        """
        if self._background is None:
            return None
        return self._background.relevance(query_D, scores_K, kind=kind, target=target)

    def facets(self) -> tuple[Facet, ...]:
        """The values of the filterable fields; counted on the first call, then kept."""
        with self._counting:
            if self._facets is None:
                self._facets = facets(self._open)
            return self._facets

    def check_filter(self, wanted: Filter) -> None:
        """Refuse a filter that this index cannot answer.

        Raises:
            InvalidFilterError: an undeclared field, or a test or value that is not for its type.
        """
        check_filter(wanted, self._open.manifest.declared)

    def search(
        self,
        queries_QD: Vectors,
        k: int,
        *,
        target: Target = "images",
        offset: int = 0,
        filter: Filter | None = None,
        exact: bool = False,
        effort: int | None = None,
        texts: Sequence[str | None] | None = None,
        hybrid: float = 0.0,
        deduplicate: float | None = None,
    ) -> list[list[Hit]]:
        """The k best live items of each query after skipping `offset`.

        Exactly the best, except in segments with an ANN structure (`diptych index optimize`): of
        those nearly all of the best, at the recall recorded in the manifest.

        Ordered by score (the cosine, to float32) falling, then by id, so that pages of one
        snapshot neither overlap nor leave anything out. Fewer than k come back only where fewer
        exist.

        Args:
            queries_QD: [Q, D] of any length but zero; they are scaled to unit length.
            k: at least 1.
            target: which modality to search.
            offset: how many of the best to skip.
            filter: which items may be found at all; None lets all.
            exact: use no ANN structure.
            effort: efSearch or nprobe of this call; None takes the recorded operating point.
                Segments without an ANN structure do not need it.
            texts: each query as words, for `hybrid`; None for a query that has none.
            hybrid: weight, in [0, 1], of the ranking by words (BM25 over the item's text, for a
                picture over its captions) when it is fused with that by cosine. The order is then
                that of `Hit.fused`; a query without a known word keeps the order by cosine.
            deduplicate: cosine from which an item is a near-duplicate of a better one: it is left
                out and named by that hit, and the page is filled with the next best.

        Raises:
            InputError: a number out of range; `no-words`: hybrid search of an index that has
                segments of format 1.
            InvalidFilterError: as `check_filter`.
            InvalidVectorError: wrong shape or dimension, NaN, infinity, or a zero vector.
        """
        return self._searcher.search(
            queries_QD,
            k,
            target=target,
            offset=offset,
            filter=filter,
            exact=exact,
            effort=effort,
            texts=texts,
            hybrid=hybrid,
            deduplicate=deduplicate,
        )

    def item(self, item_id: str) -> Item:
        """The live item of an id; where a picture and a text share it, the picture.

        Raises:
            NotFoundError: no live item has it.
        """
        segment, row = self._find(item_id)
        return segment.items.items([row])[row]

    def vector(self, item_id: str) -> Vectors:
        """The stored embedding, float32 [D], unit length.

        Raises:
            NotFoundError: no live item has this id.
        """
        segment, row = self._find(item_id)
        vector_D: Vectors = unit_rows(segment.vectors_ND[row][None])[0]
        return vector_D

    def thumbnail(self, item_id: str) -> bytes:
        """The picture's thumbnail as JPEG.

        Raises:
            NotFoundError: no live item has this id, or none was stored for it.
        """
        segment, row = self._find(item_id)
        thumbnail = segment.items.thumbnail(row)
        if thumbnail is None:
            raise NotFoundError(f"item {item_id!r} has no thumbnail")
        return thumbnail

    def captions(self, image_id: str) -> list[Item]:
        """The live texts that belong to a picture, in source order; none is not an error."""
        found = []
        for part in self._parts["text"]:
            items = self._open.segments[part].items
            rows = [row for row in items.rows_of(image_id) if self._live[part][row]]
            loaded = items.items(rows)
            found += [loaded[row] for row in sorted(rows)]
        return [item for item in found if item.image_id == image_id]

    def _find(self, item_id: str) -> tuple[Segment, int]:
        for modality in ("image", "text"):
            for part in reversed(self._parts[modality]):  # newest first
                row = self._open.segments[part].items.find(item_id)
                if row is not None and self._live[part][row]:
                    return self._open.segments[part], row
        raise NotFoundError(f"no item {item_id!r} in this index")


def open_snapshot(
    path: Path, *, fingerprint: Fingerprint | None, verify: Verify = "fast"
) -> Snapshot:
    """Verify and open the current version of an index.

    Every file is checked before it is used. A damaged `ann.faiss` does not stop it: its segment
    is searched exactly, `info().degraded` says so, and one warning is logged.

    Args:
        fingerprint: that of the encoder whose queries will be searched; None opens without
            binding, for describing the index only.
        verify: `fast` finds every accident, `full` every change; see `indexer.format.checking`.

    Raises:
        IndexNotFoundError: no index at `path`.
        IndexCorruptError: a file the version cannot do without is missing or damaged.
        EncoderMismatchError: the index was built with another encoder pair.
        StoreError: the operating system refused to read.
    """
    head = read_head(path)
    while True:
        try:
            return _open(path, head, fingerprint, verify)
        except IndexCorruptError:
            # while it was being opened the version may have been collected as too old: what is
            # missing then is no damage, and there is a newer one
            newest = read_head(path)
            if newest == head:
                raise
            head = newest


def _open(path: Path, head: Head, fingerprint: Fingerprint | None, verify: Verify) -> Snapshot:
    manifest = read_manifest(path, head)
    if fingerprint is not None:
        check_encoder(manifest.fingerprint, fingerprint)
    version = open_version(path, manifest, verify=verify)
    try:
        return Snapshot(version)
    except BaseException:
        version.close()
        raise


def read_fingerprint(path: Path) -> Fingerprint:
    """The encoder pair an index was built with, from `CURRENT` and the manifest alone.

    Raises:
        IndexNotFoundError, IndexCorruptError: as `open_snapshot`.
    """
    return read_manifest(path).fingerprint


def _about(entry: RelevanceEntry) -> dict[str, Any]:
    return {
        target: {
            "rows": one.rows,
            "queries": entry.count,
            "kinds": [kind for kind in ("text", "image", "mixed") if getattr(one, kind)],
        }
        for target, one in (("images", entry.images), ("texts", entry.texts))
    }
