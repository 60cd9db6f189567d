"""Bad folders of pictures; see `bad_sources.py`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bad_manifests import deep, links, special_files, twins
from bad_sources import RED, Case


def filled(*fill: Callable[[Path], object]) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        for one in fill:
            one(folder)
        return str(folder)

    return make


def picture(*names: str, content: bytes = RED) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    return write


def odd_names(folder: Path) -> None:
    for name in (b"caf\xe9.png", b"new\nline.png", b"=cmd.png", b"-rf.png", b" .png", b"a%2f.png"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(RED)


def not_readable_as_a_folder(folder: Path) -> str:
    (folder / "a.png").write_bytes(RED)
    return str(folder / "a.png")


def fifo(folder: Path) -> str:
    os.mkfifo(folder / "a.jsonl")
    return str(folder / "a.jsonl")


FOLDERS = [
    Case("folder-empty", filled(), ()),
    Case("folder-missing", lambda folder: str(folder / "nowhere"), ("!source-unreadable",)),
    Case("folder-is-a-picture", not_readable_as_a_folder, ("!source-unreadable",)),
    Case("folder-is-a-fifo", fifo, ("!source-unreadable",)),
    Case("folder-name-holds-nul", lambda folder: f"{folder}\0", ("!source-unreadable",)),
    Case("folder-is-a-url", lambda _: "https://example.org/photos", ("!url-not-allowed",)),
    # `loop` and the links to folders, before the folders themselves
    Case("folder-links", filled(links, picture("good.png")),
         ("ok", "symlink-skipped", "symlink-skipped", "symlink-skipped", "symlink-skipped")),
    Case("folder-special-files", filled(special_files),
         ("empty-file", "not-a-regular-file", "not-a-regular-file", "file-too-large")),
    Case("folder-twins-and-long-names", filled(twins), ("ok",) * 5),
    Case("folder-odd-names", filled(odd_names), ("ok",) * 6),
    Case("folder-depth-1000", filled(deep), ("ok",)),
    Case("folder-bad-sidecars", filled(
        picture("a.png", "b.png", "c.png", "d.png", "e.png"),
        picture("a.txt", content=b"caf\xe9"), picture("b.json", content=b"{"),
        picture("c.json", content=b"[" * 100_000), picture("d.txt", content=b"x" * 2**21),
        picture("e.txt", content=b"")),
        ("not-utf8", "ok", "bad-json", "ok", "bad-json", "ok", "file-too-large", "ok", "ok")),
    Case("folder-bad-pattern", filled(picture("a.png")), ("!bad-pattern",), {"include": [""]}),
    Case("folder-long-pattern", filled(picture("a.png")), ("!bad-pattern",),
         {"exclude": ["*" * 5000]}),
    Case("folder-odd-patterns", filled(picture("[a.png", "b].png", "c^.png")), ("ok", "ok"),
         {"include": ["[[]a.png", "*^.png", "[z-a", "[!", "(", "\\"]}),
    Case("folder-slow-pattern", filled(picture("a" * 200 + ".png", "d/" * 100 + "e.png")), (),
         {"include": ["*a*a*a*a*a*a*a*a*b", "**/" * 100 + "b"]}),
]  # fmt: skip
