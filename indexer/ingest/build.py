"""Build an index from sources, or bring one up to date: `build_index`, which everyone calls.

A version is committed every `segment_rows` pictures, and sooner where they are slow (`Pacing`).
Running the same command again embeds only what is new or changed, and a build that was killed goes
on where it was (its journal, `indexer.ingest.side_files`). What was deleted stays out unless it is
asked for. The stages are joined in `indexer.ingest.pipeline`. It prints nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final

from indexer.files.fs import Fs
from indexer.format.manifest import Operation
from indexer.format.version import OpenVersion, open_version
from indexer.ingest.options import (
    Build,
    BuildOptions,
    BuildProgress,
    BuildReport,
    DeferredEncoder,
    purpose,
)
from indexer.ingest.pipeline import Pipeline
from indexer.ingest.progress import Outcomes, Stages, Tally
from indexer.ingest.reader import KnownRecords, Mirror
from indexer.ingest.side_files import (
    Journal,
    Rejects,
    RejectsFile,
    Stamps,
    journal_path,
    rejects_path,
    require_ours,
    stamps_path,
)
from indexer.store.writer import IndexWriter
from models.encoder import Encoder
from models.errors import IndexCorruptError, InputError, StoreError
from models.sources.records import Source, total_count

__all__ = ["BuildOptions", "BuildProgress", "BuildReport", "build_index", "index_records"]

_DEFAULTS: Final = BuildOptions()
_PATIENCE_S: Final = 2.0
"""For the commits of others, when a build begins; later it waits as long as it takes."""


def build_index(
    sources: Sequence[Source],
    out: Path,
    encoder: Encoder | DeferredEncoder,
    *,
    options: BuildOptions = _DEFAULTS,
    on_progress: Callable[[BuildProgress], None] | None = None,
    operation: Operation = "build",
    fs: Fs | None = None,
) -> BuildReport:
    """Index every usable record of `sources` into `out`, a new or existing index.

    Records are told apart by key, across all sources. One whose content is in the index already is
    skipped without being decoded or embedded, and stored anew with its vectors where only its
    location changed; a changed one replaces its old rows, captions included, in the same commit.
    Others may write while it runs, between its commits; a record that they wrote or deleted stays
    as they left it. One that is refused leaves an older state of itself in place; so is one whose
    key the index has from another source with other content, unless `options.replace`.

    Raises:
        InputError: an option out of range, other fields than an existing index declares, or a
            mirror that would remove what it should not.
        SourceError: a source broke off; what was read before it is committed, nothing is mirrored.
        IndexLockedError: another writer had the index for seconds when this one began.
        EncoderMismatchError, IndexCorruptError, NoSpaceError, StoreError:
            see `indexer.store.writer.IndexWriter`. Versions committed before the failure stand.
    """
    if options.batch_size < 1 or options.segment_rows < 1 or options.thumbnail_side < 1:
        raise InputError("batch size, segment rows and thumbnail side must be at least 1")
    with IndexWriter(
        out,
        encoder.fingerprint,
        fields=options.fields,
        keeping=options.keeping,
        shared=True,
        patience=_PATIENCE_S,
        fs=fs,
    ) as writer:
        path = options.rejects or rejects_path(out)
        require_ours(out, path)
        rejects = RejectsFile(path)
        stamps = Stamps(
            stamps_path(out),
            writer.manifest.index,
            repr((options.captions, options.languages)),
            rehash=options.rehash,
        )
        journal = Journal(journal_path(out), *purpose(writer, options))
        over = True
        try:
            more: dict[str, Any] = {"on_progress": on_progress, "operation": operation}
            more |= {"stamps": stamps, "journal": journal}
            report = index_records(sources, writer, encoder, rejects, options=options, **more)
        except StoreError:
            raise  # a full disk needs its room, and other damage is none to go on from
        except BaseException:
            over = journal.empty
            raise
        finally:
            rejects.close()
            stamps.save()
            journal.close(remove=over)
    report.collected = writer.collected
    report.rejects_file = str(path) if rejects.count else None
    return report


def index_records(
    sources: Sequence[Source],
    writer: IndexWriter,
    encoder: Encoder | DeferredEncoder,
    rejects: Rejects,
    *,
    options: BuildOptions = _DEFAULTS,
    only: Collection[str] | None = None,
    stamps: Stamps | None = None,
    journal: Journal | None = None,
    on_progress: Callable[[BuildProgress], None] | None = None,
    operation: Operation = "build",
    outcomes: Outcomes | None = None,
) -> BuildReport:
    """`build_index` with a writer and a place for rejects that the caller keeps.

    Args:
        only: all the keys that will come, if they are few; the index's other records need not be
            read then. Not for mirrors.
        stamps: lets records be passed over unread; None reads all.
        journal: keeps what is not committed yet for a build after this one.
        outcomes: takes down what became of each record.
    """
    started = time.monotonic()
    base = _open_base(writer, journal, options)
    try:
        total = total_count(sources)
        stages = Stages()
        build = Build(
            sources=sources,
            options=options,
            encoder=encoder,
            writer=writer,
            base=base,
            known=KnownRecords(base, only),
            erased=writer.erasures,
            mirror=Mirror(),
            tally=Tally(rejects, stages, total, on_progress, outcomes),
            stages=stages,
            stamps=stamps,
            journal=journal,
            operation=operation,
        )
        Pipeline(build, total).run()
    finally:
        base.close()
    report = build.tally.report
    report.version = writer.manifest.version
    report.images = writer.manifest.live.images
    report.texts = writer.manifest.live.texts
    report.rejected = rejects.count
    report.performance = stages.summary()
    report.seconds = time.monotonic() - started
    return report


def _open_base(writer: IndexWriter, journal: Journal | None, options: BuildOptions) -> OpenVersion:
    """The version that a build begins with; without the lock, others may collect it meanwhile."""
    while True:
        try:
            return open_version(writer.root, writer.manifest)
        except IndexCorruptError:
            before = writer.manifest.version
            with writer.turn():
                if writer.manifest.version == before:
                    raise
            if journal is not None:
                journal.begin(*purpose(writer, options))
