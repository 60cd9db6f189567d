"""What operators are given: true to the metrics, to the command line, to what was measured."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from fakes import ColourEncoder
from prometheus_client.metrics import MetricWrapperBase
from services import build_colours
from serving import command, environment

from indexer.format.manifest import read_manifest
from indexer.maintain.edit import Editor
from indexer.search.snapshot import open_snapshot
from service.cli.main import cli
from service.cli.serve.startup import serve
from service.operations import metrics

ROOT = Path(__file__).resolve().parents[3]
GUIDE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((ROOT / "docker" / "grafana-dashboard.json").read_text())
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
UNIT = ROOT / "docker" / "diptych.service"
_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
_NAME = re.compile(r"\b(?:diptych|process)_[a-z_]+\b")


def families() -> dict[str, str]:
    return {one.name: one.type for one in metrics.REGISTRY.collect()}


def series() -> set[str]:
    return {name + suffix for name, kind in families().items() for suffix in _SUFFIXES[kind]}


def test_the_guide_lists_every_metric_and_no_other() -> None:
    listed = re.findall(r"^\| `(diptych_\w+)` \|", GUIDE, re.MULTILINE)
    ours = {
        name + ("_total" if kind == "counter" else "")
        for name, kind in families().items()
        if name.startswith("diptych_")
    }
    assert len(ours) >= 15
    assert sorted(listed) == sorted(ours)


def test_alerts_ask_for_metrics_that_exist() -> None:
    alerts = GUIDE.partition("## What to alert on")[2].partition("\n## ")[0]
    asked = {
        name for cell in re.findall(r"^\| `([^|]*)`", alerts, re.M) for name in _NAME.findall(cell)
    }
    assert len(asked) >= 6
    assert asked <= series()


def test_the_dashboard_asks_for_metrics_that_exist_by_labels_they_have() -> None:
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    asked = {name for one in expressions for name in _NAME.findall(one)}
    assert asked <= series()
    missing = {name for name in families() if not any(one.startswith(name) for one in asked)}
    assert not {name for name in missing if name.startswith("diptych_")}, "each is drawn somewhere"
    labels = {
        one._name: set(one._labelnames)
        for one in vars(metrics).values()
        if isinstance(one, MetricWrapperBase)
    }
    for expression in expressions:
        (name, *_) = _NAME.findall(expression)
        base = re.sub(r"_(total|bucket|sum|count)$", "", name)
        for group in re.findall(r"by \(([a-z, ]+)\)", expression):
            wanted = {one.strip() for one in group.split(",")} - {"le"}
            assert wanted <= labels[base], expression
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_the_sizing_table_says_what_was_measured() -> None:
    rows = re.findall(r"^\|[^|]+\| ([\d.]+)[^|]*\| `([\w.-]+\.json)` `([\w.]+)` \|$", GUIDE, re.M)
    assert len(rows) >= 6
    checked = 0
    for figure, name, path in rows:
        file = ROOT / "tests" / "bench" / "results" / name
        if not file.exists():
            continue
        value: Any = json.loads(file.read_text())
        for part in path.split("."):
            value = value[part]
        assert str(value) == figure, (name, path)
        checked += 1
    assert checked


def options(arguments: list[str]) -> None:
    """The command line takes them: it gets as far as looking for the index."""
    assert arguments[0] == "serve"
    parsed = serve.make_context("serve", arguments[1:])
    assert parsed.params["indexes"]


def test_containers_start_what_exists_and_ask_for_keys() -> None:
    (default,) = re.findall(r"^CMD (\[.*?\])$", DOCKERFILE.replace("\\\n", ""), re.MULTILINE)
    options(json.loads(default))
    assert "--keys" in json.loads(default)
    assert "--insecure-public" not in json.loads(default)
    for name in ("diptych", "diptych-cuda"):
        one = COMPOSE["services"][name]
        options(one["command"])
        assert any(part.startswith("--keys=") for part in one["command"])
        assert one["read_only"] is True
        assert one["cap_drop"] == ["ALL"]
        assert one["security_opt"] == ["no-new-privileges:true"]
        assert one["user"] == "10001:10001"
        assert [port.split(":")[-1] for port in one["ports"]] == ["8000"]
        assert one["build"]["target"] in re.findall(
            r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE
        )
        mounted = {volume["target"]: volume.get("read_only") for volume in one["volumes"]}
        assert mounted == {"/index": True, "/keys": True, "/label-sets": None}
    assert "\nUSER 10001:10001\n" in DOCKERFILE
    (job,) = yaml.safe_load((ROOT / "docker" / "prometheus.yml").read_text())["scrape_configs"]
    (port,) = (part for part in COMPOSE["services"]["diptych"]["command"] if "metrics-port" in part)
    assert job["static_configs"][0]["targets"] == ["127.0.0.1:" + port.partition("=")[2]]


def test_the_image_gets_what_it_copies_and_nothing_else() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[0] == "*"
    copied = re.findall(r"^COPY (?!--from)(.+) \./?\w*$", DOCKERFILE, re.MULTILINE)
    for names in copied:
        for name in names.split():
            assert f"!{name.removeprefix('./')}" in ignored, name
            assert (ROOT / name).exists()


def command_of(unit: str) -> list[str]:
    (line,) = re.findall(r"^ExecStart=(.+)$", unit.replace("\\\n", ""), re.MULTILINE)
    return str(line).split()


def test_the_unit_starts_what_exists() -> None:
    started = command_of(UNIT.read_text())
    assert started[0].endswith("/diptych")
    options(started[1:])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_is_understood_by_systemd(tmp_path: Path) -> None:
    text = UNIT.read_text().replace(command_of(UNIT.read_text())[0], "/bin/true")
    text = re.sub(r"^(User|Group)=.*$", r"\1=root", text, flags=re.MULTILINE)
    text = re.sub(r"^Documentation=.*\n", "", text, flags=re.MULTILINE)

    def verify(text: str) -> str:
        path = tmp_path / "diptych.service"
        path.write_text(text)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(path)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return "\n".join(line for line in done.stderr.splitlines() if "diptych.service" in line)

    assert verify(text) == ""
    assert "Nonsense" in verify(text + "\n[Service]\nNonsense=yes\n")


def test_the_guide_names_commands_that_exist() -> None:
    runner = CliRunner()
    named = set(re.findall(r"diptych ((?:index|keys) [a-z]+|serve)", GUIDE))
    assert len(named) >= 7
    for one in named:
        assert runner.invoke(cli, [*one.split(), "--help"]).exit_code == 0, one


def test_the_backup_is_whole_although_the_index_went_on(tmp_path: Path) -> None:
    (script,) = re.findall(r"^```bash\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    index = build_colours(tmp_path / "photos.index")
    version = read_manifest(index).version
    # a commit between the two copies
    before, after = script.split("backup.current\n", 1)
    words = shlex.join(command())
    shell = ["bash", "-euo", "pipefail", "-c"]
    run = partial(subprocess.run, cwd=tmp_path, env=environment(), check=True, timeout=60)
    run([*shell, before + "backup.current"])
    Editor(index, ColourEncoder()).delete(["sky.png"])
    run([*shell, f'diptych() {{ {words} "$@"; }}\n{after}'], stdout=subprocess.DEVNULL)
    assert read_manifest(tmp_path / "backup").version == version
    assert read_manifest(index).version == version + 1
    with open_snapshot(tmp_path / "backup", fingerprint=None) as snapshot:
        assert snapshot.item("sky.png").id == "sky.png"
