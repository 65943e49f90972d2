"""Axes of matplotlib, imported at the first plot only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def import_pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Plots need matplotlib, which is not installed. Install it by "
            "`pip install sklearn_g2d[plot]`."
        ) from error
    return plt


def new_axes(ax: Axes | None, **figure: Any) -> tuple[Axes, Any]:
    plt = import_pyplot()
    if ax is None:
        _, ax = plt.subplots(**figure)
    return ax, ax.figure
