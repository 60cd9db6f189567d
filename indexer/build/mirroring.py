"""What is gone from the sources of a build, and whether one may believe it.

Only sources read to their end tell what is gone. A row that a reader refused without telling whose
it is might be any record's, and a disk that is not mounted looks like an empty folder. So a mirror
removes nothing when in doubt, and never more than half without being told so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from indexer.build.known import KnownRecords
from models.data.files import SeenKeys
from models.data.records import Reject, Source
from models.errors import InputError

MOST: Final = 0.5
"""The largest share of its records that an index loses without `mirror_all`."""

_HARMLESS: Final = frozenset({"duplicate-key", "duplicate-id"})


@dataclass(slots=True)
class Mirror:
    """What a build saw of its sources, for judging afterwards what is gone."""

    seen: SeenKeys = field(default_factory=SeenKeys)
    _refused: set[str] = field(default_factory=set)
    _folders: list[str] = field(default_factory=list)
    _nameless: int = 0

    def refused(self, source: Source, reject: Reject) -> None:
        """Take note of a row that a reader refused: whatever it is, it is not gone."""
        if reject.code in _HARMLESS:
            return
        if source.kind != "folder":  # a line, a byte offset or a member, not the record's key
            self._nameless += 1
        elif reject.key.endswith("/"):
            self._folders.append("" if reject.key == "/" else reject.key)
        else:
            self._refused.add(reject.key)

    def gone(self, known: KnownRecords, *, remove_all: bool) -> list[str]:
        """Keys of the records that no source has any more.

        Raises:
            InputError: it cannot be told, or there are too many of them.
        """
        gone = [
            key
            for key in known
            if key not in self._refused
            and not any(key.startswith(folder) for folder in self._folders)
            and self.seen.add(key)
        ]
        if not gone:
            return []
        if self._nameless:
            raise InputError(
                f"nothing was removed: {self._nameless} rows could not be read, "
                f"and may be among the {len(gone)} records that seem to be gone",
                code="mirror-uncertain",
                hint="mend the source, whose rejects file names each, and run again",
            )
        if len(gone) > MOST * len(known) and not remove_all:
            raise InputError(
                f"nothing was removed: {len(gone)} of {len(known)} records seem to be gone",
                code="mirror-too-much",
                hint="see that every source is there and was named; --mirror-all removes them",
            )
        return gone
