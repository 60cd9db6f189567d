"""Diptych as a library: what `diptych.py` hands out and notebooks and other programs call.

The same use cases that HTTP and the command line drive, taking what a Python program has in hand:
texts, paths, PIL images, vectors, names of models and sources. Nothing here prints; what is wrong
is raised from `models.errors`. torch and FAISS are imported when something is loaded or opened.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeGuard, cast

import numpy as np

from indexer.search.options import DEFAULTS, SearchOptions
from models.environment import default_model
from models.errors import IndexNotFoundError, InputError
from service.engine.queries import (
    ComposedQuery,
    EmbeddingQuery,
    ImageQuery,
    ItemQuery,
    SearchQuery,
    TextQuery,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from indexer.ingest.options import BuildOptions, BuildProgress, BuildReport, DeferredEncoder
    from indexer.search.reader import Facet, Hit, IndexInfo, IndexReader, Item
    from indexer.search.snapshot import Snapshot
    from models.encoder import Encoder
    from models.sources.records import Source
    from models.vectors import Vectors
    from service.engine.engine import Engine
    from service.engine.queries import ImageResult, SearchAnswer

ImageLike: TypeAlias = "bytes | os.PathLike[str] | Image"
"""A picture: encoded bytes, the path of a file, or a PIL image of any mode."""
QueryLike: TypeAlias = "str | ImageLike | Sequence[float] | Vectors | SearchQuery"
"""A query: a text (`str`), a picture, a vector, or one of the engine's queries as it is."""
SourceLike: TypeAlias = "str | os.PathLike[str] | Source"
"""What `models.sources.open_source` takes, or a source that was opened already."""


class Index:
    """An index on disk, opened for reading: search it, look items up, ask what it holds.

    It answers from the version that was current when it was opened, however many are written
    beside it; `reload` takes up the newest. Safe to use from several threads. Close it, or use it
    as a context manager. The encoder pair is loaded by the first call that embeds something.

    Raises:
        IndexNotFoundError, IndexCorruptError: there is no index, or it is damaged.
        EncoderMismatchError: on the first search, if `encoder` is not the pair of this index.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        encoder: Encoder | None = None,
        model: str | None = None,
        **loading: Any,
    ) -> None:
        """See `open_index`."""
        self.path = Path(path).expanduser()
        self._given = encoder
        self._model = model
        self._loading = loading
        self._engine: Engine | None = None
        self._snapshot = self._opened()

    def _opened(self) -> Snapshot:
        from indexer.search.snapshot import open_snapshot

        return open_snapshot(self.path, fingerprint=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """How many live pictures and texts it holds."""
        info = self.info()
        return info.images + info.texts

    def __repr__(self) -> str:
        return f"<diptych.Index {str(self.path)!r} version {self.version}>"

    def close(self) -> None:
        """Let go of the files. A closed index answers nothing more."""
        self._snapshot.close()

    def reload(self) -> None:
        """Take up the version that is newest now."""
        newer = self._opened()
        older, self._snapshot, self._engine = self._snapshot, newer, None
        older.close()

    @property
    def version(self) -> int:
        return self._snapshot.version

    @property
    def reader(self) -> IndexReader:
        """The opened version, for what this class does not offer (vectors in, hits out)."""
        return self._snapshot

    @property
    def encoder(self) -> Encoder:
        """The pair this index was built with; loaded now if it was not yet.

        Raises:
            ModelError: it cannot be loaded.
        """
        if self._given is None:
            from models.encoders.registry import load_encoder

            self._given = load_encoder(
                self._model or self._snapshot.fingerprint.model, **self._loading
            )
        return self._given

    @property
    def engine(self) -> Engine:
        """The use cases over this index and its pair: explanations, label sets, embeddings."""
        if self._engine is None:
            from service.engine.engine import Engine

            self._engine = Engine(self.encoder, self._snapshot)
        return self._engine

    def search(
        self, query: QueryLike, options: SearchOptions = DEFAULTS, **changes: Any
    ) -> list[Hit]:
        """The items closest to a query, best first.

            index.search("a dog on the beach", k=5)
            index.search(Path("query.jpg"), target="texts", min_score=0.2)

        Args:
            query: a text, a picture (`Path`, bytes or PIL image), a vector [D], or a query of
                `service.engine.queries`, such as `ItemQuery("id")` or a `ComposedQuery`.
            options: how to search.
            changes: fields of `SearchOptions` that differ from `options`; `filter` may be the
                filter's JSON document.

        Returns:
            Hits with `score` (the cosine), `id`, `uri`, `text` and the whole `item`.

        Raises:
            InputError, InvalidTextError, InvalidVectorError, InvalidFilterError, ImageError,
            NotFoundError, ModelError, EncoderMismatchError: what was asked, or the pair, cannot be
            used.
        """
        return list(self.answer(query, options, **changes).hits)

    def answer(
        self, query: QueryLike, options: SearchOptions = DEFAULTS, **changes: Any
    ) -> SearchAnswer:
        """`search` with all that is known about the hits: relevance, timings, the version."""
        if isinstance(changes.get("filter"), Mapping):
            from indexer.filters.language import parse_filter

            changes["filter"] = parse_filter(changes["filter"])
        return self.engine.search(as_query(query), _changed(options, changes))

    def item(self, item_id: str) -> Item:
        """An item by its id. Raises NotFoundError."""
        return self._snapshot.item(item_id)

    def vector(self, item_id: str) -> Vectors:
        """An item's stored embedding, float32 [D], unit length. Raises NotFoundError."""
        return self._snapshot.vector(item_id)

    def thumbnail(self, item_id: str) -> bytes:
        """A picture's thumbnail as JPEG. Raises NotFoundError."""
        return self._snapshot.thumbnail(item_id)

    def captions(self, image_id: str) -> list[Item]:
        """The texts that belong to a picture, in source order."""
        return self._snapshot.captions(image_id)

    def facets(self) -> Sequence[Facet]:
        """The values of the filterable fields."""
        return self._snapshot.facets()

    def info(self) -> IndexInfo:
        """Counts, size, model, fields, search structures."""
        return self._snapshot.info()


