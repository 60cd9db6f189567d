"""Ways to make a writer fail: kill its process, fail its n-th system call, cut the power.

What a writer does is a `Step`, so that every way is tried on every operation of an index.

`PowerLossFs` does the real operations and keeps a journal of them. `Disk` replays a prefix of the
journal with a pessimistic model of a disk: only what was fsynced is certain. Any subset of the
rest may have reached the platter, in any order: names appear only once their directory is synced
(or by luck), unsynced content is torn at a 512-byte border, zeroed or missing.
"""

from __future__ import annotations

import errno
import json
import os
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakes import ColourEncoder
from indexes import NAMES, ListSource, record

from indexer.files.fs import Fs
from indexer.ingest.build import BuildOptions, build_index
from indexer.maintain.edit import delete_items, rollback
from indexer.maintain.optimize import optimize
from indexer.maintain.purge import purge
from indexer.maintain.repair import repair
from indexer.store.writer import IndexWriter
from models.sources.records import Record

PRIMITIVES = ("_create", "_write", "_fsync", "_close", "_rename", "_mkdir", "_remove")
Step = list[Any]
"""`["build", generation]`, `["delete", ids]`, `["optimize"]`, `["rollback", to]`, `["purge"]` or
`["repair"]`."""


def generation(number: int, size: int = 24) -> list[Record]:
    """Records whose colour and caption depend on the generation for every other key."""
    rows = []
    for i in range(size):
        colour = NAMES[(i + (number if i % 2 else 0)) % len(NAMES)]
        rows.append(record(f"p{i:02}", colour, colour, generation=number if i % 2 else 0))
    return rows


def perform(
    out: Path, step: Step, encoder: ColourEncoder, *, fs: Fs | None = None, size: int = 24
) -> None:
    """Do one step to an index."""
    match step:
        case ["build", number]:
            # every second generation as large builds run: with threads that read and write
            options = BuildOptions(batch_size=2, segment_rows=3, workers=0, overlap=number % 2 == 0)
            build_index(
                [ListSource(generation(number, size))], out, encoder, options=options, fs=fs
            )
        case ["delete", ids]:
            delete_items(out, ids, fs=fs)
        case ["optimize"]:
            optimize(out, fs=fs)
        case ["rollback", version]:
            rollback(out, version, fs=fs)
        case ["purge"]:
            purge(out, fs=fs)
        case ["repair"]:
            repair(out, yes=True, fs=fs)
        case _:
            raise AssertionError(step)


def victim(
    out: str, step: Step, acknowledged: str, embedded: str, kill_at: int | None = None
) -> None:
    """Do one step, logging every acknowledged version and every embedded picture.

    `kill_at`: the primitive call (0-based) at which it ends itself as if it were killed.
    """
    append(embedded, b"")  # tells that the process is under way
    commit = IndexWriter._commit

    def logged_commit(self: IndexWriter, *args: object, **named: object) -> object:
        manifest = commit(self, *args, **named)  # type: ignore[arg-type]
        append(acknowledged, f"{manifest.version}\n".encode())
        return manifest

    class Logged(ColourEncoder):
        def embed_images(self, images):  # type: ignore[no-untyped-def]
            append(embedded, b"." * len(images))
            return super().embed_images(images)

    IndexWriter._commit = logged_commit  # type: ignore[method-assign]
    fs = None if kill_at is None else KillingFs(kill_at)
    perform(Path(out), step, Logged(), fs=fs)


def serve() -> None:
    """Fork a `victim` for every line of JSON arguments; answer its pid, then its exit code.

    Forking from a process that has everything imported takes milliseconds where a new
    interpreter takes half a second, which is what makes many kills affordable.
    """
    for line in sys.stdin:
        arguments = json.loads(line)
        pid = os.fork()
        if pid == 0:
            victim(*arguments)
            os._exit(0)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def append(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, data)
    os.close(fd)


class FailingFs(Fs):
    """Fails the n-th primitive call (0-based) with an errno; `calls` counts them."""

    def __init__(self, fail_at: int = -1, code: int = errno.EIO) -> None:
        super().__init__()
        self.calls = 0
        self.failed = ""
        for name in PRIMITIVES:
            setattr(self, name, self._wrap(name, fail_at, code))

    def _wrap(self, name: str, fail_at: int, code: int):  # type: ignore[no-untyped-def]
        real = getattr(self, name)

        def call(*arguments: object) -> object:
            self.calls += 1
            if self.calls - 1 == fail_at:
                self.failed = name
                raise OSError(code, os.strerror(code))
            return real(*arguments)

        return call


class KillingFs(Fs):
    """Ends the process at the n-th primitive call (0-based), as a kill does: nothing is undone."""

    CODE = 77

    def __init__(self, kill_at: int) -> None:
        super().__init__()
        self.calls = 0
        for name in PRIMITIVES:
            setattr(self, name, self._wrap(getattr(self, name), kill_at))

    def _wrap(self, real, kill_at: int):  # type: ignore[no-untyped-def]
        def call(*arguments: object) -> object:
            if self.calls == kill_at:
                os._exit(self.CODE)
            self.calls += 1
            return real(*arguments)

        return call


@dataclass(frozen=True)
class Event:
    kind: str
    path: str
    data: bytes = b""


