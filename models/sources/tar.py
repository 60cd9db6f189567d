"""Webdataset tar shards, streamed member by member.

`KEY.jpg` with `KEY.txt`, `KEY.json`, `KEY.cls` or `KEY.caption` next to each other make one row;
KEY is the name up to the first dot of its last part, as webdataset defines it. Members are bytes
and names are labels: nothing is ever extracted, no link is followed, no shard is a shell command.
A damaged shard gives the rows up to the damage, one `Reject` with the byte offset, and the run
goes on with the next shard.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from models.errors import SourceError
from models.sources.fields import (
    MAX_TEXT_BYTES,
    Fields,
    ReadOptions,
    caption_lines,
    interpret,
    parse_object,
)
from models.sources.files import (
    IMAGE_SUFFIXES,
    MAX_IMAGE_BYTES,
    absolute,
    display_name,
    file_uri,
    open_plain,
    origin_of,
)
from models.sources.records import Plan, Record, RefusedError, Reject, Row, SeenKeys, Source

BLOCK = 512
MAX_EXTENSION_BYTES = 1024 * 1024
"""Largest PAX header or long name that is read."""

_KINDS = {
    tarfile.SYMTYPE: "symbolic link",
    tarfile.LNKTYPE: "hard link",
    tarfile.CHRTYPE: "character device",
    tarfile.BLKTYPE: "block device",
    tarfile.FIFOTYPE: "FIFO",
    tarfile.DIRTYPE: "directory",
    tarfile.GNUTYPE_SPARSE: "sparse file",
}
TEXT_SUFFIXES = frozenset({"txt", "caption", "json", "cls"})
_COUNT_LIMIT = 4 * 1024**3
_MAX_IGNORED = 100

# webdataset's own rule: directory part, name up to the first dot, rest
_SPLIT = re.compile(rb"^((?:.*/)?[^./][^./]*)\.([^/]*)$", re.DOTALL)


class TarSource(Source):
    """Rows of tar shards in shard order, then member order."""

    kind = "tar"
    in_archives = True

    def __init__(self, shards: Sequence[str], options: ReadOptions, *, name: str) -> None:
        """Raises SourceError for a shard that is missing, special or compressed."""
        if not shards:
            raise SourceError("no shards were named")
        self.name = name
        self.ignored: Counter[str] = Counter()
        """Members of the last iteration that are neither picture nor text, by suffix."""
        self._shards = list(shards)
        self._options = options
        self._bytes = 0
        for shard in self._shards:
            file, size = open_plain(shard)
            file.close()
            self._bytes += size

    def count(self) -> int | None:
        """Pictures by name, from member headers; None above 4 GiB, where even that takes long."""
        return self.plan().pictures

    def plan(self) -> Plan:
        """From member headers: one seek a member."""
        if self._bytes > _COUNT_LIMIT:
            return Plan(None, None, None, self._bytes, exact=False)
        total = size = 0
        for shard in self._shards:
            try:
                for member in members(shard):
                    if _split(member.name)[1] in IMAGE_SUFFIXES:
                        total += 1
                        size += member.size
            except (DamagedTarError, SourceError):
                continue
        return Plan(total, total, size, self._bytes, exact=True)

    def parts(self) -> list[Source]:
        """Each shard as a source of its own, to be read in any order."""
        return [TarSource([shard], self._options, name=shard) for shard in self._shards]

    def __iter__(self) -> Iterator[Row]:
        seen = SeenKeys()
        self.ignored.clear()
        for shard in self._shards:
            try:
                for group in self._groups(shard):
                    for row in [group] if isinstance(group, Reject) else self._rows(shard, group):
                        if isinstance(row, Record) and not seen.add(row.key):
                            yield Reject(shard, row.key, "duplicate-key", "the key occurs twice")
                        else:
                            yield row
            except DamagedTarError as error:
                yield Reject(shard, f"byte {error.offset}", "shard-damaged", str(error))
            except SourceError as error:  # removed or replaced since it was named
                yield Reject(shard, "", error.code, error.message)

    def _groups(self, shard: str) -> Iterator[_Group | Reject]:
        """Consecutive members of one key, and members that were refused, as they come.

        A group cut off by damage is not yielded: what is missing from it cannot be known.
        """
        group: _Group | None = None
        for member in members(shard):
            key, suffix = _split(member.name)
            if suffix not in IMAGE_SUFFIXES and suffix not in TEXT_SUFFIXES:
                self._ignore(suffix)
                continue
            if group is None or group.key != key:
                if group is not None:
                    yield group
                group = _Group(key)
            problem = group.add(member, suffix)
            if problem is not None:
                yield Reject(shard, display_name(member.name), *problem)
        if group is not None:
            yield group

    def _ignore(self, suffix: str) -> None:
        known = suffix in self.ignored or len(self.ignored) < _MAX_IGNORED
        self.ignored[suffix[:20] if known else "other"] += 1

    def _rows(self, shard: str, group: _Group) -> Iterator[Row]:
        data: dict[str, Any] = {}
        for suffix, (name, content) in group.texts.items():
            try:
                found = _parse(suffix, content)
            except RefusedError as error:
                yield error.reject(shard, display_name(name))
            else:
                data = data | found if suffix == "json" else found | data
        fields = Fields({}, None, {})
        try:
            fields = interpret(data, self._options)
        except RefusedError as error:
            yield error.reject(shard, display_name(group.key))
        if group.picture is None and (group.picture_refused or not fields.texts):
            return
        member = group.picture[0] if group.picture else next(iter(group.texts.values()))[0]
        yield Record(
            key=display_name(group.key),
            uri=file_uri(absolute(shard), member),
            image=group.picture[1] if group.picture else None,
            texts=fields.texts,
            label=fields.label,
            attributes=fields.attributes,
            origin=origin_of(shard),
        )


@dataclass(slots=True)
class _Group:
    """The members of one key, as bytes by name."""

    key: bytes
    picture: tuple[bytes, bytes] | None = None
    picture_refused: bool = False
    texts: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)

    def add(self, member: Member, suffix: str) -> tuple[str, str] | None:
        """Take a member in; (code, detail) of one that is refused."""
        is_picture = suffix in IMAGE_SUFFIXES
        problem = self._problem(member, is_picture, suffix)
        if problem is not None:
            self.picture_refused |= is_picture and self.picture is None
        elif is_picture:
            self.picture = (member.name, member.read())
        else:
            self.texts[suffix] = (member.name, member.read())
        return problem

    def _problem(self, member: Member, is_picture: bool, suffix: str) -> tuple[str, str] | None:
        limit = MAX_IMAGE_BYTES if is_picture else MAX_TEXT_BYTES
        if not member.is_file:
            return "not-a-regular-file", f"a {member.kind}; only plain members are read"
        if member.size > limit:
            return "file-too-large", f"{member.size} bytes; the limit is {limit}"
        if is_picture and member.size == 0:
            return "empty-file", "0 bytes"
        if is_picture and self.picture is not None:
            return "extra-image", "the key has a picture already"
        if suffix in self.texts:
            return "duplicate-key", "the key has this member already"
        return None


def _split(name: bytes) -> tuple[bytes, str]:
    """(key, suffix in lower case); the suffix is empty for names without a key."""
    while name.startswith(b"./"):
        name = name[2:]
    found = _SPLIT.match(name)
    if found is None:
        return name, ""
    return found[1], found[2].decode("ascii", "replace").lower()


def _parse(suffix: str, content: bytes) -> dict[str, Any]:
    if suffix == "json":
        return parse_object(content)
    lines = caption_lines(content)
    return {"cls": "\n".join(lines).strip()} if suffix == "cls" else {suffix: lines}


class DamagedTarError(Exception):
    """The archive cannot be followed beyond `offset` bytes."""

    def __init__(self, offset: int, why: str) -> None:
        super().__init__(f"damaged at byte {offset}: {why}")
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Member:
    """One entry. `read` works only until the walk goes on to the next member."""

    name: bytes
    size: int
    is_file: bool
    kind: str
    read: Callable[[], bytes]


def members(path: str) -> Iterator[Member]:
    """The entries of an archive in order, extension headers applied.

    Why not `tarfile` itself: it reads a PAX header of any claimed size into memory, recurses on
    chains of long names, and ends silently where an archive is cut between members. Only header
    *parsing* (numbers, checksum, old formats) is left to `tarfile.TarInfo.frombuf`.

    Raises:
        DamagedTarError: a bad header, a size that leaves the file, data after the end mark, or no
            end mark at all (an archive cut exactly between two members).
        SourceError: as `open_plain`.
    """
    file, total = open_plain(path)
    with file:
        offset = 0
        name: bytes | None = None
        size: int | None = None
        sparse = False
        while True:
            file.seek(offset)
            block = file.read(BLOCK)
            if len(block) < BLOCK:
                raise DamagedTarError(offset, "the archive ends without its end mark")
            if block.count(0) == BLOCK:
                _require_zeros(file, offset)
                return
            header = _header(block, offset)
            length = header.size if size is None else size
            start = offset + BLOCK
            if header.type == tarfile.GNUTYPE_SPARSE:
                start += _more_sparse_blocks(file, block[_GNU_EXTENDED], start)
            # links, devices and directories carry no data, whatever their size field says
            stored = length if header.type not in _WITHOUT_DATA else 0
            if length < 0 or start + stored > total:
                raise DamagedTarError(offset, f"a member of {length} bytes leaves the archive")
            following = start + -(-stored // BLOCK) * BLOCK
            if header.type in _EXTENSIONS:
                if stored > MAX_EXTENSION_BYTES:
                    raise DamagedTarError(offset, f"an extended header of {stored} bytes")
                content = file.read(stored)
                if header.type == tarfile.GNUTYPE_LONGNAME:
                    name = content.rstrip(b"\0")
                elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                    pax_name, pax_size, pax_sparse = _pax(content, offset)
                    sparse |= pax_sparse
                    name = pax_name if pax_name is not None else name
                    size = pax_size if pax_size is not None else size
                offset = following
                continue
            yield Member(
                name=name if name is not None else _raw(header.name),
                size=stored,
                is_file=header.type in _PLAIN and not sparse,
                kind="sparse file" if sparse else _KINDS.get(header.type, "special entry"),
                read=_reader(file, start, stored),
            )
            name = size = None
            sparse = False
            offset = following


_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_WITHOUT_DATA = (
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
    tarfile.DIRTYPE,
)
_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def _more_sparse_blocks(file: BinaryIO, more: int, at: int) -> int:
    """Bytes of the blocks that go on with a GNU sparse map, which stand before its data."""
    start = at
    while more:
        block = file.read(BLOCK)  # the file stands right behind the block before
        if len(block) < BLOCK:
            raise DamagedTarError(at, "the archive ends in a sparse map")
        more = block[_GNU_EXTENDED_NEXT]
        at += BLOCK
    return at - start


_GNU_EXTENDED = 482  # of a header: whether a block with more of the map follows
_GNU_EXTENDED_NEXT = 504  # the same of such a block


def _header(block: bytes, offset: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError, OverflowError) as error:
        raise DamagedTarError(offset, f"not a tar header ({error})") from error


def _reader(file: BinaryIO, start: int, length: int) -> Callable[[], bytes]:
    def read() -> bytes:
        file.seek(start)
        data = file.read(length)
        if len(data) < length:
            raise DamagedTarError(start, "the shard shrank while it was read")
        return data

    return read


def _require_zeros(file: BinaryIO, offset: int) -> None:
    """After the end mark only padding may follow; rows behind it would vanish unnoticed."""
    at = offset + BLOCK
    while chunk := file.read(1 << 20):
        if chunk.count(0) != len(chunk):
            raise DamagedTarError(
                at, "data after the end mark (concatenated archives are not read)"
            )
        at += len(chunk)


def _pax(content: bytes, offset: int) -> tuple[bytes | None, int | None, bool]:
    """(path, size, whether sparse) of a PAX header of records `LENGTH KEY=VALUE\\n`.

    LENGTH counts the whole record, itself included.
    """
    name: bytes | None = None
    size: int | None = None
    sparse = False
    at = 0
    while at < len(content) and content[at] != 0:
        space = content.find(b" ", at, at + 20)
        digits = content[at:space]
        end = at + int(digits) if space > 0 and digits.isdigit() else at
        if end <= space + 1 or end > len(content) or content[end - 1 : end] != b"\n":
            raise DamagedTarError(offset, "a malformed extended header")
        key, _, value = content[space + 1 : end - 1].partition(b"=")
        if key == b"path":
            name = value
        elif key == b"size":
            if not value.isdigit() or len(value) > 18:
                raise DamagedTarError(offset, f"a size of {display_name(value[:40])}")
            size = int(value)
        elif key.startswith(b"GNU.sparse"):
            sparse = True
        at = end
    return name, size, sparse


def _raw(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
