"""Sizes and times as people read them, and bars that nobody watches."""

from __future__ import annotations

import pytest

from service.cli.output import duration, progress_bar, size


def test_sizes_are_in_powers_of_1024() -> None:
    assert [size(count) for count in (0, 512, 1536, 5 << 20, 3 << 40)] == [
        "0 Bytes", "512 Bytes", "1.5 KiB", "5.0 MiB", "3.0 TiB",
    ]  # fmt: skip


def test_times_leave_out_what_nobody_asked_for() -> None:
    assert [duration(seconds) for seconds in (3, 59.6, 61, 7325)] == [
        "3 seconds", "1 minute", "1 minute and 1 second", "2 hours and 2 minutes",
    ]  # fmt: skip


def test_a_bar_nobody_watches_draws_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("", "row") as bar:
        bar.by(3, 10)
        bar.to(7)
        bar.beside("fast", "sorting")
        bar.stage("merging", 1, 4)
    assert capsys.readouterr().err == ""


def test_a_bar_goes_to_a_place_or_by_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cli.output.interactive", lambda: True)
    with progress_bar("reading", "row", 10) as bar:
        bar.by(3)
        bar.beside("fast", "sorting")
        bar.to(7)
    with progress_bar("", "row") as bar:
        bar.stage("merging", 1, 4)
        bar.stage("measuring", 2, 5)
    shown = capsys.readouterr().err
    assert "sorting:  70%" in shown
    assert "fast]" in shown
    assert "measuring:  40%" in shown
