"""Batches larger than memory: the loss and the gradients of the full batch, a few pairs at a time.

Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup". Knows
no loss, model or optimiser. Plain gradient accumulation is no substitute: it compares each pair
with its own micro-batch only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

Chunk = TypeVar("Chunk")


def cached_backward(
    chunks: Sequence[Chunk],
    encode: Callable[[Chunk], tuple[Tensor, ...]],
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
