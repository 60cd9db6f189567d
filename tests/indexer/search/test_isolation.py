"""What pictures do to the decoding processes of a build costs those pictures, and nothing else."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from fakes import ColourEncoder
from indexes import NAMES, build, ids, opened, record, rejects_of

import indexer.ingest.pipeline
import models.images.pool
from models.encoder import PreparedImage
from models.errors import DeadlineError, ImageError
from models.images.pool import Decoders, how_many
from models.sources.records import Record
from models.vectors import Vectors


def misbehaving(monkeypatch: pytest.MonkeyPatch, timeout_s: float) -> None:
    """Builds decode in workers that do as their picture says; see `misbehaving.py`."""

    def decoders(encoder: ColourEncoder, **options: object) -> Decoders:
        more = {"timeout_s": timeout_s, "entry": "misbehaving"}
        return Decoders(encoder, **{**options, **more})  # type: ignore[arg-type]

    monkeypatch.setattr(indexer.ingest.pipeline, "Decoders", decoders)


def poisoned(key: str, image: bytes) -> Record:
    return dataclasses.replace(record(key, "red"), image=image)


def test_poison_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    misbehaving(monkeypatch, timeout_s=5)
    out = tmp_path / "x.index"
    rows = [record(f"p{i}", NAMES[i % 8]) for i in range(20)]
    rows[3] = poisoned("crash", b"SEGV")
    rows[11] = poisoned("hang", b"HANG")
    rows[12] = poisoned("swell", b"SWELL")
    report = build(rows, out, workers=2, overlap=True)
    assert (report.added, report.rejected) == (17, 3)
    assert {line["key"]: line["code"] for line in rejects_of(out)} == {
        "crash": "image-undecodable", "hang": "decode-timeout", "swell": "image-undecodable",
    }  # fmt: skip
    with opened(out) as snapshot:
        assert sorted(ids(snapshot, "red")) == sorted(
            row.key for row in rows if row.key.startswith("p")
        )
    again = build(rows, out, workers=2)
    assert (again.unchanged, again.rejected) == (17, 3)


def test_workers_killed_from_outside_cost_what_they_had(tmp_path: Path) -> None:
    killed: list[int] = []

    class Killing(ColourEncoder):
        """Kills every decoding process once, in the middle of the build."""

        def embed_images(self, images: Sequence[PreparedImage]) -> Vectors:
            if self.images_embedded == 40:
                for path in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
                    for pid in map(int, path.read_text().split()):
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)
            return super().embed_images(images)

    rows = [record(f"p{i:03}", NAMES[i % 8]) for i in range(120)]
    out = tmp_path / "x.index"
    report = build(rows, out, Killing(), workers=2, overlap=True)
    assert killed
    assert report.added + report.rejected == 120
    assert report.rejected <= len(killed)
    assert build(rows, out).added == report.rejected  # theirs is no fault of the pictures


def test_threads_decode_where_processes_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(models.images.pool, "DecodePool", refuse)
    decoders = Decoders(ColourEncoder(), processes=2, thumbnail_side=None)
    image = record("a", "red").image
    assert image is not None
    assert decoders.decode(image)[0].shape == (16, 16, 3)
    assert decoders.processes == 0


def test_threads_take_over_from_processes_that_never_start() -> None:
    decoders = Decoders(ColourEncoder(), processes=1, thumbnail_side=8, entry="nowhere")
    image = record("a", "blue").image
    assert image is not None
    assert decoders.decode(image)[1].thumbnail is not None
    with pytest.raises(ImageError):
        decoders.decode(b"none")
    decoders.close()


def test_closed_decoders_start_no_new_processes() -> None:
    decoders = Decoders(ColourEncoder(), processes=1, thumbnail_side=None)
    decoders.close()
    with pytest.raises(DeadlineError):
        decoders.decode(b"x")


def test_how_many_processes() -> None:
    cores = min(os.cpu_count() or 1, 8)
    assert how_many(None, 64)[0] == 0
    assert how_many(None, 65)[0] == how_many(None, None)[0] == cores
    assert how_many(3, 1) == (3, 3)
    assert how_many(0, None)[0] == 0
    assert how_many(0, None)[1] >= 1
