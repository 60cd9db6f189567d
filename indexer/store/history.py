"""Reads the manifests of all versions an index keeps: what each was, and which can be trusted.

`CURRENT` vouches for the newest manifest and, from format 2 on, every manifest for its parent, so
an older version is as trustworthy as the newest where the chain between them is whole. Where a link
is broken, the versions below it are read without a voucher: their manifests must parse and name
themselves, and vouch in turn for their files. `history` and `read_version` serve people and
`rollback`; `vouched` serves `verify` and `repair`. No other file is opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from indexer.format.manifest import (
    CURRENT,
    HINT,
    Head,
    Manifest,
    manifest_bytes,
    manifest_path,
    read_head,
    read_small,
    read_vouched,
)
from indexer.store.sweep import manifest_numbers
from models.errors import IndexCorruptError, NotFoundError

_NEARLY: Final = 31
"""More equal digits than that, of 64, are no chance."""
_SUCCESSOR: Final = "its successor says {}"


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
    return [
        _about(one, current=number == head.version)
        if isinstance(one, Manifest)
        else VersionInfo(number, current=number == head.version, problem=one.why)
        for number, one in _chain(root, head, _SUCCESSOR)
    ]


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
    for number, one in _chain(root, head, _SUCCESSOR):
        if isinstance(one, IndexCorruptError):
            raise one
        if number == version:
            return one
    raise NotFoundError(f"version {version} is not kept any more")  # collected meanwhile


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
    for number, one in _chain(root, head, "{} was written"):
        if isinstance(one, Manifest):
            found[number] = one
        else:
            damage.append(one)
    return found, damage


def meant(root: Path) -> Head | None:
    """What `CURRENT` says or nearly says, where a kept manifest has that sum; else None.

    A digit is soon another, but of two sums that have nothing to do with each other one digit in
    sixteen is the same: half of them are enough to know a manifest by, and to vouch for it.
    """
    try:
        said = read_small(root, CURRENT, 4096).removesuffix(b"\n")
    except IndexCorruptError:
        return None
    best, found = _NEARLY, None
    for number in manifest_numbers(root):
        try:
            head = Head(number, hashlib.sha256(manifest_bytes(root, number)).hexdigest())
        except IndexCorruptError:
            continue
        digits = head.sha256.encode()
        # a byte lost or put in before or within moves what follows
        same = max(
            sum(a == b for a, b in zip(digits, said.partition(b" ")[2], strict=False)),
            sum(a == b for a, b in zip(reversed(digits), reversed(said), strict=False)),
        )
        if same > best:
            best, found = same, head
    return found


def _chain(
    root: Path, head: Head | None, voucher: str
) -> Iterator[tuple[int, Manifest | IndexCorruptError]]:
    """Every kept version from the newest down, and its manifest or what is wrong with that.

    A manifest is held to what its successor says of its parent. The successor need not be the next
    number: a repair goes back past damaged versions, and forgets them.

    Args:
        head, voucher: as `vouched`, and as `indexer.format.manifest.read_vouched`.
    """
    numbers = manifest_numbers(root)
    if head is not None:
        # newer ones were never committed
        numbers = [number for number in numbers if number <= head.version]
        if head.version not in numbers:
            name = manifest_path(head.version)
            yield head.version, IndexCorruptError(name, "the file is missing", hint=HINT)
    expected = {} if head is None else {head.version: head.sha256}
    for number in reversed(numbers):
        try:
            manifest = read_vouched(root, number, expected.get(number), voucher)
        except IndexCorruptError as error:
            yield number, error
            continue
        if manifest.parent is not None and manifest.parent_sha256 is not None:
            expected.setdefault(manifest.parent, manifest.parent_sha256)
        yield number, manifest
