"""Says where, in which arithmetic and on how many threads a model runs; asked by encoder pairs.

`auto` becomes something definite here. It knows torch's view of the machine, nothing of models.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from threadpoolctl import ThreadpoolController

from models.errors import ModelError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str = "auto") -> torch.device:
    """`auto` takes CUDA, then Apple's MPS, then the CPU; a named device must exist.

    Raises:
        ModelError: an unknown device, or one this machine does not have.
    """
    kind, _, ordinal = name.partition(":")
    if kind == "auto" and not ordinal:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if kind not in ("cpu", "cuda", "mps") or (ordinal and not ordinal.isdecimal()):
        raise ModelError(f"unknown device {name!r}", hint="use auto, cpu, cuda, cuda:N or mps")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ModelError("this machine has no usable MPS device", hint="use --device auto")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(ordinal or 0) >= count:
            raise ModelError(
                f"device {name!r} is not usable; CUDA devices here: {count}",
                hint="use --device auto",
            )
    return torch.device(name)


def resolve_precision(name: str, device: torch.device) -> str:
    """`auto` takes the fastest arithmetic that keeps the ranking -> `fp32`, `bf16` or `fp16`.

    bf16 where the hardware multiplies it faster, because its range is that of fp32 and no
    activation can overflow; fp16 on older GPUs; fp32 elsewhere: on a CPU without AMX bf16 is slower
    (AVX512-BF16 alone took 27 ms for a product of 400 x 768 by 3072 where fp32 took 17), and MPS is
    not measured.

    Raises:
        ModelError: an unknown name.
    """
    if name not in PRECISIONS:
        raise ModelError(f"unknown precision {name!r}", hint=f"use one of {', '.join(PRECISIONS)}")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and _cpu_gains_from_bf16():
        return "bf16"
    return "fp32"


def set_threads(threads: int | None) -> None:
    """Limit torch's CPU threads, for the whole process; None leaves its default, all cores.

    Raises:
        ModelError: fewer than one.
    """
    if threads is None:
        return
    if threads < 1:
        raise ModelError(f"{threads} threads; at least 1 is needed")
    torch.set_num_threads(threads)
    _chosen.count = threads


class _Chosen:
    """What `set_threads` was last given, and what each thread has taken over."""

    def __init__(self) -> None:
        self.count: int | None = None
        self.here = threading.local()


_chosen = _Chosen()


def settle_threads() -> None:
    """Make what `set_threads` chose hold in this thread; call before torch computes.

    torch's setting reaches OpenMP only in the thread that made it. In any other, such as one that
    embeds for many callers, matrix products would go to all cores, whose helpers wait busily.
    """
    if _chosen.count is not None and getattr(_chosen.here, "count", None) != _chosen.count:
        torch.set_num_threads(_chosen.count)
        _chosen.here.count = _chosen.count


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenMP computes on this thread alone inside; some 15 us.

    For products so small that waking a helper costs more than it does, and its busy waiting
    afterwards takes a core from whoever needs it.
    """
    with _openmp().limit(limits=1):
        yield


@cache
def _openmp() -> ThreadpoolController:
    found: ThreadpoolController = ThreadpoolController().select(user_api="openmp")
    return found


def _cpu_gains_from_bf16() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))
