"""Loads matplotlib for those who draw: a training run's curves and the commands' `--plot`.

It comes with the extra `plots`. Only its object interface is used: pyplot keeps figures in a global
and may want a display.
"""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from models.environment import caches_in

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_class() -> type[Figure] | None:
    """matplotlib's `Figure`; None where matplotlib is not installed.

    Its list of fonts, which it makes as it is imported (0.1 s), is not left in the home folder.
    """
    with TemporaryDirectory(prefix="diptych-fonts-") as folder, caches_in(folder):
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return None
    return Figure
