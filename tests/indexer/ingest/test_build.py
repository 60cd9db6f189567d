"""Building, bringing up to date, and searching what was built."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from fakes import CHINESE, ColourEncoder, halves
from indexes import (
    NAMES,
    PICTURES,
    ListSource,
    build,
    ids,
    opened,
    record,
    reject,
    rejects_of,
    scratch,
)
from PIL import Image

from indexer.format.manifest import read_manifest
from indexer.ingest.build import BuildOptions, BuildProgress, build_index
from indexer.search.options import SearchOptions
from indexer.search.snapshot import open_snapshot, read_fingerprint
from models.encoder import PreparedImage
from models.errors import (
    EncoderMismatchError,
    InputError,
    InvalidTextError,
    InvalidVectorError,
    NotFoundError,
    SourceError,
    StoreError,
)
from models.sources.records import Record
from models.vectors import Vectors


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "x.index"


def colours() -> list[Record]:
    return [
        record(name, name, name, f"the colour {name}", number=i) for i, name in enumerate(NAMES)
    ]


def test_every_colour_is_found_by_its_name_and_by_its_picture(out: Path) -> None:
    report = build(colours(), out, segment_rows=3)
    assert (report.added, report.images, report.texts, report.version) == (8, 8, 16, 3)
    assert report.rejects_file is None
    encoder = ColourEncoder()
    with opened(out) as snapshot:
        for name in NAMES:
            assert ids(snapshot, name)[0] == name
            assert ids(snapshot, name, 2, "texts") == [f"{name}#en/0", f"{name}#en/1"]
        assert ids(snapshot, "红")[0] == CHINESE["红"]
        picture = encoder.prepare_image(Image.open(BytesIO(halves("red", "blue"))))
        hits = snapshot.search(encoder.embed_images([picture]), SearchOptions(k=3))[0]
        assert [hit.item.id for hit in hits[:2]] == ["blue", "red"]
        assert hits[0].score == pytest.approx(2**-0.5, abs=1e-3)
        assert hits[2].score == 0.0


def test_what_an_item_carries(out: Path) -> None:
    build([record("cat", "red", "红", "second", language="zh", year=2020, tags=["a", None])], out)
    with opened(out) as snapshot:
        item = snapshot.item("cat")
        assert (item.modality, item.text, item.language, item.image_id) == (
            "image",
            "红",
            "zh",
            None,
        )
        assert item.attributes == {"year": 2020, "tags": ["a", None]}
        assert item.uri == "file:///pictures/cat.png"
        assert len(item.content_hash) == 64
        text = snapshot.item("cat#zh/1")
        assert (text.modality, text.text, text.image_id) == ("text", "second", "cat")
        vector_D = snapshot.vector("cat")
        assert vector_D.dtype == np.float32
        np.testing.assert_array_equal(vector_D, np.eye(9, dtype=np.float32)[0])
        with Image.open(BytesIO(snapshot.thumbnail("cat"))) as thumbnail:
            assert (thumbnail.format, thumbnail.size) == ("JPEG", (8, 8))
        for call in (snapshot.item, snapshot.vector, snapshot.thumbnail):
            for name in ("dog", "", "cat#zh/2", "\ud800", "cat\0"):
                with pytest.raises(NotFoundError):
                    call(name)
        with pytest.raises(NotFoundError):
            snapshot.thumbnail("cat#zh/0")


def test_a_second_run_embeds_only_what_is_new_or_changed(out: Path) -> None:
    build(colours(), out)
    encoder = ColourEncoder()
    report = build(colours(), out, encoder)
    assert (report.unchanged, report.added, report.version) == (8, 0, 1)
    assert (encoder.images_embedded, encoder.texts_embedded) == (0, 0)

    rows = colours()
    rows[2] = record("blue", "yellow", "now yellow")
    rows.append(record("new", "white"))
    report = build(rows, out, encoder)
    assert (report.unchanged, report.updated, report.added) == (7, 1, 1)
    assert (encoder.images_embedded, encoder.texts_embedded) == (2, 1)
    assert (report.images, report.texts, report.version) == (9, 15, 2)
    with opened(out) as snapshot:
        assert ids(snapshot, "yellow", 2) == ["blue", "yellow"]
        assert ids(snapshot, "blue", 1, "texts") != ["blue#en/0"]
        assert snapshot.item("blue#en/0").text == "now yellow"
        with pytest.raises(NotFoundError):
            snapshot.item("blue#en/1")  # its caption went with it
        assert len(ids(snapshot, "blue")) == 9


@pytest.mark.parametrize(
    "change",
    [
        {"image": PICTURES["white"]},
        {"texts": {"en": ("other",)}},
        {"texts": {"zh": ("red",)}},
        {"label": "x"},
        {"attributes": {"a": 2}},
    ],
)
def test_any_change_of_content_replaces_the_record(out: Path, change: dict[str, object]) -> None:
    before = record("a", "red", "red", a=1)
    build([before], out)
    assert build([before], out).unchanged == 1
    assert build([dataclasses.replace(before, **change)], out).updated == 1  # type: ignore[arg-type]
    assert build([dataclasses.replace(before, uri="file:///moved.png")], out).updated == 1
    # ... which put back the first content; another place alone changes nothing but the place
    assert build([before], out).moved == 1
    assert build([before], out).unchanged == 1


def test_a_snapshot_keeps_its_version_while_newer_ones_are_written(out: Path) -> None:
    build(colours(), out)
    with opened(out) as old:
        build([record("red", "green")], out)
        assert old.version == 1
        assert ids(old, "red")[0] == "red"
        with opened(out) as new:
            assert new.version == 2
            assert ids(new, "green", 2) == ["green", "red"]


def test_pages_neither_overlap_nor_leave_out(out: Path) -> None:
    rows = [record(f"p{i:03}", NAMES[i % 3]) for i in range(100)]
    build(rows, out, segment_rows=7)
    encoder = ColourEncoder()
    query = encoder.embed_texts([encoder.prepare_text("red green")])
    with opened(out) as snapshot:
        whole = [hit.item.id for hit in snapshot.search(query, SearchOptions(k=500))[0]]
        assert sorted(whole) == sorted(row.key for row in rows)
        reds_and_greens = [row.key for i, row in enumerate(rows) if i % 3 != 2]
        assert whole[: len(reds_and_greens)] == sorted(reds_and_greens)
        paged = [
            hit.item.id
            for offset in range(0, 110, 9)
            for hit in snapshot.search(query, SearchOptions(k=9, offset=offset))[0]
        ]
        assert paged == whole


def test_bad_queries_are_refused(out: Path) -> None:
    build(colours(), out)
    good = np.ones((1, 9), dtype=np.float32)
    with opened(out) as snapshot:
        for query in (np.ones((1, 8)), np.zeros((1, 9)), np.full((1, 9), np.nan), np.ones(9)):
            with pytest.raises(InvalidVectorError):
                snapshot.search(query, SearchOptions(k=1))
        for arguments in ({"k": 0}, {"k": -1}, {"k": 1, "offset": -1}, {"k": 1, "target": "all"}):
            with pytest.raises(InputError):
                snapshot.search(good, SearchOptions(**arguments))  # type: ignore[arg-type]
        assert snapshot.search(np.ones((0, 9), dtype=np.float32), SearchOptions(k=3)) == []
        assert snapshot.search(good, SearchOptions(k=3, offset=8)) == [[]]
        # length does not matter, direction does
        loud = snapshot.search(good * 1e6, SearchOptions(k=1))[0][0]
        assert loud.score == pytest.approx(1 / 3, abs=1e-3)


def test_rejects_are_listed_and_the_rest_is_indexed(out: Path) -> None:
    rows = [
        record("good", "red"),
        dataclasses.replace(record("text", "red"), image=b"not a picture"),
        dataclasses.replace(record("cut", "red"), image=PICTURES["red"][:45]),
        dataclasses.replace(record("none", "red"), image=b""),
        reject("source"),
        record("good", "blue"),
        record("", "blue"),
        record("x" * 3000, "blue"),
        record("nothing", None),
        record("lone\ud800", "blue"),
        record("nan", "blue", value=float("nan")),
        record("also good", "green"),
    ]
    report = build(rows, out, batch_size=2)
    assert (report.added, report.rejected, report.images) == (2, 10, 2)
    codes = [(line["key"][:9], line["code"]) for line in rejects_of(out)]
    assert sorted(codes) == sorted(
        [
            ("text", "image-undecodable"),
            ("cut", "image-undecodable"),
            ("none", "image-empty"),
            ("source", "test-reject"),
            ("good", "duplicate-id"),
            ("", "unusable-record"),
            ("xxxxxxxxx", "unusable-record"),
            ("nothing", "unusable-record"),
            ("lone\ud800", "unusable-record"),
            ("nan", "unusable-record"),
        ]
    )
    assert all(line["detail"] and line["source"] == "list" for line in rejects_of(out))
    assert report.rejects_file == str(out) + ".rejects.jsonl"
    # a later clean run leaves no stale report
    assert build([record("good", "red")], out).rejects_file is None
    assert rejects_of(out) == []


def test_one_key_in_two_sources_is_a_clash(out: Path) -> None:
    sources = [ListSource([record("a", "red")], "one"), ListSource([record("a", "blue")], "two")]
    report = build_index(sources, out, ColourEncoder())
    assert (report.added, report.rejected) == (1, 1)
    assert rejects_of(out)[0] | {"detail": ""} == {
        "source": "two",
        "key": "a",
        "code": "duplicate-id",
        "detail": "",
    }
    assert [source.name for source in read_manifest(out).sources] == ["one", "two"]


def test_a_picture_gone_bad_leaves_its_last_good_state(out: Path) -> None:
    build([record("a", "red")], out)
    bad = dataclasses.replace(record("a", "red"), image=b"broken now")
    assert build([bad], out).rejected == 1
    with opened(out) as snapshot:
        assert ids(snapshot, "red") == ["a"]


def test_max_errors_stops_but_keeps_what_is_done(out: Path) -> None:
    rows = [record("first", "red"), *[reject(f"r{i}") for i in range(9)], record("last", "blue")]
    report = build(rows, out, max_errors=3)
    assert report.stopped
    assert (report.added, report.rejected) == (1, 4)
    with opened(out) as snapshot:
        assert ids(snapshot, "red") == ["first"]
    report = build(rows, out, max_errors=9)
    assert not report.stopped
    assert (report.added, report.unchanged) == (1, 1)


def test_a_source_that_breaks_off_commits_what_came_before(out: Path) -> None:
    with pytest.raises(SourceError, match="torn"):
        build([record("a", "red"), SourceError("torn"), record("b", "blue")], out)
    with opened(out) as snapshot:
        assert ids(snapshot, "red") == ["a"]


class Faulty(ColourEncoder):
    """Gives blue pictures no usable vector, and refuses the text "bad"."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def embed_images(self, images: Sequence[PreparedImage]) -> Vectors:
        vectors = super().embed_images(images)
        blue = vectors[:, 2] > 0.9
        if self.mode == "raise" and blue.any():
            raise InvalidVectorError("a vector holds NaN or infinity")
        vectors[blue] = {"nan": np.nan, "inf": np.inf, "zero": 0.0, "long": 7.0}.get(self.mode, 0)
        return vectors

    def prepare_text(self, text: str):  # type: ignore[no-untyped-def]
        if text == "bad":
            raise InvalidTextError("refused")
        return super().prepare_text(text)


