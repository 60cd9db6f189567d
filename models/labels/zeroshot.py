"""From pictures and labels to probabilities: zero-shot, few-shot examples, and none of these.

Class directions come from prompts, logits from cosines, with the formulas of CLIP (Radford et al.
2021, arXiv:2103.00020, section 3.1) and SigLIP (Zhai et al. 2023, arXiv:2303.15343). Examples add
to them (`cache_logits`), and a crowd of ordinary things says from where on a label fits at all
(`background_logits`). Numpy only, over any `Encoder`; it knows nothing of pictures, files or
thresholds. `service.engine.classifier` and the evaluation call it.

Shapes: B pictures, C classes, T templates, D embedding, N examples, W words.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from models.encoder import Encoder
from models.errors import InvalidLabelsError, InvalidVectorError
from models.labels.prompts import DEFAULT_TEMPLATES, build_prompts
from models.vectors import Vectors, unit_rows

_BATCH = 256
"""Prompts per call of the text tower: bounds memory for 1000 labels in 80 templates."""


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


def _is_chinese(templates: Sequence[str]) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for text in templates for character in text)


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
    offset: float = 0.0,
) -> npt.NDArray[np.float64]:
    """From logits z to probabilities, each of the three ways divided by the temperature T.

    - one label of several (`multi_label` false): softmax over c of z / T. A sigmoid-trained
      pair's bias is the same for all labels and cancels.
    - any number of labels, sigmoid-trained pair (`logit_bias` given):
      sigmoid((z + bias - offset) / T), at T = 1 and offset 0 what SigLIP is trained on.
    - any number of labels, softmax-trained pair: such a pair knows no absolute zero, only
      comparisons, so each label is compared with the background alone:
      sigmoid((z[b, c] - background[b] - offset) / T).

    Args:
        logits_BC: from `class_logits`.
        background_B: `background_logits` per picture; needed in the third case only.
        temperature: above 1 for a pair that is too sure of itself (see
        `models.labels.calibration`).
        offset: how far above that zero a label is as likely as not, in logits; found with T.

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
        return _sigmoid((logits_BC + logit_bias - offset) / temperature)
    if background_B is None:
        raise ValueError("a softmax-trained pair needs a background to judge labels one by one")
    return _sigmoid((logits_BC - background_B[:, None] - offset) / temperature)


