"""`diptych train --filter-folds`: judges that never saw what they judge find the wrong captions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from models.sources import open_source
from models.sources.records import Record
from models.training.starter import halves
from service.cli.train import filter as filtering
from service.cli.train.filter import filtered_in_halves

COLOURS = {
    "a red wall": (200, 20, 20),
    "a green field": (20, 150, 40),
    "the blue sea": (10, 60, 200),
    "a yellow lemon": (240, 220, 40),
    "a black night": (8, 8, 8),
    "a white page": (250, 250, 250),
}
COUNT = 240
WRONG = 0.3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grainy colours; three captions in ten stand beside another colour."""
    root = tmp_path_factory.mktemp("noisy")
    noise, dice = np.random.default_rng(8), random.Random(5)
    rows = []
    for number in range(COUNT):
        caption = list(COLOURS)[number % len(COLOURS)]
        grain_HW3 = noise.normal(0, 20, (40, 40, 3)) + np.array(COLOURS[caption])
        Image.fromarray(np.clip(grain_HW3, 0, 255).astype(np.uint8)).save(root / f"{number}.png")
        is_wrong = dice.random() < WRONG
        told = dice.choice([c for c in COLOURS if c != caption]) if is_wrong else caption
        # every caption is a sentence of its own, so that a pair is scored once and not by its class
        texts = {"en": f"{told}, picture {number}"}
        rows.append({"id": str(number), "image": f"{number}.png", "captions": texts})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (root / "pairs.jsonl").write_text(lines, encoding="utf-8")
    truth = {
        r["id"]: list(COLOURS)[int(r["id"]) % len(COLOURS)] in r["captions"]["en"] for r in rows
    }
    (root / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
    return root


def run(*arguments: str) -> tuple[int, str]:
    from service.cli.train.command import train

    result = CliRunner().invoke(train, list(arguments), standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value, result.stderr


def test_wrong_captions_go_and_right_ones_stay(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    kept: set[str] = set()

    def watched(*arguments: Any) -> Any:
        found = filtered_in_halves(*arguments)
        kept.update(row.key for source in found[0] for row in source if isinstance(row, Record))
        return found

    monkeypatch.setattr(filtering, "filtered_in_halves", watched)
    code, told = run(
        *("--data", str(folder / "pairs.jsonl"), "--out", str(out), "--epochs", "8"),
        *("--batch-size", "60", "--lr", "1e-3", "--concept-share", "0", "--val", "none"),
        # judges of so little data are lucky or not, and so are its halves
        *("--threads", "1", "--seed", "3", "--filter-below", "auto", "--filter-folds"),
    )
    assert code == 0, told
    assert "training two judges" in told
    saved = json.loads((out / "train_config.json").read_text())["report"]
    folds = saved["filter"]["folds"]
    assert sum(fold["captions"]["en"] for fold in folds) == COUNT
    dropped = sum(fold["dropped_captions"]["en"] for fold in folds)
    assert saved["train"]["pictures"] == len(kept) == COUNT - dropped
    is_right = json.loads((folder / "truth.json").read_text())
    wrong = {key for key, right in is_right.items() if not right}
    gone = set(is_right) - kept
    # plain colours are no photographs, so some wrong ones pass; chosen at random, 0.3 of what goes
    # would be wrong
    assert len(gone & wrong) > 0.3 * len(wrong)
    assert len(gone & wrong) > 0.8 * len(gone)


def test_the_halves_share_nothing_and_lose_nothing(folder: Path) -> None:
    first, second = halves([open_source(str(folder / "pairs.jsonl"))])
    keys = [{row.key for source in part for row in source} for part in (first, second)]
    assert not keys[0] & keys[1]
    assert len(keys[0] | keys[1]) == COUNT
    assert min(map(len, keys)) > COUNT / 3


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--filter-below", "auto", "--filter-model", "starter"),
        ("--filter-below", "auto", "--model", "ViT-B-32"),
        ("--filter-below", "auto", "--score-cache", "x"),
    ],
)
def test_where_it_cannot_be_done_it_is_refused(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    with pytest.raises(click.UsageError, match=r"filter-folds|score-cache"):
        run(
            *("--data", str(folder / "pairs.jsonl"), "--out", str(tmp_path / "out")),
            *("--filter-folds", *arguments),
        )
