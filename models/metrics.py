"""Computes retrieval and classification metrics on score matrices, for evaluation and training.

Numpy only, pure functions. Definitions are those of CLIP_benchmark. Ties count what a random order
among the equal scores would give on average, so that a collapsed model that scores everything alike
gets k / N, neither 1 nor 0.

Legend: Q queries, N candidates, B pictures, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating]
_CHUNK = 1024


def hits_at_k(score_QN: Scores, relevant_QN: npt.NDArray[np.bool_], k: int) -> Scores:
    """The chance that at least one relevant candidate is among the k best, per query.

    Without ties it is 0 or 1. With A candidates above the best relevant score, T at it, R of
    those relevant, a random order of the tied ones hits with probability
    1 - C(T - R, k - A) / C(T, k - A).

    Returns:
        float64 [Q]; 0 for a query without any relevant candidate.

    Example:
        >>> hits_at_k(np.array([[0.9, 0.5, 0.1]]), np.array([[False, True, False]]), 1)
        array([0.])
        >>> hits_at_k(np.array([[0.9, 0.5, 0.1]]), np.array([[False, True, False]]), 2)
        array([1.])
        >>> hits_at_k(np.array([[0.5, 0.5, 0.1]]), np.array([[False, True, False]]), 1)
        array([0.5])
    """
    return _hit_chance(_count_ties(score_QN, relevant_QN), k)


def _count_ties(
    score_QN: Scores, relevant_QN: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int_], npt.NDArray[np.int_], npt.NDArray[np.int_]]:
    """(A, T, R) of `hits_at_k` per query; R = 0 where nothing is relevant."""
    best_Q1 = np.where(relevant_QN, score_QN, -np.inf).max(axis=1, keepdims=True)
    tied_QN = score_QN == best_Q1
    above_Q = (score_QN > best_Q1).sum(axis=1)
    return above_Q, tied_QN.sum(axis=1), (tied_QN & relevant_QN).sum(axis=1)


def _hit_chance(
    counts: tuple[npt.NDArray[np.int_], npt.NDArray[np.int_], npt.NDArray[np.int_]], k: int
) -> Scores:
    above_Q, tied_Q, relevant_Q = counts
    slots_Q = np.clip(k - above_Q, 0, tied_Q)
    miss_Q = np.ones(len(above_Q))
    for drawn in range(int(slots_Q.max(initial=0))):
        # the chance that the next of the tied candidates is not relevant either
        left_Q = np.maximum(tied_Q - drawn, 1)
        chance_Q = np.maximum(tied_Q - relevant_Q - drawn, 0) / left_Q
        miss_Q = np.where(drawn < slots_Q, miss_Q * chance_Q, miss_Q)
    return np.where(relevant_Q > 0, 1.0 - miss_Q, 0.0)


def retrieval_recall(
    image_ND: Scores, text_MD: Scores, owner_M: Sequence[int], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall@k both ways of a captioned set; text m describes picture owner[m].

    `image_retrieval_recall@k`: the share of texts whose picture is among the k nearest pictures.
    `text_retrieval_recall@k`: the share of pictures with at least one of their own texts among
    the k nearest texts. Pictures without a text take part as candidates only.

    Example: two pictures, the first with two captions; the second one's caption points away:

        >>> images = np.eye(2)
        >>> texts = np.array([[1.0, 0.0], [0.8, 0.6], [0.9, 0.44]])
        >>> found = retrieval_recall(images, texts, [0, 0, 1], ks=(1,))
        >>> round(found["image_retrieval_recall@1"], 3), found["text_retrieval_recall@1"]
        (0.667, 0.5)
    """
    owner = np.asarray(owner_M)
    described = np.unique(owner)
    by_text = _mean_hits(text_MD, image_ND, owner, np.arange(len(image_ND)), ks)
    by_image = _mean_hits(image_ND[described], text_MD, described, owner, ks)
    return {
        **{f"image_retrieval_recall@{k}": by_text[k] for k in ks},
        **{f"text_retrieval_recall@{k}": by_image[k] for k in ks},
    }


def first_alike(owner_M: Sequence[int], contents: Sequence[int]) -> list[int]:
    """Owners of texts, with the first of equal pictures in the place of each of these.

    Two rows of one picture would be each other's rivals for a text that fits both.

    Args:
        owner_M: the picture each text belongs to.
        contents: a number for the bytes of each picture; empty where none are equal.

    Example:
        >>> first_alike([0, 1, 2, 3], [7, 8, 7, 9])
        [0, 1, 0, 3]
    """
    if not len(contents):
        return list(owner_M)
    first: dict[int, int] = {}
    for picture, content in enumerate(contents):
        first.setdefault(content, picture)
    return [first[contents[owner]] for owner in owner_M]


