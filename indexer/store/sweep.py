"""Removes what no version needs: scratch, what a dead writer left, and versions too old to keep.

Called with the writer's lock held. Only names that a writer makes are touched, and nothing that a
kept manifest names. A version goes manifest first, durably, then its files: whatever a kept
manifest names is there, wherever this is cut off. Readers that have a version open keep it, since
an open file outlives its name.

A purge is a promise about the versions before it, so those are never kept, even where the purge
was killed before it removed them.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
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
from models.errors import IndexLockedError, StoreError

KEEP_VERSIONS: Final = 16
"""How many versions a commit leaves, the new one included, for rollback and slow readers."""

_MANIFEST_NAME: Final = re.compile(r"[0-9]{8}\.json")
_NAMES: Final = {
    SEGMENTS: re.compile(r"[0-9]{8}-(image|text)-[0-9a-f]{8}"),
    TOMBSTONES: re.compile(r"[0-9]{8}\.npy"),
    RELEVANCE: re.compile(r"[0-9]{8}\.npy"),
    ERASED: re.compile(r"[0-9]{8}\.npy"),
}


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
    """What a version needs: its entries in the folders of `_NAMES`, as `folder/name`."""

    entries: frozenset[str]
    purge: bool


_NEEDS: Final = Recent[Identity, _Known](1024)
"""What a manifest names, by what identifies its file: manifests are never changed."""


class Sweeper:
    """Removes; what each kept version needs is remembered, so that every manifest is read once."""

    def __init__(self, fs: Fs, root: Path) -> None:
        self._fs = fs
        self._root = root

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
        self._clear(current, keep=None)

    def collect(self, current: Manifest, keep: int) -> None:
        """Leave the newest `keep` versions, `current` among them.

        Raises:
            StoreError: something could not be removed; the next call tries again.
        """
        self._clear(current, keep)

    def _clear(self, current: Manifest | None, keep: int | None) -> None:
        numbers = manifest_numbers(self._root)
        kept = numbers if keep is None else numbers[-keep:]
        needed: set[str] = set()
        for number in reversed(kept):
            known = self._read(number, current)
            if known is None:
                return  # an older version cannot be read: remove nothing that it may need
            needed |= known.entries
            if known.purge:
                kept = [one for one in kept if one >= number]
                break
        old = [number for number in numbers if number not in set(kept)]
        for number in old:
            self._remove_manifest(number)
        if old:
            self._fs.sync_dir(self._root / MANIFESTS)
        for folder, form in _NAMES.items():
            for path in sorted((self._root / folder).iterdir()):
                if f"{folder}/{path.name}" not in needed and form.fullmatch(path.name):
                    self._fs.remove(path)

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
        entries = frozenset("/".join(name.split("/")[:2]) for name in manifest.files())
        known = _Known(entries, purge=manifest.operation == "purge")
        if is_settled(seen, time.time_ns()):
            _NEEDS.add(seen, known)
        return known
