"""Many small writes leave few segments, and nobody can tell but by how few there are."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from fakes import ColourEncoder
from indexes import NAMES, build, ids, opened, record

from indexer.filters.declared import parse_fields
from indexer.filters.language import parse_filter
from indexer.format.manifest import read_manifest
from indexer.maintain.edit import Editor, delete_items, rollback
from indexer.maintain.optimize import OptimizeOptions, optimize
from indexer.maintain.verify import verify_index
from indexer.search.options import SearchOptions
from indexer.search.snapshot import Snapshot
from indexer.store import writer as writer_module
from indexer.store.merge import SMALL_ROWS, choose
from models.environment import raise_file_limit
from models.errors import StoreError
from models.sources.records import Record
from service.cli import main as main_module

FIELDS = parse_fields(["year:int", "tags:str[]"])


def thing(number: int) -> Record:
    """Every third has no caption, every seventh no picture."""
    colour = NAMES[number % len(NAMES)]
    captions = (f"{colour} thing {number}", f"seen in {number % 5}")[: number % 3]
    picture = None if captions and number % 7 == 0 else colour
    return record(f"k{number:03}", picture, *captions, year=2000 + number % 9, tags=[colour])


def everything(snapshot: Snapshot) -> dict[str, object]:
    """What an index answers: rankings, words, filters, facets, items, thumbnails, vectors."""
    encoder = ColourEncoder()
    found: dict[str, object] = {"facets": snapshot.facets()}
    for text in ("red thing", "blue 7 seen", "3"):
        query = encoder.embed_texts([encoder.prepare_text(text)])
        for target in ("images", "texts"):
            for hybrid, wanted in ((0.0, None), (0.5, None), (0.5, {"field": "year", "gt": 2004})):
                options = SearchOptions(
                    k=200,
                    target=target,  # type: ignore[arg-type]
                    hybrid=hybrid,
                    filter=parse_filter(wanted) if wanted else None,
                )
                hits = snapshot.search(query, options, [text])[0]
                found[f"{text} {target} {hybrid} {wanted}"] = [
                    (hit.item, hit.score, hit.fused) for hit in hits
                ]
                if target == "images":
                    items = [hit.item.id for hit in hits]
                    found |= {f"{one} shown": snapshot.thumbnail(one) for one in items}
                    found |= {f"{one} said": snapshot.captions(one) for one in items}
                    found |= {f"{one} is": snapshot.vector(one).tolist() for one in items}
    return found


@pytest.fixture(scope="module")
def put_singly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seventy records, one put each, some put again and some deleted; and a version held open."""
    path = tmp_path_factory.mktemp("merge") / "x.index"
    build([thing(0)], path, fields=FIELDS)
    editor = Editor(path, ColourEncoder())
    for number in range(1, 70):
        editor.put([thing(number)])
        if number % 10 == 3:
            editor.put([record(thing(number - 1).key, "white", "now white", year=1, tags=[])])
        if number % 10 == 7:
            editor.delete([thing(number - 4).key])
    return path


def expected(count: int = 70) -> list[Record]:
    kept = {thing(number).key: thing(number) for number in range(count)}
    for number in range(3, count, 10):
        key = thing(number - 1).key
        kept[key] = record(key, "white", "now white", year=1, tags=[])
    for number in range(7, count, 10):
        del kept[thing(number - 4).key]
    return list(kept.values())


def test_what_was_put_singly_answers_as_what_was_built_at_once(
    put_singly: Path, tmp_path: Path
) -> None:
    build(expected(), tmp_path / "fresh", fields=FIELDS)
    with opened(put_singly) as snapshot, opened(tmp_path / "fresh") as fresh:
        assert snapshot.info().segments <= 14
        one, other = everything(snapshot), everything(fresh)
        assert one.keys() == other.keys()
        for name, answer in other.items():
            assert one[name] == answer, name
    assert verify_index(put_singly).ok
    assert verify_index(put_singly, deep=True).ok


def test_kept_versions_are_gone_back_to(put_singly: Path) -> None:
    now = read_manifest(put_singly)
    with opened(put_singly) as snapshot:
        before = sorted(ids(snapshot, "red"))
        rollback(put_singly, now.version - 10)
        with opened(put_singly) as back:
            assert "k069" in before
            assert "k069" not in ids(back, "red")
        rollback(put_singly, now.version)
        assert sorted(ids(snapshot, "red")) == before, "a reader keeps what it has open"
    with opened(put_singly) as again:
        assert sorted(ids(again, "red")) == before
    assert verify_index(put_singly).ok


def test_a_build_of_many_commits_finds_the_rows_it_replaces(tmp_path: Path) -> None:
    """They may be in another segment, at another row, by then."""
    path = tmp_path / "x.index"
    for number in range(3):
        build([thing(number)], path, fields=FIELDS)
    new = [record(thing(n).key, "black", "black again", year=n, tags=[]) for n in range(40)]
    build([thing(n) for n in range(3, 40)], path, segment_rows=1)
    build(new[::-1], path, segment_rows=1)
    build(new, tmp_path / "fresh", fields=FIELDS)
    with opened(path) as snapshot, opened(tmp_path / "fresh") as fresh:
        assert snapshot.info().images == fresh.info().images == 40
        assert everything(snapshot) == everything(fresh)
        assert snapshot.info().segments <= 14
    assert verify_index(path).ok


