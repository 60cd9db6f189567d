"""A linear probe: how well classes can be told apart in a pair's picture embeddings.

Multinomial logistic regression on frozen, unit-length embeddings (`models.training.class_heads`),
fitted on one labelled set and measured on another, as in Radford et al. 2021 (CLIP), section 3.2
and appendix A.3; the names of the metrics are CLIP_benchmark's.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from models.errors import InvalidLabelsError
from models.evaluation.measures import FEWEST_FOR_TOP_5, labelled_rows
from models.metrics import class_hits
from models.sources.embedded import Collected
from models.training.class_heads import fit_linear


def evaluate_linear_probe(
    train: Collected, test: Collected, *, shots: int | None = None, seed: int = 0
) -> dict[str, float]:
    """Fit on one set's labelled pictures, measure on another's.

    Args:
        train, test: embedded by the same pair.
        shots: at most so many training pictures a class, drawn at random.
        seed: of the drawing, and of the part held back to choose the penalty on.

    Returns:
        {`lp_acc1`, `lp_acc5`, `lp_mean_per_class_recall`, `weight_decay`, `pictures`, `classes`,
        `train_pictures`}. Pictures of classes that the training set lacks count as missed; with
        fewer than five classes there is no `lp_acc5`.

    Raises:
        SourceError: no labelled picture in one of the sets.
        InvalidLabelsError: fewer than two classes to learn.
    """
    train_rows, train_labels = _drawn(*labelled_rows(train, "training set"), shots, seed)
    test_rows, test_labels = labelled_rows(test)
    names = sorted(set(train_labels))
    if len(names) < 2:
        raise InvalidLabelsError(f"{len(names)} class; a linear probe needs at least 2")
    position = {name: at for at, name in enumerate(names)}
    target_N = np.array([position[label] for label in train_labels], dtype=np.int64)
    probe = fit_linear(
        np.ascontiguousarray(train.image_ND[train_rows]), target_N, len(names), seed=seed
    )
    known = [at for at, label in enumerate(test_labels) if label in position]
    target_B = [position[test_labels[at]] for at in known]
    image_BD = test.image_ND[[test_rows[at] for at in known]]
    score_BC = image_BD @ probe.weight_CD.T + probe.bias_C
    hit_B = class_hits(score_BC, target_B, 1)
    per_class: dict[str, list[float]] = {label: [] for label in sorted(set(test_labels))}
    for at, hit in zip(known, hit_B.tolist(), strict=True):
        per_class[test_labels[at]].append(hit)
    recalls = [sum(hits) / len(hits) if hits else 0.0 for hits in per_class.values()]
    metrics = {"lp_acc1": float(hit_B.sum()) / len(test_labels)}
    if len(names) >= FEWEST_FOR_TOP_5:
        metrics["lp_acc5"] = float(class_hits(score_BC, target_B, 5).sum()) / len(test_labels)
    return {
        **metrics,
        "lp_mean_per_class_recall": sum(recalls) / len(recalls),
        "weight_decay": probe.strength,
        "pictures": len(test_labels),
        "classes": len(names),
        "train_pictures": len(train_labels),
    }


def _drawn(
    rows: list[int], labels: list[str], shots: int | None, seed: int
) -> tuple[list[int], list[str]]:
    """At most `shots` of each label, at random, in order."""
    if shots is None:
        return rows, labels
    taken: Counter[str] = Counter()
    chosen = []
    for at in np.random.default_rng(seed).permutation(len(rows)).tolist():
        if taken[labels[at]] < shots:
            taken[labels[at]] += 1
            chosen.append(at)
    chosen.sort()
    return [rows[at] for at in chosen], [labels[at] for at in chosen]
