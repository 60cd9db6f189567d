"""A segment's search structure built again, as it was: the same recipe over the same vectors.

The segment is written anew with it, since nothing that a manifest names is ever changed. Tuning is
`indexer.maintain.optimize`'s business; this repeats what it chose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from indexer.files.fs import Fs
from indexer.format.manifest import SCRATCH, Manifest
from indexer.format.segment import Segment
from indexer.format.segment_writer import SegmentWriter
from indexer.search.ann_scan import make_canaries
from indexer.search.vector_index import build_ann
from indexer.store.copies import copy_rows


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A filled writer, and the segment its words come from, open until it has finished."""

    writer: SegmentWriter
    source: Segment

    def close(self) -> None:
        self.source.close()
        self.writer.abort()


def rebuild(fs: Fs, root: Path, manifest: Manifest, position: int, rows: Sequence[int]) -> Rebuilt:
    """These rows of a segment in a new one, with the structure that its entry describes.

    Raises:
        IndexCorruptError: the vectors or items are damaged.
        NoSpaceError, StoreError: it cannot be written.
    """
    entry = manifest.segments[position]
    name = f"{manifest.version + 1:08d}-{entry.modality}-{entry.id[-8:]}"
    source = Segment(root, entry, manifest.dim)
    scratch = root / SCRATCH
    writer = SegmentWriter(fs, scratch, name, entry.modality, manifest.dim, manifest.declared)
    rebuilt = Rebuilt(writer, source)
    try:
        copy_rows(source, rows, writer, manifest.declared)
        if entry.ann is not None:
            ann = entry.ann
            vectors_ND = writer.vectors()
            index = build_ann(vectors_ND, ann.structure, ann.recipe, dict(ann.parameters))
            canaries = make_canaries(index, vectors_ND)
            spool = fs.spool(scratch / f"{name}.ann")
            index.write(spool.write)
            del index  # before the file is hashed and written: one structure in memory
            writer.attach_ann(spool.read(), ann.model_copy(update={"canaries": canaries}))
            spool.remove()
    except BaseException:
        rebuilt.close()
        raise
    return rebuilt
