"""How does AVID train? Numbers of steps, losses and optimisers, on puzzles and on boards.

Protocol: puzzles of `benchmarks.puzzles`, and boards of `benchmarks.inspection`, with their own
splits and figures. The default detector is fitted with several numbers of steps, the published one
with each loss and each optimiser that the paper, or the authors' code, has.

    python -m benchmarks.avid_training --data ../shared/data
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks import inspection, puzzles
from benchmarks.images import read_archive
from benchmarks.maps import fit_maps, image_anomaly
from benchmarks.report import mark_best, write_markdown
from benchmarks.runner import Case, choose, command, make_parser, run
from sklearn_g2d import AVIDDetector
from sklearn_g2d.avid import MaskedInpainting

DIGIT, N_PUZZLES, TILE = 3, 2000, 14
PUZZLES, BOARDS = "puzzles", "boards"
STEPS = {f"{steps:,} steps": steps for steps in (250, 500, 1000, 2000, 4000, 8000)}
LOSSES: dict[str, dict[str, Any]] = {
    "Eq. 3": {"objective": "log", "reconstruction_weight": 0.0},
    "least squares": {"objective": "squares", "reconstruction_weight": 0.0},
    "Eq. 3 and restoration": {"objective": "log", "reconstruction_weight": 1.0},
    "least squares and restoration": {"objective": "squares", "reconstruction_weight": 1.0},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "Adam 2e-4": {"optimizer": "adam", "learning_rates": (2e-4, 2e-4)},
    "SGD .002": {"optimizer": "sgd", "learning_rates": (2e-3, 2e-3)},
}

FIGURES = {
    PUZZLES: {"auc": "region AUC", "image_auc": "image AUC"},
    BOARDS: {
        "auc": "image AUC",
        "pixel_auc_within": "pixel AUC within an image",
        "aupro": "AUPRO",
    },
}

Judge = Callable[[NDArray, NDArray], dict[str, float]]  # of the anomaly of images, and their maps


def published(seed: int, training: dict[str, Any], **params: Any) -> AVIDDetector:
    """Make the published detector with another training."""
    nested = {f"training__{name}": value for name, value in training.items()}
    return AVIDDetector.from_paper("images", random_state=seed, **nested, **params)


def default(seed: int, steps: int, **params: Any) -> AVIDDetector:
    """Make the default detector with another number of steps."""
    return AVIDDetector(training=MaskedInpainting(max_steps=steps), random_state=seed, **params)


def detectors() -> dict[str, Callable[..., AVIDDetector]]:
    """Factories of all detectors, by name; they take a seed and further parameters."""
    by_steps = {name: partial(default, steps=steps) for name, steps in STEPS.items()}
    by_loss = {
        f"{loss}, {optimizer}": partial(published, training=LOSSES[loss] | OPTIMIZERS[optimizer])
        for loss in LOSSES
        for optimizer in OPTIMIZERS
    }
    return {**by_steps, **by_loss}


def open_images(
    train: NDArray, test: NDArray, judge: Judge, make: Callable[[str], Any], all_maps: bool
) -> Case:
    """Open images for `run`, which judges the joint map, or those of single networks, too."""

    def measure(name: str) -> list[dict[str, Any]]:
        detector = make(name)
        return [
            row
            | {"detector": name, "map": source or "combined"}
            | judge(image_anomaly(detector, test, maps, source), maps)
            for row, maps, source in fit_maps("AVID" if all_maps else name, detector, train, test)
        ]

    return Case({"n_train": len(train), "n_test": len(test)}, measure)


def open_puzzles(mnist: dict[str, NDArray], chosen: dict[str, Any], seed: int) -> Case:
    """Open puzzles."""
    frames = puzzles.make_frames(mnist, DIGIT, N_PUZZLES, seed)
    return open_images(
        frames.train,
        frames.test,
        lambda anomaly, maps: puzzles.figures(puzzles.judge(frames, maps, anomaly)),
        lambda name: chosen[name](seed, region_size=TILE),
        all_maps=True,
    )


def open_board(archive: dict[str, NDArray], board: int, chosen: dict[str, Any], seed: int) -> Case:
    """Open the images of a board."""
    flaws = inspection.split_board(archive, board, seed)

    def judge(anomaly: NDArray, maps: NDArray) -> dict[str, float]:
        return inspection.judged(flaws, anomaly, None) | inspection.map_figures(flaws, maps)

    return open_images(
        flaws.train, flaws.test, judge, lambda name: chosen[name](seed), all_maps=False
    )


def report(results: pd.DataFrame, args: argparse.Namespace, repeat: str) -> pd.DataFrame:
    """Write the Markdown page; returns its first table."""
    joint = results[results["map"] == "combined"]
    columns = {}
    for kind, figures in FIGURES.items():
        of_kind = joint[(joint.images == PUZZLES) == (kind == PUZZLES)]
        groups = of_kind.groupby("detector")
        for figure, title in figures.items():
            if figure in of_kind:
                columns[f"{kind}: {title}"] = groups[figure].mean()
        if len(of_kind):
            columns[f"{kind}: fits"] = groups.size()
    table = pd.DataFrame(columns).reindex(detectors()).dropna(how="all")
    fits = [name for name in table if name.endswith("fits")]
    table[fits] = table[fits].fillna(0).astype(int)
    by_steps, by_loss = table[table.index.isin(STEPS)], table[~table.index.isin(STEPS)]
    by_map = results[results.images == PUZZLES].pivot_table("auc", "detector", "map")
    alone = by_map.reindex(index=by_loss.index, columns=["inpainter", "detector"])
    by_loss = by_loss.join(alone.add_prefix("puzzles: region AUC, ").add_suffix(" alone"))
    paragraphs = [
        f"Puzzles are those of [their own page](puzzles.md), without the digit {DIGIT}; boards, "
        "the mean of four, are those of [parts](inspection.md). The first table has "
        "`AVIDDetector(training=MaskedInpainting(max_steps=...))`, the second "
        '`AVIDDetector.from_paper("images")` with other losses and optimisers; on puzzles both '
        f'have `region_size={TILE}`. Figures are of the joint map, those of "inpainter alone" '
        'and "detector alone" of one network\'s map. Restoration is `reconstruction_weight=1.0`.',
        f"`{repeat}` repeats it, and makes the fits, too, that are missing here: the columns "
        '"fits" count those that were made. DIR holds '
        f"`{puzzles.ARCHIVE}` and `{inspection.BOARDS}`. All figures are in [{args.name}.csv]"
        f'({args.name}.csv), whose column "card" names the GPU, and is empty for fits on a CPU.',
    ]
    tables = [by_steps.rename_axis("default"), by_loss.rename_axis("as published")]
    write_markdown(
        args.output / f"{args.name}.md",
        "How AVID trains",
        paragraphs,
        [mark_best(table.loc[:, table.fillna(0).any()], [], []) for table in tables if len(table)],
    )
    return by_steps


def main() -> None:
    """Run from the command line."""
    described = f"folder of {puzzles.ARCHIVE} and {inspection.BOARDS}"
    parser = make_parser(__doc__, "avid_training", data_help=described)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sets", nargs="+", choices=[PUZZLES, BOARDS], default=[PUZZLES, BOARDS])
    parser.set_defaults(detectors=list(detectors()))
    args = parser.parse_args()
    chosen = choose(parser, args.detectors, detectors())
    cases: dict[str, Callable[[int], Case]] = {}
    if PUZZLES in args.sets:
        cases[PUZZLES] = partial(open_puzzles, read_archive(args, parser, puzzles.ARCHIVE), chosen)
    if BOARDS in args.sets:
        archive = read_archive(args, parser, inspection.BOARDS)
        for board in np.unique(archive["group"]):
            cases[f"board {board}"] = partial(open_board, archive, board, chosen)
    results = run("images", cases, lambda images, seed: cases[images](seed), chosen, args)
    repeat = command(
        parser,
        args.name,
        detectors=[name for name in detectors() if name in set(results.detector)],
        seeds=sorted(results.seed.unique()),
        sets=[PUZZLES] * (PUZZLES in set(results.images))
        + [BOARDS] * (not results.images.eq(PUZZLES).all()),
    )
    print(f"\n{report(results, args, repeat).to_markdown(floatfmt='.3f')}")


if __name__ == "__main__":
    main()
