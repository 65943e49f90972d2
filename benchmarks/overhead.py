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

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from benchmarks import bare_loops
from benchmarks.report import write_markdown
from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d._base import BaseDetector
from sklearn_g2d.avid._models import TablePlayers
from sklearn_g2d.avid._recipes import AVID_RECIPES
from sklearn_g2d.g2d._classifier import ClassifierTrainer
from sklearn_g2d.g2d._networks import TableGenerator
from sklearn_g2d.g2d._recipes import G2D_RECIPES
from sklearn_g2d.g2d._wgan import WGAN
from sklearn_g2d.training.ensemble import EnsembleMLP
from sklearn_g2d.training.runtime import Runtime
from sklearn_g2d.training.trainer import Trainer

N_ROWS, N_COLUMNS, N_NEW, STEPS = 5_000, 30, 20_000, 100

Work = Callable[[], object]


def trainings(X: torch.Tensor, profiles: torch.Tensor) -> Iterator[tuple[str, Work, Work]]:
    """Pairs of a block of steps, the package's and the bare one."""
    recipe, runtime = G2D_RECIPES["default"], Runtime.create("cpu", "float32", 0)
    n_members = recipe.n_estimators
    generator = TableGenerator(
        n_members=n_members,
        n_features=N_COLUMNS,
        latent_dim=N_COLUMNS,
        hidden=recipe.hidden,
        skip=True,
        tail=recipe.latent_tail,
        bound=recipe.bound,
        rng=runtime.rng,
    )
    critic = EnsembleMLP(n_members, (N_COLUMNS, *recipe.hidden, 1), runtime.rng)
    gan = WGAN(generator, critic, X, recipe.gan_training, runtime)
    yield "step of G2D's GAN", block(G2DOutlierDetector(), gan), repeated(bare_loops.gan(X))

    generated = 3 + profiles.repeat(2, 1)
    network = EnsembleMLP(n_members, (profiles.shape[1], *recipe.classifier_hidden, 2), runtime.rng)
    folds = (torch.arange(n_members) % 4)[:, None] == torch.arange(len(profiles)) % 4
    trainer = ClassifierTrainer(
        network, profiles, generated, folds, recipe.classifier_training, runtime
    )
    bare = repeated(bare_loops.classifier(profiles, generated))
    yield "step of G2D's classifier", block(G2DOutlierDetector(), trainer), bare

    players = TablePlayers(X.numpy(), AVID_RECIPES["default"], runtime)
    game = players.game(X.numpy(), X.numpy(), AVID_RECIPES["default"], runtime)
    yield "step of AVID on tables", block(AVIDDetector(), game), repeated(bare_loops.cells(X))


def block(detector: BaseDetector, trainer: Trainer) -> Work:
    """Take steps as `fit` takes them."""
    context = detector._init_callback_context(max_subtasks=10**6)
    return lambda: detector._train("benchmark", trainer, STEPS, context, remedy="")


def repeated(step: bare_loops.Step) -> Work:
    """Take as many steps in a bare loop."""
    return lambda: [step() for _ in range(STEPS)]


def scorings(X: NDArray, X_new: NDArray) -> Iterator[tuple[str, Work, Work]]:
    """Pairs of `score_samples` and its arithmetic."""
    detector = G2DOutlierDetector(random_state=0).fit(X)
    profile, scaler = detector._representation._profile, detector._representation._scaler
    assert profile is not None
    search = NearestNeighbors(n_neighbors=21, algorithm="brute").fit(profile.reference_)
    network = detector._classifiers.network

    @torch.no_grad()
    def bare_g2d() -> NDArray:
        z = (X_new - scaler.scaler_.mean_) / scaler.scaler_.scale_
        distances, _ = search.kneighbors(z / np.hypot(1, z / 8))
        profiles = (np.log(distances[:, :-1] + profile._floor) - profile.center_) / profile.scale_
        logits = network(torch.from_numpy(profiles).expand(8, -1, -1))
        return (logits[..., 0] - logits[..., 1]).mean(0).numpy()

    yield "scores of G2D", lambda: detector.score_samples(X_new), bare_g2d

    avid = AVIDDetector(max_steps=50, random_state=0).fit(X)
    (pair,) = avid._players

    @torch.no_grad()
    def bare_avid() -> None:
        rows = torch.from_numpy((X_new - pair.scaler.scaler_.mean_) / pair.scaler.scaler_.scale_)
        for batch in rows.split(8192):
            for mask in pair.regions.partition(batch):
                pair.inpainter(batch, mask)
            pair.detector(batch)

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
        tensor = torch.from_numpy(X).float()
        profiles = torch.randn(N_ROWS, 20, generator=torch.Generator().manual_seed(0))
        pairs = [*trainings(tensor, profiles), *scorings(X, X_new), imports()]
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
            f"`python -m benchmarks.overhead --rounds {args.rounds}` repeats it.",
        ],
        [table],
    )
    print(table.to_markdown(floatfmt=".3f"))


if __name__ == "__main__":
    main()