def test_rows_that_died_do_not_pile_up(tmp_path: Path) -> None:
    path = tmp_path / "x.index"
    build([thing(1)], path, relevance=False)
    editor = Editor(path, ColourEncoder())
    for number in range(12):
        editor.put([record("k001", NAMES[number % 4], f"{number}")])
    manifest = read_manifest(path)
    assert [(entry.modality, entry.rows) for entry in manifest.segments] == [
        ("image", 1),
        ("text", 1),
    ]
    assert manifest.tombstones is None


@pytest.mark.parametrize("seed", range(4))
def test_ten_thousand_single_puts_leave_a_bounded_number(seed: int) -> None:
    """The rule alone, with rows dying now and then; copies grow with the logarithm."""
    rng = np.random.default_rng(seed)
    segments, copied = [], 0
    for _ in range(10_000):
        small = {at: rows for at, rows in enumerate(segments) if 0 < rows < SMALL_ROWS}
        taken = choose(small, 1)
        copied += sum(segments[at] for at in taken)
        merged = 1 + sum(segments[at] for at in taken)
        segments = [rows for at, rows in enumerate(segments) if at not in taken and rows]
        segments.append(merged)
        if seed and rng.random() < 0.3:
            at = int(rng.integers(len(segments)))
            segments[at] = max(0, segments[at] - int(rng.integers(4)))
        assert len(segments) <= 32
    assert copied < 8 * 10_000
    if not seed:
        assert len(segments) <= 21
        assert sum(segments) == 10_000


def test_choosing() -> None:
    assert choose({}, 1) == set()
    assert choose({0: 1, 1: 1}, 1) == set()
    assert choose({0: 1, 1: 1, 2: 3}, 1) == {0, 1, 2}
    assert choose({0: 1, 1: 1, 2: 3}, 4) == set(), "of another tier"
    assert choose(dict.fromkeys(range(600), 1), 1) == set(range(600)), "of an earlier release"
    assert choose({0: 1, 1: 1, 2: 1, 3: 4, 4: 9, 5: 15}, 1) == set(range(6)), "and so the next tier"
    assert choose({0: 1, 1: 1, 2: 1, 3: 5000}, 0) == set(), "nothing to write and nothing due"


def test_a_segment_with_a_structure_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.index"
    build([thing(number) for number in range(300)], path, fields=FIELDS)
    optimize(path, OptimizeOptions(structure="hnsw", floor=0.5, fewest=1, gain=0.0))
    kept = [entry.id for entry in read_manifest(path).segments if entry.ann]
    assert kept
    editor = Editor(path, ColourEncoder())
    for number in range(300, 310):
        editor.put([thing(number)])
    assert set(kept) <= {entry.id for entry in read_manifest(path).segments}


@contextmanager
def few_files(more: int) -> Iterator[None]:
    """Let this process open so many files beyond those that it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(one.name) for one in Path("/proc/self/fd").iterdir()}
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(max(taken) + 1 - len(taken))]
    highest = max(*taken, *held) if held else max(taken)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)


@pytest.fixture(scope="module")
def scattered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of an earlier release, which merged nothing: a hundred segments of a row each."""
    path = tmp_path_factory.mktemp("scattered") / "x.index"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer_module, "_MERGING", frozenset())
        rows = [record(f"k{n:03}", NAMES[n % 4], f"thing {n}", year=n, tags=[]) for n in range(50)]
        build(rows, path, segment_rows=1, batch_size=1, fields=FIELDS)
    assert len(read_manifest(path).segments) == 100
    return path


@pytest.fixture
def many(scattered: Path, tmp_path: Path) -> Path:
    shutil.copytree(scattered, tmp_path / "x.index")
    return tmp_path / "x.index"


def test_optimize_opens_segments_in_turn(many: Path) -> None:
    with few_files(80):
        with pytest.raises(StoreError) as refused:
            opened(many)
        assert "diptych index optimize" in str(refused.value.hint)
        assert "ulimit -n" in str(refused.value.hint)
        report = optimize(many)
        assert (report.images.merged, report.images.changed) == (50, True)
        assert report.texts.merged == 50
        with opened(many) as snapshot:
            assert snapshot.info().segments == 2
            assert len(ids(snapshot, "red")) == 50
    assert verify_index(many).ok


@pytest.mark.parametrize("edit", ["put", "delete", "build"])
def test_one_edit_heals_an_index_of_many_segments(many: Path, edit: str) -> None:
    if edit == "put":
        Editor(many, ColourEncoder()).put([thing(200)])
    elif edit == "delete":
        delete_items(many, ["k001"])
    else:
        build([thing(200)], many)
    assert len(read_manifest(many).segments) <= 3
    with opened(many) as snapshot:
        assert snapshot.info().images == 49 + 2 * (edit != "delete")
    assert verify_index(many).ok


def test_commands_may_open_as_many_files_as_the_system_lets_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    seen = []
    monkeypatch.setattr(main_module.signal, "signal", lambda *_: None)
    monkeypatch.setattr(
        main_module,
        "run_and_exit",
        lambda _: seen.append(resource.getrlimit(resource.RLIMIT_NOFILE)),
    )
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
        main_module.main()  # type: ignore[unreachable]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert seen == [(min(hard, 65_536), hard)]
    assert raise_file_limit() >= seen[0][0]
