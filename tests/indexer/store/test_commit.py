"""Whatever operation commits, the manifest is what it was before there was one path for all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from manifest_history import histories

GOLD = json.loads((Path(__file__).parents[2] / "gold" / "manifests.json").read_text())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return dict(histories(tmp_path_factory.mktemp("manifests")))


def test_the_stories_are_those_of_the_gold_file(written: dict[str, object]) -> None:
    assert list(written) == list(GOLD)


@pytest.mark.parametrize("story", GOLD)
def test_manifests_are_those_of_the_gold_file(story: str, written: dict[str, object]) -> None:
    assert written[story] == GOLD[story]
