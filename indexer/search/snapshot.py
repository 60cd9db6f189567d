"""A snapshot: one committed version of an index, opened, verified and ready to search.

It never changes; a newer version is another snapshot. Every method may be called from several
threads. It embeds nothing: queries come as vectors, and the fingerprint tells whether they belong.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, Self

from indexer.filters.declared import BUILT_IN
from indexer.filters.language import Filter, check_filter
from indexer.format.entries import RelevanceEntry
from indexer.format.integrity import Verify
from indexer.format.manifest import Head, check_encoder, newest_version, read_manifest
from indexer.format.version import OpenVersion, open_version
from indexer.search.facets import facets
from indexer.search.options import DEFAULTS, SearchOptions, SortKey
from indexer.search.reader import Facet, Hit, IndexInfo, IndexReader, Item, QueryKind, Target
from indexer.search.relevance import Background
from indexer.search.relevance_file import read_background
from indexer.search.scanners import LiveSegment
from indexer.search.searcher import Searcher
from indexer.search.sorting import check_sort
from models.encoder import Fingerprint
from models.errors import NotFoundError
from models.vectors import Vectors, unit_rows

_LOG: Final = logging.getLogger(__name__)


class Snapshot(IndexReader):
    """See the module; what each method answers is `IndexReader`'s to say.

    Get one from `open_snapshot`; close it, or use it as a context manager.

    Attributes:
        opened: the version's files, for who looks after them.
        searcher: what scans its segments, for who measures that.
    """

    def __init__(self, version: OpenVersion, before: Snapshot | None = None) -> None:
        """`before` is of another version, whose parts serve again where they are the same."""
        self.opened = version
        self._background = _background(version, before)
        known = {one.segment: one for one in before._segments} if before else {}
        self._segments: list[LiveSegment] = [
            LiveSegment.of(segment, ~dead, known.get(segment))
            for segment, dead in zip(version.segments, version.dead, strict=True)
        ]
        self.searcher = Searcher(version.manifest, self._segments)
        self._degraded = [
            segment.ann_damage.message for segment in version.segments if segment.ann_damage
        ]
        for damage in self._degraded:
            _LOG.warning(
                "%s: %s; the segment is searched exactly until `diptych index repair` rebuilds it",
                version.root,
                damage,
            )
        # where each segment's items begin when all are laid end to end, for `number`
        self._starts = [0, *accumulate(len(one.live_N) for one in self._segments)]
        self._facets: tuple[Facet, ...] | None = None
        self._counting = threading.Lock()

    @property
    def version(self) -> int:
        return self.opened.manifest.version

    @property
    def fingerprint(self) -> Fingerprint:
        """The encoder pair whose vectors the index holds."""
        return self.opened.manifest.fingerprint

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its files. No other method may be called afterwards."""
        self.opened.close()

    def info(self) -> IndexInfo:
        manifest = self.opened.manifest
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
            wordless=sum(not segment.items.has_words for segment in self.opened.segments),
        )

    def relevance(
        self, query_D: Vectors, scores_K: Sequence[float], *, kind: QueryKind, target: Target
    ) -> list[float] | None:
        if self._background is None:
            return None
        return self._background.relevance(query_D, scores_K, kind=kind, target=target)

    def facets(self) -> tuple[Facet, ...]:
        """Counted on the first call, then kept."""
        with self._counting:
            if self._facets is None:
                self._facets = facets(self.opened)
            return self._facets

    def check_filter(self, wanted: Filter) -> None:
        check_filter(wanted, self.opened.manifest.declared)

    def check_sort(self, keys: Sequence[SortKey]) -> None:
        check_sort(keys, self.opened.manifest.declared)

    def search(
        self,
        queries_QD: Vectors,
        options: SearchOptions = DEFAULTS,
        texts: Sequence[str | None] | None = None,
    ) -> list[list[Hit]]:
        return self.searcher.search(queries_QD, options, texts)

    def item(self, item_id: str) -> Item:
        one, row = self._find(item_id)
        return one.item(row)

    def vector(self, item_id: str) -> Vectors:
        one, row = self._find(item_id)
        vector_D: Vectors = unit_rows(one.segment.vectors_ND[row][None])[0]
        return vector_D

    def thumbnail(self, item_id: str) -> bytes:
        one, row = self._find(item_id)
        thumbnail = one.segment.items.thumbnail(row)
        if thumbnail is None:
            raise NotFoundError(f"item {item_id!r} has no thumbnail")
        return thumbnail

    def captions(self, image_id: str) -> list[Item]:
        found = []
        for one in self.searcher.segments["text"]:
            items = one.segment.items
            rows = [row for row in items.rows_of(image_id) if one.live_N[row]]
            loaded = items.items(rows)
            found += [loaded[row] for row in sorted(rows)]
        # those of a record without a picture name none
        return [item for item in found if item.image_id in (image_id, None)]

    def number(self, item: Item) -> int:
        for start, one in zip(self._starts, self._segments, strict=False):
            if one.segment.entry.modality == item.modality:
                row = one.find(item.id)
                if row is not None:
                    return start + row
        raise NotFoundError("no item has this id")

    def numbered(self, number: int) -> Item:
        if 0 <= number < self._starts[-1]:
            position = bisect_right(self._starts, number) - 1
            one, row = self._segments[position], number - self._starts[position]
            if one.live_N[row]:
                return one.item(row)
        raise NotFoundError("no item has this number")

    def _find(self, item_id: str) -> tuple[LiveSegment, int]:
        for modality in ("image", "text"):
            for one in reversed(self.searcher.segments[modality]):  # newest first
                row = one.find(item_id)
                if row is not None:
                    return one, row
        for one in self.searcher.segments["text"]:
            rows = [row for row in one.segment.items.rows_of(item_id) if one.live_N[row]]
            if rows:
                return one, min(rows)
        raise NotFoundError(f"no item {item_id!r} in this index")


def _background(version: OpenVersion, before: Snapshot | None) -> Background | None:
    if before is not None and before.opened.manifest.relevance == version.manifest.relevance:
        return before._background
    return read_background(version.root, version.manifest)


def open_snapshot(
    path: Path,
    *,
    fingerprint: Fingerprint | None,
    verify: Verify = "fast",
    before: Snapshot | None = None,
) -> Snapshot:
    """Verify and open the current version of an index.

    Every file is checked before it is used. A damaged `ann.faiss` does not stop it: its segment
    is searched exactly, `info().degraded` says so, and one warning is logged.

    Args:
        fingerprint: that of the encoder whose queries will be searched; None opens without
            binding, for describing the index only.
        verify: `fast` finds every accident, `full` every change; see `indexer.format.integrity`.
        before: a snapshot of another version, open until this returns; what both have in common is
            not made again.

    Raises:
        IndexNotFoundError: no index at `path`.
        IndexCorruptError: a file the version cannot do without is missing or damaged.
        EncoderMismatchError: the index was built with another encoder pair.
        StoreError: the operating system refused to read.
    """
    return newest_version(path, lambda head: _open(path, head, fingerprint, verify, before))


def _open(
    path: Path,
    head: Head,
    fingerprint: Fingerprint | None,
    verify: Verify,
    before: Snapshot | None,
) -> Snapshot:
    manifest = read_manifest(path, head)
    if fingerprint is not None:
        check_encoder(manifest.fingerprint, fingerprint)
    version = open_version(path, manifest, verify=verify)
    try:
        return Snapshot(version, before)
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
