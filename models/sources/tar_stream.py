"""A walk over the headers of a tar archive, with limits on everything an archive can claim.

Why not `tarfile` itself: it reads a PAX header of any claimed size into memory, recurses on
chains of long names, and ends silently where an archive is cut between members. Only header
*parsing* (numbers, checksum, old formats) is left to `tarfile.TarInfo.frombuf`. Nothing is ever
extracted.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from models.sources.files import display_name, open_plain

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
            header = _parse(block, offset)
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


def _parse(block: bytes, offset: int) -> tarfile.TarInfo:
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
