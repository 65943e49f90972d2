"""Ask how much memory and time it takes to judge a folder of photographs, by each way.

Photographs of 640 x 480 pixels are made and written as JPEG files, and a `PatchDetector` is fitted
on good ones, at 256 pixels. Each way then judges the others in a process of its own.

    python -m benchmarks.folders
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from benchmarks.memory import peak_mebibytes
from benchmarks.report import write_markdown
from sklearn_g2d import PatchDetector
from sklearn_g2d import dask as lazily
from sklearn_g2d.__main__ import main as command
from sklearn_g2d.datasets import load_images
from sklearn_g2d.features import PretrainedFeatures

MODEL, SIZE = "model.skops", 256


def write_photographs(folder: Path, n: int, seed: int) -> None:
    """Make photographs that show one part under noise."""
    from PIL import Image

    folder.mkdir(parents=True)
    part = np.random.default_rng(0).integers(0, 200, (30, 40, 3), dtype=np.uint8)
    part, rng = part.repeat(16, axis=0).repeat(16, axis=1), np.random.default_rng(seed)
    for i in range(n):
        noise = rng.integers(0, 50, (*part.shape[:2], 1), dtype=np.uint8)
        Image.fromarray(part + noise).save(folder / f"{i:05}.jpg")


def nothing(folder: str) -> None:
    """Only load the detector."""
    PatchDetector.load(MODEL)


def inspect(folder: str) -> None:
    """Write a report by the command."""
    options = f"--model {MODEL} --out report --overwrite --quiet --overlays 1".split()
    command(["inspect", folder, *options])


def by_dask(folder: str, scheduler: str) -> None:
    """Score a folder that is read lazily."""
    images = lazily.load_images(folder, size=SIZE).images
    lazily.score_samples(PatchDetector.load(MODEL), images).compute(scheduler=scheduler)


def features_by_dask(folder: str) -> None:
    """Describe a folder that is read lazily by means of maps."""
    images = lazily.load_images(folder, size=SIZE).images
    features = PretrainedFeatures().fit(images[:1].compute(scheduler="synchronous"))
    lazily.transform(features, images).compute(scheduler="synchronous")


def at_once(folder: str, memory_map: str | None = None) -> None:
    """Score an array, in memory or in a file."""
    images = load_images(folder, size=SIZE, memory_map=memory_map).images
    PatchDetector.load(MODEL).score_samples(images)


WAYS: dict[str, Callable[[str], None]] = {
    "the detector is loaded, nothing is judged": nothing,
    "`python -m sklearn_g2d inspect`": inspect,
    "`sklearn_g2d.dask`, one thread": partial(by_dask, scheduler="synchronous"),
    "`sklearn_g2d.dask`, threads": partial(by_dask, scheduler="threads"),
    "`memory_map=`, then `score_samples`": partial(at_once, memory_map="images.npy"),
    "all in memory, then `score_samples`": at_once,
    "`transform` of `PretrainedFeatures()`, by dask": features_by_dask,
}


def prepare(place: str, n_good: int, n_new: int) -> None:
    """Write photographs and a detector."""
    good = Path(place, "good")
    write_photographs(good, n_good, seed=1)
    write_photographs(Path(place, "new"), n_new, seed=2)
    detector = PatchDetector(random_state=0).fit(load_images(good, size=SIZE).images)
    detector.save(Path(place, MODEL))


def _alone(function: Callable[..., Any], *args: Any) -> Any:
    """Call it in a process of its own; the peak of a process counts in those that it starts."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def measure(way: str, place: str, folder: str, n: int) -> dict[str, Any]:
    """Judge one folder, in a process that has done nothing else."""
    torch.set_num_threads(1)
    with chdir(place), threadpool_limits(1):
        start = time.process_time()
        WAYS[way](folder)
        seconds = time.process_time() - start
    return {"way": way, "photographs": n, "seconds": seconds, "MiB": peak_mebibytes()}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--good", type=int, default=100)
    parser.add_argument("--photographs", type=int, nargs="+", default=[50, 200])
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        _alone(prepare, place, args.good, max(args.photographs))
        for n in args.photographs:
            folder = Path(place, str(n))
            folder.mkdir()
            for path in sorted(Path(place, "new").iterdir())[:n]:
                os.link(path, folder / path.name)
            for way in WAYS:
                rows.append(_alone(measure, way, place, str(n), n))
                print(rows[-1], flush=True)
    results = pd.DataFrame(rows)
    results.to_csv(args.output / "folders.csv", index=False, float_format="%.4g")
    results["seconds for 1,000"] = 1000 * results["seconds"] / results["photographs"]
    table = results.pivot_table(
        index="way", columns="photographs", values=["MiB", "seconds for 1,000"], sort=False
    )
    table.columns = [f"{name}, of {n}" for name, n in table.columns]
    write_markdown(
        args.output / "folders.md",
        "Folders of photographs",
        [
            f"Photographs of 640 x 480 pixels, judged at {SIZE} x {SIZE * 4 // 3} pixels by a "
            f"`PatchDetector()` that was fitted on {args.good}. Processor time of loading the "
            "detector, reading and judging, without imports, and the peak of the resident memory, "
            "of one process each; each computation has one thread.",
            "`python -m benchmarks.folders` repeats it.",
        ],
        [table.round(1)],
    )
    print(table.to_markdown())


if __name__ == "__main__":
    main()
