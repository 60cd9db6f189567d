"""A reliability diagram as PNG: how sure a classifier was against how often it was right.

Guo et al. 2017 (arXiv:1706.04599), figure 1. matplotlib comes with the extra `plots`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.errors import InputError
from models.labels.calibration import Calibration
from models.metrics import reliability

_BINS = 15


def require_matplotlib() -> None:
    """Say in one line what is missing, before any work is done.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib as _  # noqa: F401
    except ImportError as error:
        raise InputError(
            "plots need matplotlib, which is not installed",
            hint="pip install 'diptych[plots]', or leave out --plot",
        ) from error


def draw_reliability(found: Calibration, out: Path) -> None:
    """Write the diagram, before beside after, replacing `out`.

    Raises:
        InputError: no matplotlib, or `out` cannot be written.
    """
    draw_reliabilities([("", found)], out)


def draw_reliabilities(found: Sequence[tuple[str, Calibration]], out: Path) -> None:
    """The same for several, each (name, calibration) a row of its own.

    Raises:
        InputError: no matplotlib, or `out` cannot be written.
    """
    require_matplotlib()
    # the object interface: pyplot keeps figures in a global and may want a display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4 * len(found)), dpi=120, layout="constrained")
    rows = figure.subfigures(len(found), 1, squeeze=False)[:, 0]
    for row, (name, one) in zip(rows, found, strict=True):
        _draw_row(row, name, one)
    try:
        figure.savefig(out, format="png")
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}") from error


def _draw_row(row: Any, name: str, found: Calibration) -> None:
    axes = row.subplots(1, 2, sharey=True)
    sides = (
        ("before", found.before_B, found.ece_before),
        (f"after, temperature {found.temperature:.2f}", found.chance_B, found.ece_after),
    )
    for axis, (title, confidence_B, ece) in zip(axes, sides, strict=True):
        rows = reliability(confidence_B, found.correct_B, _BINS)
        middles = [(at + 0.5) / _BINS for at in range(_BINS)]
        axis.bar(middles, [right for _, _, right in rows], width=1 / _BINS, edgecolor="white")
        axis.plot(
            [sure for count, sure, _ in rows if count],
            [right for count, _, right in rows if count],
            marker="o",
            color="black",
            linewidth=1,
        )
        axis.plot([0, 1], [0, 1], linestyle="--", color="grey", linewidth=1)
        axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", title=f"{title}: ECE {ece:.3f}")
    axes[0].set_ylabel("accuracy")
    whose = f"{name}: " if name else ""
    row.suptitle(f"{whose}{found.pictures} pictures, {found.accuracy:.1%} right, held out")
