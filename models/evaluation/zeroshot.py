"""Classification accuracy on a labelled source: of prompts, or of a head that was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from models.encoder import Encoder
from models.errors import InvalidLabelsError, SourceError
from models.evaluation.collect import Collected
from models.evaluation.metrics import Scores, mean_per_class_recall, top_k_accuracy
from models.tuning.head import ClassHead
from models.zeroshot import class_matrix


def evaluate_zero_shot(
    encoder: Encoder,
    collected: Collected,
    *,
    templates: Sequence[str],
    class_names: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Top-1, top-5 and mean per-class recall.

    Args:
        encoder: the pair to measure.
        collected: labelled pictures; those without a label are left out.
        templates: prompts with `{c}` for the class.
        class_names: what to call each label in the prompts; the labels themselves by default.
            Names of classes that do not occur still compete.

    Returns:
        {`acc1`, `acc5`, `mean_per_class_recall`, `pictures`, `classes`}

    Raises:
        SourceError: no labelled picture.
        InvalidLabelsError: a label without a name, or names that cannot be prompted.
    """
    labelled, found = _labelled(collected)
    names = dict(class_names) if class_names else {label: label for label in sorted(set(found))}
    missing = sorted(set(found) - set(names))
    if missing:
        raise InvalidLabelsError(f"{len(missing)} labels have no class name, e.g. {missing[0]!r}")
    class_CD = class_matrix(encoder, list(names.values()), templates)
    score_BC = np.asarray(collected.image_ND[labelled] @ class_CD.T)
    return _accuracy(score_BC, found, list(names))


def evaluate_head(head: ClassHead, collected: Collected) -> dict[str, float]:
    """As `evaluate_zero_shot`, of a class head on pictures embedded by its own pair.

    Raises:
        SourceError: no labelled picture.
        InvalidLabelsError: a label that the head does not know.
    """
    labelled, found = _labelled(collected)
    missing = sorted(set(found) - set(head.labels))
    if missing:
        raise InvalidLabelsError(
            f"{len(missing)} labels are none of the head's, e.g. {missing[0]!r}"
        )
    return _accuracy(head.logits(collected.image_ND[labelled]), found, head.labels)


def _labelled(collected: Collected) -> tuple[list[int], list[str]]:
    """(which pictures have a label, these labels)"""
    labelled = [at for at, label in enumerate(collected.labels) if label is not None]
    if not labelled:
        raise SourceError(
            "the source holds no labels",
            code="no-labels",
            hint="name the field they are in: --label-field label",
        )
    return labelled, [str(collected.labels[at]) for at in labelled]


def _accuracy(score_BC: Scores, found: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    position = {label: at for at, label in enumerate(labels)}
    target_B = [position[label] for label in found]
    return {
        "acc1": top_k_accuracy(score_BC, target_B, 1),
        "acc5": top_k_accuracy(score_BC, target_B, 5),
        "mean_per_class_recall": mean_per_class_recall(score_BC, target_B),
        "pictures": len(found),
        "classes": len(labels),
    }