class PowerLossFs(Fs):
    """Journals every operation; `skip` leaves out the n-th fsync (the disk never hears of it)."""

    def __init__(self, journal: list[Event], skip: int = -1) -> None:
        super().__init__()
        self.journal = journal
        self.syncs = 0
        self.synced: list[Path] = []
        self._skip = skip

    def _create(self, path: Path) -> int:
        fd = super()._create(path)
        self.journal.append(Event("create", str(path)))
        return fd

    def _write(self, fd: int, data: memoryview) -> int:
        written = super()._write(fd, data)
        self.journal.append(Event("write", _path(fd), bytes(data[:written])))
        return written

    def _fsync(self, fd: int) -> None:
        path = Path(_path(fd))
        self.syncs += 1
        self.synced.append(path)
        skipped = self.syncs - 1 == self._skip
        if path.is_dir():
            if not skipped:
                self.journal.append(Event("sync-dir", str(path)))
        else:
            # SQLite wrote its file behind our back: the content arrives with the fsync
            kind = "written" if skipped else "sync-file"
            self.journal.append(Event(kind, str(path), path.read_bytes()))

    def _rename(self, source: Path, target: Path) -> None:
        super()._rename(source, target)
        self.journal.append(Event("rename", str(source), str(target).encode()))

    def _mkdir(self, path: Path) -> None:
        super()._mkdir(path)
        self.journal.append(Event("mkdir", str(path)))

    def _remove(self, path: Path) -> None:
        super()._remove(path)
        self.journal.append(Event("remove", str(path)))


def _path(fd: int) -> str:
    return str(Path(f"/proc/self/fd/{fd}").readlink())


@dataclass
class Node:
    """A file or directory: `certain` survives, `volatile` may."""

    directory: bool
    certain: bytes = b""
    volatile: bytes | None = None
    entries: dict[str, Node] = field(default_factory=dict)  # as the running system sees it
    durable: dict[str, Node] = field(default_factory=dict)
    pending: list[tuple[str, Node | None]] = field(default_factory=list)


class Disk:
    """What a disk may hold after the power goes, given the journal up to then."""

    def __init__(self, root: Path, events: list[Event]) -> None:
        self._base = root
        self.root = Node(directory=True)
        for event in events:
            self._apply(event)

    def _at(self, path: str) -> tuple[Node, str]:
        node = self.root
        parts = Path(path).relative_to(self._base).parts
        for part in parts[:-1]:
            node = node.entries[part]
        return node, parts[-1] if parts else ""

    def _link(self, parent: Node, name: str, child: Node | None) -> None:
        parent.entries.pop(name, None)
        if child is not None:
            parent.entries[name] = child
        parent.pending.append((name, child))

    def _apply(self, event: Event) -> None:
        parent, name = self._at(event.path)
        node = parent.entries.get(name) if name else self.root
        if event.kind in ("create", "mkdir"):
            self._link(parent, name, Node(directory=event.kind == "mkdir"))
        elif event.kind == "write":
            assert node is not None
            node.volatile = (node.certain if node.volatile is None else node.volatile) + event.data
        elif event.kind in ("sync-file", "written"):
            if node is None:
                node = Node(directory=False)
                self._link(parent, name, node)
            node.volatile = event.data
            if event.kind == "sync-file":
                node.certain, node.volatile = event.data, None
        elif event.kind == "sync-dir":
            assert node is not None
            for entry, child in node.pending:
                node.durable.pop(entry, None)
                if child is not None:
                    node.durable[entry] = child
            node.pending.clear()
        elif event.kind == "remove":
            # SQLite's scratch file is born unseen, with its fsync; one that never came is no loss
            if node is not None:
                self._unlink(parent, name, node)
        elif event.kind == "rename":
            assert node is not None
            self._link(parent, name, None)
            target, new_name = self._at(event.data.decode())
            self._link(target, new_name, node)

    def _unlink(self, parent: Node, name: str, node: Node) -> None:
        """Of a tree any part may be gone and any part still there."""
        for inner, child in list(node.entries.items()):
            self._unlink(node, inner, child)
        self._link(parent, name, None)

    def survive(self, where: Path, rng: random.Random, luck: float) -> None:
        """Materialise one possible state; `luck` is the chance of each unsynced change."""
        self._write_directory(self.root, where, rng, luck)

    def _write_directory(self, node: Node, where: Path, rng: random.Random, luck: float) -> None:
        where.mkdir(exist_ok=True)
        entries = dict(node.durable)
        for name, child in node.pending:
            if rng.random() < luck:
                entries.pop(name, None)
                if child is not None:
                    entries[name] = child
        for name, child in entries.items():
            if child.directory:
                self._write_directory(child, where / name, rng, luck)
            else:
                (where / name).write_bytes(_content(child, rng, luck))


def _content(node: Node, rng: random.Random, luck: float) -> bytes:
    if node.volatile is None:
        return node.certain
    if rng.random() < luck:
        return node.volatile
    cut = 512 * rng.randint(0, len(node.volatile) // 512)
    return rng.choice([node.volatile[:cut], node.volatile[:cut].ljust(len(node.volatile), b"\0")])


if __name__ == "__main__":
    serve()
