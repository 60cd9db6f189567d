"""Writes and reads embedding folders in clip-retrieval's layout, for exports and imports.

    img_emb/img_emb_0.npy             float16 or float32 [N, D]
    text_emb/text_emb_0.npy           likewise; either folder may be missing
    metadata/metadata_0.parquet       image_path, caption, and whatever else there is

Files pair up in lexicographic order, rows by position. A row of ours is a picture and one of its
texts: a picture with three texts fills three rows, one without any has a zero vector and no caption
on the text side, as has a text without a picture on the other; a zero vector scores zero there and
is no item here. What the layout has no place for is in columns that begin with `diptych_`, in the
picture's first row, and in the tables' schema: an index comes back as it was. Exports of releases
before that left out thumbnails and the words of further captions; they say nothing of themselves,
and their content hashes are not taken over, so that a build brings back what is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from indexer.filters.declared import Field, Value, values_of
from indexer.format.entries import Modality
from indexer.format.items import Item, NewRow, Picture
from indexer.format.manifest import Manifest
from indexer.format.npy import npy_header
from indexer.format.version import OpenVersion
from indexer.store.copies import load_rows
from indexer.transfer.cells import (
    RefusedRowError,
    attributes_of,
    cells,
    hash_of,
    id_of,
    origin_of,
    others,
    picture_of,
    text_of,
    texts_of,
    thumbnail_of,
)
from indexer.transfer.parquet_files import about, arrow, open_parquet
from indexer.transfer.rows import BLOCK, RowBlock, TransferReport, captions, live_rows
from models.errors import SourceError
from models.sources.records import UNDETERMINED

ROWS_A_FILE: Final = 65_536
_OURS: Final = "diptych_"
_COMPLETE: Final = b"diptych.complete"
"""In the schema of a table that has all that an index keeps of its rows."""
_SIDES: Final = (("img_emb", "image_path"), ("text_emb", "caption"))


def write_folders(out: Path, version: OpenVersion, *, rows_a_file: int = ROWS_A_FILE) -> None:
    """Write the live rows of a version into an empty directory."""
    for name in ("img_emb", "text_emb", "metadata"):
        (out / name).mkdir()
    live = version.manifest.live
    width = len(str(max(0, -(-(live.images + live.texts) // rows_a_file) - 1)))
    part = _Part(out, version.manifest, width)
    for vectors, row in _pairs(version):
        part.add(vectors, row)
        if len(part) >= rows_a_file:
            part.write()
    if len(part) or not part.number:
        part.write()


class _Part:
    """Rows of the three files that are filled next."""

    def __init__(self, out: Path, manifest: Manifest, width: int) -> None:
        self.number = 0
        self._about = {**about(manifest), _COMPLETE: b"1"}
        self._out = out
        self._width = width
        self._none = np.zeros(manifest.dim, dtype=np.float16)
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
        columns = [("image_path", pa.string()), ("caption", pa.string())]
        columns += [(f"{_OURS}{name}", pa.string()) for name in _COLUMNS]
        columns += [(f"{_OURS}origin", pa.int64()), (f"{_OURS}thumbnail", pa.binary())]
        form = pa.schema(columns, metadata=self._about)
        table = pa.Table.from_pylist(self._rows, schema=form)
        pa.parquet.write_table(table, self._out / "metadata" / f"metadata_{number}.parquet")
        self.number += 1
        self._clear()


_COLUMNS: Final = (
    "id", "uri", "label", "attributes", "content_hash", "record", "text_id", "language",
    "text_attributes", "text_content_hash", "text_label", "text_uri", "text_image_id",
    "texts", "picture", "own_text", "own_language",
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
                columns = _image_columns(new)
                belongs = list(captions(version, new))
                once = columns | _once_columns(new)
                for position, row in belongs:
                    segment = version.segments[position]
                    [text] = load_rows(segment, [row], declared)
                    yield (half, segment.vectors_ND[row]), once | _text_columns(text)
                    once = columns
                if not belongs:
                    yield (half, None), once
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
        f"{_OURS}origin": new.origin,
    }


def _once_columns(new: NewRow) -> dict[str, Any]:
    """What the first row of a picture has, however many texts it fills rows with."""
    seen = new.picture
    facts = None if seen is None else {**asdict(seen), "pixels": seen.pixels.hex()}
    return {
        f"{_OURS}texts": None if new.texts is None else json.dumps(new.texts, ensure_ascii=False),
        f"{_OURS}own_text": new.item.text,
        f"{_OURS}own_language": new.item.language,
        f"{_OURS}picture": None if facts is None else json.dumps(facts),
        f"{_OURS}thumbnail": new.thumbnail,
    }


def _text_columns(new: NewRow) -> dict[str, Any]:
    item = new.item
    return {
        "caption": item.text,
        f"{_OURS}record": new.record,
        f"{_OURS}origin": new.origin,
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


def metadata_files(source: Path) -> list[Path]:
    """The tables of a layout, in the order of its arrays."""
    return sorted((source / "metadata").glob("*.parquet"))


def read_folders(
    source: Path, fields: tuple[Field, ...], report: TransferReport
) -> Iterator[RowBlock]:
    """Rows of all files, a block at a time: first all pictures, then all texts.

    Each row is judged alone: one that cannot be stored is rejected with its reason.

    Raises:
        SourceError: files do not pair up, cannot be read, or hold something else.
    """
    sides = [sorted((source / folder).glob("*.npy")) for folder, _ in _SIDES]
    tables = metadata_files(source)
    count = max(len(side) for side in sides)
    for (folder, _), side in zip(_SIDES, sides, strict=True):
        if side and len(side) != count:
            raise SourceError(f"{source / folder} has {len(side)} files, not {count}")
    if tables and len(tables) != count:
        raise SourceError(f"{source / 'metadata'} has {len(tables)} files, not {count}")
    dims: dict[str, int] = {}
    for modality in ("image", "text"):
        reader = _Reader(modality, fields, report)
        for number in range(count):
            arrays = [_load(side[number]) if side else None for side in sides]
            lengths = {len(array) for array in arrays if array is not None}
            table = open_parquet(tables[number]) if tables else None
            if table is not None:
                lengths.add(table.metadata.num_rows)
            if len(lengths) != 1:
                raise SourceError(
                    f"{source}: the files number {number} have {sorted(lengths)} rows"
                )
            [rows] = lengths
            for array, (folder, _) in zip(arrays, _SIDES, strict=True):
                if array is not None and array.shape[1] != dims.setdefault(folder, array.shape[1]):
                    raise SourceError(f"{source / folder}: its files differ in their dimensions")
            reader.begin(table)
            at = 0
            for told in _told(table, rows):
                block = [None if one is None else one[at : at + len(told)] for one in arrays]
                yield from reader.take(block, told)
                at += len(told)
        yield from reader.finish()


def _told(table: Any, rows: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of a table, some at a time; as many empty ones where there is no table."""
    if table is None:
        nothing: dict[str, Any] = {}
        yield from (
            [nothing.copy() for _ in range(min(BLOCK, rows - at))] for at in range(0, rows, BLOCK)
        )
        return
    for batch in table.iter_batches(BLOCK):
        columns = {name: cells(batch.column(name)) for name in batch.schema.names}
        yield [{name: column[i] for name, column in columns.items()} for i in range(batch.num_rows)]


