"""`diptych` as a process of its own, with the colour encoder in place of a downloaded model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
# the real command line; only the function that would load weights is replaced
COMMAND = """
import sys
import models.encoders.registry
from fakes import ColourEncoder

def load(model="starter", **options):
    if model == "missing":
        from models.errors import ModelError
        raise ModelError("no such model: missing")
    return ColourEncoder(name=model)

models.encoders.registry.load_encoder = load
from service.cli.main import main
main()
"""


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-c", COMMAND, *map(str, arguments)]


def environment() -> dict[str, str]:
    paths = [str(TESTS.parents[1]), str(TESTS)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def run(*arguments: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(), capture_output=True, text=True, timeout=timeout
    )


@contextmanager
def server(index: Path, log: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running `diptych serve` on a free port, and its address."""
    line = command("serve", "--index", index, "--port", "0", "--json", *more)
    with announced(line, log, environment()) as (process, said):
        yield process, said["url"]


@contextmanager
def announced(
    command_line: list[str], log: Path, environ: dict[str, str], *, core: int | None = None
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A process that serves, killed at the end, and the JSON document it announced itself with.

    Args:
        command_line: of a `diptych serve --json`.
        log: where its standard error goes.
        core: the only one it may use.
    """
    with log.open("w") as errors:
        process = subprocess.Popen(
            command_line, env=environ, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            if core is not None:
                os.sched_setaffinity(process.pid, {core})
            assert process.stdout is not None
            document = ""
            while line := process.stdout.readline():
                document += line
                if line == "}\n":
                    break
            assert document, log.read_text()
            yield process, json.loads(document)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
