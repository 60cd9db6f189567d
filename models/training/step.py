"""One optimiser step of one rank: a batch in, loss and gradient norm out; called by the loop.

Knows batches, not where they come from, and no schedule, files or console. Batches larger than
memory go through in pieces with the loss and the gradients of the full batch: Gao et al. 2021,
"Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup". Plain gradient
accumulation is no substitute: it compares each pair with its own micro-batch only.

Shapes: B pairs (of this rank), b of one piece, K captions a pair, D embedding; X is whatever the
pair's towers take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from models.devices import torch_dtype
from models.training.config import TrainConfig
from models.training.distributed import AcrossRanks, World, average_gradients
from models.training.losses import Objective
from models.training.pair import Batch, TrainablePair

Chunk: TypeAlias = tuple[Tensor, Tensor, Tensor | None]
"""(images [b, ...], captions [b * K, ...], disturbed captions [b * N, ...])"""


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
        self._resting = pair.resting()
        self._parameters = list(pair.learning().values())
        self.scaler = torch.amp.GradScaler(
            world.device.type, enabled=config.precision == "fp16" and world.device.type == "cuda"
        )

    def __call__(self, batch: Batch, rate: float) -> Outcome:
        """Move the weights once, unless the loss or the gradients are not finite."""
        self._pair.train_mode()
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
            image_BD, text_MD, hard_HD = (
                next(learning, None) if rest is None else rest for rest in still
            )
            assert image_BD is not None
            assert text_MD is not None
            each = len(text_MD) // len(image_BD)
            values = [
                self._across(
                    image_BD, text_MD[at::each], group_B=_group_of(group_B, at), hard_HD=hard_HD
                )
                for at in range(each)
            ]
            value: Tensor = values[0] if each == 1 else torch.stack(values).mean()
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
        size = self._config.micro_batch or len(batch.image_BX)
        images = self._pieces(batch.image_BX, size)
        texts = self._pieces(batch.text_MX, size * (len(batch.text_MX) // len(batch.image_BX)))
        if batch.hard_HX is None:
            return [(image, text, None) for image, text in zip(images, texts, strict=True)]
        hard = self._pieces(batch.hard_HX, size * (len(batch.hard_HX) // len(batch.image_BX)))
        return list(zip(images, texts, hard, strict=True))

    def _pieces(self, whole: Tensor, size: int) -> tuple[Tensor, ...]:
        return torch.split(whole.to(self._world.device, non_blocking=True), size)

    def _towers(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """What embeds each part of a chunk."""
        return self._pair.image_rows, self._pair.text_rows, self._pair.text_rows

    def _still(self, chunks: Sequence[Chunk]) -> tuple[Tensor | None, ...]:
        """Rows of towers of which nothing learns: embedded once, without a graph."""
        resting = ("image" in self._resting, "text" in self._resting, "text" in self._resting)
        found: list[Tensor | None] = []
        with torch.no_grad(), self._autocast():
            for at, (rows, rests) in enumerate(zip(self._towers(), resting, strict=True)):
                parts = [part for chunk in chunks if (part := chunk[at]) is not None]
                found.append(torch.cat([rows(part) for part in parts]) if rests and parts else None)
        torch.clear_autocast_cache()
        return tuple(found)

    def _autocast(self) -> AbstractContextManager[None]:
        precision = self._config.precision
        return torch.autocast(
            self._world.device.type,
            dtype=torch_dtype(precision) if precision != "fp32" else torch.bfloat16,
            enabled=precision != "fp32",
        )

    def _mean_loss(self, value: Tensor) -> float:
        if self._world.size > 1:
            value = value.clone()
            torch.distributed.all_reduce(value)
            value /= self._world.size
        return float(value)


def _group_of(group_B: Tensor, caption: int) -> Tensor:
    """A batch's groups where one of the captions of each picture is looked at."""
    if group_B.ndim == 1:
        return group_B
    return torch.cat([group_B[:, [0, 1 + caption]], group_B[:, 1:]], dim=1)


