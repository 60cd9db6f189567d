"""Processes that change an index and are killed, and what an index must hold afterwards."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from crashing import generation
from indexes import NAMES, ids, opened

from indexer.maintain.verify import verify_index

SIZE = 24
TESTS = Path(__file__).resolve().parent
State = dict[str, tuple[str, object]]
"""By id: the colour, and the generation of the record it came from."""


def contents(path: Path) -> State:
    """{id: (colour by its vector, generation)}, after checking that nothing is amiss with it."""
    report = verify_index(path)
    assert report.ok, report.problems
    found = {}
    with opened(path) as snapshot:
        for key in ids(snapshot, "red"):
            item = snapshot.item(key)
            vector_D = snapshot.vector(key)
            assert vector_D.max() > 0.99, "no vector but a colour's was ever embedded"
            colour = NAMES[int(vector_D.argmax())]
            # picture and caption come from one state of the record, never from two
            assert item.text == colour
            assert snapshot.item(f"{key}#en/0").text == colour
            assert snapshot.thumbnail(key)
            found[key] = (colour, item.attributes["generation"])
        assert len(ids(snapshot, "red", target="texts")) == len(found)
    return found


def expected(number: int) -> State:
    return {
        row.key: (row.texts["en"][0], row.attributes["generation"])
        for row in generation(number, SIZE)
    }


class Victims:
    """Processes that build, one after the other, each killed after a while or left to finish."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(TESTS), str(TESTS.parents[1])])
        self._server = subprocess.Popen(
            [sys.executable, str(TESTS / "crashing.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )

    def run(self, arguments: list[object], seconds: float | None) -> int:
        """Do a step; SIGKILL after `seconds` (None: never) -> exit code."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(arguments, default=str) + "\n")
        self._server.stdin.flush()
        pid = int(self._server.stdout.readline())
        if seconds is not None and not select.select([self._server.stdout], [], [], seconds)[0]:
            with suppress(ProcessLookupError):  # it finished this very moment
                os.kill(pid, signal.SIGKILL)
        return int(self._server.stdout.readline())

    def close(self) -> None:
        self._server.communicate()
