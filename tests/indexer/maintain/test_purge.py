"""After a purge no byte of what was removed is in any file, and everything else is as it was."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fakes import ColourEncoder, encode
from indexes import ListSource, mean_shown, reject
from PIL import Image

from indexer.format.erasures import read_erasures
from indexer.format.manifest import read_manifest
from indexer.ingest.build import BuildOptions, build_index
from indexer.maintain.edit import delete_items, rollback
from indexer.maintain.purge import purge
from indexer.maintain.verify import verify_index
from indexer.search.options import SearchOptions
from indexer.search.relevance_file import read_background
from indexer.search.snapshot import open_snapshot
from indexer.store.history import history
from indexer.store.sweep import Sweeper
from models.encoder import PreparedImage, PreparedText
from models.errors import NotFoundError
from models.sources.records import Record
from models.vectors import Vectors, unit_rows

DIM = 48


class NoiseEncoder(ColourEncoder):
    """Another direction for every picture and text, so that each vector's bytes are its own."""

    def __init__(self) -> None:
        super().__init__(name="noise")
        self.dim = DIM

    def embed_images(self, images: Sequence[PreparedImage]) -> Vectors:
        return self._rows([np.asarray(image).tobytes() for image in images])

    def embed_texts(self, texts: Sequence[PreparedText]) -> Vectors:
        return self._rows([" ".join(text.tokens).encode() for text in texts])

    def _rows(self, contents: list[bytes]) -> Vectors:
        rows = [random.Random(content).choices(range(-99, 100), k=DIM) for content in contents]
        return unit_rows(np.array(rows, dtype=np.float32).reshape(len(rows), DIM))


def noise(seed: int) -> bytes:
    return encode(Image.frombytes("RGB", (24, 24), random.Random(seed).randbytes(24 * 24 * 3)))


def item(number: int, words: str = "") -> Record:
    word = words or f"caption-of-{number:04}"
    return Record(
        key=f"folder/picture-{number:04}.png",
        uri=f"file:///somewhere/secret-{number:04}.png",
        image=noise(number),
        texts={"en": (f"{word} first", f"{word} second")},
        attributes={"owner": f"owner-{number:04}", "n": number},
    )


def build(rows: list[Record], out: Path, **options: object) -> None:
    settings = BuildOptions(batch_size=8, **{"segment_rows": 7, **options})  # type: ignore[arg-type]
    build_index([ListSource(rows)], out, NoiseEncoder(), options=settings)


def canaries(path: Path, key: str) -> list[bytes]:
    """What identifies an item and its captions: strings, vectors, thumbnail."""
    with open_snapshot(path, fingerprint=None) as snapshot:
        found = [snapshot.thumbnail(key)[-60:]]
        for one in (snapshot.item(key), *snapshot.captions(key)):
            found += [one.id.encode(), one.uri.encode(), (one.text or "").encode()]
            found += [str(one.attributes["owner"]).encode()]
            found += [snapshot.vector(one.id).astype("<f2").tobytes()]
    return found


def holding(path: Path, needles: list[bytes]) -> set[str]:
    files = [file for file in path.parent.rglob("*") if file.is_file()]
    return {
        str(file.relative_to(path.parent))
        for file in files
        for needle in needles
        if needle in file.read_bytes()
    }


