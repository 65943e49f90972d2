"""Ask how much faster GridSearchCV is on two processes, and whether its scores are the same.

All searches run on the same two cores. The one on two processes waits for these to start and
to import PyTorch, as a user would.

    python -m benchmarks.searches
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib.externals.loky import get_reusable_executor
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import GridSearchCV
from threadpoolctl import threadpool_limits

from benchmarks.report import write_markdown
from benchmarks.speed import draw_rows
from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.avid import CellInpainting
from sklearn_g2d.metrics import SCORERS
from sklearn_g2d.model_selection import NormalOnlySplit

Question = tuple[Any, dict[str, list[Any]], NDArray[Any], NDArray[Any]]


def questions() -> dict[str, Question]:
    """Detectors, grids, samples and labels by name."""
    X, benign = load_breast_cancer(return_X_y=True)
    y = np.where(benign == 1, 1, -1)
    digits = load_digits()
    images, is_normal = digits.images[:, np.newaxis], np.where(digits.target != 9, 1, -1)
    g2d, avid = G2DOutlierDetector(random_state=0), AVIDDetector(random_state=0)
    many = draw_rows(5_000, 30)
    shuffled = np.random.default_rng(0).permuted(many[:500], axis=0)
    many, is_plain = np.concatenate([many, shuffled]), np.repeat([1, -1], [5_000, 500])
    members = "classifier__n_members"
    grid = {"n_neighbors": [3, 5, 10, 20, 40], members: [4, 8, 16]}
    finer = {"n_neighbors": [3, 5, 8, 10, 15, 20, 25, 30, 40], members: [4, 8, 12, 16, 20]}
    of_cells = AVIDDetector(training=CellInpainting(), random_state=0)
    steps = {"training__max_steps": [500, 1000, 1500, 2000]}
    few_steps = {"training__max_steps": [20, 30, 40, 50]}
    return {
        "G2D, 569 rows of 30 columns": (g2d, grid, X, y),
        "G2D, 5,500 rows of 30 columns": (g2d, grid, many, is_plain),
        "the same, a finer grid": (g2d, finer, many, is_plain),
        "G2D, 1,797 images": (g2d, grid, images, is_normal),
        "AVID, 569 rows of 30 columns": (of_cells, steps, X, y),
        "AVID, 1,797 images": (avid, few_steps, images, is_normal),
    }


def search(question: Question, n_jobs: int, n_threads: int) -> tuple[float, NDArray[np.float64]]:
    """Seconds that a search takes, and its scores."""
    detector, grid, X, y = question
    get_reusable_executor().shutdown()  # what ran before must not have started the workers
    torch.set_num_threads(n_threads)
    with threadpool_limits(n_threads):
        start = time.perf_counter()
        done = GridSearchCV(
            detector,
            grid,
            scoring=SCORERS["outlier_roc_auc"],
            cv=NormalOnlySplit(3),
            refit=False,
            n_jobs=n_jobs,
        ).fit(X, y)
        seconds = time.perf_counter() - start
    splits = [done.cv_results_[f"split{split}_test_score"] for split in range(3)]
    return seconds, np.array(splits)


def measure(name: str, question: Question, repeats: int) -> list[dict[str, Any]]:
    """Time a search by one process, with two threads and with one, and by two, in turn."""
    rows = []
    for repeat in range(repeats):
        one, scores = search(question, n_jobs=1, n_threads=2)
        one_core, scores_one_core = search(question, n_jobs=1, n_threads=1)
        two, scores_two = search(question, n_jobs=2, n_threads=2)
        rows.append(
            {
                "search": name,
                "repeat": repeat,
                "fits": scores.size,
                "n_jobs=1": one,
                "n_jobs=1, one thread": one_core,
                "n_jobs=2": two,
                "times faster": one / two,
                "largest difference of an AUC": np.abs(scores - scores_two).max(),
                "from one thread": np.abs(scores_one_core - scores_two).max(),
            }
        )
        print(pd.Series(rows[-1]).to_string(), end="\n\n", flush=True)
    return rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--only", default="", help="searches whose name contains this")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    chosen = {name: q for name, q in questions().items() if args.only in name}
    if not chosen:
        parser.error(f"no search is called {args.only!r}; choose from {list(questions())}")
    runs = pd.DataFrame([r for name, q in chosen.items() for r in measure(name, q, args.repeats)])
    args.output.mkdir(parents=True, exist_ok=True)
    runs.to_csv(args.output / "searches.csv", index=False, float_format="%.5g")
    table = runs.groupby("search", sort=False).median().drop(columns="repeat")
    write_markdown(
        args.output / "searches.md",
        "Searches on two processes",
        [
            "`GridSearchCV` on two cores: seconds with one process, which may use two threads or "
            "is held to one, and with two processes of one thread each, their start included; "
            f"medians of {args.repeats} rounds in which they take turns. The last columns compare "
            "the AUC of each split with that of two processes.",
            f"`python -m benchmarks.searches --repeats {args.repeats}` repeats it.",
        ],
        [table],
    )
    print(table.to_markdown(floatfmt=".2f"))


if __name__ == "__main__":
    main()
