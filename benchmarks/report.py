"""Tables and plots of benchmark results, the same for every benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd


def summarize(results: pd.DataFrame, figures: dict[str, str], by: str = "table") -> pd.DataFrame:
    """Mean figures by detector: over seeds, then over tables; best mean rank first.

    Parameters
    ----------
    results : DataFrame
        One row for every table, seed and detector, with a column "auc".
    figures : dict
        Columns to average, and the headings that they get.
    by : str
        Column in the place of "table".

    Returns
    -------
    DataFrame
        A row for every detector. "rank" is by AUC, 1 is best. "seeds" is the number of seeds, if
        detectors differ in it.
    """
    by_table = results.groupby([by, "detector"])[list(figures)].mean()
    ranks = by_table["auc"].unstack().rank(axis=1, ascending=False).mean()
    means = by_table.groupby("detector").mean().rename(columns=figures)
    means.insert(0, "rank", ranks)
    n_seeds = results.groupby("detector").seed.nunique()
    if n_seeds.nunique() > 1:
        means.insert(1, "seeds", n_seeds)
    return means.sort_values("rank")


def threads(args: argparse.Namespace) -> str:
    """Write the number of threads."""
    return "one thread" if args.threads == 1 else f"{args.threads} threads"


def on_cards(results: pd.DataFrame) -> str:
    """Name the GPUs, if there were any where the detectors ran."""
    cards = results.card.dropna().unique() if "card" in results else []
    return f" and a GPU ({', '.join(cards)})" if len(cards) else ""


def mark_best(means: pd.DataFrame, higher: list[str], lower: list[str]) -> pd.DataFrame:
    """Write figures in three digits, the best of these columns in bold; what is missing, as "-"."""

    def write(value: float) -> str:
        if pd.isna(value):
            return "-"
        return str(value) if isinstance(value, int) else f"{value:.3f}"

    written = means.map(write)
    for column in [*higher, *lower]:
        best = means[column].max() if column in higher else means[column].min()
        is_best = means[column].round(3) == round(best, 3)
        written.loc[is_best, column] = "**" + written.loc[is_best, column] + "**"
    return written


def write_markdown(
    path: Path, title: str, paragraphs: list[str], tables: list[pd.DataFrame]
) -> None:
    """Write a page: a heading, paragraphs, then tables."""
    parts = [f"# {title}", *paragraphs]
    parts += [table.to_markdown(floatfmt=".3f") for table in tables]
    path.write_text("\n\n".join(parts) + "\n")


def plot_by_detector(
    path: Path, results: pd.DataFrame, column: str, label: str, by: str = "table"
) -> None:
    """Save a picture of one figure: a dot for each table, a bar for the mean."""
    import matplotlib.pyplot as plt

    by_table = results.groupby(["detector", by])[column].mean().unstack()
    by_table = by_table.loc[by_table.mean(axis=1).sort_values().index]
    figure, ax = plt.subplots(figsize=(8, 0.4 * len(by_table) + 1), layout="constrained")
    ours = by_table.index.str.startswith(("G2D", "AVID", "PatchDetector"))
    ax.barh(by_table.index, by_table.mean(axis=1), color=["C0" if o else "0.75" for o in ours])
    for position, (_, values) in enumerate(by_table.iterrows()):
        ax.plot(values, [position] * len(values), ".", color="black", alpha=0.35, markersize=4)
    for position, mean in enumerate(by_table.mean(axis=1)):
        ax.text(0.01, position, f"{mean:.3f}", va="center")
    ax.set(xlabel=label, xlim=(0, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_curves(path: Path, panels: dict[str, pd.DataFrame], x_label: str, y_label: str) -> None:
    """Save pictures side by side, two in a row: a line for each column of a panel's table.

    Names that begin alike get one colour; those that end in "pixels" are dashed.
    """
    import matplotlib.pyplot as plt

    n_rows = -(-len(panels) // 2)
    figure, axes = plt.subplots(
        n_rows, 2, figsize=(11, 4 * n_rows), sharex=True, layout="constrained", squeeze=False
    )
    for ax, (title, curves) in zip(axes.flat, panels.items(), strict=False):
        families = list(dict.fromkeys(str(name).split()[0] for name in curves))
        for name, curve in curves.items():
            family = str(name).split()[0]
            ax.plot(
                curve.index,
                curve,
                "--" if str(name).endswith("pixels") else "-",
                color=f"C{families.index(family)}",
                linewidth=3 if name == "G2D" else 1.2,
                label=name,
            )
        ax.set(title=title, xlabel=x_label, ylabel=y_label, xticks=curves.index)
    lines, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside right center")
    figure.savefig(path, dpi=120)
    plt.close(figure)
