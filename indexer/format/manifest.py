"""Parses and checks manifests, one immutable JSON file a version, and `CURRENT`, naming the newest.

    CURRENT                   "<version> <sha256 of manifests/<version>.json>\n"
    manifests/00000042.json   what belongs to version 42, every file with its size and sha256

Formats 1 and 2 are read, 2 is written; an index of format 1 is upgraded by its next commit, and
its older files stay as they are. What format 2 added is optional and absent where it says nothing.

The chain of trust is CURRENT -> manifest -> files: whoever reads checks each link before using
the next. This module parses and checks the first two; it opens no segment and writes nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from indexer.files.fs import open_regular, storage_error
from indexer.filters.declared import FIELD_TYPES, FieldType, check_fields
from indexer.filters.declared import Field as FilterField
from indexer.format.entries import (
    Count,
    Entry,
    ErasedEntry,
    FileEntry,
    RelevanceEntry,
    SegmentEntry,
    Sha256,
    TombstoneEntry,
)
from models.encoder import Fingerprint
from models.errors import (
    EncoderMismatchError,
    IndexCorruptError,
    IndexNotFoundError,
    InputError,
    ModelError,
    StoreError,
)

T = TypeVar("T")

FORMAT: Final = 2
READABLE: Final = (1, 2)
CURRENT: Final = "CURRENT"
LOCK: Final = "LOCK"
MANIFESTS: Final = "manifests"
SEGMENTS: Final = "segments"
TOMBSTONES: Final = "tombstones"
RELEVANCE: Final = "relevance"
ERASED: Final = "erased"
SCRATCH: Final = "scratch"
KEPT_FOLDERS: Final = (MANIFESTS, SEGMENTS, TOMBSTONES, RELEVANCE, ERASED)
FOLDERS: Final = (*KEPT_FOLDERS, SCRATCH)

HINT: Final = (
    "restore it from a copy; `diptych index verify` lists all damage, `diptych index repair` says "
    "what can be done"
)
_NEWER: Final = "use the Diptych release that wrote it, or a newer one"
Operation = Literal["build", "add", "delete", "optimize", "rollback", "import", "repair", "purge"]

# manifests are a few hundred bytes per segment; a larger file is not one of ours
_MAX_BYTES: Final = 256 << 20
_DAMAGE: Final = frozenset({errno.EIO, errno.ELOOP, errno.EISDIR, errno.EINVAL, errno.ENXIO})
_CURRENT_FORM: Final = re.compile(rb"(0|[1-9][0-9]{0,7}) ([0-9a-f]{64})\n")


class Live(Entry):
    images: Count
    texts: Count


class SourceEntry(Entry):
    """Where rows came from: what the user typed, and the kind of reader."""

    name: str
    kind: str


class FieldEntry(Entry):
    """A filterable field's type, and its dotted path in a record's attributes."""

    type: FieldType
    path: str


class Manifest(Entry):
    format: Literal[1, 2]
    index: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    version: Annotated[int, Field(ge=0, le=99_999_999)]
    parent: Annotated[int, Field(ge=0, le=99_999_999)] | None
    created: str
    writer: str
    encoder: dict[str, str | int]
    metric: Literal["inner-product"]
    segments: list[SegmentEntry]
    tombstones: TombstoneEntry | None
    live: Live
    ann: None
    sources: list[SourceEntry]
    fields: dict[str, FieldEntry] = Field(default_factory=dict)
    # absent from indexes built without one: their hits carry no relevance
    relevance: RelevanceEntry | None = None
    # from format 2 on
    erased: ErasedEntry | None = None
    operation: Operation | None = None
    parent_sha256: Sha256 | None = None
    """Of the parent's manifest: what vouches for older versions, as `CURRENT` does for this."""

    @model_validator(mode="after")
    def _nothing_of_a_later_format(self) -> Self:
        if self.format == 1 and (
            self.erased is not None
            or self.operation is not None
            or self.parent_sha256 is not None
            or any(entry.blocks is not None for entry in self.files().values())
            or any(segment.ann is not None for segment in self.segments)
        ):
            raise ValueError("format 1 knows no such field")
        return self

    @model_validator(mode="after")
    def _fields_can_be_declared(self) -> Manifest:
        try:
            check_fields(self.declared)
        except InputError as error:
            raise ValueError(f"fields: {error.message}") from error
        return self

    @property
    def declared(self) -> tuple[FilterField, ...]:
        """The filterable fields in the order that numbers their columns."""
        return tuple(
            FilterField(name, entry.type, entry.path) for name, entry in self.fields.items()
        )

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint.from_dict(self.encoder)

    @property
    def dim(self) -> int:
        """D."""
        return int(self.encoder["dim"])

    def encode(self) -> bytes:
        """The bytes stored on disk; `CURRENT` holds their sha256."""
        return (self.model_dump_json(indent=1, exclude_defaults=True) + "\n").encode()

    def files(self) -> dict[str, FileEntry]:
        """Every file of this version by its path relative to the index."""
        found = {
            f"{SEGMENTS}/{segment.id}/{name}": entry
            for segment in self.segments
            for name, entry in segment.files.items()
        }
        if self.tombstones is not None:
            found[f"{TOMBSTONES}/{self.tombstones.file}"] = self.tombstones
        if self.relevance is not None:
            found[f"{RELEVANCE}/{self.relevance.file}"] = self.relevance
        if self.erased is not None:
            found[f"{ERASED}/{self.erased.file}"] = self.erased
        return found


