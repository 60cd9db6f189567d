"""Contrastive losses on unit vectors. Torch only; knows nothing of towers, data or optimisers.

`info_nce` and `sigmoid_loss` are plain functions; `*_rows` are their pieces for some rows of a
large batch; the objectives carry the parameters a loss learns.
"""

from __future__ import annotations

from models.encoders.base.logit_scale import MAX_LOGIT_SCALE, LogitScale
from models.training.losses.info_nce import info_nce, info_nce_rows
from models.training.losses.objectives import InfoNCEObjective, Objective, SigmoidObjective
from models.training.losses.sigmoid import sigmoid_loss, sigmoid_rows

__all__ = [
    "MAX_LOGIT_SCALE",
    "InfoNCEObjective",
    "LogitScale",
    "Objective",
    "SigmoidObjective",
    "info_nce",
    "info_nce_rows",
    "sigmoid_loss",
    "sigmoid_rows",
]
