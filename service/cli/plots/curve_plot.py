"""Draw what was measured of an index's ANN structures: recall against queries per second, as PNG.

Numbers come from the manifest (`indexer.format.entries`); nothing is measured here. matplotlib
comes with the extra `plots`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.errors import InputError, StoreError
from service.cli.plots.reliability_plot import require_matplotlib


def draw_curves(structures: Sequence[Mapping[str, Any]], out: Path) -> None:
    """One panel per structure: every measured point, the Pareto front, the point in use.

    Args:
        structures: `IndexInfo.structures`, at least one.
        out: the PNG; replaced.

    Raises:
        InputError: no matplotlib, or nothing was measured.
        StoreError: `out` cannot be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    if not structures:
        raise InputError(
            "the index has no ANN structure to plot",
            hint="`diptych index optimize` makes one where it pays",
        )
    figure = Figure(figsize=(6.5 * len(structures), 4.8), layout="constrained")
    panels = figure.subplots(1, len(structures), squeeze=False)[0]
    for axis, one in zip(panels, structures, strict=True):
        points = one["curve"]
        axis.scatter(
            [point["recall"] for point in points],
            [1e3 / point["latency_ms"] for point in points],
            color="0.7", s=14, label="measured",
        )  # fmt: skip
        front = pareto(points)
        axis.plot(
            [point["recall"] for point in front],
            [1e3 / point["latency_ms"] for point in front],
            "-o", markersize=4, label="best of them",
        )  # fmt: skip
        used = one["operating"]
        axis.plot(
            used["recall"], 1e3 / used["latency_ms"], "*", markersize=15, color="C3",
            label=f"in use: effort {used['effort']}, refine {used['refine']}",
        )  # fmt: skip
        axis.axvline(one["floor"], color="0.4", linewidth=0.8, linestyle="--")
        axis.set_yscale("log")
        axis.set_xlabel(f"recall@10 of {used['kind']} asking for {one['target']}")
        axis.set_ylabel("queries per second, one thread")
        axis.set_title(
            f"{one['recipe']}, {one['rows']:,} rows, {used['bytes_per_vector']:.0f} bytes each",
            fontsize="medium",
        )
        axis.legend(loc="lower left", fontsize="small")
    try:
        figure.savefig(out, format="png", dpi=120)
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error.strerror or error}") from error


def pareto(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The points that no other beats in both recall and latency, by rising recall."""
    front: list[Mapping[str, Any]] = []
    for point in sorted(points, key=lambda one: (-one["recall"], one["latency_ms"])):
        if not front or point["latency_ms"] < front[-1]["latency_ms"]:
            front.append(point)
    return front[::-1]
