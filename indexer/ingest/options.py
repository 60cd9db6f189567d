"""What a build takes and tells (options, progress, the report), and what its stages work with.

Plain values, shared by `build_index`, its stages and whoever calls it; nothing is done here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from indexer.filters.declared import Field
from indexer.format.erasures import Erasures
from indexer.format.manifest import Operation, check_encoder
from indexer.store.sweep import KEEPING, Keeping
from models.encoder import Encoder, Fingerprint

if TYPE_CHECKING:
    from indexer.format.version import OpenVersion
    from indexer.ingest.progress import Stages, Tally
    from indexer.ingest.reader import KnownRecords, Mirror
    from indexer.ingest.side_files import Journal, Stamps
    from indexer.store.writer import IndexWriter
    from models.sources.records import Source

Stage = Literal["embedding", "committing", "done"]
StageName: TypeAlias = Literal["read", "decode", "embed", "write"]
STAGES: Final[tuple[StageName, ...]] = ("read", "decode", "embed", "write")


@dataclass(frozen=True, slots=True)
class Pacing:
    """When to commit before a segment is full: what a killed build has to do again is bounded.

    The wait grows with the build, so that a day's work makes dozens of versions, not thousands.

    Attributes:
        seconds: no commit sooner than this after the last one.
        share: nor before this part of the build's time so far.
    """

    seconds: float = 10.0
    share: float = 0.02

    def due(self, elapsed: float, committed: float) -> bool:
        """Both in seconds since the start: now, and when the last commit was."""
        return elapsed - committed >= max(self.seconds, self.share * elapsed)


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build.

    Attributes:
        batch_size: pictures per call of the image tower.
        segment_rows: pictures per commit, at most.
        pacing: when to commit before there are so many.
        thumbnails: store a JPEG preview of every picture.
        thumbnail_side: its longest side in pixels.
        captions: index texts as items of their own.
        languages: index texts of these language tags only; None indexes all.
        fields: the filterable fields of a new index; None keeps those of an existing one.
        max_errors: stop, committing what is done, once more than this many were rejected.
        rejects: the rejects file; None puts `<index>.rejects.jsonl` beside the index.
        workers: processes that decode pictures; 0 decodes in threads of this process; None takes
            one per core, and threads where at most 64 records are expected.
        decode_threads: threads that prepare records; None takes one per worker.
        overlap: read and write in threads of their own, so that the model never waits for a disk;
            None does so where more than 256 records are expected.
        draft: let large JPEGs be decoded at a fraction (`models.images.pictures.Wanted`).
        relevance: keep a background (`indexer.search.relevance`) so that hits carry a relevance;
            an index that has one keeps it in any case.
        mirror: also remove the records that no source has any more; `mirror_all` even if they are
            more than half of the index, or all that a source or a folder had
            (`indexer.ingest.reader`).
        replace: let a record take the place of one that another source gave under the same id;
            otherwise it is refused (`id-conflict`).
        rehash: read every file, also those that look as they did when they were indexed.
        allow_erased: index records and texts again that were deleted; otherwise they are left out.
        keeping: which versions every commit leaves.
    """

    batch_size: int = 32
    segment_rows: int = 8192
    pacing: Pacing = Pacing()
    thumbnails: bool = True
    thumbnail_side: int = 320
    captions: bool = True
    languages: tuple[str, ...] | None = None
    fields: tuple[Field, ...] | None = None
    max_errors: int | None = None
    rejects: Path | None = None
    workers: int | None = None
    decode_threads: int | None = None
    overlap: bool | None = None
    draft: bool = False
    relevance: bool = True
    mirror: bool = False
    mirror_all: bool = False
    replace: bool = False
    rehash: bool = False
    allow_erased: bool = False
    keeping: Keeping = KEEPING


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """Where a build stands; `total` is None where a source cannot tell cheaply.

    `images_per_s` (embedded) and `bottleneck` (the stage waited for most) are of the last seconds;
    they take no part in comparisons.
    """

    stage: Stage
    done: int
    total: int | None
    rejected: int
    images_per_s: float = field(default=0.0, compare=False)
    bottleneck: StageName = field(default="embed", compare=False)


@dataclass(slots=True)
class BuildReport:
    """What a build did.

    `added`, `updated`, `moved` (the same content elsewhere), `unchanged` and `removed` (by a
    mirror) count records, `resumed` those of the first two that a killed build had embedded,
    `erased` records and texts that were left out because they had been deleted, and `rejected` the
    lines of the rejects file, `conflicts` those among them of records whose id another one has,
    `overtaken` counts records that others wrote or deleted while the build ran, and that stay so;
    `images` and `texts` are what the index holds now; `empty` names the sources in which there was
    nothing, not even to refuse; `stopped` tells
    that `max_errors` ended it; `collected` counts older versions that `keeping` removed;
    `performance` is the summary of `indexer.ingest.progress.Stages`.
    """

    added: int = 0
    resumed: int = 0
    updated: int = 0
    moved: int = 0
    unchanged: int = 0
    removed: int = 0
    erased: int = 0
    rejected: int = 0
    conflicts: int = 0
    overtaken: int = 0
    images: int = 0
    texts: int = 0
    version: int = 0
    seconds: float = 0.0
    stopped: bool = False
    rejects_file: str | None = None
    empty: list[str] = field(default_factory=list)
    collected: int = 0
    performance: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class DeferredEncoder:
    """An encoder pair that is loaded only if something has to be embedded.

    Attributes:
        fingerprint: what an existing index says it was built with.
        load: loads the pair; called at most once by a build, from its own thread.
    """

    fingerprint: Fingerprint
    load: Callable[[], Encoder]

    def encoder(self) -> Encoder:
        """Load it.

        Raises:
            EncoderMismatchError: it is not the pair of that fingerprint.
            ModelError: as `load`.
        """
        encoder = self.load()
        check_encoder(self.fingerprint, encoder.fingerprint)
        return encoder


@dataclass(frozen=True, slots=True)
class Build:
    """One build: what its stages are given and share. `indexer.ingest.build` makes it.

    Attributes:
        encoder: loaded by the first record that has to be embedded, if it is deferred.
        writer: holds the lock of the index.
        base: the version that the build began with.
        known: the records of that version.
        erased: what had been deleted from the index when the build began.
        mirror: takes note of what the sources hold.
        tally: counts, and tells of progress.
        stages: measures where the time goes.
        stamps: lets records be passed over unread; None reads all.
        journal: keeps what is not committed yet for a build after this one.
        operation: what the history calls the versions.
    """

    sources: Sequence[Source]
    options: BuildOptions
    encoder: Encoder | DeferredEncoder
    writer: IndexWriter
    base: OpenVersion
    known: KnownRecords
    erased: Erasures
    mirror: Mirror
    tally: Tally
    stages: Stages
    stamps: Stamps | None
    journal: Journal | None
    operation: Operation

    @property
    def left_out(self) -> Erasures:
        """What was deleted and stays out."""
        return Erasures() if self.options.allow_erased else self.erased


def purpose(writer: IndexWriter, options: BuildOptions) -> tuple[str, ...]:
    """All that decides what a record's rows are, besides the record, and where they belong."""
    manifest, fields = writer.manifest, ("captions", "languages", "thumbnails", "thumbnail_side")
    chosen = [getattr(options, name) for name in (*fields, "draft", "allow_erased")]
    declared = [str(one) for one in manifest.declared]
    digest = manifest.fingerprint.digest
    # what was deleted is left out of them; whatever else others commit meanwhile does no harm
    erased = "" if manifest.erased is None else manifest.erased.sha256
    return manifest.index, erased, digest, repr(declared), repr(chosen)
