"""The settings of `diptych train` are declared once: options, saved settings and the docs agree."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from models.training.config import DEFAULTS, Circumstances, TrainConfig, resolved, settings
from service.cli.train.command import train
from service.cli.train.options import SETTINGS, TrainOptions, settings_table

DOCS = Path(__file__).resolve().parents[3] / "docs" / "training.md"
BEGIN, END = "which a test compares -->\n", "<!-- /settings -->"


def test_the_docs_table_is_the_declaration() -> None:
    text = DOCS.read_text(encoding="utf-8")
    told = text[text.index(BEGIN) + len(BEGIN) : text.index(END)]
    assert told == settings_table(), "put what settings_table() says into docs/training.md"


def test_every_setting_is_an_option_and_every_default_is_of_a_setting() -> None:
    flags = {flag for option in train.params for flag in option.opts}
    assert {one.flag for one in settings()} <= flags
    known = {one.name for one in fields(TrainConfig)}
    for kind, rows in DEFAULTS.items():
        assert rows.keys() <= known
        for measured in (True, False):
            at = Circumstances(pairs=1_000, pictures=1_000, measured=measured)
            assert resolved({}, kind, at).epochs >= 1


def test_what_is_asked_for_reaches_the_settings_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[TrainOptions] = []

    def note(options: TrainOptions) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr("service.cli.train.head.train_head", note)
    asked = ["--tune", "linear", "--out", "x", "--epochs", "7", "--crop", "0.5", "--flip"]
    CliRunner().invoke(train, [*asked, "--interpolate", "0.25"], standalone_mode=False)
    found = seen[0].asked()
    assert found.keys() == SETTINGS.keys()
    assert (found["epochs"], found["crop"], found["flip"]) == (7, 0.5, True)
    assert (found["interpolate"], found["lr"], found["objective"]) == (0.25, None, "auto")
    assert [one.name for one in seen[0].changed()] == [
        "epochs",
        "tune",
        "interpolate",
        "crop",
        "flip",
    ]


@pytest.mark.parametrize("share", ["2", "-1", "most"])
def test_a_share_is_a_number_or_val(share: str) -> None:
    arguments = ["--out", "x", "--data", "x", "--interpolate", share]
    result = CliRunner().invoke(train, arguments, standalone_mode=False)
    assert isinstance(result.exception, click.BadParameter)
