"""Writes and reads items with their vectors as Parquet files, for exports and imports.

    part-00000.parquet    id, modality, uri, text, language, image_id, label, record, attributes
                          (JSON), content_hash, vector (float16 [D]), thumbnail (JPEG), picture,
                          texts (of a picture: what search by words finds it by), origin (a number
                          that tells its source from others)

Every column but `id` and `vector` may be missing in files made by others; columns that are not
named here become attributes, and so do those that bear our names and are something else. Our files
carry the encoder's fingerprint and the declared fields in their schema, so that a wrong model is
refused. Extension types of Arrow are not loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from indexer.filters.declared import Field, parse_fields, values_of
from indexer.format.entries import Modality
from indexer.format.items import Item, NewRow
from indexer.format.manifest import Manifest
from indexer.format.segment import HalfVectors
from indexer.transfer.cells import (
    RefusedRowError,
    attributes_of,
    cells,
    hash_of,
    id_of,
    origin_of,
    others,
    picture_of,
    plain,
    text_of,
    texts_of,
    thumbnail_of,
)
from indexer.transfer.rows import BLOCK, RowBlock, TransferReport
from models.encoder import Fingerprint
from models.errors import InputError, ModelError, SourceError
from models.sources.records import UNDETERMINED
from models.vectors import Vectors

if TYPE_CHECKING:
    import pyarrow as pa

FINGERPRINT: Final = b"diptych.encoder"
FIELDS: Final = b"diptych.fields"
_ROWS_A_FILE: Final = 1_000_000
_KNOWN: Final = (
    "id", "modality", "uri", "text", "language", "image_id", "label", "record", "attributes",
    "content_hash", "vector", "thumbnail", "picture", "texts", "origin",
)  # fmt: skip


def arrow() -> Any:
    """pyarrow with its Parquet reader.

    Raises:
        InputError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise InputError("Parquet needs pyarrow", hint="pip install 'diptych[parquet]'") from error
    return pyarrow


def about(manifest: Manifest) -> dict[bytes, bytes]:
    """What our files say in their schema of the index that they came from."""
    fields = ",".join(f"{one.name}={one.path}:{one.type}" for one in manifest.declared)
    return {
        FINGERPRINT: json.dumps(manifest.fingerprint.to_dict()).encode(),
        FIELDS: fields.encode(),
    }


def schema(manifest: Manifest) -> pa.Schema:
    pa = arrow()
    text = ["id", "modality", "uri", "text", "language", "image_id", "label", "record"]
    picture = pa.struct(
        [
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("size", pa.int64()),
            ("pixels", pa.binary()),
        ]
    )
    return pa.schema(
        [
            *((name, pa.string()) for name in text),
            ("attributes", pa.string()),
            ("content_hash", pa.string()),
            ("vector", pa.list_(pa.float16(), manifest.dim)),
            ("thumbnail", pa.binary()),
            ("picture", picture),
            ("texts", pa.list_(pa.string())),
            ("origin", pa.int64()),
        ],
        metadata=about(manifest),
    )


def write_parquet(
    out: Path, manifest: Manifest, blocks: Iterable[RowBlock], *, rows_a_file: int = _ROWS_A_FILE
) -> None:
    """Write rows to new files in an empty directory."""
    pa = arrow()
    form = schema(manifest)
    writer, rows, number = None, 0, 0
    try:
        for block in blocks:
            if writer is None or rows >= rows_a_file:
                if writer is not None:
                    writer.close()
                path = out / f"part-{number:05}.parquet"
                writer, rows, number = pa.parquet.ParquetWriter(path, form), 0, number + 1
            writer.write_table(_table(pa, form, block))
            rows += len(block.rows)
        if writer is None:
            writer = pa.parquet.ParquetWriter(out / "part-00000.parquet", form)
    finally:
        if writer is not None:
            writer.close()


def _table(pa: Any, form: pa.Schema, block: RowBlock) -> pa.Table:
    items = [row.item for row in block.rows]
    halves = np.ascontiguousarray(block.vectors_BD, dtype="<f2")
    columns: dict[str, Any] = {
        name: [getattr(item, name) for item in items]
        for name in ("id", "modality", "uri", "text", "language", "image_id", "label")
    }
    columns["record"] = [row.record for row in block.rows]
    columns["attributes"] = [json.dumps(item.attributes, ensure_ascii=False) for item in items]
    columns["content_hash"] = [item.content_hash for item in items]
    columns["vector"] = pa.FixedSizeListArray.from_arrays(
        pa.array(halves.reshape(-1)), halves.shape[1]
    )
    columns["thumbnail"] = [row.thumbnail for row in block.rows]
    columns["picture"] = [
        None
        if row.picture is None
        else {name: getattr(row.picture, name) for name in ("width", "height", "size", "pixels")}
        for row in block.rows
    ]
    columns["origin"] = [row.origin for row in block.rows]
    columns["texts"] = [None if row.texts is None else list(row.texts) for row in block.rows]
    return pa.table(columns, schema=form)


