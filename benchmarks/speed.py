"""How fast are fitting and scoring, beside PyOD? Ratios, measured in turn in one process.

python -m benchmarks.speed
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from benchmarks.detectors import g2d_detectors, pyod_detectors
from benchmarks.report import write_markdown

CONTAMINATION = 0.05
OTHERS = ["KNN", "AutoEncoder", "LUNAR"]


def measure(n_rows: int, n_columns: int, repeats: int) -> pd.DataFrame:
    """Seconds to fit `n_rows` and to score as many new ones, a row for every run."""
    rng = np.random.default_rng(0)
    X, X_new = rng.normal(size=(2, n_rows, n_columns))
    factories = g2d_detectors(CONTAMINATION) | pyod_detectors(CONTAMINATION)
    runs = []
    for repeat in range(repeats + 1):
        for name in ["G2D", *OTHERS]:
            start = time.perf_counter()
            detector = factories[name](repeat).fit(X)
            fitted = time.perf_counter()
            detector.score_samples(X_new)
            scored = time.perf_counter()
            if repeat:  # the first round warms up
                runs.append((n_columns, repeat, name, fitted - start, scored - fitted))
    return pd.DataFrame(runs, columns=["columns", "repeat", "detector", "fit", "score"])


def ratios(runs: pd.DataFrame) -> pd.DataFrame:
    """G2D's seconds over each other detector's, run by run: median, least and most."""
    seconds = runs.set_index(["columns", "repeat", "detector"]).unstack()
    parts = {}
    for what in ("fit", "score"):
        for other in OTHERS:
            ratio = (seconds[what]["G2D"] / seconds[what][other]).groupby("columns")
            parts[f"{what} / {other}"] = ratio.agg(
                lambda r: f"{r.median():.2f} ({r.min():.2f} to {r.max():.2f})"
            )
    return pd.DataFrame(parts)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--columns", type=int, nargs="+", default=[3, 10, 30, 60])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with threadpool_limits(args.threads):
        runs = pd.concat([measure(args.rows, columns, args.repeats) for columns in args.columns])
    args.output.mkdir(parents=True, exist_ok=True)
    runs.to_csv(args.output / "speed.csv", index=False, float_format="%.5g")
    seconds = runs.groupby(["columns", "detector"])[["fit", "score"]].median()
    table = ratios(runs)
    write_markdown(
        args.output / "speed.md",
        "Speed on tables",
        [
            f"{args.rows:,} training rows and as many to score, {args.threads} threads, "
            f"{args.repeats} rounds in which the detectors take turns. First G2D's seconds over "
            "each other detector's, median (least to most); below 1, G2D is faster. Then seconds.",
            "`python -m benchmarks.speed` repeats it.",
        ],
        [table, seconds],
    )
    print(table.to_markdown())


if __name__ == "__main__":
    main()
