"""Does G2D beat PyOD on tables? One-class detection on the 22 tables of ADBench.

Protocol: train on half of the normal rows (at most 5,000), test on the other half and
all anomalies, standardise with the training rows; three seeds of the split, which also
seed the detectors. Every detector runs at its defaults but for PyOD's `contamination`.

    python -m benchmarks.tabular --data ../shared/data/adbench
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from benchmarks.detectors import Detector, g2d_detectors, pyod_detectors
from benchmarks.report import plot_by_detector, summarize, write_markdown
from benchmarks.runner import Case, choose, command, make_parser, quality, run

FIGURES = {
    "auc": "AUC",
    "average_precision": "average precision",
    "f1": "F1",
    "eer": "EER",
    "false_alarms": "false alarms",
    "fit_seconds": "fit (s)",
    "score_seconds": "score (s)",
}
MAX_TRAIN_ROWS = 5_000
SMOOTHED_STEPS = 50  # over which the loss of a generator is averaged


def table_names(folder: Path, parser: argparse.ArgumentParser) -> list[str]:
    """Names of ADBench's tables in a folder; the command ends if there is none."""
    # The three sets of deep embeddings in the folder are a question of their own.
    tables = [p.stem for p in sorted(folder.glob("*.npz")) if p.stem[0].isdigit()]
    if not tables:
        parser.error(f"no ADBench tables (*.npz) in {folder}")
    return tables


def one_class_split(
    path: Path, seed: int, hidden_outliers: float = 0.0
) -> tuple[NDArray, NDArray, NDArray]:
    """Training rows, test rows and test labels of one file; see `split_rows`."""
    with np.load(path, allow_pickle=False) as file:
        return split_rows(file["X"].astype(np.float64), file["y"] == 0, seed, hidden_outliers)


