"""Whether a table's columns hold anything to read, told before a million rows are refused."""

from __future__ import annotations

from collections.abc import Sequence

from models.data.fields import CAPTION_KEYS, tagged_path
from models.data.manifest_rows import NO_IMAGE, PICTURE_KEYS
from models.data.options import ReadOptions
from models.errors import SourceError


def check_columns(path: str, names: Sequence[str], options: ReadOptions) -> None:
    """Refuse a table without a column that was named, or with nothing to index.

    Raises:
        SourceError: `column-missing`.
    """
    image = (options.image_field or "").removeprefix("base64=")
    wanted = [tagged_path(text)[1] for text in options.text_fields]
    wanted += [name for name in (options.label_field, options.id_field, image) if name]
    for name in wanted:
        if name != NO_IMAGE and name not in names and name.partition(".")[0] not in names:
            raise SourceError(
                f"{path} has no column {name!r}",
                code="column-missing",
                hint=f"its columns are {_listed(names)}",
            )
    readable = {*PICTURE_KEYS, *CAPTION_KEYS, *wanted}
    if readable.isdisjoint(names) and not wanted:
        raise SourceError(
            f"none of the columns of {path} is known to hold pictures or captions",
            code="column-missing",
            hint=f"name one of {_listed(names)} as the picture's or the text's field",
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20])[:300]
    return shown if len(names) <= 20 else f"{shown}, ..."
