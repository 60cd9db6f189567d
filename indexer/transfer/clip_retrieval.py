"""Writes and reads embedding folders in clip-retrieval's layout, for exports and imports.

    img_emb/img_emb_0.npy             float16 or float32 [N, D]
    text_emb/text_emb_0.npy           likewise; either folder may be missing
    metadata/metadata_0.parquet       image_path, caption, and whatever else there is

Files pair up in lexicographic order, rows by position. A row of ours is a picture and one of its
texts: a picture with three texts fills three rows, one without any has a zero vector and no caption
on the text side, as has a text without a picture on the other; a zero vector scores zero there and
is no item here. What the layout has no place for is in columns that begin with `diptych_`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from indexer.filters.declared import Field, values_of
from indexer.format.items import Item, NewRow
from indexer.format.npy import npy_header
from indexer.format.version import OpenVersion
from indexer.store.copies import load_rows
from indexer.transfer.parquet_files import arrow, open_parquet, plain
from indexer.transfer.rows import BLOCK, RowBlock, TransferReport, captions, live_rows
from models.errors import SourceError
from models.sources.records import UNDETERMINED

ROWS_A_FILE: Final = 65_536
_OURS: Final = "diptych_"
_SIDES: Final = (("img_emb", "image_path"), ("text_emb", "caption"))


def write_folders(out: Path, version: OpenVersion, *, rows_a_file: int = ROWS_A_FILE) -> None:
    """Write the live rows of a version into an empty directory."""
    for name in ("img_emb", "text_emb", "metadata"):
        (out / name).mkdir()
    live = version.manifest.live
    width = len(str(max(0, -(-(live.images + live.texts) // rows_a_file) - 1)))
    part = _Part(out, version.manifest.dim, width)
    for vectors, row in _pairs(version):
        part.add(vectors, row)
        if len(part) >= rows_a_file:
            part.write()
    if len(part) or not part.number:
        part.write()


class _Part:
    """Rows of the three files that are filled next."""

    def __init__(self, out: Path, dim: int, width: int) -> None:
        self.number = 0
        self._out = out
        self._width = width
        self._none = np.zeros(dim, dtype=np.float16)
        self._clear()

    def _clear(self) -> None:
        self._vectors: tuple[list[npt.NDArray[np.float16]], ...] = ([], [])
        self._rows: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self,
        vectors: tuple[npt.NDArray[np.float16] | None, npt.NDArray[np.float16] | None],
        row: dict[str, Any],
    ) -> None:
        for side, vector in zip(self._vectors, vectors, strict=True):
            side.append(self._none if vector is None else vector)
        self._rows.append(row)

    def write(self) -> None:
        pa = arrow()
        number = str(self.number).zfill(self._width)
        for (folder, _), side in zip(_SIDES, self._vectors, strict=True):
            rows = np.array(side, dtype=np.float16).reshape(len(side), len(self._none))
            # numpy's own writer does not say why it failed, and a full disk must be told
            with (self._out / folder / f"{folder}_{number}.npy").open("wb") as stream:
                stream.write(npy_header("<f2", rows.shape))
                stream.write(rows.data)
        text = ["image_path", "caption", *(f"{_OURS}{name}" for name in _COLUMNS)]
        form = pa.schema([(name, pa.string()) for name in text])
        table = pa.Table.from_pylist(self._rows, schema=form)
        pa.parquet.write_table(table, self._out / "metadata" / f"metadata_{number}.parquet")
        self.number += 1
        self._clear()


_COLUMNS: Final = (
    "id", "uri", "label", "attributes", "content_hash", "record", "text_id", "language",
    "text_attributes", "text_content_hash", "text_label", "text_uri", "text_image_id",
)  # fmt: skip


def _pairs(
    version: OpenVersion,
) -> Iterator[
    tuple[tuple[npt.NDArray[np.float16] | None, npt.NDArray[np.float16] | None], dict[str, Any]]
]:
    """((picture's vector, text's vector), metadata) of every row."""
    declared = version.manifest.declared
    for block in live_rows(version):
        for vector_D, new in zip(block.vectors_BD, block.rows, strict=True):
            half = vector_D.astype(np.float16)
            if block.modality == "image":
                about = _image_columns(new)
                belongs = list(captions(version, new))
                for position, row in belongs:
                    segment = version.segments[position]
                    [text] = load_rows(segment, [row], declared)
                    yield (half, segment.vectors_ND[row]), about | _text_columns(text)
                if not belongs:
                    yield (half, None), about
            elif new.item.image_id is None:
                yield (None, half), _text_columns(new)


def _image_columns(new: NewRow) -> dict[str, Any]:
    item = new.item
    return {
        "image_path": item.uri,
        f"{_OURS}id": item.id,
        f"{_OURS}uri": item.uri,
        f"{_OURS}label": item.label,
        f"{_OURS}attributes": json.dumps(item.attributes, ensure_ascii=False),
        f"{_OURS}content_hash": item.content_hash,
        f"{_OURS}record": new.record,
    }


def _text_columns(new: NewRow) -> dict[str, Any]:
    item = new.item
    return {
        "caption": item.text,
        f"{_OURS}record": new.record,
        f"{_OURS}text_id": item.id,
        f"{_OURS}language": item.language,
        f"{_OURS}text_attributes": json.dumps(item.attributes, ensure_ascii=False),
        f"{_OURS}text_content_hash": item.content_hash,
        f"{_OURS}text_label": item.label,
        f"{_OURS}text_uri": item.uri,
        f"{_OURS}text_image_id": item.image_id,
    }


def is_layout(source: Path) -> bool:
    return any((source / folder).is_dir() for folder, _ in _SIDES)


def read_folders(
    source: Path, fields: tuple[Field, ...], report: TransferReport
) -> Iterator[RowBlock]:
    """Rows of all files, a block at a time: pictures, then texts, of the same rows.

    Raises:
        SourceError: files do not pair up, cannot be read, or hold something else.
    """
    sides = [sorted((source / folder).glob("*.npy")) for folder, _ in _SIDES]
    tables = sorted((source / "metadata").glob("*.parquet"))
    count = max(len(side) for side in sides)
    for (folder, _), side in zip(_SIDES, sides, strict=True):
        if side and len(side) != count:
            raise SourceError(f"{source / folder} has {len(side)} files, not {count}")
    if tables and len(tables) != count:
        raise SourceError(f"{source / 'metadata'} has {len(tables)} files, not {count}")
    reader = _Reader(fields, report)
    for number in range(count):
        arrays = [_load(side[number]) if side else None for side in sides]
        lengths = {len(array) for array in arrays if array is not None}
        table = open_parquet(tables[number]) if tables else None
        if table is not None:
            lengths.add(table.metadata.num_rows)
        if len(lengths) != 1:
            raise SourceError(f"{source}: the files number {number} have {sorted(lengths)} rows")
        [rows] = lengths
        metadata: Iterator[list[dict[str, Any]]] = (
            ([{} for _ in range(min(BLOCK, rows - at))] for at in range(0, rows, BLOCK))
            if table is None
            else (batch.to_pylist() for batch in table.iter_batches(BLOCK))
        )
        at = 0
        for told in metadata:
            block = [None if one is None else one[at : at + len(told)] for one in arrays]
            yield from reader.take(block, told)
            at += len(told)


def _load(path: Path) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(f"{path} is no array: {str(error).splitlines()[0]}") from error
    if array.ndim != 2 or array.dtype.kind != "f":
        raise SourceError(f"{path} holds {array.dtype} {list(array.shape)}, not rows of floats")
    return array


class _Reader:
    """Rows of the files -> items, each once, whatever rows it is repeated in."""

    def __init__(self, fields: tuple[Field, ...], report: TransferReport) -> None:
        self._fields = fields
        self._report = report
        self._row = 0
        self._last: tuple[str, bytes] | None = None

    def take(
        self, sides: list[npt.NDArray[Any] | None], told: list[dict[str, Any]]
    ) -> Iterator[RowBlock]:
        images, texts = sides
        chosen: tuple[list[int], list[int]] = ([], [])
        made: tuple[list[NewRow], list[NewRow]] = ([], [])
        for i, one in enumerate(told):
            image_id = str(one.get(f"{_OURS}id") or one.get("image_path") or f"row-{self._row:012}")
            self._row += 1
            is_image = images is not None and not self._absent(images[i], one, "image_path")
            if is_image and images is not None:
                again = (image_id, images[i].tobytes())
                if again != self._last:  # the same picture with its next text
                    chosen[0].append(i)
                    made[0].append(self._image(image_id, one))
                self._last = again
            if texts is not None and not self._absent(texts[i], one, "caption"):
                chosen[1].append(i)
                made[1].append(self._text(image_id if is_image else None, image_id, one))
        if chosen[0] and images is not None:
            yield RowBlock("image", images[chosen[0]], made[0])
        if chosen[1] and texts is not None:
            yield RowBlock("text", texts[chosen[1]], made[1])

    @staticmethod
    def _absent(vector: npt.NDArray[Any], one: dict[str, Any], column: str) -> bool:
        return not vector.any() and one.get(column) is None

    def _image(self, image_id: str, one: dict[str, Any]) -> NewRow:
        attributes = self._attributes(one, "attributes")
        caption = one.get("caption")
        item = Item(
            id=image_id,
            modality="image",
            uri=str(one.get(f"{_OURS}uri") or one.get("image_path") or image_id),
            text=caption,
            language=None if caption is None else one.get(f"{_OURS}language") or UNDETERMINED,
            image_id=None,
            label=one.get(f"{_OURS}label"),
            attributes=attributes,
            content_hash=one.get(f"{_OURS}content_hash") or _hash(image_id, caption, attributes),
        )
        record = one.get(f"{_OURS}record") or image_id
        return NewRow(record, item, values=values_of(attributes, self._fields)[0])

    def _text(self, image_id: str | None, row_id: str, one: dict[str, Any]) -> NewRow:
        attributes = self._attributes(one, "text_attributes")
        caption = str(one.get("caption") or "")
        language = one.get(f"{_OURS}language") or UNDETERMINED
        item = Item(
            id=one.get(f"{_OURS}text_id") or f"{row_id}#{language}/0",
            modality="text",
            uri=str(one.get(f"{_OURS}text_uri") or one.get("image_path") or row_id),
            text=caption,
            language=language,
            image_id=one.get(f"{_OURS}text_image_id") or image_id,
            label=one.get(f"{_OURS}text_label"),
            attributes=attributes,
            content_hash=one.get(f"{_OURS}text_content_hash") or _hash(row_id, caption, attributes),
        )
        record = one.get(f"{_OURS}record") or image_id or row_id
        return NewRow(record, item, values=values_of(attributes, self._fields)[0])

    @staticmethod
    def _attributes(one: dict[str, Any], ours: str) -> dict[str, Any]:
        if one.get(f"{_OURS}{ours}"):
            found: dict[str, Any] = json.loads(one[f"{_OURS}{ours}"])
            return found
        return {
            name: plain(value)
            for name, value in one.items()
            if not name.startswith(_OURS) and name not in ("image_path", "caption")
        }


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()
