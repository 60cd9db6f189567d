"""The demo's collections: what becomes a record, what is left out. Nothing is downloaded here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import solid

from models.errors import SourceError
from service.demo import __main__ as main
from service.demo import stamps, wheel_photos


def stamp(root: Path, name: str, text: str | None = None, *, drawn: bool = False) -> None:
    picture = root / "usr/share/tuxpaint/stamps" / f"{name}.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(solid("red"))
    if text is not None:
        picture.with_suffix(".txt").write_text(text, encoding="utf-8")
    if drawn:
        picture.with_suffix(".svg").write_text("<svg/>")


def rows(manifest: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]


def test_photographs_become_records_and_drawings_do_not(tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked"
    names = "A tiger.\nzh_CN.utf8=老虎。\nzh_TW.utf8=老虎\nes.utf8=Un tigre.\nfr.utf8=Un tigre.\n"
    stamp(unpacked, "animals/cats/tiger", names)
    stamp(unpacked, "animals/cats/nameless")
    stamp(unpacked, "animals/cats/tiger_mirror", names)
    stamp(unpacked, "animals/cats/cartoon/lion", "A lion.")
    stamp(unpacked, "symbols/letters/a", "The letter A.")
    stamp(unpacked, "town/house", "A house.", drawn=True)
    manifest = tmp_path / "stamps.jsonl"

    assert stamps.write_manifest(unpacked, manifest) == 2
    nameless, tiger = rows(manifest)
    assert nameless["captions"] == {}
    assert tiger == {
        "id": "animals/cats/tiger",
        "image": "unpacked/usr/share/tuxpaint/stamps/animals/cats/tiger.png",
        "captions": {"en": "A tiger.", "zh": "老虎。", "es": "Un tigre."},
        "category": "animals/cats",
    }
    assert (tmp_path / str(tiger["image"])).is_file()


def test_an_unknown_layout_is_an_error_and_leaves_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="layout"):
        stamps.write_manifest(tmp_path / "unpacked", tmp_path / "stamps.jsonl")
    assert not (tmp_path / "stamps.jsonl").exists()


def test_names_tolerate_empty_and_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    assert stamps.parse_names(path) == {}
    path.write_bytes(b"")
    assert stamps.parse_names(path) == {}
    path.write_bytes(b"A \xff cat\nes.utf8=\n")
    assert stamps.parse_names(path) == {"en": "A � cat"}


def test_wheel_photographs_are_real_and_named(tmp_path: Path) -> None:
    manifest = wheel_photos.write_manifest(tmp_path)
    found = rows(manifest)
    assert len(found) >= 10
    assert {row["id"] for row in found} >= {"chelsea", "rocket", "coffee"}
    assert all((tmp_path / str(row["image"])).stat().st_size > 1000 for row in found)


def test_the_demo_declares_a_field_when_it_makes_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(main, "_run", lambda command, **_: commands.append(command))
    monkeypatch.setattr(stamps, "available", lambda: True)
    monkeypatch.setattr(stamps, "fetch", lambda folder: folder / "stamps.jsonl")
    demo = ["--home", str(tmp_path), "--no-serve"]
    main.demo.main(demo, standalone_mode=False)
    assert commands[0][-2:] == ["--filterable", "category:str"]
    (tmp_path / "stamps.index").mkdir()
    commands.clear()
    main.demo.main(demo, standalone_mode=False)
    assert "--filterable" not in commands[0], "an index keeps what it has declared"
