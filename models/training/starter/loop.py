"""The training loop: AdamW, warm-up and cosine decay, symmetric InfoNCE over frozen features.

Runs where the heads are; on the CPU a run gives the same bits every time. Knows no files and no
console; progress goes to a callback. Legend: B pairs, D embedding, F and S features.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Protocol

import torch
from torch import Tensor, nn

from models.encoders.starter.heads import StarterHeads
from models.metrics import retrieval_recall
from models.training import schedule
from models.training.features.pairs import Kind, Pairs, Rehearsal
from models.training.losses import info_nce
from models.training.measuring import score
from models.training.starter.average import MovingAverage
from models.training.starter.config import TrainConfig
from models.training.stopping import not_finite

Recall = dict[str, dict[str, float]]
"""{language: {`image_retrieval_recall@1`: ..., ...}}"""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step, as reported to the callback and the metrics file."""

    step: int
    steps: int
    epoch: int
    loss: float
    scale: float
    lr: float
    pairs_per_second: float


@dataclass(slots=True)
class TrainResult:
    """Heads in evaluation mode, and how they came about."""

    heads: StarterHeads
    steps: list[Step] = field(default_factory=list)
    validation: list[tuple[int, Recall]] = field(default_factory=list)
    """(epochs done, recall); the first entry is before training."""
    kept_epoch: int = 0


@dataclass(slots=True)
class State:
    """All that a run consists of between two epochs."""

    heads: StarterHeads
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    average: MovingAverage | None
    result: TrainResult
    epoch: int = 0
    best: tuple[tuple[float, float], dict[str, Tensor]] | None = None


class Memory(Protocol):
    """Keeps a state, see `models.training.starter.memory`."""

    def load(self, state: State) -> bool:
        """Fill `state` with what was kept; False where there is nothing."""
        ...

    def save(self, state: State) -> None: ...


def train(
    heads: StarterHeads,
    pairs: Pairs,
    config: TrainConfig,
    *,
    validation: Pairs | None = None,
    rehearsal: Rehearsal | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_validation: Callable[[int, Recall], None] | None = None,
    memory: Memory | None = None,
    loss: Callable[..., Tensor] = info_nce,
    slow: Sequence[nn.Parameter] = (),
    slow_rate: float = 1.0,
) -> TrainResult:
    """Train `heads` in place.

    Args:
        heads: fresh or trained before.
        pairs: what to learn.
        config: see `TrainConfig`; interpolation is the caller's.
        validation: measured before, and after every epoch.
        rehearsal: source of pseudo-pairs; None rehearses nothing, whatever the config says.
        on_step: called after each optimiser step.
        on_validation: called after each measurement, with the steps taken.
        memory: where the state is kept after each epoch, and continued from.
        loss: the contrastive loss; called as `info_nce` is.
        slow: parameters of the heads that were trained before, on more than there is here.
        slow_rate: the share of the learning rate they move at, without weight decay.

    Raises:
        TrainingError: `loss-not-finite`; the state of the last epoch is kept.
    """
    torch.manual_seed(config.seed)  # dropout draws from the global generator
    device = heads.device
    generator = torch.Generator().manual_seed(config.seed)
    batches = _Batches(pairs, config, rehearsal, generator)
    per_epoch = batches.per_epoch
    steps = config.epochs * per_epoch
    optimiser = _optimiser(heads, config, slow, slow_rate)
    average = MovingAverage(heads.parameters(), config.ema) if config.ema else None
    result = TrainResult(heads)
    state = State(heads, optimiser, generator, average, result)
    if memory is not None and memory.load(state):
        pass
    elif validation is not None:
        result.validation.append((0, measure(heads, validation)))
        if on_validation is not None:
            on_validation(0, result.validation[0][1])
    step = state.epoch * per_epoch
    while state.epoch < config.epochs and not _patience_ended(result, config):
        epoch = state.epoch + 1
        heads.train()
        for image_BF, caption_KBS, group_B, picture_B in batches:
            started = time.perf_counter()
            group_B = group_B.to(device)
            for parameters in optimiser.param_groups:
                parameters["lr"] = parameters["share"] * learning_rate(step, steps, config)
            image_BD, scale = heads.embed_images(image_BF.to(device)), heads.scale()
            each = [
                loss(
                    image_BD,
                    heads.embed_texts(caption_BS.to(device)),
                    scale,
                    group_B=group_B,
                    label_smoothing=config.label_smoothing,
                )
                for caption_BS in caption_KBS
            ]
            value = torch.stack(each).mean()
            if not value.isfinite():
                named = [pairs.keys[at] if pairs.keys else str(at) for at in picture_B.tolist()]
                raise not_finite(step + 1, named)
            optimiser.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if average is not None:
                average.follow()
            step += 1
            done = Step(
                step=step,
                steps=steps,
                epoch=epoch,
                loss=float(value.detach()),
                scale=float(heads.scale().detach()),
                lr=optimiser.param_groups[0]["lr"],
                pairs_per_second=len(image_BF) / (time.perf_counter() - started),
            )
            result.steps.append(done)
            if on_step is not None:
                on_step(done)
        if validation is not None:
            recall = measure(heads, validation)
            result.validation.append((epoch, recall))
            if on_validation is not None:
                on_validation(step, recall)
            found = score(recall)
            if config.keep == "best" and (state.best is None or found > state.best[0]):
                state.best = (found, copy.deepcopy(heads.state_dict()))
                result.kept_epoch = epoch
        state.epoch = epoch
        if memory is not None:
            memory.save(state)
    if state.best is not None:
        heads.load_state_dict(state.best[1])
    else:
        result.kept_epoch = state.epoch
        if average is not None:
            average.settle()
    heads.eval()
    return result


