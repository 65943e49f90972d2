"""Is the promised rate of false alarms kept at every size of a training set? Means over seeds.

Protocol: normal rows are independent Gaussian numbers. A detector at its defaults is fitted on a
few of them, and flags some of 500 new ones, and of five rows whose cells all lie 50 deviations out.

    python -m benchmarks.false_alarms
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from benchmarks.report import write_markdown
from sklearn_g2d import AVIDDetector, ConformalDetector, G2DOutlierDetector
from sklearn_g2d._base import AUTO_FALSE_ALARM_RATE

RATE = AUTO_FALSE_ALARM_RATE
DETECTORS: dict[str, Callable[[int], Any]] = {
    "G2D": lambda seed: G2DOutlierDetector(random_state=seed),
    "AVID": lambda seed: AVIDDetector(random_state=seed),
    "conformal G2D": lambda seed: ConformalDetector(G2DOutlierDetector(random_state=seed)),
}


def measure(name: str, n: int, n_columns: int, seed: int) -> dict[str, float]:
    """Fit once; the fraction of new normal rows that are flagged, and of far rows that are not."""
    rng = np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few rows
        detector = DETECTORS[name](seed).fit(rng.normal(size=(n, n_columns)))
    far = np.concatenate(
        [np.full((1, n_columns), 50.0), 50 * rng.choice([-1.0, 1.0], (4, n_columns))]
    )
    alarms = np.mean(detector.predict(rng.normal(size=(500, n_columns))) == -1)
    return {"false_alarms": float(alarms), "missed": float(np.mean(detector.predict(far) == 1))}


def summarize(results: pd.DataFrame) -> pd.DataFrame:
    """Mean rates by detector, columns and rows, beside what is promised."""
    grouped = results.groupby(["detector", "columns", "rows"])
    table = grouped[["false_alarms", "missed"]].mean()
    table.insert(1, "standard error", grouped["false_alarms"].sem())
    n = table.index.get_level_values("rows").to_numpy()
    lowest = RATE + 1 / (n + 1)
    table.insert(0, "at most", np.where(n < 1 / RATE - 1, lowest, RATE + 0.01))
    table.insert(0, "seeds", grouped.size())
    return table.rename(columns={"false_alarms": "false alarms"}).reset_index()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.false_alarms", description=__doc__.split("\n")[0]
    )
    sizes = [2, 3, 5, 8, 12, 19, 20, 50, 200]
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--name", default="false_alarms", help="stem of the written files")
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=["G2D"])
    parser.add_argument("--rows", type=int, nargs="+", default=sizes)
    parser.add_argument("--columns", type=int, nargs="+", default=[1, 3, 20, 300, 2000])
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    cases = itertools.product(args.detectors, args.columns, args.rows)
    rows: list[dict[str, Any]] = []
    with threadpool_limits(args.threads):
        for name, n_columns, n in cases:
            head = {"detector": name, "columns": n_columns, "rows": n}
            found = [head | measure(name, n, n_columns, seed) for seed in range(args.seeds)]
            print(
                summarize(pd.DataFrame(found)).to_string(header=not rows, index=False), flush=True
            )
            rows += found
            pd.DataFrame(rows).to_csv(args.output / f"{args.name}.csv", index=False)
    options = " ".join(
        f"--{option} {' '.join(map(str, values))}"
        for option, values in [
            ("detectors", [f'"{name}"' for name in args.detectors]),
            ("columns", args.columns),
            ("rows", args.rows),
            ("seeds", [args.seeds]),
        ]
    )
    write_markdown(
        args.output / f"{args.name}.md",
        "False alarms by the size of the training set",
        [
            f"Detectors at their defaults, which promise {RATE:.0%} false alarms on new normal "
            "rows; of fewer than 19 rows up to 1 / (n + 1) more. Rows are independent Gaussian "
            'numbers. "False alarms" is the mean fraction of 500 new rows flagged, "missed" that '
            "of rows with every cell 50 deviations out that are not flagged.",
            f"`python -m benchmarks.false_alarms {options}` repeats it.",
        ],
        [summarize(pd.DataFrame(rows)).set_index("detector")],
    )


if __name__ == "__main__":
    main()
