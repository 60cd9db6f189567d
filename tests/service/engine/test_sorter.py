"""Sorting and undoing: nothing overwritten, nothing lost, whatever instant the process dies at."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from models.errors import InputError
from service.engine import sorter as sorting
from service.engine.sorter import Sorter, folder_names, numbered, safe_name
from service.engine.undo import read_undo_file, undo

PICTURES = {"a.jpg": b"picture one", "b.jpg": b"picture two", "deep/a.jpg": b"picture three"}


def prepare(home: Path) -> tuple[Path, Path]:
    photos = home / "photos"
    for name, data in PICTURES.items():
        path = photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return photos, home / "sorted"


def sort(photos: Path, out: Path, by: sorting.By, undo_file: Path | None = None) -> Path:
    with Sorter(out, by, undo_file) as sorter:
        for name in PICTURES:
            source = photos / name
            sorter.place(source, source.read_bytes(), source.name, ("cat",))
        return sorter.undo_file


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


@pytest.mark.parametrize("by", ["copy", "link", "move"])
def test_sorted_and_taken_back(tmp_path: Path, by: sorting.By) -> None:
    photos, out = prepare(tmp_path)
    undo_file = sort(photos, out, by)
    placed = {p.name: p.read_bytes() for p in (out / "cat").iterdir()}
    # two pictures of one name: the second gets a number
    assert placed == {
        "a.jpg": b"picture one", "b.jpg": b"picture two", "a-2.jpg": b"picture three",
    }  # fmt: skip
    assert contents(photos) == ({} if by == "move" else PICTURES)
    assert undo(undo_file).kept == []
    assert contents(photos) == PICTURES
    assert [path.name for path in out.iterdir()] == [undo_file.name]
    assert undo(undo_file).restored == 0, "a second time changes nothing"
    assert contents(photos) == PICTURES


def test_a_copy_keeps_its_time(tmp_path: Path) -> None:
    photos, out = prepare(tmp_path)
    os.utime(photos / "b.jpg", ns=(10**18, 10**18))
    sort(photos, out, "copy")
    assert (out / "cat" / "b.jpg").stat().st_mtime_ns == 10**18


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    photos, out = prepare(tmp_path)
    (out / "cat").mkdir(parents=True)
    (out / "cat" / "a.jpg").write_bytes(b"mine")
    (out / "cat" / "a-2.jpg").symlink_to("nowhere")
    undo_file = sort(photos, out, "move")
    assert (out / "cat" / "a.jpg").read_bytes() == b"mine"
    assert (out / "cat" / "a-3.jpg").read_bytes() == b"picture one"
    undo(undo_file)
    assert contents(photos) == PICTURES
    assert (out / "cat" / "a.jpg").read_bytes() == b"mine"


def test_a_name_taken_between_the_look_and_the_act(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = prepare(tmp_path)
    real = os.link

    def late(source: Path, target: Path, **more: object) -> None:
        if str(target).endswith("/a.jpg") and not Path(target).exists():
            Path(target).write_bytes(b"theirs")
        real(source, target, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", late)
    undo_file = sort(photos, out, "move")
    monkeypatch.undo()
    assert (out / "cat" / "a.jpg").read_bytes() == b"theirs"
    assert undo(undo_file).kept == []
    assert contents(photos) == PICTURES
    assert (out / "cat" / "a.jpg").read_bytes() == b"theirs"


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP])
@pytest.mark.parametrize("by", ["copy", "move"])
def test_where_hard_links_do_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: sorting.By, code: int
) -> None:
    photos, out = prepare(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    undo_file = sort(photos, out, by)
    assert len(list((out / "cat").iterdir())) == 3
    undo(undo_file)
    assert contents(photos) == PICTURES


def test_a_picture_that_cannot_be_moved_stays_in_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = prepare(tmp_path)
    real = Path.unlink

    def locked(path: Path, missing_ok: bool = False) -> None:
        if path == photos / "b.jpg":
            raise PermissionError(errno.EACCES, "denied")
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", locked)
    with Sorter(out, "move") as sorter, pytest.raises(PermissionError):
        sorter.place(photos / "b.jpg", b"picture two", "b.jpg", ("cat",))
    assert contents(photos) == PICTURES
    assert not (out / "cat" / "b.jpg").exists()


# -- what undoing refuses ------------------------------------------------------------------------


def test_what_changed_since_is_kept_and_said(tmp_path: Path) -> None:
    photos, out = prepare(tmp_path)
    undo_file = sort(photos, out, "copy")
    (out / "cat" / "b.jpg").write_bytes(b"edited")
    report = undo(undo_file)
    assert [Path(where).name for where, _ in report.kept] == ["b.jpg"]
    assert (out / "cat" / "b.jpg").read_bytes() == b"edited"


def test_a_new_file_under_the_old_name_is_not_replaced(tmp_path: Path) -> None:
    photos, out = prepare(tmp_path)
    undo_file = sort(photos, out, "move")
    photos.mkdir(exist_ok=True)
    (photos / "b.jpg").write_bytes(b"a new one")
    report = undo(undo_file)
    assert len(report.kept) == 1
    assert (photos / "b.jpg").read_bytes() == b"a new one"
    assert (out / "cat" / "b.jpg").read_bytes() == b"picture two"
    assert (photos / "a.jpg").read_bytes() == b"picture one"


def test_folders_that_are_gone_are_made_again(tmp_path: Path) -> None:
    photos, out = prepare(tmp_path)
    undo_file = sort(photos, out, "move")
    (photos / "deep").rmdir()
    undo(undo_file)
    assert contents(photos) == PICTURES


@pytest.mark.parametrize(
    "content",
    [b"", b"{}\n", b"[]\n", b"\xff\n", b'{"diptych": "sort", "format": 2}\n',
     b'{"diptych": "sort", "format": 1}\n{"do": "rm", "target": "/"}\n',
     b'{"diptych": "sort", "format": 1}\n{"do": "move", "target": "/x"}\n'],
)  # fmt: skip
def test_what_is_no_undo_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "undo.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError):
        read_undo_file(path)
    with pytest.raises(InputError):
        read_undo_file(tmp_path / "none")


def test_names_that_are_not_utf8_come_back(tmp_path: Path) -> None:
    photos, out = prepare(tmp_path)
    odd = Path(os.fsdecode(os.fsencode(photos) + b"/\xff\xfe.jpg"))
    odd.write_bytes(b"odd")
    with Sorter(out, "move") as sorter:
        sorter.place(odd, b"odd", odd.name, ("cat",))
    undo(sorter.undo_file)
    assert odd.read_bytes() == b"odd"


def test_an_undo_file_is_never_written_over(tmp_path: Path) -> None:
    photos, out = prepare(tmp_path)
    first = sort(photos, out, "link")
    assert sort(photos, out, "link") != first
    taken = tmp_path / "undo"
    taken.write_text("mine")
    with pytest.raises(Exception, match="exist"):
        sort(photos, out, "link", taken)
    assert taken.read_text() == "mine"


# -- killed at every instant ---------------------------------------------------------------------

CALLS = ("write", "fsync", "link", "symlink", "unlink", "mkdir", "utime", "open")


def die_at(instant: int) -> None:
    """Patch the system calls sorting makes: SIGKILL before call n at 2n, after it at 2n + 1."""
    count = 0

    def wrap(real: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **more: object) -> object:
            nonlocal count
            if instant == 2 * count:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments, **more)
            if instant == 2 * count + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return result

        return step

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))


def killed(call: int, work: Callable[[], object]) -> bool:
    """Run `work` in a forked child that dies at an instant; False if it got through."""
    pid = os.fork()
    if pid == 0:
        die_at(call)
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("by", ["copy", "link", "move"])
def test_killed_at_every_system_call_nothing_is_lost_and_all_comes_back(
    tmp_path: Path, by: sorting.By
) -> None:
    whole = {hashlib.sha256(data).digest() for data in PICTURES.values()}
    call = 0
    while True:
        home = tmp_path / str(call)
        photos, out = prepare(home)
        undo_file = home / "undo.jsonl"
        died = killed(call, lambda p=photos, o=out, u=undo_file: sort(p, o, by, u))
        everywhere = {hashlib.sha256(data).digest() for data in contents(home).values()}
        assert whole <= everywhere, f"lost at call {call}"
        if undo_file.exists() and undo_file.read_bytes().count(b"\n"):
            assert undo(undo_file).kept == [], call
        assert contents(photos) == PICTURES, call
        if out.exists():
            assert not any(path.is_file() or path.is_symlink() for path in out.rglob("*")), call
        if not died:
            break
        call += 1
    assert call > 30


def test_killed_while_undoing(tmp_path: Path) -> None:
    call = 0
    while True:
        home = tmp_path / str(call)
        photos, out = prepare(home)
        undo_file = sort(photos, out, "move", home / "undo.jsonl")
        died = killed(call, lambda u=undo_file: undo(u))
        assert undo(undo_file).kept == [], call
        assert contents(photos) == PICTURES, call
        if not died:
            break
        call += 1
    assert call > 10


# -- names ---------------------------------------------------------------------------------------


def test_folders_are_safe_and_never_shared() -> None:
    labels = ["cat", "Cat", "a/b", "a:b", "..", "", "_none", "con", "x" * 500, "猫", "é", "e\u0301"]
    folders = folder_names([(label,) for label in labels])
    chosen = [folders[(label,)][0] for label in labels]
    assert len({name.casefold() for name in chosen}) == len(labels)
    for name in chosen:
        assert name not in ("", ".", "..", "_none")
        assert "/" not in name
        assert len(name.encode()) <= 130
    assert folders[("cat",)] == ("cat",)
    assert folders[("猫",)] == ("猫",)


def test_trees_become_nested_folders() -> None:
    folders = folder_names([("animal", "cat"), ("animal", "dog"), ("Animal", "cat")])
    assert folders[("animal", "cat")] == ("animal", "cat")
    assert folders[("Animal", "cat")] == ("Animal-2", "cat")


def test_safe_and_numbered_names() -> None:
    assert safe_name(" a\x00b\n?. ") == "a_b__"
    assert numbered("a.tar.gz", 2) == "a.tar-2.gz"
    assert numbered("README", 3) == "README-3"
    assert numbered(".hidden", 2) == ".hidden-2"


def test_the_undo_file_speaks_before_the_act(tmp_path: Path) -> None:
    photos, out = prepare(tmp_path)
    undo_file = sort(photos, out, "move")
    lines = [json.loads(line) for line in undo_file.read_text().splitlines()]
    assert [line.get("do") for line in lines] == [None, "mkdir", "mkdir", "move", "move", "move"]
    torn = undo_file.read_bytes() + b'{"do": "move", "sour'
    undo_file.write_bytes(torn)
    assert len(read_undo_file(undo_file)) == 5
