"""Put and delete a few items at a time, for a service that an index grows under.

    editor = Editor(root, encoder)
    editor.put([record])               decoded, embedded, committed; replaces what has its key
    editor.delete(["a.jpg"])

Every call is one commit or none, and holds the writer's lock only while it runs: between calls
anyone may write. It is the builder's path from record to row; there is no second one.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from indexer.format.manifest import read_manifest
from indexer.ingest.build import index_records
from indexer.ingest.options import BuildOptions, BuildReport, Pacing
from indexer.ingest.prepare import check_record
from indexer.ingest.rejects import RejectsList
from indexer.maintain.edit import EditReport, delete_items
from indexer.store.writer import IndexWriter
from models.encoder import Encoder
from models.sources.records import Plan, Record, Reject, Row, Source

_DEFAULTS: Final = BuildOptions()


@dataclass(slots=True)
class PutReport(BuildReport):
    """What a put did; `refused` says why for every record or text that was not stored."""

    refused: list[Reject] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Editor:
    """See the module. Safe to use from several threads: the lock on disk lets one write."""

    def __init__(self, root: Path, encoder: Encoder, *, options: BuildOptions = _DEFAULTS) -> None:
        """Nothing is opened yet.

        Args:
            root: an index that exists.
            options: what to store and how; those about commits, mirrors and files play no part.
        """
        self.root = root
        self._encoder = encoder
        self._options = options

    def put(self, records: Sequence[Record], *, allow_erased: bool = False) -> PutReport:
        """Store records, each replacing what the index has under its key, in one commit.

        A record that is in the index as it is costs nothing and makes no version; one that was
        deleted is left out, and counted as `erased`, unless `allow_erased`.

        Raises:
            IndexNotFoundError: no index there.
            IndexLockedError: somebody else is writing.
            EncoderMismatchError, IndexCorruptError, NoSpaceError, StoreError: see
                `indexer.store.writer.IndexWriter`; nothing was stored.
        """
        options = dataclasses.replace(
            self._options,
            segment_rows=sys.maxsize // 1024,  # one commit, however many there are
            pacing=Pacing(seconds=math.inf),
            fields=None,
            max_errors=None,
            mirror=False,
            allow_erased=allow_erased,
        )
        read_manifest(self.root)  # an index is never made by the way
        rejects = RejectsList()
        with IndexWriter(self.root, self._encoder.fingerprint) as writer:
            report = index_records(
                [_Given(records)],
                writer,
                self._encoder,
                rejects,
                options=options,
                only=[one.key for one in records if check_record(one) is None],
                operation="add",
            )
        values = {one.name: getattr(report, one.name) for one in dataclasses.fields(report)}
        return PutReport(**values, refused=rejects.rejects)

    def delete(self, ids: Iterable[str]) -> EditReport:
        """Delete items; see `indexer.maintain.edit.delete_items`."""
        return delete_items(self.root, ids)


class _Given(Source):
    """Records as a source."""

    name = "api"
    kind = "api"

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records

    def count(self) -> int:
        return len(self._records)

    def plan(self) -> Plan:
        pictures = [record.image for record in self._records if record.image is not None]
        size = sum(map(len, pictures))
        return Plan(len(self._records), len(pictures), size, size, exact=True)

    def __iter__(self) -> Iterator[Row]:
        yield from self._records
