"""How many kinds of normal image can a detector learn? The paper's Table 2, on Caltech-101.

Protocol: 1, 3 or 5 categories drawn at random are normal, at most the first 150 images of
each; train on half of each category's, test on the other half and as many images of the
clutter category. Ten repetitions, whose numbers seed the draw and the detectors.

    python -m benchmarks.caltech --data ../shared/data
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
from benchmarks.report import plot_by_detector, write_markdown
from benchmarks.runner import Case, choose, command, make_parser, run

ARCHIVE = "caltech101_subset_64.npz"  # images (n, 64, 64, 3) of bytes, y, class_names
CLUTTER = "BACKGROUND_Google"
DUPLICATE = "Faces_easy"  # the same photographs as "Faces"
MAX_IMAGES = 150
TABLES = ["auc", "f1_normal", "f1", "eer"]


def draw_categories(class_names: NDArray, n_categories: int, rng: np.random.Generator) -> list[str]:
    """Draw the names of the categories that are normal."""
    names = sorted(set(class_names.tolist()) - {CLUTTER, DUPLICATE})
    return rng.choice(names, n_categories, replace=False).tolist()


def category_task(
    caltech: dict[str, NDArray], categories: list[str], rng: np.random.Generator
) -> Task:
    """Learn half of some categories' images, tell the other half from as much clutter."""
    names = caltech["class_names"].tolist()

    def rows_of(category: str) -> NDArray:
        return np.flatnonzero(caltech["y"] == names.index(category))

    train, inliers = [], []
    for category in categories:
        rows = rng.permutation(rows_of(category)[:MAX_IMAGES])
        train.append(rows[: len(rows) // 2])
        inliers.append(rows[len(rows) // 2 :])
    n_inliers = sum(map(len, inliers))
    clutter = rng.choice(rows_of(CLUTTER), n_inliers, replace=False)
    images = caltech["images"].transpose(0, 3, 1, 2)
    return Task(
        train=images[np.concatenate(train)],
        test=images[np.concatenate([*inliers, clutter])],
        y_test=np.repeat([1, -1], n_inliers),
    )


def report(results: pd.DataFrame, args: argparse.Namespace, repeat: str) -> pd.DataFrame:
    """Write the Markdown page and the plot; returns mean and deviation of the AUC."""
    order = results.groupby("detector")["auc"].mean().sort_values(ascending=False).index
    groups = results.groupby(["detector", "categories"])
    tables = {}
    for column in TABLES:
        cells = groups[column].agg(lambda values: f"{values.mean():.3f} ± {values.std():.3f}")
        title = f"{FIGURES[column]}, by number of categories"
        tables[column] = cells.unstack().loc[order].rename_axis(title)
    paragraphs = [
        "The protocol of the paper's Table 2, on 12 categories of Caltech-101 at 64 x 64 pixels "
        "(the paper: Caltech-256). Categories drawn at random are normal, at most the first "
        f"{MAX_IMAGES} images of each; a random half of each category's images is for training, "
        f"the other half for testing, with as many random images of {CLUTTER} as outliers. Mean "
        f"and standard deviation over {results.seed.nunique()} repetitions, whose numbers, from "
        f"0, seed the draw and the detectors. {DUPLICATE}, the same photographs as Faces, is left "
        "out.",
        "The paper's own figures on Caltech-256, AUC / F1 with 1, 3 and 5 normal categories: "
        ".957 / .945, .951 / .922, .939 / .913. Other images, other categories: they tell what "
        "to expect, and are no competitor.",
        DETECTORS,
        f"{FIGURES_EXPLAINED} All figures, with the categories drawn, are in [{args.name}.csv]"
        f"({args.name}.csv).",
        f"`{repeat}` repeats it; DIR holds `{ARCHIVE}`.",
        f"![AUC by detector]({args.name}.png)",
    ]
    write_markdown(
        args.output / f"{args.name}.md",
        "Some categories against clutter",
        paragraphs,
        list(tables.values()),
    )
    label = "AUC (dots: numbers of categories, bar: mean)"
    plot_by_detector(args.output / f"{args.name}.png", results, "auc", label, by="categories")
    return tables["auc"]


def main() -> None:
    """Run from the command line."""
    parser = make_parser(__doc__, "caltech", data_help=f"folder of {ARCHIVE}")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--categories", type=int, nargs="+", default=[1, 3, 5])
    contenders = image_detectors()
    parser.set_defaults(detectors=[name for name in contenders if name not in FOR_GPUS])
    args = parser.parse_args()
    args.seeds = range(args.repetitions)
    chosen = choose(parser, args.detectors, contenders)
    caltech = read_archive(args, parser, ARCHIVE)

    def open_case(n_categories: int, repetition: int) -> Case:
        rng = np.random.default_rng(repetition)
        categories = draw_categories(caltech["class_names"], n_categories, rng)
        task = category_task(caltech, categories, rng)
        return open_task(task, repetition, chosen, normal=" ".join(categories))

    results = run("categories", args.categories, open_case, chosen, args)
    repeat = command(
        parser,
        args.name,
        detectors=list(results.detector.unique()),
        repetitions=[results.seed.nunique()],
        categories=sorted(results.categories.unique()),
        tf32=[args.tf32],
    )
    print(f"\n{report(results, args, repeat).to_markdown()}")


if __name__ == "__main__":
    main()
