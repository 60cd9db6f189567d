"""What the browser tests and the page's benchmarks share: photographs, a real service, a chromium.

The photographs are those inside the scikit-image wheel, with swatches generated here so that there
is more than one page of results. The model is the starter pair.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import serving
from PIL import Image

from service.demo import wheel_photos

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    "astronaut": ("people", 1999), "camera": ("people", 2001), "chelsea": ("animals", 2011),
    "rocket": ("space", 2015), "hubble_deep_field": ("space", 1995), "moon": ("space", 1990),
    "coffee": ("things", 2012), "coins": ("things", 2003), "motorcycle_left": ("things", 2014),
}  # fmt: skip
SWATCHES = 26


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}


def write_photographs(folder: Path, *, swatches: int = SWATCHES) -> Path:
    """A manifest of the wheel's photographs with a kind and a year, and of generated swatches."""
    manifest = wheel_photos.write_manifest(folder)
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        if row["id"] in KINDS:
            row["kind"], row["year"] = KINDS[row["id"]]
    for number in range(swatches):
        name = f"swatch-{number:02}.png"
        colour = ((number * 53) % 256, (number * 97) % 256, (number * 151) % 256)
        Image.new("RGB", (48, 48), colour).save(folder / name)
        rows.append({"id": f"swatch-{number:02}", "image": name, "kind": "swatches"})
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    manifest.write_text("".join(lines), encoding="utf-8")
    return manifest


def build_indexes(root: Path) -> list[str]:
    """Two indexes by the starter: the photographs, and a dozen swatches without a caption."""
    from indexer.filters.declared import parse_fields
    from indexer.ingest.build import BuildOptions, build_index
    from models.encoders.registry import load_encoder
    from models.sources import open_source

    encoder = load_encoder("starter", device="cpu", threads=2)
    photographs = write_photographs(root / "photographs")
    build_index(
        [open_source(str(photographs))], root / "photos.index", encoder,
        options=BuildOptions(fields=parse_fields(["kind:str,year:int"])),
    )  # fmt: skip
    rows = [json.loads(line) for line in photographs.read_text(encoding="utf-8").splitlines()]
    bare = root / "photographs" / "bare.jsonl"
    lines = (json.dumps({"id": row["id"], "image": row["image"]}) + "\n" for row in rows[-12:])
    bare.write_text("".join(lines), encoding="utf-8")
    build_index(
        [open_source(str(bare))], root / "plain.index", encoder,
        options=BuildOptions(relevance=False),
    )  # fmt: skip
    return [f"photos={root / 'photos.index'}", f"plain={root / 'plain.index'}"]


@contextmanager
def service(indexes: list[str], log: Path, *more: str) -> Iterator[str]:
    """A running `diptych serve` on a free port: its address."""
    arguments = [part for index in indexes for part in ("--index", index)]
    command = [sys.executable, "-m", "service.cli.main", "serve", *arguments, "--port", "0"]
    with serving.announced([*command, "--json", *more], log, environment()) as (_, said):
        yield str(said["url"])


@contextmanager
def chromium() -> Iterator[Any]:
    """The system's chromium under Playwright, which cannot fetch browsers of its own here."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()
