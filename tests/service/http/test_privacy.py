"""What a picture says about its owner, and what people search for, goes nowhere.

Canaries: a place, a serial number, a name in XMP, a comment, an ICC profile's description and a
second picture behind the first go into a photograph; none may be found in an index, in an answer or
in a log. Nor may a query's words, its picture or an item's address.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from fakes import ColourEncoder, solid
from indexes import ListSource
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from serving import server

from indexer.ingest.build import BuildOptions, build_index
from models.sources.records import Record

CANARIES = [
    b"CANARY-SERIAL-4711", b"CANARY-OWNER", b"CANARY-XMP", b"CANARY-COMMENT", b"CANARY-MAKER",
    b"CANARY-TRAILER", b"CANARY-PNGTEXT", b"CANARY-ICC", b"GPSCANARY",
]  # fmt: skip
LATITUDE = (48.0, 12.0, 34.5678)


def photograph() -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "CANARY-MAKER"
    exif[0x8298] = "CANARY-OWNER"
    exif.get_ifd(0x8769)[0xA431] = "CANARY-SERIAL-4711"
    gps = exif.get_ifd(0x8825)
    gps[1], gps[2], gps[29] = "N", LATITUDE, "GPSCANARY"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    buffer = BytesIO()
    Image.new("RGB", (300, 200), (255, 0, 0)).save(
        buffer, format="JPEG", exif=exif, comment=b"CANARY-COMMENT",
        icc_profile=profile + b"CANARY-ICC", xmp=b"<x:xmpmeta>CANARY-XMP</x:xmpmeta>",
    )  # fmt: skip
    return buffer.getvalue() + b"CANARY-TRAILER"


def drawing() -> bytes:
    notes = PngInfo()
    notes.add_text("Author", "CANARY-PNGTEXT")
    buffer = BytesIO()
    Image.new("RGB", (300, 200), (0, 0, 255)).save(buffer, format="PNG", pnginfo=notes)
    return buffer.getvalue()


def found_in(data: bytes) -> list[bytes]:
    return [canary for canary in CANARIES if canary in data]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("privacy") / "photos.index"
    records = [
        Record("photo.jpg", "file:///p/photo.jpg", photograph(), {"en": ("a red wall",)}),
        Record("drawing.png", "file:///p/drawing.png", drawing(), {"en": ("a blue wall",)}),
    ]
    build_index([ListSource(records)], path, ColourEncoder(), options=BuildOptions())
    return path


def test_the_photographs_do_hold_them() -> None:
    assert set(found_in(photograph() + drawing())) == set(CANARIES)
    read = Image.open(BytesIO(photograph())).getexif().get_ifd(0x8825)
    assert tuple(map(float, read[2])) == pytest.approx(LATITUDE)


def test_an_index_keeps_none_of_it(index: Path) -> None:
    files = [path for path in index.rglob("*") if path.is_file()]
    assert any(path.name == "items.sqlite" for path in files)
    for path in [*files, *index.parent.glob("*.jsonl")]:
        assert found_in(path.read_bytes()) == [], path.name


@pytest.fixture(scope="module")
def exchange(index: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    """Everything the service answers to everything that could make it talk, and its log."""
    log = tmp_path_factory.mktemp("log") / "log"
    picture = base64.b64encode(photograph()).decode()
    said = b""
    with server(index, log) as (_, url):
        parts = urlsplit(url)

        def ask(method: str, path: str, body: Any = None, kind: str = "application/json") -> bytes:
            nonlocal said
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": kind, "Accept": "*/*"})
            try:
                with connection.getresponse() as response:
                    answer = str(response.headers).encode() + response.read()
            finally:
                connection.close()
            said += answer
            return answer

        for item in ("photo.jpg", "drawing.png"):
            ask("GET", f"/v1/items/{item}")
            thumbnail = ask("GET", f"/v1/items/{item}/thumbnail").partition(b"\n\n")[2]
            with Image.open(BytesIO(thumbnail[thumbnail.index(b"\xff\xd8") :])) as shown:
                assert shown.format == "JPEG"
                assert not shown.getexif()
                assert set(shown.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        everything = ["attributes", "embedding", "thumbnail"]
        text = "QUERYCANARY red"
        for query in ({"image": picture}, {"text": text}, {"id": "photo.jpg"}):
            ask("POST", "/v1/search", {"query": query, "include": everything})
            ask("POST", "/v1/search/batch", {"searches": [{"query": query}]})
        ask("POST", "/v1/search/text-to-image?note=QUERYCANARY", {"text": text})
        ask("POST", "/v1/search/image-to-text?k=2", photograph(), "image/jpeg")
        ask("POST", "/v1/embeddings", {"input": [text, {"image": picture}]})
        ask("POST", "/knn-service", {"image": picture, "modality": "image", "num_images": 2})
        ask("POST", "/knn-service", {"text": text, "modality": "text", "num_images": 2})
        ask("POST", "/metadata", {"ids": [0, 1, 2]})
        labels = {"images": [picture], "labels": ["LABELCANARY red", "blue"], "explain": True}
        ask("POST", "/v1/classify", labels)
        ask("POST", "/v1/explain", {"image": picture, "text": text})
        # and what goes wrong
        ask("POST", "/v1/search", {"query": {"text": text}, "ODDCANARY": 1})
        ask("POST", "/v1/search", {"query": {"text": text}, "filter": {"field": "ODDCANARY"}})
        ask("POST", "/v1/search", {"query": {"image": picture[: len(picture) // 2]}})
        ask("POST", "/v1/search", {"query": {"image_url": "http://a.example/QUERYCANARY"}})
        ask("GET", "/v1/items/" + quote("QUERYCANARY/x", safe=""))
        ask("GET", "/QUERYCANARY?QUERYCANARY=1")
        ask("PUT", "/v1/label-sets/querycanary", labels)
    return said, log.read_text()


def test_no_answer_holds_any_of_it(exchange: tuple[bytes, str]) -> None:
    said, _ = exchange
    assert said.count(b"HTTP/1.1") == 0
    assert b"/p/photo.jpg" in said, "the answers are real"
    assert found_in(said) == []
    # what is inside base64 as well: thumbnails, heat maps
    runs = re.findall(rb"[A-Za-z0-9+/]{200,}", said)
    assert len(runs) >= 5
    for run in runs:
        assert found_in(base64.b64decode(run[: len(run) // 4 * 4])) == []
    assert b"QUERYCANARY" not in said, "nor is what was asked repeated"


def test_no_log_holds_what_was_asked(exchange: tuple[bytes, str]) -> None:
    _, log = exchange
    assert "/v1/search/text-to-image" in log, "the log is real"
    assert "canary" not in log.lower()
    assert "photo.jpg" not in log
    assert base64.b64encode(solid("red"))[:40].decode() not in log
    assert "Traceback" not in log
