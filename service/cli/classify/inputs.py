"""What `diptych classify` is pointed at: single files and whole sources, as one stream of rows.

A file named on the command line may be anything that can be read; folders, shards and manifests are
read by `models.sources`, which says what it passes over. Decoding is not done here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote_to_bytes

import click

from models.errors import InvalidLabelsError
from models.sources import is_source, open_source
from models.sources.files import file_uri
from models.sources.records import Plan, Record, Reject, Row, Source


class FileSource(Source):
    """Pictures named one by one; a missing one is a reject, not the end of the run."""

    kind = "file"

    def __init__(self, name: str) -> None:
        self.name = name

    def count(self) -> int:
        return 1

    def plan(self) -> Plan:
        try:
            size = Path(self.name).stat().st_size
        except OSError:
            size = 0
        return Plan(rows=1, pictures=1, picture_bytes=size, source_bytes=size, exact=True)

    def __iter__(self) -> Iterator[Row]:
        from models.images.decode import ImageLimits

        # one byte more than allowed is enough for the decoder to refuse it
        limit = ImageLimits().max_bytes + 1
        path = Path(self.name)
        try:
            if not path.is_file():
                # a FIFO would block for ever
                yield Reject(self.name, self.name, "image-unreadable", "not a file")
                return
            with path.open("rb") as file:
                data = file.read(limit)
        except OSError as error:
            detail = f"cannot be read: {error.strerror}"
            yield Reject(self.name, self.name, "image-unreadable", detail)
            return
        absolute = os.path.abspath(self.name)  # noqa: PTH100  # without following links
        yield Record(self.name, file_uri(os.fsencode(absolute)), data)


def open_inputs(specs: Sequence[str], label_field: str | None = None) -> list[Source]:
    """A source for each argument.

    Raises:
        SourceError: shards or a manifest that cannot be opened.
    """
    return [
        open_source(spec, label_field=label_field) if is_source(spec) else FileSource(spec)
        for spec in specs
    ]


def display(source: Source, key: str) -> str:
    """What a picture is called in results: its path where it has one of its own."""
    return str(Path(source.name) / key) if source.keys_are_paths else key


def own_file(record: Record) -> Path | None:
    """The file a record is all of; None for a member of an archive."""
    if not record.uri.startswith("file://") or "#" in record.uri:
        return None
    return Path(os.fsdecode(unquote_to_bytes(record.uri.removeprefix("file://"))))


def member_name(record: Record) -> str:
    """What an archive calls a member, without its folders."""
    member = record.uri.partition("#")[2] or record.key
    return unquote_to_bytes(member).decode("utf-8", "backslashreplace").rpartition("/")[2]


def label_of(record: Record) -> str | None:
    """The class a source gives a picture: its label, or the name of the folder it is in."""
    if record.label is not None:
        return record.label.strip()
    folder, _, _ = record.key.rpartition("/")
    return folder.rpartition("/")[2] or None


def read_labels(labels: str | None, labels_file: Path | None) -> list[str]:
    """The labels of `--labels` or `--labels-file`.

    Raises:
        InvalidLabelsError: the file is not UTF-8.
    """
    if labels is not None:
        return [label.strip() for label in labels.split(",")]
    assert labels_file is not None, "one of the two is given"
    try:
        text = labels_file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidLabelsError(f"{labels_file} is not UTF-8") from None
    except OSError as error:
        raise click.UsageError(f"cannot read {labels_file}: {error.strerror}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
