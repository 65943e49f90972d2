"""Can AVID find the digit that does not belong? The paper's IR-MNIST, made honest.

Protocol: puzzles of 11 x 11 digits at half resolution; train on puzzles of MNIST's training
digits without one class, test on puzzles of its test digits: without the class, with its
natural share, and with a single tile of it. The seeds draw the puzzles and are those of the
detectors. `--authors` adds the frames that AVID's authors published.

    python -m benchmarks.puzzles --data ../shared/data
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.images import read_archive
from benchmarks.map_baselines import WindowNeighbors
from benchmarks.maps import (
    AVID_FOR_GPUS,
    BASELINES,
    SECONDS,
    Factory,
    RocCurves,
    avid_detectors,
    explain_avid,
    fit_maps,
    image_anomaly,
    plot_maps,
    region_means,
    separation,
    window_baselines,
)
from benchmarks.mnist import ARCHIVE, DIGITS
from benchmarks.report import on_cards, summarize, threads, write_markdown
from benchmarks.runner import Case, choose, command, make_parser, run
from sklearn_g2d.datasets import make_puzzles

AUTHORS_ARCHIVE = "ir_mnist_half.npz"  # train, test: frames of bytes; test_tile_labels
AUTHORS = "authors"
MAX_AUTHORS_FRAMES = 200  # of 1050 for testing: 24,200 tiles
GRID = (11, 11)

# Test frames: anomalous tiles in each (None: as many as happen to be), number of frames.
FRAMES: dict[str, tuple[int | None, int]] = {
    "none": (0, 100),
    "natural": (None, 100),
    "one": (1, 50),
}
SHOWN = {"none": 1, "one": 1, "natural": 3}  # in the picture of maps

TILE_FIGURES = {"auc": "region AUC", "eer": "region EER", **SECONDS}
FIGURES = {
    "auc": "region AUC",
    "eer": "region EER",
    "image_auc": "image AUC",
    "image_eer": "image EER",
    "one_auc": "image AUC, one tile",
    **SECONDS,
}
CURVES = [
    "AVID",
    "AVID I alone",
    "AVID D alone",
    "AVID as published",
    "autoencoder",
    "PCA windows",
    "5-NN windows",
    "5-NN windows, gradients",
    "5-NN tiles (grid known)",
]


@dataclass(frozen=True)
class Frames:
    """Learn normal frames, find the anomalous tiles of others.

    Attributes
    ----------
    train, test : ndarray of shape (n, 1, height, width)
    tile_is_anomalous : ndarray of shape (n_test, rows, columns)
    region_size : int
        Side of a tile.
    kinds : ndarray of shape (n_test,), or None
        Names in `FRAMES`; None where all frames are anomalous.
    """

    train: NDArray
    test: NDArray
    tile_is_anomalous: NDArray
    region_size: int
    kinds: NDArray | None = None


def halve(images: NDArray) -> NDArray:
    """Average bytes over 2 x 2 pixels."""
    n, height, width = images.shape
    squares = images.reshape(n, height // 2, 2, width // 2, 2)
    return squares.mean(axis=(2, 4)).round().astype(np.uint8)


def make_frames(mnist: dict[str, NDArray], digit: int, n_train: int, seed: int) -> Frames:
    """Make puzzles of training digits, and of test digits."""
    rng = np.random.RandomState(seed)
    make = partial(make_puzzles, anomalous_label=digit, grid_shape=GRID, random_state=rng)
    train, _ = make(halve(mnist["x_train"]), mnist["y_train"], n_samples=n_train, n_anomalous=0)
    test_digits = halve(mnist["x_test"]), mnist["y_test"]
    test = [make(*test_digits, n_samples=n, n_anomalous=k) for k, n in FRAMES.values()]
    return Frames(
        train=train,
        test=np.concatenate([puzzles for puzzles, _ in test]),
        tile_is_anomalous=np.concatenate([tiles for _, tiles in test]),
        region_size=train.shape[2] // GRID[0],
        kinds=np.repeat(list(FRAMES), [n for _, n in FRAMES.values()]),
    )


def authors_frames(archive: dict[str, NDArray]) -> Frames:
    """Take the published frames without their padding."""
    size = archive["train"].shape[1] // GRID[0]
    side = slice(GRID[0] * size)
    return Frames(
        train=archive["train"][:, None, side, side],
        test=archive["test"][:MAX_AUTHORS_FRAMES, None, side, side],
        tile_is_anomalous=archive["test_tile_labels"][:MAX_AUTHORS_FRAMES],
        region_size=size,
    )


def detectors(region_size: int, steps: int | None) -> dict[str, Factory]:
    """Factories of all detectors, by name."""
    tiles = partial(WindowNeighbors, region_size, stride=region_size)
    return {
        **avid_detectors("images", steps, region_size=region_size),
        **window_baselines(region_size),
        "5-NN tiles (grid known)": lambda seed: tiles(seed=seed),
    }


def judge(frames: Frames, maps: NDArray, anomaly: NDArray) -> dict[str, tuple[NDArray, NDArray]]:
    """Truth and anomaly of tiles, of frames with many anomalous ones, and with a single one."""
    judged = {"localisation": (frames.tile_is_anomalous, region_means(maps, GRID))}
    if frames.kinds is not None:
        many, one = frames.kinds != "one", frames.kinds != "natural"
        judged["detection"] = frames.kinds[many] != "none", anomaly[many]
        judged["detection, one tile"] = frames.kinds[one] != "none", anomaly[one]
    return judged


def figures(judged: dict[str, tuple[NDArray, NDArray]]) -> dict[str, float]:
    """Figures by name."""
    row = separation(*judged["localisation"])
    if "detection" in judged:
        row |= separation(*judged["detection"], "image_")
        row["one_auc"] = separation(*judged["detection, one tile"])["auc"]
    return row


def open_frames(frames: Frames, seed: int, steps: int | None, pictures: Path | None) -> Case:
    """Open frames for `run`; `pictures` is the stem of the files of what is drawn of them."""
    factories = detectors(frames.region_size, steps)

    def measure(name: str) -> list[dict[str, Any]]:
        detector = factories[name](seed)
        rows, drawn = [], {}
        for row, maps, source in fit_maps(name, detector, frames.train, frames.test):
            judged = judge(frames, maps, image_anomaly(detector, frames.test, maps, source))
            rows.append(row | figures(judged))
            if pictures is not None:
                RocCurves(f"{pictures}_roc.csv").add(row["detector"], judged)
                drawn[row["detector"]] = maps
        if name == "AVID" and drawn:
            draw(f"{pictures}_maps.png", frames, drawn)
        return rows

    return Case({"n_train": len(frames.train), "n_test": len(frames.test)}, measure)


def draw(path: str, frames: Frames, maps: dict[str, NDArray]) -> None:
    """Draw some frames of each kind and their maps, as in the paper's Fig. 7."""
    assert frames.kinds is not None
    shown = np.concatenate([np.flatnonzero(frames.kinds == k)[:n] for k, n in SHOWN.items()])
    tile = np.ones((1, frames.region_size, frames.region_size))
    outlined = np.kron(frames.tile_is_anomalous[shown], tile)
    shown_maps = {name: of_all[shown] for name, of_all in maps.items()}
    plot_maps(path, frames.test[shown, 0], outlined, shown_maps)


