"""Does G2D beat PyOD on images? Every digit of MNIST in turn is what is normal.

Protocol: train on all training images of the digit; test on the whole test set, where the
nine other digits are the outliers. The seeds are those of the detectors.

    python -m benchmarks.mnist --data ../shared/data
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.images import (
    DETECTORS,
    FIGURES,
    FIGURES_EXPLAINED,
    FOR_GPUS,
    Task,
    image_detectors,
    open_task,
    read_archive,
)
from benchmarks.report import on_cards, plot_by_detector, summarize, threads, write_markdown
from benchmarks.runner import choose, command, make_parser, run

ARCHIVE = "mnist.npz"  # x_train, y_train, x_test, y_test; images of bytes, 28 x 28
DIGITS = list(range(10))


def digit_task(mnist: dict[str, NDArray], digit: int) -> Task:
    """Learn one digit, find the others."""
    return Task(
        train=mnist["x_train"][mnist["y_train"] == digit][:, None],
        test=mnist["x_test"][:, None],
        y_test=np.where(mnist["y_test"] == digit, 1, -1),
    )


def report(results: pd.DataFrame, args: argparse.Namespace, repeat: str) -> pd.DataFrame:
    """Write the Markdown page and the plot; returns the summary."""
    summary = summarize(results, FIGURES, by="digit")
    auc = results.pivot_table("auc", "detector", "digit").loc[list(summary.index)]
    seeds = ", ".join(map(str, sorted(results.seed.unique())))
    paragraphs = [
        f"Mean over {results.digit.nunique()} digits of MNIST, each in turn what is normal, and "
        f"the detectors' seeds ({seeds}). Training images: all of the digit in MNIST's "
        "training set, as they are. Test images: MNIST's whole test set, where all other digits "
        "are outliers.",
        DETECTORS,
        f"Rank is by AUC, 1 is best. {FIGURES_EXPLAINED} Seconds are of this run, {threads(args)}"
        f"{on_cards(results)}, and compare only roughly; those of the features count in "
        "full for every detector on them, fitted and applied to the training images in the first "
        "column, applied to the test images in the second.",
        f"`{repeat}` repeats it; DIR holds `{ARCHIVE}`.",
        f"![AUC by detector]({args.name}.png)",
    ]
    write_markdown(
        args.output / f"{args.name}.md",
        "One digit against the others",
        paragraphs,
        [summary, auc.rename_axis("AUC by digit")],
    )
    plot_by_detector(
        args.output / f"{args.name}.png",
        results,
        "auc",
        "AUC (dots: digits, bar: mean)",
        by="digit",
    )
    return summary


def main() -> None:
    """Run from the command line."""
    parser = make_parser(__doc__, "mnist", data_help=f"folder of {ARCHIVE}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--digits", type=int, nargs="+", choices=DIGITS, default=DIGITS, metavar="D"
    )
    contenders = image_detectors()
    parser.set_defaults(detectors=[name for name in contenders if name not in FOR_GPUS])
    args = parser.parse_args()
    chosen = choose(parser, args.detectors, contenders)
    mnist = read_archive(args, parser, ARCHIVE)
    results = run(
        "digit",
        args.digits,
        lambda digit, seed: open_task(digit_task(mnist, digit), seed, chosen),
        chosen,
        args,
    )
    repeat = command(
        parser,
        args.name,
        detectors=list(results.detector.unique()),
        seeds=sorted(results.seed.unique()),
        digits=sorted(results.digit.unique()),
        tf32=[args.tf32],
    )
    print(f"\n{report(results, args, repeat).to_markdown(floatfmt='.3f')}")


if __name__ == "__main__":
    main()
