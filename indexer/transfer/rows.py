"""Rows on their way out of an index or into one: what exports and imports share, with their report.

Rows travel as `RowBlock`: vectors as stored, and everything else about them. Formats are modules of
their own (`indexer.transfer.parquet_files`, `indexer.transfer.clip_retrieval`); this knows none.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from indexer.files.fs import storage_error
from indexer.format.entries import Modality
from indexer.format.erasures import hashes_in
from indexer.format.items import NewRow
from indexer.format.segment import LENGTH_TOLERANCE, HalfVectors
from indexer.format.version import OpenVersion
from indexer.store.copies import load_rows
from models.errors import InputError, SourceError, StoreError
from models.vectors import Vectors, unit_rows

OnRows = Callable[[int, int | None], None]
"""Told how many rows are done, and how many there are in all where that is known."""

BLOCK: Final = 500


@dataclass(frozen=True, slots=True)
class RowBlock:
    """B rows of one modality: vectors [B, D] and what belongs to each."""

    modality: Modality
    vectors_BD: HalfVectors | Vectors
    rows: list[NewRow]


@dataclass(slots=True)
class TransferReport:
    """What was moved.

    Attributes:
        format: of the files outside.
        version: of the index read from, or made.
        images, texts: items moved.
        files, bytes: written outside, by an export.
        scaled: vectors that were not of unit length and were scaled, by an import.
        rejected: rows left out, each with the reason; at most a hundred are told.
        erased: rows left out because they had been deleted.
        notes: what became of the rest that is not as it was, and how often; at most a hundred.
    """

    format: str
    version: int = 0
    images: int = 0
    texts: int = 0
    files: int = 0
    bytes: int = 0
    scaled: int = 0
    rejected: int = 0
    reasons: list[str] = field(default_factory=list)
    erased: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def reject(self, where: str, why: str) -> None:
        self.rejected += 1
        if len(self.reasons) < 100:
            self.reasons.append(f"{where}: {why}")

    def note(self, what: str, count: int = 1) -> None:
        if what in self.notes or len(self.notes) < 100:
            self.notes[what] = self.notes.get(what, 0) + count

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


ERASURES: Final = "_erased.npy"
"""Beside exported rows, where there is one: what was deleted (`indexer.format.erasures`). Readers
of whole folders pass over names that begin so."""


def stored_erasures(source: Path) -> set[bytes]:
    """The erasure list beside an export, a folder or a file of one; empty where there is none.

    Raises:
        SourceError: it is damaged.
    """
    path = (source if source.is_dir() else source.parent) / ERASURES
    if not path.exists():
        return set()
    hashes = hashes_in(path)
    if not hashes:
        raise SourceError(
            f"{path} is no erasure list, or it is damaged",
            hint="take it from the export again; without it what was deleted could come back",
        )
    return hashes


def live_rows(version: OpenVersion) -> Iterator[RowBlock]:
    """Every live row of a version, `BLOCK` at a time: pictures, with their texts, then texts."""
    order = sorted(range(len(version.segments)), key=lambda at: version.segments[at].entry.modality)
    for position in order:
        segment = version.segments[position]
        alive = np.flatnonzero(~version.dead[position])
        for start in range(0, len(alive), BLOCK):
            part = alive[start : start + BLOCK].tolist()
            rows = load_rows(segment, part, version.manifest.declared)
            if segment.entry.modality == "image":
                rows = [replace(row, texts=_texts(version, row)) for row in rows]
            yield RowBlock(segment.entry.modality, segment.vectors_ND[part], rows)


def captions(version: OpenVersion, picture: NewRow) -> Iterator[tuple[int, int]]:
    """(position of the segment, row) of the live texts of a picture."""
    for position, segment in enumerate(version.segments):
        if segment.entry.modality == "text":
            for row in sorted(segment.items.rows_of(picture.record)):
                if not version.dead[position][row]:
                    yield position, row


def _texts(version: OpenVersion, picture: NewRow) -> tuple[str, ...] | None:
    found = []
    for position, row in captions(version, picture):
        item = version.segments[position].items.items([row])[row]
        if item.text is not None:
            found.append(item.text)
    if picture.item.text is not None:  # its own, which may be in a language that is not indexed
        found.append(picture.item.text)
    return tuple(dict.fromkeys(found)) or None


def storable(vectors_BD: npt.NDArray[Any], dim: int) -> tuple[HalfVectors | Vectors, int]:
    """Vectors of unit length, ready to store, and how many had to be scaled.

    Rows that are of unit length to what float16 can say are left as they are, so that vectors that
    came out of an index go back into one bit for bit.

    Raises:
        InvalidVectorError: NaN, infinity, a zero row.
        InputError: of another dimension.
    """
    if vectors_BD.ndim != 2 or vectors_BD.shape[1] != dim:
        raise InputError(
            f"vectors have {vectors_BD.shape[-1]} dimensions, the model has {dim}",
            hint="name the model that made them with --model",
        )
    unit_BD = unit_rows(vectors_BD)
    wide_BD = vectors_BD.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # so long a row is scaled, as it should be
        off_B = ~(np.abs(np.einsum("bd,bd->b", wide_BD, unit_BD) - 1.0) <= LENGTH_TOLERANCE)
    if not off_B.any():
        return np.ascontiguousarray(vectors_BD), 0
    return np.where(off_B[:, None], unit_BD, wide_BD), int(off_B.sum())


def require_new(out: Path) -> None:
    """Refuse to write into what is already there.

    Raises:
        StoreError: `out` exists and is not an empty directory, or is the one we are in.
    """
    hint = "name a new directory with --out"
    if out.name in ("", "..") or out.resolve() == Path.cwd():
        raise StoreError(f"{out} cannot be made anew", code="not-empty", hint=hint)
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise StoreError(f"{out} exists already", code="not-empty", hint=hint)


_MARK: Final = ".diptych-export"
"""In a directory that is being filled: what tells it from one that only has its name."""


@contextmanager
def whole_directory(out: Path) -> Iterator[Path]:
    """A directory to fill beside `out`, renamed to `out` if the block ends well, else removed.

    What a killed run left of it is removed first; what nobody of us made stops it.

    Raises:
        StoreError, NoSpaceError: `out` exists, or cannot be made.
    """
    require_new(out)
    partial = out.with_name(f"{out.name}.partial")
    _remove_left(partial)
    try:
        partial.mkdir()
    except OSError as error:
        raise storage_error(error, "create", partial) from error
    try:
        try:
            (partial / _MARK).touch(exist_ok=False)
            yield partial
            (partial / _MARK).unlink()
            partial.replace(out)
        except OSError as error:
            raise storage_error(error, "write", out) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _remove_left(partial: Path) -> None:
    """Remove what a killed run left of a directory.

    Raises:
        StoreError: it is something else, and left alone.
    """
    if not os.path.lexists(partial):
        return
    try:
        if partial.is_dir() and not partial.is_symlink():
            if (partial / _MARK).is_file():
                shutil.rmtree(partial)
                return
            if not any(partial.iterdir()):  # killed before it could be marked
                partial.rmdir()
                return
    except OSError as error:
        raise storage_error(error, "remove", partial) from error
    raise StoreError(
        f"{partial} is in the way: it was not left by an export that was cut off",
        code="not-ours",
        hint="move it away, or name another directory with --out",
    )
