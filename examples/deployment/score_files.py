"""Score files that together are larger than memory, several at a time.

    python examples/deployment/score_files.py --normal normal.npy files/*.npy

Every file is an array of rows. A worker reads one, scores it and forgets it. Without arguments
the script makes some files of its own.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from dask import bag
from dask.distributed import Client, LocalCluster

from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.dask import score_samples


def score_files(detector: G2DOutlierDetector, paths: Sequence[str]) -> bag.Bag:
    """Scores of each file, read and computed only when they are asked for."""
    return score_samples(detector, bag.from_sequence(paths, partition_size=1).map(np.load))


def make_files(folder: Path) -> tuple[str, list[str]]:
    """Write normal rows to train on, and eight files with more outliers from one to the next."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(2, 10))

    def rows(n: int, n_outliers: int = 0) -> np.ndarray:
        X = rng.normal(size=(n, 2)) @ mixing + 0.1 * rng.normal(size=(n, 10))
        X[:n_outliers] = rng.permuted(X[:n_outliers], axis=1)
        return X

    arrays = {"normal": rows(1000), **{f"{i}": rows(20_000, 1000 * i) for i in range(8)}}
    for name, X in arrays.items():
        np.save(folder / f"{name}.npy", X)
    normal, *others = (str(folder / f"{name}.npy") for name in arrays)
    return normal, others


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="to score")
    parser.add_argument("--normal", help="file of normal rows to train on")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", default="1GB", help="that each worker may use")
    args = parser.parse_args()
    if bool(args.files) != bool(args.normal):
        parser.error("give both --normal and files to score, or neither")
    with tempfile.TemporaryDirectory() as folder:
        normal, files = (args.normal, args.files) if args.files else make_files(Path(folder))
        detector = G2DOutlierDetector(random_state=0).fit(np.load(normal))
        with (
            LocalCluster(args.workers, threads_per_worker=1, memory_limit=args.memory) as cluster,
            Client(cluster),
        ):
            by_file = score_files(detector, files).compute()
        for path, scores in zip(files, by_file, strict=True):
            share = np.mean(scores < detector.offset_)
            print(f"{path}: {len(scores):,} rows, {share:.1%} of them outliers")


if __name__ == "__main__":  # the workers import this file
    main()
