"""Which cell of a row is wrong? AVID's maps on tables, with cells replaced.

Protocol: train on half of the normal rows (at most 3,000); in the other half (as many) every
second row gets one to three cells from other rows' same columns. AUC of finding these cells
among all. The seeds draw rows and cells and are those of the detectors.

    python -m benchmarks.cells --data ../shared/data/adbench
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import RegressorMixin, clone
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import cross_val_predict
from sklearn.preprocessing import StandardScaler

from benchmarks.maps import Factory, avid_detectors, explain_avid, fit_maps, separation
from benchmarks.report import plot_by_detector, summarize, threads, write_markdown
from benchmarks.runner import Case, choose, command, make_parser, run

# The tables of the folder with 6 to 40 columns, none of fewer than 20 different values, and more
# than 1,000 normal rows; without satellite, which is landsat with other labels.
TABLES = ["10_cover", "19_landsat", "22_magic.gamma", "32_shuttle", "38_thyroid"]
MAX_ROWS = 3_000
MAX_REPLACED = 3
FIGURES = {
    "auc": "AUC",
    "eer": "EER",
    "fit_seconds": "fit (s)",
    "map_milliseconds": "map (ms per row)",
}


@dataclass(frozen=True)
class Cells:
    """Learn rows, find the cells of others that were replaced; all three have columns alike."""

    train: NDArray
    test: NDArray
    is_replaced: NDArray


class ZScores:
    """Distance of a cell from its column's mean, in deviations."""

    def fit(self, X: NDArray) -> ZScores:
        self.scaler_ = StandardScaler().fit(X)
        return self

    def anomaly_map(self, X: NDArray) -> NDArray:
        return np.abs(self.scaler_.transform(X))


class Regressions:
    """Residual of a cell that the rest of its row predicts, in deviations of new residuals.

    Parameters
    ----------
    regressor : estimator
        Cloned for each column.
    """

    def __init__(self, regressor: RegressorMixin) -> None:
        self.regressor = regressor

    def fit(self, X: NDArray) -> Regressions:
        self.fitted_, self.scales_ = [], []
        for column, target in enumerate(X.T):
            others = np.delete(X, column, axis=1)
            residuals = target - cross_val_predict(self.regressor, others, target, cv=3)
            self.scales_.append(residuals.std() or 1.0)
            self.fitted_.append(clone(self.regressor).fit(others, target))
        return self

    def anomaly_map(self, X: NDArray) -> NDArray:
        maps = np.empty(X.shape)
        for column, (fitted, scale) in enumerate(zip(self.fitted_, self.scales_, strict=True)):
            predicted = fitted.predict(np.delete(X, column, axis=1))
            maps[:, column] = np.abs(X[:, column] - predicted) / scale
        return maps


def detectors(steps: int | None) -> dict[str, Factory]:
    """Factories of all detectors, by name."""
    return {
        **avid_detectors("tables", steps),
        "z-scores": lambda seed: ZScores(),
        "linear regressions": lambda seed: Regressions(RidgeCV(np.logspace(-2, 4, 7))),
        "boosted regressions": lambda seed: Regressions(
            HistGradientBoostingRegressor(max_iter=50, random_state=seed)
        ),
    }


def replace_cells(X: NDArray, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Replace one to three cells of every second row; True where that made a difference."""
    n_rows, n_columns = X.shape
    replaced = X.copy()
    for row in rng.permutation(n_rows)[: n_rows // 2]:
        columns = rng.choice(n_columns, rng.integers(1, MAX_REPLACED + 1), replace=False)
        donors = (row + rng.integers(1, n_rows, size=len(columns))) % n_rows  # other rows
        replaced[row, columns] = X[donors, columns]
    return replaced, replaced != X


def split_cells(path: Path, seed: int) -> Cells:
    """Training and test rows of one file, standardised, and where cells were replaced."""
    with np.load(path, allow_pickle=False) as file:
        normal = file["X"].astype(np.float64)[file["y"] == 0]
    rng = np.random.default_rng(seed)
    normal = rng.permutation(normal)
    half = len(normal) // 2
    train, test = normal[:half][:MAX_ROWS], normal[half:][:MAX_ROWS]
    scaler = StandardScaler().fit(train)
    return Cells(scaler.transform(train), *replace_cells(scaler.transform(test), rng))


def open_case(table: str, seed: int, factories: dict[str, Factory], folder: Path) -> Case:
    """One table, split by one seed."""
    cells = split_cells(folder / f"{table}.npz", seed)

    def measure(name: str) -> list[dict[str, Any]]:
        detector = factories[name](seed)
        judged = fit_maps(name, detector, cells.train, cells.test)
        return [row | separation(cells.is_replaced, maps) for row, maps, _ in judged]

    facts = {
        "n_train": len(cells.train),
        "n_test": len(cells.test),
        "n_features": cells.train.shape[1],
        "n_replaced": int(cells.is_replaced.sum()),
    }
    return Case(facts, measure)


def report(results: pd.DataFrame, args: argparse.Namespace, repeat: str) -> pd.DataFrame:
    """Write the Markdown page and the plot; returns the summary."""
    summary = summarize(results, FIGURES)
    auc = results.pivot_table("auc", "detector", "table").loc[list(summary.index)]
    paragraphs = [
        f"Mean over {results.table.nunique()} tables of ADBench and the seeds "
        f"({', '.join(map(str, sorted(results.seed.unique())))}) of rows, cells and detectors. "
        f"Training rows: half of the normal ones, at most {MAX_ROWS:,}, standardised. Test rows: "
        "the other half, at most as many; every second one has one to three cells replaced by "
        "those of other rows in the same column, a value that is normal in itself. AUC and EER "
        "tell the replaced cells from all others. Rank is by AUC, 1 is best; seconds are of this "
        f"run, {threads(args)}, and compare only roughly.",
        "The tables are those with 6 to 40 columns, all of at least 20 different values, and more "
        "than 1,000 normal rows; without satellite, which is landsat with other labels.",
        f"{explain_avid(results, 'tables', args.steps)} The baselines judge a cell by its distance "
        "from the column's mean, or from what the other cells of the row predict (ridge "
        "regression, gradient boosting), in deviations of the training rows.",
        f"`{repeat}` repeats it; DIR holds ADBench's `.npz` files.",
        f"![AUC by detector]({args.name}.png)",
    ]
    write_markdown(
        args.output / f"{args.name}.md",
        "Cells that do not belong",
        paragraphs,
        [summary, auc.rename_axis("AUC by table")],
    )
    label = "AUC (dots: tables, bar: mean)"
    plot_by_detector(args.output / f"{args.name}.png", results, "auc", label)
    return summary


def main() -> None:
    """Run from the command line."""
    parser = make_parser(__doc__, "cells", data_help="folder of ADBench .npz files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="max_steps of AVID")
    parser.set_defaults(detectors=list(detectors(None)))
    args = parser.parse_args()
    missing = [table for table in TABLES if not (args.data / f"{table}.npz").is_file()]
    if missing:
        parser.error(f"no {missing[0]}.npz in {args.data}")
    chosen = choose(parser, args.detectors, detectors(args.steps))
    results = run(
        "table", TABLES, partial(open_case, factories=chosen, folder=args.data), chosen, args
    )
    repeat = command(
        parser,
        args.name,
        detectors=[name for name in detectors(None) if name in set(results.detector)],
        seeds=sorted(results.seed.unique()),
        steps=[args.steps],
    )
    print(f"\n{report(results, args, repeat).to_markdown(floatfmt='.3f')}")


if __name__ == "__main__":
    main()