def open_index(
    path: str | os.PathLike[str],
    *,
    encoder: Encoder | None = None,
    model: str | None = None,
    **loading: Any,
) -> Index:
    """Open an index for searching.

    Args:
        path: the index's directory.
        encoder: a pair that is loaded already; several indexes can share one.
        model: load this pair instead of the one the index names; it has to be the same pair.
        loading: `device`, `precision`, `threads`, `backend` of `load_encoder`.

    Raises:
        IndexNotFoundError, IndexCorruptError, StoreError: there is no index, or it is damaged.
    """
    return Index(path, encoder=encoder, model=model, **loading)


def build_index(
    sources: SourceLike | Iterable[SourceLike],
    out: str | os.PathLike[str],
    *,
    encoder: Encoder | None = None,
    model: str | None = None,
    options: BuildOptions | None = None,
    reading: Mapping[str, Any] | None = None,
    on_progress: Callable[[BuildProgress], None] | None = None,
    **loading: Any,
) -> BuildReport:
    """Index the pictures and captions of sources, or bring an index up to date.

    Runs as `diptych index build` does: what is in the index already is skipped, a killed run goes
    on where it was, refused records are listed in a file beside the index and counted.

    Args:
        sources: a folder, shards, a manifest, or several of them; see `open_source`.
        out: a new or an existing index.
        encoder: a loaded pair; or name one with `model`. Neither: the pair of an existing index,
            otherwise the default one.
        options: batch size, declared fields, captions, mirroring, ...
        reading: fields of `ReadOptions`, such as `{"text_fields": ("caption",)}`.
        on_progress: told now and then what was done so far.
        loading: `device`, `precision`, `threads`, `backend` of `load_encoder`.

    Raises:
        InputError, SourceError, EncoderMismatchError, IndexLockedError, IndexCorruptError,
        NoSpaceError, StoreError: as `indexer.ingest.build.build_index`.
    """
    from indexer.ingest.build import build_index as build
    from indexer.ingest.options import BuildOptions

    options = options or BuildOptions()
    read = dict(reading or {})
    # a CSV's cells are text but where a field was declared
    read.setdefault("column_types", {field.path: field.type for field in options.fields or ()})
    opened = opened_sources(sources, **read)
    path = Path(out).expanduser()
    if encoder is not None:
        return build(opened, path, encoder, options=options, on_progress=on_progress)
    _, pair = encoder_for(path, model, lambda name: load_pair(name, loading))
    return build(opened, path, pair, options=options, on_progress=on_progress)


def encoder_for(
    path: Path, model: str | None, load: Callable[[str], Encoder]
) -> tuple[str, Encoder | DeferredEncoder]:
    """The name of the pair to build an index with, and the pair.

    That of an existing index is loaded only if there is something to embed.

    Args:
        path: the index, which may not exist yet.
        model: what the caller named; None for the index's own, or the default one.
        load: loads the pair of a name.
    """
    from indexer.ingest.options import DeferredEncoder
    from indexer.search.snapshot import read_fingerprint

    try:
        stored = read_fingerprint(path)
    except IndexNotFoundError:
        name = model or default_model()
        return name, load(name)
    if model is not None and model != stored.model:  # another name may be another model
        return model, load(model)
    return stored.model, DeferredEncoder(stored, lambda: load(stored.model))


