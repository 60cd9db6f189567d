"""One optimiser step of one rank: pixels and tokens in, loss and gradient norm out.

Knows batches, not where they come from, and no schedule, files or console.

Shapes: B pairs (of this rank), b of one piece, D embedding, L tokens, H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.devices import DTYPES
from models.training.config import TrainConfig
from models.training.distributed import AcrossRanks, World, average_gradients
from models.training.gradcache import cached_backward
from models.training.layers import frozen_towers, trainable
from models.training.loading import Batch
from models.training.losses import Objective
from models.training.optimiser import set_rate
from models.training.pair import TrainablePair

Chunk: TypeAlias = tuple[Tensor, Tensor, Tensor | None]
"""(uint8 pixels [b, 3, H, W], tokens [b, L], tokens of disturbed captions [b * N, L])"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step came to; a loss or norm that is not finite left the weights as they were."""

    loss: float
    gradient_norm: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class Stepper:
    """Takes the steps of a run."""

    def __init__(
        self,
        pair: TrainablePair,
        objective: Objective,
        optimiser: torch.optim.Optimizer,
        config: TrainConfig,
        world: World,
    ) -> None:
        self._pair = pair
        self._objective = objective
        self._across = AcrossRanks(objective)
        self._optimiser = optimiser
        self._config = config
        self._world = world
        self._frozen = frozen_towers(pair.module)
        self._parameters = [parameter for _, parameter in trainable(pair.module)]
        self.scaler = torch.amp.GradScaler(
            world.device.type, enabled=config.precision == "fp16" and world.device.type == "cuda"
        )
        mean, std = (
            torch.tensor(pair.preprocess_cfg[key], device=world.device).view(1, 3, 1, 1)
            for key in ("mean", "std")
        )
        self._mean_1311, self._std_1311 = mean, std

    def __call__(self, batch: Batch, rate: float) -> Outcome:
        """Move the weights once, unless the loss or the gradients are not finite."""
        self._mode()
        set_rate(self._optimiser, rate)
        self._optimiser.zero_grad(set_to_none=True)
        value = self._backward(batch)
        average_gradients(self._parameters)
        self.scaler.unscale_(self._optimiser)
        limit = self._config.grad_clip or math.inf
        norm = nn.utils.clip_grad_norm_(self._parameters, limit)
        outcome = Outcome(self._mean_loss(value), float(norm))
        # a scaler expects gradients beyond fp16's range now and then, and leaves such a step out
        if outcome.finite or (self.scaler.is_enabled() and math.isfinite(outcome.loss)):
            self.scaler.step(self._optimiser)
            self.scaler.update()
            self._objective.clamp()
        return outcome

    def _mode(self) -> None:
        """Training mode, but for what does not learn: there it would only add noise."""
        module = self._pair.module
        module.train()
        for part in module.modules():
            # statistics of a few of one's own pictures are worse than those of millions
            if isinstance(part, _BatchNorm) and not self._pair.fresh:
                part.eval()
        if "image" in self._frozen:
            module.visual.eval()
        if "text" in self._frozen:
            text = getattr(module, "text", None) or module.transformer
            text.eval()

    def _backward(self, batch: Batch) -> Tensor:
        group_B = batch.group_B.to(self._world.device)
        chunks = self._chunks(batch)
        still = self._still(chunks)

        def encode(chunk: Chunk) -> tuple[Tensor, ...]:
            with self._autocast():
                return tuple(
                    rows(part)
                    for rows, part, rest in zip(self._towers(), chunk, still, strict=True)
                    if part is not None and rest is None
                )

        def loss(*rows: Tensor) -> Tensor:
            learning = iter(rows)
            image_BD, text_BD, hard_HD = (
                next(learning, None) if rest is None else rest for rest in still
            )
            value: Tensor = self._across(image_BD, text_BD, group_B=group_B, hard_HD=hard_HD)
            return value

        if len(chunks) > 1:
            return cached_backward(
                chunks,
                encode,
                loss,
                module=self._pair.module,
                loss_scale=self.scaler.scale if self.scaler.is_enabled() else None,
            )
        value = loss(*encode(chunks[0]))
        self.scaler.scale(value).backward()  # type: ignore[no-untyped-call]
        return value.detach()

    def _chunks(self, batch: Batch) -> list[Chunk]:
        device = self._world.device
        image_B3HW = batch.image_B3HW.to(device, non_blocking=True)
        text_BL = batch.text_BL.to(device, non_blocking=True)
        size = self._config.micro_batch or len(image_B3HW)
        images, texts = torch.split(image_B3HW, size), torch.split(text_BL, size)
        if batch.hard_HL is None:
            return [(image, text, None) for image, text in zip(images, texts, strict=True)]
        each = len(batch.hard_HL) // len(text_BL)
        hard = torch.split(batch.hard_HL.to(device, non_blocking=True), size * each)
        return list(zip(images, texts, hard, strict=True))

    def _towers(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """What embeds each part of a chunk."""
        text = self._pair.text_rows
        return (lambda image: self._pair.image_rows(self._normalised(image)), text, text)

    def _still(self, chunks: Sequence[Chunk]) -> tuple[Tensor | None, ...]:
        """Rows of towers of which nothing learns: embedded once, without a graph."""
        frozen = ("image" in self._frozen, "text" in self._frozen, "text" in self._frozen)
        found: list[Tensor | None] = []
        with torch.no_grad(), self._autocast():
            for at, (rows, rests) in enumerate(zip(self._towers(), frozen, strict=True)):
                parts = [part for chunk in chunks if (part := chunk[at]) is not None]
                found.append(torch.cat([rows(part) for part in parts]) if rests and parts else None)
        torch.clear_autocast_cache()
        return tuple(found)

    def _normalised(self, image_b3HW: Tensor) -> Tensor:
        """What the encoder's own transform does after resizing, to the bit."""
        return image_b3HW.float().div_(255).sub_(self._mean_1311).div_(self._std_1311)

    def _autocast(self) -> AbstractContextManager[None]:
        precision = self._config.precision
        return torch.autocast(
            self._world.device.type,
            dtype=DTYPES[precision] if precision != "fp32" else torch.bfloat16,
            enabled=precision != "fp32",
        )

    def _mean_loss(self, value: Tensor) -> float:
        if self._world.size > 1:
            value = value.clone()
            torch.distributed.all_reduce(value)
            value /= self._world.size
        return float(value)
