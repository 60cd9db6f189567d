"""Declaring fields, filtering and composing queries on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import solid
from serving import run


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    rows = []
    for name, colour, year in [("a", "red", 1999), ("b", "blue", 2005), ("c", "red", "unknown")]:
        (folder / f"{name}.png").write_bytes(solid(colour))
        rows.append({"id": name, "image": f"{name}.png", "meta": {"year": year}, "kind": colour})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def index(source: Path) -> Path:
    out = source.parent / "x.index"
    done = run("index", "build", source, "--out", out, "--filterable", "year=meta.year:int,kind")
    assert done.returncode == 3, done.stderr
    assert "1 rejected" in done.stdout
    return out


def found(index: Path, *arguments: str | Path) -> list[str]:
    done = run("search", "--index", index, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return [hit["id"] for hit in json.loads(done.stdout)["hits"]]


def test_a_wrong_value_is_in_the_rejects_and_its_picture_in_the_index(index: Path) -> None:
    (line,) = index.with_name("x.index.rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["detail"] == "year: expected a whole number, found text"
    assert found(index, "red", "--filter", '{"field": "year", "exists": false}') == ["c"]


def test_info_lists_the_fields(index: Path) -> None:
    assert "year (int), kind (str), label (str)" in run("index", "info", "--index", index).stdout
    about = json.loads(run("index", "info", "--index", index, "--json").stdout)
    assert about["fields"][0] == {"name": "year", "type": "int", "path": "meta.year"}


def test_search_filters(index: Path) -> None:
    assert found(index, "red", "--filter", '{"field": "kind", "eq": "blue"}') == ["b"]
    assert found(index, "red", "--filter", '{"field": "year", "lt": 2000}') == ["a"]


def test_search_composes(index: Path, tmp_path: Path) -> None:
    picture = tmp_path / "blue.png"
    picture.write_bytes(solid("blue"))
    assert found(index, "red", "--minus", "blue") == ["a", "c", "b"]
    assert found(index, "--plus", "blue", "--minus", "red")[0] == "b"
    assert found(index, "green", "--image", picture)[0] == "b"
    assert found(index, "--like", "a") == ["c", "b"]
    assert found(index, "blue", "--plus", "blue", "--like", "a", "-k", "1") == ["b"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["red", "--filter", "{"], "--filter is not JSON"),
        (["red", "--filter", '{"field": "year", "gt": "x"}'], "--filter at /gt: field year (int)"),
        (["red", "--filter", '{"field": "x", "eq": 1}'], "declared are year (int), kind (str)"),
        (["red", "--filter", "[]"], "--filter: a filter is an object"),
        (["red", "--filter", '{"field": "year", "gt": NaN}'], "finite"),
        (["--minus", "red"], "--plus"),
        (["red", "--plus", " "], "empty"),
        (["red", "--minus", "red"], "cancel out"),
        (["red", "--like", "none"], "none"),
        (["red", *["--plus", "x"] * 16], "parts"),
    ],
)
def test_what_is_wrong_is_said(index: Path, arguments: list[str], says: str) -> None:
    done = run("search", "--index", index, *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_fields_are_declared_once(index: Path, source: Path) -> None:
    build = ("index", "build", source, "--out", index)
    assert run(*build).returncode == 0, "everything is unchanged, so nothing is rejected again"
    other = run(*build, "--filterable", "year=meta.year:float,kind")
    assert other.returncode == 2
    assert "declares other filterable fields: year (int), kind (str)" in other.stderr
    for wrong, says in [("year:date", "types are"), ("label", "every index"), ("a b", "name")]:
        done = run(*build, "--filterable", wrong)
        assert done.returncode == 2
        assert says in done.stderr
        assert "Loading" not in done.stderr
    labelled = run(*build, "--label-field", "kind", "--filterable", "kind")
    assert labelled.returncode == 2
    assert "filter by label" in labelled.stderr
