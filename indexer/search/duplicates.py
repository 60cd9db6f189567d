"""Groups of near-duplicate pictures, by embedding; what `diptych index duplicates` lists.

Preferred are larger pictures (in pixels, then bytes), then those stored first. Who joins whom is
`models.near_duplicates`' definition. Where every pair is not asked for, segments with an ANN
structure are asked for neighbours: each pair named is as close as it says, and some are missed.

A duplicate is `same-pixels` where the decoded pictures are equal, `same-vector` where nothing is
known of the pixels (an index of format 1) and the embeddings are equal, otherwise `near`.

By neighbours: a block of rows that nobody claimed yet asks for its 16 nearest; a row whose last
neighbour still reaches the threshold asks again for four times as many, and beyond 1024 looks at
every row. What was claimed is not found again, so only rows that are kept ask for many. Proposals
are scored from the stored vectors: whoever joins a kept row is as close as the threshold says, and
what a structure does not find is missed. Where a later row finds an earlier kept one that had not
found it, it joins. Segments without a structure are compared in full. Memory: some 40 bytes a row.

Shapes as in `models.near_duplicates`; N rows of a segment, L rows of a block that ask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from indexer.format.items import Item, Picture
from indexer.format.segment import HalfVectors
from indexer.format.version import OpenVersion
from indexer.search.options import NEAR_DUPLICATE
from indexer.search.ranking import STEP
from indexer.search.scanners import AnnScan, structure_of
from indexer.search.vector_index import ExactIndex
from models.errors import InputError
from models.near_duplicates import (
    Numbers,
    OnProgress,
    Star,
    first_owners,
    stars,
    vectors_of,
    within,
)
from models.vectors import Vectors

FEWEST_ROWS: Final = 25_000
"""Below, comparing every pair is as fast as asking a structure: at 100,000 x 512 on one thread it
takes 72 s against 18, and four times that for twice as many (`tests/bench/duplicates.py`)."""

Kind = Literal["same-pixels", "same-vector", "near"]

Scans = Mapping[int, tuple[AnnScan, ExactIndex]]

_READ: Final = 4096


@dataclass(frozen=True, slots=True)
class GroupMember:
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

    keep: GroupMember
    others: tuple[GroupMember, ...]

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
    threshold: float = NEAR_DUPLICATE,
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

    def member(number: int, cosine: float) -> GroupMember:
        item, facts, vector = _look_up(version, places_R2, number)
        kind: Kind = "near"
        if facts and best_facts:
            kind = "same-pixels" if facts.pixels == best_facts.pixels else "near"
        elif np.array_equal(vector, best_vector):
            kind = "same-vector"
        return GroupMember(
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


# -- by neighbours ---------------------------------------------------------------------------------

_BLOCK: Final = 512
_CHUNK: Final = 16_384
_SCORED: Final = 8192
_DEEPER: Final = 4
_DEEPEST: Final = 1024
_STALE: Final = 64
"""So many rows may be claimed before searches leave them out."""

_FREE, _KEPT, _TAKEN = 0, 1, 2


def stars_by_neighbours(
    vectors: Sequence[HalfVectors],
    places_R2: Numbers,
    scans: Scans,
    threshold: float,
    on_progress: OnProgress,
) -> Iterator[Star]:
    """As `near_duplicates.stars`; `scans` search the rows of their segment, by its position."""
    sky = _Sky(vectors, places_R2, scans, np.float32(threshold))
    total = len(places_R2)
    while len(block := sky.next_block()):
        sky.settle(block)
        on_progress(sky.settled, total)
    yield from sky.stars()


class _Sky:
    """What became of every row so far."""

    def __init__(
        self,
        vectors: Sequence[HalfVectors],
        places_R2: Numbers,
        scans: Scans,
        floor: np.float32,
    ) -> None:
        self._vectors = vectors
        self._places_R2 = places_R2
        self._floor = floor
        self._state_R = np.zeros(len(places_R2), dtype=np.uint8)
        self._owner_R = np.full(len(places_R2), -1, dtype=np.int64)
        self._score_R = np.zeros(len(places_R2), dtype=np.float32)
        self._start = 0
        self.settled = 0
        self._numbers: dict[int, Numbers] = {}  # int64 [N] per segment, -1 for other rows
        for position in np.unique(places_R2[:, 0]).tolist():
            (mine,) = np.nonzero(places_R2[:, 0] == position)
            numbers_N = np.full(len(vectors[position]), -1, dtype=np.int64)
            numbers_N[places_R2[mine, 1]] = mine
            self._numbers[position] = numbers_N
        self._scans = {at: scan for at, scan in scans.items() if at in self._numbers}
        self._current = dict(self._scans)
        self._stale = 0

    def next_block(self) -> Numbers:
        """The next rows that are neither kept nor taken."""
        found: list[Numbers] = []
        count = 0
        for first in range(self._start, len(self._state_R), _CHUNK):
            free = np.flatnonzero(self._state_R[first : first + _CHUNK] == _FREE) + first
            found.append(free[: _BLOCK - count])
            count += len(found[-1])
            if count == _BLOCK:
                break
        block = np.concatenate([*found, np.zeros(0, dtype=np.int64)])
        self._start = int(block[0]) if len(block) else len(self._state_R)
        return block

    def settle(self, block: Numbers) -> None:
        """Decide who of a block is kept, and claim what is close to them."""
        if self._stale > _STALE:
            self._leave_out_taken()
        block_BD = vectors_of(self._vectors, self._places_R2[block])
        members = within(block_BD, self._floor)
        asking = np.array(list(members), dtype=np.int64)
        leaders_LD, leaders = block_BD[asking], block[asking]
        near, crowded = self._neighbours(leaders_LD)
        joins = self._kept_unstructured(leaders, leaders_LD)
        kept = []
        for at, leader in enumerate(leaders.tolist()):
            if self._state_R[leader] != _FREE:  # two that are at the threshold but for rounding
                continue
            numbers, scores = near[at]
            if at in crowded:
                numbers, scores = self._everything_near(leaders_LD[at])
            older = numbers[self._state_R[numbers] == _KEPT]
            first = min([*joins.get(at, {}), *older.tolist()], default=-1)
            followers = members[int(asking[at])]
            if first >= 0:
                score = joins.get(at, {}).get(first)
                self._claim(first, leader, scores[numbers == first][0] if score is None else score)
                if followers:
                    break  # they come before the rest of the block
                continue
            kept.append(at)
            self._state_R[leader] = _KEPT
            self.settled += 1
            for other, score in followers:
                self._claim(leader, int(block[other]), score)
            free = self._state_R[numbers] == _FREE
            for other, score in zip(numbers[free].tolist(), scores[free].tolist(), strict=True):
                self._claim(leader, other, score)
        self._claim_unstructured(leaders[kept], leaders_LD[kept])

    def stars(self) -> Iterator[Star]:
        (taken,) = np.nonzero(self._state_R == _TAKEN)
        taken = taken[np.argsort(self._owner_R[taken], kind="stable")]
        owners, starts = np.unique(self._owner_R[taken], return_index=True)
        ends = [*starts[1:].tolist(), len(taken)]
        for owner, start, end in zip(
            owners.tolist(), starts.tolist(), ends[: len(owners)], strict=True
        ):
            mine = taken[start:end].tolist()
            yield owner, [(one, float(self._score_R[one])) for one in mine]

    def _claim(self, owner: int, other: int, score: float) -> None:
        if self._state_R[other] != _FREE:
            return
        self._state_R[other] = _TAKEN
        self._owner_R[other], self._score_R[other] = owner, score
        self.settled += 1
        self._stale += 1

    def _leave_out_taken(self) -> None:
        self._stale = 0
        for position, (scan, everything) in self._scans.items():
            open_N = self._open(position)
            exact = everything.restricted(open_N)
            if exact.live:
                self._current[position] = scan.restricted(open_N, exact), exact
            else:
                self._current.pop(position, None)

    def _open(self, position: int) -> npt.NDArray[np.bool_]:
        """Rows of a segment that may be kept or are, bool [N]."""
        numbers_N = self._numbers[position]
        open_N: npt.NDArray[np.bool_] = (numbers_N >= 0) & (self._state_R[numbers_N] != _TAKEN)
        return open_N

    def _neighbours(
        self, leaders_LD: Vectors
    ) -> tuple[list[tuple[Numbers, npt.NDArray[np.float32]]], set[int]]:
        """Per leader the close rows (numbers, scores) of structured segments; who has too many."""
        none = np.zeros(0, dtype=np.int64)
        near = [(none, none.astype(np.float32)) for _ in leaders_LD]
        crowded: set[int] = set()
        for position, (scan, _) in self._current.items():
            asking, k = np.arange(len(leaders_LD)), STEP
            while len(asking):
                proposed = scan.propose(leaders_LD[asking], k)
                scored = self._scores(position, proposed, leaders_LD[asking])
                deeper = []
                for at, rows, scores in zip(asking.tolist(), proposed, scored, strict=True):
                    if k < scan.live and len(scores) and scores.min() >= self._floor:
                        deeper.append(at)
                        continue
                    numbers = self._numbers[position][rows]
                    close = (scores >= self._floor) & (numbers >= 0)
                    near[at] = (
                        np.concatenate([near[at][0], numbers[close]]),
                        np.concatenate([near[at][1], scores[close]]),
                    )
                if k >= _DEEPEST:
                    crowded.update(deeper)
                    break
                asking, k = np.array(deeper, dtype=np.int64), k * _DEEPER
        return near, crowded

    def _scores(
        self, position: int, proposed: list[Numbers], leaders_LD: Vectors
    ) -> list[npt.NDArray[np.float32]]:
        """The cosine of each proposed row to who asked."""
        sizes = [len(rows) for rows in proposed]
        rows_M = np.concatenate(proposed)
        who_M = np.repeat(np.arange(len(proposed)), sizes)
        scores_M = np.empty(len(rows_M), dtype=np.float32)
        for start in range(0, len(rows_M), _SCORED):
            part = slice(start, start + _SCORED)
            rows_SD = self._vectors[position][rows_M[part]].astype(np.float32)
            scores_M[part] = np.einsum("sd,sd->s", rows_SD, leaders_LD[who_M[part]])
        return np.split(scores_M, np.cumsum(sizes)[:-1])

    def _everything_near(self, leader_D: Vectors) -> tuple[Numbers, npt.NDArray[np.float32]]:
        """All close rows of structured segments."""
        numbers, scores = [], []
        for position, (_, everything) in self._current.items():
            slack = 1e-4  # FAISS rounds otherwise; the stored vectors decide
            _, rows_M = everything.above(leader_D, float(self._floor) - slack)
            [scores_M] = self._scores(position, [rows_M], leader_D[None])
            close = scores_M >= self._floor
            numbers.append(self._numbers[position][rows_M[close]])
            scores.append(scores_M[close])
        return np.concatenate(numbers), np.concatenate(scores)

    def _unstructured(self, state: int) -> Iterator[tuple[Numbers, Vectors]]:
        """Numbers and vectors, a chunk at a time, of rows of this state that no structure finds."""
        for position, numbers_N in self._numbers.items():
            if position in self._scans:
                continue
            for first in range(0, len(numbers_N), _CHUNK):
                numbers = numbers_N[first : first + _CHUNK]
                rows = np.flatnonzero((numbers >= 0) & (self._state_R[numbers] == state))
                if len(rows):
                    rows_MD = self._vectors[position][first + rows].astype(np.float32)
                    yield numbers[rows], rows_MD

    def _kept_unstructured(
        self, leaders: Numbers, leaders_LD: Vectors
    ) -> dict[int, dict[int, float]]:
        """For those who ask from structured segments: the first kept row elsewhere that is close.

        What is kept in a segment without structure was compared with all others of its kind.
        """
        positions = self._places_R2[leaders, 0]
        asking = np.flatnonzero(np.isin(positions, list(self._scans)))
        found: dict[int, dict[int, float]] = {}
        if not len(asking):
            return found
        for numbers, rows_MD in self._unstructured(_KEPT):
            order = np.argsort(numbers)
            close_ML = (rows_MD @ leaders_LD[asking].T)[order]
            columns, owners, scores = first_owners(close_ML, self._floor)
            for at, owner, score in zip(asking[columns], owners, scores, strict=True):
                found.setdefault(int(at), {})[int(numbers[order[owner]])] = float(score)
        return found

    def _claim_unstructured(self, kept: Numbers, kept_VD: Vectors) -> None:
        if not len(kept):
            return
        for numbers, rows_MD in self._unstructured(_FREE):
            columns, owners, scores = first_owners(kept_VD @ rows_MD.T, self._floor)
            for number, owner, score in zip(numbers[columns], owners, scores, strict=True):
                self._claim(int(kept[owner]), int(number), float(score))
