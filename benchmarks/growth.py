"""How do time and memory grow with rows and columns? Each case in a process of its own.

Tables of normal rows, float32, in files; from 10^6 rows on they are memory-mapped. A case fits
on a file, then scores all of it. Memory is the most that the process ever held, above what
it held when the data were open: pages of the file count too while they are in its memory.

    python -m benchmarks.growth
"""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from benchmarks.report import threads, write_markdown
from sklearn_g2d import AVIDDetector, G2DOutlierDetector

DETECTORS: dict[str, Any] = {"G2D": G2DOutlierDetector, "AVID": AVIDDetector}
MAPPED_FROM = 10**6
FIGURES = {"fit": "fit, seconds", "score": "score, seconds", "memory": "memory, MB"}
_BLOCK = 10**5


def write_table(path: Path, n_rows: int, n_columns: int) -> None:
    """Write correlated rows in blocks."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(n_columns, n_columns)).astype(np.float32)
    table = np.lib.format.open_memmap(path, "w+", np.float32, (n_rows, n_columns))
    for start in range(0, n_rows, _BLOCK):
        n = min(_BLOCK, n_rows - start)
        table[start : start + n] = rng.standard_normal((n, n_columns), np.float32) @ mixing
    table.flush()


def measure(name: str, path: Path, mapped: bool, threads: int) -> dict[str, float]:
    """Fit on a file and score it, in a new process; seconds, and megabytes above the start."""
    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        X = np.load(path, mmap_mode="r" if mapped else None)
        held = _held("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forgets what the process held at most
        start = time.perf_counter()
        detector = DETECTORS[name](random_state=0).fit(X)
        fitted = time.perf_counter()
        detector.score_samples(X)
        scored = time.perf_counter()
        return {
            "fit": fitted - start,
            "score": scored - fitted,
            "memory": (_held("VmHWM") - held) / 1e6,
        }


def _held(figure: str) -> int:
    """Bytes in memory, by Linux: "VmRSS" now, "VmHWM" at most since that was forgotten."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{figure}:")[1].split()[0])


def plot(path: Path, results: pd.DataFrame) -> None:
    """Save a panel for every figure over rows, and below over columns; log scales."""
    import matplotlib.pyplot as plt

    by = [name for name in ("rows", "columns") if (results.varied == name).any()]
    figure, axes = plt.subplots(
        len(by), 3, figsize=(11, 3.4 * len(by)), squeeze=False, layout="constrained"
    )
    for row, varied in zip(axes, by, strict=True):
        for ax, (figure_name, label) in zip(row, FIGURES.items(), strict=True):
            for name, cases in results[results.varied == varied].groupby("detector"):
                ax.loglog(cases[varied], cases[figure_name], "o-", label=name)
            ax.set(xlabel=varied, title=label)
            ax.grid(alpha=0.3)
    axes[0, 0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def report(results: pd.DataFrame, args: argparse.Namespace) -> None:
    """Write the CSV file, the plot and the page, as far as cases were measured."""
    results.to_csv(args.output / "growth.csv", index=False, float_format="%.4g")
    plot(args.output / "growth.png", results)
    write_markdown(
        args.output / "growth.md",
        "Growth with rows and columns",
        [
            "One fit on a table, and the scores of all its rows, in a process of its own; "
            f"{threads(args)}, float32, 20 columns or 10,000 rows. From {MAPPED_FROM:,} "
            "rows on the table is a memory-mapped file. Memory is the most that the process held "
            "above what it held when the data were open, libraries that load on first use "
            "included; pages of the file count while they are in its memory. The file of "
            "10,000,000 rows is 800 MB.",
            f"`python -m benchmarks.growth --threads {args.threads}` repeats it.",
            "![Time and memory by rows and columns](growth.png)",
        ],
        [
            group.pivot_table(list(FIGURES), varied, "detector").rename(columns=FIGURES)
            for varied, group in results.groupby("varied", sort=False)
        ],
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.growth", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--rows", type=int, nargs="*", default=[10**k for k in range(3, 8)])
    parser.add_argument("--columns", type=int, nargs="*", default=[10, 50, 200, 1000, 2000])
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=list(DETECTORS))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    sizes = [("rows", n, 20) for n in args.rows] + [("columns", 10_000, d) for d in args.columns]
    cases = []
    for varied, n_rows, n_columns in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "table.npy")
            write_table(path, n_rows, n_columns)
            for name in args.detectors:
                with ProcessPoolExecutor(1, get_context("spawn")) as process:
                    task = process.submit(measure, name, path, n_rows >= MAPPED_FROM, args.threads)
                    figures = task.result()
                head = {"varied": varied, "rows": n_rows, "columns": n_columns, "detector": name}
                cases.append(head | figures)
                print(cases[-1], flush=True)
                report(pd.DataFrame(cases), args)


if __name__ == "__main__":
    main()