def _load(path: Path) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(f"{path} is no array: {str(error).splitlines()[0]}") from error
    if array.ndim != 2 or array.dtype.kind != "f":
        raise SourceError(f"{path} holds {array.dtype} {list(array.shape)}, not rows of floats")
    return array


class _Reader:
    """Rows of the files -> items of one modality, each once, whatever rows it is repeated in."""

    def __init__(
        self, modality: Modality, fields: tuple[Field, ...], report: TransferReport
    ) -> None:
        self._modality = modality
        self._fields = fields
        self._report = report
        self._row = 0
        self._last: tuple[str, bytes] | None = None
        self._waiting: list[tuple[npt.NDArray[Any], NewRow]] = []
        self._complete = False

    def begin(self, table: Any) -> None:
        """Another file follows, with this table."""
        said = {} if table is None else table.schema_arrow.metadata or {}
        names = () if table is None else table.schema_arrow.names
        self._complete = said.get(_COMPLETE) == b"1"
        if f"{_OURS}id" in names and not self._complete and self._modality == "image":
            self._report.note(_INCOMPLETE)

    def take(
        self, sides: list[npt.NDArray[Any] | None], told: list[dict[str, Any]]
    ) -> Iterator[RowBlock]:
        images, texts = sides
        for i, one in enumerate(told):
            number = self._row
            self._row += 1
            is_image = images is not None and not self._absent(images[i], one, "image_path")
            is_text = texts is not None and not self._absent(texts[i], one, "caption")
            is_wanted = is_image if self._modality == "image" else is_text
            if not is_wanted:
                continue
            where = f"row-{number:012}"
            try:
                image_id = self._id(one, "id") or self._id(one, "image_path", ours=False) or where
                where = image_id
                if self._modality == "text" and texts is not None:
                    row = self._text(image_id if is_image else None, image_id, one)
                    self._waiting.append((texts[i], row))
                elif images is not None:
                    again = (image_id, images[i].tobytes())
                    if again == self._last and self._waiting:  # the picture with its next text
                        self._add_words(one)
                    else:
                        self._waiting.append((images[i], self._image(image_id, one)))
                        self._last = again
            except RefusedRowError as error:
                self._report.reject(where, str(error))
        # the last picture may go on in the next rows
        if len(self._waiting) > BLOCK:
            yield self._block(len(self._waiting) - 1)

    def finish(self) -> Iterator[RowBlock]:
        """What is left."""
        if self._waiting:
            yield self._block(len(self._waiting))

    def _block(self, count: int) -> RowBlock:
        ready, self._waiting = self._waiting[:count], self._waiting[count:]
        vectors = np.stack([vector for vector, _ in ready])
        return RowBlock(self._modality, vectors, [row for _, row in ready])

    @staticmethod
    def _absent(vector: npt.NDArray[Any], one: dict[str, Any], column: str) -> bool:
        return not vector.any() and one.get(column) is None

    @staticmethod
    def _id(one: dict[str, Any], name: str, *, ours: bool = True) -> str | None:
        return id_of(one.get(f"{_OURS}{name}" if ours else name), name)

    def _image(self, image_id: str, one: dict[str, Any]) -> NewRow:
        attributes = self._attributes(one, "attributes")
        texts = texts_of(one.get("caption"), "caption")
        if self._complete:  # its own text may be one that is no item
            texts = texts_of(one.get(f"{_OURS}own_text"), "own_text")
        text = texts[0] if texts else None
        tag = "own_language" if self._complete else "language"
        language = text_of(one.get(f"{_OURS}{tag}"), "language")
        words = (*texts_of(_json(one.get(f"{_OURS}texts")), "texts"), *texts)
        item = Item(
            id=image_id,
            modality="image",
            uri=self._uri(one, "uri") or image_id,
            text=text,
            language=None if text is None else language or UNDETERMINED,
            image_id=None,
            label=text_of(one.get(f"{_OURS}label"), "label"),
            attributes=attributes,
            content_hash=self._hash_of(one, "content_hash", image_id, text, attributes),
        )
        return NewRow(
            record=self._id(one, "record") or image_id,
            item=item,
            thumbnail=thumbnail_of(one.get(f"{_OURS}thumbnail")),
            values=self._values(attributes),
            texts=tuple(dict.fromkeys(words)) or None,
            picture=self._picture(one),
            origin=origin_of(one.get(f"{_OURS}origin")),
        )

    def _add_words(self, one: dict[str, Any]) -> None:
        vector, row = self._waiting[-1]
        words = (*(row.texts or ()), *texts_of(one.get("caption"), "caption"))
        self._waiting[-1] = vector, replace(row, texts=tuple(dict.fromkeys(words)) or None)

    def _text(self, image_id: str | None, row_id: str, one: dict[str, Any]) -> NewRow:
        attributes = self._attributes(one, "text_attributes")
        texts = texts_of(one.get("caption"), "caption")
        if len(texts) > 1:
            self._report.note("captions that are lists with one vector; the first is the text")
        caption = texts[0] if texts else ""
        language = text_of(one.get(f"{_OURS}language"), "language") or UNDETERMINED
        item = Item(
            id=self._id(one, "text_id") or f"{row_id}#{language}/0",
            modality="text",
            uri=self._uri(one, "text_uri") or row_id,
            text=caption,
            language=language,
            image_id=self._id(one, "text_image_id") or image_id,
            label=text_of(one.get(f"{_OURS}text_label"), "label"),
            attributes=attributes,
            content_hash=self._hash_of(one, "text_content_hash", row_id, caption, attributes),
        )
        return NewRow(
            record=self._id(one, "record") or image_id or row_id,
            item=item,
            values=self._values(attributes),
            origin=origin_of(one.get(f"{_OURS}origin")),
        )

    @staticmethod
    def _uri(one: dict[str, Any], name: str) -> str | None:
        found = text_of(one.get(f"{_OURS}{name}"), "uri")
        return found or text_of(one.get("image_path"), "image_path")

    @staticmethod
    def _picture(one: dict[str, Any]) -> Picture | None:
        facts = _json(one.get(f"{_OURS}picture"))
        if not isinstance(facts, dict):
            return None
        try:
            return picture_of({**facts, "pixels": bytes.fromhex(str(facts.get("pixels")))})
        except ValueError:
            return None

    @staticmethod
    def _attributes(one: dict[str, Any], ours: str) -> dict[str, Any]:
        if one.get(f"{_OURS}{ours}"):
            return attributes_of(one[f"{_OURS}{ours}"])
        known = [name for name in one if name.startswith(_OURS)]
        return others(one, [*known, "image_path", "caption"])

    def _values(self, attributes: dict[str, Any]) -> tuple[Value, ...]:
        values, problems = values_of(attributes, self._fields)
        for problem in problems:
            self._report.note(f"{problem}; it counts as missing")
        return values

    def _hash_of(self, one: dict[str, Any], name: str, *content: Any) -> str:
        found = hash_of(one.get(f"{_OURS}{name}")) if self._complete else None
        text = json.dumps(content, ensure_ascii=False)
        return found or hashlib.sha256(text.encode()).hexdigest()


_INCOMPLETE: Final = (
    "exported by a release that left out thumbnails and the words of further captions; build again "
    "from the source to have them"
)


def _json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        return None
