"""Does the training of the generator pay? What the classifier learns from, and sees, varied.

Protocol: `benchmarks.tabular`'s with at most 2,000 training rows, 2,000 normal test rows and
2,000 outliers. For each table and seed the rows are scaled and described once. Then the default
classifier is trained on other generated rows, or on other inputs, and judged by its AUC. Seeds are
those of the split and the detector.

    python -m benchmarks.negatives --data ../shared/data/adbench
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.preprocessing import FunctionTransformer

from benchmarks import tabular
from benchmarks.report import write_markdown
from benchmarks.runner import Case, choose, command, make_parser, run
from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.features import NeighborProfile, SquashingScaler
from sklearn_g2d.g2d import NetworkClassifier, Snapshot, WassersteinGAN
from sklearn_g2d.metrics import outlier_roc_auc_score

MAX_ROWS = 2_000  # for training, and of each label for testing
N_NEIGHBORS, N_GENERATED = 20, 2.0  # the detector's defaults

View = Callable[[NDArray], NDArray]


class Given(BaseEstimator):
    """A generator whose samples are given."""

    def __init__(self, rows: NDArray) -> None:
        self.rows = rows

    def fit(self, X: NDArray, y: Any = None) -> Given:
        return self

    def sample(self, n_samples: int) -> NDArray:
        return self.rows[:n_samples]


class Scaled(FunctionTransformer):
    """Leaves rows, which are scaled already, as they are; generators stay within `bound_`."""

    bound_ = SquashingScaler().bound


@dataclass
class Table:
    """Normal rows in the generator's space, and all that is asked of them.

    Attributes
    ----------
    points, new : ndarray of shape (n, n_features)
        Training and test rows, scaled.
    profile : NeighborProfile
        Fitted on the training rows.
    profiles : ndarray of shape (n, n_neighbors)
        Those of the training rows.
    labels : ndarray of shape (n_test,)
        +1 for inliers, -1 for outliers.
    """

    points: NDArray
    profile: NeighborProfile
    profiles: NDArray
    new: NDArray
    labels: NDArray
    seed: int
    _generators: dict[int, WassersteinGAN] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, seed: int) -> Table:
        """Read a file of ADBench."""
        X, X_new, labels = tabular.one_class_split(path, seed)
        few = np.concatenate([np.flatnonzero(labels == label)[:MAX_ROWS] for label in (1, -1)])
        scaler, profile = SquashingScaler(), NeighborProfile(N_NEIGHBORS)
        points = scaler.fit_transform(X[:MAX_ROWS])
        profiles = profile.fit_transform(points)
        return cls(points, profile, profiles, scaler.transform(X_new[few]), labels[few], seed)

    @property
    def n_generated(self) -> int:
        """Rows to generate."""
        return round(N_GENERATED * len(self.points))

    def describe(self, rows: NDArray) -> NDArray:
        """Give the neighbour profiles of new rows."""
        return self.profile.transform(rows)

    def generator(self, steps: int, points: NDArray | None = None) -> WassersteinGAN:
        """Train on the rows, or on `points`."""
        if points is None and steps in self._generators:
            return self._generators[steps]
        detector = G2DOutlierDetector(
            scaler=Scaled(),
            generator=WassersteinGAN(max_steps=steps),
            classifier=NetworkClassifier(max_steps=1),
            random_state=self.seed,
        )
        generator = detector.fit(self.points if points is None else points).generator_
        if points is None:
            self._generators[steps] = generator
        return generator

    def draw(
        self,
        generator: WassersteinGAN,
        n: int,
        keep: Callable[[list[Snapshot]], list[Snapshot]] = list,
    ) -> NDArray:
        """Draw rows from the snapshots to keep."""
        rng = torch.Generator().manual_seed(self.seed)
        return generator.draw(n, rng, keep(generator.snapshots_))

    def detect(self, generated: NDArray, views: list[View]) -> NDArray:
        """Train D on what views show of normal and generated rows; scores of the new ones."""

        def see(rows: NDArray) -> NDArray:
            return np.hstack([view(rows) for view in views])

        return self.judge(see(self.points), see(generated))(see(self.new))

    def judge(self, normal: NDArray, generated: NDArray) -> View:
        """Train D on rows as it sees them; returns the function that scores further ones."""
        detector = G2DOutlierDetector(
            scaler=Scaled(),
            generator=Given(generated),
            n_generated=len(generated) / len(normal),
            n_neighbors=0,
            random_state=self.seed,
        )
        return detector.fit(normal).score_samples


# What D learns from


def made(
    table: Table,
    steps: int,
    keep: Callable[[list[Snapshot]], list[Snapshot]] = list,
    times: int = 1,
) -> NDArray:
    """Rows of the snapshots to keep."""
    return table.draw(table.generator(steps), times * table.n_generated, keep)


def made_outside(table: Table, steps: int, keep: Callable = list) -> NDArray:
    """Make the same, without those as near to normal rows as nine in ten of these are."""
    rows = made(table, steps, keep, times=4)
    farthest = table.describe(rows)[:, -1]
    outside = rows[farthest > np.quantile(table.profiles[:, -1], 0.9)][: table.n_generated]
    return outside if len(outside) else rows[: table.n_generated]


def made_unsure(table: Table) -> NDArray:
    """Make, untrained, in two rounds: in the second, half are rows of which D was least sure."""
    first = made(table, 0)
    score = table.judge(table.profiles, table.describe(first))
    candidates = made(table, 0, times=8)
    unsure = np.argsort(np.abs(score(table.describe(candidates))))[: table.n_generated // 2]
    return np.concatenate([first[: table.n_generated - len(unsure)], candidates[unsure]])


def half_local(
    table: Table, change: Callable[[Table, NDArray, np.random.Generator], NDArray]
) -> NDArray:
    """Make half, untrained; the others are normal rows, 3 cells in 10 and one at least changed."""
    rng = np.random.default_rng(table.seed)
    rows = made(table, 0)
    n, n_columns = len(rows) // 2, rows.shape[1]
    origin = table.points[rng.integers(len(table.points), size=n)]
    changed = rng.random((n, n_columns)) < 0.3
    changed[np.arange(n), rng.integers(n_columns, size=n)] = True
    rows[:n] = np.where(changed, change(table, origin, rng), origin)
    return rows


def exchange(table: Table, rows: NDArray, rng: np.random.Generator) -> NDArray:
    """Put values of other rows in place."""
    others = rng.integers(len(table.points), size=rows.shape)
    return np.take_along_axis(table.points, others, axis=0)


def disturb(table: Table, rows: NDArray, rng: np.random.Generator, deviation: float) -> NDArray:
    """Add noise."""
    return rows + deviation * rng.normal(size=rows.shape)


def last(snapshots: list[Snapshot]) -> list[Snapshot]:
    """Keep the last one."""
    return snapshots[-1:]


def later(snapshots: list[Snapshot]) -> list[Snapshot]:
    """Keep those of the second half of the training."""
    return [s for s in snapshots if 2 * s.step >= snapshots[-1].step]


# What D sees


def profile(table: Table) -> View:
    """See neighbour profiles, the default."""
    return table.describe


def position(_: Table) -> View:
    """See the row itself."""
    return lambda rows: rows


def reconstruction(table: Table) -> View:
    """See how far rows are from mixtures of their neighbours, as for images."""
    return NeighborProfile(N_NEIGHBORS, "reconstruction").fit(table.points).transform


def critic(table: Table) -> View:
    """See the critic's score after 150 steps, standardised by normal rows."""
    network = table.generator(150)._critic  # no part of the public interface

    @torch.no_grad()
    def score(rows: NDArray) -> NDArray:
        X = torch.as_tensor(rows, dtype=torch.float32).expand(network.n_members, -1, -1)
        return network(X).mean((0, 2)).double().numpy()[:, None]

    normal = score(table.points)
    return lambda rows: (score(rows) - normal.mean()) / (normal.std() + 1e-6)


