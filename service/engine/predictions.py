"""From probabilities of labels to ranked predictions, leaves or nodes of a tree.

Legend: C labels, P nodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.labels.hierarchy import SEPARATOR, Path
from service.engine.label_sets import LabelSet
from service.engine.queries import Prediction

Chances = npt.NDArray[np.float64]


def predictions(
    chance_C: Chances, label_set: LabelSet, level: int | None, top_k: int | None
) -> tuple[Prediction, ...]:
    """The labels, or the nodes at a level of their tree, most likely first."""
    tree = label_set.tree
    if tree is None:
        ranked = _ranked(chance_C, top_k)
        return tuple(Prediction(label_set.labels[at], float(chance_C[at])) for at in ranked)
    if level is None:
        ranked = _ranked(chance_C, top_k)
        return tuple(
            Prediction(label_set.labels[at], float(chance_C[at]), tree.leaves[at]) for at in ranked
        )
    return _nodes(chance_C, label_set, tree.at_level(level), top_k)


def parents(
    chance_C: Chances, label_set: LabelSet, top_k: int | None
) -> tuple[Prediction, ...] | None:
    """The inner nodes of a tree of labels, most likely first; None without a tree."""
    tree = label_set.tree
    return None if tree is None else _nodes(chance_C, label_set, tree.inner, top_k)


def _nodes(
    chance_C: Chances, label_set: LabelSet, nodes: Sequence[Path], top_k: int | None
) -> tuple[Prediction, ...]:
    assert label_set.tree is not None
    chance_P = label_set.tree.gather(chance_C[None], nodes, multi_label=label_set.multi_label)[0]
    return tuple(
        Prediction(SEPARATOR.join(nodes[at]), float(chance_P[at]), nodes[at])
        for at in _ranked(chance_P, top_k)
    )


def _ranked(chance: Chances, top_k: int | None) -> list[int]:
    order: list[int] = np.argsort(-chance, kind="stable")[:top_k].tolist()
    return order
