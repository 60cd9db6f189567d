"""Bringing an index up to date: what moved, what is gone, what was deleted and stays out."""

from __future__ import annotations

import dataclasses
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from fakes import ColourEncoder, solid
from indexes import NAMES, ListSource, build, ids, opened, record, reject

from indexer.format.erasures import read_erasures
from indexer.format.manifest import read_manifest
from indexer.ingest import reader
from indexer.ingest.build import BuildOptions, BuildReport, build_index
from indexer.ingest.options import DeferredEncoder
from indexer.maintain.edit import delete_items, rollback
from indexer.maintain.verify import verify_index
from models.errors import EncoderMismatchError, InputError, NotFoundError, SourceError
from models.sources import open_source
from models.sources.records import Record, Row

KEYS = [f"k{i}" for i in range(8)]


def rows(keys: Iterable[str] = KEYS) -> list[Record]:
    return [record(key, NAMES[int(key[1:])], NAMES[int(key[1:])]) for key in keys]


def live(path: Path) -> set[str]:
    assert verify_index(path).ok
    with opened(path) as snapshot:
        return set(ids(snapshot, "red"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "x.index"
    build(rows(), path, segment_rows=3)
    return path


def test_a_moved_collection_is_stored_anew_and_not_embedded(out: Path) -> None:
    encoder = ColourEncoder()
    moved = [dataclasses.replace(row, uri=f"file:///new/{row.key}") for row in rows()]
    moved[2] = record("k2", "white", "white")
    report = build(moved, out, encoder, segment_rows=4)
    assert (report.moved, report.updated, report.unchanged) == (7, 1, 0)
    assert (encoder.images_embedded, encoder.texts_embedded) == (1, 1)
    assert live(out) == set(KEYS)
    with opened(out) as snapshot:
        for key in KEYS:
            wanted = "file:///pictures/k2.png" if key == "k2" else f"file:///new/{key}"
            assert snapshot.item(key).uri == wanted
            assert [item.uri for item in snapshot.captions(key)] == [wanted]
            assert snapshot.thumbnail(key)
        assert ids(snapshot, "blue", 1) != ["k2"]
        assert ids(snapshot, "yellow", 1) == ["k3"]
    assert build(moved, out, encoder).unchanged == 8


def test_a_mirror_removes_what_is_gone(out: Path) -> None:
    report = build(rows(KEYS[2:]), out, mirror=True)
    assert (report.removed, report.unchanged, report.images) == (2, 6, 6)
    assert live(out) == set(KEYS[2:])
    with opened(out) as snapshot, pytest.raises(NotFoundError):
        snapshot.item("k0#en/0")
    # gone is not deleted: what comes back is indexed again
    assert build(rows(), out, mirror=True).added == 2
    assert build(rows(), out, mirror=True).version == read_manifest(out).version


def test_without_the_option_nothing_is_removed(out: Path) -> None:
    assert build(rows(KEYS[2:]), out).removed == 0
    assert live(out) == set(KEYS)


def test_a_mirror_that_would_remove_most_is_refused(out: Path) -> None:
    with pytest.raises(InputError, match="8 of 8") as caught:
        build([], out, mirror=True)
    assert caught.value.code == "mirror-too-much"
    with pytest.raises(InputError, match="5 of 8"):
        build([*rows(KEYS[:3]), record("new", "red")], out, mirror=True)
    assert live(out) == {*KEYS, "new"}, "what was new is kept all the same"
    assert build(rows(KEYS[:3]), out, mirror=True, mirror_all=True).removed == 6
    assert live(out) == set(KEYS[:3])


def test_a_source_that_was_not_read_to_its_end_removes_nothing(out: Path) -> None:
    with pytest.raises(SourceError):
        build([*rows(KEYS[:6]), SourceError("torn")], out, mirror=True)
    report = build([reject("a"), reject("b"), *rows(KEYS[:6])], out, mirror=True, max_errors=1)
    assert (report.stopped, report.removed) == (True, 0)
    with pytest.raises(InputError, match="1 rows could not be read") as caught:
        build([*rows(KEYS[:6]), reject("line 7")], out, mirror=True)
    assert caught.value.code == "mirror-uncertain"
    assert live(out) == set(KEYS)


def test_a_refused_record_is_not_gone(out: Path) -> None:
    spoilt = dataclasses.replace(rows()[7], image=b"no picture")
    report = build([*rows(KEYS[:6]), spoilt], out, mirror=True)
    assert (report.removed, report.rejected) == (1, 1)
    assert live(out) == set(KEYS) - {"k6"}


def folder_build(path: Path, out: Path, **options: object) -> BuildReport:
    settings = BuildOptions(**options)  # type: ignore[arg-type]
    return build_index([open_source(str(path))], out, ColourEncoder(), options=settings)


def test_a_folder_tells_what_it_could_not_read(tmp_path: Path) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "y.index"
    (pictures / "sub").mkdir(parents=True)
    for number, name in enumerate(("a", "b", "c", "sub/d", "sub/e")):
        (pictures / f"{name}.png").write_bytes(solid(NAMES[number], size=(8, 8)))
    assert folder_build(pictures, out).added == 5
    (pictures / "a.png").unlink()
    (pictures / "b.png").unlink()
    (pictures / "b.png").symlink_to("c.png")  # refused, yet there
    report = folder_build(pictures, out, mirror=True)
    assert (report.removed, report.rejected) == (1, 1)
    assert live(out) == {"b.png", "c.png", "sub/d.png", "sub/e.png"}


def test_a_folder_that_cannot_be_listed_keeps_what_is_below_it(out: Path) -> None:
    class Folder(ListSource):
        kind = "folder"
        keys_are_paths = True

    def mirror(source: list[Row]) -> BuildReport:
        options = BuildOptions(mirror=True, mirror_all=True)
        return build_index([Folder(source)], out, ColourEncoder(), options=options)

    build([record("sub/a", "red"), record("sub/b/c", "red"), record("subway", "red")], out)
    kept = {*KEYS[:6], "sub/a", "sub/b/c"}
    assert mirror([*rows(KEYS[:6]), reject("sub/")]).removed == 3
    assert live(out) == kept
    assert mirror([reject("/")]).removed == 0
    assert live(out) == kept


def test_what_was_deleted_stays_out_of_a_build(out: Path) -> None:
    delete_items(out, ["k1", "k3#en/0"])
    for source in (rows(), [record("k1", "white", "changed"), *rows(["k0"])]):
        encoder = ColourEncoder()
        report = build(source, out, encoder)
        assert (report.erased, encoder.images_embedded) == (1, 0)
        assert live(out) == set(KEYS) - {"k1"}
    # a changed record comes without the text that was deleted, wherever it stands
    report = build([record("k3", "white", "fine", NAMES[3])], out)
    assert (report.updated, report.erased) == (1, 1)
    with opened(out) as snapshot:
        assert [item.id for item in snapshot.captions("k3")] == ["k3#en/0"]
        assert snapshot.item("k3").text == "fine"


def test_it_comes_back_only_when_asked_for(out: Path) -> None:
    delete_items(out, ["k1", "k3#en/0"])
    report = build(rows(), out, allow_erased=True)
    assert (report.added, report.updated, report.erased) == (1, 1, 0)
    assert live(out) == set(KEYS)
    with opened(out) as snapshot:
        assert snapshot.item("k3#en/0").text == NAMES[3]
    assert len(read_erasures(out, read_manifest(out))) == 0
    assert build(rows(), out).unchanged == 8
    rollback(out, 3)  # and an older state may come back again
    assert live(out) == set(KEYS)


def test_an_up_to_date_index_needs_no_model(out: Path) -> None:
    loaded = []

    def load() -> ColourEncoder:
        loaded.append(1)
        return ColourEncoder()

    deferred = DeferredEncoder(ColourEncoder().fingerprint, load)
    options = BuildOptions(mirror=True)
    report = build_index([ListSource(rows(KEYS[1:]))], out, deferred, options=options)
    assert (report.unchanged, report.removed, loaded) == (7, 1, [])
    report = build_index([ListSource(rows())], out, deferred)
    assert (report.added, loaded) == (1, [1])


def test_a_deferred_model_that_is_another_is_refused(out: Path) -> None:
    deferred = DeferredEncoder(ColourEncoder().fingerprint, lambda: ColourEncoder(name="other"))
    with pytest.raises(EncoderMismatchError):
        build_index([ListSource([record("new", "red")])], out, deferred)
    assert live(out) == set(KEYS)


def disk(path: Path, *names: str) -> Path:
    """A folder of pictures; `names` are paths below it."""
    for number, name in enumerate(names):
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(solid(NAMES[number % 8], size=(8 + number, 8 + len(path.name))))
    return path


def mirror_of(out: Path, *sources: Path, **options: object) -> BuildReport:
    settings = BuildOptions(mirror=True, **options)  # type: ignore[arg-type]
    opened_ones = [open_source(str(one)) for one in sources]
    return build_index(opened_ones, out, ColourEncoder(), options=settings)


@pytest.mark.parametrize("stored", ["now", "by an earlier release"])
def test_a_source_that_had_records_and_has_none_is_not_mounted(
    tmp_path: Path, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop = disk(tmp_path / "laptop", *(f"l{n}.png" for n in range(6)))
    usb = disk(tmp_path / "usb", *(f"u{n}.png" for n in range(4)))
    out = tmp_path / "x.index"
    with monkeypatch.context() as patch:
        if stored != "now":
            patch.setattr(reader, "origin_number", lambda _: None)
        mirror_of(out, laptop, usb)
    usb.rename(tmp_path / "away")
    usb.mkdir()  # an empty mount point
    with pytest.raises(InputError, match="nothing was removed") as caught:
        mirror_of(out, laptop, usb)
    assert caught.value.code == "mirror-emptied"
    assert "--mirror-all" in (caught.value.hint or "")
    if stored == "now":
        with pytest.raises(InputError, match="any of the 4 records"):
            mirror_of(out, laptop)  # the mount point gone too, and so not named
    assert len(live(out)) == 10
    assert mirror_of(out, laptop, usb, mirror_all=True).removed == 4
    assert mirror_of(out, laptop, usb).removed == 0, "a source that is empty is none that was lost"


def test_a_folder_that_lost_everything_is_not_mounted(tmp_path: Path) -> None:
    names = [
        *(f"in/usb/u{n}.png" for n in range(3)),
        *(f"l/{n}.png" for n in range(6)),
        "one/a.png",
    ]
    everything = disk(tmp_path / "all", *names)
    out = tmp_path / "x.index"
    mirror_of(out, everything)
    (everything / "in" / "usb").rename(tmp_path / "away")
    (everything / "one" / "a.png").unlink()
    for spoil in (lambda: None, (everything / "in" / "usb").mkdir, (everything / "in/x.png").touch):
        spoil()
        with pytest.raises(InputError, match=r"none of the 3 records below in/(usb/)? is"):
            mirror_of(out, everything)
        assert len(live(out)) == 10
    (tmp_path / "away").rename(everything / "moved")
    report = mirror_of(out, everything)
    assert (report.added, report.removed) == (3, 4), "what moved is not lost, nor is one picture"
    (everything / "l" / "0.png").unlink()
    assert mirror_of(out, everything).removed == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tar"])
def test_a_file_that_is_empty_now_is_not_what_it_was(tmp_path: Path, suffix: str) -> None:
    pictures, table = disk(tmp_path / "p", *(f"{n}.png" for n in range(6))), tmp_path / f"t{suffix}"
    rows = [f'{{"id": "t{n}", "caption": "red {n}"}}\n' for n in range(3)]
    full = {".jsonl": "".join(rows), ".csv": "id,caption\nt0,red\nt1,blue\n", ".tar": ""}[suffix]
    table.write_text(full)
    if suffix == ".tar":
        with tarfile.open(table, "w") as tar:
            for name in ("0.png", "1.png"):
                tar.add(pictures / name, arcname=f"t{name}")
    out = tmp_path / "x.index"
    mirror_of(out, pictures, table)
    if suffix == ".tar":
        tarfile.open(table, "w").close()
    else:
        table.write_text("" if suffix == ".jsonl" else "id,caption\n")
    with pytest.raises(InputError, match="nothing was removed"):
        mirror_of(out, pictures, table)


def test_a_record_whose_source_lost_it_makes_room_for_another_source(tmp_path: Path) -> None:
    first = disk(tmp_path / "first", "a.png", "b.png", "c.png")
    second = disk(tmp_path / "second", "a.png")
    out = tmp_path / "x.index"
    assert mirror_of(out, first, second).conflicts == 1
    (first / "a.png").unlink()
    assert (mirror_of(out, first, second).removed) == 1
    report = mirror_of(out, first, second)
    assert (report.added, report.conflicts) == (1, 0)
    with pytest.raises(InputError):
        mirror_of(tmp_path / "x.index", second)  # would remove what the other source has
