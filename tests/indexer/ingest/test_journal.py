"""A killed build goes on where it was: at most one batch is embedded twice."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from fakes import ColourEncoder
from indexes import NAMES, build, ids, opened, record, rejects_of

from indexer.format.manifest import read_manifest
from indexer.ingest.side_files import journal_path
from indexer.maintain.edit import delete_items
from indexer.maintain.verify import verify_index
from models.encoder import PreparedImage
from models.errors import StoreError
from models.sources.records import Record
from models.vectors import Vectors

TESTS = Path(__file__).resolve().parents[2]
BATCH = 4
CODE = """
import os, sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
sys.path.append(str(Path(sys.argv[2]).parent / "indexer" / "ingest"))
import test_journal as here
here.die(Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "True")
"""


def rows() -> list[Record]:
    return [
        record(f"p{i:02}", NAMES[i % 8], NAMES[i % 8], "" if i == 5 else "second", number=i)
        for i in range(40)
    ]


def die(out: Path, after: int, overlap: bool) -> None:
    """Build, and die without a word when that many pictures are embedded."""

    class Dying(ColourEncoder):
        def embed_images(self, images: Sequence[PreparedImage]) -> Vectors:
            if self.images_embedded >= after:
                os._exit(9)
            return super().embed_images(images)

    build(rows(), out, Dying(), batch_size=BATCH, segment_rows=16, overlap=overlap)


def killed(out: Path, after: int, *, overlap: bool) -> None:
    command = [
        sys.executable,
        "-c",
        CODE,
        str(TESTS.parent),
        str(TESTS / "support"),
        str(out),
        str(after),
    ]
    assert subprocess.run([*command, str(overlap)], timeout=120).returncode == 9


@pytest.mark.parametrize(("after", "overlap"), [(12, False), (16, False), (28, True)])
def test_a_killed_build_goes_on(tmp_path: Path, after: int, overlap: bool) -> None:
    out, whole = tmp_path / "x.index", tmp_path / "whole.index"
    killed(out, after, overlap=overlap)
    encoder = ColourEncoder()
    report = build(rows(), out, encoder, batch_size=BATCH, segment_rows=16)
    lost = after + encoder.images_embedded - 40
    assert 0 <= lost <= BATCH
    assert report.resumed + report.unchanged == 40 - encoder.images_embedded
    assert not journal_path(out).exists()
    build(rows(), whole, batch_size=BATCH, segment_rows=16)
    assert verify_index(out).ok
    with opened(out) as ours, opened(whole) as theirs:
        for row in rows():
            assert ours.item(row.key) == theirs.item(row.key)
            assert ours.thumbnail(row.key) == theirs.thumbnail(row.key)
            assert ours.captions(row.key) == theirs.captions(row.key)
        assert ids(ours, "red") == ids(theirs, "red")
    layouts = [
        [(one.modality, one.files["vectors.npy"].sha256) for one in read_manifest(path).segments]
        for path in (out, whole)
    ]
    assert layouts[0] == layouts[1], "the rows are in the order of the source"


def test_what_changed_meanwhile_is_embedded_anew(tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    killed(out, 12, overlap=False)
    changed = rows()
    changed[0] = record("p00", "blue", "now blue")
    encoder = ColourEncoder()
    report = build(changed, out, encoder, batch_size=BATCH, segment_rows=16)
    assert (report.resumed, encoder.images_embedded) == (11, 29)
    with opened(out) as snapshot:
        assert snapshot.item("p00#en/0").text == "now blue"


def test_another_commit_or_purpose_makes_it_worthless(tmp_path: Path) -> None:
    for number in range(2):
        out = tmp_path / f"{number}.index"
        killed(out, 28, overlap=False)
        if number == 0:
            delete_items(out, ["p00"])
        options = {"thumbnails": number == 0}
        report = build(rows(), out, batch_size=BATCH, segment_rows=16, **options)
        assert report.resumed == 0
        assert report.erased == (1 if number == 0 else 0)


def test_damage_costs_what_is_behind_it(tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    killed(out, 12, overlap=False)
    path = journal_path(out)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    report = build(rows(), out, batch_size=BATCH, segment_rows=16)
    assert 0 < report.resumed < 12
    assert report.added == 40


def test_rejects_of_a_resumed_record_are_listed_again(tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    bad = dataclasses.replace(rows()[0], texts={"en": ("red", "bad")})

    class Stopped(ColourEncoder):
        def prepare_text(self, text: str):  # type: ignore[no-untyped-def]
            from models.errors import InvalidTextError

            if text == "bad":
                raise InvalidTextError("refused")
            return super().prepare_text(text)

        def embed_images(self, images: Sequence[PreparedImage]) -> Vectors:
            if self.images_embedded:
                raise KeyboardInterrupt
            return super().embed_images(images)

    with pytest.raises(KeyboardInterrupt):
        build([bad, *rows()[1:]], out, Stopped(), batch_size=BATCH)
    report = build([bad], out)
    assert (report.resumed, report.rejected) == (1, 1)
    assert rejects_of(out)[0]["key"] == "p00#en/1"


def test_nothing_is_left_of_a_build_that_failed_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.index"

    def full(*_: object, **__: object) -> None:
        raise StoreError("no space")

    monkeypatch.setattr("indexer.store.writer.IndexWriter.commit", full)
    with pytest.raises(StoreError):
        build(rows(), out)
    assert not journal_path(out).exists()
