"""PNGs that commands draw with `--plot`; the figures drawn are those the commands were given.

Nothing is measured here. matplotlib comes with the extra `plots`; `models.figures` loads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import InputError, StoreError
from models.figures import figure_class

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from models.evaluation.captions.quality import LanguageQuality
    from models.labels.calibration import Calibration

_BINS = 15


def require_matplotlib() -> type[Figure]:
    """Say in one line what is missing, before any work is done.

    Raises:
        InputError: matplotlib is not installed.
    """
    found = figure_class()
    if found is None:
        raise InputError(
            "plots need matplotlib, which is not installed",
            hint="pip install 'diptych[plots]', or leave out --plot",
        )
    return found


@contextmanager
def _figure(out: Path, width: float, height: float, dpi: int = 120) -> Iterator[Figure]:
    """A figure to draw on, `width` x `height` inches, which then replaces `out`.

    Raises:
        InputError: no matplotlib.
        StoreError: `out` cannot be written.
    """
    figure = require_matplotlib()(figsize=(width, height), dpi=dpi, layout="constrained")
    yield figure
    try:
        figure.savefig(out, format="png")
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error.strerror or error}") from error


def draw_build(performance: Mapping[str, Any], out: Path) -> None:
    """Pictures a second over the time of a build, and what it waited for.

    Args:
        performance: `BuildReport.performance`.

    Raises:
        InputError, StoreError: see `_figure`.
    """
    points = performance["timeline"]
    edges, rates = [points[0][0]], []
    for (start, before), (end, after) in pairwise(points):
        if end > start:
            edges.append(end)
            rates.append((after - before) / (end - start))
    shares = ", ".join(f"{name} {one['share']:.0%}" for name, one in performance["stages"].items())
    with _figure(out, 7, 3.2, dpi=110) as figure:
        axis = figure.subplots()
        if rates:
            axis.stairs(rates, edges, fill=True, alpha=0.5)
            axis.axhline(performance["images_per_s"], color="0.3", linewidth=0.8, linestyle="--")
        axis.set_ylim(bottom=0)
        axis.set_xlabel("seconds")
        axis.set_ylabel("pictures per second")
        axis.set_title(
            f"{performance['images_embedded']:,} pictures, "
            f"{performance['images_per_s']:.1f} a second; {shares}",
            fontsize="medium",
        )


def draw_curves(structures: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Recall against queries per second, a panel for each ANN structure of an index: every measured
    point, the Pareto front, the point in use.

    Args:
        structures: `IndexInfo.structures`.

    Raises:
        InputError: nothing was measured, or no matplotlib.
        StoreError: `out` cannot be written.
    """
    require_matplotlib()
    if not structures:
        raise InputError(
            "the index has no ANN structure to plot",
            hint="`diptych index optimize` makes one where it pays",
        )
    with _figure(out, 6.5 * len(structures), 4.8) as figure:
        panels = figure.subplots(1, len(structures), squeeze=False)[0]
        for axis, one in zip(panels, structures, strict=True):
            _draw_curve(axis, one)


def _draw_curve(axis: Any, one: Mapping[str, Any]) -> None:
    front, used = pareto(one["curve"]), one["operating"]
    for points, style in (
        (one["curve"], {"marker": "o", "markersize": 4, "linestyle": "", "color": "0.7",
                        "label": "measured"}),
        (front, {"marker": "o", "markersize": 4, "color": "C0", "label": "best of them"}),
        ([used], {"marker": "*", "markersize": 15, "linestyle": "", "color": "C3",
                  "label": f"in use: effort {used['effort']}, refine {used['refine']}"}),
    ):  # fmt: skip
        axis.plot(
            [point["recall"] for point in points],
            [1e3 / point["latency_ms"] for point in points],
            **style,
        )
    axis.axvline(one["floor"], color="0.4", linewidth=0.8, linestyle="--")
    axis.set_yscale("log")
    axis.set_xlabel(f"recall@10 of {used['kind']} asking for {one['target']}")
    axis.set_ylabel("queries per second, one thread")
    axis.set_title(
        f"{one['recipe']}, {one['rows']:,} rows, {used['bytes_per_vector']:.0f} bytes each",
        fontsize="medium",
    )
    axis.legend(loc="lower left", fontsize="small")


def pareto(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The points that no other beats in both recall and latency, by rising recall."""
    front: list[Mapping[str, Any]] = []
    for point in sorted(points, key=lambda one: (-one["recall"], one["latency_ms"])):
        if not front or point["latency_ms"] < front[-1]["latency_ms"]:
            front.append(point)
    return front[::-1]


def draw_reliabilities(found: Sequence[tuple[str, Calibration]], out: Path) -> None:
    """How sure a classifier was against how often it was right (Guo et al. 2017, arXiv:1706.04599,
    figure 1), before calibration beside after; each (name, calibration) a row of its own.

    Raises:
        InputError, StoreError: see `_figure`.
    """
    with _figure(out, 8, 4 * len(found)) as figure:
        rows = figure.subfigures(len(found), 1, squeeze=False)[:, 0]
        for row, (name, one) in zip(rows, found, strict=True):
            _draw_reliability(row, name, one)


def _draw_reliability(row: Any, name: str, found: Calibration) -> None:
    from models.metrics import reliability

    axes = row.subplots(1, 2, sharey=True)
    offset = "" if found.offset is None else f", offset {found.offset:.2f}"
    sides = (
        ("before", found.before_B, found.ece_before),
        (f"after, temperature {found.temperature:.2f}{offset}", found.chance_B, found.ece_after),
    )
    for axis, (title, confidence_B, ece) in zip(axes, sides, strict=True):
        bins = reliability(confidence_B, found.correct_B, _BINS)
        middles = [(at + 0.5) / _BINS for at in range(_BINS)]
        axis.bar(middles, [right for _, _, right in bins], width=1 / _BINS, edgecolor="white")
        axis.plot(
            [sure for count, sure, _ in bins if count],
            [right for count, _, right in bins if count],
            marker="o",
            color="black",
            linewidth=1,
        )
        axis.plot([0, 1], [0, 1], linestyle="--", color="grey", linewidth=1)
        axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", title=f"{title}: ECE {ece:.3f}")
    axes[0].set_ylabel("accuracy")
    whose = f"{name}: " if name else ""
    row.suptitle(f"{whose}{found.pictures} pictures, {found.accuracy:.1%} right, held out")


def draw_scores(languages: Mapping[str, LanguageQuality], out: Path) -> None:
    """How captions score beside their own pictures and beside others: a histogram a language.

    Raises:
        InputError, StoreError: see `_figure`.
    """
    from models.evaluation.captions.quality import EDGES

    panels = max(1, len(languages))
    with _figure(out, 6, 3 * panels) as figure:
        axes = figure.subplots(panels, 1, squeeze=False)[:, 0]
        for axis, (language, found) in zip(axes, languages.items(), strict=False):
            for counts, name in (
                (found.histogram, "own picture"),
                (found.other_histogram, "another picture"),
            ):
                axis.stairs(counts, EDGES, fill=True, alpha=0.5, label=name)
            if found.floor is not None and EDGES[0] < found.floor < EDGES[-1]:
                axis.axvline(found.floor, color="black", linestyle="--", linewidth=1)
            title = f"{language}: {found.captions} captions"
            axis.set(xlabel="cosine", ylabel="captions", title=title)
            axis.legend()
