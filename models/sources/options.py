"""How sources are read: which field is what, which files count, where pictures may lie.

One value for all readers, so that a command's options mean the same for every kind of source. It
knows no reader; each takes what concerns it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Fetch: TypeAlias = Callable[[str], bytes]
"""URL -> the picture's bytes; raises `models.sources.files.FileRefusedError` to refuse one."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """See `models.sources.open_source` for the fields."""

    text_fields: tuple[str, ...] = ()
    label_field: str | None = None
    image_field: str | None = None
    id_field: str | None = None
    attribute_fields: tuple[str, ...] | None = None
    column_types: Mapping[str, str] = field(default_factory=dict)
    root: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    fetch: Fetch | None = None