def report(results: pd.DataFrame, args: argparse.Namespace, repeat: str) -> pd.DataFrame:
    """Write the Markdown page and the plot of curves; returns the summary of our puzzles."""
    ours = results[results.frames != AUTHORS]
    authors = results[results.frames == AUTHORS]
    summary = summarize(ours, FIGURES, by="frames")
    by_seed = ours.pivot_table("auc", "detector", "seed").loc[list(summary.index)]
    held_too = f" and `{AUTHORS_ARCHIVE}`" if len(authors) else ""
    tables = [summary, by_seed.rename_axis("region AUC by seed")]
    paragraphs = [
        f"The question of the paper's section 4.1, {' and '.join(ours.frames.unique())}: puzzles "
        "of 11 x 11 digits of MNIST at half resolution, 154 x 154 pixels in all. Training frames: "
        f"{args.puzzles:,}, of training digits without the class. Test frames, of test digits: "
        f"{FRAMES['none'][1]} without the class, {FRAMES['natural'][1]} with its natural share, "
        f"about a tenth of the tiles, and {FRAMES['one'][1]} with a single tile of it. Mean over "
        f"the seeds ({', '.join(map(str, sorted(ours.seed.unique())))}) of puzzles and detectors.",
        "Region AUC and EER tell anomalous tiles from the others, all tiles of all test frames, by "
        "the mean of the map within a tile. Image AUC and EER tell frames with the natural share "
        "from frames without the class; the last AUC those with a single tile. Rank is by region "
        f"AUC, 1 is best. Seconds are of this run, {threads(args)}{on_cards(results)}, and "
        "compare only roughly.",
        explain_avid(results, "images", args.steps, region_size=14),
        f'{BASELINES} "5-NN tiles (grid known)" cuts the puzzles into their very tiles, of which '
        "no other detector is told: an upper reference.",
        "The paper reports EERs of .29 for localisation and .21 for detection, on frames of its "
        "own at full resolution: they tell what to expect, and are no competitor.",
        f"`{repeat}` repeats it; DIR holds `{ARCHIVE}`{held_too}. All figures are in "
        f"[{args.name}.csv]({args.name}.csv).",
    ]
    if len(authors):
        tables.append(summarize(authors, TILE_FIGURES, by="frames").rename_axis("authors' frames"))
        paragraphs.insert(
            5,
            "The last table is on the frames that AVID's authors published, at half resolution "
            f"(tiles of 10 pixels): their 2,000 for training, {MAX_AUTHORS_FRAMES} of 1050 for "
            "testing. Tiles only, for each of these has at least three anomalous ones; and with "
            "caution, for normal digits there recur in the training frames: who memorises wins.",
        )
    stem = args.output / args.name
    RocCurves(f"{stem}_roc.csv").plot(f"{stem}_roc.png", ["localisation", "detection"], CURVES)
    paragraphs.append(f"![ROC curves, the first seed]({args.name}_roc.png)")
    if Path(f"{stem}_maps.png").exists():
        paragraphs.append(f"![Frames and their maps]({args.name}_maps.png)")
        paragraphs.append(
            "*Frames without the class, with one tile of it and with its natural share, outlined "
            "in red; maps of the first seed, one scale of colours for each row.*"
        )
    write_markdown(args.output / f"{args.name}.md", "Digits that do not belong", paragraphs, tables)
    return summary


