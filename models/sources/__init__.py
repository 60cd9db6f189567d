"""Image-text sources, read once for everyone: training, evaluation and the index builder.

`open_source` tells what a specification names and returns the reader. Readers yield `Record` or
`Reject` in a stable order and never decode pictures. What each kind looks like: docs/sources.md.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from models.errors import SourceError
from models.sources.coco import CocoFormat
from models.sources.csv_rows import CsvFormat
from models.sources.files import expand_shards
from models.sources.folder import FolderSource
from models.sources.json_manifests import json_format
from models.sources.jsonl import JsonlFormat, ListFormat, StdinSource
from models.sources.manifest import Format, ManifestSource
from models.sources.options import Fetch, ReadOptions
from models.sources.parquet import ParquetFormat
from models.sources.records import UNDETERMINED, Plan, Record, Reject, Row, Source
from models.sources.tar import TarSource

__all__ = [
    "UNDETERMINED",
    "Fetch",
    "Plan",
    "ReadOptions",
    "Record",
    "Reject",
    "Row",
    "Source",
    "is_source",
    "open_source",
]

KINDS: Final = (
    "a folder of pictures, .tar shards (shard-{00000..00012}.tar), a .jsonl, .csv, .tsv, .parquet, "
    ".json (COCO, Karpathy) or .txt manifest, or - for JSON lines on standard input"
)
_ARCHIVES: Final = (".tar", ".tgz", ".txz", ".tbz2", ".tzst")
_MANIFESTS: Final = (
    ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".pq", ".json", ".txt"
)  # fmt: skip


def open_source(
    spec: str,
    *,
    text_field: str | Sequence[str] | None = None,
    label_field: str | None = None,
    image_field: str | None = None,
    id_field: str | None = None,
    attribute_fields: Sequence[str] | None = None,
    column_types: Mapping[str, str] | None = None,
    root: str | Path | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    fetch: Fetch | None = None,
) -> Source:
    """The reader of a source.

    Args:
        spec: a folder; `.tar` shards; a `.jsonl`, `.csv`, `.tsv`, `.parquet`, `.json` or `.txt`
            manifest; `-`. Shards and manifests may be brace ranges, or several joined by `::`;
            `dataset.json#test` takes one split (`#train,restval` several) of Karpathy's JSON.
        text_field: dotted path of the captions, e.g. `captions.en` or `names.0`; or several, each
            optionally with its language: `["en=title", "zh=title_zh"]`.
        label_field: dotted path of the class, e.g. `label`.
        image_field: of a manifest: what holds the picture: a path, bytes, or (written
            `base64=FIELD`) base64. `-` for rows without pictures.
        id_field: of a manifest: what becomes the key.
        attribute_fields: which other fields to keep; None keeps all.
        column_types: of a CSV: which cells are `int`, `float`, `bool` or `str[]` instead of text.
        root: of a manifest: the folder that its paths start from and must stay in, instead of its
            own (of standard input: the working directory).
        include, exclude: of a folder: patterns, see `models.sources.globs`.
        fetch: what gets pictures that are URLs; without it each is a reject, `url-not-allowed`.

    Raises:
        SourceError: the source does not exist or is of no kind that is read here.
    """
    options = ReadOptions(
        text_fields=(text_field,) if isinstance(text_field, str) else tuple(text_field or ()),
        label_field=label_field,
        image_field=image_field,
        id_field=id_field,
        attribute_fields=None if attribute_fields is None else tuple(attribute_fields),
        column_types=dict(column_types or {}),
        root=None if root is None else str(root),
        include=tuple(include),
        exclude=tuple(exclude),
        fetch=fetch,
    )
    if spec == "-":
        return StdinSource(options)
    if any(part.strip().lower().startswith("pipe:") for part in spec.split("::")):
        raise SourceError("pipe: sources run shell commands and are never read", code="not-allowed")
    path, splits = _without_split(spec)
    files = expand_shards(path)
    if "\0" in spec:
        raise SourceError("a source name holds a NUL character")
    if "://" in spec:
        raise SourceError(
            f"{spec!r} is a URL; only local sources are read",
            code="url-not-allowed",
            hint="download it, or put the URLs of pictures into a manifest",
        )
    try:
        modes = [Path(file).stat().st_mode for file in files]
    except OSError as error:
        raise SourceError(f"cannot read {error.filename}: {error.strerror}") from error
    if len(files) == 1 and stat.S_ISDIR(modes[0]):
        return FolderSource(spec, options)
    if all(_is_archive(file) for file in files):
        return TarSource(files, options, name=spec)
    suffixes = {Path(file).suffix.lower() for file in files}
    if len(suffixes) == 1 and suffixes <= set(_MANIFESTS):
        form = _format(suffixes.pop(), files[0], splits, options)
        return ManifestSource(form, files, name=spec, options=options)
    raise SourceError(f"{spec!r} is not a source that can be read", hint=f"name {KINDS}")


def is_source(spec: str) -> bool:
    """Whether a name is one of a source, judged by its spelling and whether it is a folder."""
    if spec == "-" or "::" in spec or Path(spec).is_dir():
        return True
    path = _without_split(spec)[0]
    return _is_archive(path) or Path(path).suffix.lower() in _MANIFESTS


def _format(suffix: str, path: str, splits: tuple[str, ...], options: ReadOptions) -> Format:
    if suffix == ".json":
        return json_format(path, splits, CocoFormat())
    if suffix in (".csv", ".tsv"):
        return CsvFormat(options)
    if suffix in (".parquet", ".pq"):
        return ParquetFormat(options)
    return ListFormat() if suffix == ".txt" else JsonlFormat()


def _without_split(spec: str) -> tuple[str, tuple[str, ...]]:
    """(path, splits) of `dataset.json#train,restval`; a file of that whole name goes first."""
    path, mark, splits = spec.rpartition("#")
    if not mark or not path.lower().endswith(".json") or Path(spec).exists():
        return spec, ()
    return path, tuple(part.strip() for part in splits.split(",") if part.strip())


def _is_archive(file: str) -> bool:
    path = Path(file)
    return ".tar" in path.suffixes or path.suffix.lower() in _ARCHIVES
