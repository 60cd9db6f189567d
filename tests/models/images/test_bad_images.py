"""The corpus of bad pictures, and thousands of mutants, through a build's decoding processes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from bad_images import cases
from fakes import ColourEncoder
from mutated_images import MutatedPictures

from indexer.ingest.build import BuildOptions, BuildReport, build_index
from models.sources import open_source
from models.sources.records import Source


def build(source: Source, out: Path) -> tuple[BuildReport, dict[str, dict[str, str]]]:
    options = BuildOptions(workers=2, relevance=False)
    report = build_index([source], out, ColourEncoder(), options=options)
    lines = Path(report.rejects_file or "/dev/null").read_text(encoding="ascii").splitlines()
    return report, {line["key"]: line for line in map(json.loads, lines)}


def no_worker_ended(caplog: pytest.LogCaptureFixture) -> bool:
    return not any(
        "replaced" in one.message for one in caplog.records if one.levelno > logging.INFO
    )


def test_the_corpus(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    expected = {}
    for case in cases():
        (folder / f"{case.name}.jpg").write_bytes(case.data)
        expected[f"{case.name}.jpg"] = case.expected
    report, rejects = build(open_source(str(folder)), tmp_path / "x.index")
    found = {key: rejects[key]["code"] if key in rejects else "ok" for key in expected}
    assert found == expected
    assert report.added + report.rejected == len(expected) == len(list(folder.iterdir()))
    assert all(line["detail"] and "\n" not in line["detail"] for line in rejects.values())
    assert no_worker_ended(caplog)


def mutants(count: int, seed: int, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    report, rejects = build(MutatedPictures(count, seed), out)
    assert report.added + report.rejected == count
    assert len(rejects) == report.rejected, "each bad one is reported, once"
    assert count // 10 < report.added < count, "some are still pictures, some are not"
    codes = {line["code"] for line in rejects.values()}
    assert codes <= {
        "image-undecodable", "image-too-many-pixels", "image-bad-dimensions",
        "image-format-not-allowed", "image-empty",
    }, codes  # fmt: skip
    assert no_worker_ended(caplog), "no crash, no hang"


def test_a_thousand_mutants(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mutants(1000, 1, tmp_path / "x.index", caplog)


@pytest.mark.slow
def test_ten_thousand_mutants(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mutants(10_000, 2, tmp_path / "x.index", caplog)
