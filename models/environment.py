"""Reads environment variables, for everybody: no other file does.

Names we own start with `DIPTYCH_`; the others are conventions of the libraries underneath, read
here only where our behaviour depends on them.
"""

from __future__ import annotations

import os

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
    names = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")
    return {name: os.environ[name] for name in names if name in os.environ}