def split_rows(
    X: NDArray, is_normal: NDArray, seed: int, hidden_outliers: float = 0.0
) -> tuple[NDArray, NDArray, NDArray]:
    """Training rows, test rows and test labels (+1 inlier, -1 outlier).

    Tables are standardised, images left as they are, for their pixels share one scale.
    `hidden_outliers` is the share of the training rows that are anomalies; these leave
    the test rows.
    """
    rng = np.random.default_rng(seed)
    normal = rng.permutation(np.flatnonzero(is_normal))
    anomalous = rng.permutation(np.flatnonzero(~is_normal))
    half = len(normal) // 2
    train = normal[:half][:MAX_TRAIN_ROWS]
    n_hidden = min(int(hidden_outliers * len(train)), len(anomalous) // 2)
    if n_hidden:
        train = np.append(train[: len(train) - n_hidden], anomalous[:n_hidden])
    test = np.concatenate([normal[half:], anomalous[n_hidden:]])
    X_train, X_test = X[train], X[test]
    if X.ndim == 2:
        scaler = StandardScaler().fit(X_train)
        X_train, X_test = scaler.transform(X_train), scaler.transform(X_test)
    return X_train, X_test, np.where(is_normal[test], 1, -1)


def evaluate(detector: Detector, X_train: NDArray, X_test: NDArray, y_test: NDArray) -> dict:
    """Fit, score and predict once; figures by name."""
    start = time.perf_counter()
    detector.fit(X_train)
    fitted = time.perf_counter()
    scores = detector.score_samples(X_test)
    scored = time.perf_counter()
    return {
        **quality(y_test, scores, detector.predict(X_test)),
        **training_figures(detector),
        "fit_seconds": fitted - start,
        "score_seconds": scored - fitted,
    }


def training_figures(detector: Any) -> dict[str, float]:
    """How much of its peak a generator's loss keeps, and how many of its snapshots have a role.

    They stand in the CSV file only, for detectors with a generator that is trained.
    """
    losses = getattr(detector, "history_", {}).get("generator_loss", [])
    if len(losses) < SMOOTHED_STEPS:
        return {}
    smooth = np.convolve(losses, np.full(SMOOTHED_STEPS, 1 / SMOOTHED_STEPS), "valid")
    roles = [snapshot.role for snapshot in detector.snapshots_]
    return {
        "loss_left": smooth[-1] / smooth.max(),
        **{f"n_{role}": roles.count(role) for role in ("far", "boundary", "normal")},
    }


def open_case(
    table: str, seed: int, factories: dict[str, Callable[[int], Detector]], args: argparse.Namespace
) -> Case:
    """One table, split by one seed."""
    split_seed = seed if args.split is None else args.split
    split = one_class_split(args.data / f"{table}.npz", split_seed, args.hidden_outliers)
    X_train, X_test, _ = split
    facts = {"n_train": len(X_train), "n_test": len(X_test), "n_features": X_train.shape[1]}
    return Case(facts, lambda name: [evaluate(factories[name](seed), *split)])


def report(results: pd.DataFrame, args: argparse.Namespace, repeat: str) -> pd.DataFrame:
    """Write the Markdown page and the plot; returns the summary."""
    summary = summarize(results, FIGURES)
    auc = results.pivot_table("auc", "table", "detector")[list(summary.index)]
    spread = results.groupby(["table", "detector"])["auc"].std().unstack()[list(summary.index)]
    hidden = f", {args.hidden_outliers:.0%} of them outliers" if args.hidden_outliers else ""
    split = "split and detector" if args.split is None else f"the detector, split {args.split}"
    paragraphs = [
        f"Mean over {results.table.nunique()} tables of ADBench and {results.seed.nunique()} seeds "
        f"of {split}. Training rows: half of the normal ones, at most 5,000{hidden}. Rank is by "
        "AUC, 1 is best; EER is the equal error rate; F1 of the outliers and false alarms, the "
        f"share of new normal rows flagged, are at `contamination={args.contamination}`, of G2D on "
        'clean rows at `"auto"`. '
        "Seconds are of this run and compare only roughly.",
        f"`{repeat}` repeats it; DIR holds ADBench's `.npz` files.",
        f"![AUC by detector]({args.name}.png)",
    ]
    write_markdown(
        args.output / f"{args.name}.md",
        "Outlier detection on tables",
        paragraphs,
        [summary, auc.rename_axis("AUC"), spread.rename_axis("standard deviation of AUC")],
    )
    label = "AUC (dots: tables, bar: mean)"
    plot_by_detector(args.output / f"{args.name}.png", results, "auc", label)
    return summary


def main() -> None:
    """Run from the command line."""
    parser = make_parser(__doc__, "tabular", data_help="folder of ADBench .npz files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", type=int, help="one split for all seeds of the detectors")
    parser.add_argument("--contamination", type=float, default=0.05)
    parser.add_argument("--hidden-outliers", type=float, default=0.0, help="share in training")
    args = parser.parse_args()

    tables = table_names(args.data, parser)
    # To G2D, unlike PyOD's, a number says that outliers are among the training rows.
    factories = g2d_detectors(args.contamination if args.hidden_outliers else "auto")
    factories |= pyod_detectors(args.contamination)
    # These came with the images, and with unlabelled tables.
    others = {"PCA", "HBOS", "COPOD", "INNE"}
    parser.set_defaults(detectors=[name for name in factories if name not in others])
    chosen = choose(parser, args.detectors or parser.get_default("detectors"), factories)
    results = run("table", tables, partial(open_case, factories=chosen, args=args), chosen, args)
    repeat = command(
        parser,
        args.name,
        detectors=list(results.detector.unique()),
        seeds=sorted(results.seed.unique()),
        split=[args.split],
        contamination=[args.contamination],
        hidden_outliers=[args.hidden_outliers],
    )
    print(f"\n{report(results, args, repeat).to_markdown(floatfmt='.3f')}")


if __name__ == "__main__":
    main()