def classify(
    images: ImageLike | Iterable[ImageLike],
    labels: Sequence[str],
    *,
    encoder: Encoder | None = None,
    model: str | None = None,
    top_k: int | None = None,
    loading: Mapping[str, Any] | None = None,
    **label_set: Any,
) -> list[ImageResult]:
    """Score pictures against labels you name, without training.

        for result in diptych.classify([Path("a.jpg"), Path("b.jpg")], ["a cat", "a dog"]):
            print(result.predictions[0].label)

    Args:
        images: pictures, or one of them.
        labels: 2 to 1000 distinct names; paths such as `animal/cat` make a tree.
        encoder: a loaded pair; or name one with `model` (and `loading`, as `load_encoder` takes).
        top_k: keep only the most likely labels.
        label_set: `templates`, `template_set`, `multi_label`, `abstain`, `temperature` and the
            others of `service.engine.label_sets.check_label_set`.

    Returns:
        One result per picture; one that cannot be decoded carries its error.

    Raises:
        InvalidLabelsError: labels, templates or the template set.
        InputError: a file cannot be read.
    """
    from service.engine.engine import Engine
    from service.engine.label_sets import check_label_set

    wanted = check_label_set(labels, **label_set)
    several = [images] if _is_image(images) else list(cast("Iterable[ImageLike]", images))
    engine = Engine(encoder or load_pair(model, loading))
    results: list[ImageResult] = []
    for at in range(0, len(several), _PICTURES_AT_ONCE):
        data = [as_image(one) for one in several[at : at + _PICTURES_AT_ONCE]]
        results.extend(engine.classifier.classify(data, wanted, top_k=top_k).results)
    return results


_PICTURES_AT_ONCE = 32


def as_query(query: QueryLike) -> SearchQuery:
    """The engine's query for whatever a program has in hand.

    Raises:
        InputError: it is none of the kinds that can be asked for, or a file cannot be read.
    """
    if isinstance(query, TextQuery | ImageQuery | ItemQuery | EmbeddingQuery | ComposedQuery):
        return query
    if isinstance(query, str):
        return TextQuery(query)
    if _is_image(query):
        return ImageQuery(as_image(query))
    try:
        vector_D = np.asarray(query, dtype=np.float32)
    except (TypeError, ValueError):
        vector_D = np.zeros((0, 0), dtype=np.float32)
    if vector_D.ndim != 1:
        raise InputError(
            f"cannot search by {type(query).__name__}",
            hint="give a text, a Path, encoded bytes, a PIL image, or a vector [D]",
        )
    return EmbeddingQuery(vector_D.tolist())


def as_image(image: ImageLike) -> bytes:
    """The encoded bytes of a picture; a PIL image becomes a PNG, upright and in sRGB.

    Raises:
        InputError: the file cannot be read.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, os.PathLike):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {image}: {error.strerror}") from error
    from models.images.decode import over_white, to_srgb, upright

    buffer = io.BytesIO()
    # quickly rather than small: the bytes are decoded again in the next moment
    over_white(*upright(image, *to_srgb(image))).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def opened_sources(sources: SourceLike | Iterable[SourceLike], **reading: Any) -> list[Source]:
    """Sources by name opened, opened ones as they are.

    Raises:
        SourceError: as `open_source`.
    """
    from models.sources import open_source
    from models.sources.records import Source

    several = [sources] if isinstance(sources, str | os.PathLike | Source) else sources
    return [
        one if isinstance(one, Source) else open_source(_at_home(os.fspath(one)), **reading)
        for one in several
    ]


def _at_home(spec: str) -> str:
    """`~` is the shell's to expand, and there is none between a program and us."""
    return str(Path(spec).expanduser()) if spec.startswith("~") else spec


def _is_image(value: object) -> TypeGuard[ImageLike]:
    if isinstance(value, bytes | os.PathLike):
        return True
    return type(value).__module__.startswith("PIL.")


def load_pair(model: str | None, loading: Mapping[str, Any] | None) -> Encoder:
    """The pair of a name, the default one for None. Raises ModelError."""
    from models.encoders.registry import load_encoder

    return load_encoder(model or default_model(), **(loading or {}))


def _changed(options: SearchOptions, changes: dict[str, Any]) -> SearchOptions:
    try:
        return replace(options, **changes)
    except TypeError as error:
        known = ", ".join(SearchOptions.__dataclass_fields__)
        raise InputError(f"{error}", hint=f"a search takes {known}") from None
