"""Chooses the engine that runs a tower; asked by the registry and the starter, set by the CLI.

    auto    ONNX Runtime where it is installed, keeps the ranking and is faster; torch elsewhere
    torch   torch, the reference
    onnx    ONNX Runtime, or an error that says why not

Like the number of threads it is a choice of the whole process. Importing this imports no engine;
`onnxruntime` is the one place that does, because what it would report home is forbidden there.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Final

from models.errors import ModelError

BACKENDS: Final = ("auto", "torch", "onnx")
_PACKAGE: Final = "onnxruntime"

_preferred = "auto"


def prefer_backend(name: str) -> None:
    """Choose for every encoder loaded from now on.

    Raises:
        ModelError: an unknown name.
    """
    global _preferred
    _check(name)
    _preferred = name


def resolve_backend(name: str | None, *, device: str, precision: str, supported: bool) -> str:
    """What was asked for -> `torch` or `onnx`.

    Args:
        name: one of `BACKENDS`; None for what the process prefers.
        device: the kind of device the tower runs on, e.g. `cpu`.
        precision: as it was asked for; ONNX Runtime's CPU kernels are fp32.
        supported: whether the model's tower can be written as a graph at all.

    Raises:
        ModelError: an unknown name, or `onnx` where it cannot be.
    """
    name = _preferred if name is None else name
    _check(name)
    if name == "torch":
        return name
    why = None
    if not supported:
        why = "the onnx backend runs the starter pair's image tower; this model is another"
    elif device != "cpu":
        why = f"the onnx backend runs on the CPU, not on {device}"
    elif precision not in ("auto", "fp32"):
        why = f"the onnx backend computes in fp32, not in {precision}"
    elif not installed():
        if name == "onnx":
            raise not_installed()
        return "torch"
    if why is None:
        return "onnx"
    if name == "onnx":
        raise ModelError(why, code="backend-not-supported", hint="use --backend auto or torch")
    return "torch"


def installed() -> bool:
    """Whether ONNX Runtime is there."""
    return find_spec(_PACKAGE) is not None


def onnxruntime() -> Any:
    """The module, with its telemetry off.

    `models` sets the variable that keeps it from starting; a program that had imported
    ONNX Runtime before is not reached by that, and is told here.

    Raises:
        ModelError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise not_installed() from error
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def not_installed() -> ModelError:
    return ModelError(
        f"the onnx backend needs {_PACKAGE}",
        code="backend-not-installed",
        hint=f"pip install {_PACKAGE}, or use --backend torch",
    )


def _check(name: str) -> None:
    if name not in BACKENDS:
        raise ModelError(f"unknown backend {name!r}", hint=f"use one of {', '.join(BACKENDS)}")
