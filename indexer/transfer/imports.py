"""Imports an index from vectors that others computed, or from an export (`diptych index import`).

Nothing is embedded but the background queries, so whoever imports names the model that made the
vectors: its fingerprint is recorded, and searching with another is refused. Everything is one
commit: a killed import leaves an index without items, which running it again fills.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from indexer.files.fs import Fs, require_space
from indexer.filters.declared import Field
from indexer.format.entries import Modality
from indexer.format.erasures import Erased, Erasures, hash_text, hashed
from indexer.format.items import Item, NewRow
from indexer.format.manifest import CURRENT, SourceEntry, check_encoder, read_manifest
from indexer.format.segment import HalfVectors, SegmentWriter
from indexer.search.background_queries import list_id
from indexer.search.relevance_file import embed_background
from indexer.store.writer import IndexWriter, require_index_or_empty
from indexer.transfer.clip_retrieval import is_layout, metadata_files, read_folders
from indexer.transfer.exports import copy_index
from indexer.transfer.parquet_files import parquet_parts, read_parquet, stored_about
from indexer.transfer.rows import (
    OnRows,
    RowBlock,
    TransferReport,
    require_new,
    storable,
    stored_erasures,
)
from models.encoder import Encoder
from models.errors import IndexNotFoundError, InvalidVectorError, SourceError
from models.vectors import Vectors

_SEGMENT_ROWS: Final = 1_000_000


def is_copy(source: Path) -> bool:
    """Whether a source is an index, which is copied and needs no model."""
    return (source / CURRENT).exists()


def import_index(
    source: Path,
    out: Path,
    load: Callable[[], Encoder],
    *,
    fields: tuple[Field, ...] | None = None,
    relevance: bool = True,
    allow_erased: bool = False,
    fs: Fs | None = None,
    on_rows: OnRows | None = None,
) -> TransferReport:
    """Make the index `out`, which must not have items, of `source`.

    Args:
        source: an index, a folder in clip-retrieval's layout, or Parquet: a file or a folder.
        load: gives the encoder that made the vectors; not called for an index.
        fields: filterable fields; None takes those the source names.
        relevance: keep a background, as `indexer.ingest.build` does.
        allow_erased: take rows in that were deleted, here or from the index that was exported;
            otherwise they are left out, and both lists are kept.

    Raises:
        SourceError: it is none of these, or damaged.
        EncoderMismatchError: the source names another encoder.
        InputError: the dimension is another; pyarrow is not installed.
        IndexCorruptError: an index that was tampered with.
        IndexLockedError, NoSpaceError, StoreError: `out` has items or cannot be written.
    """
    started = time.monotonic()
    if is_copy(source):
        report = copy_index(source, out, on_rows=on_rows)
        report.seconds = time.monotonic() - started
        return report
    parts = parquet_parts(source)
    if not parts and not is_layout(source):
        raise SourceError(
            f"{source} is no index, no Parquet and no embedding folder",
            hint="it should hold img_emb/ or text_emb/, or *.parquet",
        )
    tables = parts or metadata_files(source)
    stored, declared = stored_about(tables) if tables else (None, ())
    encoder = load()
    if stored is not None:
        check_encoder(stored, encoder.fingerprint)
    _require_without_items(out)
    require_space(out, _size(parts or [source]))
    taken = declared if fields is None else fields
    report = TransferReport("parquet" if parts else "clip-retrieval")
    dim = encoder.fingerprint.dim

    def read(report: TransferReport) -> Iterator[RowBlock]:
        if parts:
            return read_parquet(parts, dim, taken, report)
        return read_folders(source, taken, report)

    listed = stored_erasures(source)
    with IndexWriter(out, encoder.fingerprint, fields=taken, fs=fs) as writer:
        known = writer.erasures.joined(listed)
        judge = _Judge(Erasures() if allow_erased else known, known, report)
        if not allow_erased and len(known):
            judge.learn(read)
        segments = list(_fill(writer, read(report), judge, on_rows))
        if relevance and (queries_QD := embed_background(encoder)) is not None:
            writer.use_background(queries_QD, list_id())
        origin = SourceEntry(name=str(source), kind=report.format)
        manifest = writer.commit(
            segments,
            sources=[origin],
            erase=listed - {hashed(one) for one in judge.back},
            unerase=judge.back,
            operation="import",
        )
    report.version = manifest.version
    report.images, report.texts = manifest.live.images, manifest.live.texts
    report.seconds = time.monotonic() - started
    return report


def _require_without_items(out: Path) -> None:
    try:
        manifest = read_manifest(out)
    except IndexNotFoundError:
        require_index_or_empty(out)  # what an import that failed early left is no obstacle
        return
    if manifest.segments:
        require_new(out)  # says that it exists


def _size(paths: Iterable[Path]) -> int:
    """Bytes of the vectors and the metadata, as what will be written from them."""
    total = 0
    for path in paths:
        files = path.rglob("*") if path.is_dir() else [path]
        total += sum(file.stat().st_size for file in files if file.is_file())
    return total


def _fill(
    writer: IndexWriter,
    blocks: Iterable[RowBlock],
    judge: _Judge,
    on_rows: OnRows | None,
) -> Iterator[SegmentWriter]:
    """Segments of at most `_SEGMENT_ROWS` rows."""
    filling: dict[Modality, SegmentWriter] = {}
    for block in blocks:
        count = len(block.rows)
        block = judge.acceptable(block)
        vectors_BD, kept = _good(block, writer.manifest.dim, judge.report)
        if kept:
            segment = filling.get(block.modality)
            if segment is None or segment.rows >= _SEGMENT_ROWS:
                segment = filling[block.modality] = writer.new_segment(block.modality)
                yield segment
            rows = [block.rows[i] for i in kept]
            segment.add(vectors_BD, rows)
            judge.stored(rows)
        if on_rows is not None:
            on_rows(count, None)


class _Judge:
    """Which rows are taken in: every id once in each modality, texts with their pictures there,
    and nothing that was deleted, words of pictures included.

    Attributes:
        back: what was deleted and is stored all the same.
    """

    def __init__(self, left_out: Erasures, known: Erasures, report: TransferReport) -> None:
        self.report = report
        self.back: set[Erased] = set()
        self._left_out = left_out
        self._known = known
        self._there: dict[Modality, set[str]] = {"image": set(), "text": set()}
        self._gone: dict[str, set[str]] = {}
        """By record: its deleted texts."""
        self._left: dict[str, list[Item]] = {}
        """Of those records: their other texts."""

    def learn(self, read: Callable[[TransferReport], Iterator[RowBlock]]) -> None:
        """Find the deleted texts beforehand, for pictures that carry their words come first."""
        for wanted in (True, False):
            for block in read(TransferReport("")):
                for row in block.rows if block.modality == "text" else ():
                    deleted = self._left_out.holds(row.record, row.item)
                    if wanted and deleted and row.item.text is not None:
                        self._gone.setdefault(row.record, set()).add(row.item.text)
                    elif not wanted and not deleted and row.record in self._gone:
                        self._left.setdefault(row.record, []).append(row.item)
            if not self._gone:
                return

    def acceptable(self, block: RowBlock) -> RowBlock:
        """The rows of a block that can be stored."""
        kept = []
        rows = []
        taken: set[str] = set()
        there = self._there[block.modality]
        for i, row in enumerate(block.rows):
            item = row.item
            if self._is_erased(row):
                self.report.erased += 1
            elif item.id in taken or item.id in there:
                self.report.reject(item.id, f"the id is taken by another {block.modality}")
            elif item.image_id is not None and item.image_id not in self._there["image"]:
                self.report.reject(item.id, f"its picture {item.image_id!r} is not there")
            else:
                taken.add(item.id)
                kept.append(i)
                rows.append(self._without_deleted_words(row))
        return RowBlock(block.modality, block.vectors_BD[kept], rows)

    def stored(self, rows: Sequence[NewRow]) -> None:
        """Note what is there now."""
        for row in rows:
            item = row.item
            self._there[item.modality].add(item.id)
            if len(self._known):
                names: list[Erased] = [row.record, item.id]
                if item.modality == "text" and item.text is not None:
                    names.append(hash_text(row.record, item.language, item.text))
                self.back.update(one for one in names if one in self._known)

    def _is_erased(self, row: NewRow) -> bool:
        picture = row.item.image_id
        return self._left_out.holds(row.record, row.item) or (
            picture is not None and picture in self._left_out
        )

    def _without_deleted_words(self, row: NewRow) -> NewRow:
        item = row.item
        gone = self._gone.get(row.record, set())
        own_is_gone = item.text in gone or self._left_out.text(row.record, item.language, item.text)
        if item.modality != "image" or not (gone or own_is_gone):
            return row
        gone = {*gone, item.text} if own_is_gone and item.text is not None else gone
        if own_is_gone:
            first = next(iter(self._left.get(row.record, ())), None)
            item = replace(
                item,
                text=first.text if first else None,
                language=first.language if first else None,
            )
        words = tuple(one for one in row.texts or () if one not in gone)
        return replace(row, item=item, texts=words or None)


def _good(
    block: RowBlock, dim: int, report: TransferReport
) -> tuple[HalfVectors | Vectors, list[int]]:
    """The vectors of a block that have a direction, ready to store, and which rows these are."""
    kept = list(range(len(block.rows)))
    try:
        vectors_BD, scaled = storable(block.vectors_BD, dim)
    except InvalidVectorError:
        good: list[int] = []
        parts: list[HalfVectors | Vectors] = []
        scaled = 0
        for i in kept:
            try:
                one_1D, count = storable(block.vectors_BD[i : i + 1], dim)
            except InvalidVectorError as error:
                report.reject(block.rows[i].item.id, error.message)
            else:
                good.append(i)
                parts.append(one_1D)
                scaled += count
        kept = good
        none: Vectors = np.zeros((0, dim), dtype=np.float32)
        vectors_BD = np.concatenate([none, *parts])
    report.scaled += scaled
    return vectors_BD, kept
