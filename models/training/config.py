"""What decides a run of the trainer, saved beside its result and compared when it is continued."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Same config, data, model, ranks, threads and machine: the same weights, bit for bit on CPU.

    Attributes:
        epochs: passes over the captioned pictures.
        batch_size: pairs a step over all ranks; also how many negatives a pair has.
        micro_batch: pairs a rank embeds at a time; fewer than its share of the batch makes the
            batch a cached one (see `models.training.step`). None: all at once.
        lr: peak rate of AdamW (Loshchilov & Hutter 2019).
        betas: CLIP's second moment: at 0.999 it lags behind the fast growth of the scale.
        eps: CLIP's for vision transformers.
        warmup: share of the steps with a rising rate, before the cosine.
        weight_decay: on matrices only; norms, biases, gains, scale and bias are exempt.
        layer_decay: factor on the rate per block away from the head (Bao et al. 2022, BEiT).
        grad_clip: largest norm of all gradients together; 0 clips nothing.
        precision: `fp32`, or autocast in `bf16` or `fp16`; weights and loss stay in fp32.
        grad_checkpointing: recompute activations instead of keeping them.
        objective: InfoNCE (`clip`) or pairwise sigmoids (`siglip`).
        label_smoothing: see `models.training.losses`.
        hard_negatives: disturbed captions per pair as further negatives (Yuksekgonul et al. 2023).
        tune: `full`, or `lora`: low-rank updates of the unlocked towers' weights learn in their
            place (see `models.training.tuning`).
        lora_rank: of each update.
        lock_image, lock_text: towers that do not learn (Zhai et al. 2022, LiT).
        unlock_blocks: last blocks of locked towers that learn all the same; with no tower named,
            both are locked but for these.
        ema: decay of the moving average of the weights; 0 keeps none.
        interpolate: share of the trained weights in the result, the rest being the weights it
            started from (Wortsman et al. 2022, WiSE-FT); `val` chooses it on validation.
        keep: weights of the `last` step, or of the `best` validation.
        patience: validations without a better R@1 before it stops; 0 never stops early.
        eval_every: epochs between validations.
        crop, flip, colour: see `models.training.samples.Augmentation`.
        extra_share, class_share: of each batch, where there are such sources.
        shuffle_buffer: records that wait to be drawn.
        seed: of order, captions, crops, dropout and fresh weights.
    """

    epochs: int
    batch_size: int
    lr: float
    micro_batch: int | None = None
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    warmup: float = 0.1
    weight_decay: float = 0.1
    layer_decay: float = 1.0
    grad_clip: float = 1.0
    precision: str = "fp32"
    grad_checkpointing: bool = False
    objective: Literal["clip", "siglip"] = "clip"
    label_smoothing: float = 0.0
    hard_negatives: int = 0
    tune: Literal["full", "lora"] = "full"
    lora_rank: int = 8
    lock_image: bool = False
    lock_text: bool = False
    unlock_blocks: int = 0
    ema: float = 0.0
    interpolate: float | Literal["val"] = 1.0
    keep: Literal["last", "best"] = "last"
    patience: int = 0
    eval_every: int = 1
    crop: tuple[float, float] = (0.9, 1.0)
    flip: bool = False
    colour: float = 0.0
    extra_share: float = 0.15
    class_share: float = 0.1
    shuffle_buffer: int = 4_096
    seed: int = 0
