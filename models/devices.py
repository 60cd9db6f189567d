"""Says where, in which arithmetic and on how many threads a model runs; asked by encoder pairs.

`auto` becomes something definite here. It knows torch's view of the machine, nothing of models.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threadpoolctl import ThreadpoolController

from models.errors import ModelError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_ACCELERATORS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")
"""Where Linux shows NVIDIA's and AMD's devices, and WSL either's."""


def torch_dtype(precision: str) -> torch.dtype:
    """`fp32`, `bf16` or `fp16` as torch has it."""
    import torch

    names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return names[precision]


def import_torch(what: str) -> Any:
    """The module, or what to install.

    Args:
        what: is asked for, for the message: "this model".

    Raises:
        ModelError: code `not-installed`.
    """
    try:
        import torch
    except ImportError as error:
        raise ModelError(
            f"{what} needs torch, which is not installed",
            code="not-installed",
            hint='pip install "diptych[clip]"',
        ) from error
    return torch


def resolve_kind(name: str = "auto") -> str:
    """The kind of device that `resolve_device` would take, without torch where that can be seen.

    Returns:
        `cpu`, `cuda` or `mps`.

    Raises:
        ModelError: as there; also where a GPU is named and torch is not installed.
    """
    if name == "cpu" or (name == "auto" and not _may_have_accelerator()):
        return "cpu"
    return resolve_device(name).type


def _may_have_accelerator() -> bool:
    if find_spec("torch") is None:
        return False
    linux = sys.platform.startswith("linux")
    return not linux or any(Path(path).exists() for path in _ACCELERATORS)


def resolve_device(name: str = "auto") -> torch.device:
    """`auto` takes CUDA, then Apple's MPS, then the CPU; a named device must exist.

    Raises:
        ModelError: an unknown device, or one this machine does not have.
    """
    kind, _, ordinal = name.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (ordinal and not ordinal.isdecimal()):
        raise ModelError(f"unknown device {name!r}", hint="use auto, cpu, cuda, cuda:N or mps")
    import_torch(f"device {name!r}")
    import torch

    settle_threads()  # chosen, perhaps, before there was a torch to tell
    if kind == "auto" and not ordinal:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if kind == "auto":
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
        import torch

        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and _cpu_gains_from_bf16():
        return "bf16"
    return "fp32"


def set_threads(threads: int | None) -> None:
    """Limit the CPU threads of models, for the whole process; None leaves them all cores.

    Raises:
        ModelError: fewer than one.
    """
    if threads is None:
        return
    if threads < 1:
        raise ModelError(f"{threads} threads; at least 1 is needed")
    _chosen.count, _chosen.here.count = threads, None
    settle_threads()


def cpu_threads() -> int:
    """How many threads a model may compute on: what was chosen, else one for each core it has."""
    if _chosen.count is not None:
        return _chosen.count
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    torch = sys.modules.get("torch")
    if torch is None or _chosen.count is None:
        return  # whoever imports torch calls this before computing
    if getattr(_chosen.here, "count", None) != _chosen.count:
        torch.set_num_threads(_chosen.count)
        _chosen.here.count = _chosen.count


@contextmanager
def threads_here(count: int) -> Iterator[None]:
    """numpy's products, and what else was loaded by then, compute on so many threads inside.

    One, for products so small that waking a helper costs more than it does, and its busy waiting
    afterwards takes a core from whoever needs it. Some 15 us.
    """
    with _pools().limit(limits=count):
        yield


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()


def _cpu_gains_from_bf16() -> bool:
    import torch

    return bool(torch.cpu.get_capabilities().get("amx_bf16"))
