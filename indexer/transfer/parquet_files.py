"""Writes and reads items with their vectors as Parquet files, for exports and imports.

    part-00000.parquet    id, modality, uri, text, language, image_id, label, record, attributes
                          (JSON), content_hash, vector (float16 [D]), thumbnail (JPEG), picture,
                          texts (of a picture: what search by words finds it by)

Every column but `id` and `vector` may be missing in files made by others; columns that are not
named here become attributes. Our files carry the encoder's fingerprint and the declared fields in
their schema, so that a wrong model is refused. Extension types of Arrow are not loaded.
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
from indexer.format.items import Item, NewRow, Picture
from indexer.format.manifest import Manifest
from indexer.transfer.rows import BLOCK, RowBlock, TransferReport
from models.encoder import Fingerprint
from models.errors import InputError, ModelError, SourceError
from models.sources.records import UNDETERMINED

if TYPE_CHECKING:
    import pyarrow as pa

FINGERPRINT: Final = b"diptych.encoder"
FIELDS: Final = b"diptych.fields"
_ROWS_A_FILE: Final = 1_000_000
_KNOWN: Final = (
    "id", "modality", "uri", "text", "language", "image_id", "label", "record", "attributes",
    "content_hash", "vector", "thumbnail", "picture", "texts",
)  # fmt: skip


def arrow() -> Any:
    """pyarrow with its Parquet reader.

    Raises:
        InputError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError("Parquet needs pyarrow", hint="pip install 'diptych[parquet]'") from error
    return pyarrow


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
    about = {
        FINGERPRINT: json.dumps(manifest.fingerprint.to_dict()).encode(),
        FIELDS: ",".join(f"{one.name}={one.path}:{one.type}" for one in manifest.declared).encode(),
    }
    return pa.schema(
        [
            *((name, pa.string()) for name in text),
            ("attributes", pa.string()),
            ("content_hash", pa.string()),
            ("vector", pa.list_(pa.float16(), manifest.dim)),
            ("thumbnail", pa.binary()),
            ("picture", picture),
            ("texts", pa.list_(pa.string())),
        ],
        metadata=about,
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
    about = open_parquet(parts[0]).schema_arrow.metadata or {}
    try:
        told = json.loads(about[FINGERPRINT]) if FINGERPRINT in about else None
        fields = parse_fields([about[FIELDS].decode()]) if about.get(FIELDS) else ()
        return None if told is None else Fingerprint.from_dict(told), fields
    except (ValueError, ModelError, InputError) as error:
        raise SourceError(f"{parts[0]}: what it says of its encoder is damaged") from error


def read_parquet(
    parts: list[Path], fields: tuple[Field, ...], report: TransferReport
) -> Iterator[RowBlock]:
    """Rows of all files, a block at a time, split by modality.

    Raises:
        SourceError: a file cannot be read, or lacks `id` or `vector`.
    """
    for path in parts:
        file = open_parquet(path)
        missing = {"id", "vector"} - set(file.schema_arrow.names)
        if missing:
            raise SourceError(f"{path} has no column {' and no '.join(sorted(missing))}")
        try:
            for batch in file.iter_batches(BLOCK):
                yield from _rows(batch, fields, report)
        except (OSError, ValueError, arrow().lib.ArrowException) as error:
            raise SourceError(f"{path}: {str(error).splitlines()[0]}") from error


def open_parquet(path: Path) -> Any:
    try:
        return arrow().parquet.ParquetFile(path)
    except (OSError, ValueError, arrow().lib.ArrowException) as error:
        raise SourceError(f"{path} is not Parquet: {str(error).splitlines()[0]}") from error


def _rows(
    batch: pa.RecordBatch, fields: tuple[Field, ...], report: TransferReport
) -> Iterator[RowBlock]:
    names = set(batch.schema.names)
    vector = batch.column(batch.schema.get_field_index("vector"))
    told = batch.select([name for name in batch.schema.names if name != "vector"]).to_pylist()
    modalities: tuple[Modality, ...] = ("image", "text")
    kinds = [one.get("modality") or "image" for one in told]
    dim = len(vector[0]) if len(vector) and vector[0].is_valid else 0
    for modality in modalities:
        at = [i for i, kind in enumerate(kinds) if kind == modality and vector[i].is_valid]
        at = [i for i in at if len(vector[i]) == dim]
        if at:
            flat = vector.take(arrow().array(at)).flatten().to_numpy(zero_copy_only=False)
            rows = [_row(told[i], modality, names, fields) for i in at]
            yield RowBlock(modality, flat.reshape(len(at), dim), rows)
    for i, one in enumerate(told):
        if kinds[i] not in modalities:
            report.reject(str(one["id"]), f"modality is {kinds[i]!r}")
        elif not vector[i].is_valid or len(vector[i]) != dim:
            report.reject(str(one["id"]), "it has no vector, or one of another length")


def _row(
    one: dict[str, Any], modality: Modality, names: set[str], fields: tuple[Field, ...]
) -> NewRow:
    item_id = str(one["id"])
    attributes = json.loads(one["attributes"]) if one.get("attributes") else {}
    attributes |= {name: plain(one[name]) for name in names - set(_KNOWN)}
    text = one.get("text")
    about = json.dumps([item_id, text, attributes], ensure_ascii=False, sort_keys=True)
    item = Item(
        id=item_id,
        modality=modality,
        uri=one.get("uri") or item_id,
        text=text,
        language=one.get("language") or (UNDETERMINED if text is not None else None),
        image_id=one.get("image_id"),
        label=one.get("label"),
        attributes=attributes,
        content_hash=one.get("content_hash") or hashlib.sha256(about.encode()).hexdigest(),
    )
    return NewRow(
        record=one.get("record") or item.image_id or item_id,
        item=item,
        thumbnail=one.get("thumbnail"),
        values=values_of(attributes, fields)[0],
        picture=Picture(**one["picture"]) if one.get("picture") else None,
        texts=tuple(one["texts"]) if one.get("texts") else None,
    )


def plain(value: Any) -> Any:
    """A cell as JSON can hold it."""
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    return str(value)
