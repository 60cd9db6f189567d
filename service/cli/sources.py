"""The options that say how sources are read, and the sources opened with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from service.cli.options import option

if TYPE_CHECKING:
    from models.sources import Source

F = TypeVar("F", bound=Callable[..., Any])

SOURCES = (
    "A SOURCE is a folder, .tar shards, a .jsonl, .csv, .tsv, .parquet, .json (COCO, Karpathy) or "
    ".txt manifest, or - for JSON lines on standard input."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How sources are read; `open` makes sources of names."""

    text_fields: tuple[str, ...] = option(
        "--text-field",
        multiple=True,
        metavar="[LANG=]FIELD",
        help="Where the captions are, a dotted path such as captions.en; repeatable.",
    )
    label_field: str | None = option("--label-field", help="Dotted path of the label, e.g. label.")
    image_field: str | None = option(
        "--image-field",
        metavar="[base64=]FIELD",
        help="Of a manifest: what holds the picture, a path or its bytes; - for texts alone.",
    )
    id_field: str | None = option("--id-field", help="Of a manifest: what becomes the id.")
    attributes: tuple[str, ...] = option(
        "--attribute",
        multiple=True,
        metavar="FIELD",
        help="Keep this field of a record, and no other but those named so; repeatable.",
    )
    root: Path | None = option(
        "--root",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Of a manifest: the folder its paths start from and must stay in. "
        "[default: the manifest's own]",
    )
    include: tuple[str, ...] = option(
        "--include",
        multiple=True,
        metavar="GLOB",
        help="Of a folder: only files like this, e.g. '2026/**/*.jpg'; repeatable.",
    )
    exclude: tuple[str, ...] = option(
        "--exclude", multiple=True, metavar="GLOB", help="Of a folder: but these; repeatable."
    )
    allow_urls: bool = option(
        "--allow-urls",
        is_flag=True,
        help="Fetch pictures that a manifest names by http(s) address, public ones only.",
    )

    def with_text_fields(self, fields: Sequence[str]) -> Reading:
        """The same, with captions in other fields."""
        return replace(self, text_fields=tuple(fields))

    def open(
        self,
        specs: Sequence[str],
        *,
        column_types: Mapping[str, str] | None = None,
        prefix: str | None = None,
    ) -> list[Source]:
        """The readers of the sources.

        Args:
            column_types: of a CSV's cells that are not text.
            prefix: what every id begins with.

        Raises:
            SourceError: a source does not exist or is of no kind that is read here.
        """
        from models.sources import ReadOptions, open_source

        options = ReadOptions(
            text_field=self.text_fields,
            label_field=self.label_field,
            image_field=self.image_field,
            id_field=self.id_field,
            attribute_fields=self.attributes or None,
            column_types=column_types or {},
            root=self.root,
            include=self.include,
            exclude=self.exclude,
            prefix=prefix,
            fetch=_fetcher() if self.allow_urls else None,
        )
        return [open_source(spec, options) for spec in specs]


def _fetcher() -> Callable[[str], bytes]:
    from models.errors import UrlError
    from models.sources.fetch import Fetcher
    from models.sources.records import RefusedError

    fetcher = Fetcher()

    def fetch(url: str) -> bytes:
        try:
            return fetcher.fetch(url)
        except UrlError as error:
            raise RefusedError(error.code, error.message) from error

    return fetch
