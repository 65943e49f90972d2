"""What does the package add to bare PyTorch? Ratios, measured in turn in one process.

Training: a block of steps by `fit`'s own loop, with its callbacks and records, over the same steps
in a bare loop (`benchmarks.bare_loops`). Scoring: `score_samples` over the arithmetic alone.
Importing: the package over PyTorch and scikit-learn, each in a new process.

    python -m benchmarks.overhead
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.callback import CallbackContext
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from benchmarks import bare_loops
from benchmarks.report import write_markdown
from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.avid import CellInpainting
from sklearn_g2d.g2d import WassersteinGAN
from sklearn_g2d.training.loop import Training
from sklearn_g2d.training.trainer import Trainer

N_ROWS, N_COLUMNS, N_NEW, STEPS = 5_000, 30, 20_000, 100
N_MASKS = 20  # under which AVID inpaints a row

Work = Callable[[], object]


class StageBegunError(Exception):
    """Ends a fit where a stage begins."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__("The stage has begun.")
        self.trainer = trainer


class EndAtStage:
    """A callback that ends a fit where a stage begins."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def setup(self, estimator: Any, context: CallbackContext) -> None: ...

    def teardown(self, estimator: Any, context: CallbackContext) -> None: ...

    def on_fit_task_begin(
        self, estimator: Any, context: CallbackContext, *, metadata: dict[str, Any] | None = None
    ) -> None:
        if context.task_name == self.stage and metadata is not None:
            raise StageBegunError(metadata["training"].trainer)

    def on_fit_task_end(self, estimator: Any, context: CallbackContext) -> None: ...


def trainer_of(detector: Any, stage: str, X: NDArray) -> Trainer:
    """Give the trainer of a stage of a fit, at its first step."""
    try:
        detector.set_callbacks(EndAtStage(stage)).fit(X)
    except StageBegunError as begun:
        return begun.trainer
    raise ValueError(f"{detector} has no stage {stage!r}.")


def trainings(X: NDArray) -> Iterator[tuple[str, Work, Work]]:
    """Pairs of a block of steps, the package's and the bare one."""
    rows = torch.from_numpy(X).float()
    g2d = G2DOutlierDetector(generator=WassersteinGAN(), random_state=0)
    yield (
        "step of G2D's GAN",
        block(trainer_of(g2d, "generator", X)),
        repeated(bare_loops.gan(rows)),
    )
    profiles = torch.randn(N_ROWS, 20, generator=torch.Generator().manual_seed(0))
    yield (
        "step of G2D's classifier",
        block(trainer_of(G2DOutlierDetector(random_state=0), "classifier", X)),
        repeated(bare_loops.classifier(profiles, 3 + profiles.repeat(2, 1))),
    )
    yield (
        "step of AVID on tables",
        block(trainer_of(AVIDDetector(random_state=0), "networks", X)),
        repeated(bare_loops.cells(rows)),
    )


def block(trainer: Trainer, n_steps: int = STEPS) -> Work:
    """Take steps as `fit` takes them."""
    return lambda: Training(trainer, n_steps).run(lambda step, losses: False, remedy="")


def repeated(step: bare_loops.Step) -> Work:
    """Take as many steps in a bare loop."""
    return lambda: [step() for _ in range(STEPS)]


def scorings(X: NDArray, X_new: NDArray) -> Iterator[tuple[str, Work, Work]]:
    """Pairs of `score_samples` and its arithmetic."""
    g2d = G2DOutlierDetector(random_state=0).fit(X)
    profile, scaler = g2d.profile_, g2d.scaler_
    search = NearestNeighbors(n_neighbors=21, algorithm="brute").fit(profile.reference_)
    classifier = bare_loops.scoring_layers(20, 16, 2)

    @torch.no_grad()
    def bare_g2d() -> NDArray:
        z = (X_new - scaler.mean_) / scaler.scale_
        distances, _ = search.kneighbors(z / np.hypot(1, z / scaler.bound_))
        logs = np.log(distances[:, :-1] + profile.floor_)
        profiles = torch.from_numpy((logs - profile.center_) / profile.scale_)
        logits = bare_loops.perceptron(profiles.expand(bare_loops.MEMBERS, -1, -1), classifier)
        return (logits[..., 0] - logits[..., 1]).mean(0).numpy()

    yield "scores of G2D", lambda: g2d.score_samples(X_new), bare_g2d

    avid = AVIDDetector(training=CellInpainting(max_steps=50), random_state=0).fit(X)
    inpainter = bare_loops.scoring_layers(2 * N_COLUMNS, 128, 128, N_COLUMNS, members=1)
    detector = bare_loops.scoring_layers(N_COLUMNS, 128, 128, N_COLUMNS, members=1)
    scaler_of_cells = StandardScaler().fit(X)
    masks = torch.eye(N_MASKS, N_COLUMNS, dtype=torch.float64)

    @torch.no_grad()
    def bare_avid() -> None:
        rows = torch.from_numpy(scaler_of_cells.transform(X_new))
        for batch in rows.split(8192):
            for mask in masks:
                seen = torch.cat([batch * (1 - mask), mask.expand_as(batch)], 1)
                bare_loops.perceptron(seen[None], inpainter)
            bare_loops.perceptron(batch[None], detector)

    yield "scores of AVID on tables", lambda: avid.score_samples(X_new), bare_avid


def seconds(work: Work) -> float:
    """Time it once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def imports() -> tuple[str, Work, Work]:
    """Import the package, and what it stands on, in new processes."""

    def run(code: str) -> Work:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    return "import", run("import sklearn_g2d"), run("import torch, sklearn")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.overhead", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N_ROWS, N_COLUMNS))
    X_new = rng.normal(size=(N_NEW, N_COLUMNS))
    torch.set_num_threads(1)
    runs = []
    with threadpool_limits(1):
        pairs = [*trainings(X), *scorings(X, X_new), imports()]
        for number in range(args.rounds + 1):
            for name, ours, bare in pairs:
                # Who comes first in a round may find a warmer, or a busier, machine.
                if number % 2:
                    by_package, by_bare = seconds(ours), seconds(bare)
                else:
                    by_bare, by_package = seconds(bare), seconds(ours)
                if number:  # the first round warms up
                    runs.append((name, number, by_package, by_bare))
    results = pd.DataFrame(runs, columns=["what", "round", "package", "bare"])
    results["ratio"] = results.package / results.bare
    results.to_csv(args.output / "overhead.csv", index=False, float_format="%.5g")
    table = results.groupby("what", sort=False).agg(
        median=("ratio", "median"), least=("ratio", "min"), most=("ratio", "max")
    )
    write_markdown(
        args.output / "overhead.md",
        "What the package adds to bare PyTorch",
        [
            f"Seconds of the package over seconds of the same arithmetic in bare PyTorch: {STEPS} "
            f"training steps as `fit` takes them; scores of {N_NEW:,} rows, {N_COLUMNS} columns, "
            f"{N_ROWS:,} training rows; the import over that of torch and sklearn. One thread, "
            f"{args.rounds} rounds in which the two take turns.",
            "`python -m benchmarks.overhead` repeats it.",
        ],
        [table],
    )
    print(table.to_markdown(floatfmt=".3f"))


if __name__ == "__main__":
    main()
