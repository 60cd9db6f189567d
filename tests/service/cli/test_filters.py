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


def test_search_sorts(index: Path) -> None:
    assert found(index, "red", "--sort", "year:desc") == ["b", "a", "c"]
    assert found(index, "red", "--sort", "kind:desc", "--sort", "year") == ["a", "c", "b"]
    assert found(index, "red", "--sort", "year", "--min-score", "0.5") == ["a", "c"]
    told = run("search", "--index", index, "red", "--sort", "year").stderr
    assert "--min-score" in told, "without it everything fits"
    for wrong, says in [("size", "year (int), kind (str)"), ("year:down", "asc or desc")]:
        done = run("search", "--index", index, "red", "--sort", wrong)
        assert (done.returncode, says in done.stderr) == (2, True)
        assert "Loading" not in done.stderr


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
    for wrong, says in [("year:decade", "types are"), ("label", "every index"), ("a b", "name")]:
        done = run(*build, "--filterable", wrong)
        assert done.returncode == 2
        assert says in done.stderr
        assert "Loading" not in done.stderr
    labelled = run(*build, "--label-field", "kind", "--filterable", "kind")
    assert labelled.returncode == 2
    assert "filter by label" in labelled.stderr


@pytest.fixture(scope="module")
def worded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worded")
    for name, colour, text in [
        ("a", "red", "plain"), ("b", "red", "plain"), ("c", "red", "IMG_2041 女孩"),
        ("d", "blue", "harbour"),
    ]:  # fmt: skip
        (folder / f"{name}.png").write_bytes(solid(colour))
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    assert run("index", "build", folder, "--out", folder / "i").returncode == 0
    return folder / "i"


def test_search_by_words_too(worded: Path) -> None:
    assert found(worded, "red img_2041")[0] == "a.png"
    assert found(worded, "red img_2041", "--hybrid")[0] == "c.png"
    assert found(worded, "red 女孩", "--hybrid=0.4")[0] == "c.png"
    assert found(worded, "harbour", "--hybrid", "1", "-k", "1") == ["d.png"]
    assert found(worded, "red", "--minus", "harbour", "--hybrid")[0] == "a.png"
    assert found(worded, "--like", "a.png", "--hybrid")[-1] == "d.png"
    document = json.loads(run("search", "--index", worded, "red", "--hybrid", "--json").stdout)
    assert document["hits"][0]["fused"] == pytest.approx(0.6 / 61, abs=1e-6)


def test_search_leaves_out_near_duplicates(worded: Path) -> None:
    assert found(worded, "red", "--deduplicate") == ["a.png", "d.png"]
    assert found(worded, "red", "--deduplicate", "0.99", "-k", "1", "--offset", "1") == ["d.png"]
    done = run("search", "--index", worded, "red", "--deduplicate")
    assert "(+2 alike)" in done.stdout
    hits = json.loads(run("search", "--index", worded, "red", "--deduplicate", "--json").stdout)
    assert hits["hits"][0]["duplicates"] == ["b.png", "c.png"]


def test_search_exactly_and_with_an_effort(worded: Path) -> None:
    assert found(worded, "red", "--exact") == found(worded, "red", "--effort", "5")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--hybrid", "a dog"], "put the text before --hybrid"),
        (["red", "--hybrid", "2"], "not between 0 and 1"),
        (["red", "--hybrid=nan"], "not between 0 and 1"),
        (["red", "--deduplicate", "0"], "deduplicate"),
        (["red", "--effort", "0"], "effort"),
    ],
)
def test_a_bad_number_is_one_line(worded: Path, arguments: list[str], says: str) -> None:
    done = run("search", "--index", worded, *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
