"""Whole sources classified without a command line: judged in order, learnt from, calibrated."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import ColourEncoder, halves, solid

from models.errors import InvalidLabelsError
from service.engine.label_sets import check_label_set
from service.engine.sorter import Placer
from service.engine.source_classifier import SourceClassifier, open_pictures

COLOURS = ("red", "green", "blue")


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """Six pictures of each colour in its folder, one of two colours, one that is none."""
    for colour in COLOURS:
        folder = tmp_path / colour
        folder.mkdir()
        for number in range(6):
            (folder / f"{number}.png").write_bytes(solid(colour, size=(20 + number, 20)))
    (tmp_path / "blue" / "half.png").write_bytes(halves("blue", "red"))
    (tmp_path / "red" / "broken.png").write_bytes(b"no picture")
    return tmp_path


def test_every_picture_is_judged_in_order(shelf: Path) -> None:
    run = SourceClassifier(ColourEncoder())
    read: list[int] = []
    alone = str(shelf / "red" / "0.png")
    found = list(
        run.classify(
            open_pictures([str(shelf), alone, str(shelf / "missing.png")]),
            check_label_set(COLOURS),
            top_k=1,
            advance=read.append,
        )
    )
    assert sum(read) == len(found) == 22
    for picture, result in found:
        if result.error is None:
            assert picture.record is not None
            if not picture.name.endswith("half.png"):
                assert result.predictions[0].label == Path(picture.name).parent.name
    failed = [picture.name for picture, result in found if result.error is not None]
    assert failed == [str(shelf / "red" / "broken.png"), str(shelf / "missing.png")]
    assert found[-2][0].name == alone


def test_a_plan_moves_nothing_and_gives_no_name_twice(shelf: Path, tmp_path: Path) -> None:
    run = SourceClassifier(ColourEncoder())
    label_set = check_label_set(COLOURS)
    placer = Placer(shelf / "sorted", label_set, None)
    placed = [
        placer.place(picture.record, result)
        for picture, result in run.classify(open_pictures([str(shelf)] * 2), label_set)
        if picture.record is not None
    ]
    assert len(set(placed)) == len(placed) == 38
    assert not (shelf / "sorted").exists()


def test_examples_and_a_temperature_are_learnt_from_folders(shelf: Path) -> None:
    run = SourceClassifier(ColourEncoder())
    label_set = check_label_set(COLOURS)
    taught = run.with_examples(label_set, open_pictures([str(shelf)]), shots=2)
    assert taught.example_counts() == dict.fromkeys(COLOURS, 2)
    pictures = run.labelled(open_pictures([str(shelf)]))
    assert [Path(name).name for name, _ in pictures.refused] == ["broken.png"]
    calibration, calibrated, left_out = run.calibrate(label_set, pictures)
    assert calibration.pictures == 19
    assert calibrated.temperature == calibration.temperature
    assert left_out == 0
    assert calibrated.offset is None
    alone, by_itself, _ = run.calibrate(check_label_set(COLOURS, multi_label=True), pictures)
    assert by_itself.offset == alone.offset is not None
    assert alone.nll_after <= alone.nll_before + 0.05
    *_, without_blue = run.calibrate(check_label_set(COLOURS[:2]), pictures)
    assert without_blue == 7


def test_a_source_without_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(solid("red"))
    run = SourceClassifier(ColourEncoder())
    pictures = run.labelled(open_pictures([str(tmp_path)]))
    with pytest.raises(InvalidLabelsError, match="no labelled pictures"):
        run.calibrate(check_label_set(COLOURS), pictures)
    with pytest.raises(InvalidLabelsError, match="no example picture"):
        run.with_examples(check_label_set(COLOURS), open_pictures([str(tmp_path)]))
