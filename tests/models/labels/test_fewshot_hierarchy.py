"""Few-shot blending against its loop, and trees of labels against sums written by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InvalidLabelsError
from models.labels.hierarchy import Hierarchy, looks_hierarchical
from models.labels.zeroshot import cache_logits, chances
from models.vectors import unit_rows

DICE = np.random.default_rng(3)


def test_the_cache_equals_the_loop() -> None:
    images, examples = unit_rows(DICE.normal(size=(4, 6))), unit_rows(DICE.normal(size=(5, 6)))
    targets = [0, 2, 0, 2, 2]
    found = cache_logits(images, examples, targets, 3, alpha=1.5, beta=3.0)
    for b, image in enumerate(images.astype(float)):
        for c in range(3):
            own = [example for example, t in zip(examples, targets, strict=True) if t == c]
            near = [math.exp(-3.0 * (1 - float(image @ example))) for example in own]
            expected = 1.5 * sum(near) / len(near) if near else 0.0
            assert math.isclose(found[b, c], expected, rel_tol=1e-5, abs_tol=1e-12)


def test_the_papers_own_formula_at_its_scale_and_equal_shots() -> None:
    """100 f W + alpha exp(-beta (1 - f F)) L; with two shots a class the factor is two."""
    images, examples = unit_rows(DICE.normal(size=(4, 6))), unit_rows(DICE.normal(size=(6, 6)))
    one_hot = np.repeat(np.eye(3), 2, axis=0)
    paper = 1.17 * np.exp(-(5.5 - 5.5 * images.astype(float) @ examples.T.astype(float))) @ one_hot
    ours = cache_logits(images, examples, [0, 0, 1, 1, 2, 2], 3, alpha=2 * 1.17, beta=5.5)
    assert np.allclose(ours, paper)


def test_an_example_draws_pictures_like_it_and_alpha_zero_draws_none() -> None:
    images = np.eye(3, dtype=np.float32)[:1]
    same = cache_logits(images, images, [1], 3, alpha=2.0)
    assert same.tolist() == [[0.0, 2.0, 0.0]]
    assert not cache_logits(images, images, [1], 3, alpha=0.0).any()


def test_trees_are_recognised_only_when_every_label_is_a_path() -> None:
    assert looks_hierarchical(["animal/cat", "tool/saw"])
    assert not looks_hierarchical(["AC/DC", "Queen"])
    assert not looks_hierarchical([])


def test_parents_get_the_sum_of_their_leaves() -> None:
    tree = Hierarchy.of(["animal/cat", "animal / dog", "thing/tool/saw", "thing/cup"])
    assert tree.inner == (("animal",), ("thing",), ("thing", "tool"))
    chance = np.array([[0.1, 0.2, 0.3, 0.4]])
    assert np.allclose(tree.gather(chance, tree.inner), [[0.3, 0.7, 0.3]])
    assert np.allclose(tree.gather(chance, tree.inner, multi_label=True), [[0.2, 0.4, 0.3]])
    assert tree.at_level(1) == (("animal",), ("thing",))
    assert tree.at_level(2) == (
        ("animal", "cat"), ("animal", "dog"), ("thing", "tool"), ("thing", "cup"),
    )  # fmt: skip
    assert tree.at_level(8) == tree.leaves
    assert np.allclose(tree.gather(chance, tree.at_level(2)), chance)


def test_leaves_of_one_name_are_prompted_with_their_parents() -> None:
    tree = Hierarchy.of(["fruit/orange", "colour/orange", "colour/red"])
    assert tree.prompt_names() == ["fruit orange", "colour orange", "red"]
    deep = Hierarchy.of(["a/x/k", "b/x/k", "k"])
    assert deep.prompt_names() == ["a x k", "b x k", "k"]
    twisted = Hierarchy.of(["p/a b/c", "q/b/c", "p/b/c", "q/a/b c"])
    assert len(set(twisted.prompt_names())) == 4


@pytest.mark.parametrize(
    "labels",
    [
        ["animal", "animal/cat"],
        ["a/b/c", "a/b"],
        ["a//b", "c/d"],
        ["/a", "b/c"],
        ["a/", "b/c"],
        ["a/b", "a / b"],
        ["/".join("abcdefghi"), "x/y"],
        [f"a{n}/b/c/d/e" for n in range(600)],
    ],
)
def test_trees_that_are_refused(labels: list[str]) -> None:
    with pytest.raises(InvalidLabelsError):
        Hierarchy.of(labels)


paths = st.lists(st.sampled_from("abc"), min_size=2, max_size=4).map("/".join)


@given(st.lists(paths, min_size=1, max_size=12, unique=True), st.integers(0, 2**31))
def test_every_level_of_a_tree_adds_up_to_one(labels: list[str], seed: int) -> None:
    try:
        tree = Hierarchy.of([*labels, "d/e"])
    except InvalidLabelsError:
        return
    logits = np.random.default_rng(seed).normal(size=(3, len(tree.leaves)))
    chance = chances(logits)
    for level in range(1, tree.depth + 1):
        assert np.allclose(tree.gather(chance, tree.at_level(level)).sum(axis=1), 1)
    assert len(set(tree.prompt_names())) == len(tree.leaves)