def make_optimiser(pair: TrainablePair, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that learn, one group per rate and decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    shares = pair.shares(config)
    for name, parameter in pair.learning().items():
        decay = config.weight_decay if pair.decays(name, parameter) else 0.0
        groups.setdefault((shares[name], decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "share": share}
            for (share, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """The rate of the coming step; each group takes its share of it."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["share"]


def optimiser_tensors(optimiser: torch.optim.Optimizer, pair: TrainablePair) -> dict[str, Tensor]:
    """The optimiser's state as tensors: `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME`."""
    return {
        f"{kind}/{name}": value
        for name, parameter in pair.learning().items()
        for kind, value in optimiser.state[parameter].items()
    }


def load_optimiser(
    optimiser: torch.optim.Optimizer, pair: TrainablePair, tensors: Mapping[str, Tensor]
) -> None:
    """Inverse of `optimiser_tensors`; a parameter without a state never had a gradient."""
    for name, parameter in pair.learning().items():
        if f"step/{name}" not in tensors:
            continue
        state: dict[str, Any] = {}
        for kind in ("exp_avg", "exp_avg_sq"):
            state[kind] = tensors[f"{kind}/{name}"].to(parameter.device, parameter.dtype)
        state["step"] = tensors[f"step/{name}"].to(parameter.device, copy=True)
        optimiser.state[parameter] = state


Piece = TypeVar("Piece")


def cached_backward(
    chunks: Sequence[Piece],
    encode: Callable[[Piece], tuple[Tensor, ...]],
    loss: Callable[..., Tensor],
    *,
    module: nn.Module | None = None,
    objective: nn.Module | None = None,
    loss_scale: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Add the full batch's gradients to `.grad` -> the full batch's loss, detached.

    1. Embed every chunk without a graph, remembering the state of the random generators.
    2. Compute the loss on all embeddings at once, and its gradient for each of them.
    3. Embed every chunk again, with a graph and the same random numbers, and send the gradient
       of its embeddings back through it.

    So no more than one chunk's activations exist at a time; the price is one further forward pass.
    It is exact for towers whose output for a pair does not depend on the other pairs. BatchNorm in
    training mode normalises by its chunk; its running statistics count each chunk once.

    Args:
        chunks: the batch in pieces, whatever `encode` takes.
        encode: a piece -> its embeddings, one or more tensors [b, ...], always as many tensors.
            It opens autocast itself where that is wanted.
        loss: the tensors of all pieces, each concatenated -> a scalar.
        module: what `encode` calls. Needed where it holds BatchNorm, and where it is DDP: then the
            ranks' gradients are averaged once, with the last piece.
        objective: parameters that `loss` alone uses. Where `module` is DDP and holds them too,
            they must be named here, so that they are averaged with the others.
        loss_scale: what GradScaler.scale does, for fp16.
    """
    devices = sorted(set(_cuda_devices(module)))
    states, pieces = [], []
    with torch.no_grad(), _frozen_statistics(module):
        for chunk in chunks:
            states.append(_random_state(devices))
            pieces.append(encode(chunk))
    # casts that autocast remembered without a graph must not serve the passes with one
    torch.clear_autocast_cache()
    whole = [torch.cat(parts).detach().requires_grad_() for parts in zip(*pieces, strict=True)]
    sizes = [[len(part) for part in parts] for parts in zip(*pieces, strict=True)]
    del pieces

    distributed = module if isinstance(module, DistributedDataParallel) else None
    with distributed.no_sync() if distributed else nullcontext():
        value = loss(*whole)
        scaled = loss_scale(value) if loss_scale else value
        scaled.backward()  # type: ignore[no-untyped-call]
    gradients = [
        torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in whole
    ]
    pieces_of = [torch.split(tensor, size) for tensor, size in zip(gradients, sizes, strict=True)]

    after = _random_state(devices)
    for number, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
        _restore(state, devices)
        last = number == len(chunks) - 1
        with _sync_only_if(last, distributed):
            outputs = list(encode(chunk))
            sent = [parts[number] for parts in pieces_of]
            if last and distributed is not None and objective is not None:
                # makes DDP see these parameters in the one backward pass that it averages
                outputs.append(torch.stack([p.sum() * 0 for p in objective.parameters()]).sum())
                sent.append(torch.ones_like(outputs[-1]))
            # a locked tower's embeddings lead nowhere
            open_ended = [
                (output, gradient)
                for output, gradient in zip(outputs, sent, strict=True)
                if output.requires_grad
            ]
            if open_ended:
                torch.autograd.backward(
                    [output for output, _ in open_ended], [gradient for _, gradient in open_ended]
                )
    _restore(after, devices)
    return value.detach()


def _sync_only_if(
    last: bool, distributed: DistributedDataParallel | None
) -> AbstractContextManager[None]:
    if last or distributed is None:
        return nullcontext()
    return distributed.no_sync()


@contextmanager
def _frozen_statistics(module: nn.Module | None) -> Iterator[None]:
    """BatchNorm's running statistics stay as they are: the second pass is the one that counts."""
    norms = [
        part
        for part in (module.modules() if module is not None else ())
        if isinstance(part, _BatchNorm) and part.training and part.track_running_stats
    ]
    saved = [
        {name: value.clone() for name, value in norm.named_buffers(recurse=False)} for norm in norms
    ]
    try:
        yield
    finally:
        for norm, values in zip(norms, saved, strict=True):
            for name, value in values.items():
                getattr(norm, name).copy_(value)


def _cuda_devices(module: nn.Module | None) -> Iterator[int]:
    if module is None:
        if torch.cuda.is_available():
            yield torch.cuda.current_device()
        return
    for parameter in module.parameters():
        if parameter.device.type == "cuda":
            yield parameter.device.index


def _random_state(devices: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices]


def _restore(state: tuple[Tensor, list[Tensor]], devices: Sequence[int]) -> None:
    torch.set_rng_state(state[0])
    for device, value in zip(devices, state[1], strict=True):
        torch.cuda.set_rng_state(value, device)
