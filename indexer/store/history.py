"""The versions an index keeps: what each was, and the way back to one.

`CURRENT` vouches for the newest manifest and, from format 2 on, every manifest for its parent, so
an older version is as trustworthy as the newest where the chain between them is whole. This reads;
going back is `indexer.maintain.edit`'s business.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from indexer.format.manifest import (
    HINT,
    Manifest,
    manifest_path,
    parse_manifest,
    read_head,
    read_small,
)
from indexer.store.sweep import manifest_numbers
from models.errors import IndexCorruptError, NotFoundError

_MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One kept version.

    Attributes:
        version: its number; `parent` is the one it was made from.
        created: when (ISO 8601); empty, like the rest, where the manifest is damaged.
        operation: what made it; None where its format did not record that.
        images, texts: live items.
        segments, tombstones: segments, and rows in them that are dead.
        erased: entries of its erasure list.
        bytes: of all files it names, many of which it shares with its neighbours.
        current: whether `CURRENT` names it.
        problem: what is wrong with its manifest, or None.
    """

    version: int
    parent: int | None = None
    created: str = ""
    operation: str | None = None
    images: int = 0
    texts: int = 0
    segments: int = 0
    tombstones: int = 0
    erased: int = 0
    bytes: int = 0
    current: bool = False
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def history(root: Path) -> list[VersionInfo]:
    """Every kept version, newest first.

    Raises:
        IndexNotFoundError, IndexCorruptError, StoreError: as `indexer.format.manifest.read_head`;
            damage to manifests is told in the answer.
    """
    head = read_head(root)
    found = []
    expected: str | None = head.sha256
    for number in reversed([one for one in manifest_numbers(root) if one <= head.version]):
        try:
            manifest = _read(root, number, expected)
        except IndexCorruptError as error:
            found.append(VersionInfo(number, current=number == head.version, problem=error.why))
            expected = None
        else:
            found.append(_about(manifest, current=number == head.version))
            expected = manifest.parent_sha256
    return found


def read_version(root: Path, version: int) -> Manifest:
    """The manifest of a kept version, vouched for by those after it; its files are not checked.

    Raises:
        NotFoundError: it is not kept.
        IndexNotFoundError, IndexCorruptError, StoreError: as `history`, and a damaged manifest on
            the way.
    """
    head = read_head(root)
    kept = [one for one in manifest_numbers(root) if one <= head.version]
    if version not in kept:
        numbers = ", ".join(str(one) for one in kept)
        raise NotFoundError(
            f"version {version} is not kept; kept are {numbers}",
            hint="`diptych index history` describes them",
        )
    expected: str | None = head.sha256
    for number in reversed(kept):
        manifest = _read(root, number, expected)
        if number == version:
            return manifest
        expected = manifest.parent_sha256
    raise AssertionError("a kept version is found")


def _read(root: Path, number: int, expected: str | None) -> Manifest:
    name = manifest_path(number)
    data = read_small(root, name, _MAX_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if expected is not None and digest != expected:
        why = f"sha256 is {digest[:12]}.., its successor says {expected[:12]}.."
        raise IndexCorruptError(name, why, hint=HINT)
    manifest = parse_manifest(name, data)
    if manifest.version != number:
        raise IndexCorruptError(name, f"it describes version {manifest.version}", hint=HINT)
    return manifest


def _about(manifest: Manifest, *, current: bool) -> VersionInfo:
    return VersionInfo(
        version=manifest.version,
        parent=manifest.parent,
        created=manifest.created,
        operation=manifest.operation,
        images=manifest.live.images,
        texts=manifest.live.texts,
        segments=len(manifest.segments),
        tombstones=manifest.tombstones.count if manifest.tombstones else 0,
        erased=manifest.erased.count if manifest.erased else 0,
        bytes=len(manifest.encode()) + sum(entry.size for entry in manifest.files().values()),
        current=current,
    )
