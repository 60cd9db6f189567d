"""Which kept versions can be trusted, whatever is damaged.

`CURRENT` vouches for the newest manifest, and every manifest of format 2 for its parent's. Where a
link is broken, the versions below it are read without a voucher: their manifests must parse and
name themselves, and their files are vouched for by the manifest. This reads and judges manifests;
it opens no other file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from indexer.format.manifest import HINT, Head, Manifest, manifest_path, parse_manifest, read_small
from indexer.store.sweep import manifest_numbers
from models.errors import IndexCorruptError

_MAX_BYTES: Final = 256 << 20


def vouched(root: Path, head: Head | None) -> tuple[dict[int, Manifest], list[IndexCorruptError]]:
    """The manifests of all kept versions by number, and what is wrong with the others.

    Args:
        head: what `CURRENT` says; None where it is damaged, which vouches for none, and lets the
            newest manifest stand for itself.

    Raises:
        StoreError: the operating system refused to read.
    """
    found: dict[int, Manifest] = {}
    damage: list[IndexCorruptError] = []
    numbers = manifest_numbers(root)
    if head is not None:
        # newer ones were never committed
        numbers = [number for number in numbers if number <= head.version]
        if head.version not in numbers:
            name = manifest_path(head.version)
            damage.append(IndexCorruptError(name, "the file is missing", hint=HINT))
    expected = {} if head is None else {head.version: head.sha256}
    for number in reversed(numbers):
        try:
            manifest = read_vouched(root, number, expected.get(number))
        except IndexCorruptError as error:
            damage.append(error)
            continue
        found[number] = manifest
        if manifest.parent is not None and manifest.parent_sha256 is not None:
            expected.setdefault(manifest.parent, manifest.parent_sha256)
    return found, damage


def read_vouched(root: Path, number: int, sha256: str | None) -> Manifest:
    """One version's manifest.

    Args:
        sha256: what it must have; None where nothing tells.

    Raises:
        IndexCorruptError: damaged, or of another version.
        StoreError: the operating system refused to read.
    """
    name = manifest_path(number)
    data = read_small(root, name, _MAX_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256:
        why = f"sha256 is {digest[:12]}.., {sha256[:12]}.. was written"
        raise IndexCorruptError(name, why, hint=HINT)
    manifest = parse_manifest(name, data)
    if manifest.version != number:
        raise IndexCorruptError(name, f"it describes version {manifest.version}", hint=HINT)
    return manifest


def file_sha256(root: Path, number: int) -> str:
    """sha256 of a version's manifest as it is on disk."""
    return hashlib.sha256(read_small(root, manifest_path(number), _MAX_BYTES)).hexdigest()
