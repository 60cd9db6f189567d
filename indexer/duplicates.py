"""Groups of near-duplicate pictures, by embedding.

    in order of preference: a picture joins the first kept one whose cosine to it reaches the
    threshold, or is kept

Preferred are larger pictures (in pixels, then bytes), then those stored first. Every picture named
for removal is close to the one that is kept, and not merely to one that is close to it, as a chain
of neighbours would have it. Exact: blocks of kept pictures are compared with all that are left, in
memory of some 32 bytes a picture however many duplicates there are.

A duplicate is `same-pixels` where the decoded pictures are equal, `same-vector` where nothing is
known of the pixels (an index of format 1) and the embeddings are equal, otherwise `near`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from indexer.items import Item, Picture
from indexer.version import OpenVersion
from models.errors import InputError

DEFAULT_THRESHOLD: Final = 0.95
"""Measured with the starter pair, see `find_duplicates`."""

Kind = Literal["same-pixels", "same-vector", "near"]

_BLOCK: Final = 512
_CHUNK: Final = 16_384
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


def find_duplicates(
    version: OpenVersion,
    threshold: float = DEFAULT_THRESHOLD,
    *,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Iterator[Group]:
    """The groups of two pictures and more, in the order of preference of the kept ones.

    At the default threshold, with the starter pair on photographs of 224 pixels: of 18 million
    pairs of different photographs two reach it (the same file twice; two shots of one moment),
    and a copy is found after JPEG at quality 90 (100%), 70 (77%) and 50 (41%), darkened or
    brightened by a fifth (98% and more), cropped by 5% (80%), mirrored (43%); rarely after being
    scaled to half (0%), turned grey (0%) or framed (2%). Pictures of one product on one shelf
    are not told apart as well: 70 of a million pairs of different ones reach it, 9 reach 0.97.

    Args:
        threshold: cosine, above 0 and at most 1.
        on_progress: (pictures compared, pictures in all).

    Raises:
        InputError: the threshold is out of range.
        IndexCorruptError: a segment's database is damaged.
    """
    if not 0.0 < threshold <= 1.0:
        raise InputError("the threshold is a cosine above 0 and at most 1")
    places_R2 = _in_order_of_preference(version)
    for kept, others in _stars(version, places_R2, threshold, on_progress):
        yield _group(version, places_R2, kept, others)


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


def _stars(
    version: OpenVersion,
    places_R2: npt.NDArray[np.int64],
    threshold: float,
    on_progress: Callable[[int, int], None],
) -> Iterator[tuple[int, list[tuple[int, float]]]]:
    """(kept, [(other, cosine)]) as numbers in the order of preference, of every group."""
    floor, total = np.float32(threshold), len(places_R2)
    free_R = np.ones(total, dtype=np.bool_)
    start = 0
    while start < total:
        block = np.flatnonzero(free_R[start:])[:_BLOCK] + start
        if not len(block):
            break
        block_BD = _vectors(version, places_R2, block)
        scores_BB = block_BD @ block_BD.T
        members: dict[int, list[tuple[int, float]]] = {}
        for at in range(len(block)):
            earlier = [one for one in members if scores_BB[at, one] >= floor]
            if earlier:
                members[earlier[0]].append((int(block[at]), float(scores_BB[at, earlier[0]])))
            else:
                members[at] = []
        kept = list(members)
        free_R[block] = False
        start = int(block[-1]) + 1
        kept_VD = block_BD[kept]
        for first in range(start, total, _CHUNK):
            rest = np.flatnonzero(free_R[first : first + _CHUNK]) + first
            if not len(rest):
                continue
            close_VM = kept_VD @ _vectors(version, places_R2, rest).T
            found = np.flatnonzero((close_VM >= floor).any(axis=0))
            owners = (close_VM[:, found] >= floor).argmax(axis=0)
            for other, owner in zip(found.tolist(), owners.tolist(), strict=True):
                score = float(close_VM[owner, other])
                members[kept[owner]].append((int(rest[other]), score))
            free_R[rest[found]] = False
        for at, others in members.items():
            if others:
                yield int(block[at]), others
        on_progress(total - int(free_R.sum()), total)


def _vectors(
    version: OpenVersion, places_R2: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Unit rows, float32 [M, D], of pictures by their number."""
    places_M2 = places_R2[numbers]
    vectors_MD = np.empty((len(numbers), version.manifest.dim), dtype=np.float32)
    for position in np.unique(places_M2[:, 0]).tolist():
        (where,) = np.nonzero(places_M2[:, 0] == position)
        vectors_MD[where] = version.segments[position].vectors_ND[places_M2[where, 1]]
    return vectors_MD


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