def parquet_parts(source: Path) -> list[Path]:
    """The files of a source, in lexicographic order; none where it is no Parquet."""
    if source.is_file() and source.suffix == ".parquet":
        return [source]
    return sorted(source.glob("*.parquet")) if source.is_dir() else []


def stored_about(parts: list[Path]) -> tuple[Fingerprint | None, tuple[Field, ...]]:
    """The encoder and the declared fields that the first file names, if any.

    Raises:
        SourceError: it is not Parquet.
    """
    told_of = open_parquet(parts[0]).schema_arrow.metadata or {}
    try:
        told = json.loads(told_of[FINGERPRINT]) if FINGERPRINT in told_of else None
        fields = parse_fields([told_of[FIELDS].decode()]) if told_of.get(FIELDS) else ()
        return None if told is None else Fingerprint.from_dict(told), fields
    except (ValueError, ModelError, InputError) as error:
        raise SourceError(f"{parts[0]}: what it says of its encoder is damaged") from error


def read_parquet(
    parts: list[Path], dim: int, fields: tuple[Field, ...], report: TransferReport
) -> Iterator[RowBlock]:
    """Rows of all files, a block at a time: first all pictures, then all texts.

    Each row is judged alone: one that cannot be stored is rejected with its reason.

    Args:
        dim: D, of the vectors that are wanted.

    Raises:
        SourceError: a file cannot be read, or lacks `id` or `vector`.
        InputError: no vector has the wanted dimension.
    """
    reader = _Reader(dim, fields, report)
    # texts name their pictures, which may stand behind them or in another file
    for modality in ("image", "text"):
        for path in parts:
            file = open_parquet(path)
            names = file.schema_arrow.names
            missing = {"id", "vector"} - set(names)
            if missing:
                raise SourceError(f"{path} has no column {' and no '.join(sorted(missing))}")
            if len(set(names)) < len(names):
                raise SourceError(f"{path} has two columns of the same name")
            _check_vectors(path, file.schema_arrow.field("vector").type)
            if modality == "text" and "modality" not in names:
                continue
            try:
                at = 0
                for batch in file.iter_batches(BLOCK):
                    yield from reader.take(batch, modality, path.name, at)
                    at += len(batch)
            except (OSError, ValueError, arrow().lib.ArrowException) as error:
                raise SourceError(f"{path}: {str(error).splitlines()[0]}") from error
    reader.finish()


def _check_vectors(path: Path, found: Any) -> None:
    types = arrow().types
    is_list = types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found)
    one = found.value_type if is_list else found
    if types.is_null(one):
        return  # each row says that it has none
    if is_list and (types.is_floating(one) or types.is_integer(one) or types.is_decimal(one)):
        return
    raise SourceError(
        f"{path}: its column vector holds {found}, not lists of numbers",
        hint="write each vector as a list of floats, one for each dimension",
    )


def open_parquet(path: Path) -> Any:
    try:
        return arrow().parquet.ParquetFile(path)
    except (OSError, ValueError, arrow().lib.ArrowException) as error:
        raise SourceError(f"{path} is not Parquet: {str(error).splitlines()[0]}") from error