@dataclass(frozen=True, slots=True)
class Head:
    """What `CURRENT` says: a version number and the sha256 of its manifest."""

    version: int
    sha256: str

    def encode(self) -> bytes:
        return f"{self.version} {self.sha256}\n".encode()


def manifest_path(version: int) -> str:
    """Path of a version's manifest relative to the index."""
    return f"{MANIFESTS}/{version:08d}.json"


def read_head(root: Path) -> Head:
    """Read `CURRENT`.

    Raises:
        IndexNotFoundError: no such directory, or one that is no index.
        IndexCorruptError: `CURRENT` is damaged, or gone from a directory that was an index.
        StoreError: the operating system refused to read.
    """
    if not root.is_dir():
        why = "is not a directory" if root.exists() else "does not exist"
        raise IndexNotFoundError(
            f"no index at {root}: it {why}", hint="make one with `diptych index build`"
        )
    if not os.path.lexists(root / CURRENT):
        if any((root / MANIFESTS).glob("*.json")) and not only_unborn(root):
            raise IndexCorruptError(CURRENT, "the file is missing", hint=HINT)
        raise IndexNotFoundError(
            f"no index at {root}: it has no {CURRENT} file",
            hint="make one with `diptych index build`",
        )
    match = _CURRENT_FORM.fullmatch(read_small(root, CURRENT, 4096))
    if match is None:
        raise IndexCorruptError(CURRENT, "it does not name a version", hint=HINT)
    return Head(int(match[1]), match[2].decode())


def only_unborn(root: Path) -> bool:
    """Whether a directory without `CURRENT` is one whose creation was cut short.

    The empty version 0 is committed before anything else, so a missing `CURRENT` beside any later
    manifest is damage and must never be mistaken for a fresh start.
    """
    manifests = [path.name for path in (root / MANIFESTS).glob("*")]
    return set(manifests) <= {"00000000.json"}


def read_manifest(root: Path, head: Head | None = None) -> Manifest:
    """Read and check the manifest that `CURRENT` (or `head`) names.

    Raises:
        IndexNotFoundError, IndexCorruptError, StoreError: as `read_head`; a manifest of an
            unknown format version is refused, untouched.
    """
    if head is None:
        return newest_version(root, lambda newest: read_manifest(root, newest))
    return read_vouched(root, head.version, head.sha256, f"{CURRENT} says {{}}")


def newest_version(root: Path, use: Callable[[Head], T]) -> T:
    """What `use` makes of the current version, or of its successor if it is collected meanwhile.

    What is missing then is no damage: whoever reads without the writer's lock goes through here.

    Raises:
        IndexNotFoundError, IndexCorruptError, StoreError: as `read_head`, and what `use` raises.
    """
    head = read_head(root)
    while True:
        try:
            return use(head)
        except IndexCorruptError:
            newest = read_head(root)
            if newest == head:
                raise
            head = newest


