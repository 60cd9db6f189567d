"""Reads and sets environment variables, for everybody: no other file does. And lifts the limit of
open files, which shells set for the programs of another time.

Names we own start with `DIPTYCH_`; the others are conventions of the libraries underneath, read
here only where our behaviour depends on them, and set only to keep those libraries from reporting
home and from leaving files where nobody named a place.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

_MOST_FILES: Final = 65_536
_TRUE = frozenset({"1", "true", "yes", "on"})


def hub_offline() -> bool:
    """Whether the user forbade hub access (`HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`)."""
    return any(
        os.environ.get(name, "").strip().lower() in _TRUE
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def default_model() -> str:
    """`DIPTYCH_MODEL`: the model id used where a command names none; `starter` if unset."""
    return os.environ.get("DIPTYCH_MODEL", "").strip() or "starter"


def torchrun_place() -> tuple[int, int, int] | None:
    """(rank, local rank, world size) as `torchrun` sets them; None outside of it."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    if not all(os.environ.get(name, "").strip().isdecimal() for name in names):
        return None
    rank, local_rank, size = (int(os.environ[name]) for name in names)
    return rank, local_rank, size


def worker_environment() -> dict[str, str]:
    """What a process that reads strangers' bytes inherits: how to find libraries, no secrets."""
    names = (
        *("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ"),
        *("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"),  # where its bytecode may go
    )
    return {name: os.environ[name] for name in names if name in os.environ}


def forbid_telemetry() -> None:
    """Keep every library of this process from reporting home.

    ONNX Runtime (since 1.29) keeps a device id and a store of events under the home folder and
    sends them; the hub's client tells the hub what runs on this machine. Each reads its variable
    once, so `models` calls this before anything else of ours is imported.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def keep_caches_out() -> None:
    """Keep libraries from leaving caches in the home and the temporary folder; for a process of
    our own, such as the command line: another program that imports us may want them.

    What the user has set is left: it names a place. PyTorch's compiler, which is imported with
    torchvision and never used here, makes its cache folder at once unless it is given one that
    exists. Kernels that PyTorch and the CUDA driver compile for a card are kept in memory.
    """
    with suppress(FileNotFoundError):  # no temporary folder: said where one is needed
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir())
    os.environ.setdefault("USE_PYTORCH_KERNEL_CACHE", "0")
    os.environ.setdefault("CUDA_CACHE_DISABLE", "1")


@contextmanager
def caches_in(folder: str) -> Iterator[None]:
    """While inside, matplotlib and fontconfig keep their lists of fonts in `folder`, unless the
    user has named a place."""
    given = {name: os.environ.get(name) for name in ("MPLCONFIGDIR", "XDG_CACHE_HOME")}
    os.environ.update({name: folder for name, value in given.items() if value is None})
    try:
        yield
    finally:
        for name, value in given.items():
            if value is None:
                os.environ.pop(name, None)


def raise_file_limit() -> int:
    """Lift the process's limit of open files as far as it may go; returns what it is now."""
    try:
        import resource
    except ImportError:  # Windows has none
        return _MOST_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > _MOST_FILES:
        hard = _MOST_FILES
    if soft != resource.RLIM_INFINITY and soft < hard:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        )
        soft = hard
    return hard if soft == resource.RLIM_INFINITY else soft
