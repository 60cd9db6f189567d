"""Others write while a build runs: it has the lock to commit, and what they did stands."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes import ColourEncoder
from indexes import NAMES, build, opened, record, rejects_of, scratch

from indexer.filters.declared import parse_fields
from indexer.format.manifest import read_manifest
from indexer.format.version import open_version
from indexer.ingest.build import BuildOptions, BuildReport, build_index
from indexer.ingest.side_files import journal_path
from indexer.maintain.edit import Editor, delete_items, rollback
from indexer.maintain.optimize import optimize
from indexer.maintain.purge import purge
from indexer.maintain.repair import repair
from indexer.maintain.verify import verify_index
from indexer.store.writer import IndexWriter
from models.errors import IndexLockedError, InputError
from models.sources.records import Record, Row, Source

Step = Record | Callable[[], object]
TESTS = Path(__file__).resolve().parents[2]


class Eventful(Source):
    """Records, and what happens elsewhere while they are read."""

    name = kind = "eventful"
    keys_are_paths = True

    def __init__(self, steps: list[Step]) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[Row]:
        for step in self._steps:
            if isinstance(step, Record):
                yield step
            else:
                step()


def add(out: Path, *steps: Step, **options: object) -> BuildReport:
    settings = BuildOptions(**{"batch_size": 2, "overlap": False, "relevance": False, **options})  # type: ignore[arg-type]
    return build_index([Eventful(list(steps))], out, ColourEncoder(), options=settings)


def put(out: Path, *records: Record) -> Callable[[], object]:
    return lambda: Editor(out, ColourEncoder()).put(list(records), allow_erased=True)


def state(out: Path) -> dict[str, tuple[str | None, list[str]]]:
    """By id of a picture: its text, and what its captions say. Each is there once."""
    found: dict[str, tuple[str | None, list[str]]] = {}
    captions: list[tuple[str | None, str | None]] = []
    with open_version(out) as version:
        for segment, dead in zip(version.segments, version.dead, strict=True):
            rows = [row for row in range(segment.entry.rows) if not dead[row]]
            for item in segment.items.items(rows).values():
                if item.modality == "image":
                    assert item.id not in found
                    found[item.id] = item.text, []
                else:
                    captions.append((item.image_id, item.text))
    for image, text in sorted(captions, key=str):
        found[image or ""][1].append(text or "")
    return found


@pytest.fixture
def out(tmp_path: Path) -> Path:
    out = tmp_path / "x.index"
    build([record(key, "red", f"old {key}") for key in "abcd"], out, relevance=False)
    return out


def said(text: str) -> tuple[str, list[str]]:
    return text, [text]


def test_a_put_beside_a_build_lands_and_so_does_the_build(out: Path) -> None:
    report = add(
        out,
        record("a", "blue", "new a"),
        put(out, record("p", "green", "put p")),
        record("e", "blue", "new e"),
    )
    assert (report.added, report.updated, report.overtaken) == (1, 1, 0)
    assert state(out) == {
        "a": said("new a"),
        **{key: said(f"old {key}") for key in "bcd"},
        "e": said("new e"),
        "p": said("put p"),
    }
    assert verify_index(out, deep=True).problems == []
    assert scratch(out) == []


def test_what_was_put_meanwhile_stands_and_is_told(out: Path) -> None:
    report = add(
        out,
        record("a", "blue", "new a"),
        record("e", "blue", "new e"),
        record("f", "blue", "same f"),
        put(out, record("a", "green", "put a"), record("e", "green", "put e")),
        put(out, record("f", "blue", "same f")),
        record("b", "blue", "new b"),
    )
    assert (report.added, report.updated, report.unchanged, report.overtaken) == (0, 1, 1, 2)
    found = state(out)
    assert [found[key] for key in "abef"] == [
        said("put a"),
        said("new b"),
        said("put e"),
        said("same f"),
    ]
    assert [(one["key"], one["code"]) for one in rejects_of(out)] == [
        ("a", "overtaken"),
        ("e", "overtaken"),
    ]
    assert verify_index(out, deep=True).problems == []


@pytest.mark.parametrize("allow_erased", [False, True])
def test_what_was_deleted_meanwhile_stays_gone(out: Path, allow_erased: bool) -> None:
    put(out, record("x", "red", "x"))()
    delete_items(out, ["x"])
    report = add(
        out,
        record("a", "blue", "new a"),
        record("b", "blue", "new b", "second"),
        record("x", "blue", "new x"),
        lambda: delete_items(out, ["a", "b#en/0"]),
        record("c", "blue", "new c"),
        allow_erased=allow_erased,
    )
    assert report.overtaken == 2
    found = state(out)
    assert found.keys() == ({"b", "c", "d", "x"} if allow_erased else {"b", "c", "d"})
    assert found["b"] == (None, [])
    again = add(out, record("a", "blue", "new a"))
    assert (again.erased, "a" in state(out)) == (1, False)


def test_a_text_alone_that_was_deleted_meanwhile_stays_gone(out: Path) -> None:
    text = record("t", None, "only words")

    def meanwhile() -> None:
        put(out, text)()
        delete_items(out, ["t#en/0"])

    report = add(out, text, meanwhile, record("e", "blue"))
    assert (report.added, report.overtaken) == (1, 1)
    assert read_manifest(out).live.texts == 4


@pytest.mark.parametrize("what", ["optimize", "rollback", "collect", "many"])
def test_rows_are_found_where_others_moved_them(out: Path, what: str) -> None:
    def meanwhile() -> None:
        if what == "optimize":
            put(out, record("p", "green"))()
            optimize(out)
        elif what == "rollback":
            put(out, record("p", "green"))()
            rollback(out, 1)
        else:  # more commits than versions are kept
            for number in range(17 if what == "collect" else 3):
                put(out, record("p", NAMES[number % 8]))()

    moved = record("c", "red", "old c")
    report = add(
        out,
        record("a", "blue", "new a"),
        Record(moved.key, "file:///elsewhere/c.png", moved.image, moved.texts),
        meanwhile,
        record("e", "blue", "new e"),
        segment_rows=2,
        mirror=True,
        mirror_all=True,
    )
    assert (report.added, report.updated, report.moved, report.removed) == (1, 1, 1, 2)
    found = state(out)
    found.pop("p", None)
    assert found == {"a": said("new a"), "c": said("old c"), "e": said("new e")}
    with opened(out) as snapshot:
        assert snapshot.item("c").uri == "file:///elsewhere/c.png"
    assert verify_index(out, deep=True).problems == []


def test_a_mirror_spares_what_was_put_meanwhile(out: Path) -> None:
    report = add(
        out,
        record("a", "red", "old a"),
        put(out, record("b", "green", "put b"), record("p", "green", "put p")),
        mirror=True,
        mirror_all=True,
    )
    assert (report.unchanged, report.removed, report.overtaken) == (1, 2, 1)
    assert state(out) == {"a": said("old a"), "b": said("put b"), "p": said("put p")}


def test_two_builds_at_once_both_land(out: Path) -> None:
    inner: list[BuildReport] = []

    def other() -> None:
        rows = [record("i", "green", "inner i"), record("a", "green", "inner a")]
        inner.append(add(out, *rows, record("", "red")))

    report = add(
        out,
        record("", "red"),
        record("a", "blue", "outer a"),
        other,
        record("o", "blue", "outer o"),
    )
    assert (inner[0].added, inner[0].updated) == (1, 1)
    assert (report.added, report.overtaken) == (1, 1)
    found = state(out)
    assert [found[key] for key in "aio"] == [said("inner a"), said("inner i"), said("outer o")]
    codes = sorted(one["code"] for one in rejects_of(out))
    assert codes == ["overtaken", "unusable-record", "unusable-record"]
    assert not journal_path(out).exists()
    assert verify_index(out, deep=True).problems == []


def test_all_that_a_build_has_may_be_overtaken(out: Path) -> None:
    report = add(out, record("a", "blue", "new a"), put(out, record("a", "green", "put a")))
    assert (report.updated, report.overtaken) == (0, 1)
    assert report.version == read_manifest(out).version == 2
    assert scratch(out) == []


def test_purge_and_repair_wait_for_a_build(out: Path) -> None:
    """They promise what is not there, and an unfinished segment may hold it."""

    def refused() -> None:
        for work in (purge, repair):
            with pytest.raises(IndexLockedError, match="is being written by process"):
                work(out)

    assert add(out, refused, record("e", "blue")).added == 1
    purge(out)
    assert repair(out).version == 3


def test_an_index_of_other_fields_is_not_mixed_with(tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    with IndexWriter(out, ColourEncoder().fingerprint):
        pass  # it declares nothing, and holds nothing

    def other() -> None:
        add(out, record("b", "red"))

    fields = parse_fields(["rank:int"])
    with pytest.raises(InputError, match="declares other filterable fields"):
        add(out, other, record("a", "red"), fields=fields)
    assert state(out).keys() == {"b"}


def test_scratch_of_the_dead_is_swept_and_of_the_living_is_not(out: Path) -> None:
    code = (
        "import os, sys; sys.path[:0] = sys.argv[1:3]\n"
        "from pathlib import Path\n"
        "from fakes import ColourEncoder\n"
        "from indexer.store.writer import IndexWriter\n"
        "writer = IndexWriter(Path(sys.argv[3]), ColourEncoder().fingerprint, shared=True)\n"
        "writer.new_segment('image')\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
        "os._exit(9)\n"
    )
    paths = [str(TESTS.parent), str(TESTS / "support"), str(out)]
    other = subprocess.Popen(
        [sys.executable, "-c", code, *paths], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == b"ready\n"
    put(out, record("p", "green"))()
    assert len(scratch(out)) == 1
    other.stdin.close()
    assert other.wait(60) == 9
    other.stdout.close()
    put(out, record("q", "green"))()
    assert scratch(out) == []


def test_a_writer_that_waits_for_its_turn_can_be_told_to_give_up(out: Path) -> None:
    fingerprint = ColourEncoder().fingerprint
    with IndexWriter(out, fingerprint, shared=True) as shared, IndexWriter(out, fingerprint):
        shared.give_up()
        with pytest.raises(IndexLockedError), shared.turn():
            pass


@pytest.mark.parametrize("seed", range(6))
def test_any_history_beside_a_build(tmp_path: Path, seed: int) -> None:
    """What others did to a record while a build ran stands; else the build's record does."""
    out = tmp_path / "x.index"
    rng = random.Random(seed)
    keys = [f"k{number:02}" for number in range(16)]
    build([record(key, "red", f"old {key}") for key in keys[:8]], out, relevance=False)
    expected = {key: said(f"new {key}") for key in keys}
    gone: set[str] = set()

    def something() -> None:
        key, number = rng.choice(keys), rng.randrange(10**6)
        match rng.choice(["put", "put", "put", "delete", "optimize"]):
            case "put":
                put(out, record(key, rng.choice(NAMES), f"put {number}"))()
                expected[key] = said(f"put {number}")
                gone.discard(key)
            case "delete" if key in state(out):
                delete_items(out, [key])
                gone.add(key)
            case "optimize":
                optimize(out)

    steps: list[Step] = []
    for key in keys:
        steps += [something, record(key, "blue", f"new {key}")]
    add(out, *steps, segment_rows=rng.choice([2, 5, 100]))
    assert state(out) == {key: one for key, one in expected.items() if key not in gone}
    assert verify_index(out, deep=True).problems == []
    assert scratch(out) == []
