"""Few-shot examples blended into zero-shot logits, without training: Tip-Adapter.

Zhang et al. 2022, "Tip-Adapter: Training-free Adaption of CLIP" (arXiv:2111.03930), equation 5:
labelled pictures are kept as keys, and a picture's affinity to each adds to the logit of its
label. Numpy only.

Legend: B pictures, C classes, D embedding, N examples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.vectors import Vectors

DEFAULT_ALPHA = 20.0
DEFAULT_BETA = 5.5
"""The paper's beta, and its alpha of 1.17 times the 16 examples a label it was found with; on the
starter pair larger ones gain little more (see `cache_logits` for what they mean)."""


def cache_logits(
    image_BD: Vectors,
    example_ND: Vectors,
    target_N: Sequence[int],
    classes: int,
    *,
    alpha: float = DEFAULT_ALPHA,
    beta: float = DEFAULT_BETA,
) -> npt.NDArray[np.float64]:
    """What the examples add to the zero-shot logits -> float64 [B, C].

        added[b, c] = alpha * mean over the examples n of c of exp(-beta * (1 - <b, n>))

    so `alpha` is the logit that a picture gains for a label whose examples all equal it. The paper
    sums where this averages; with equally many examples a label that is a factor on alpha, and with
    unequal numbers no label wins by having more of them. A label without examples gets nothing.

    Args:
        image_BD: unit rows.
        example_ND: unit rows.
        target_N: the class of each example.
        classes: C.
        alpha: how much the examples count; 0 leaves the zero-shot answer.
        beta: how alike a picture must be: larger values listen to the nearest examples only.
    """
    affinity_BN = np.exp(
        -beta * (1.0 - image_BD.astype(np.float64) @ example_ND.astype(np.float64).T)
    )
    values_NC = np.zeros((len(example_ND), classes))
    values_NC[np.arange(len(example_ND)), np.asarray(target_N, dtype=int)] = 1.0
    counts_C = values_NC.sum(axis=0)
    values_NC /= np.maximum(counts_C, 1.0)
    added_BC: npt.NDArray[np.float64] = alpha * (affinity_BN @ values_NC)
    return added_BC
