"""Indexes that earlier releases wrote are opened, answer as they did then, and are upgraded."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fakes import ColourEncoder
from indexes import build, record

from indexer.format.manifest import Head, read_manifest
from indexer.maintain.verify import verify_index
from indexer.search.snapshot import open_snapshot
from indexer.store.writer import IndexWriter
from models.errors import IndexCorruptError

HERE = Path(__file__).parent
FORMATS = [1, 2]


def maker(number: int) -> ModuleType:
    """The script that made a golden index; its `answers` asks what is compared."""
    path = HERE / f"index_format_{number}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def told(number: int) -> dict[str, Any]:
    path = HERE / f"index-format-{number}" / "answers.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def golden(number: int) -> Path:
    return HERE / f"index-format-{number}" / "index"


def contents(path: Path) -> dict[str, tuple[str, int]]:
    """sha256 and modification time by file."""
    return {
        str(file.relative_to(path)): (
            hashlib.sha256(file.read_bytes()).hexdigest(),
            file.stat().st_mtime_ns,
        )
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def compare(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Ids and order exactly; scores and relevance to float32's last digits."""
    for one, then in zip(found["searches"], expected["searches"], strict=True):
        assert [hit[0] for hit in one["hits"]] == [hit[0] for hit in then["hits"]], then["query"]
        scores, scores_then = ([hit[1] for hit in each["hits"]] for each in (one, then))
        assert scores == pytest.approx(scores_then, abs=1e-6)
        assert one["relevance"] == pytest.approx(then["relevance"], rel=1e-3, abs=1e-9)
    for one, then in zip(found.get("hybrid", ()), expected.get("hybrid", ()), strict=True):
        assert [hit[0] for hit in one["hits"]] == [hit[0] for hit in then["hits"]], then["text"]
        for hit, hit_then in zip(one["hits"], then["hits"], strict=True):
            assert hit[1:] == pytest.approx(hit_then[1:], abs=1e-6)
    for key in ("version", "uuid", "images", "texts", "segments", "tombstones"):
        assert found[key] == expected[key]
    assert found["items"].keys() == expected["items"].keys()
    for key, item in found["items"].items():
        then = dict(expected["items"][key])
        assert item.pop("vector") == pytest.approx(then.pop("vector"), abs=2e-6)
        assert item == then


@pytest.mark.parametrize("number", FORMATS)
def test_it_answers_as_the_release_that_wrote_it(number: int) -> None:
    index = golden(number)
    before = contents(index)
    with open_snapshot(index, fingerprint=ColourEncoder().fingerprint) as snapshot:
        compare(maker(number).answers(snapshot), told(number))
        assert snapshot.info().degraded == []
    assert contents(index) == before, "opening and searching change no byte"
    manifest = read_manifest(index)
    assert manifest.format == number
    assert (manifest.erased is not None) == (number > 1)
    assert any(one.ann for one in manifest.segments) == (number > 1)


@pytest.mark.parametrize("number", FORMATS)
def test_it_is_sound(number: int) -> None:
    report = verify_index(golden(number), deep=True)
    assert report.problems == []
    assert report.orphans == []


def test_a_wrong_answer_would_be_noticed() -> None:
    """Negative control: one score, one order and one attribute changed."""
    for change in (
        lambda answers: answers["searches"][0]["hits"][0].__setitem__(1, 0.7072),
        lambda answers: answers["searches"][0]["hits"].reverse(),
        lambda answers: answers["items"]["images/p00"]["attributes"].update(year=1999),
    ):
        wrong = told(1)
        change(wrong)
        with pytest.raises(AssertionError):
            compare(wrong, told(1))


@pytest.mark.parametrize("number", FORMATS)
def test_the_next_commit_upgrades_it_and_touches_no_old_file(number: int, tmp_path: Path) -> None:
    index = tmp_path / "index"
    shutil.copytree(golden(number), index)
    before = contents(index)
    report = build([record("new", "magenta", year=2030)], index, batch_size=1)
    assert report.added == 1
    assert read_manifest(index).format == 2
    after = contents(index)
    assert {name: after[name] for name in before if name != "CURRENT"} == {
        name: entry for name, entry in before.items() if name != "CURRENT"
    }
    expected = told(number)
    with open_snapshot(index, fingerprint=ColourEncoder().fingerprint) as snapshot:
        assert snapshot.version == expected["version"] + 1
        found = maker(number).answers(snapshot)
        assert snapshot.info().images == expected["images"] + 1
    assert found["items"].pop("images/new")["attributes"] == {"year": 2030}
    assert found["items"] == expected["items"], "the rows of format 1 are untouched"
    assert verify_index(index).problems == []


def test_a_format_of_the_future_is_refused_untouched(tmp_path: Path) -> None:
    index = tmp_path / "index"
    shutil.copytree(golden(1), index)
    name = max((index / "manifests").glob("*.json"))
    manifest = json.loads(name.read_bytes())
    data = json.dumps({**manifest, "format": 3, "novelty": True}).encode()
    name.write_bytes(data)
    head = Head(manifest["version"], hashlib.sha256(data).hexdigest())
    (index / "CURRENT").write_bytes(head.encode())
    before = contents(index)
    fingerprint = ColourEncoder().fingerprint
    for attempt in (
        lambda: open_snapshot(index, fingerprint=fingerprint),
        lambda: IndexWriter(index, fingerprint),
        lambda: build([record("new", "magenta")], index),
    ):
        with pytest.raises(IndexCorruptError, match="format 3") as caught:
            attempt()
        assert caught.value.hint == "use the Diptych release that wrote it, or a newer one"
    after = contents(index)
    after.pop("LOCK", None)
    assert after == before