def in_profile_space(table: Table, steps: int) -> NDArray:
    """Train the generator on the profiles themselves; scores of the new rows."""
    generated = table.draw(table.generator(steps, table.profiles), table.n_generated)
    return table.judge(table.profiles, generated)(table.describe(table.new))


def learn(make: Callable[[Table], NDArray], *views: Callable[[Table], View]) -> Callable:
    """Make a variant: D learns from what is made, seen by views (the profile by default)."""
    return lambda table: table.detect(make(table), [view(table) for view in views or (profile,)])


untrained = partial(made, steps=0)
trained = partial(made, steps=150)

VARIANTS: dict[str, Callable[[Table], NDArray]] = {
    "untrained": learn(untrained),
    "150 steps, all snapshots": learn(trained),
    "600 steps, all snapshots": learn(partial(made, steps=600)),
    "600 steps, later half": learn(partial(made, steps=600, keep=later)),
    "600 steps, later half, outside": learn(partial(made_outside, steps=600, keep=later)),
    "1500 steps, last": learn(partial(made, steps=1500, keep=last)),
    "1500 steps, last, outside": learn(partial(made_outside, steps=1500, keep=last)),
    "untrained, half where D is unsure": learn(made_unsure),
    "half exchanged cells": learn(partial(half_local, change=exchange)),
    "half noise of 1 in cells": learn(partial(half_local, change=partial(disturb, deviation=1.0))),
    "half noise of .3 in cells": learn(partial(half_local, change=partial(disturb, deviation=0.3))),
    "in profile space, untrained": partial(in_profile_space, steps=0),
    "in profile space, 150 steps": partial(in_profile_space, steps=150),
    "D sees critic too, untrained": learn(untrained, profile, critic),
    "D sees critic too, 150 steps": learn(trained, profile, critic),
    "D sees row too": learn(untrained, profile, position),
    "D sees reconstruction too": learn(untrained, profile, reconstruction),
    "D sees reconstruction only": learn(untrained, reconstruction),
    "D sees row only, untrained": learn(untrained, position),
    "D sees row only, 150 steps": learn(trained, position),
}


