"""The engines that `diptych serve` answers with: indexes opened, pairs loaded, one engine an index.

`serve.startup` calls it, once the address is bound and before anything is answered.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from models.errors import DiptychError
from service.cli.options import ModelOptions

if TYPE_CHECKING:
    from indexer.search.holder import SnapshotHolder
    from indexer.search.snapshot import Snapshot
    from indexer.store.sweep import Keeping
    from service.engine.engine import Engine
    from service.engine.explanations import Decode
    from service.engine.item_writer import ItemWriter
    from service.engine.label_set_store import LabelSetStore
    from service.engine.queries import FilePaths

_STOP_S: Final = 5.0
"""For the batches still under way once no request is."""


def open_engines(
    paths: Mapping[str, Path],
    pair: ModelOptions,
    label_sets: LabelSetStore,
    closing: ExitStack,
    *,
    writable: Keeping | None,
    file_paths: FilePaths,
    tell: Callable[[str], None],
) -> list[Engine]:
    """An engine for each index by name, warm and, where asked for, able to write.

    Args:
        writable: which versions their writes leave; None where callers may not write.
        closing: closes what was opened, in reverse.
        file_paths: how much callers are told of where files lie.
        tell: told what is waited for.

    Raises:
        DiptychError: an index or a pair that cannot be had; the message names the index.
    """
    engines: dict[str, Engine] = {}
    # without binding first: verifying the files is quick, loading a model is not
    holders = _open(paths, engines, closing)
    for engine in _engines(holders, label_sets, pair, closing, tell):
        engine.file_paths = file_paths
        if writable is not None:
            engine.writer = _writer(engine, paths[engine.name], writable)
        engine.warm_up()  # here, where a failure becomes one line
        engines[engine.name] = engine
    return [*engines.values()]


def _open(
    paths: Mapping[str, Path], engines: dict[str, Engine], closing: ExitStack
) -> dict[str, SnapshotHolder]:
    """The indexes; a version that comes later is tried out by its engine before it is used."""
    from indexer.search.holder import SnapshotHolder

    def trial(name: str) -> Callable[[Snapshot], None]:
        def try_out(snapshot: Snapshot) -> None:
            if name in engines:
                engines[name].try_out(snapshot)

        return try_out

    holders = {}
    for name, path in paths.items():
        try:
            holders[name] = closing.enter_context(
                SnapshotHolder(path, fingerprint=None, warm=trial(name))
            )
        except DiptychError as error:
            error.message = f"index {name}: {error.message}"
            raise
    return holders


def _engines(
    holders: dict[str, SnapshotHolder],
    label_sets: LabelSetStore,
    pair: ModelOptions,
    closing: ExitStack,
    tell: Callable[[str], None],
) -> list[Engine]:
    """An engine per index; indexes of one encoder pair share it, and its batches."""
    from service.engine.engine import Engine
    from service.engine.retrieval import BatchedSearch
    from service.engine.shared_encoder import BatchingEncoder

    decode = _decoders(closing)
    searches = BatchedSearch()
    closing.callback(searches.stop, _STOP_S)
    loaded: dict[str, BatchingEncoder] = {}
    engines = []
    for name, holder in holders.items():
        with holder.use() as snapshot:
            built_with = snapshot.fingerprint
        # with --model all share that one, and an index of another pair refuses it below
        key = pair.model or built_with.digest
        if key not in loaded:
            name_of_pair = pair.model or built_with.model
            tell(f"Loading {name_of_pair} ...")
            loaded[key] = BatchingEncoder(pair.load(name_of_pair))
            closing.callback(loaded[key].stop, _STOP_S)
        try:
            engines.append(
                Engine(
                    loaded[key],
                    holder,
                    name=name,
                    label_sets=label_sets,
                    searches=searches,
                    decode=decode,
                )
            )
        except DiptychError as error:
            error.message = f"index {name}: {error.message}"
            raise
    return engines


def _decoders(closing: ExitStack) -> Decode:
    """Processes that decode callers' pictures; their pixels never enter through this one."""
    from models.images.pool import DecodePool
    from service.engine import deadline
    from service.operations import metrics

    pool = closing.enter_context(
        DecodePool(
            min(4, os.cpu_count() or 1),
            on_restart=lambda reason: metrics.DECODE_RESTARTS.labels(reason).inc(),
        )
    )
    return lambda data: pool.decode(data, wait_s=deadline.left())


def _writer(engine: Engine, path: Path, keeping: Keeping) -> ItemWriter:
    from indexer.ingest.options import BuildOptions
    from indexer.maintain.edit import Editor
    from service.engine.item_writer import ItemWriter

    assert engine.holder is not None, "what is served from a directory has one"
    # an index that was built without a background goes on without
    options = BuildOptions(relevance=False, keeping=keeping)
    editor = Editor(path, engine.encoder, options=options)
    return ItemWriter(editor, engine.holder, engine.name)
