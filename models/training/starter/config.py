"""What decides a training run, saved beside its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from models.encoders.starter.heads import HeadsConfig


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Same config, same data, same number of threads, same machine: the same heads, bit for bit.

    Attributes:
        epochs: passes over the captioned pictures.
        batch_size: pairs a step, of all three kinds; also how many negatives a pair has.
        lr: peak learning rate of AdamW (Loshchilov & Hutter 2019), after warm-up, before cosine
            decay to zero.
        warmup: share of the steps with a rising rate.
        weight_decay: on matrices only; biases, norms and the logit scale are exempt, as in CLIP.
        label_smoothing: see `models.training.losses`.
        class_share: share of each batch that are pictures of the class sources, drawn at random;
            none where there are no class sources, all the rest where there is nothing else.
        concept_share: share of each batch that rehearses the 1,000 ImageNet names (see
            `models.training.features.pairs`); without it, training on captions of people and
            dogs forgets the strawberries.
        ema: decay of the moving average of the weights, which is what is kept of the last epoch;
            0 keeps the weights themselves. The measurements after each epoch are of these.
        captions: how many captions of each picture a step compares it with, one after another: a
            picture is embedded once for all of them.
        init: `starter` continues from the heads that come with Diptych, `fresh` starts over.
        keep: `last` epoch, or the `best` on the validation set (by mean recall@1).
        patience: epochs without a better R@1 before it stops; 0 never stops early.
        interpolate: share of the trained heads in the result, the rest being those it started
            from (Wortsman et al. 2022, WiSE-FT); `val` chooses it on the validation set.
        seed: of shuffling, caption choice, dropout and initial weights.
        holdout: leave one record in N out of every class source.
        heads: the shape of fresh heads.
    """

    epochs: int = 30
    batch_size: int = 2048
    lr: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.1
    label_smoothing: float = 0.0
    extra_share: float = 0.15
    class_share: float = 0.1
    concept_share: float = 0.2
    ema: float = 0.0
    captions: int = 1
    init: Literal["starter", "fresh"] = "starter"
    keep: Literal["last", "best"] = "last"
    patience: int = 0
    interpolate: float | Literal["val"] = 1.0
    seed: int = 0
    holdout: int | None = None
    heads: HeadsConfig = field(default_factory=HeadsConfig)
