"""Webdataset tar shards, streamed member by member.

`KEY.jpg` with `KEY.txt`, `KEY.json`, `KEY.cls` or `KEY.caption` next to each other make one row;
KEY is the name up to the first dot of its last part, as webdataset defines it. Members are bytes
and names are labels: nothing is ever extracted, no link is followed, no shard is a shell command.
A damaged shard gives the rows up to the damage, one `Reject` with the byte offset, and the run
goes on with the next shard.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.data.fields import FieldError, Fields, caption_lines, interpret, parse_object
from models.data.files import (
    IMAGE_SUFFIXES,
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    SeenKeys,
    absolute,
    display_name,
    file_uri,
    open_plain,
)
from models.data.records import Record, Reject, Row
from models.data.tar_stream import DamagedTarError, Member, members
from models.errors import SourceError

TEXT_SUFFIXES = frozenset({"txt", "caption", "json", "cls"})
MAX_SHARDS = 1_000_000
_COUNT_LIMIT = 4 * 1024**3

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
# webdataset's own rule: directory part, name up to the first dot, rest
_SPLIT = re.compile(rb"^((?:.*/)?[^./][^./]*)\.([^/]*)$", re.DOTALL)


def expand_shards(spec: str) -> list[str]:
    """Shard names of a specification: brace ranges, and several separated by `::`.

    Example:
        >>> expand_shards("a-{08..10}.tar")
        ['a-08.tar', 'a-09.tar', 'a-10.tar']

    Raises:
        SourceError: a range that is empty, or more than a million shards.
    """
    if "{" not in spec and "::" not in spec:
        return [spec]
    if Path(spec).exists():  # a name may contain braces
        return [spec]
    shards: list[str] = []
    for pattern in spec.split("::"):
        pending = [pattern]
        while pending:
            name = pending.pop()
            found = _RANGE.search(name)
            if found is None:
                shards.append(name)
                continue
            first, last = found[1], found[2]
            numbers = range(int(first), int(last) + 1)
            if not numbers:
                raise SourceError(f"the range {found[0]} in {spec!r} is empty")
            if len(numbers) + len(shards) + len(pending) > MAX_SHARDS:
                raise SourceError(f"{spec!r} names more than {MAX_SHARDS} shards")
            pending += [
                f"{name[: found.start()]}{number:0{len(first)}d}{name[found.end() :]}"
                for number in reversed(numbers)
            ]
    return shards


class TarSource:
    """Rows of tar shards in shard order, then member order."""

    kind = "tar"

    def __init__(
        self,
        shards: Sequence[str],
        *,
        name: str | None = None,
        text_field: str | None = None,
        label_field: str | None = None,
    ) -> None:
        """Raises SourceError for a shard that is missing, special or compressed."""
        if not shards:
            raise SourceError("no shards were named")
        self.name = name or "::".join(shards)
        self._shards = list(shards)
        self._text_field = text_field
        self._label_field = label_field
        self._bytes = 0
        for shard in self._shards:
            file, size = open_plain(shard)
            file.close()
            self._bytes += size

    def count(self) -> int | None:
        """Pictures by name, from member headers; None above 4 GiB, where even that takes long."""
        if self._bytes > _COUNT_LIMIT:
            return None
        total = 0
        for shard in self._shards:
            try:
                total += sum(_split(member.name)[1] in IMAGE_SUFFIXES for member in members(shard))
            except (DamagedTarError, SourceError):
                continue
        return total

    def __iter__(self) -> Iterator[Row]:
        seen = SeenKeys()
        for shard in self._shards:
            try:
                for group in self._groups(shard):
                    for row in self._rows(shard, group):
                        if isinstance(row, Record) and not seen.add(row.key):
                            yield Reject(shard, row.key, "duplicate-key", "the key occurs twice")
                        else:
                            yield row
            except DamagedTarError as error:
                yield Reject(shard, f"byte {error.offset}", "shard-damaged", str(error))
            except SourceError as error:  # removed or replaced since it was named
                yield Reject(shard, "", error.code, error.message)

    def _groups(self, shard: str) -> Iterator[_Group]:
        """Consecutive members of one key. A group cut off by damage is not yielded: what is
        missing from it cannot be known."""
        group: _Group | None = None
        for member in members(shard):
            key, suffix = _split(member.name)
            if suffix not in IMAGE_SUFFIXES and suffix not in TEXT_SUFFIXES:
                continue
            if group is None or group.key != key:
                if group is not None:
                    yield group
                group = _Group(key)
            group.add(member, suffix)
        if group is not None:
            yield group

    def _rows(self, shard: str, group: _Group) -> Iterator[Row]:
        for name, code, detail in group.problems:
            yield Reject(shard, display_name(name), code, detail)
        data: dict[str, Any] = {}
        for suffix, (name, content) in group.texts.items():
            try:
                found = _parse(suffix, content)
            except FieldError as error:
                yield Reject(shard, display_name(name), error.code, error.detail)
            else:
                data = data | found if suffix == "json" else found | data
        fields = Fields({}, None, {})
        try:
            fields = interpret(data, text_field=self._text_field, label_field=self._label_field)
        except FieldError as error:
            yield Reject(shard, display_name(group.key), error.code, error.detail)
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
        )


@dataclass(slots=True)
class _Group:
    """The members of one key, as bytes by name."""

    key: bytes
    picture: tuple[bytes, bytes] | None = None
    picture_refused: bool = False
    texts: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    problems: list[tuple[bytes, str, str]] = field(default_factory=list)

    def add(self, member: Member, suffix: str) -> None:
        is_picture = suffix in IMAGE_SUFFIXES
        problem = self._problem(member, is_picture, suffix)
        if problem is not None:
            self.problems.append((member.name, *problem))
            self.picture_refused |= is_picture and self.picture is None
        elif is_picture:
            self.picture = (member.name, member.read())
        else:
            self.texts[suffix] = (member.name, member.read())

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