def _patience_ended(result: TrainResult, config: TrainConfig) -> bool:
    """Whether the last epochs brought no better R@1 than the best before them."""
    if not config.patience or len(result.validation) <= config.patience:
        return False
    first = [first_recall(recall) for _, recall in result.validation]
    return max(first[-config.patience :]) <= max(first[: -config.patience])


class _Batches:
    """One epoch of batches at a time: main, extra and class pictures, rehearsed concepts."""

    def __init__(
        self,
        pairs: Pairs,
        config: TrainConfig,
        rehearsal: Rehearsal | None,
        generator: torch.Generator,
    ) -> None:
        self._pairs = pairs
        self._rehearsal = rehearsal
        self._generator = generator
        self._captions = config.captions
        by_kind = {kind: (pairs.kind_N == kind).nonzero()[:, 0] for kind in Kind}
        # the first kind that has pictures is what epochs go over; the others are drawn from
        main = next(kind for kind in Kind if len(by_kind[kind]))
        self._main_N = by_kind[main]
        shares = {Kind.EXTRA: config.extra_share, Kind.CLASS: config.class_share}
        self._drawn = [
            (by_kind[kind], round(config.batch_size * share))
            for kind, share in shares.items()
            if kind is not main and len(by_kind[kind])
        ]
        self._rehearsed = round(config.batch_size * config.concept_share) if rehearsal else 0
        rest = config.batch_size - self._rehearsed - sum(count for _, count in self._drawn)
        self._size = min(max(2, rest), len(self._main_N))
        self.per_epoch = len(self._main_N) // self._size

    def __iter__(self) -> Iterator[tuple[Tensor, list[Tensor], Tensor, Tensor]]:
        """(image features [B, F], K times caption features [B, S], group [B], pictures)"""
        pairs, generator = self._pairs, self._generator
        order_N = self._main_N[torch.randperm(len(self._main_N), generator=generator)]
        for at in range(self.per_epoch):
            picture_B = order_N[at * self._size : (at + 1) * self._size]
            for pool_N, count in self._drawn:
                drawn = torch.randint(len(pool_N), (count,), generator=generator)
                picture_B = torch.cat([picture_B, pool_N[drawn]])
            image_BF = pairs.image_NF[picture_B]
            caption_KBS = [pairs.draw_captions(picture_B, generator) for _ in range(self._captions)]
            group_B = pairs.group_N[picture_B]
            if self._rehearsal is not None and self._rehearsed:
                pseudo_BF, name_BS, concept_B = self._rehearsal.draw(self._rehearsed, generator)
                image_BF = torch.cat([image_BF, pseudo_BF])
                caption_KBS = [torch.cat([caption_BS, name_BS]) for caption_BS in caption_KBS]
                group_B = torch.cat([group_B, concept_B + int(pairs.group_N.max()) + 1])
            yield image_BF, caption_KBS, group_B, picture_B


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Linear warm-up over the first share of the steps, then half a cosine to zero.

    Example:
        >>> config = TrainConfig(lr=1.0, warmup=0.5)
        >>> [round(learning_rate(step, 4, config), 2) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    return schedule.learning_rate(step, steps=steps, peak=config.lr, warmup=config.warmup)


@torch.inference_mode()
def measure(heads: StarterHeads, pairs: Pairs) -> Recall:
    """Recall@1/5/10 both ways, for each language of the captions."""
    heads.eval()
    image_ND = heads.embed_images(pairs.image_NF.to(heads.device)).cpu().numpy()
    result = {}
    for language in sorted(pairs.languages):
        caption_MS, owners = pairs.of_language(language)
        kept = sorted(set(owners))
        position = {owner: at for at, owner in enumerate(kept)}
        text_MD = heads.embed_texts(caption_MS.to(heads.device)).cpu().numpy()
        result[language] = retrieval_recall(
            image_ND[kept], text_MD, [position[owner] for owner in owners]
        )
    return result


def first_recall(recall: Recall) -> float:
    """Mean recall@1 over both ways and all languages."""
    return mean(
        value
        for metrics in recall.values()
        for name, value in metrics.items()
        if name.endswith("@1")
    )


def _optimiser(
    heads: nn.Module, config: TrainConfig, slow: Sequence[nn.Parameter], slow_rate: float
) -> torch.optim.AdamW:
    set_apart = {id(p) for p in slow}
    own = [p for p in heads.parameters() if p.requires_grad and id(p) not in set_apart]
    groups = [
        {"params": [p for p in own if p.ndim > 1], "weight_decay": config.weight_decay, "share": 1},
        {"params": [p for p in own if p.ndim <= 1], "weight_decay": 0.0, "share": 1},
        {"params": list(slow), "weight_decay": 0.0, "share": slow_rate},
    ]
    # CLIP's second moment: at 0.999 it lags behind the fast growth of the logit scale
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=(0.9, 0.98))
