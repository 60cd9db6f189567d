"""What the trainer is fed: every record, in an order that repeats, fairly drawn, with bounds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from fakes import encode
from PIL import Image
from tiny import blocks, shard

from models.encoder import PreparedText
from models.encoders.open_clip.assembly import transform
from models.errors import SourceError
from models.images.decode import decode_image
from models.sources import open_source
from models.sources.fields import said
from models.sources.records import Record, Reject, Source
from models.training.data import (
    Drawn,
    Kind,
    Mix,
    Shuffled,
    Stream,
    Surveyed,
    joined,
    one_in_for,
    sample,
    usable,
)
from models.training.losses import fits
from models.training.pair import feeds_of
from models.training.samples import (
    Augmentation,
    Augmenter,
    Batch,
    Preparer,
    load_batches,
    names_a_side,
    random_box,
)

PIXELS: dict[str, Any] = {
    "size": [32, 32], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.1], "mode": "RGB",
    "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    for at in range(4):
        rows = [
            (f"{at}-{n:02d}", blocks(100 * at + n, size=8), {"captions": {"en": f"thing {at} {n}"}})
            for n in range(10)
        ]
        shard(folder / f"part-{at}.tar", rows)
    return str(folder / "part-{0..3}.tar")


def shuffled(spec: str, seed: int = 0, buffer: int = 8) -> Shuffled:
    source = open_source(spec)
    return Shuffled([source], usable, seed=seed, name="main", buffer=buffer)


def keys(stream: Shuffled, epoch: int) -> list[str]:
    return [drawn.record.key for drawn in stream.epoch(epoch)]


def tokens(text: str) -> PreparedText:
    return PreparedText(np.array([len(text), 1], dtype=np.int64))


def test_a_pass_holds_every_record_once_in_an_order_of_its_own(shards: str) -> None:
    stream = shuffled(shards)
    first = keys(stream, 0)
    assert sorted(first) == sorted(f"{at}-{n:02d}" for at in range(4) for n in range(10))
    assert keys(stream, 0) == first == keys(shuffled(shards), 0)
    assert keys(stream, 1) != first
    assert keys(shuffled(shards, seed=1), 0) != first
    # shards are mixed although only eight records wait: the first eight are of several shards
    assert len({key[0] for key in first[:8]}) > 1


def test_the_buffer_is_bounded(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0

    class Counting(Shuffled):
        def _records(self, part: Any) -> Iterator[Record]:
            nonlocal read
            for record in super()._records(part):
                read += 1
                yield record

    stream = Counting([open_source(shards)], usable, seed=0, name="x", buffer=5)
    next(stream.epoch(0))
    assert read == 6
    monkeypatch.setattr("models.training.data.BUFFER_BYTES", 200)
    read = 0
    next(stream.epoch(0))
    assert read <= 4


def test_endless_passes_skip_exactly_what_was_used(shards: str) -> None:
    stream = shuffled(shards)
    whole = [drawn.record.key for drawn in islice(stream.endless(length=40), 100)]
    for skip in (1, 39, 40, 57):
        rest = [d.record.key for d in islice(stream.endless(skip=skip, length=40), 20)]
        assert rest == whole[skip : skip + 20]


def test_batches_begin_anywhere_as_if_they_had_begun_at_the_start(shards: str) -> None:
    names = open_source(shards, text_field="captions.en")
    streams = [
        Stream("main", shuffled(shards), 40),
        Stream("class", Shuffled([names], usable, seed=0, name="c"), 40, share=0.25),
    ]
    mix = Mix(streams, 12)
    assert (mix.size, mix.per_epoch) == (12, 4)  # nine of the main stream, three of the classes

    def first(start: int, count: int) -> list[list[tuple[str, str]]]:
        found = islice(mix.batches(start), count)
        return [[(one.key, one.drawn.name) for one in batch] for batch in found]

    whole = first(0, 11)
    assert all(len(batch) == 12 for batch in whole)
    for start in (1, 3, 4, 7):
        assert first(start, 3) == whole[start : start + 3]
    assert len({key for key, _ in whole[0]}) >= 9


def test_languages_have_the_same_chance_and_every_caption_is_drawn() -> None:
    texts = {"en": tuple(f"e{n}" for n in range(8)), "zh": ("z",)}
    one = sample(Drawn(Record("k", "", b"x", texts), "n"), "main")
    dice = Random(0)
    drawn = Counter(one.choose(dice) for _ in range(4000))
    assert 0.45 < drawn["z"] / 4000 < 0.55
    assert len(drawn) == 9


def test_groups_are_equal_for_equal_pictures_and_for_equal_classes() -> None:
    def group(image: bytes, name: str, kind: Any = "main") -> int:
        return sample(Drawn(Record("k", "", image, {"en": (name,)}), "n"), kind).group

    assert group(b"a", "x") == group(b"a", "y") != group(b"b", "x")
    assert group(b"a", "cat", "class") == group(b"b", "cat", "class")
    assert group(b"a", "cat", "class") != group(b"a", "dog", "class")
    prompts = sample(Drawn(Record("k", "", b"a", {"und": ("cat",)}), "n"), "class").texts[0][1]
    assert "a photo of a cat." in prompts


def test_a_batch_knows_what_is_said_of_each_picture() -> None:
    """Equal captions, and those of a picture that were not drawn, are nobody's negatives."""
    said = [("a red wall",), ("A red  wall.", "bricks", "a wall"), ("bricks",), ("a dog",)]
    records = [
        Record(f"k{at}", "", encode(Image.new("RGB", (9, 9), (at, 0, 0))), {"en": texts})
        for at, texts in enumerate(said)
    ]
    plan = [sample(Drawn(record, record.key), "main") for record in records]
    preparer = Preparer(Augmenter(PIXELS, Augmentation()), tokens)
    batch = next(load_batches([plan], preparer, workers=1))
    found = fits(batch.group_B, batch.group_B).tolist()
    assert found[1] == [True, True, True, False]  # whichever of its captions was drawn
    assert found[3] == [False, False, False, True]
    assert not found[0][2]


