"""The manifests that every operation writes for fixed inputs, without what differs every time.

    PYTHONPATH=.:tests/support python tests/support/manifest_history.py > tests/gold/manifests.json

makes the gold file that `tests/indexer/store/test_commit.py` compares with. Times, random names,
the writer, and whatever depends on the machine's SQLite or arithmetic are left out; sums of what
holds whole numbers only (tombstones, erasures) stay.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fakes import ColourEncoder
from indexes import NAMES, build, record

from indexer.filters.declared import parse_fields
from indexer.maintain.edit import Editor, delete_items, rollback
from indexer.maintain.optimize import optimize
from indexer.maintain.purge import purge
from indexer.maintain.repair import repair
from indexer.transfer.exports import export_index
from indexer.transfer.imports import import_index


def told(root: Path) -> dict[str, Any]:
    """The current manifest of an index, as it stands in its file, made comparable."""
    number, digest = (root / "CURRENT").read_text(encoding="ascii").split()
    data = (root / "manifests" / f"{int(number):08d}.json").read_bytes()
    assert hashlib.sha256(data).hexdigest() == digest
    manifest: dict[str, Any] = json.loads(data)
    if "parent_sha256" in manifest:
        parent = root / "manifests" / f"{manifest['parent']:08d}.json"
        if parent.exists():
            same = hashlib.sha256(parent.read_bytes()).hexdigest() == manifest["parent_sha256"]
            manifest["parent_sha256"] = "the parent's" if same else "another's"
        else:
            manifest["parent_sha256"] = "of a version that is gone"
    manifest["created"] = re.sub("[0-9]", "0", manifest["created"])
    manifest["writer"] = re.sub(r"\d+(\.\w+)*", "0", manifest["writer"])
    manifest["index"] = re.sub("[0-9a-f]", "0", manifest["index"])
    manifest["encoder"] = sorted(manifest["encoder"])
    for place, segment in enumerate(manifest["segments"]):
        # which of the segments, not its random name; the version that wrote it stays
        segment["id"] = f"{segment['id'][:-8]}{place}"
        segment["files"] = sorted(segment["files"])
    for source in manifest["sources"]:
        source["name"] = Path(source["name"]).name
    if relevance := manifest.get("relevance"):
        rows = {target: relevance[target]["rows"] for target in ("images", "texts")}
        manifest["relevance"] = {"file": relevance["file"], "keys": list(relevance), **rows}
    manifest["keys"] = list(manifest)  # the order on disk
    return manifest


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    # the middle of `CURRENT` is a digit of a random sum: its highest bit always makes it none
    data[len(data) // 2] ^= 0x80 if file.name == "CURRENT" else 1
    file.write_bytes(data)


def histories(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """For every story, the manifest after each of its steps."""
    encoder = ColourEncoder()
    first = [record(f"p{i}", NAMES[i], f"{NAMES[i]} thing", year=i) for i in range(6)]
    more = [record("p6", "red", "red again"), record("p7", None, "a text alone")]

    def story(name: str, *steps: Callable[[Path], object]) -> list[dict[str, Any]]:
        root = folder / name.replace(" ", "-")
        found = []
        for step in steps:
            step(root)
            found.append(told(root))
        return found

    def start(root: Path) -> None:
        build(first, root, fields=parse_fields(["year:int"]))

    def grown(root: Path) -> None:
        start(root)
        build(more, root)
        delete_items(root, ["p1"])

    def spoil(where: str) -> Callable[[Path], object]:
        def change(root: Path) -> None:
            file = sorted(root.glob(where))[-1]
            flip(file)
            repair(root, yes=True, drop_damaged=True)

        return change

    def lose_current(root: Path) -> None:
        (root / "CURRENT").unlink()
        repair(root)

    def copied(root: Path) -> None:
        start(root)
        out = root.with_name(f"{root.name}-parquet")
        export_index(root, out, "parquet")
        import_index(out, root.with_name(f"{root.name}-again"), lambda: encoder)

    again = folder / "import-again"
    return {
        "edits": story(
            "edits",
            start,
            lambda root: build(more, root),
            lambda root: build([record("p2", "cyan", "now cyan", year=9)], root),
            lambda root: Editor(root, encoder).put([record("p8", "blue", "eight", year=8)]),
            lambda root: delete_items(root, ["p1", "p6#en/0"]),
            lambda root: delete_items(root, ["never-there", "p3"]),
            lambda root: rollback(root, 2),
            lambda root: build([record("p1", "red", "back", year=1)], root, allow_erased=True),
            lambda root: delete_items(root, ["p8", "p0"]),
            lambda root: optimize(root),
            lambda root: rollback(root, 7),
            lambda root: rollback(root, 0),
            lambda root: rollback(root, 9),
            lambda root: purge(root),
            lambda root: delete_items(root, ["p7"]),
        ),
        "nothing left": story(
            "nothing left",
            start,
            lambda root: delete_items(root, [f"p{i}" for i in range(6)]),
            lambda root: purge(root),
            lambda root: build(more, root),
        ),
        "import": [*story("import", copied), told(again)],
        "repair CURRENT": story("repair CURRENT", grown, lose_current, spoil("CURRENT")),
        "repair a manifest": story(
            "repair a manifest",
            grown,
            spoil("manifests/00000003.json"),
            lambda root: rollback(root, 1),
        ),
        "repair tombstones": story("repair tombstones", grown, spoil("tombstones/00000003.npy")),
        "repair the erasures": story("repair the erasures", grown, spoil("erased/00000003.npy")),
        "repair vectors": story(
            "repair vectors", grown, spoil("segments/00000001-image-*/vectors.npy")
        ),
        "repair items": story(
            "repair items", grown, spoil("segments/00000002-text-*/items.sqlite")
        ),
        "repair the background": story(
            "repair the background",
            grown,
            spoil("relevance/*.npy"),
            lambda root: delete_items(root, ["p2"]),
        ),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        stories = histories(Path(scratch))
    lines = (
        f" {json.dumps(name)}: [\n  " + ",\n  ".join(map(json.dumps, manifests)) + "\n ]"
        for name, manifests in stories.items()
    )
    sys.stdout.write("{\n" + ",\n".join(lines) + "\n}\n")