def main() -> None:
    """Run from the command line."""
    parser = make_parser(__doc__, "puzzles", data_help=f"folder of {ARCHIVE}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--digits", type=int, nargs="+", choices=DIGITS, default=[3], metavar="D")
    parser.add_argument("--puzzles", type=int, default=2000, help="training frames")
    parser.add_argument("--steps", type=int, help="max_steps of AVID")
    parser.add_argument(
        "--authors", action="store_true", help=f"their frames too, {AUTHORS_ARCHIVE}"
    )
    parser.set_defaults(detectors=[d for d in detectors(14, None) if d != AVID_FOR_GPUS])
    args = parser.parse_args()
    chosen = choose(parser, args.detectors, detectors(14, args.steps))
    mnist = read_archive(args, parser, ARCHIVE)
    published = read_archive(args, parser, AUTHORS_ARCHIVE) if args.authors else {}
    digits = {f"without {digit}": digit for digit in args.digits}
    stem = args.output / args.name
    first = next(iter(digits)), args.seeds[0]
    if not args.resume:
        Path(f"{stem}_roc.csv").unlink(missing_ok=True)

    def open_case(frames: str, seed: int) -> Case:
        if frames == AUTHORS:
            return open_frames(authors_frames(published), seed, args.steps, None)
        made = make_frames(mnist, digits[frames], args.puzzles, seed)
        return open_frames(made, seed, args.steps, stem if (frames, seed) == first else None)

    values = [*digits, *([AUTHORS] if args.authors else [])]
    results = run("frames", values, open_case, chosen, args)
    repeat = command(
        parser,
        args.name,
        detectors=[name for name in detectors(14, None) if name in set(results.detector)],
        seeds=sorted(results.seed.unique()),
        digits=args.digits,
        puzzles=[args.puzzles],
        steps=[args.steps],
        tf32=[args.tf32],
    )
    repeat += " --authors" if AUTHORS in set(results.frames) else ""
    print(f"\n{report(results, args, repeat).to_markdown(floatfmt='.3f')}")


if __name__ == "__main__":
    main()