def test_a_picture_that_does_not_decode_leaves_its_place_to_a_twin(shards: str) -> None:
    good = next(iter(shuffled(shards).epoch(0)))
    bad = Drawn(Record("bad", "", b"not a picture", {"en": ("x",)}), "b")
    preparer = Preparer(Augmenter(PIXELS, Augmentation()), tokens)
    refused: list[Reject] = []

    def load(*drawn: Drawn) -> Batch:
        plans = [[sample(one, "main") for one in drawn]]
        return next(load_batches(plans, preparer, workers=2, on_reject=refused.append))

    batch = load(good, bad)
    assert batch.keys == (good.record.key,) * 2
    assert torch.equal(batch.group_B[0], batch.group_B[1])
    assert [reject.key for reject in refused] == ["bad"]
    with pytest.raises(SourceError, match="none of the 1 pictures"):
        load(bad)


def test_samples_do_not_depend_on_threads_or_neighbours(shards: str) -> None:
    def load(workers: int, start: int) -> Batch:
        mix = Mix([Stream("main", shuffled(shards), 40)], 10)
        preparer = Preparer(Augmenter(PIXELS, Augmentation(flip=True, colour=0.3)), tokens)
        return next(load_batches(mix.batches(start), preparer, workers=workers))

    one, many = load(1, 2), load(8, 2)
    assert one.keys == many.keys
    assert torch.equal(one.image_BX, many.image_BX)
    assert torch.equal(one.text_MX, many.text_MX)
    assert one.image_BX.dtype == torch.uint8