class _Reader:
    """Rows of the files -> rows of an index, each judged alone."""

    def __init__(self, dim: int, fields: tuple[Field, ...], report: TransferReport) -> None:
        self._dim = dim
        self._fields = fields
        self._report = report
        self._fitting = 0
        self._other: int | None = None

    def take(
        self, batch: pa.RecordBatch, modality: Modality, file: str, first: int
    ) -> Iterator[RowBlock]:
        """The rows of one modality; `first` is the number of the first one in its file."""
        names = batch.schema.names
        kinds = (
            [_kind(one) for one in cells(batch.column("modality"))] if "modality" in names else ()
        )
        # what is neither is judged with the pictures
        numbers = [i for i in range(len(batch)) if (kinds[i] if kinds else "image") == "text"]
        if modality == "image":
            numbers = sorted(set(range(len(batch))) - set(numbers))
        if len(numbers) < len(batch):
            batch = batch.take(arrow().array(numbers, arrow().int64()))
        columns = {name: cells(batch.column(name)) for name in names if name != "vector"}
        vectors = _Vectors(batch.column("vector"), self._dim)
        chosen: list[int] = []
        rows: list[NewRow] = []
        for i, number in enumerate(numbers):
            one = {name: column[i] for name, column in columns.items()}
            kind = kinds[number] if kinds else modality
            where = f"row {first + number} of {file}"
            try:
                where = id_of(one["id"], "id") or where
                if kind != modality:
                    raise RefusedRowError(f"its modality is {plain(kind, 'modality')!r}")
                if (length := vectors.lengths[i]) != self._dim:
                    self._other = self._other or length
                    why = "no vector" if length is None else f"a vector of {length} dimensions"
                    raise RefusedRowError(f"it has {why}, the model has {self._dim}")
                self._fitting += 1
                if vectors.has_gap(i):
                    raise RefusedRowError("its vector has gaps")
                rows.append(self._row(one, modality))
            except RefusedRowError as error:
                self._report.reject(where, str(error))
            else:
                chosen.append(i)
        if chosen:
            yield RowBlock(modality, vectors.rows(chosen), rows)

    def finish(self) -> None:
        """Raises InputError where all vectors are of another model."""
        if self._other and not self._fitting:
            raise InputError(
                f"vectors have {self._other} dimensions, the model has {self._dim}",
                hint="name the model that made them with --model",
            )

    def _row(self, one: dict[str, Any], modality: Modality) -> NewRow:
        item_id = id_of(one["id"], "id")
        if item_id is None:
            raise RefusedRowError("it has no id")
        is_text = modality == "text"
        image_id = id_of(one.get("image_id"), "image_id") if is_text else None
        texts = texts_of(one.get("text"), "text")
        if is_text and one.get("text") == "":
            texts = ("",)  # a vector of a text that nobody kept, from clip-retrieval's folders
        if is_text and len(texts) != 1:
            raise RefusedRowError("it is a text without words" if not texts else _TWO_TEXTS)
        text = texts[0] if texts else None
        attributes = attributes_of(one.get("attributes")) | others(one, _KNOWN)
        digest = hash_of(one.get("content_hash"))
        thumbnail, picture = thumbnail_of(one.get("thumbnail")), picture_of(one.get("picture"))
        record = self._record(one, item_id, image_id, is_text=is_text)
        claims: dict[str, Any] = {
            "content_hash": digest,
            "thumbnail": thumbnail,
            "picture": picture,
            "record": record,
            "image_id": image_id,
        }
        for name, claim in claims.items():
            if claim is None and one.get(name) is not None:
                # a column that happens to have one of our names, and is something else
                attributes[name] = plain(one[name], name)
        label = text_of(one.get("label"), "label")
        language = text_of(one.get("language"), "language")
        content = json.dumps([item_id, text, attributes], ensure_ascii=False, sort_keys=True)
        item = Item(
            id=item_id,
            modality=modality,
            uri=text_of(one.get("uri"), "uri") or item_id,
            text=text,
            language=None if text is None else language or UNDETERMINED,
            image_id=image_id,
            label=label,
            attributes=attributes,
            content_hash=digest or hashlib.sha256(content.encode()).hexdigest(),
        )
        words = texts_of(one.get("texts"), "texts")
        words = tuple(dict.fromkeys([*words, *texts]))
        values, problems = values_of(attributes, self._fields)
        for problem in problems:
            self._report.note(f"{problem}; it counts as missing")
        return NewRow(
            record=record or image_id or item_id,
            item=item,
            thumbnail=thumbnail,
            values=values,
            picture=picture,
            texts=words if modality == "image" and words else None,
            origin=origin_of(one.get("origin")),
        )

    @staticmethod
    def _record(
        one: dict[str, Any], item_id: str, image_id: str | None, *, is_text: bool
    ) -> str | None:
        """The source record that a row names, if it can be one as an index has them."""
        record = id_of(one.get("record"), "record")
        if record is None:
            return None
        owner = (image_id or record) if is_text else item_id
        is_own = image_id is not None or not is_text or item_id.startswith(f"{record}#")
        return record if record == owner and is_own else None


def _kind(value: Any) -> Any:
    """A cell that names a modality; nothing means a picture."""
    return (value.strip().lower() or "image") if isinstance(value, str) else value or "image"


_TWO_TEXTS: Final = "it has several texts, and one vector"


class _Vectors:
    """The vectors of a batch, of any length, with gaps or missing."""

    def __init__(self, column: pa.Array, dim: int) -> None:
        self._dim = dim
        self._column = column
        pa = arrow()
        if pa.types.is_null(column.type):
            self.lengths: list[int | None] = [None] * len(column)
            return
        valid = column.is_valid().to_pylist()
        if pa.types.is_fixed_size_list(column.type):
            self.lengths = [column.type.list_size if one else None for one in valid]
        else:
            self.lengths = pa.compute.list_value_length(column).to_pylist()
        self._gaps: set[int] = set()
        if column.flatten().null_count:
            whole = (i for i, length in enumerate(self.lengths) if length is not None)
            self._gaps = {i for i in whole if column[i].values.null_count}

    def has_gap(self, i: int) -> bool:
        return i in self._gaps

    def rows(self, chosen: list[int]) -> HalfVectors | Vectors:
        """[len(chosen), D] of rows that have that many numbers and no gap."""
        pa = arrow()
        flat = self._column.take(pa.array(chosen)).flatten()
        if pa.types.is_decimal(flat.type):
            flat = flat.cast(pa.float64())
        found: HalfVectors | Vectors = flat.to_numpy(zero_copy_only=False)
        return found.reshape(len(chosen), self._dim)
