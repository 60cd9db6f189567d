"""The background of a version on disk: one array file and its entry in the manifest.

    relevance/00000042.npy    float32 [2 + Q, D]: mean image vector, mean text vector, and the
                              embedded background queries, so that a writer without a model can
                              measure again after it added or buried rows

What the numbers mean is `indexer.search.relevance`'s business; this reads, checks and writes them,
and says when they must be measured again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np

from indexer.files.fs import FileDigest
from indexer.format.entries import (
    VECTORS_FILE,
    Modality,
    NeighboursEntry,
    RelevanceEntry,
    SegmentEntry,
    StandingEntry,
    TargetEntry,
)
from indexer.format.integrity import verify_file
from indexer.format.manifest import HINT, RELEVANCE, SEGMENTS, Live, Manifest
from indexer.format.npy import check_npy, npy_header
from indexer.format.segment import map_vectors
from indexer.format.version import dead_rows, read_tombstones
from indexer.search.background_queries import background_queries
from indexer.search.options import Target
from indexer.search.relevance import (
    Background,
    LiveRows,
    Neighbours,
    Standing,
    TargetBackground,
    measure,
)
from models.encoder import Encoder, embed_each
from models.errors import DiptychError, IndexCorruptError
from models.vectors import Vectors

_ALWAYS: Final = 2048
_SHARE: Final = 0.1
_BATCH: Final = 64
_FEWEST: Final = 32


def embed_background(encoder: Encoder) -> Vectors | None:
    """The built-in background queries, float32 [Q, D].

    None if the pair embeds too few of them, which leaves the index without relevance.
    """
    found = []
    texts = background_queries()
    for start in range(0, len(texts), _BATCH):
        try:
            prepared = [encoder.prepare_text(text) for text in texts[start : start + _BATCH]]
        except DiptychError:
            return None  # a tokenizer that refuses foreign scripts: no background of ours fits it
        vectors = embed_each(encoder.embed_texts, prepared)
        found += [vector_D for vector_D in vectors if vector_D is not None]
    return np.stack(found) if len(found) >= _FEWEST else None


def measure_version(
    queries_QD: Vectors,
    root: Path,
    manifest: Manifest,
    known: Background | None = None,
    stale: Collection[Target] = ("images", "texts"),
) -> Background:
    """Measure the live rows of a version whose segments are in place.

    Opens the vectors only: a commit has no need of the items. `known` and `stale` are as in
    `indexer.search.relevance.measure`.

    Raises:
        IndexCorruptError: a file is missing or damaged.
    """
    masks = dead_rows([entry.rows for entry in manifest.segments], read_tombstones(root, manifest))
    parts: dict[Modality, list[LiveRows]] = {"image": [], "text": []}
    for entry, dead in zip(manifest.segments, masks, strict=True):
        name = f"{SEGMENTS}/{entry.id}/{VECTORS_FILE}"
        with verify_file(root, name, entry.files[VECTORS_FILE], verify="fast") as file:
            vectors_ND = map_vectors(file, name, entry.rows, manifest.dim)
        parts[entry.modality].append((vectors_ND, ~dead))
    return measure(queries_QD, parts["image"], parts["text"], known, stale)


def stale_targets(
    entry: RelevanceEntry, live: Live, segments: Sequence[SegmentEntry]
) -> frozenset[Target]:
    """Which targets of an earlier version's background a version of these counts measures again.

    Small indexes are measured at every commit. A large one is measured again once a tenth of it
    changed, so that a long build spends a constant share of its time on it, and a put reads nothing
    but what it touches. Rows that replaced others change no count, so those of segments written
    since it was measured count as well (a version's segments and background carry its number).
    Where one target is a small part of the index it is measured alone: the first captions of a
    million pictures are soon a tenth more than there were.
    """
    written = {"image": 0, "text": 0}
    measured = entry.file.partition(".")[0]
    for segment in segments:
        if segment.id.partition("-")[0] > measured:
            written[segment.modality] += segment.rows
    counts: dict[Target, tuple[int, int, int]] = {
        "images": (entry.images.rows, live.images, written["image"]),
        "texts": (entry.texts.rows, live.texts, written["text"]),
    }
    if sum(then for then, _, _ in counts.values()) < _ALWAYS:
        return frozenset(counts)
    stale = {
        target
        for target, (then, now, new) in counts.items()
        if max(abs(now - then), new) > _SHARE * then
    }
    if sum(counts[target][1] for target in stale) <= _SHARE * (live.images + live.texts):
        return frozenset(stale)
    return frozenset(counts)


def still_good(entry: RelevanceEntry, live: Live, segments: Sequence[SegmentEntry]) -> bool:
    """Whether the background of an earlier version may serve a version of these counts."""
    return not stale_targets(entry, live, segments)


def encode_background(background: Background) -> bytes:
    """The file form."""
    rows = np.vstack(
        [background.mean_D["images"], background.mean_D["texts"], background.queries_QD]
    ).astype("<f4")
    return npy_header("<f4", (rows.shape[0], rows.shape[1])) + rows.tobytes()


def describe(
    background: Background, name: str, digest: FileDigest, *, queries: str
) -> RelevanceEntry:
    """The manifest entry of a background stored as `name`; `queries` names the list it is of."""
    return RelevanceEntry(
        file=name,
        size=digest.size,
        sha256=digest.sha256,
        queries=queries,
        count=len(background.queries_QD),
        images=_target_entry(background.targets["images"]),
        texts=_target_entry(background.targets["texts"]),
    )


def read_background(root: Path, manifest: Manifest) -> Background | None:
    """The background of a version, verified; None where it has none.

    Raises:
        IndexCorruptError: the file is missing, damaged, or does not hold what the manifest says.
    """
    entry = manifest.relevance
    if entry is None:
        return None
    name = f"{RELEVANCE}/{entry.file}"
    with verify_file(root, name, entry) as file:
        data = file.read()
    shape = (2 + entry.count, manifest.dim)
    offset = check_npy(name, data[:4096], len(data), "<f4", shape)
    rows = np.frombuffer(data, dtype="<f4", offset=offset).reshape(shape)
    if not np.isfinite(rows).all():
        raise IndexCorruptError(name, "it holds NaN or infinity", hint=HINT)
    return Background(
        queries_QD=rows[2:],
        mean_D={"images": rows[0], "texts": rows[1]},
        targets={"images": _target(entry.images), "texts": _target(entry.texts)},
    )


def _target_entry(target: TargetBackground) -> TargetEntry:
    return TargetEntry(
        rows=target.rows,
        text=StandingEntry(**asdict(target.text)) if target.text else None,
        mixed=StandingEntry(**asdict(target.mixed)) if target.mixed else None,
        image=NeighboursEntry(**asdict(target.image)) if target.image else None,
    )


def _target(entry: TargetEntry) -> TargetBackground:
    return TargetBackground(
        rows=entry.rows,
        text=Standing(**entry.text.model_dump()) if entry.text else None,
        mixed=Standing(**entry.mixed.model_dump()) if entry.mixed else None,
        image=Neighbours(**entry.image.model_dump()) if entry.image else None,
    )
