"""The background: its closed forms against loops, and right answers known by construction."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from fakes import COLOURS, ColourEncoder, solid
from hypothesis import given, settings
from hypothesis import strategies as st
from indexes import mean_shown

from indexer.search.background_queries import background_queries, list_id
from indexer.search.relevance import (
    MIN_NEIGHBOURS,
    Background,
    LiveRows,
    Neighbours,
    Standing,
    mean_vector,
    measure,
)
from indexer.search.relevance_file import embed_background, still_good
from models.images.decode import decode_image
from models.vectors import Vectors, unit_rows

DIM = 6


def rows(count: int, seed: int = 0) -> Vectors:
    return unit_rows(np.random.default_rng(seed).standard_normal((count, DIM)))


def parts(*segments: tuple[Vectors, list[bool]]) -> list[LiveRows]:
    return [(vectors.astype(np.float16), np.array(live)) for vectors, live in segments]


def split(vectors_ND: Vectors) -> list[LiveRows]:
    """Two segments with a dead row in the middle that must not count."""
    half = len(vectors_ND) // 2
    dead = np.ones((1, DIM), dtype=np.float32)
    first = np.concatenate([vectors_ND[:half], dead])
    return parts(
        (first, [*[True] * half, False]), (vectors_ND[half:], [True] * (len(vectors_ND) - half))
    )


def test_list_is_fixed_and_without_repeats() -> None:
    queries = background_queries()
    assert len(set(queries)) == len(queries) == 313
    # changing it makes every index measure anew: a decision, not an accident
    assert list_id().startswith("2e752e15960bf8e0")


def test_mean_is_the_loop_over_live_rows() -> None:
    vectors = rows(25)
    found, count = mean_vector(split(vectors), DIM)
    assert count == 25
    np.testing.assert_allclose(found, mean_shown(vectors.astype(np.float16), DIM), atol=1e-3)
    empty, none = mean_vector([], DIM)
    assert none == 0
    assert not empty.any()


def test_standing_is_the_loop() -> None:
    images, queries = rows(40, 1), rows(50, 2)
    stored = np.concatenate([matrix[live] for matrix, live in split(images)]).astype(np.float64)
    found = measure(queries, split(images), []).targets["images"]
    mean = mean_shown(stored, DIM)
    excess, nonsense = [], []
    for i, query in enumerate(queries.astype(np.float64)):
        excess.append(max(float(query @ row) for row in stored) - float(query @ mean))
        others = [float(query @ other) for j, other in enumerate(queries) if j != i]
        nonsense.append(sum(others) / len(others))
    standing = found.text
    assert standing is not None
    assert standing.excess_mean == pytest.approx(np.mean(excess), abs=1e-5)
    assert standing.excess_std == pytest.approx(np.std(excess), abs=1e-5)
    assert standing.nonsense_mean == pytest.approx(np.mean(nonsense), abs=1e-5)
    assert standing.nonsense_std == pytest.approx(np.std(nonsense), abs=1e-5)
    nearest = []
    for i, one in enumerate(stored):
        nearest.append(max(float(one @ other) for j, other in enumerate(stored) if j != i))
    assert found.image is not None
    assert found.image.gate == pytest.approx(np.quantile(nearest, 0.1), abs=1e-4)
    assert found.rows == 40


def test_what_is_shown_often_weighs_as_what_is_shown_once() -> None:
    twelve = rows(12, 11)
    often = np.concatenate([twelve, np.repeat(twelve[:1], 600, axis=0)])
    found, count = mean_vector(parts((often, [True] * 612)), DIM)
    assert count == 612
    once, _ = mean_vector(parts((twelve, [True] * 12)), DIM)
    plain = often.mean(axis=0)
    assert np.linalg.norm(found - once) < np.linalg.norm(plain - once) / 3


def test_the_common_answer_fits_and_nonsense_does_not() -> None:
    """Forty shots of one thing among ten others, and nothing but shots of one thing."""
    dice = np.random.default_rng(12)
    subject, *others = unit_rows(dice.normal(size=(11, 64)))
    shots = unit_rows(subject + 0.03 * dice.normal(size=(40, 64)))
    # words lie far from pictures, as those of a real pair do
    queries = unit_rows(dice.normal(size=(200, 64)))
    asked, nonsense = unit_rows(np.stack([0.6 * subject, 0 * subject]) + 0.1 * queries[:2])
    queries = queries[2:]
    for collection in (np.concatenate([shots, others]), shots):
        background = measure(queries, parts((collection, [True] * len(collection))), [])
        for query, fits in ((asked, True), (nonsense, False)):
            best = float((collection @ query).max())
            found = background.relevance(query, [best], kind="text", target="images")
            assert found is not None
            assert (found[0] > 0.5) is fits, (len(collection), best)


def test_words_above_the_reach_of_every_background_query_fit() -> None:
    queries, images = rows(200, 17), rows(30, 18)
    background = measure(queries, parts((images, [True] * 30)), [])
    standing = background.targets["images"].text
    assert standing is not None
    reach = float((images.astype(np.float16).astype(np.float32) @ queries.T).max())
    assert standing.reach == pytest.approx(reach, abs=1e-3)
    for query in queries[:50]:
        [above] = background.relevance(query, [reach + 0.01], kind="text", target="images") or []
        assert above > 0.5


def test_a_near_duplicate_is_never_a_misfit() -> None:
    same = unit_rows(rows(1, 20) + 1e-4 * np.random.default_rng(21).normal(size=(20, DIM)))
    background = measure(rows(30, 22), parts((same, [True] * 20)), [])
    found = background.relevance(same[0], [0.951, 0.94], kind="image", target="images")
    assert found is not None
    assert found[0] > 0.5 > found[1]


def test_mixed_probes_leave_their_own_picture_out() -> None:
    images, queries = rows(12, 3), rows(30, 4)
    stored = images.astype(np.float16).astype(np.float64)
    mean, middle = mean_shown(stored, DIM), queries.mean(axis=0)
    excess, nonsense = [], []
    for i, query in enumerate(queries):
        own = i % len(stored)
        mixed = unit_rows((query + stored[own])[None])[0].astype(np.float64)
        best = max(float(mixed @ row) for j, row in enumerate(stored) if j != own)
        excess.append(best - float(mixed @ mean))
        nonsense.append(float(mixed @ middle))
    found = measure(queries, parts((images, [True] * 12)), []).targets["images"].mixed
    assert found is not None
    assert found.excess_mean == pytest.approx(np.mean(excess), abs=1e-4)
    assert found.nonsense_mean == pytest.approx(np.mean(nonsense), abs=1e-4)


def test_share_of_background_queries_above_the_gate() -> None:
    queries = rows(400, 5)
    background = measure(queries, split(rows(60, 6)), [])
    stored = np.concatenate([matrix[live] for matrix, live in split(rows(60, 6))])
    best = [
        background.relevance(query, [float((stored @ query).max())], kind="text", target="images")
        for query in queries
    ]
    relevance = np.array([one[0] for one in best if one])
    assert (relevance > 0.5).mean() == pytest.approx(0.05, abs=0.02)
    # the better of two relevances
    assert np.median(relevance) == pytest.approx(0.06, abs=0.03)


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.floats(-1, 1), min_size=2, max_size=20),
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(["text", "image", "mixed"]),
)
def test_relevance_never_falls_when_the_score_rises(
    scores: list[float], seed: int, kind: str
) -> None:
    background = measure(rows(40, 7), parts((rows(20, 8), [True] * 20)), [])
    ordered = sorted(scores)
    found = background.relevance(rows(1, seed)[0], ordered, kind=kind, target="images")  # type: ignore[arg-type]
    assert found is not None
    assert all(0.0 <= one <= 1.0 for one in found)
    assert all(a <= b for a, b in pairwise(found))


@pytest.mark.parametrize("count", [0, 1, 2, MIN_NEIGHBOURS - 1, MIN_NEIGHBOURS])
def test_small_collections_judge_what_they_can(count: int) -> None:
    background = measure(rows(40), parts((rows(count, 9), [True] * count)), [])
    target = background.targets["images"]
    assert (target.text is not None) == (count >= 2)
    assert (target.image is not None) == (target.mixed is not None) == (count >= MIN_NEIGHBOURS)
    judged = background.relevance(rows(1)[0], [0.5], kind="image", target="images")
    assert (judged is not None) == (count >= MIN_NEIGHBOURS)
    # nothing to look for among texts
    assert background.relevance(rows(1)[0], [0.5], kind="text", target="texts") is None


def colour_background(names: list[str]) -> tuple[ColourEncoder, Background, Vectors]:
    encoder = ColourEncoder()
    pictures = [encoder.prepare_image(decode_image(solid(name))) for name in names]
    vectors = encoder.embed_images(pictures)
    queries = embed_background(encoder)
    assert queries is not None
    images = [(vectors.astype(np.float16), np.ones(len(vectors), dtype=bool))]
    return encoder, measure(queries, images, []), vectors


def test_colours_that_are_there_stand_out_and_others_do_not() -> None:
    there = ["red", "green", "blue"] * 4
    encoder, background, vectors = colour_background(there)
    for name in [*COLOURS, "gibberish"]:
        query = encoder.embed_texts([encoder.prepare_text(name)])[0]
        best = float((vectors @ query).max())
        found = background.relevance(query, [best], kind="text", target="images")
        assert found is not None
        assert (found[0] > 0.5) == (name in there), (name, found)


def test_pictures_unlike_the_collection_do_not_stand_out() -> None:
    encoder, background, vectors = colour_background(["red", "green", "blue"] * 4)
    for name in COLOURS:
        query = encoder.embed_images([encoder.prepare_image(decode_image(solid(name)))])[0]
        found = background.relevance(
            query, [float((vectors @ query).max())], kind="image", target="images"
        )
        assert found is not None
        assert (found[0] > 0.5) == (name in ("red", "green", "blue"))


def test_formula_by_hand() -> None:
    queries = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    mean = np.array([0.5, 0.0], dtype=np.float32)
    standing = Standing(
        excess_mean=0.1,
        excess_std=0.2,
        nonsense_mean=0.3,
        nonsense_std=0.4,
        low=-1.0,
        gate=2.0,
        width=0.5,
    )
    base = measure(queries, parts(), [])
    judged = replace(base.targets["images"], text=standing, image=Neighbours(0.8, 0.05))
    background = replace(
        base, mean_D={**base.mean_D, "images": mean}, targets={**base.targets, "images": judged}
    )
    query = np.array([1.0, 0.0], dtype=np.float32)
    # excess (0.9 - 0.5 - 0.1) / 0.2 = 1.5, nonsense (0.5 - 0.3) / 0.4 = 0.5; t = min(1, 10) = 1
    [found] = background.relevance(query, [0.9], kind="text", target="images") or []
    assert found == pytest.approx(1 / (1 + math.exp((2.0 - 1.0) / 0.5)), abs=1e-6)
    # excess (0.4 - 0.5 - 0.1) / 0.2 = -1, so 4 x (-1 + 1) = 0 is below -1 - 0.5 = -1.5: t = -1.5
    [found] = background.relevance(query, [0.4], kind="text", target="images") or []
    assert found == pytest.approx(1 / (1 + math.exp((2.0 + 1.5) / 0.5)), abs=1e-6)
    # a cosine of 0.9 with nothing of the background above 0.8 counts by itself
    reaching = replace(judged, text=replace(standing, reach=0.8, reach_width=0.1))
    higher = replace(background, targets={**base.targets, "images": reaching})
    [found] = higher.relevance(query, [0.9], kind="text", target="images") or []
    assert found == pytest.approx(1 / (1 + math.exp(-1.0)), abs=1e-6)
    [found] = background.relevance(query, [0.85], kind="image", target="images") or []
    assert found == pytest.approx(1 / (1 + math.exp(-1.0)), abs=1e-6)


def test_large_indexes_are_measured_again_after_a_tenth_changed() -> None:
    from indexer.format.entries import FileEntry, RelevanceEntry, SegmentEntry, TargetEntry
    from indexer.format.manifest import Live

    def entry(images: int, texts: int) -> RelevanceEntry:
        def target(count: int) -> TargetEntry:
            return TargetEntry(rows=count, text=None, mixed=None, image=None)

        return RelevanceEntry(
            file="00000001.npy",
            size=1,
            sha256="0" * 64,
            queries="0" * 64,
            count=1,
            images=target(images),
            texts=target(texts),
        )

    def written(version: int, rows: int) -> SegmentEntry:
        file = FileEntry(size=1, sha256="0" * 64)
        files = {"vectors.npy": file, "items.sqlite": file}
        name = f"{version:08d}-image-aa"
        return SegmentEntry(id=name, modality="image", rows=rows, files=files)  # type: ignore[arg-type]

    def good(then: RelevanceEntry, images: int, texts: int, *segments: SegmentEntry) -> bool:
        return still_good(then, Live(images=images, texts=texts), segments)

    assert not good(entry(1000, 0), 1000, 0)
    assert good(entry(100_000, 0), 109_000, 0)
    assert not good(entry(100_000, 0), 111_000, 0)
    assert not good(entry(100_000, 0), 89_000, 0)
    assert not good(entry(100_000, 0), 100_000, 1)
    # rows that replaced as many others
    assert good(entry(100_000, 0), 100_000, 0, written(1, 100_000), written(2, 9_000))
    assert not good(
        entry(100_000, 0), 100_000, 0, written(1, 100_000), written(2, 9_000), written(3, 9_000)
    )