def test_without_a_crop_training_pixels_are_the_encoders_own() -> None:
    dice = np.random.default_rng(1)
    picture = Image.fromarray(dice.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    augmenter = Augmenter(PIXELS | {"resize_mode": "squash"}, Augmentation(crop=(1.0, 1.0)))
    pixels = torch.from_numpy(augmenter(picture, [], Random(0)).copy())
    mean, std = (torch.tensor(PIXELS[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected = transform(PIXELS)(decode_image(encode(picture)))
    assert torch.equal(pixels.float().div_(255).sub_(mean).div_(std), expected)


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_every_mode_fills_the_models_size(mode: str) -> None:
    augmenter = Augmenter(PIXELS | {"resize_mode": mode, "size": [24, 32]}, Augmentation())
    for size in ((300, 20), (20, 300), (1, 1), (64, 48)):
        assert augmenter(Image.new("RGB", size), [], Random(0)).shape == (3, 24, 32)


def test_crops_stay_inside_and_keep_their_share() -> None:
    dice = Random(0)
    for width, height in ((100, 80), (300, 20), (5, 5)):
        for _ in range(300):
            left, top, right, bottom = random_box(width, height, (0.5, 1.0), dice)
            assert 0 <= left < right <= width + 1e-9
            assert 0 <= top < bottom <= height + 1e-9
            ratio = (right - left) / (bottom - top)
            assert 0.74 < ratio < 1.34
            if width < 300:
                assert (right - left) * (bottom - top) >= 0.49 * width * height * 0.75


def test_a_picture_whose_caption_names_a_side_is_never_mirrored() -> None:
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:, :16] = 255
    picture = Image.fromarray(pixels)
    augmenter = Augmenter(PIXELS, Augmentation(crop=(1.0, 1.0), flip=True))

    def mirrored(text: str) -> set[bool]:
        return {bool(augmenter(picture, [text], Random(n))[0, 0, 0] < 128) for n in range(20)}

    assert mirrored("a man") == {True, False}
    assert mirrored("a man on the left") == {False}
    assert names_a_side(["左边的猫"])
    assert not names_a_side(["a bright leftover", "copyright"])


def test_a_survey_counts_what_it_hands_on_and_tells_other_data_apart(shards: str) -> None:
    surveyed = Surveyed(open_source(shards))
    assert sum(1 for _ in surveyed) == 40
    digest = surveyed.digest
    assert surveyed.pairs == 40
    assert list(surveyed)
    assert surveyed.digest == digest
    other = Surveyed(open_source(shards, text_field="captions.zh"))
    list(other)
    assert other.pairs == 0
    assert other.digest != digest
    assert one_in_for(99) is None


def rows_of(folder: Path, rows: list[tuple[int, list[str]]], name: str = "rows") -> Surveyed:
    """A manifest whose records are (number of its picture, captions), read once."""
    folder.mkdir(exist_ok=True)
    lines = []
    for picture, captions in rows:
        path = folder / f"{picture}.png"
        colour = (picture % 256, picture // 256, 0)
        path.write_bytes(encode(Image.new("RGB", (4, 4), colour)))
        lines.append(json.dumps({"image": path.name, "captions": captions, "key": len(lines)}))
    manifest = folder / f"{name}.jsonl"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    surveyed = Surveyed(open_source(str(manifest)))
    list(surveyed)
    return surveyed


def contents_of(sources: Sequence[Source]) -> tuple[set[bytes], set[int]]:
    """(pictures, what is said of them)"""
    records = [row for source in sources for row in source if isinstance(row, Record)]
    pictures = {record.image for record in records if record.image is not None}
    texts = [text for record in records for texts in record.texts.values() for text in texts]
    return pictures, {said(text) for text in texts}


def test_no_picture_and_no_caption_is_on_both_sides_of_the_split(tmp_path: Path) -> None:
    """Pictures in several rows, captions of several pictures, and both in a chain."""
    dice = Random(1)
    rows = [(at, [f"thing {at}", f"of kind {at}"]) for at in range(120)]
    rows += [(at, [f"again {at}"]) for at in range(60)]
    rows += [(at, [f"Thing {at + 1}."]) for at in range(60, 100, 5)]
    dice.shuffle(rows)
    main = rows_of(tmp_path, rows)
    extra = rows_of(tmp_path, [(at, [f"elsewhere {at}"]) for at in range(120)], "extra")
    extra_said = rows_of(tmp_path, [(300 + at, [f"thing {at}"]) for at in range(120)], "said")
    named = rows_of(tmp_path, [(at, ["thing"]) for at in range(120)], "named")
    kinds: list[tuple[Kind, list[Surveyed]]] = [
        ("main", [main]), ("extra", [extra, extra_said]), ("class", [named]),
    ]  # fmt: skip
    feeds, validation, held = feeds_of(kinds, 10)
    assert 10 <= held <= main.pairs // 10
    pictures, captions = contents_of(validation)
    assert len([row for source in validation for row in source]) == held
    for feed in feeds:
        seen, heard = contents_of(feed.sources)
        assert not pictures & seen, feed.kind
        assert feed.kind == "class" or not captions & heard
        # what a run plans with is what it will read
        found = sum(isinstance(row, Record) for source in feed.sources for row in source)
        assert feed.pairs == found > 0
    # the same whatever the order of the rows
    other = rows_of(tmp_path, sorted(rows), "sorted")
    assert contents_of(feeds_of([("main", [other])], 10)[1])[0] == pictures


def test_where_all_share_a_caption_nothing_is_held_back(tmp_path: Path) -> None:
    walls = rows_of(tmp_path, [(at, [f"wall {at % 3}"]) for at in range(120)])
    feeds, validation, held = feeds_of([("main", [walls])], 10)
    assert (held, validation, feeds[0].pairs) == (0, [], 120)


def test_components_are_those_of_a_search(tmp_path: Path) -> None:
    dice = np.random.default_rng(3)
    for edges in (0, 1, 40, 90):
        one, other = dice.integers(0, 80, (2, edges))
        reached = list(range(80))
        for _ in range(80):
            for a, b in zip(one, other, strict=True):
                reached[a] = reached[b] = min(reached[a], reached[b])
        assert joined(one, other, 80).tolist() == reached
