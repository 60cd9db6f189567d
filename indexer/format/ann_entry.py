"""What a manifest records of an ANN structure: what it is, and what was measured of it.

An `ann.faiss` is derived from its segment's `vectors.npy` and can be built again from it. The
entry says how, at which effort it is searched, and what that costs in recall.
`indexer.format.manifest` names the file and its hash; building and measuring are
`indexer.edit.optimize`'s. This knows neither FAISS nor files.

Effort is what the structure's own literature calls efSearch (HNSW, Malkov & Yashunin 2018) or
nprobe (inverted file, Jegou et al. 2011). `refine` is how many candidates are scored again from
the stored vectors for each result wanted.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

ANN_FILE: Final = "ann.faiss"
CANARIES: Final = 8

Structure = Literal["hnsw", "ivf"]
QueryKind = Literal["texts", "background", "images"]
"""Measured with: texts of the index against its pictures; embedded background queries, where it
has no texts; pictures of the index against its texts."""

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=1, le=2**31)]
Row = Annotated[int, Field(ge=0, le=2**31)]
Recipe = Annotated[str, Field(pattern=r"^[A-Za-z0-9_,()+.-]{1,80}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class CurvePoint(_Strict):
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
    kind: QueryKind


class Canary(_Strict):
    """What the structure must answer, before scoring again, to the stored vector of `row`."""

    row: Row
    expected: Annotated[list[Row], Field(min_length=1, max_length=16)]


class AnnEntry(_Strict):
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
