"""Bad JSONL, lists and JSON documents, and bad paths and ids in them; see `bad_sources.py`."""

from __future__ import annotations

import base64
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_sources import RED, Case

B64 = base64.b64encode(RED).decode()
GOOD: dict[str, Any] = {"id": "good", "image": "good.png"}


def lines(*rows: bytes | dict[str, Any]) -> Callable[[Path], str]:
    """A JSONL manifest beside a good picture."""

    def make(folder: Path) -> str:
        (folder / "good.png").write_bytes(RED)
        parts = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (folder / "data.jsonl").write_bytes(b"\n".join(parts) + b"\n")
        return str(folder / "data.jsonl")

    return make


def document(name: str, content: bytes | dict[str, Any] | list[Any]) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / "good.png").write_bytes(RED)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(data)
        return str(folder / name)

    return make


def with_files(fill: Callable[[Path], object], *rows: bytes | dict[str, Any]) -> Any:
    def make(folder: Path) -> str:
        fill(folder)
        return lines(*rows)(folder)

    return make


def links(folder: Path) -> None:
    outside = folder.parent / f"{folder.name}-outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(RED)
    (folder / "out.png").symlink_to(outside / "secret.png")
    (folder / "way").symlink_to(outside, target_is_directory=True)
    (folder / "loop").symlink_to("loop")
    (folder / "round").symlink_to(".", target_is_directory=True)


def special_files(folder: Path) -> None:
    os.mkfifo(folder / "fifo.png")
    (folder / "dir.png").mkdir()
    (folder / "empty.png").touch()
    with (folder / "sparse.png").open("wb") as file:
        file.truncate(1 << 40)
    path = Path(os.path.relpath(folder / "socket.png"))  # a socket's name has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(min((path, folder / "socket.png"), key=lambda one: len(str(one)))))


def twins(folder: Path) -> None:
    for name in ("caf\u00e9.png", "cafe\u0301.png", "Tom.png", "tom.png", "n" * 251 + ".png"):
        (folder / name).write_bytes(RED)


