"""The whole product on real photographs, with the starter pair: the cat finds the cat.

The photographs are those inside the scikit-image wheel. What is asserted are rankings, through the
command line and through HTTP, and that the two agree.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.demo import wheel_photos

QUERIES = [
    ("a cat", "chelsea"),
    ("a cat looking at the camera", "chelsea"),
    ("一只猫", "chelsea"),
    ("un gato", "chelsea"),
    ("a rocket on the launch pad", "rocket"),
    ("a cup of coffee on a table", "coffee"),
    ("a man taking photographs", "camera"),
    ("a parked motorcycle", "motorcycle_left"),
]


def diptych(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "service.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel_photos.write_manifest(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def index(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "photographs.index"
    report = json.loads(diptych("index", "build", str(photographs), "--out", str(out), "--json"))
    expected = len(photographs.read_text(encoding="utf-8").splitlines())
    assert report["images"] == expected
    assert report["texts"] == 2 * expected
    return out


@pytest.fixture(scope="module")
def client(index: Path) -> Iterator[TestClient]:
    from indexer.search.snapshot import open_snapshot, read_fingerprint
    from models.encoders.registry import load_encoder
    from service.engine.engine import Engine
    from service.http.app import create_app

    encoder = load_encoder(read_fingerprint(index).model)
    with (
        open_snapshot(index, fingerprint=encoder.fingerprint) as snapshot,
        TestClient(create_app(Engine(encoder, snapshot))) as running,
    ):
        yield running


def ranked(answer: Any) -> list[str]:
    return [hit["id"] for hit in answer["hits"]]


@pytest.mark.parametrize(("query", "expected"), QUERIES)
def test_text_finds_the_photograph(client: TestClient, query: str, expected: str) -> None:
    response = client.post("/v1/search/text-to-image", json={"text": query, "k": 3})
    assert response.status_code == 200
    assert ranked(response.json())[0] == expected


def test_a_photograph_finds_itself_and_its_caption(client: TestClient, photographs: Path) -> None:
    cat = (photographs.parent / "chelsea.png").read_bytes()
    headers = {"content-type": "image/png"}
    images = client.post(
        "/v1/search/image-to-text?target=images", content=cat, headers=headers
    ).json()
    assert ranked(images)[0] == "chelsea"
    assert images["hits"][0]["score"] == pytest.approx(1.0, abs=2e-3)

    texts = client.post("/v1/search/image-to-text?k=4", content=cat, headers=headers).json()
    assert "chelsea" in {hit["image_id"] for hit in texts["hits"][:2]}
    assert all(hit["text"] for hit in texts["hits"])


def test_the_command_line_gives_the_same_answers(index: Path, client: TestClient) -> None:
    by_http = client.post("/v1/search/text-to-image", json={"text": "a cat", "k": 5}).json()
    by_command = json.loads(diptych("search", "--index", str(index), "a cat", "-k", "5", "--json"))
    assert ranked(by_command) == ranked(by_http)
    for one, other in zip(by_command["hits"], by_http["hits"], strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=2e-3)


def test_the_cat_is_a_cat(photographs: Path) -> None:
    pictures = [str(photographs.parent / name) for name in ("chelsea.png", "rocket.jpg")]
    answer = json.loads(
        diptych("classify", *pictures, "--labels", "cat,dog,rocket,cup of coffee", "--json")
    )
    assert [result["predictions"][0]["label"] for result in answer["results"]] == ["cat", "rocket"]
    for result in answer["results"]:
        # four of them, each rounded to six places
        total = sum(one["probability"] for one in result["predictions"])
        assert total == pytest.approx(1.0, abs=4e-6)


def test_a_second_build_embeds_nothing(photographs: Path, index: Path) -> None:
    again = json.loads(diptych("index", "build", str(photographs), "--out", str(index), "--json"))
    assert again["added"] == again["updated"] == again["rejected"] == 0
    assert again["unchanged"] == again["images"]
