"""Groups of near-duplicate pictures, by embedding.

Preferred are larger pictures (in pixels, then bytes), then those stored first;
`models.near_duplicates` says who joins whom. A segment with an ANN structure is asked for
neighbours (`indexer.search.stars_ann`), where every pair is not asked for: each pair named is as
close as it says, and some are missed.

A duplicate is `same-pixels` where the decoded pictures are equal, `same-vector` where nothing is
known of the pixels (an index of format 1) and the embeddings are equal, otherwise `near`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from indexer.format.items import Item, Picture
from indexer.format.version import OpenVersion
from indexer.search.ann_scan import AnnScan
from indexer.search.searcher import structure_of
from indexer.search.stars_ann import stars_by_neighbours
from indexer.search.vector_index import ExactIndex
from models.errors import InputError
from models.near_duplicates import OnProgress, stars

FEWEST_ROWS: Final = 25_000
"""Below, comparing every pair is as fast as asking a structure: at 100,000 x 512 on one thread it
takes 72 s against 18, and four times that for twice as many (`tests/bench/duplicates.py`)."""

DEFAULT_THRESHOLD: Final = 0.95
"""Measured with the starter pair, see `find_duplicates`."""

Kind = Literal["same-pixels", "same-vector", "near"]

Scans = Mapping[int, tuple[AnnScan, ExactIndex]]

_READ: Final = 4096


@dataclass(frozen=True, slots=True)
class Member:
    """A picture of a group; `width`, `height` and `bytes` are None where they are not known."""

    id: str
    uri: str
    cosine: float
    kind: Kind
    width: int | None
    height: int | None
    bytes: int | None


@dataclass(frozen=True, slots=True)
class Group:
    """The picture to keep, which is its own duplicate, and those it makes superfluous."""

    keep: Member
    others: tuple[Member, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Duplicates:
    """The groups of two pictures and more, in the order of preference of the kept ones.

    Attributes:
        exact: whether every pair is compared; if not, a few are missed, none is named wrongly.
    """

    def __init__(self, version: OpenVersion, threshold: float, scans: Scans, progress: OnProgress):
        self.exact = not scans
        self._version = version
        self._threshold = threshold
        self._scans = scans
        self._on_progress = progress

    def __iter__(self) -> Iterator[Group]:
        """Raises IndexCorruptError: a segment's database is damaged."""
        version = self._version
        places_R2 = _in_order_of_preference(version)
        vectors = [segment.vectors_ND for segment in version.segments]
        if self.exact:
            found = stars(vectors, places_R2, self._threshold, self._on_progress)
        else:
            found = stars_by_neighbours(
                vectors, places_R2, self._scans, self._threshold, self._on_progress
            )
        for kept, others in found:
            yield _group(version, places_R2, kept, others)


def find_duplicates(
    version: OpenVersion,
    threshold: float = DEFAULT_THRESHOLD,
    *,
    exact: bool = False,
    fewest: int | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Duplicates:
    """See the module.

    The default threshold was measured with the starter pair on photographs of 224 pixels, those of
    Flickr8k: two of 18 million pairs of files reach it. A copy is found after JPEG at quality 90
    (100%), 70 (77%) and 50 (41%), darkened or brightened by a fifth (98% and more), cropped by 5%
    (80%), mirrored (43%); rarely after being scaled to half (0%), turned grey (0%) or framed (2%).
    Pictures of one product on one shelf are not told apart as well: 70 of a million pairs of
    different ones reach it, 9 reach 0.97.

    Args:
        threshold: cosine, above 0 and at most 1.
        exact: compare every pair, which takes hours for a million pictures.
        fewest: structures of segments with fewer rows, `FEWEST_ROWS` of them if None, are not used.
        on_progress: (pictures compared, pictures in all).

    Raises:
        InputError: the threshold is out of range.
    """
    if not 0.0 < threshold <= 1.0:
        raise InputError("the threshold is a cosine above 0 and at most 1")
    fewest = FEWEST_ROWS if fewest is None else fewest
    scans: dict[int, tuple[AnnScan, ExactIndex]] = {}
    for position, segment in enumerate(version.segments):
        if exact or segment.entry.modality != "image" or segment.entry.rows < fewest:
            continue
        live_N = ~version.dead[position]
        everything = ExactIndex(segment.vectors_ND, live_N)
        scan = structure_of(segment, live_N, everything)
        if scan is not None and scan.live:
            scans[position] = scan, everything
    return Duplicates(version, threshold, scans, on_progress)


def _in_order_of_preference(version: OpenVersion) -> npt.NDArray[np.int64]:
    """(position, row) of the live pictures, int64 [R, 2]."""
    blocks = [np.zeros((0, 4), dtype=np.int64)]
    for position, segment in enumerate(version.segments):
        if segment.entry.modality != "image":
            continue
        live = np.flatnonzero(~version.dead[position])
        for start in range(0, len(live), _READ):
            rows = live[start : start + _READ].tolist()
            known = segment.items.pictures(rows)
            keys = [(0, 0, position, row) for row in rows]
            for at, row in enumerate(rows):
                if row in known:
                    one = known[row]
                    keys[at] = (-one.width * one.height, -one.size, position, row)
            blocks.append(np.array(keys, dtype=np.int64))
    keys_R4 = np.concatenate(blocks)
    order = np.lexsort(keys_R4.T[::-1])
    places_R2: npt.NDArray[np.int64] = keys_R4[order, 2:]
    return places_R2


def _group(
    version: OpenVersion,
    places_R2: npt.NDArray[np.int64],
    kept: int,
    others: list[tuple[int, float]],
) -> Group:
    _, best_facts, best_vector = _look_up(version, places_R2, kept)

    def member(number: int, cosine: float) -> Member:
        item, facts, vector = _look_up(version, places_R2, number)
        kind: Kind = "near"
        if facts and best_facts:
            kind = "same-pixels" if facts.pixels == best_facts.pixels else "near"
        elif np.array_equal(vector, best_vector):
            kind = "same-vector"
        return Member(
            item.id,
            item.uri,
            round(min(cosine, 1.0), 6),
            kind,
            facts.width if facts else None,
            facts.height if facts else None,
            facts.size if facts else None,
        )

    ordered = sorted(others, key=lambda one: (-one[1], one[0]))
    return Group(member(kept, 1.0), tuple(member(*one) for one in ordered))


def _look_up(
    version: OpenVersion, places_R2: npt.NDArray[np.int64], number: int
) -> tuple[Item, Picture | None, npt.NDArray[np.float16]]:
    position, row = places_R2[number].tolist()
    segment = version.segments[position]
    return (
        segment.items.items([row])[row],
        segment.items.pictures([row]).get(row),
        segment.vectors_ND[row],
    )