def deep(folder: Path) -> None:
    here = os.open(folder, os.O_RDONLY)
    for _ in range(1000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    with os.fdopen(os.open("a.png", os.O_WRONLY | os.O_CREAT, dir_fd=here), "wb") as file:
        file.write(RED)
    os.close(here)


def coco(**changes: Any) -> dict[str, Any]:
    whole = {
        "images": [{"id": 1, "file_name": "good.png"}],
        "annotations": [{"image_id": 1, "caption": "a square"}],
    }
    return {**whole, **changes}


def karpathy(*images: Any) -> dict[str, Any]:
    good = {"filename": "good.png", "split": "test", "sentences": [{"raw": "a square"}]}
    return {"images": [good, *images], "dataset": "tiny"}


def image(path: str, **more: Any) -> dict[str, Any]:
    return {"image": path, **more}


MANIFESTS = [
    Case("jsonl-empty", lines(b""), ()),
    Case("jsonl-one-bad-of-many", lines(*[{"text": "x"}] * 500, b"{", {"text": "y"}),
         ("ok",) * 500 + ("bad-json", "ok")),
    Case("jsonl-bom-crlf-blank", lines(b'\xef\xbb\xbf{"text": "a"}\r', b"\r", b'{"text": "b"}\r'),
         ("ok", "ok")),
    Case("jsonl-mixed-encodings", lines(b'{"text": "caf\xe9"}', GOOD), ("not-utf8", "ok")),
    Case("jsonl-utf16", document("a.jsonl", '{"text": "a"}'.encode("utf-16")),
         ("!source-encoding",)),
    Case("jsonl-nul", lines(b'{"text": "a\0b"}', b"\0\0\0", GOOD), ("bad-json", "bad-json", "ok")),
    Case("jsonl-not-json", lines(b'{"a": NaN, "text": "x"}', b'"text"', b'{"text": "\\ud800"}',
                                 b"[" * 100_000, b'{"text":"a"}{"text":"b"}', b"{'text': 'a'}"),
         ("bad-json",) * 6),
    Case("jsonl-caption-10-mb", lines({"text": "x y" * 3_500_000}, GOOD), ("line-too-long", "ok")),
    Case("jsonl-list-bomb", lines(b'{"a": [' + b"[]," * 3_000_000 + b"[]]}", GOOD),
         ("line-too-long", "ok")),
    Case("jsonl-long-attribute", lines({"text": "a", "blob": "A" * 2**21}, GOOD),
         ("ok", "ok")),  # a long base64 string that is not the picture: bytes are no attribute
    Case("jsonl-big-picture", lines({"image_base64": "A" * 4 * 7_000_000}, GOOD),
         ("file-too-large", "ok")),
    Case("jsonl-base64", lines({"image_base64": "?"}, {"image_base64": ""}, {"image_base64": 1},
                               {"image_base64": B64 + "A"}, {"image_base64": B64}),
         ("bad-base64", "empty-file", "bad-base64", "bad-base64", "ok")),
    Case("jsonl-gzip", document("a.jsonl", b"\x1f\x8b rest"), ("!source-compressed",)),
    Case("ids", lines({"text": "a", "id": "i" * 10_000}, {"text": "a", "id": "a\nb"},
                      {"text": "a", "id": [1]}, {"text": "a", "id": ""}, {"text": "a", "id": True},
                      {"text": "a", "id": "../../etc/passwd"}, {"text": "a", "id": "=cmd|'/C'!A0"},
                      {"text": "a", "id": "caf\u00e9"}, {"text": "a", "id": "cafe\u0301"}),
         ("bad-id",) * 5 + ("ok",) * 4),
    Case("ids-twice", lines({"text": "a", "id": 1}, {"text": "a", "id": 1},
                            {"text": "b", "id": "1"}),
         ("ok", "duplicate-key", "duplicate-key")),
    Case("paths-outside", lines(image("/etc/hostname"), image("../x.png"), image("a/../../x.png"),
                                image("/proc/self/mem"), image("."), image("a\0b.png"), GOOD),
         ("path-outside",) * 6 + ("ok",)),
    Case("paths-wrong", lines(image("missing.png"), image(""), image(3), image("x" * 5000),  # type: ignore[arg-type]
                              image("x" * 300 + ".png"), image("good.png/more"), GOOD),
         ("file-missing", "bad-path", "bad-path", "bad-path", "unreadable", "unreadable", "ok")),
    Case("paths-urls", lines(image("http://127.0.0.1/a.png"), image("file:///etc/passwd"),
                             image("s3://bucket/a.png"), image("PIPE:cat good.png"),
                             {"url": "https://example.org/a.png", "caption": "a"},
                             {"url": "no link", "caption": "a"}),
         ("url-not-allowed",) * 5 + ("ok",)),
    Case("links", with_files(links, image("out.png"), image("way/secret.png"), image("loop"),
                             image("loop/a.png"), image("round/round/good.png"), GOOD),
         ("symlink-skipped",) * 5 + ("ok",)),
    Case("special-files", with_files(special_files, *(image(f"{name}.png") for name in (
        "fifo", "dir", "socket", "empty", "sparse", "good"))),
         ("not-a-regular-file",) * 3 + ("empty-file", "file-too-large", "ok")),
    Case("device", lines(image("null"), image("zero")), ("not-a-regular-file",) * 2,
         {"root": "/dev"}),
    Case("proc-self-mem", lines(image("mem")), ("unreadable",), {"root": "/proc/self"}),
    Case("proc-grows", lines(image("status")), ("file-changed",), {"root": "/proc/self"}),
    Case("root-missing", lines(GOOD), ("!source-unreadable",), {"root": "/nowhere"}),
    Case("twins-and-long-names", with_files(
        twins, image("caf\u00e9.png"), image("cafe\u0301.png"), image("Tom.png"), image("tom.png"),
        image("n" * 251 + ".png")), ("ok",) * 5),
    Case("path-depth-1000", with_files(deep, image("d/" * 1000 + "a.png")), ("ok",)),
    Case("manifest-lists-itself", lines(image("data.jsonl"), GOOD), ("ok", "ok")),
    Case("list", document("a.txt", b"# pictures\r\ngood.png\r\n\r\nmissing.png\ncaf\xe9.png\n"
                                   b"https://example.org/a.png\n" + b"x" * 2**21 + b"\n"),
         ("ok", "file-missing", "not-utf8", "url-not-allowed", "line-too-long")),
    Case("json-empty", document("a.json", b""), ("!source-empty",)),
    Case("json-number", document("a.json", b"5"), ("!source-unreadable",)),
    Case("json-unknown", document("a.json", {"pictures": []}), ("!source-unreadable",)),
    Case("json-array", document("a.json", [GOOD, 5, {"image": "no.png"}]),
         ("ok", "bad-json", "file-missing")),
    Case("json-cut", document("a.json", json.dumps([GOOD] * 2).encode()[:-10]),
         ("ok", "source-damaged")),
    Case("json-trailing", document("a.json", json.dumps([GOOD]).encode() + b" more"),
         ("ok", "source-damaged")),
    Case("json-not-utf8", document("a.json", b'[{"text": "a"}, {"text": "\xff"}]'),
         ("!source-damaged",)),
    Case("json-nan", document("a.json", b'[{"text": "a"}, {"text": "b", "n": NaN}]'),
         ("ok", "source-damaged")),
    Case("json-deep", document("a.json", b"[" * 200_000), ("source-damaged",)),
    Case("json-huge-element", document("a.json", [{"text": "a"}, {"text": "x" * 5_000_000}]),
         ("ok", "source-damaged")),
    Case("json-utf16", document("a.json", '[{"text": "a"}]'.encode("utf-16")),
         ("!source-encoding",)),
    Case("coco-wrong-images", document("a.json", coco(images=[
        5, {"id": 1}, {"file_name": "good.png"}, {"id": 2, "file_name": "no.png"}])),
        ("bad-json", "bad-path", "bad-id", "file-missing", "image-unknown")),
    Case("coco-wrong-annotations", document("a.json", coco(annotations=[
        5, {"caption": "lost"}, {"image_id": 99, "caption": "x"}, {"image_id": 1, "caption": 7}])),
        ("bad-json", "bad-json", "ok", "image-unknown")),
    Case("coco-without-images", document("a.json", {"annotations": []}), ()),
    Case("coco-cut", document("a.json", json.dumps(coco()).encode()[:-30]), ("source-damaged",)),
    Case("karpathy-wrong", document("a.json", karpathy(
        5, {"filename": 5, "sentences": []}, {"filename": "good.png", "sentences": 5},
        {"filename": "good.png", "sentences": [5]}, {"filename": "no.png", "sentences": []})),
        ("ok", "bad-json", "bad-path", "bad-caption", "bad-caption", "file-missing")),
    Case("karpathy-no-split", lambda folder: document("a.json", karpathy())(folder) + "#val",
         ("!split-missing",)),
    Case("split-of-coco", lambda folder: document("a.json", coco())(folder) + "#val",
         ("!source-unreadable",)),
]  # fmt: skip
