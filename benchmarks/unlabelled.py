"""Which detector finds the outliers of an unlabelled table? The 22 tables of ADBench, whole.

Protocol: at most 5,000 rows of a table, drawn so that the share of outliers stays; standardise,
fit, and rank the same rows. Every detector is told `contamination=.1` and nothing else;
"G2D auto" is told nothing. Seeds draw the rows, and seed the detectors.

    python -m benchmarks.unlabelled --data ../shared/data/adbench
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from benchmarks.detectors import Detector, MakeG2D, g2d_detectors, pyod_detectors
from benchmarks.report import plot_by_detector, summarize, write_markdown
from benchmarks.runner import Case, choose, command, make_parser, quality, run
from benchmarks.tabular import table_names
from sklearn_g2d import G2DOutlierDetector

CONTAMINATION = 0.1
MAX_ROWS = 5_000
PEERS = ["HBOS", "IForest", "KNN", "LOF", "ECOD", "COPOD", "CBLOF", "OCSVM", "PCA", "INNE"]
PEERS += ["LUNAR", "AutoEncoder"]
FIGURES = {
    "auc": "AUC",
    "average_precision": "average precision",
    "f1": "F1",
    "eer": "EER",
    "seconds": "fit and rank (s)",
}


def read_table(path: Path, seed: int) -> tuple[NDArray, NDArray]:
    """Standardised rows and their labels, +1 inlier, -1 outlier; all, or some by lot."""
    with np.load(path, allow_pickle=False) as file:
        X, y = file["X"].astype(np.float64), np.where(file["y"] == 0, 1, -1)
    if len(X) > MAX_ROWS:
        X, _, y, _ = train_test_split(X, y, train_size=MAX_ROWS, stratify=y, random_state=seed)
    return StandardScaler().fit_transform(X), y


def evaluate(detector: Detector, X: NDArray, y: NDArray) -> dict:
    """Fit without labels, rank the rows, and compare with the labels; figures by name."""
    start = time.perf_counter()
    scores = detector.fit(X).training_scores_
    seconds = time.perf_counter() - start
    return {**quality(y, scores, detector.predict(X)), "seconds": seconds}


def open_case(
    table: str, seed: int, factories: dict[str, Callable[[int], Detector]], args: argparse.Namespace
) -> Case:
    """One table, rows drawn by one seed."""
    X, y = read_table(args.data / f"{table}.npz", seed)
    facts = {"n_rows": len(X), "n_features": X.shape[1], "outliers": float(np.mean(y == -1))}
    return Case(facts, lambda name: [evaluate(factories[name](seed), X, y)])


def report(results: pd.DataFrame, args: argparse.Namespace, repeat: str) -> pd.DataFrame:
    """Write the Markdown page and the plot; returns the summary."""
    summary = summarize(results, FIGURES)
    order = list(summary.index)
    tables = [
        results.pivot_table(figure, "table", "detector")[order].rename_axis(FIGURES[figure])
        for figure in ("auc", "average_precision")
    ]
    paragraphs = [
        f"Mean over {results.table.nunique()} tables of ADBench and {results.seed.nunique()} "
        f"seeds. At most {MAX_ROWS:,} rows of a table, outliers among them in their share; each "
        "detector is fitted on all of them, without labels, and ranks them. All are told "
        f"`contamination={CONTAMINATION}`, but for G2D auto, which is told nothing; F1 is that of "
        "the rows they flag then. G2D ranks by `training_scores_`, PyOD by `decision_scores_`. "
        "Rank is by AUC, 1 is best; EER is the equal error rate. Seconds are of this run and "
        "compare only roughly. Of `34_smtp` one or two of 5,000 rows are outliers, so that its "
        "average precision is a matter of luck.",
        f"`{repeat}` repeats it; DIR holds ADBench's `.npz` files.",
        f"![AUC by detector]({args.name}.png)",
    ]
    write_markdown(
        args.output / f"{args.name}.md", "Unlabelled tables", paragraphs, [summary, *tables]
    )
    label = "AUC (dots: tables, bar: mean)"
    plot_by_detector(args.output / f"{args.name}.png", results, "auc", label)
    return summary


def main() -> None:
    """Run from the command line."""
    parser = make_parser(__doc__, "unlabelled", data_help="folder of ADBench .npz files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()

    tables = table_names(args.data, parser)
    default: dict[str, MakeG2D] = {"G2D": G2DOutlierDetector}
    factories = g2d_detectors(CONTAMINATION, default) | {
        "G2D auto": g2d_detectors("auto", default)["G2D"]
    }
    of_pyod = pyod_detectors(CONTAMINATION)
    factories |= {name: of_pyod[name] for name in PEERS}
    parser.set_defaults(detectors=list(factories))
    chosen = choose(parser, args.detectors or parser.get_default("detectors"), factories)
    results = run("table", tables, partial(open_case, factories=chosen, args=args), chosen, args)
    repeat = command(
        parser,
        args.name,
        detectors=list(results.detector.unique()),
        seeds=sorted(results.seed.unique()),
    )
    print(f"\n{report(results, args, repeat).to_markdown(floatfmt='.3f')}")


if __name__ == "__main__":
    main()
