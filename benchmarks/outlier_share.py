"""What does the share of outliers in the test set do? The paper's Fig. 5, on MNIST.

Protocol: train on a random 80 % of a digit's training images, calibrate on the others; test
on all test images of the digit and as many random others as make up 10 to 50 %. The seeds
are those of the split, of the outliers and of the detectors.

    python -m benchmarks.outlier_share --data ../shared/data
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.detectors import Detector
from benchmarks.images import (
    CONTAMINATION,
    DETECTORS,
    Task,
    figures,
    image_detectors,
    open_task,
    read_archive,
)
from benchmarks.mnist import ARCHIVE, DIGITS
from benchmarks.report import plot_curves, write_markdown
from benchmarks.runner import choose, command, make_parser, run

SHARES = [0.1, 0.2, 0.3, 0.4, 0.5]
TRAIN_SHARE = 0.8
FALSE_ALARM_RATE = 0.05
CLASSES = {"f1_normal": "F1 of the normal class", "f1": "F1 of the outliers"}


def n_outliers(n_normal: int, share: float) -> int:
    """How many outliers make up a share of the test set."""
    return round(n_normal * share / (1 - share))


def share_task(mnist: dict[str, NDArray], digit: int, seed: int) -> Task:
    """Learn one digit; the test images are the normal ones, then outliers in random order.

    There are outliers for the highest share; a lower one takes the first of them.
    """
    rng = np.random.default_rng(seed)
    normal = rng.permutation(np.flatnonzero(mnist["y_train"] == digit))
    n_train = round(TRAIN_SHARE * len(normal))
    inliers = np.flatnonzero(mnist["y_test"] == digit)
    outliers = rng.permutation(np.flatnonzero(mnist["y_test"] != digit))
    outliers = outliers[: n_outliers(len(inliers), max(SHARES))]
    return Task(
        train=mnist["x_train"][normal[:n_train], None],
        test=mnist["x_test"][np.append(inliers, outliers), None],
        y_test=np.repeat([1, -1], [len(inliers), len(outliers)]),
        held_out=mnist["x_train"][normal[n_train:], None],
    )


def evaluate_shares(detector: Detector, task: Task) -> list[dict[str, Any]]:
    """Fit and score once; a row of figures for every threshold and share."""
    detector.fit(task.train)
    scores = detector.score_samples(task.test)
    offsets = {"default": detector.offset_}
    assert task.held_out is not None
    detector.calibrate(task.held_out, FALSE_ALARM_RATE)
    offsets["calibrated"] = detector.offset_
    n_normal = int(np.sum(task.y_test == 1))
    rows = []
    for threshold, offset in offsets.items():
        for share in SHARES:
            first = slice(n_normal + n_outliers(n_normal, share))
            judged = figures(task.y_test[first], scores[first], offset)
            rows.append({"n_test": first.stop, "threshold": threshold, "share": share, **judged})
    return rows


def report(results: pd.DataFrame, args: argparse.Namespace, repeat: str) -> pd.DataFrame:
    """Write the Markdown page and the plot; returns the F1 scores of the normal class."""
    # Over seeds, then over digits.
    columns = ["detector", "threshold", "share", "digit"]
    by_digit = results.groupby(columns)[[*CLASSES, "false_alarms"]].mean()
    means = by_digit.groupby(columns[:-1]).mean()
    tables = {}
    for column, title in CLASSES.items():
        table = means[column].unstack()
        table = table.loc[table.mean(axis=1).sort_values(ascending=False).index]
        tables[title] = table.set_axis(
            [f"{detector}, {threshold}" for detector, threshold in table.index]
        ).rename_axis(f"{title}, by share of outliers")
    # The normal test images are the same for all shares.
    alarms = means["false_alarms"].groupby(["detector", "threshold"]).mean().unstack()

    seeds = ", ".join(map(str, sorted(results.seed.unique())))
    paragraphs = [
        f"The question of the paper's Fig. 5. Mean over {results.digit.nunique()} digits of MNIST, "
        f"each in turn what is normal, and the seeds ({seeds}) of split, outliers and detectors. "
        f"Training images: a random {TRAIN_SHARE:.0%} of the digit's in MNIST's training set. Test "
        "images: all of the digit's in MNIST's test set, and as many random ones of the other "
        "digits there as make up the share; the outliers of a lower share are among those of a "
        "higher one. A detector is fitted once and scores once for all shares.",
        DETECTORS,
        '"Default" is the detector\'s own threshold (G2D: `contamination="auto"`; PyOD: '
        f'`contamination={CONTAMINATION}`). "Calibrated" is the one that promises at most '
        f"{FALSE_ALARM_RATE:.0%} false alarms, by split conformal prediction on the other "
        f"{1 - TRAIN_SHARE:.0%} of the digit's training images: `detector.calibrate(held_out, "
        f"false_alarm_rate={FALSE_ALARM_RATE})`, for PyOD the same quantile of its scores. The "
        "last table has the false alarms that came of either.",
        f"`{repeat}` repeats it; DIR holds `{ARCHIVE}`.",
        f"![F1 by share of outliers]({args.name}.png)",
    ]
    write_markdown(
        args.output / f"{args.name}.md",
        "F1 by the share of outliers",
        paragraphs,
        [*tables.values(), alarms.rename_axis("false alarms")],
    )
    panels = {
        f"{title}, {threshold} threshold": means.xs(threshold, level="threshold")[column].unstack(
            "detector"
        )[list(results.detector.unique())]
        for threshold in ("calibrated", "default")
        for column, title in CLASSES.items()
    }
    plot_curves(args.output / f"{args.name}.png", panels, "share of outliers", "F1")
    return tables["F1 of the normal class"]


def main() -> None:
    """Run from the command line."""
    parser = make_parser(__doc__, "outlier_share", data_help=f"folder of {ARCHIVE}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--digits", type=int, nargs="+", choices=DIGITS, default=DIGITS, metavar="D"
    )
    contenders = image_detectors()
    others = ["KNN", "LOF", "IForest", "OCSVM", "AutoEncoder", "DeepSVDD"]
    views = ("pixels", "features")
    parser.set_defaults(detectors=["G2D", *(f"{name} {view}" for view in views for name in others)])
    args = parser.parse_args()
    chosen = choose(parser, args.detectors, contenders)
    mnist = read_archive(args, parser, ARCHIVE)
    results = run(
        "digit",
        args.digits,
        lambda digit, seed: open_task(
            share_task(mnist, digit, seed), seed, chosen, evaluate_shares
        ),
        chosen,
        args,
    )
    repeat = command(
        parser,
        args.name,
        detectors=list(results.detector.unique()),
        seeds=sorted(results.seed.unique()),
        digits=sorted(results.digit.unique()),
    )
    print(f"\n{report(results, args, repeat).to_markdown(floatfmt='.3f')}")


if __name__ == "__main__":
    main()
