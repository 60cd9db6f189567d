"""Diptych's Python API: search and sort pictures by meaning from a notebook or another program.

    import diptych

    diptych.build_index("~/Pictures", "photos.index")
    index = diptych.open_index("photos.index")
    for hit in index.search("a dog on the beach", k=5):
        print(f"{hit.score:.3f}", hit.uri)

One file of lazy names: each is imported from its home when it is first used, so that `import
diptych` loads neither torch nor FAISS. docs/python.md teaches it in ten examples.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indexer.filters.declared import Field, parse_fields
    from indexer.ingest.options import BuildOptions, BuildReport
    from indexer.search.options import SearchOptions
    from indexer.search.reader import Hit, Item
    from models.encoder import Encoder
    from models.encoders.registry import load_encoder
    from models.errors import DiptychError
    from models.sources import open_source
    from models.sources.fields import ReadOptions
    from models.sources.records import Record, Reject, Source
    from service.engine.engine import Engine
    from service.engine.experiments import evaluate, train
    from service.engine.library import Index, build_index, classify, open_index
    from service.engine.queries import (
        ComposedQuery,
        EmbeddingQuery,
        ImageQuery,
        ImageResult,
        ItemQuery,
        TextQuery,
        Weighted,
    )

_HOMES = {
    "indexer.filters.declared": ("Field", "parse_fields"),
    "indexer.ingest.options": ("BuildOptions", "BuildReport"),
    "indexer.search.options": ("SearchOptions",),
    "indexer.search.reader": ("Hit", "Item"),
    "models.encoder": ("Encoder",),
    "models.encoders.registry": ("load_encoder",),
    "models.errors": ("DiptychError",),
    "models.sources": ("open_source",),
    "models.sources.fields": ("ReadOptions",),
    "models.sources.records": ("Record", "Reject", "Source"),
    "service.engine.engine": ("Engine",),
    "service.engine.experiments": ("evaluate", "train"),
    "service.engine.library": ("Index", "build_index", "classify", "open_index"),
    "service.engine.queries": (
        "ComposedQuery", "EmbeddingQuery", "ImageQuery", "ImageResult", "ItemQuery", "TextQuery",
        "Weighted",
    ),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BuildOptions",
    "BuildReport",
    "ComposedQuery",
    "DiptychError",
    "EmbeddingQuery",
    "Encoder",
    "Engine",
    "Field",
    "Hit",
    "ImageQuery",
    "ImageResult",
    "Index",
    "Item",
    "ItemQuery",
    "ReadOptions",
    "Record",
    "Reject",
    "SearchOptions",
    "Source",
    "TextQuery",
    "Weighted",
    "build_index",
    "classify",
    "evaluate",
    "load_encoder",
    "open_index",
    "open_source",
    "parse_fields",
    "train",
]


def __getattr__(name: str) -> Any:
    try:
        home = _HOME_OF[name]
    except KeyError:
        raise AttributeError(f"module 'diptych' has no attribute {name!r}") from None
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__"]
