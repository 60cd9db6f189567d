"""The batching encoder and batched searches against the pair whose answers are known."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from fakes import COLOURS, ColourEncoder, solid
from PIL import Image
from services import build_colours

from indexer.filters.language import parse_filter
from indexer.search.options import SearchOptions
from indexer.search.snapshot import Snapshot, open_snapshot
from models.encoder import PreparedText
from models.errors import ModelError, OverloadedError
from models.vectors import Vectors
from service.engine.batching import BatchingEncoder
from service.engine.retrieval import Ask, BatchedSearch, DirectSearch

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


# -- searches -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    with open_snapshot(build_colours(tmp_path_factory.mktemp("b") / "c.index"), fingerprint=None) as s:  # noqa: E501  # fmt: skip
        yield s


class Watched:
    """A snapshot that remembers how many queries each search had."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.sizes: list[int] = []
        self.held = threading.Event()

    def search(self, queries_QD, *asked):  # type: ignore[no-untyped-def]
        assert self.held.wait(20)
        self.sizes.append(len(queries_QD))
        return self._snapshot.search(queries_QD, *asked)


def test_searches_that_ask_alike_share_a_run_and_get_what_they_would_alone(
    snapshot: Snapshot,
) -> None:
    watched, batched, direct = Watched(snapshot), BatchedSearch(), DirectSearch()
    encoder = ColourEncoder()
    filters = [None, parse_filter({"field": "year", "gte": 2000}), None]
    wanted = []
    for number in range(24):
        query = encoder.embed_texts([encoder.prepare_text(NAMES[number % len(NAMES)])])
        options = SearchOptions(
            k=2 + number % 2,
            target=("images", "texts")[number // 12],  # type: ignore[arg-type]
            filter=filters[number % 3],
        )
        wanted.append((options, query))
    calls = [batched.submit(Ask(watched, options), query) for options, query in wanted]  # type: ignore[arg-type]
    watched.held.set()
    for call, (options, query) in zip(calls, wanted, strict=True):
        assert call.result() == direct.submit(Ask(snapshot, options), query).result()
    # k x target x filter: 8 kinds, of which the first ran alone
    assert len(watched.sizes) <= 9
    assert sum(watched.sizes) == 24
    assert batched.stop(20)
