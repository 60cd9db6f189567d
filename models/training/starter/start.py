"""Heads before any training."""

from __future__ import annotations

import torch

from models.encoders.starter.heads import StarterHeads, concept_matrix
from models.encoders.starter.towers import TextTower
from models.training.starter.config import TrainConfig


def fresh_heads(config: TrainConfig, tower: TextTower) -> StarterHeads:
    """Heads at their starting point: the identity for texts, ConSE for pictures."""
    torch.manual_seed(config.seed)
    heads = StarterHeads(config.heads)
    heads.image.concept_CD.copy_(concept_matrix(tower))
    return heads
