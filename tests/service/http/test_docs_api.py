"""docs/api.md: both programs in it run, and between them call everything there is to call."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import ColourEncoder, solid
from keyed import Keys
from services import build_colours
from serving import environment, server

from service.engine.engine import Engine
from service.http.app import create_app

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "api.md"


def blocks(language: str) -> str:
    found = re.findall(
        rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE
    )
    assert len(found) >= 5
    return "\n".join(found)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("docs")
    index = build_colours(folder / "colours.index")
    (folder / "apple.png").write_bytes(solid("red"))
    keys = Keys.make(folder / "keys.json")
    with server(index, folder / "log", "--writable", "--keys", str(keys.path)) as (_, url):
        yield folder, {**environment(), "DIPTYCH": url, "KEY": keys.writer}


def run(command: list[str], where: tuple[Path, dict[str, str]]) -> str:
    folder, variables = where
    done = subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_shell_script_runs(running: tuple[Path, dict[str, str]]) -> None:
    # -x tells which call failed
    out = run(["bash", "-euxo", "pipefail", "-c", blocks("bash")], running)
    assert '"fused"' in out
    assert (running[0] / "thumbnail.jpg").read_bytes().startswith(b"\xff\xd8")


def test_the_python_program_runs(running: tuple[Path, dict[str, str]]) -> None:
    out = run([sys.executable, "-W", "error", "-c", blocks("python")], running)
    assert "1.000 fruit/red apple.png" in out
    assert "3 added in one commit" in out


def test_a_call_that_fails_is_noticed(running: tuple[Path, dict[str, str]]) -> None:
    with pytest.raises(AssertionError):
        run([sys.executable, "-c", blocks("python") + '\napi("GET", "/v1/nothing")'], running)


@pytest.mark.parametrize("language", ["bash", "python"])
def test_every_endpoint_is_shown(language: str) -> None:
    text = blocks(language)
    for path in create_app(Engine(ColourEncoder())).openapi()["paths"]:
        shown = re.escape(path).replace(r"\{id\}", r"\S+").replace(r"\{name\}", r"\w+")
        shown = shown.replace(r"/\{model\}", r"/\S+")
        if path.endswith("/thumbnail") and language == "python":
            shown = "thumbnail_url"
        if path == "/v1/items/{id}" and language == "python":
            shown = '/v1/items/" \\+ quote'
        assert re.search(shown + r"(?![\w-])", text), (language, path)


def test_every_problem_it_names_exists() -> None:
    from service.http.middleware.problems import CATALOGUE

    named = re.findall(r"\b[45]\d\d `([a-z-]+)`", DOCUMENT.read_text())
    assert len(named) >= 4
    assert set(named) <= set(CATALOGUE)