@pytest.mark.parametrize("mode", ["nan", "inf", "zero", "long", "raise"])
def test_a_useless_vector_is_never_stored_and_spoils_no_other(out: Path, mode: str) -> None:
    report = build(colours(), out, Faulty(mode), batch_size=8)
    assert (report.added, report.rejected, report.texts) == (7, 1, 14)
    [line] = rejects_of(out)
    assert (line["key"], line["code"], line["source"]) == ("blue", "embedding-invalid", "list")
    with opened(out) as snapshot:
        found = ids(snapshot, "blue")
        assert "blue" not in found
        assert len(found) == 7


def test_a_refused_caption_costs_the_picture_nothing(out: Path) -> None:
    report = build([record("a", "red", "bad", "red")], out, Faulty("none"))
    assert (report.added, report.rejected, report.images, report.texts) == (1, 1, 1, 1)
    assert rejects_of(out)[0]["key"] == "a#en/0"


def test_texts_without_a_picture(out: Path) -> None:
    rows = [record("t", None, "red", "blue"), record("p", "green")]
    assert build(rows, out).added == 2
    with opened(out) as snapshot:
        assert ids(snapshot, "red", 1, "texts") == ["t#en/0"]
        assert snapshot.item("t#en/0").image_id is None
    assert build(rows, out).unchanged == 2
    report = build([record("t", None, "yellow")], out)
    assert (report.updated, report.texts, report.images) == (1, 1, 1)