def open_case(folder: Path, name: str, seed: int) -> Case:
    """Open a table for `run`."""
    table = Table.open(folder / f"{name}.npz", seed)

    def measure(variant: str) -> list[dict[str, Any]]:
        return [{"auc": outlier_roc_auc_score(table.labels, VARIANTS[variant](table))}]

    return Case({"n_train": len(table.points), "n_test": len(table.labels)}, measure)


def summarize(results: pd.DataFrame) -> pd.DataFrame:
    """Mean figures, and how many tables gain or lose more than .005 AUC by a variant."""
    by_table = results.pivot_table("auc", "table", "detector")
    gain = by_table.sub(by_table["untrained"], axis=0)
    by_seed = results.pivot_table("auc", "seed", "detector")
    return pd.DataFrame(
        {
            "AUC": by_table.mean(),
            "gain": gain.mean(),
            "least gain of a seed": by_seed.sub(by_seed["untrained"], axis=0).min(),
            "most": by_seed.sub(by_seed["untrained"], axis=0).max(),
            "tables up": (gain > 0.005).sum(),
            "tables down": (gain < -0.005).sum(),
        }
    ).loc[[name for name in VARIANTS if name in by_table]]


def main() -> None:
    """Run from the command line."""
    parser = make_parser(__doc__, "negatives", data_help="folder of ADBench's .npz files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.set_defaults(detectors=list(VARIANTS))
    args = parser.parse_args()
    chosen = choose(parser, args.detectors, VARIANTS)
    tables = tabular.table_names(args.data, parser)
    results = run("table", tables, partial(open_case, args.data), chosen, args)
    summary = summarize(results)
    write_markdown(
        args.output / f"{args.name}.md",
        "What D learns from, and what it sees",
        [
            f"{results.table.nunique()} tables of ADBench, at most {MAX_ROWS:,} training "
            "rows, one-class protocol; mean over tables and seeds "
            f"({', '.join(map(str, sorted(results.seed.unique())))}). D is the default "
            "classifier; its generated rows, or its inputs, vary. Gains are over the untrained "
            "generator, whose samples are a cloud around the normal rows; tables up or down by "
            "more than .005.",
            f"`{command(parser, args.name, seeds=sorted(results.seed.unique()))}` repeats it.",
        ],
        [summary],
    )
    print(summary.to_markdown(floatfmt=".4f"))


if __name__ == "__main__":
    main()
