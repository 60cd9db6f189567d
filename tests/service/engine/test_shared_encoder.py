"""The batching encoder against the pair whose answers are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from fakes import COLOURS, ColourEncoder, solid
from PIL import Image

from models.encoder import PreparedText
from models.errors import ModelError, OverloadedError
from models.vectors import Vectors
from service.engine.shared_encoder import BatchingEncoder

NAMES = list(COLOURS)


class Counting(ColourEncoder):
    """Remembers the size of every run; a text with NaN in it spoils its own row."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[int] = []

    def embed_texts(self, texts: Sequence[PreparedText]) -> Vectors:
        self.runs.append(len(texts))
        rows = super().embed_texts(texts)
        for row, text in zip(rows, texts, strict=True):
            if "explode" in text.tokens:
                raise ValueError("explode")
            if "nan" in text.tokens:
                row[:] = np.nan
        return rows


@pytest.fixture
def pair() -> Iterator[BatchingEncoder]:
    encoder = BatchingEncoder(Counting())
    yield encoder
    assert encoder.stop(20)


def text_rows(pair: BatchingEncoder, *texts: str) -> Vectors:
    return pair.embed_texts([pair.prepare_text(text) for text in texts])


def test_a_batch_row_is_the_single_row(pair: BatchingEncoder) -> None:
    alone = ColourEncoder()
    with pair._texts.turn:
        calls = [pair.submit_texts([pair.prepare_text(name)]) for name in NAMES]
    for name, call in zip(NAMES, calls, strict=True):
        expected = alone.embed_texts([alone.prepare_text(name)])
        assert np.array_equal(call.result(), expected)
    assert isinstance(pair._encoder, Counting)
    assert len(pair._encoder.runs) <= 2  # the first may have been alone
    assert sum(pair._encoder.runs) == len(NAMES)


@pytest.mark.parametrize(("bad", "error"), [("nan", ModelError), ("explode", ValueError)])
def test_one_bad_text_of_32_fails_alone(
    pair: BatchingEncoder, bad: str, error: type[Exception]
) -> None:
    with pair._texts.turn:
        texts = [bad if number == 7 else "red" for number in range(32)]
        calls = [pair.submit_texts([pair.prepare_text(text)]) for text in texts]
    for number, call in enumerate(calls):
        if number == 7:
            with pytest.raises(error):
                call.result()
        else:
            assert call.result()[0, 0] == 1.0


def test_many_texts_go_in_chunks_that_others_pass_between(pair: BatchingEncoder) -> None:
    texts = [NAMES[number % len(NAMES)] for number in range(300)]
    rows = text_rows(pair, *texts)
    assert rows.shape == (300, pair.dim)
    assert np.array_equal(rows[:, : len(NAMES)].argmax(axis=1), np.arange(300) % len(NAMES))
    assert isinstance(pair._encoder, Counting)
    assert max(pair._encoder.runs) == 64


def test_nothing_is_an_empty_answer(pair: BatchingEncoder) -> None:
    assert pair.embed_texts([]).shape == pair.embed_images([]).shape == (0, pair.dim)


def test_pictures_do_not_hold_up_texts(pair: BatchingEncoder) -> None:
    picture = pair.prepare_image(Image.open(BytesIO(solid("red"))))
    with pair._images.turn, ThreadPoolExecutor(1) as threads:  # a long run of pictures
        waiting = threads.submit(pair.embed_images, [picture])
        assert text_rows(pair, "red")[0, 0] == 1.0
        assert not waiting.done()
        pair._images.turn.release()
        assert waiting.result(20)[0, 0] == 1.0
        pair._images.turn.acquire()


def test_stopped_it_refuses() -> None:
    pair = BatchingEncoder(ColourEncoder())
    text_rows(pair, "red")
    assert pair.stop(20)
    with pytest.raises(OverloadedError):
        text_rows(pair, "red")
