"""Image-text sources, read once for everyone: training, evaluation and the index builder.

`open_source` tells what a specification names and returns the reader. Readers yield `Record` or
`Reject` in a stable order and never decode pictures. What each kind looks like: docs/sources.md.
A new format is a module of this folder and its line in `READERS`.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from models.errors import SourceError
from models.sources.csv_rows import CsvFormat
from models.sources.fields import Fetch, ReadOptions
from models.sources.files import expand_shards
from models.sources.folder import FolderSource
from models.sources.json_documents import json_format
from models.sources.jsonl import JsonlFormat, ListFormat, StdinSource
from models.sources.manifest import Format, ManifestSource
from models.sources.parquet import ParquetFormat
from models.sources.records import (
    UNDETERMINED,
    Plan,
    Prefixed,
    Record,
    Reject,
    Row,
    Source,
)
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

Reader: TypeAlias = Callable[[Sequence[str], str, ReadOptions], Source]
"""(files, what the user called them, options) -> the source."""


def manifest_reader(form: Callable[[str, ReadOptions], Format]) -> Reader:
    """A reader of manifests; the first of several tells the format of them all."""
    return lambda files, name, options: ManifestSource(
        form(files[0], options), files, name=name, options=options
    )


READERS: Final[Mapping[str, Reader]] = {
    ".tar": lambda files, name, options: TarSource(files, options, name=name),
    ".jsonl": manifest_reader(JsonlFormat),
    ".ndjson": manifest_reader(JsonlFormat),
    ".csv": manifest_reader(CsvFormat),
    ".tsv": manifest_reader(CsvFormat),
    ".parquet": manifest_reader(ParquetFormat),
    ".pq": manifest_reader(ParquetFormat),
    ".json": manifest_reader(json_format),
    ".txt": manifest_reader(ListFormat),
}
"""Who reads files of a suffix."""
KINDS: Final = (
    "a folder of pictures, .tar shards (shard-{00000..00012}.tar), a .jsonl, .csv, .tsv, .parquet, "
    ".json (COCO, Karpathy) or .txt manifest, or - for JSON lines on standard input"
)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_COMPRESSED_TARS: Final = (".tgz", ".txz", ".tbz2", ".tzst")


def open_source(spec: str, options: ReadOptions | None = None, **changes: Any) -> Source:
    """The reader of a source.

    Args:
        spec: a folder; `.tar` shards; a `.jsonl`, `.csv`, `.tsv`, `.parquet`, `.json` or `.txt`
            manifest; `-`. Shards and manifests may be brace ranges, or several joined by `::`;
            `dataset.json#test` takes one split (`#train,restval` several) of Karpathy's JSON.
        options: how to read it.
        changes: fields of `ReadOptions` that differ from `options`.

    Raises:
        SourceError: the source does not exist or is of no kind that is read here.
    """
    options = replace(options or ReadOptions(), **changes)
    source = _open(spec, options)
    if options.prefix is None:
        return source
    if not options.prefix.strip("/") or _CONTROL.search(options.prefix):
        raise SourceError(f"{options.prefix!r} cannot begin an id", code="bad-prefix")
    return Prefixed(source, options.prefix)


def _open(spec: str, options: ReadOptions) -> Source:
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
    suffixes = {_suffix(file) for file in files}
    reader = READERS.get(suffixes.pop()) if len(suffixes) == 1 else None
    if reader is None:
        raise SourceError(f"{spec!r} is not a source that can be read", hint=f"name {KINDS}")
    return reader(files, spec, replace(options, splits=splits or options.splits))


def is_source(spec: str) -> bool:
    """Whether a name is one of a source, judged by its spelling and whether it is a folder."""
    if spec == "-" or "::" in spec or Path(spec).is_dir():
        return True
    return _suffix(_without_split(spec)[0]) in READERS


def _without_split(spec: str) -> tuple[str, tuple[str, ...]]:
    """(path, splits) of `dataset.json#train,restval`; a file of that whole name goes first."""
    path, mark, splits = spec.rpartition("#")
    if not mark or not path.lower().endswith(".json") or Path(spec).exists():
        return spec, ()
    return path, tuple(part.strip() for part in splits.split(",") if part.strip())


def _suffix(file: str) -> str:
    """In lower case; `.tar` for every archive, also a compressed one, which the reader refuses."""
    path = Path(file)
    suffix = path.suffix.lower()
    return ".tar" if ".tar" in path.suffixes or suffix in _COMPRESSED_TARS else suffix
