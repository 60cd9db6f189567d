"""`diptych index info` says what an index lacks and which command gives it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from clustered import fill, pictures, texts
from serving import run

from indexer.maintain.optimize import OptimizeOptions, optimize

GOLD = Path(__file__).parents[2] / "gold" / "index-format-1" / "index"


def attention(path: Path) -> tuple[dict[str, object], str]:
    base = ["index", "info", "--index", str(path)]
    result = run(*base, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), run(*base).stdout


def test_segments_without_words(tmp_path: Path) -> None:
    path = tmp_path / "i"
    shutil.copytree(GOLD, path)
    document, text = attention(path)
    assert document["wordless"] == document["segments"]
    [one] = document["attention"]  # type: ignore[misc]
    assert one["remedy"] == f"diptych index optimize --index {path}"
    assert "words for hybrid search" in one["problem"]
    assert f"attention {one['problem']}: {one['remedy']}\n" in text
    assert run(*one["remedy"].split()[1:]).returncode == 0
    document, text = attention(path)
    assert (document["wordless"], document["attention"]) == (0, [])
    assert "attention" not in text


def test_a_damaged_structure(tmp_path: Path) -> None:
    path = tmp_path / "x.index"
    fill(path, pictures(1000), texts(200))
    report = optimize(path, OptimizeOptions(structure="ivf", fewest=500, floor=0.6, gain=0.0))
    assert report.images.structure == "ivf", report.images.notes
    assert attention(path)[0]["attention"] == []
    [file] = path.glob("segments/*/ann.faiss")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    document, text = attention(path)
    [one] = document["attention"]  # type: ignore[misc]
    assert "ann.faiss" in one["problem"]
    assert one["remedy"] == f"diptych index repair --index {path}"
    assert one["remedy"] in text
    run(
        *one["remedy"].split()[1:]
    )  # not 0: the version before shares the damage and stays as it is
    assert attention(path)[0]["attention"] == []