def test_captions_and_languages_are_a_choice(out: Path, tmp_path: Path) -> None:
    row = dataclasses.replace(record("a", "red"), texts={"en": ("red",), "zh": ("红", "红色")})
    assert build([row], out, captions=False).texts == 0
    # asking for them later is a change
    assert build([row], out, languages=("zh",)).texts == 2
    assert build([row], out).texts == 3
    with opened(out) as snapshot:
        assert snapshot.item("a").text == "red"
    assert build([row], tmp_path / "y.index", thumbnails=False).added == 1
    with opened(tmp_path / "y.index") as snapshot, pytest.raises(NotFoundError):
        snapshot.thumbnail("a")


def test_threads_processes_and_batches_do_not_change_the_order(tmp_path: Path) -> None:
    rows = [record(f"p{i}", NAMES[i % 8], NAMES[i % 8]) for i in range(60)]
    layouts = []
    ways = [(1, 1, 0, False), (7, 4, 0, True), (64, 2, 0, False), (16, None, 2, True)]
    for number, (batch, threads, workers, overlap) in enumerate(ways):
        out = tmp_path / str(number)
        more = {"decode_threads": threads, "workers": workers, "overlap": overlap}
        build(rows, out, batch_size=batch, segment_rows=25, **more)
        manifest = read_manifest(out)
        vectors = [
            (entry.modality, entry.rows, entry.files["vectors.npy"].sha256)
            for entry in manifest.segments
        ]
        layouts.append(vectors)
    assert [entry[:2] for entry in layouts[0]] == [
        pair for rows in (25, 25, 10) for pair in (("image", rows), ("text", rows))
    ]
    assert layouts[0] == layouts[1] == layouts[2] == layouts[3]


