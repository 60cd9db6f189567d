"""What a pair is worth on a source that was embedded: retrieval recall, classification accuracy.

Accuracy is that of prompts, or of a head that was trained. `models.evaluation.tasks` runs them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.encoder import Encoder
from models.errors import InvalidLabelsError, SourceError
from models.labels.calibration import Logits
from models.labels.class_head import ClassHead
from models.labels.prompts import MAX_LABELS
from models.labels.zeroshot import chances, class_logits, class_matrix
from models.metrics import (
    expected_calibration_error,
    first_alike,
    mean_per_class_recall,
    retrieval_recall,
    top_k_accuracy,
)
from models.sources.embedded import Collected, embed_texts
from models.vectors import Vectors

_NUMBER = re.compile(r"[0-9]{1,9}")
FEWEST_FOR_TOP_5 = 5
"""With fewer classes the top five are all of them; CLIP_benchmark reports no number then either."""


@dataclass(frozen=True, slots=True)
class ZeroShotLogits:
    """float64 [B, C], the right class of each picture, and how many classes compete."""

    logits_BC: Logits
    target_B: list[int]
    classes: int


def evaluate_zero_shot(
    encoder: Encoder,
    collected: Collected,
    *,
    templates: Sequence[str],
    class_names: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """`zero_shot_metrics` of `zero_shot_logits`."""
    found = zero_shot_logits(encoder, collected, templates=templates, class_names=class_names)
    return zero_shot_metrics(found, logit_bias=encoder.logit_bias)


def zero_shot_logits(
    encoder: Encoder,
    collected: Collected,
    *,
    templates: Sequence[str],
    class_names: Mapping[str, str] | None = None,
) -> ZeroShotLogits:
    """What the pair says to its labelled pictures, at its own logit scale.

    Args:
        encoder: the pair to measure.
        collected: labelled pictures; those without a label are left out.
        templates: prompts with `{c}` for the class.
        class_names: what to call each label in the prompts; the labels themselves by default.
            Names of classes that do not occur still compete, and so do equal names of several
            classes. Where the labels are whole numbers that none of them names, they count the
            names from 0, as data sets of numbered classes do.

    Raises:
        SourceError: no labelled picture.
        InvalidLabelsError: a label without a name, or names that cannot be prompted.
    """
    labelled, found = labelled_rows(collected)
    names = dict(class_names) if class_names else {label: label for label in sorted(set(found))}
    if class_names and not set(found) & set(names) and all(map(_NUMBER.fullmatch, found)):
        names = {str(number): name for number, name in enumerate(names.values())}
        found = [str(int(label)) for label in found]
    missing = sorted(set(found) - set(names))
    if missing:
        raise InvalidLabelsError(f"{len(missing)} labels have no class name, e.g. {missing[0]!r}")
    position = {label: at for at, label in enumerate(names)}
    class_CD = _directions(encoder, [name.strip() for name in names.values()], templates)
    target_B = [position[label] for label in found]
    logits_BC = class_logits(
        collected.image_ND[labelled], class_CD, logit_scale=encoder.logit_scale
    )
    return ZeroShotLogits(logits_BC, target_B, len(names))


def _directions(encoder: Encoder, names: Sequence[str], templates: Sequence[str]) -> Vectors:
    """`class_matrix` of however many names, some of which may be the same: float32 [C, D]."""
    distinct = list(dict.fromkeys(names))
    parts = [
        class_matrix(encoder, distinct[start : start + MAX_LABELS], templates)
        for start in range(0, len(distinct), MAX_LABELS)
    ]
    place = {name: at for at, name in enumerate(distinct)}
    rows_CD: Vectors = np.concatenate(parts)[[place[name] for name in names]]
    return rows_CD


def zero_shot_metrics(
    found: ZeroShotLogits, *, logit_bias: float | None = None
) -> dict[str, float]:
    """Accuracy, and how far confidence and accuracy lie apart.

    Confidence is the softmax over the classes. A sigmoid-trained pair's bias is the same for all
    classes and cancels there; how honest the quantity it was trained on is, sigmoid(logit + bias)
    of the best class, is told beside it.

    Args:
        logit_bias: the encoder's; None for a softmax-trained pair.

    Returns:
        {`acc1`, `acc5`, `mean_per_class_recall`, `ece`, `pictures`, `classes`}, without `acc5` for
        fewer than five classes and `ece` for one; `ece_sigmoid` for sigmoid-trained pairs.
    """
    logits_BC, target_B = found.logits_BC, found.target_B
    metrics = {"acc1": top_k_accuracy(logits_BC, target_B, 1)}
    if found.classes >= FEWEST_FOR_TOP_5:
        metrics["acc5"] = top_k_accuracy(logits_BC, target_B, 5)
    metrics["mean_per_class_recall"] = mean_per_class_recall(logits_BC, target_B)
    if found.classes > 1:
        metrics["ece"] = expected_calibration_error(chances(logits_BC), target_B)
    if logit_bias is not None:
        each_BC = chances(logits_BC, logit_bias=logit_bias, multi_label=True)
        metrics["ece_sigmoid"] = expected_calibration_error(each_BC, target_B)
    return {**metrics, "pictures": len(target_B), "classes": found.classes}


def evaluate_head(head: ClassHead, collected: Collected) -> dict[str, float]:
    """`zero_shot_metrics` of `head_logits`."""
    return zero_shot_metrics(head_logits(head, collected))


def head_logits(head: ClassHead, collected: Collected) -> ZeroShotLogits:
    """As `zero_shot_logits`, of a class head on pictures embedded by its own pair.

    Raises:
        SourceError: no labelled picture.
        InvalidLabelsError: a label that the head does not know.
    """
    labelled, found = labelled_rows(collected)
    missing = sorted(set(found) - set(head.labels))
    if missing:
        raise InvalidLabelsError(
            f"{len(missing)} labels are none of the head's, e.g. {missing[0]!r}"
        )
    target_B = [head.labels.index(label) for label in found]
    logits_BC = head.logits(collected.image_ND[labelled])
    return ZeroShotLogits(logits_BC, target_B, len(head.labels))


def labelled_rows(collected: Collected, what: str = "source") -> tuple[list[int], list[str]]:
    """(which pictures have a label, these labels); `what` names the set in the error.

    Raises:
        SourceError: `no-labels`.
    """
    labelled = [at for at, label in enumerate(collected.labels) if label is not None]
    if not labelled:
        raise SourceError(
            f"the {what} holds no labels",
            code="no-labels",
            hint="name the field they are in: --label-field label; or put the pictures of each "
            "class into a folder of its name",
        )
    return labelled, [str(collected.labels[at]) for at in labelled]


KS = (1, 5, 10)


def evaluate_retrieval(encoder: Encoder, collected: Collected) -> dict[str, dict[str, float]]:
    """Recall@1/5/10 both ways for each language of the captions.

    Every language is measured on its own captions against all pictures that have one in it.
    Pictures of the same bytes are one, with the captions of all of them.

    Returns:
        {language: {`image_retrieval_recall@k`, `text_retrieval_recall@k`, `pictures`, `texts`}}

    Raises:
        SourceError: no captions at all, so that there is nothing to measure.
    """
    if not collected.captions:
        raise SourceError(
            "the source holds no captions to retrieve with",
            code="no-captions",
            hint="name the field they are in: --text-field captions.en",
        )
    results = {}
    for language in collected.languages():
        texts, every = collected.of_language(language)
        owners = first_alike(every, collected.contents)
        kept = sorted(set(owners))
        position = {owner: at for at, owner in enumerate(kept)}
        recall = retrieval_recall(
            collected.image_ND[kept],
            embed_texts(encoder, texts),
            [position[owner] for owner in owners],
            KS,
        )
        results[language] = {**recall, "pictures": len(kept), "texts": len(texts)}
    return results
