"""Batches from worker processes: the very ones that threads give."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
from itertools import islice
from pathlib import Path

import pytest
import torch
from tiny import blocks

from models.encoders.open_clip.tokens import TextPreparer
from models.errors import SourceError
from models.sources.records import Record, Reject
from models.training.data import Drawn, Sample, sample
from models.training.samples import Augmentation, Augmenter, Batch, Preparer, load_batches

PIXELS = {"size": (32, 32), "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0}


def plans(*, bad: int | None = None, count: int = 3, size: int = 7) -> list[list[Sample]]:
    made = []
    for number in range(count * size):
        image = b"not a picture" if number == bad else blocks(number)
        record = Record(f"k{number}", "", image, {"en": (f"picture {number}", "another")})
        made.append(sample(Drawn(record, str(number)), "main"))
    return [made[at : at + size] for at in range(0, len(made), size)]


def preparer() -> Preparer:
    augmenter = Augmenter(PIXELS, Augmentation(crop=(0.5, 1.0), flip=True, colour=0.3))
    return Preparer(augmenter, TextPreparer({"context_length": 16}, None), hard_negatives=1)


def load(
    processes: bool, *, bad: int | None = None, workers: int = 2
) -> tuple[list[Batch], list[Reject]]:
    refused: list[Reject] = []
    batches = load_batches(
        plans(bad=bad), preparer(), workers=workers, processes=processes, on_reject=refused.append
    )
    return list(batches), refused


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_batches_whatever_prepares_them(workers: int) -> None:
    (ours, refused), (theirs, also) = load(True, bad=9, workers=workers), load(False, bad=9)
    assert refused == also
    assert [reject.key for reject in refused] == ["k9"]
    assert len(ours) == len(theirs) == 3
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.image_BX, other.image_BX)
        assert torch.equal(one.text_MX, other.text_MX)
        assert torch.equal(one.group_B, other.group_B)
        assert one.hard_HX is not None
        assert other.hard_HX is not None
        assert torch.equal(one.hard_HX, other.hard_HX)


def test_a_batch_without_a_picture_is_refused() -> None:
    broken = [plans(bad=0)[0][:1]]
    with pytest.raises(SourceError, match="none of the 1 pictures"):
        next(load_batches(broken, preparer(), workers=2, processes=True))


def test_workers_end_with_the_batches() -> None:
    batches = load_batches(plans(), preparer(), workers=2, processes=True)
    assert len(list(islice(batches, 1))) == 1
    assert len(multiprocessing.active_children()) == 2
    del batches
    gc.collect()
    assert not multiprocessing.active_children()


def test_a_tokenizer_travels(tmp_path: Path) -> None:
    prepare = TextPreparer({"context_length": 16}, tmp_path)
    travelled = pickle.loads(pickle.dumps(prepare))
    assert (travelled("two boats").tokens == prepare("two boats").tokens).all()
    assert travelled.description == prepare.description
