"""Draw the throughput of a build over time as PNG.

Figures come from the build's report (`indexer.ingest.pace`); nothing is measured here. matplotlib
comes with the extra `plots`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from models.errors import StoreError
from service.cli.plots.reliability_plot import require_matplotlib


def draw_build(performance: Mapping[str, Any], out: Path) -> None:
    """Pictures a second over time, and what the build waited for.

    Args:
        performance: `BuildReport.performance`.
        out: the PNG; replaced.

    Raises:
        InputError: no matplotlib.
        StoreError: `out` cannot be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    points = performance["timeline"]
    edges, rates = [points[0][0]], []
    for (start, before), (end, after) in pairwise(points):
        if end > start:
            edges.append(end)
            rates.append((after - before) / (end - start))
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axis = figure.subplots()
    if rates:
        axis.stairs(rates, edges, fill=True, alpha=0.5)
        axis.axhline(performance["images_per_s"], color="0.3", linewidth=0.8, linestyle="--")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("seconds")
    axis.set_ylabel("pictures per second")
    shares = ", ".join(f"{name} {one['share']:.0%}" for name, one in performance["stages"].items())
    axis.set_title(
        f"{performance['images_embedded']:,} pictures, {performance['images_per_s']:.1f} a second; "
        f"{shares}",
        fontsize="medium",
    )
    try:
        figure.savefig(out, format="png", dpi=110)
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error.strerror or error}") from error