def read_vouched(root: Path, version: int, sha256: str | None, voucher: str) -> Manifest:
    """Read and check the manifest of a version.

    Args:
        sha256: what it must have; None where nothing vouches for it.
        voucher: who says so, for the message, with {} for the first digits.

    Raises:
        IndexCorruptError: missing, damaged, or of another version.
        StoreError: the operating system refused to read.
    """
    name = manifest_path(version)
    data = manifest_bytes(root, version)
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256:
        why = f"sha256 is {digest[:12]}.., {voucher.format(sha256[:12] + '..')}"
        raise IndexCorruptError(name, why, hint=HINT)
    manifest = parse_manifest(name, data)
    if manifest.version != version:
        raise IndexCorruptError(name, f"it describes version {manifest.version}", hint=HINT)
    return manifest


def manifest_bytes(root: Path, version: int) -> bytes:
    """A version's manifest as it is on disk, unchecked.

    Raises:
        IndexCorruptError, StoreError: as `read_small`.
    """
    return read_small(root, manifest_path(version), _MAX_BYTES)


def parse_manifest(name: str, data: bytes) -> Manifest:
    """Parse manifest bytes; `name` is for messages.

    Raises:
        IndexCorruptError: not a manifest, or of a format this release does not know.
    """
    try:
        raw: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IndexCorruptError(name, "it is not JSON", hint=HINT) from error
    if isinstance(raw, Mapping) and not _readable(raw.get("format", FORMAT)):
        raise IndexCorruptError(
            name,
            f"index format {str(raw['format'])[:20]}; this release reads formats 1 and 2",
            hint=_NEWER,
        )
    unknown = _unknown_types(raw)
    if unknown:
        raise IndexCorruptError(
            name, f"fields of a type this release does not know: {unknown}", hint=_NEWER
        )
    try:
        manifest = Manifest.model_validate_json(data)
        manifest.fingerprint  # noqa: B018  raises on wrong fields
    except (ValidationError, ModelError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        where = ".".join(str(part) for part in first["loc"]) if first else "encoder"
        what = first["msg"] if first else str(error)
        raise IndexCorruptError(name, f"field {where}: {what}", hint=HINT) from error
    if manifest.dim < 1:
        raise IndexCorruptError(name, "field encoder.dim must be positive", hint=HINT)
    return manifest


def _unknown_types(raw: Any) -> str:
    """Declared fields that a later release can read: a new type needs no new format number."""
    fields = raw.get("fields") if isinstance(raw, Mapping) else None
    types = {
        name: one["type"]
        for name, one in (fields.items() if isinstance(fields, Mapping) else ())
        if isinstance(one, Mapping) and isinstance(one.get("type"), str)
    }
    unknown = [f"{name} ({kind})" for name, kind in types.items() if kind not in FIELD_TYPES]
    return ", ".join(unknown)[:200]


def _readable(version: object) -> bool:
    return type(version) is int and version in READABLE  # True is equal to 1


def check_encoder(stored: Fingerprint, ours: Fingerprint) -> None:
    """Refuse to compare vectors of two encoder pairs.

    Raises:
        EncoderMismatchError: naming both models and the fields in which they differ.
    """
    if stored.digest == ours.digest:
        return
    fields = ", ".join(stored.differences(ours))
    raise EncoderMismatchError(
        f"the index was built with {stored.model}, not with {ours.model}: they differ in {fields}",
        hint=f"use --model {stored.model}, or build another index with {ours.model}",
    )


def read_small(root: Path, name: str, limit: int) -> bytes:
    """All bytes of a regular file of the index.

    Raises:
        IndexCorruptError: missing, not a regular file, or larger than `limit`.
        StoreError: the operating system refused to read.
    """
    try:
        fd = open_regular(root / name)
    except OSError as error:
        raise unreadable(name, error) from error
    with os.fdopen(fd, "rb") as stream:
        try:
            data = stream.read(limit + 1)
        except OSError as error:
            raise unreadable(name, error) from error
    if len(data) > limit:
        raise IndexCorruptError(name, f"it is larger than {limit} bytes", hint=HINT)
    return data


def unreadable(name: str, error: OSError) -> StoreError:
    """Damage where the file is gone or is something else; otherwise a refusal by the system."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return IndexCorruptError(name, "the file is missing", hint=HINT)
    if error.errno in _DAMAGE:
        return IndexCorruptError(name, f"it cannot be read: {error.strerror or error}", hint=HINT)
    return storage_error(error, "read", Path(name))
