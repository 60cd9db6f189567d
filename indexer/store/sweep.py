"""Removes what no version needs: scratch, what a dead writer left, and versions too old to keep.

Called with the writer's lock held. Only names that a writer makes are touched, and nothing that a
kept manifest names. A version goes manifest first, durably, then its files: whatever a kept
manifest names is there, wherever this is cut off. Readers that have a version open keep it, since
an open file outlives its name.

A purge is a promise about the versions before it, so those are never kept, even where the purge
was killed before it removed them.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from indexer.files.fs import Fs
from indexer.files.lock import holder_of
from indexer.format.integrity import Identity, Recent, identity, is_settled
from indexer.format.manifest import (
    ERASED,
    LOCK,
    MANIFESTS,
    RELEVANCE,
    SCRATCH,
    SEGMENTS,
    TOMBSTONES,
    Manifest,
    manifest_path,
    parse_manifest,
)
from models.errors import IndexLockedError, InputError, StoreError

KEEP_VERSIONS: Final = 16
"""How many versions a commit leaves, the new one included, for rollback and slow readers."""
_DAY: Final = 86_400.0

_MANIFEST_NAME: Final = re.compile(r"[0-9]{8}\.json")
_NAMES: Final = {
    SEGMENTS: re.compile(r"[0-9]{8}-(image|text)-[0-9a-f]{8}"),
    TOMBSTONES: re.compile(r"[0-9]{8}\.npy"),
    RELEVANCE: re.compile(r"[0-9]{8}\.npy"),
    ERASED: re.compile(r"[0-9]{8}\.npy"),
}


@dataclass(frozen=True, slots=True)
class Keeping:
    """Which versions a commit leaves; one goes when any limit says so, the current one never.

    Attributes:
        versions: at most so many, the current one included; at least 1.
        days: none before the current one that is older; None for any age.
        bytes: most that the files may add up to which the current version does not name, those of
            the oldest versions going first; None for any size.

    Raises:
        InputError: a limit out of range.
    """

    versions: int = KEEP_VERSIONS
    days: float | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        if self.versions < 1:
            raise InputError("at least one version, the current one, is kept")
        if self.days is not None and not self.days >= 0:  # NaN is none either
            raise InputError("the age of versions to keep must be at least 0 days")
        if self.bytes is not None and self.bytes < 0:
            raise InputError("the size of versions to keep must be at least 0 bytes")


KEEPING: Final = Keeping()
"""What is kept where nothing else is asked for."""


def manifest_numbers(root: Path) -> list[int]:
    """The versions that have a manifest, ascending."""
    names = [path.name for path in (root / MANIFESTS).iterdir()]
    return sorted(int(name[:8]) for name in names if _MANIFEST_NAME.fullmatch(name))


def empty_scratch(fs: Fs, root: Path) -> None:
    """Remove what dead writers left; what a living one prepares beside others is let be."""
    for path in sorted((root / SCRATCH).iterdir()):
        if holder_of(path / LOCK) is None:
            fs.remove(path)


def require_alone(root: Path) -> None:
    """Refuse to go on while another writer prepares its next version without the lock.

    Raises:
        IndexLockedError: one does.
    """
    for path in sorted((root / SCRATCH).iterdir()):
        if (holder := holder_of(path / LOCK)) is not None:
            raise IndexLockedError(
                f"{root} is being written by {holder}",
                hint="wait until it has finished; searching works meanwhile",
            )


@dataclass(frozen=True, slots=True)
class _Known:
    """What a version needs.

    Attributes:
        entries: bytes of its entries in the folders of `_NAMES`, by `folder/name`.
        size: bytes of its manifest.
        created: seconds since 1970; infinite where its manifest says nothing of use.
        purge: whether one made it.
    """

    entries: Mapping[str, int]
    size: int
    created: float
    purge: bool


_NEEDS: Final = Recent[Identity, _Known](1024)
"""What a manifest names, by what identifies its file: manifests are never changed."""


class Sweeper:
    """Removes; what each kept version needs is remembered, so that every manifest is read once."""

    def __init__(self, fs: Fs, root: Path, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since 1970, for the age of versions."""
        self._fs = fs
        self._root = root
        self._clock = clock

    def sweep(self, current: Manifest | None) -> None:
        """What a writer does first. `current` is None where nothing was ever committed.

        Raises:
            StoreError: something could not be removed.
        """
        empty_scratch(self._fs, self._root)
        newest = -1 if current is None else current.version
        for number in manifest_numbers(self._root):
            if number > newest:  # of a commit that was cut off before `CURRENT`
                self._remove_manifest(number)
        self._clear(current, None)

    def collect(self, current: Manifest, keeping: Keeping) -> int:
        """Leave the newest versions, `current` among them -> how many others went.

        Raises:
            StoreError: something could not be removed; the next call tries again.
        """
        return self._clear(current, keeping)

    def _clear(self, current: Manifest | None, keeping: Keeping | None) -> int:
        numbers = manifest_numbers(self._root)
        kept: dict[int, _Known] = {}
        for number in reversed(numbers if keeping is None else numbers[-keeping.versions :]):
            known = self._read(number, current)
            if known is None:
                return 0  # an older version cannot be read: remove nothing that it may need
            kept[number] = known
            if known.purge:
                break
        if keeping is not None:
            self._limit(kept, keeping)
        needed = {entry for known in kept.values() for entry in known.entries}
        old = [number for number in numbers if number not in kept]
        for number in old:
            self._remove_manifest(number)
        if old:
            self._fs.sync_dir(self._root / MANIFESTS)
        for folder, form in _NAMES.items():
            for path in sorted((self._root / folder).iterdir()):
                if f"{folder}/{path.name}" not in needed and form.fullmatch(path.name):
                    self._fs.remove(path)
        return len(old)

    def _limit(self, kept: dict[int, _Known], keeping: Keeping) -> None:
        """Take out what is too old or too large; `kept` has the newest version first.

        Versions go from the oldest on only, so that one that a wrong clock dated takes no younger
        one along, and the manifests that are left vouch for each other without a gap.
        """
        if keeping.days is not None:
            since = self._clock() - keeping.days * _DAY
            for number in list(reversed(kept))[:-1]:
                if kept[number].created >= since:
                    break
                del kept[number]
        if keeping.bytes is not None:
            newest, *older = kept
            named, size = set(kept[newest].entries), 0
            for number in older:
                known = kept[number]
                own = known.entries.keys() - named
                size += known.size + sum(known.entries[entry] for entry in own)
                named |= own
                if size > keeping.bytes:
                    del kept[number]

    def _remove_manifest(self, number: int) -> None:
        self._fs.remove(self._root / manifest_path(number))

    def _read(self, number: int, current: Manifest | None) -> _Known | None:
        path = self._root / manifest_path(number)
        try:
            seen = identity(path.lstat())
        except OSError:
            return None
        known = _NEEDS.get(seen)
        if known is not None:
            return known
        manifest = current if current is not None and current.version == number else None
        if manifest is None:
            try:
                manifest = parse_manifest(path.name, path.read_bytes())
            except (StoreError, OSError):
                return None
        entries = Counter[str]()
        for name, file in manifest.files().items():
            entries["/".join(name.split("/")[:2])] += file.size
        _, _, size, *_ = seen
        known = _Known(
            entries, size, _seconds(manifest.created), purge=manifest.operation == "purge"
        )
        if is_settled(seen, time.time_ns()):
            _NEEDS.add(seen, known)
        return known


def _seconds(created: str) -> float:
    """The moment of a manifest, in seconds since 1970; a time without a zone is UTC's."""
    try:
        moment = datetime.fromisoformat(created)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return math.inf
