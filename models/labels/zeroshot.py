"""Zero-shot classification: class directions from prompts, and probabilities from cosines.

Numpy only, over any `Encoder`; the formulas are those of CLIP (Radford et al. 2021,
arXiv:2103.00020, section 3.1) and SigLIP (Zhai et al. 2023, arXiv:2303.15343). It knows nothing
of pictures, files or thresholds.

Shapes: B pictures, C classes, T templates, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.encoder import Encoder
from models.errors import InvalidLabelsError, InvalidVectorError
from models.labels.prompts import DEFAULT_TEMPLATES, build_prompts
from models.vectors import Vectors, unit_rows

_BATCH = 256
"""Prompts per call of the text tower: bounds memory for 1000 labels in 80 templates."""

_NEUTRAL = ("something", "object", "thing", "scene", "picture")
_NEUTRAL_CHINESE = ("东西", "物体", "事物", "场景", "图片")


def class_matrix(
    encoder: Encoder, labels: Sequence[str], templates: Sequence[str] = DEFAULT_TEMPLATES
) -> Vectors:
    """One direction per label: the normalised mean of its normalised prompt embeddings.

        for c: class[c] = unit(mean over t of unit(text(template[t] with label[c])))

    Returns:
        float32 [C, D], unit rows, in the order of `labels`.

    Raises:
        InvalidLabelsError: unusable labels or templates (see `models.labels.prompts`).
    """
    prompts_CT = build_prompts(labels, templates)
    flat = [prompt for prompts_T in prompts_CT for prompt in prompts_T]
    rows = [
        encoder.embed_texts([encoder.prepare_text(text) for text in flat[at : at + _BATCH]])
        for at in range(0, len(flat), _BATCH)
    ]
    text_CTD = np.concatenate(rows).reshape(len(prompts_CT), len(prompts_CT[0]), encoder.dim)
    try:
        return unit_rows(text_CTD.astype(np.float64).mean(axis=1))
    except InvalidVectorError as error:
        raise InvalidLabelsError("the prompts of a label cancel each other out") from error


def background(encoder: Encoder, templates: Sequence[str] = DEFAULT_TEMPLATES) -> Vectors:
    """The direction of "a picture of nothing in particular" -> float32 [D], unit length.

    The mean over neutral words in the same templates. It is what a label has to beat when a
    softmax-trained pair judges labels one by one (see `chances`).
    """
    chinese = any("\u4e00" <= character <= "\u9fff" for text in templates for character in text)
    words = _NEUTRAL_CHINESE if chinese else _NEUTRAL
    mean_D: Vectors = unit_rows(class_matrix(encoder, words, templates).mean(axis=0)[None])[0]
    return mean_D


def class_logits(
    image_BD: Vectors, class_CD: Vectors, *, logit_scale: float
) -> npt.NDArray[np.float64]:
    """z[b, c] = logit_scale * <image[b], class[c]> -> float64 [B, C].

    Raises:
        ValueError: shapes that do not fit.
    """
    if image_BD.ndim != 2 or class_CD.ndim != 2 or image_BD.shape[1] != class_CD.shape[1]:
        raise ValueError(f"images {image_BD.shape} and classes {class_CD.shape} do not fit")
    logits_BC: npt.NDArray[np.float64] = logit_scale * (
        image_BD.astype(np.float64) @ class_CD.astype(np.float64).T
    )
    return logits_BC


def chances(
    logits_BC: npt.NDArray[np.float64],
    *,
    logit_bias: float | None = None,
    multi_label: bool = False,
    background_B: npt.NDArray[np.float64] | None = None,
    temperature: float = 1.0,
) -> npt.NDArray[np.float64]:
    """From logits z to probabilities, each of the three ways divided by the temperature T.

    - one label of several (`multi_label` false): softmax over c of z / T. A sigmoid-trained
      pair's bias is the same for all labels and cancels.
    - any number of labels, sigmoid-trained pair (`logit_bias` given): sigmoid((z + bias) / T),
      at T = 1 the very quantity SigLIP is trained on.
    - any number of labels, softmax-trained pair: such a pair knows no absolute zero, only
      comparisons, so each label is compared with the background alone:
      sigmoid((z[b, c] - background[b]) / T).

    Args:
        logits_BC: from `class_logits`.
        background_B: the background's logit per picture; needed in the third case only.
        temperature: above 1 for a pair that is too sure of itself (see
        `models.labels.calibration`).

    Returns:
        float64 [B, C]; rows add up to one unless `multi_label`.

    Raises:
        InvalidLabelsError: a choice between fewer than two labels.
        ValueError: the third case without `background_B`.
    """
    if not multi_label:
        if logits_BC.shape[1] < 2:
            raise InvalidLabelsError("a choice needs at least two labels")
        return _softmax(logits_BC / temperature)
    if logit_bias is not None:
        return _sigmoid((logits_BC + logit_bias) / temperature)
    if background_B is None:
        raise ValueError("a softmax-trained pair needs a background to judge labels one by one")
    return _sigmoid((logits_BC - background_B[:, None]) / temperature)


def _softmax(logits_BC: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # subtracting the largest logit leaves the quotient as it is and keeps exp below one
    weights_BC = np.exp(logits_BC - logits_BC.max(axis=1, keepdims=True))
    result: npt.NDArray[np.float64] = weights_BC / weights_BC.sum(axis=1, keepdims=True)
    return result


def _sigmoid(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # 1 / (1 + exp(-z)) overflows for z below -709; log(1 + exp(-z)) does not
    result: npt.NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -logits))
    return result
