"""How sources are named on the command line: tables, globs, standard input, and the plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from console import diptych
from fakes import solid
from indexes import ids, opened


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    (folder / "old").mkdir(parents=True)
    for place, name in (("", "red"), ("", "green"), ("old", "blue")):
        (folder / place / f"{name}.png").write_bytes(solid(name, size=(8, 8)))
    (folder / "shop.csv").write_text(
        "sku,file,title,titel,kind,price\n"
        "a1,red.png,red,rot,warm,12\n"
        "a2,green.png,green,gruen,cold,7\n"
        "a3,missing.png,blue,blau,cold,9\n"
    )
    return folder


def test_a_table_with_named_columns(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "shop.index"
    options = ["--id-field", "sku", "--image-field", "file", "--label-field", "kind"]
    options += ["--text-field", "en=title", "--text-field", "de=titel"]
    options += ["--filterable", "price:int", "--attribute", "price"]
    run = diptych("index", "build", shop / "shop.csv", "--out", out, *options, "--json")
    assert run.returncode == 3, run.stderr  # one picture is missing
    report = json.loads(run.stdout)
    assert (report["images"], report["texts"], report["rejected"]) == (2, 4, 1)
    with opened(out) as snapshot:
        item = snapshot.item("a1")
        assert (item.label, item.text, item.attributes["price"]) == ("warm", "red", 12)
        assert {(text.language, text.text) for text in snapshot.captions("a1")} == {
            ("en", "red"),
            ("de", "rot"),
        }
    found = diptych(
        "search", "--index", out, "red", "--filter", '{"field": "price", "lt": 10}', "--json"
    )
    assert [hit["id"] for hit in json.loads(found.stdout)["hits"]] == ["a2"]


def test_globs_choose_from_a_folder(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    run = diptych(
        "index", "build", shop, "--out", out, "--include", "*.png", "--exclude", "old/**", "--json"
    )
    assert run.returncode == 0, run.stderr
    with opened(out) as snapshot:
        assert sorted(ids(snapshot, "red")) == ["green.png", "red.png"]


def test_standard_input(shop: Path, tmp_path: Path) -> None:
    rows = "".join(
        json.dumps({"id": name, "image": f"{name}.png", "caption": name}) + "\n"
        for name in ("red", "green")
    )
    out = tmp_path / "x.index"
    run = diptych("index", "build", "-", "--root", shop, "--out", out, "--json", stdin=rows)
    assert run.returncode == 0, run.stderr
    with opened(out) as snapshot:
        assert sorted(ids(snapshot, "red")) == ["green", "red"]


def test_addresses_are_refused_unless_asked_for(tmp_path: Path) -> None:
    manifest = tmp_path / "web.jsonl"
    manifest.write_text('{"id": "a", "url": "http://127.0.0.1/cat.png"}\n')
    for options, code in ((), "url-not-allowed"), (("--allow-urls",), "url-fetch-failed"):
        out = tmp_path / f"{code}.index"
        run = diptych("index", "build", manifest, "--out", out, *options)
        assert run.returncode == 3
        [line] = (tmp_path / f"{code}.index.rejects.jsonl").read_text().splitlines()
        assert json.loads(line)["code"] == code


def test_a_plan_tells_and_does_nothing(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    run = diptych("index", "build", shop, "--out", out, "--plan", "--json")
    assert run.returncode == 0, run.stderr
    plan = json.loads(run.stdout)
    assert (plan["pictures"], plan["exact"]) == (3, True)
    assert plan["sources"][0]["kind"] == "folder"
    assert plan["estimated_bytes"] > 0
    assert not out.exists()
    assert not list(tmp_path.glob("*.rejects.jsonl"))
    said = diptych("index", "build", shop, "--out", out, "--plan").stdout
    assert "3 pictures" in said
    assert "Estimated: " in said
