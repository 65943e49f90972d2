"""How long does a default fit take, by the size of the data? Tables, photographs and video.

One fit of each case, then scores of new data. The data are made, or cut from a photograph that
scikit-learn ships, because time depends on their size much more than on what they show.

    OMP_NUM_THREADS=1 python -m benchmarks.times
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image
from threadpoolctl import threadpool_limits

from benchmarks.report import write_markdown
from benchmarks.speed import draw_rows
from sklearn_g2d import AVIDDetector, G2DOutlierDetector, PatchDetector
from sklearn_g2d.video import for_fixed_camera


class Case(NamedTuple):
    """A detector, data to fit it on, and data to score."""

    detector: str
    data: str
    make: Callable[[], Any]
    draw: Callable[[], tuple[Any, Any]]
    n_scored: int


def table(n_rows: int, n_columns: int) -> Case:
    """Draw rows near planes, in four places."""

    def draw() -> tuple[NDArray, NDArray]:
        X = draw_rows(n_rows + 1000, n_columns)
        return X[:n_rows], X[n_rows:]

    data = f"{n_rows:,} rows x {n_columns} columns"
    return Case("G2DOutlierDetector", data, lambda: G2DOutlierDetector(random_state=0), draw, 1000)


def photographs(detector: type, n_images: int, size: int) -> Case:
    """Take views of a flower, each a little shifted, under changing light."""

    def draw() -> tuple[NDArray, NDArray]:
        rng = np.random.default_rng(0)
        flower = load_sample_image("flower.jpg").transpose(2, 0, 1).astype(float)
        step, images = 256 // size, []
        for _ in range(n_images + 20):
            down, across = np.array([80, 160]) + rng.integers(-8, 9, size=2)
            view = flower[:, down : down + 256 : step, across : across + 256 : step]
            images.append(rng.uniform(0.8, 1.1) * view + rng.normal(scale=3, size=view.shape))
        X = np.stack(images).clip(0, 255).astype(np.uint8)
        return X[:n_images], X[n_images:]

    data = f"{n_images} images of {size} x {size} pixels"
    return Case(detector.__name__, data, lambda: detector(random_state=0), draw, 20)


def camera(n_frames: int) -> Case:
    """Make clips of figures that walk, 240 x 320 pixels, 25 frames a second."""

    def clip(seed: int, n: int) -> NDArray:
        rng = np.random.default_rng(seed)
        frames = rng.normal(150, 3, size=(n, 3, 240, 320)).clip(0, 255).astype(np.uint8)
        for number in range(5):
            figure = rng.integers(20, 120, size=(3, 10, 4)).repeat(4, axis=1).repeat(4, axis=2)
            start, speed = rng.uniform(0, 320), rng.choice([-1.5, 1.5])
            for t, frame in enumerate(frames):
                columns = (int(start + speed * t + 3 * np.sin(t / 8)) + np.arange(16)) % 320
                frame[:, 46 * number : 46 * number + 40, columns] = figure
        return frames

    def draw() -> tuple[list[NDArray], NDArray]:
        return [clip(seed, n_frames // 5) for seed in range(5)], clip(5, 200)

    def make() -> Any:
        return for_fixed_camera(frame_rate=25, random_state=0)

    data = f"{n_frames:,} frames of 240 x 320 pixels"
    return Case("for_fixed_camera", data, make, draw, 200)


CASES = [
    *(table(n_rows, n_columns) for n_columns in (10, 100) for n_rows in (200, 2_000, 20_000)),
    *(photographs(PatchDetector, n_images, 256) for n_images in (50, 200)),
    camera(1_000),
    photographs(AVIDDetector, 200, 64),
]


def measure(case: Case) -> dict[str, Any]:
    """Fit once, score once. Time of the processor, which others may use as well."""
    X, X_new = case.draw()
    start = time.process_time()
    detector = case.make().fit(X)
    fitted = time.process_time()
    detector.score_samples(X_new)
    milliseconds = 1000 * (time.process_time() - fitted) / case.n_scored
    return {
        "detector": case.detector,
        "data": case.data,
        "fit_seconds": fitted - start,
        "score_milliseconds": milliseconds,
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    runs = []
    with threadpool_limits(args.threads):
        table(200, 10).make().fit(draw_rows(200, 10))  # loads what loads on first use
        for case in CASES:
            runs.append(measure(case))
            print(runs[-1], flush=True)
    results = pd.DataFrame(runs)
    results.to_csv(args.output / "times.csv", index=False, float_format="%.3g")
    headings = {
        "fit_seconds": "fit, seconds",
        "score_milliseconds": "score, ms per row, image or frame",
    }
    write_markdown(
        args.output / "times.md",
        "How long a default fit takes",
        [
            "One fit of each detector at its defaults, then the scores of new data; one run. Times "
            f"are the processor's, on {args.threads} thread. Read them as orders of magnitude.",
            "Rows are drawn from four clusters around planes, 1,000 more are scored. Images are "
            "views of a photograph that scikit-learn ships, and 20 more are scored. Frames show "
            "five figures that walk, at 25 frames per second; 200 more are scored.",
            f"`OMP_NUM_THREADS={args.threads} python -m benchmarks.times` repeats it, in some "
            "minutes. All figures are in [times.csv](times.csv).",
        ],
        [results.rename(columns=headings).set_index("detector")],
    )


if __name__ == "__main__":
    main()
