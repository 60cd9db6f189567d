"""`diptych` in this process, with the colour encoder in place of a real model.

For tests of what a command prints, leaves and ends with. One that kills it, runs it beside another
or measures it needs a process of its own: `colour_cli.py` and `serving.py` start those.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner
from colour_cli import load_encoder

from models.encoders import registry
from service.cli.exits import run_and_exit
from service.cli.main import cli


def diptych(
    *arguments: str | Path, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end; an error that it does not translate is raised here."""
    words = ["diptych", *map(str, arguments)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as given:
        given.write(stdin)
        given.seek(0)
        with (
            mock.patch.object(registry, "load_encoder", load_encoder),
            mock.patch.dict(os.environ, environment),
            CliRunner().isolation() as (out, err, _),
            mock.patch.object(sys, "argv", words),
            # a file: what reads it asks whether it is a terminal
            mock.patch.object(sys, "stdin", given),
            pytest.raises(SystemExit) as ended,
        ):
            run_and_exit(cli)
    code = ended.value.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(
        words, code, out.getvalue().decode(), err.getvalue().decode()
    )
