"""Image-text sources, read once for everyone: training, evaluation and the index builder.

`open_source` tells what a specification names and returns the reader. Readers yield `Record` or
`Reject` in a stable order and never decode pictures.
"""

from __future__ import annotations

import stat
from pathlib import Path

from models.data.folder import FolderSource
from models.data.jsonl import JsonlSource
from models.data.records import UNDETERMINED, Record, Reject, Row, Source
from models.data.tar import TarSource, expand_shards
from models.errors import SourceError

__all__ = ["UNDETERMINED", "Record", "Reject", "Row", "Source", "open_source"]

_KINDS = "a folder of pictures, .tar shards (shard-{00000..00012}.tar) or a .jsonl manifest"


def open_source(
    spec: str, *, text_field: str | None = None, label_field: str | None = None
) -> Source:
    """The reader of a source.

    Args:
        spec: a folder; a `.tar` shard, a brace range of shards, or several joined by `::`; a
            `.jsonl` or `.ndjson` manifest.
        text_field: dotted path of the captions, e.g. `captions.en` or `names.0`.
        label_field: dotted path of the class, e.g. `label`.

    Raises:
        SourceError: the source does not exist or is of no kind that is read here.
    """
    if spec.lstrip().startswith("pipe:"):
        raise SourceError("pipe: sources run shell commands and are never read", code="not-allowed")
    shards = expand_shards(spec)
    if "\0" in spec:
        raise SourceError("a source name holds a NUL character")
    if "://" in spec:
        raise SourceError(f"{spec!r} is a URL; only local sources are read")
    try:
        modes = [Path(shard).stat().st_mode for shard in shards]
    except OSError as error:
        raise SourceError(f"cannot read {error.filename}: {error.strerror}") from error
    if len(shards) == 1 and stat.S_ISDIR(modes[0]):
        return FolderSource(spec, text_field=text_field, label_field=label_field)
    if all(".tar" in Path(shard).suffixes or _is_archive(shard) for shard in shards):
        return TarSource(shards, name=spec, text_field=text_field, label_field=label_field)
    if len(shards) == 1 and Path(spec).suffix.lower() in (".jsonl", ".ndjson"):
        return JsonlSource(spec, text_field=text_field, label_field=label_field)
    raise SourceError(f"{spec!r} is not a source that can be read", hint=f"name {_KINDS}")


def _is_archive(shard: str) -> bool:
    return Path(shard).suffix.lower() in (".tar", ".tgz", ".txz", ".tbz2", ".tzst")
