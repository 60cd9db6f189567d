"""Captions of textbooks become sentences."""

from __future__ import annotations

import pytest
from indexes import ListSource

from models.sources.records import Record
from service.recipes.starter import InSentences, sentences


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dog.", ["A dog."]),
        ("A dog runs (credit: “Dog” by X/Wikimedia (CC BY)). It barks!", 2),
        ("Se ve un perro. Él corre. ¿Por qué?", 2),
        ("One. Two three. Four five. Six seven. Eight nine.", 3),
        ("word " * 60, [" ".join(["word"] * 40)]),
        ("", [""]),
    ],
)
def test_captions_are_cut(caption: str, expected: list[str] | int) -> None:
    found = sentences(caption)
    assert found == expected if isinstance(expected, list) else len(found) == expected
    assert "credit" not in " ".join(found)


def test_only_the_captions_of_a_source_change() -> None:
    record = Record("k", "file:k", b"x", {"en": ("A cat sits. A dog runs.",), "es": ("Un gato.",)})
    silent = Record("s", "file:s", b"x")
    wrapped = list(InSentences(ListSource([record, silent])))
    assert wrapped[0].texts == {"en": ("A cat sits.", "A dog runs."), "es": ("Un gato.",)}  # type: ignore[union-attr]
    assert wrapped[1] is silent
