"""Damage by the thousand to an index that has every kind of file: all of it is found and named.

A search structure is a cache, so damage to it is told and searched around; damage to anything else
is refused. Bits flip, blocks are zeroed, files are cut, emptied, lengthened and swapped, and files
of older versions take the place of newer ones.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from clustered import FINGERPRINT, fill, pictures, texts
from ramdisk import in_memory

from indexer.format.manifest import read_manifest
from indexer.maintain.edit import delete_items
from indexer.maintain.optimize import OptimizeOptions, optimize
from indexer.maintain.verify import verify_index
from indexer.search.options import SearchOptions
from indexer.search.snapshot import open_snapshot
from models.errors import IndexCorruptError

Damage = Callable[[Path, Path, random.Random], None]
"""(the file, another file of the index, ...): changes the file in place."""


def populate(path: Path) -> None:
    """Merged, with a search structure; then rows deleted, which leaves a list of hashes too."""
    fill(path, pictures(1200), texts(200), dead=frozenset(range(0, 60, 9)))
    report = optimize(path, OptimizeOptions(structure="hnsw", fewest=500, floor=0.8, gain=0.0))
    assert report.images.structure == "hnsw", report.images.notes
    with open_snapshot(path, fingerprint=FINGERPRINT) as snapshot:
        [hits] = snapshot.search(texts(1), SearchOptions(k=3))
    delete_items(path, [hit.item.id for hit in hits])
    kinds = {Path(name).name for name in read_manifest(path).files()}
    assert {"vectors.npy", "items.sqlite", "ann.faiss"} < kinds
    assert {Path(name).parts[0] for name in read_manifest(path).files()} >= {
        "segments",
        "tombstones",
        "erased",
    }


def flip(file: Path, _: Path, rng: random.Random) -> None:
    with file.open("r+b") as stream:
        position = rng.randrange(file.stat().st_size)
        stream.seek(position)
        byte = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([byte ^ (1 << rng.randrange(8))]))


def zero(file: Path, _: Path, rng: random.Random) -> None:
    data = file.read_bytes()
    start = rng.randrange(len(data))
    file.write_bytes(data[:start] + bytes(min(4096, len(data) - start)) + data[start + 4096 :])


def cut(file: Path, _: Path, rng: random.Random) -> None:
    with file.open("r+b") as stream:
        stream.truncate(rng.randrange(file.stat().st_size))


def lengthen(file: Path, _: Path, rng: random.Random) -> None:
    with file.open("ab") as stream:
        stream.write(rng.randbytes(rng.randint(1, 4096)))


def swap(file: Path, other: Path, _: random.Random) -> None:
    file.write_bytes(other.read_bytes())


KINDS: list[tuple[Damage, int]] = [(flip, 12), (zero, 3), (cut, 3), (lengthen, 1), (swap, 1)]


def damage_many(count: int, seed: int) -> None:
    rng = random.Random(seed)
    with in_memory() as home:
        path = home / "x.index"
        populate(path)
        manifest = read_manifest(path)
        newest = f"manifests/{manifest.version:08d}.json"
        names = ["CURRENT", newest, *sorted(manifest.files())]
        others = [file for file in path.rglob("*") if file.is_file()]
        found = 0
        while found < count:
            name = names[found % len(names)]
            [act] = rng.choices([act for act, _ in KINDS], [often for _, often in KINDS])
            original = (path / name).read_bytes()
            act(path / name, rng.choice(others), rng)
            if (path / name).read_bytes() == original:
                continue
            if name.endswith("ann.faiss"):
                with open_snapshot(path, fingerprint=FINGERPRINT) as snapshot:
                    [told] = snapshot.info().degraded
                    assert told.startswith(name)
            elif name.startswith("erased/"):  # only writers read it
                with pytest.raises(IndexCorruptError) as caught:
                    delete_items(path, ["nobody"])
                assert caught.value.file == name
                assert [problem.file for problem in verify_index(path).problems] == [name]
            else:
                with pytest.raises(IndexCorruptError) as caught:
                    open_snapshot(path, fingerprint=None)
                # CURRENT vouches for the manifest: when the two disagree, the manifest is named
                assert caught.value.file == name or (
                    name == "CURRENT" and caught.value.file.startswith("manifests/")
                )
                assert caught.value.hint
            (path / name).write_bytes(original)
            found += 1
        with open_snapshot(path, fingerprint=FINGERPRINT) as snapshot:  # restored, it is whole
            assert snapshot.info().degraded == []


def test_1000_damages(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    damage_many(1000, 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_20000_damages(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    damage_many(20_000, 2)
