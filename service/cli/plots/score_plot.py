"""How captions score beside their own pictures and beside others, as a PNG of histograms."""

from __future__ import annotations

from pathlib import Path

from models.errors import InputError
from models.evaluation.captions.quality import EDGES, LanguageQuality
from service.cli.plots.reliability_plot import require_matplotlib


def draw_scores(languages: dict[str, LanguageQuality], out: Path) -> None:
    """One diagram a language, replacing `out`.

    Raises:
        InputError: no matplotlib, or `out` cannot be written.
    """
    require_matplotlib()
    # the object interface: pyplot keeps figures in a global and may want a display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3 * max(1, len(languages))), dpi=120, layout="constrained")
    axes = figure.subplots(max(1, len(languages)), 1, squeeze=False)[:, 0]
    for axis, (language, found) in zip(axes, languages.items(), strict=False):
        for counts, name in (
            (found.histogram, "own picture"),
            (found.other_histogram, "another picture"),
        ):
            axis.stairs(counts, EDGES, fill=True, alpha=0.5, label=name)
        if found.floor is not None and EDGES[0] < found.floor < EDGES[-1]:
            axis.axvline(found.floor, color="black", linestyle="--", linewidth=1)
        axis.set(xlabel="cosine", ylabel="captions", title=f"{language}: {found.captions} captions")
        axis.legend()
    try:
        figure.savefig(out, format="png")
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}") from error
