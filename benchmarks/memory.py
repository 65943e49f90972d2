"""Does memory stay flat over many calls? Measured for `fit` and for `score_samples`.

Peak resident memory of a process that does nothing else, read after each tenth of the calls; what
leaks raises it. What is fitted is small, and generators and inpainters are trained for two steps.

python -m benchmarks.memory
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from benchmarks.report import write_markdown
from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.avid import CellInpainting, MaskedInpainting, PatchNet, UNet
from sklearn_g2d.g2d import WassersteinGAN

TABLE, IMAGES = (100, 6), (20, 1, 16, 16)
G2D = partial(G2DOutlierDetector, generator=WassersteinGAN(max_steps=2), random_state=0)
AVID = partial(AVIDDetector, random_state=0)
CASES: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "G2D, table": (G2D, TABLE),
    "AVID, table": (partial(AVID, training=CellInpainting(max_steps=2)), TABLE),
    "G2D, images": (G2D, IMAGES),
    "AVID, images": (
        partial(
            AVID,
            training=MaskedInpainting(max_steps=2),
            inpainter=UNet(channels=2),
            detector=PatchNet(channels=2),
        ),
        IMAGES,
    ),
}
READINGS = 10


def peak_mebibytes() -> float:
    """Highest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def measure(case: str, what: str, n_calls: int, threads: int) -> list[dict[str, Any]]:
    """Call `fit` or `score_samples` so often; a row for every reading of the memory."""
    torch.set_num_threads(threads)
    make, shape = CASES[case]
    X = np.random.default_rng(0).normal(size=shape)
    detector = make().fit(X)
    rows = []
    with threadpool_limits(threads):
        for call in range(1, n_calls + 1):
            if what == "fit":
                make().fit(X)
            else:
                detector.score_samples(X[:1])
            if call % (n_calls // READINGS) == 0:
                rows.append({"case": case, "what": what, "calls": call, "MiB": peak_mebibytes()})
    return rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--fits", type=int, default=1_000)
    parser.add_argument("--scores", type=int, default=100_000, help="of tables")
    parser.add_argument("--image-scores", type=int, default=1_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="keep the rows already written")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    csv = args.output / "memory.csv"
    rows = pd.read_csv(csv).to_dict("records") if args.resume and csv.exists() else []
    done = {(row["case"], row["what"]) for row in rows}
    for case in args.cases:
        n_scores = args.scores if CASES[case][1] == TABLE else args.image_scores
        for what, n_calls in (("fit", args.fits), ("score", n_scores)):
            if (case, what) in done:
                continue
            # A process of its own, whose peak nothing else has raised.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows += pool.apply(measure, (case, what, n_calls, args.threads))
            print(f"{case:<13} {what:<6} {rows[-1]['MiB']:.1f} MiB", flush=True)
            pd.DataFrame(rows).to_csv(csv, index=False, float_format="%.6g")
    readings = pd.DataFrame(rows).groupby(["case", "what"], sort=False)
    table = readings.agg(
        calls=("calls", "last"), first=("MiB", "first"), last=("MiB", "last")
    ).rename(columns={"first": "MiB after a tenth", "last": "MiB after all"})
    table.index = table.index.map(": ".join)
    table["growth"] = table["MiB after all"] - table["MiB after a tenth"]
    write_markdown(
        args.output / "memory.md",
        "Memory over many calls",
        [
            f"Peak resident memory, threads: {args.threads}, every line of a process of its own: "
            f"fits of {TABLE[0]} rows of {TABLE[1]} columns, or of {IMAGES[0]} images of "
            f"{IMAGES[2]} x {IMAGES[3]} pixels, and scores of single rows or images.",
            f"`python -m benchmarks.memory --threads {args.threads}` repeats it.",
        ],
        [table],
    )
    print(table.to_markdown())


if __name__ == "__main__":
    main()
