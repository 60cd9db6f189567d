"""Imports an index from vectors that others computed, or from an export (`diptych index import`).

Nothing is embedded but the background queries, so whoever imports names the model that made the
vectors: its fingerprint is recorded, and searching with another is refused. Everything is one
commit: a killed import leaves an index without items, which running it again fills.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from indexer.files.fs import Fs, require_space
from indexer.filters.declared import Field
from indexer.format.entries import Modality
from indexer.format.manifest import CURRENT, SourceEntry, check_encoder, read_manifest
from indexer.format.segment import HalfVectors, SegmentWriter
from indexer.search.background_queries import list_id
from indexer.search.relevance_file import embed_background
from indexer.store.writer import IndexWriter, require_index_or_empty
from indexer.transfer.clip_retrieval import is_layout, read_folders
from indexer.transfer.exports import copy_index
from indexer.transfer.parquet_files import parquet_parts, read_parquet, stored_about
from indexer.transfer.rows import OnRows, RowBlock, TransferReport, require_new, storable
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
    fs: Fs | None = None,
    on_rows: OnRows | None = None,
) -> TransferReport:
    """Make the index `out`, which must not have items, of `source`.

    Args:
        source: an index, a folder in clip-retrieval's layout, or Parquet: a file or a folder.
        load: gives the encoder that made the vectors; not called for an index.
        fields: filterable fields; None takes those the source names.
        relevance: keep a background, as `indexer.ingest.build` does.

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
    stored, declared = stored_about(parts) if parts else (None, ())
    encoder = load()
    if stored is not None:
        check_encoder(stored, encoder.fingerprint)
    _require_without_items(out)
    require_space(out, _size(parts or [source]))
    taken = declared if fields is None else fields
    report = TransferReport("parquet" if parts else "clip-retrieval")
    blocks = read_parquet(parts, taken, report) if parts else read_folders(source, taken, report)
    with IndexWriter(out, encoder.fingerprint, fields=taken, fs=fs) as writer:
        segments = list(_fill(writer, blocks, report, on_rows))
        if relevance and (queries_QD := embed_background(encoder)) is not None:
            writer.use_background(queries_QD, list_id())
        origin = SourceEntry(name=str(source), kind=report.format)
        manifest = writer.commit(segments, sources=[origin], operation="import")
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
    report: TransferReport,
    on_rows: OnRows | None,
) -> Iterator[SegmentWriter]:
    """Segments of at most `_SEGMENT_ROWS` rows; every id once in each modality."""
    there: dict[Modality, set[str]] = {"image": set(), "text": set()}
    filling: dict[Modality, SegmentWriter] = {}
    for block in blocks:
        kept = _acceptable(block, there, report)
        vectors_BD, kept = _good(block, kept, writer.manifest.dim, report)
        if kept:
            segment = filling.get(block.modality)
            if segment is None or segment.rows >= _SEGMENT_ROWS:
                segment = filling[block.modality] = writer.new_segment(block.modality)
                yield segment
            segment.add(vectors_BD, [block.rows[i] for i in kept])
            there[block.modality].update(block.rows[i].item.id for i in kept)
        if on_rows is not None:
            on_rows(len(block.rows), None)


def _acceptable(
    block: RowBlock, there: dict[Modality, set[str]], report: TransferReport
) -> list[int]:
    """Rows with an id of their own, and whose picture, if they name one, is there."""
    kept = []
    taken: set[str] = set()
    for i, row in enumerate(block.rows):
        item = row.item
        if item.id in taken or item.id in there[block.modality]:
            report.reject(item.id, f"the id is taken by another {block.modality}")
        elif item.image_id is not None and item.image_id not in there["image"]:
            report.reject(item.id, f"its picture {item.image_id!r} is not there, or comes later")
        else:
            taken.add(item.id)
            kept.append(i)
    return kept


def _good(
    block: RowBlock, kept: list[int], dim: int, report: TransferReport
) -> tuple[HalfVectors | Vectors, list[int]]:
    """The vectors of the rows in `kept` that have a direction, ready to store."""
    try:
        vectors_BD, scaled = storable(block.vectors_BD[kept], dim)
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
