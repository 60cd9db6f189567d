"""Two sources with the same ids: nothing takes the place of what another source gave."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from fakes import ColourEncoder, solid
from indexes import NAMES, build, ids, opened, record, rejects_of

from indexer.format.manifest import Operation
from indexer.ingest import reader
from indexer.ingest.build import BuildOptions, BuildReport, build_index
from indexer.maintain.edit import Editor, delete_items
from indexer.maintain.optimize import optimize
from indexer.maintain.purge import purge
from indexer.maintain.verify import verify_index
from models.errors import SourceError
from models.sources import ReadOptions, open_source
from models.sources.jsonl import StdinSource


def folder(path: Path, colour: str, count: int = 3) -> Path:
    path.mkdir(parents=True)
    for number in range(count):
        (path / f"IMG_{number}.png").write_bytes(solid(colour, size=(8 + number, 8)))
    return path


def manifest(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def take(out: Path, *sources: Path | str, prefix: str | None = None, **more: Any) -> BuildReport:
    opened_ones = [open_source(str(one), prefix=prefix) for one in sources]
    return build_index(opened_ones, out, ColourEncoder(), options=BuildOptions(**more))


def colours(out: Path) -> dict[str, str]:
    """What each picture shows, as the encoder sees it."""
    encoder = ColourEncoder()
    assert verify_index(out).ok
    names = encoder.embed_texts([encoder.prepare_text(name) for name in NAMES])
    with opened(out) as snapshot:
        return {
            item_id: NAMES[int((names @ snapshot.vector(item_id)).argmax())]
            for item_id in ids(snapshot, "red")
        }


@pytest.fixture
def years(tmp_path: Path) -> tuple[Path, Path, Path]:
    return folder(tmp_path / "2019", "red"), folder(tmp_path / "2020", "blue"), tmp_path / "i"


FIRST = {f"IMG_{number}.png": "red" for number in range(3)}


def test_a_second_folder_with_the_same_names_replaces_nothing(
    years: tuple[Path, Path, Path],
) -> None:
    first, second, out = years
    take(out, first)
    report = take(out, second)
    assert (report.rejected, report.conflicts, report.updated, report.added) == (3, 3, 0, 0)
    [reject, *_] = rejects_of(out)
    assert reject["code"] == "id-conflict"
    for told in ("2019/IMG_0.png", "--prefix", "--id-field", "--replace"):
        assert told in reject["detail"]
    assert colours(out) == FIRST
    assert take(out, first).unchanged == 3
    assert take(out, second, first).unchanged == 3, "nor in another order"
    assert colours(out) == FIRST


def test_the_same_folder_updates_in_place_and_a_wish_is_done_once(
    years: tuple[Path, Path, Path],
) -> None:
    first, second, out = years
    take(out, first)
    (first / "IMG_0.png").write_bytes(solid("green", size=(8, 8)))
    assert take(out, first).updated == 1
    assert colours(out) == FIRST | {"IMG_0.png": "green"}
    assert take(out, second, replace=True).updated == 3
    assert set(colours(out).values()) == {"blue"}
    nightly = take(out, first)  # which does not know of the wish
    assert (nightly.conflicts, nightly.updated) == (3, 0)
    assert set(colours(out).values()) == {"blue"}


def test_a_prefix_keeps_both(years: tuple[Path, Path, Path]) -> None:
    first, second, out = years
    both = {f"{year}/{name}" for year in ("2019", "2020") for name in FIRST}
    assert take(out, first, second, prefix="{source}").added == 6
    assert set(colours(out)) == both
    again = take(out, first, second, prefix="{source}/", mirror=True)
    assert (again.unchanged, again.rejected, again.removed) == (6, 0, 0)
    assert take(out, second, prefix="new").added == 3
    assert set(colours(out)) == both | {f"new/{name}" for name in FIRST}
    for bad in ("", "/", "a\nb"):
        with pytest.raises(SourceError, match="cannot begin an id"):
            open_source(str(first), prefix=bad)


def test_both_in_one_command_name_the_remedy(years: tuple[Path, Path, Path]) -> None:
    first, second, out = years
    shutil.copy(first / "IMG_2.png", second / "IMG_2.png")  # one picture is in both
    for _ in range(2):
        report = take(out, first, second)
        assert (report.rejected, report.conflicts) == (2, 2)
        assert {one["code"] for one in rejects_of(out)} == {"duplicate-id"}
        assert "--prefix" in rejects_of(out)[0]["detail"]
        assert colours(out) == FIRST


def test_what_is_the_same_in_two_places_stays_in_the_first_while_that_is_there(
    years: tuple[Path, Path, Path],
) -> None:
    first, second, out = years
    shutil.rmtree(second)
    shutil.copytree(first, second)
    version = take(out, first).version
    for place in (second, first, second):
        report = take(out, place)
        assert (report.unchanged, report.rejected, report.version) == (3, 0, version)
    shutil.rmtree(first)
    assert take(out, second).moved == 3
    (second / "IMG_0.png").write_bytes(solid("green", size=(8, 8)))
    assert take(out, second).updated == 1, "what moved belongs to where it is"


def test_ids_of_a_table_are_its_own(tmp_path: Path) -> None:
    folder(tmp_path / "p", "red")
    shop = manifest(tmp_path / "shop.jsonl", {"id": 1, "image": "p/IMG_0.png", "caption": "one"})
    other = manifest(tmp_path / "other.jsonl", {"id": 1, "caption": "something else"})
    again = manifest(tmp_path / "again.jsonl", {"id": 1, "image": "p/IMG_0.png", "caption": "two"})
    out = tmp_path / "i"
    take(out, shop)
    for source in (other, again):
        report = take(out, source)
        assert (report.conflicts, report.updated) == (1, 0)
    manifest(shop, {"id": 0, "caption": "new"}, {"id": 1, "image": "p/IMG_1.png", "caption": "o"})
    report = take(out, shop)
    assert (report.added, report.updated, report.conflicts) == (1, 1, 0), "another line and path"


def test_a_folder_does_not_take_the_captions_of_a_table(tmp_path: Path) -> None:
    pictures, out = folder(tmp_path / "p", "red"), tmp_path / "i"
    table = manifest(tmp_path / "t.jsonl", {"id": "IMG_0.png", "image": "p/IMG_0.png", "text": "x"})
    take(out, table)
    assert take(out, pictures).conflicts == 1
    with opened(out) as snapshot:
        assert snapshot.item("IMG_0.png").text == "x"
    take(out.with_name("j"), pictures)
    assert take(out.with_name("j"), table).conflicts == 1
    assert take(out.with_name("j"), table, replace=True).updated == 1


def test_shards_whose_keys_begin_again(tmp_path: Path) -> None:
    for shard, colour in (("000", "red"), ("001", "blue")):
        folder(tmp_path / shard, colour)
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for path in sorted((tmp_path / shard).iterdir()):
                tar.add(path, arcname=path.name)
    out, other = tmp_path / "i", tmp_path / "j"
    take(out, tmp_path / "000.tar")
    assert take(out, tmp_path / "001.tar").conflicts == 3
    for spec in (f"{tmp_path}/001.tar::{tmp_path}/000.tar", f"{tmp_path}/{{000..001}}.tar"):
        report = take(out, spec)
        assert (report.added, report.updated) == (0, 0)
        assert report.conflicts == report.rejected >= 3
    assert set(colours(out).values()) == {"red"}
    report = take(other, f"{tmp_path}/{{000..001}}.tar", prefix="{source}")
    assert (report.added, report.rejected) == (6, 0)
    assert colours(other)["001/IMG_0"] == "blue"


def test_indexes_of_earlier_releases_update_in_place(
    years: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, out = years
    table = manifest(first.parent / "t.jsonl", {"id": "a", "image": "2019/IMG_0.png"})
    with monkeypatch.context() as patch:
        patch.setattr(reader, "origin_number", lambda _: None)  # as they stored it
        take(out, first)
        take(out.with_name("t"), table)
    (first / "IMG_1.png").write_bytes(solid("green", size=(8, 8)))
    assert take(out, first).updated == 1
    assert take(out, second).conflicts == 3
    manifest(table, {"id": "a", "image": "2020/IMG_0.png"})
    assert take(out.with_name("t"), table).updated == 1
    assert take(out, first).unchanged == 3


def test_where_a_record_came_from_outlives_what_rewrites_it(
    years: tuple[Path, Path, Path],
) -> None:
    first, second, out = years
    table = manifest(first.parent / "t.jsonl", *({"id": n, "caption": f"red {n}"} for n in "abc"))
    take(out, first, table)
    delete_items(out, ["IMG_0.png"])
    optimize(out)
    purge(out)
    manifest(table, {"id": "c", "caption": "green c"}, {"id": "a", "caption": "red a"})
    assert (take(out, table).updated, take(out, second).conflicts) == (1, 2)


def test_a_file_is_the_same_by_whatever_path(years: tuple[Path, Path, Path]) -> None:
    first, second, out = years
    (first.parent / "link").symlink_to(first, target_is_directory=True)
    take(out, first)
    (first / "IMG_0.png").write_bytes(solid("green", size=(8, 8)))
    report = take(out, first.parent / "link")
    assert (report.updated, report.unchanged, report.conflicts) == (1, 2, 0)
    take(out.with_name("all"), first.parent)
    (first / "IMG_1.png").write_bytes(solid("green", size=(8, 8)))
    report = take(out.with_name("all"), first, second, prefix="{source}")
    assert (report.updated, report.unchanged, report.conflicts) == (1, 5, 0)


def test_what_a_link_leads_to_may_change(years: tuple[Path, Path, Path]) -> None:
    first, second, out = years
    (first / "IMG_0.png").write_bytes((second / "IMG_0.png").read_bytes())
    current = first.parent / "current"
    current.symlink_to(first, target_is_directory=True)
    take(out, current)
    current.unlink()
    current.symlink_to(second, target_is_directory=True)
    report = take(out, current)
    assert (report.moved, report.updated, report.conflicts) == (1, 2, 0)


def test_a_put_is_a_wish_and_a_build_does_not_undo_it(years: tuple[Path, Path, Path]) -> None:
    first, _, out = years
    take(out, first)
    with opened(out) as snapshot:
        uri = snapshot.item("IMG_0.png").uri
    there = dataclasses.replace(record("IMG_0.png", "green"), uri=uri)
    put = Editor(out, ColourEncoder()).put([there, record("mine", "blue")])
    assert (put.updated, put.added) == (1, 1)
    report = take(out, first, mirror=True)
    assert (report.conflicts, report.unchanged, report.removed) == (1, 2, 0)
    assert colours(out) == FIRST | {"IMG_0.png": "green", "mine": "blue"}
    assert take(out, first, mirror=True, mirror_all=True).removed == 2


def test_records_without_an_origin_are_told_by_where_they_are(tmp_path: Path) -> None:
    out = tmp_path / "i"
    build([record("a", "red")], out)
    assert build([record("a", "blue")], out).updated == 1


def test_a_pipe_is_the_same_source_to_a_build_and_a_new_one_to_an_addition(tmp_path: Path) -> None:
    out = tmp_path / "i"

    def pipe(caption: str, operation: Operation = "build") -> BuildReport:
        line = json.dumps({"id": "1", "caption": caption}).encode()
        source = StdinSource(ReadOptions(), io.BytesIO(line))
        return build_index([source], out, ColourEncoder(), operation=operation)

    pipe("red")
    assert pipe("blue").updated == 1
    assert pipe("green", "add").conflicts == 1
    take(out, folder(tmp_path / "p", "red"))
    assert pipe("green").conflicts == 1


def test_a_source_without_anything_is_named(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    report = take(tmp_path / "i", tmp_path / "none", folder(tmp_path / "p", "red"))
    assert (report.empty, report.added) == ([str(tmp_path / "none")], 3)
    (tmp_path / "none" / "bad.png").write_bytes(b"no picture")
    assert take(tmp_path / "i", tmp_path / "none").empty == []
