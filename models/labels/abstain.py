"""None of these: whether a picture is better described by something nobody asked about.

A softmax over the caller's labels always adds up to one, however little the picture has to do with
any of them. So the best label is compared with a background: prompts about a hundred ordinary
things. It has to be a crowd; against a single neutral direction ("a photo of something") pictures
of no label were told from pictures of one with an AUROC lower by 7 to 10 points (starter pair,
random sets of 3 to 20 ImageNet classes against pictures of other classes). Words too close to a
label are left out, as in NegLabel (Jiang et al. 2024, arXiv:2403.20078): "dog" must not make
"poodle" none of these. Numpy only.

Legend: B pictures, C classes, D embedding, W words.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.encoder import Encoder
from models.labels.prompts import DEFAULT_TEMPLATES
from models.labels.zeroshot import class_logits, class_matrix
from models.vectors import Vectors

DEFAULT_ABSTAIN = 0.5
"""The background describes the picture at least as well as the best label does.

Measured with the starter pair, it is also close to the best balance between pictures rightly
refused and right answers wrongly refused, for 3, 8 and 20 labels; and unlike any other figure it
means the same for pairs with another logit scale."""

CLOSEST = 0.8
"""Words whose cosine with a label reaches this say the same as the label."""

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
    chinese = any("\u4e00" <= character <= "\u9fff" for text in templates for character in text)
    return (_CHINESE if chinese else _ENGLISH).split("|")


def background_matrix(encoder: Encoder, templates: Sequence[str] = DEFAULT_TEMPLATES) -> Vectors:
    """One direction per ordinary thing in the labels' own templates -> float32 [W, D]."""
    return class_matrix(encoder, background_words(templates), templates)


def background_logits(
    image_BD: Vectors, word_WD: Vectors, class_CD: Vectors, *, logit_scale: float
) -> npt.NDArray[np.float64]:
    """How well the best background word describes each picture -> float64 [B].

    Words that come as close as `CLOSEST` to a label take no part, unless none would be left.
    """
    distinct_W = (word_WD.astype(np.float64) @ class_CD.astype(np.float64).T).max(axis=1) < CLOSEST
    kept_WD = word_WD[distinct_W] if distinct_W.any() else word_WD
    best_B: npt.NDArray[np.float64] = class_logits(image_BD, kept_WD, logit_scale=logit_scale).max(
        axis=1
    )
    return best_B


def none_of_these(
    logits_BC: npt.NDArray[np.float64],
    background_B: npt.NDArray[np.float64],
    *,
    temperature: float = 1.0,
) -> npt.NDArray[np.float64]:
    """The background's share against the best label alone -> float64 [B].

    exp(g[b] / T) / (exp(g[b] / T) + exp(max over c of z[b, c] / T))
    """
    margin_B = (logits_BC.max(axis=1) - background_B) / temperature
    result_B: npt.NDArray[np.float64] = np.exp(-np.logaddexp(0.0, margin_B))
    return result_B