def _softmax(logits_BC: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # subtracting the largest logit leaves the quotient as it is and keeps exp below one
    weights_BC = np.exp(logits_BC - logits_BC.max(axis=1, keepdims=True))
    result: npt.NDArray[np.float64] = weights_BC / weights_BC.sum(axis=1, keepdims=True)
    return result


def _sigmoid(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # 1 / (1 + exp(-z)) overflows for z below -709; log(1 + exp(-z)) does not
    result: npt.NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -logits))
    return result


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
    """What labelled examples add to the zero-shot logits, without training -> float64 [B, C].

    Zhang et al. 2022, "Tip-Adapter: Training-free Adaption of CLIP" (arXiv:2111.03930), equation 5:
    labelled pictures are kept as keys, and a picture's affinity to each adds to the logit of its
    label.

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


DEFAULT_ABSTAIN = 0.5
"""The best label stands out of ordinary things no more than the best of as many of them would."""

ONE_IN_TWENTY: Final = NormalDist().inv_cdf(0.95)
"""Standard deviations above the mean that one ordinary thing in twenty reaches: the zero of a label
that is judged alone."""

_ENGLISH = (
    "something|object|thing|scene|picture|person|people|face|child|crowd|dog|cat|bird|fish|insect|"
    "wild animal|horse|flower|tree|plant|forest|mountain|beach|sky|sea|river|snow|field|road|"
    "street|city|building|house|room|kitchen|furniture|chair|table|bed|car|truck|bicycle|train|"
    "boat|airplane|food|fruit|vegetable|drink|bottle|meal|dessert|clothes|shoes|hat|bag|jewellery|"
    "tool|machine|computer|phone|book|text|document|drawing|painting|pattern|texture|sign|map|"
    "chart|toy|ball|sport|game|musical instrument|weapon|statue|night|water|fire|rock|ground|wall|"
    "window|door|lamp|clock|container|box|packaging|shop|market|cloth|paper"
)
_CHINESE = (
    "东西|物体|事物|场景|图片|人|人群|脸|孩子|狗|猫|鸟|鱼|昆虫|野生动物|马|花|树|植物|森林|山|海滩|"
    "天空|大海|河流|雪|田野|道路|街道|城市|建筑|房子|房间|厨房|家具|椅子|桌子|床|汽车|卡车|自行车|"
    "火车|船|飞机|食物|水果|蔬菜|饮料|瓶子|餐点|甜点|衣服|鞋|帽子|包|珠宝|工具|机器|电脑|手机|书|"
    "文字|文件|图画|油画|图案|纹理|标志|地图|图表|玩具|球|运动|游戏|乐器|武器|雕像|夜晚|水|火|岩石|"
    "地面|墙|窗户|门|灯|钟|容器|盒子|包装|商店|市场|布|纸"
)


def background_words(templates: Sequence[str]) -> list[str]:
    """The ordinary things, in the language of the templates: Chinese or English."""
    return (_CHINESE if _is_chinese(templates) else _ENGLISH).split("|")


def background_matrix(encoder: Encoder, templates: Sequence[str] = DEFAULT_TEMPLATES) -> Vectors:
    """One direction per ordinary thing in the labels' own templates -> float32 [W, D]."""
    return class_matrix(encoder, background_words(templates), templates)


def best_of(labels: int) -> float:
    """How many standard deviations above the mean the best of so many labels is by luck alone.

    The expected largest of C standard normal draws, by Blom's approximation (Blom 1958,
    "Statistical Estimates and Transformed Beta-Variables"): the quantile (C - 3/8) / (C + 1/4).
    """
    return NormalDist().inv_cdf((labels - 0.375) / (labels + 0.25))


def background_logits(
    image_BD: Vectors, word_WD: Vectors, *, logit_scale: float, deviations: float
) -> npt.NDArray[np.float64]:
    """From which logit on a label fits a picture better than chance would have it -> float64 [B].

        mean over w of z[b, w] + deviations * standard deviation over w of z[b, w]

    z being the logits of ordinary things. What a cosine means differs from picture to picture, pair
    to pair and template to template; how far a label stands out of a crowd does not, so that no
    figure here belongs to any weights. The crowd holds things that are in the picture too, which
    are few. Mean and deviation tell strangers from members better than the crowd's best word does
    (docs/LOG.md): what one word happens to reach is noise.

    Args:
        deviations: `best_of` the labels where one is chosen, `ONE_IN_TWENTY` where each is judged
            alone.
    """
    word_BW = class_logits(image_BD, word_WD, logit_scale=logit_scale)
    zero_B: npt.NDArray[np.float64] = word_BW.mean(axis=1) + deviations * word_BW.std(axis=1)
    return zero_B


def none_of_these(
    logits_BC: npt.NDArray[np.float64],
    background_B: npt.NDArray[np.float64],
    *,
    temperature: float = 1.0,
) -> npt.NDArray[np.float64]:
    """Whether a picture is better described by something nobody asked about -> float64 [B].

    A softmax over the caller's labels always adds up to one, however little the picture has to do
    with any of them. So the best label is compared with the background: what the best of as many
    ordinary things would reach. The background's share against the best label alone:

    exp(g[b] / T) / (exp(g[b] / T) + exp(max over c of z[b, c] / T))
    """
    margin_B = (logits_BC.max(axis=1) - background_B) / temperature
    result_B: npt.NDArray[np.float64] = np.exp(-np.logaddexp(0.0, margin_B))
    return result_B
