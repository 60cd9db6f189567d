"""Looks for `verify` inside a segment whose files are what the manifest says.

A checksum vouches that nothing changed since it was written, not that what was written made sense.
Each function lists complaints and repairs nothing. Whether rows are alive is not its business.

Shapes: N rows, D embedding, Q queries, K neighbours.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from indexer.filters.declared import Field
from indexer.format.field_table import columns_of, count_present, count_rows, count_strays
from indexer.format.items import ItemsReader
from indexer.format.segment import LENGTH_TOLERANCE, HalfVectors, Segment
from indexer.maintain.structures import K, exact_scores, recall_of
from indexer.search.vector_index import AnnIndex, BadStructureError, check_canaries

_ROWS_AT_ONCE: Final = 16_384
_TOLD: Final = 20
"""So many rows of one kind of damage are told one by one."""
_QUERIES: Final = 32
_SLACK: Final = 0.05
"""How far recall of `_QUERIES` queries may fall below the floor by chance: three deviations."""
_MOST: Final = 255


def vector_problems(vectors_ND: HalfVectors) -> list[str]:
    """What is wrong with float16 [N, D] rows that should be finite and of unit length."""
    problems = []
    for start in range(0, len(vectors_ND), _ROWS_AT_ONCE):
        wide_ND = vectors_ND[start : start + _ROWS_AT_ONCE].astype(np.float32)
        lengths_N = np.sqrt(np.einsum("nd,nd->n", wide_ND, wide_ND))
        for row in np.flatnonzero(~np.isfinite(wide_ND).all(axis=1)):
            problems.append(f"row {start + row} holds NaN or infinity")
        for row in np.flatnonzero(np.abs(lengths_N - 1.0) > LENGTH_TOLERANCE):
            problems.append(f"row {start + row} has length {lengths_N[row]:.4f}, not 1")
    if len(problems) > _TOLD:
        problems[_TOLD:] = [f"and {len(problems) - _TOLD} more rows"]
    return problems


def item_problems(segment: Segment, fields: Sequence[Field]) -> Iterator[str]:
    """Of `items.sqlite`: SQLite's own check, and the tables of filterable fields.

    Raises:
        IndexCorruptError: a table is missing or cannot be read.
    """
    items = segment.items
    if complaint := items.integrity():
        yield f"SQLite: {complaint}"
    rows = count_rows(items.query)
    if rows != segment.entry.rows:
        yield f"{rows} of {segment.entry.rows} rows can be filtered"
    if wrong := count_strays(items.query):
        yield f"{wrong} rows are filtered by another label or language"
    for column in columns_of(fields).values():
        count_present(items.query, column)  # it is there, or SQLite says so


def word_problems(items: ItemsReader, rows: int) -> Iterator[str]:
    """Of the words that rows are found by: how many a row has is what its postings add up to.

    Raises:
        IndexCorruptError: a posting list cannot be read.
    """
    if not items.has_words:
        return
    lengths_N = items.word_lengths().astype(np.int64)
    if len(lengths_N) != rows:
        yield f"its words are of {len(lengths_N)} rows, the segment has {rows}"
        return
    found_N = np.zeros(rows, dtype=np.int64)
    capped_N = lengths_N == np.iinfo(np.uint16).max
    for term, postings in items.all_postings():
        if not len(postings.rows_M):
            yield f"the term {term!r} has no rows"
        elif postings.rows_M[0] < 0 or postings.rows_M[-1] >= rows:
            yield f"the term {term!r} is in a row out of range"
            return
        found_N[postings.rows_M] += postings.counts_M
        capped_N[postings.rows_M[postings.counts_M == _MOST]] = True
    wrong = np.flatnonzero((found_N != lengths_N) & ~capped_N)
    if len(wrong):
        row = int(wrong[0])
        yield (
            f"{len(wrong)} rows are found by other words than they have, the first is row {row} "
            f"with {found_N[row]} of {lengths_N[row]}"
        )


def ann_problems(segment: Segment, queries_QD: npt.NDArray[np.float32] | None) -> Iterator[str]:
    """Of a search structure: its canaries, and recall@10 against exact search of the segment.

    Args:
        queries_QD: vectors of the other modality, which is what will be searched with; None takes
            rows of the segment, which is easier and shows gross damage only.

    Raises:
        IndexCorruptError: it cannot be read, or is not over these rows.
    """
    entry = segment.entry.ann
    if entry is None or segment.ann is None:
        return
    data = mmap.mmap(segment.ann.fileno(), 0, access=mmap.ACCESS_READ)
    vectors_ND = segment.vectors_ND
    live_N = np.ones(len(vectors_ND), dtype=np.bool_)
    try:
        index = AnnIndex.read(data, entry.structure, vectors_ND, live_N)
        check_canaries(index, entry, vectors_ND)
    except BadStructureError as error:
        yield str(error)
        return
    if queries_QD is None:
        queries_QD = sample_rows(vectors_ND)
    asked_QD = np.ascontiguousarray(queries_QD[:_QUERIES], dtype=np.float32)
    tenth_Q = exact_scores(vectors_ND, asked_QD, K)[:, -1]
    point = entry.operating
    recall = float(
        recall_of(index, vectors_ND, asked_QD, tenth_Q, point.effort, point.refine).mean()
    )
    if recall < min(entry.floor, entry.operating.recall) - _SLACK:
        yield f"recall@{K} is {recall:.3f}, it was {entry.operating.recall:.3f} when it was built"


def sample_rows(vectors_ND: HalfVectors) -> npt.NDArray[np.float32]:
    """Some rows, spread over the segment, to query with: float32 [Q, D]."""
    step = max(1, len(vectors_ND) // _QUERIES)
    sample_QD: npt.NDArray[np.float32] = vectors_ND[::step][:_QUERIES].astype(np.float32)
    return sample_QD