def test_progress_tells_done_total_and_rejected(out: Path) -> None:
    seen: list[BuildProgress] = []
    rows = [*colours(), reject("r")]
    options = BuildOptions(batch_size=2, segment_rows=4)
    build_index([ListSource(rows)], out, ColourEncoder(), options=options, on_progress=seen.append)
    assert seen[-1] == BuildProgress("done", 9, 9, 1)
    assert [entry.done for entry in seen] == sorted(entry.done for entry in seen)
    assert sum(entry.stage == "committing" for entry in seen) == 2


def test_nothing_to_index_is_an_empty_index(out: Path) -> None:
    report = build([], out)
    assert (report.version, report.images) == (0, 0)
    with opened(out) as snapshot:
        assert snapshot.search(np.ones((2, 9), dtype=np.float32), SearchOptions(k=5)) == [[], []]
        assert snapshot.info().images == 0


def test_another_encoder_is_refused_everywhere(out: Path) -> None:
    build(colours(), out)
    other = ColourEncoder(name="other")
    assert read_fingerprint(out) == ColourEncoder().fingerprint
    for refused in (
        lambda: build(colours(), out, other),
        lambda: open_snapshot(out, fingerprint=other.fingerprint),
    ):
        with pytest.raises(EncoderMismatchError) as caught:
            refused()
        for word in ("colours", "other", "weights_sha256"):
            assert word in caught.value.message
    assert other.images_embedded == 0
    # without binding it can still be described
    with open_snapshot(out, fingerprint=None) as snapshot:
        assert snapshot.info().model == "colours"


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"precious")
    (tmp_path / "file").write_bytes(b"precious")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "leveldb").mkdir()
    for name, content in {
        "CURRENT": "MANIFEST-000001\n",
        "LOCK": "",
        "MANIFEST-000001": "x",
    }.items():
        (tmp_path / "leveldb" / name).write_text(content)
    before = sorted(tmp_path.rglob("*"))
    for name in ("photos", "file", "dangling", "leveldb"):
        with pytest.raises(StoreError):
            build(colours(), tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    assert build(colours(), tmp_path / "empty").added == 8


def test_no_scratch_is_left_and_what_a_crash_left_is_swept(out: Path) -> None:
    build(colours(), out)
    assert scratch(out) == []
    manifest = read_manifest(out)
    kept = [entry.id for entry in manifest.segments]
    litter = out / "segments" / "00000002-image-0123abcd"
    for path in (litter, out / "scratch" / "deep" / "er", out / "segments" / "mine"):
        path.mkdir(parents=True)
        (path / "file").touch()
    (out / "manifests" / "00000002.json").write_bytes(b"half")
    (out / "tombstones" / "00000002.npy").write_bytes(b"half")
    report = build([record("red", "blue")], out)
    assert report.version == 2
    assert scratch(out) == []
    names = {path.name for path in (out / "segments").iterdir()}
    assert not litter.exists()
    assert names >= {*kept, "mine"}  # nothing that is not recognisably ours is touched
    with opened(out) as snapshot:
        assert len(ids(snapshot, "blue")) == 8


def test_info_adds_up(out: Path) -> None:
    build(colours(), out, segment_rows=5)
    build([record("red", "green")], out)
    with opened(out) as snapshot:
        info = snapshot.info()
    assert (info.version, info.images, info.texts, info.segments) == (3, 8, 14, 5)
    assert info.tombstones == 3
    manifest = json.loads((out / "manifests" / "00000003.json").read_bytes())
    assert (info.uuid, info.created) == (manifest["index"], manifest["created"])
    files = [
        out / "segments" / entry["id"] / name
        for entry in manifest["segments"]
        for name in entry["files"]
    ]
    files += [out / folder / "00000003.npy" for folder in ("tombstones", "relevance")]
    files += [out / "manifests" / "00000003.json"]
    assert info.bytes == sum(path.stat().st_size for path in files)
    json.dumps(info.to_dict())