@pytest.fixture
def index(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    out = tmp_path / "home" / "x.index"
    build([item(number) for number in range(20)], out)
    return out


def test_a_purge_leaves_no_byte_of_what_was_deleted(index: Path) -> None:
    gone = [item(number).key for number in (0, 3, 8, 9, 10, 11, 12, 13, 19)]
    needles = [needle for key in gone for needle in canaries(index, key)]
    stays = canaries(index, item(1).key)
    means = read_background(index, read_manifest(index)).mean_D["images"]
    delete_items(index, gone)
    assert {Path(name).name for name in holding(index, needles)} == {"items.sqlite", "vectors.npy"}
    report = purge(index)
    assert holding(index, needles) == set()
    assert all(holding(index, [needle]) for needle in stays)
    assert (report.found, report.version, report.erased) == ([], 5, 9)
    assert (report.rows, report.segments) == (27, 6)
    assert report.bytes_after < report.bytes_before
    assert report.sought > 9 * 8
    assert [one.version for one in history(index)] == [5]
    assert verify_index(index).ok
    assert read_manifest(index).tombstones is None
    # the mean vectors are those of what is left
    left = read_background(index, read_manifest(index)).mean_D["images"]
    assert not np.allclose(left, means)
    with open_snapshot(index, fingerprint=None) as snapshot:
        vectors = [snapshot.vector(item(n).key) for n in range(20) if item(n).key not in gone]
        np.testing.assert_allclose(left, mean_shown(vectors, len(left)), atol=1e-3)
    assert [key in read_erasures(index, read_manifest(index)) for key in gone] == [True] * 9


def test_what_is_left_answers_as_before(index: Path) -> None:
    query = NoiseEncoder().embed_texts([PreparedText(["anything"])])
    delete_items(index, [item(2).key, "folder/picture-0004.png#en/0"])

    def answers() -> list[object]:
        with open_snapshot(index, fingerprint=NoiseEncoder().fingerprint) as snapshot:
            return [
                (hit.item, hit.score, snapshot.thumbnail(hit.item.id) if target == "images" else 0)
                for target in ("images", "texts")
                for hit in snapshot.search(query, SearchOptions(k=100, target=target))[0]  # type: ignore[arg-type]
            ]

    before = answers()
    assert len(before) == 19 + 37
    purge(index)
    assert answers() == before


def test_a_caption_deleted_alone_leaves_nothing_of_itself(index: Path) -> None:
    key = item(5).key
    delete_items(index, [f"{key}#en/0"])
    purge(index)
    assert holding(index, [b"caption-of-0005 first", f"{key}#en/0".encode()]) == set()
    assert holding(index, [b"caption-of-0005 second"])


def test_superseded_states_and_older_versions_go_too(index: Path) -> None:
    old = canaries(index, item(4).key)
    build([item(4, words="entirely-new-words")], index)
    delete_items(index, [item(6).key])
    rollback(index, 3)
    build([item(4, words="entirely-new-words")], index)
    report = purge(index)
    assert report.found == []
    texts = [needle for needle in old if needle.startswith(b"caption-of")]
    assert holding(index, texts) == set()
    assert holding(index, [b"picture-0006"]) == set()
    assert [one.operation for one in history(index)] == ["purge"]
    with pytest.raises(NotFoundError):
        rollback(index, 3)


def test_a_purge_with_nothing_to_do_makes_no_version(index: Path) -> None:
    assert purge(index).version == 4
    again = purge(index)
    assert (again.version, again.versions, again.rows, again.found) == (4, 0, 0, [])


def test_everything_may_be_deleted_and_purged(index: Path) -> None:
    delete_items(index, [item(number).key for number in range(20)])
    report = purge(index)
    # they went with the commit that left no live row in them
    assert (report.rows, report.segments, report.found) == (0, 0, [])
    assert report.sought > 20
    assert list((index / "segments").iterdir()) == []
    build([item(99)], index)
    assert verify_index(index).ok
    with open_snapshot(index, fingerprint=None) as snapshot:
        assert snapshot.info().images == 1


def test_leftovers_of_others_are_named(index: Path) -> None:
    delete_items(index, [item(7).key])
    (index / "notes.txt").write_text("remember picture-0007: folder/picture-0007.png")
    report = purge(index)
    assert report.found == ["notes.txt"]
    assert report.to_dict()["clean"] is False
    (index / "notes.txt").unlink()
    assert purge(index).found == []


def test_lines_of_the_rejects_file_that_name_erased_items_go(index: Path) -> None:
    file = index.with_name("x.index.rejects.jsonl")
    lines = [reject(item(number).key) for number in (1, 2)] + [reject(f"{item(1).key}#en/0")]
    file.write_text("".join(json.dumps(one.to_dict()) + "\n" for one in lines))
    delete_items(index, [item(1).key])
    assert purge(index).rejects == 2
    assert [json.loads(line)["key"] for line in file.read_text().splitlines()] == [item(2).key]
    assert holding(index, [item(1).key.encode()]) == set()
    file.write_text("not ours\n")
    assert purge(index).rejects == 0
    assert file.read_text() == "not ours\n"


def test_a_purge_cut_off_after_its_commit_is_finished_by_the_next_writer(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needles = canaries(index, item(8).key)
    delete_items(index, [item(8).key])

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Sweeper, "collect", killed)
        with pytest.raises(Killed):
            purge(index)
    assert read_manifest(index).operation == "purge"
    assert len(history(index)) > 1
    assert holding(index, needles)
    build([item(30)], index)
    assert holding(index, needles) == set()
    assert [one.operation for one in history(index)] == ["build", "purge"]


def test_readers_of_an_old_version_go_on(index: Path) -> None:
    query = NoiseEncoder().embed_texts([PreparedText(["anything"])])
    with open_snapshot(index, fingerprint=NoiseEncoder().fingerprint) as old:
        delete_items(index, [item(1).key])
        purge(index)
        assert len(old.search(query, SearchOptions(k=100))[0]) == 20
        assert old.thumbnail(item(1).key)
    assert item(1).key not in ids_of(index)


def ids_of(index: Path) -> list[str]:
    query = NoiseEncoder().embed_texts([PreparedText(["anything"])])
    with open_snapshot(index, fingerprint=NoiseEncoder().fingerprint) as snapshot:
        return [hit.item.id for hit in snapshot.search(query, SearchOptions(k=100))[0]]


OTHERS_WORDS = [
    "fields of barley",  # a label of another
    "photographer",  # an attribute's name
    "owner-name of mine",  # a declared field's attribute
    "row INTEGER PRIMARY KEY",  # the schema's
    "parent_sha256",  # the manifest's
    "wurzburger",  # a term that another is found by, whose text has an accent
    "stays-9.pngfile:///kept/9.png",  # a column behind another
    '"camera": "wideangle"',  # an attribute and its name
]


@pytest.mark.parametrize("words", OTHERS_WORDS)
def test_what_others_say_is_no_leftover(tmp_path: Path, words: str) -> None:
    stays = Record(
        key="stays-9.png",
        uri="file:///kept/9.png",
        image=noise(9),
        texts={"en": ("Ein Würzburger Haus",)},
        label="fields of barley",
        attributes={"photographer": "x", "owner-name of mine": 1, "camera": "wideangle"},
    )
    gone = Record(
        key="gone-7.png",
        uri="file:///removed/7.png",
        image=noise(7),
        texts={"en": (words, "truly a leftover")},
        attributes={"said": words},
    )
    index = tmp_path / "x.index"
    build([stays, gone], index)
    delete_items(index, ["gone-7.png"])
    report = purge(index)
    assert report.found == []
    assert report.sought > 4


def test_a_true_leftover_beside_the_words_of_others(tmp_path: Path) -> None:
    index = tmp_path / "x.index"
    records = [
        Record(f"r{n}", f"file:///{n}", noise(n), {"en": (f"caption-of-{n:04}",)}, label="meadows")
        for n in range(4)
    ]
    build(records, index)
    delete_items(index, ["r2"])
    (index / "notes.txt").write_text("meadows\0caption-of-0002\0meadows")
    (index / "harmless.txt").write_text("meadows\0caption-of-0001\0meadows")
    assert purge(index).found == ["notes.txt"]
