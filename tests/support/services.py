"""A small index of solid colours behind the service, for tests of `service/`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fakes import ColourEncoder, halves, solid
from indexes import ListSource
from starlette.testclient import TestClient

from indexer.filters.declared import parse_fields
from indexer.ingest.build import BuildOptions, build_index
from indexer.search.snapshot import open_snapshot
from models.sources.records import Record
from service.engine.engine import Engine
from service.http.app import ServiceSettings, create_app

APPLE = "fruit/red apple.png"
LEAF = "plants/leaf #1?.png"
SKY = "sky.png"
FLAG = "flag/thumbnail"
ECCENTRIC_IDS = [APPLE, LEAF, SKY, FLAG]

RECORDS = [
    Record(APPLE, "file:///p/fruit/red%20apple.png", solid("red"),
           {"en": ("a red apple",), "zh": ("一个红苹果",)}, "fruit", {"year": 2024}),
    Record(LEAF, "file:///p/leaf.png", solid("green"), {"en": ("a green leaf",)}),
    Record(SKY, "file:///p/sky.png", solid("blue"), {"en": ("the blue sky",)}),
    Record(FLAG, "file:///p/flag.png", halves("red", "blue"), {}),
]  # fmt: skip


def build_colours(out: Path) -> Path:
    options = BuildOptions(fields=parse_fields(["year:int", "mood", "shiny:bool,tags:str[]"]))
    build_index([ListSource(RECORDS)], out, ColourEncoder(), options=options)
    return out


@contextmanager
def colour_engine(path: Path, encoder: ColourEncoder | None = None) -> Iterator[Engine]:
    with open_snapshot(path, fingerprint=None) as snapshot:
        yield Engine(encoder or ColourEncoder(), snapshot)


@contextmanager
def colour_client(path: Path, settings: ServiceSettings | None = None) -> Iterator[TestClient]:
    with colour_engine(path) as engine, TestClient(create_app(engine, settings)) as client:
        yield client