def _mean_hits(
    query_QD: Scores,
    candidate_ND: Scores,
    query_owner_Q: npt.NDArray[np.int_],
    candidate_owner_N: npt.NDArray[np.int_],
    ks: Sequence[int],
) -> dict[int, float]:
    """Mean of `hits_at_k`, in chunks of queries so that memory does not grow with Q x N."""
    totals = dict.fromkeys(ks, 0.0)
    for at in range(0, len(query_QD), _CHUNK):
        score_QN = query_QD[at : at + _CHUNK] @ candidate_ND.T
        relevant_QN = query_owner_Q[at : at + _CHUNK, None] == candidate_owner_N[None, :]
        counts = _count_ties(score_QN, relevant_QN)
        for k in ks:
            totals[k] += float(_hit_chance(counts, k).sum())
    return {k: total / len(query_QD) for k, total in totals.items()}


def top_k_accuracy(score_BC: Scores, target_B: Sequence[int], k: int) -> float:
    """The share of pictures whose class is among the k best scored.

    Example:
        >>> top_k_accuracy(np.array([[0.9, 0.1], [0.8, 0.2]]), [0, 1], 1)
        0.5
    """
    return float(class_hits(score_BC, target_B, k).mean())


def mean_per_class_recall(score_BC: Scores, target_B: Sequence[int]) -> float:
    """Top-1 accuracy averaged over the classes that occur, each counting the same.

    Example: three cats, all found, and one dog, missed:

        >>> scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
        >>> mean_per_class_recall(scores, [0, 0, 0, 1])
        0.5
    """
    hits_B = class_hits(score_BC, target_B, 1)
    target = np.asarray(target_B)
    return float(np.mean([hits_B[target == label].mean() for label in np.unique(target)]))


def class_hits(score_BC: Scores, target_B: Sequence[int], k: int) -> Scores:
    """The chance that a picture's class is among the k best scored -> float64 [B]."""
    relevant_BC = np.asarray(target_B)[:, None] == np.arange(score_BC.shape[1])[None, :]
    return hits_at_k(score_BC, relevant_BC, k)


def reliability(
    confidence_B: Scores, correct_B: npt.NDArray[np.bool_], bins: int = 15
) -> list[tuple[int, float, float]]:
    """Pictures by how sure the classifier was: (count, mean confidence, accuracy) per bin.

    Bin i of M holds confidences in (i / M, (i + 1) / M]; an empty bin is (0, 0.0, 0.0).
    """
    # a confidence of exactly i / M belongs below, and 0 to the first bin
    at_B = np.clip(np.ceil(np.asarray(confidence_B) * bins).astype(int) - 1, 0, bins - 1)
    rows = []
    for i in range(bins):
        inside = at_B == i
        count = int(inside.sum())
        sure = float(np.asarray(confidence_B)[inside].mean()) if count else 0.0
        right = float(np.asarray(correct_B)[inside].mean()) if count else 0.0
        rows.append((count, sure, right))
    return rows


def expected_calibration_error(
    probability_BC: Scores, target_B: Sequence[int], bins: int = 15
) -> float:
    """How far confidence and accuracy lie apart: Guo et al. 2017 (arXiv:1706.04599), equation 3.

        ECE = sum over bins i of count[i] / B * |accuracy[i] - confidence[i]|

    Args:
        probability_BC: the largest entry of a row is the confidence; rows need not add up to one.

    Example: sure at 0.8 of both pictures, right about one:

        >>> chances = np.array([[0.8, 0.2], [0.8, 0.2]])
        >>> round(expected_calibration_error(chances, [0, 1]), 3)
        0.3
    """
    confidence_B = probability_BC.max(axis=1)
    correct_B = probability_BC.argmax(axis=1) == np.asarray(target_B)
    return calibration_gap(confidence_B, correct_B, bins)


def calibration_gap(
    confidence_B: Scores, correct_B: npt.NDArray[np.bool_], bins: int = 15
) -> float:
    """The same of single judgements, each with how sure it was and whether it came true."""
    rows = reliability(confidence_B, correct_B, bins)
    return sum(count * abs(right - sure) for count, sure, right in rows) / len(confidence_B)
