"""The detector beside PyOD's, on real data that scikit-learn ships; nothing to download.

make demo
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from threadpoolctl import threadpool_limits

from benchmarks.detectors import g2d_detectors, pyod_detectors
from benchmarks.report import summarize
from benchmarks.tabular import FIGURES, evaluate, split_rows
from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.display import ScoreDistributionDisplay

CONTAMINATION = 0.05
DETECTORS = ["G2D", "KNN", "LOF", "IForest", "OCSVM", "AutoEncoder"]


def tables() -> Iterator[tuple[str, NDArray, NDArray]]:
    """Name, rows or images, and which of them are normal."""
    X, y = load_breast_cancer(return_X_y=True)
    yield "breast cancer: benign / malignant", X, y == 1
    X, y = load_wine(return_X_y=True)
    yield "wine: second cultivar / others", X, y == 1
    images, y = load_digits().images[:, np.newaxis], load_digits().target
    for digit in (3, 8):
        yield f"digits: {digit} / others", images, y == digit
    yield "digits: 0 to 8 / 9", images, y != 9


def show(summary: pd.DataFrame, title: str) -> None:
    """Print a table, G2D's row in bold."""
    table = Table(title=title)
    table.add_column("detector")
    for heading in summary.columns:
        table.add_column(heading, justify="right")
    for name, row in summary.iterrows():
        cells = [str(name), *(f"{value:.3f}" for value in row)]
        table.add_row(*cells, style="bold" if name == "G2D" else None)
    Console().print(table)


def draw(path: Path) -> None:
    """Save a picture of how the detector scores new rows of every table."""
    import matplotlib.pyplot as plt

    every = list(tables())
    figure, axes = plt.subplots(1, len(every), figsize=(4 * len(every), 3), layout="constrained")
    for ax, (name, X, is_normal) in zip(axes, every, strict=True):
        X_train, X_test, y_test = split_rows(X, is_normal, 0)
        detector = G2DOutlierDetector(random_state=0).fit(X_train)
        ScoreDistributionDisplay.from_estimator(detector, X_test, y_test, name=name, ax=ax)
        ax.set_xlabel("decision function (negative = outlier)")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo"))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)

    factories = g2d_detectors("auto") | pyod_detectors(CONTAMINATION)
    runs = [
        (table, seed, detector) for table in tables() for seed in range(2) for detector in DETECTORS
    ]
    rows = []
    with threadpool_limits(args.threads):
        for (table, X, is_normal), seed, detector in track(runs, "fitting detectors"):
            figures = evaluate(factories[detector](seed), *split_rows(X, is_normal, seed))
            rows.append({"table": table, "seed": seed, "detector": detector, **figures})
        results = pd.DataFrame(rows)
        shown = {k: v for k, v in FIGURES.items() if k != "false_alarms"}
        show(summarize(results, shown), "Means over two tables, three of images, two splits")
        draw(args.output / "score_distributions.png")
    results.to_csv(args.output / "results.csv", index=False, float_format="%.5g")
    Console().print(f"Results and a picture of the scores are in [bold]{args.output}/[/bold].")


if __name__ == "__main__":
    main()
