"""The entries that a manifest is made of: one strict model for each kind of file, and for ANN.

`indexer.format.manifest` puts them together and reads them; whether the files are there is its
readers' business.

An `ann.faiss` is derived from its segment's `vectors.npy` and can be built again from it. Its entry
says how, at which effort it is searched, and what that costs in recall; `indexer.maintain.optimize`
builds and measures. Effort is what the structure's own literature calls efSearch (HNSW, Malkov &
Yashunin 2018) or nprobe (inverted file, Jegou et al. 2011). `refine` is how many candidates are
scored again from the stored vectors for each result wanted.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from indexer.files.fs import BLOCK_BYTES

VECTORS_FILE: Final = "vectors.npy"
ITEMS_FILE: Final = "items.sqlite"
ANN_FILE: Final = "ann.faiss"
CANARIES: Final = 8

Modality = Literal["image", "text"]
Structure = Literal["hnsw", "ivf"]
MeasuredWith = Literal["texts", "background", "images"]
"""Texts of the index against its pictures; embedded background queries, where it
has no texts; pictures of the index against its texts."""

Count = Annotated[int, Field(ge=0, le=2**62)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=1, le=2**31)]
Row = Annotated[int, Field(ge=0, le=2**31)]
Recipe = Annotated[str, Field(pattern=r"^[A-Za-z0-9_,()+.-]{1,80}$")]


class Entry(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class CurvePoint(Entry):
    """One measured point: recall@10 against exact search, and its cost on one thread."""

    recipe: Recipe
    effort: Whole
    refine: Whole
    recall: Share
    latency_ms: Amount
    bytes_per_vector: Amount


class OperatingPoint(CurvePoint):
    """The point that is searched unless a call asks for another effort.

    `recall` and `latency_ms` are of `queries` queries that had no part in choosing it.
    """

    queries: Whole
    kind: MeasuredWith


class Canary(Entry):
    """What the structure must answer, before scoring again, to the stored vector of `row`."""

    row: Row
    expected: Annotated[list[Row], Field(min_length=1, max_length=16)]


class AnnEntry(Entry):
    """See the module. `parameters` are those of the recipe: M, efConstruction, nlist ..."""

    structure: Structure
    recipe: Recipe
    parameters: dict[Annotated[str, Field(pattern=r"^[A-Za-z_]{1,32}$")], Row]
    operating: OperatingPoint
    floor: Share
    curve: Annotated[list[CurvePoint], Field(max_length=512)]
    canaries: Annotated[list[Canary], Field(min_length=1, max_length=CANARIES)]

    @model_validator(mode="after")
    def _operates_its_own_recipe(self) -> AnnEntry:
        if self.operating.recipe != self.recipe:
            raise ValueError("the operating point is of another recipe")
        return self


class FileEntry(Entry):
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


class SegmentEntry(Entry):
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


class StandingEntry(Entry):
    """`indexer.search.relevance.Standing`, whose docstring explains the numbers."""

    excess_mean: Finite
    excess_std: Amount
    nonsense_mean: Finite
    nonsense_std: Amount
    low: Finite
    gate: Finite
    width: Amount
    reach: Finite | None = None
    reach_width: Amount | None = None


class NeighboursEntry(Entry):
    """`indexer.search.relevance.Neighbours`."""

    gate: Finite
    width: Amount


class TargetEntry(Entry):
    """`indexer.search.relevance.TargetBackground`: how hits of one modality are judged."""

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
    """The erasure list: what was deleted and must not come back unasked.

    The file is a uint8 [E, 32] array: sorted sha256 of ids, and of captions within their records
    (`indexer.format.erasures`), without repeats.
    """

    file: Annotated[str, Field(pattern=r"^[0-9]{8}\.npy$")]
    count: Annotated[int, Field(ge=1, le=2**40)]
