"""The small index of colours behind a service that may write it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fakes import ColourEncoder
from starlette.testclient import TestClient

from indexer.ingest.options import BuildOptions
from indexer.maintain.edit import Editor
from indexer.search.holder import SnapshotHolder
from service.engine.engine import Engine
from service.engine.item_writer import ItemWriter
from service.engine.shared_encoder import BatchingEncoder
from service.http.app import ServiceSettings, create_app


@contextmanager
def writable_client(
    path: Path, settings: ServiceSettings | None = None, *, patience_s: float = 1.0
) -> Iterator[TestClient]:
    # no watcher: what is seen after a write is seen because of the write
    settings = settings or ServiceSettings(poll_s=0)
    encoder = BatchingEncoder(ColourEncoder())
    with SnapshotHolder(path, fingerprint=None) as holder:
        engine = Engine(encoder, holder)
        editor = Editor(path, encoder, options=BuildOptions(relevance=False))
        engine.writer = ItemWriter(editor, holder, engine.name, patience_s=patience_s)
        try:
            with TestClient(create_app(engine, settings)) as client:
                yield client
        finally:
            encoder.stop(5)
