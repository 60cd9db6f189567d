"""Every bad source gives what its table says: rejects or one clear error, no traceback, no hang."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_sources import Case, all_cases, outcome


@pytest.mark.timeout(30)
@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_bad_source(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / case.name
    folder.mkdir()
    spec = case.make(folder)
    assert outcome(spec, case.options) == case.expected


def test_names_of_cases_are_folders_of_their_own() -> None:
    names = [case.name for case in all_cases()]
    assert len(set(names)) == len(names)
