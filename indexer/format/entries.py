"""What a manifest says of each kind of file: the entries it is made of.

Plain strict models; what a manifest is, and whether its files are there, is
`indexer.format.manifest`'s and its readers' business.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from indexer.format.ann_entry import ANN_FILE, AnnEntry

VECTORS_FILE: Final = "vectors.npy"
ITEMS_FILE: Final = "items.sqlite"
BLOCK_BYTES: Final = 4 << 20
"""Files larger than this carry a checksum of every block of this many bytes."""

Modality = Literal["image", "text"]
Count = Annotated[int, Field(ge=0, le=2**62)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class FileEntry(Strict):
    """The bytes of one file.

    `blocks` is XXH3-64 of every `BLOCK_BYTES` of a larger file, 16 hex digits each, concatenated:
    not a proof against forgery as sha256 is, but found in a fraction of its time.
    """

    size: Count
    sha256: Sha256
    blocks: Annotated[str, Field(pattern=r"^([0-9a-f]{16}){2,}$")] | None = None

    @model_validator(mode="after")
    def _one_checksum_a_block(self) -> Self:
        if self.blocks is not None and len(self.blocks) != 16 * -(-self.size // BLOCK_BYTES):
            raise ValueError("blocks: not one checksum for every block")
        return self


class SegmentEntry(Strict):
    """One segment: its rows and the exact bytes of its files, by the fixed file names."""

    id: Annotated[str, Field(pattern=r"^[0-9a-z]+(-[0-9a-z]+)*$", max_length=80)]
    modality: Modality
    rows: Annotated[int, Field(ge=1, le=2**31)]
    files: dict[Literal["vectors.npy", "items.sqlite", "ann.faiss"], FileEntry]
    ann: AnnEntry | None = None

    @model_validator(mode="after")
    def _its_files(self) -> SegmentEntry:
        if set(self.files) - {ANN_FILE} != {VECTORS_FILE, ITEMS_FILE}:
            raise ValueError("a segment has vectors.npy and items.sqlite")
        if (self.ann is None) != (ANN_FILE not in self.files):
            raise ValueError("ann.faiss and its description come together")
        return self


class TombstoneEntry(FileEntry):
    """Rows of this version's segments that are deleted or superseded.

    The file is an int64 [T, 2] array of (position in `segments`, row), sorted, without repeats.
    """

    file: Annotated[str, Field(pattern=r"^[0-9]{8}\.npy$")]
    count: Annotated[int, Field(ge=1, le=2**40)]


Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class StandingEntry(Strict):
    """`indexer.judge.background.Standing`, whose docstring explains the numbers."""

    excess_mean: Finite
    excess_std: Positive
    nonsense_mean: Finite
    nonsense_std: Positive
    low: Finite
    gate: Finite
    width: Positive


class NeighboursEntry(Strict):
    """`indexer.judge.background.Neighbours`."""

    gate: Finite
    width: Positive


class TargetEntry(Strict):
    """`indexer.judge.background.TargetBackground`: how hits of one modality are judged."""

    rows: Count
    text: StandingEntry | None
    mixed: StandingEntry | None
    image: NeighboursEntry | None


class RelevanceEntry(FileEntry):
    """The background of this version; measured at this version or, unchanged, at an earlier one.

    The file is a float32 [2 + Q, D] array: the mean image vector, the mean text vector, and the
    embedded background queries, those of the list `queries` (sha256).
    """

    file: Annotated[str, Field(pattern=r"^[0-9]{8}\.npy$")]
    queries: Sha256
    count: Annotated[int, Field(ge=1, le=2**20)]
    images: TargetEntry
    texts: TargetEntry


class ErasedEntry(FileEntry):
    """The erasure list: ids that were deleted and must not come back unasked.

    The file is a uint8 [E, 32] array: sorted sha256 of item and record ids, without repeats.
    """

    file: Annotated[str, Field(pattern=r"^[0-9]{8}\.npy$")]
    count: Annotated[int, Field(ge=1, le=2**40)]
