"""How fast are fitting and scoring, beside PyOD, and at which AUC? Ratios, measured in turn.

All in one process. Normal rows are drawn from four clusters around planes;
outliers, for the AUC, have the same columns, but each shuffled by itself.

    python -m benchmarks.speed
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.detectors import g2d_detectors, pyod_detectors
from benchmarks.report import threads, write_markdown
from sklearn_g2d.metrics import outlier_roc_auc_score

CONTAMINATION = 0.05
OTHERS = ["KNN", "IForest", "AutoEncoder", "DeepSVDD", "LUNAR"]
CASES = ["5000x3", "5000x10", "5000x30", "5000x60", "50000x30"]

# More rows take the deep detectors minutes, in which a machine's whims average out.
FEW_ROWS = 10_000


def draw_rows(n_rows: int, n_columns: int) -> NDArray:
    """Draw rows near planes of a third of the columns' number, in four places."""
    rng = np.random.default_rng(0)
    n_axes = max(1, n_columns // 3)
    centers = rng.normal(scale=3, size=(4, n_columns))
    axes = rng.normal(size=(4, n_axes, n_columns))
    cluster = rng.integers(4, size=n_rows)
    on_plane = np.einsum("na,nac->nc", rng.normal(size=(n_rows, n_axes)), axes[cluster])
    return centers[cluster] + on_plane + rng.normal(scale=0.3, size=(n_rows, n_columns))


def measure(case: str, repeats: int) -> pd.DataFrame:
    """Seconds to fit rows and to score as many new ones, and the AUC, for every run."""
    n_rows, n_columns = map(int, case.split("x"))
    X, X_new = np.split(draw_rows(2 * n_rows, n_columns), 2)
    outliers = np.random.default_rng(1).permuted(X_new[:1000], axis=0)
    few, labels = np.concatenate([X_new[:1000], outliers]), np.repeat([1, -1], 1000)
    factories = g2d_detectors("auto") | pyod_detectors(CONTAMINATION)
    runs = []
    for repeat in range(repeats + 1 if n_rows <= FEW_ROWS else 1):
        for name in ["G2D", *OTHERS]:
            start = time.perf_counter()
            detector = factories[name](repeat).fit(X)
            fitted = time.perf_counter()
            detector.score_samples(X_new)
            scored = time.perf_counter()
            if repeat or n_rows > FEW_ROWS:  # the first round warms up
                auc = outlier_roc_auc_score(labels, detector.score_samples(few))
                runs.append((case, repeat, name, fitted - start, scored - fitted, auc))
                print(*runs[-1], flush=True)
    return pd.DataFrame(runs, columns=["case", "repeat", "detector", "fit", "score", "auc"])


def ratios(runs: pd.DataFrame, what: str) -> pd.DataFrame:
    """G2D's seconds over each other detector's, run by run: median, least and most."""
    seconds = runs.pivot_table(what, ["case", "repeat"], "detector", sort=False)
    by_case = seconds[["G2D"]].to_numpy() / seconds[OTHERS]
    return by_case.groupby("case", sort=False).agg(
        lambda r: f"{r.median():.2f} ({r.min():.2f} to {r.max():.2f})"
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="ROWSxCOLUMNS")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with threadpool_limits(args.threads):
        runs = pd.concat([measure(case, args.repeats) for case in args.cases])
    args.output.mkdir(parents=True, exist_ok=True)
    runs.to_csv(args.output / "speed.csv", index=False, float_format="%.5g")
    names = ["G2D", *OTHERS]
    tables = [
        ratios(runs, "fit").rename_axis("fit: G2D over"),
        ratios(runs, "score").rename_axis("score: G2D over"),
        *(
            runs.pivot_table(what, "case", "detector", sort=False)[names].rename_axis(label)
            for what, label in [("auc", "AUC"), ("fit", "fit, s"), ("score", "score, s")]
        ),
    ]
    write_markdown(
        args.output / "speed.md",
        "Speed on tables",
        [
            "Training rows x columns, and as many rows to score. First G2D's seconds over each "
            f"other detector's, median (least to most) of {args.repeats} rounds in which the "
            f"detectors take turns, of one where there are more than {FEW_ROWS:,} rows; "
            f"{threads(args)}; below 1, G2D is faster. Then the AUC, and mean seconds.",
            "Normal rows are drawn from four clusters around planes; outliers, for the AUC, are "
            "the same with each column shuffled by itself.",
            f"`python -m benchmarks.speed --repeats {args.repeats}` repeats it.",
        ],
        tables,
    )
    for table in tables:
        print(table.to_markdown(floatfmt=".3f"), end="\n\n")


if __name__ == "__main__":
    main()
