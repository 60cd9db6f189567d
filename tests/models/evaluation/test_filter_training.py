"""`diptych train --filter-below` of the starter: the wrong captions go before the first step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from fakes import COLOURS, ColourEncoder, solid

from models.errors import SourceError

NAMES = list(COLOURS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight colours with their names; red has a second caption and black only a wrong one."""
    here = tmp_path / "data"
    here.mkdir()
    for name in NAMES:
        (here / f"{name}.png").write_bytes(solid(name))
        (here / f"{name}.txt").write_text("white" if name == "black" else name)
    (here / "red.txt").write_text("red\nblue")
    return here


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    from service.cli.train.command import train

    asked: list[str] = []

    def load(name: str, **_: Any) -> ColourEncoder:
        asked.append(name)
        return ColourEncoder()

    monkeypatch.setattr("models.encoders.registry.load_encoder", load)
    before = torch.get_num_threads()
    try:
        result = CliRunner().invoke(train, list(arguments), standalone_mode=False)
    finally:
        torch.set_num_threads(before)
    assert asked == ["local-dir:judge"]
    return result


def test_only_what_fits_is_trained_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    result = run(
        monkeypatch,
        *("--data", str(folder), "--out", str(out), "--epochs", "1", "--batch-size", "4"),
        *("--concept-share", "0", "--threads", "1", "--model", "starter"),
        *("--filter-below", "0.5", "--filter-model", "local-dir:judge"),
        *("--score-cache", str(tmp_path / "scores")),
    )
    assert result.exception is None, result.output
    assert "filter: und captions below 0.500: 2 of 9 left out (22.2 %)" in result.stderr
    assert "filter: 1 of 8 pictures have no caption left" in result.stderr
    assert "data: 7 pictures, 7 captions (7 und)" in result.stderr
    saved = json.loads((out / "train_config.json").read_text())["report"]
    assert saved["filter"]["dropped_captions"] == {"und": 2}
    assert saved["train"]["pictures"] == 7
    assert len(list((tmp_path / "scores").iterdir())) == 1


def test_a_floor_that_leaves_nothing_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in folder.glob("*.txt"):
        path.write_text("none of the colours")
    result = run(
        monkeypatch,
        *("--data", str(folder), "--out", str(tmp_path / "out"), "--model", "starter"),
        *("--filter-below", "0.5", "--filter-model", "local-dir:judge"),
    )
    assert isinstance(result.exception, SourceError)
    assert result.exception.code == "all-filtered"
    assert not (tmp_path / "out").exists()
