"""Can AVID find and locate real defects? Magnetic tiles, five kinds of flaws with masks.

Protocol: the same tile was photographed several times, so tiles are split, not images: train
on two thirds of the flawless tiles, test on the other third and on all flawed tiles that have
no image in training. The seeds are those of the split and of the detectors.

    python -m benchmarks.magnetic_tiles --data ../shared/data
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
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
    avid_detectors,
    explain_avid,
    fit_maps,
    image_anomaly,
    pixel_figures,
    separation,
    window_baselines,
)
from benchmarks.report import plot_by_detector, summarize, threads, write_markdown
from benchmarks.runner import Case, choose, command, make_parser, run
from sklearn_g2d.display import AnomalyMapDisplay

ARCHIVE = "magnetic_tile_128.npz"  # images, masks (n, 128, 128), y, class_names, group
FLAWLESS = "MT_Free"
REGION_SIZE, WINDOW_SIZE = 32, 16  # of AVID, and of the baselines
TRAIN_FRACTION = 2 / 3
FIGURES = {
    "auc": "image AUC",
    "eer": "image EER",
    "pixel_auc": "pixel AUC",
    "aupro": "AUPRO",
    **SECONDS,
}


@dataclass(frozen=True)
class Flaws:
    """Learn flawless images, find and locate the flaws of others.

    Attributes
    ----------
    train, test : ndarray of shape (n, 1, height, width)
    masks : ndarray of shape (n_test, height, width)
        True where a pixel is flawed.
    kinds : ndarray of shape (n_test,)
        Names of flaws, "" of an image without.
    groups : ndarray of shape (n_train,), optional
        Training images of one part have one value.
    """

    train: NDArray
    test: NDArray
    masks: NDArray
    kinds: NDArray
    groups: NDArray | None = None

    @property
    def located(self) -> NDArray:
        """Test images whose flaws are known by place: the masks of a few flawed ones are empty."""
        return self.masks.any(axis=(1, 2)) | (self.kinds == "")


def split_tiles(archive: dict[str, NDArray], seed: int) -> Flaws:
    """Split by the tile that an image shows ("group")."""
    names = archive["class_names"].tolist()
    short = ["" if name == FLAWLESS else name.removeprefix("MT_").lower() for name in names]
    kinds = np.array(short)[archive["y"]]
    tiles = np.unique(archive["group"][kinds == ""])
    chosen = np.random.default_rng(seed).permutation(tiles)[: round(TRAIN_FRACTION * len(tiles))]
    known = np.isin(archive["group"], chosen)
    train, test = known & (kinds == ""), ~known
    return Flaws(
        train=archive["images"][train, None],
        test=archive["images"][test, None],
        masks=archive["masks"][test],
        kinds=kinds[test],
        groups=archive["group"][train],
    )


def detectors(steps: int | None) -> dict[str, Factory]:
    """Factories of all detectors, by name."""

    def even(features: Any, size: int = WINDOW_SIZE) -> Factory:
        return lambda seed: WindowNeighbors(
            size, features=features, normalize_illumination=True, seed=seed
        )

    return {
        **avid_detectors("images", steps, region_size=REGION_SIZE),
        **window_baselines(WINDOW_SIZE),
        "5-NN windows, even light": even("pixels"),
        "5-NN windows, gradients, even light": even("gradients"),
        f"5-NN windows of {REGION_SIZE}, gradients, even light": even("gradients", REGION_SIZE),
    }


def figures(flaws: Flaws, maps: NDArray, anomaly: NDArray) -> dict[str, float]:
    """Figures of images, of pixels, and of the images of each kind of flaw."""
    of_pixels = pixel_figures(flaws.masks[flaws.located], maps[flaws.located])
    return image_figures(flaws, anomaly) | of_pixels


def image_figures(flaws: Flaws, anomaly: NDArray) -> dict[str, float]:
    """Figures of all images, and of the images of each kind of flaw."""
    is_flawed = flaws.kinds != ""
    row = separation(is_flawed, anomaly)
    for kind in np.unique(flaws.kinds[is_flawed]):
        one = ~is_flawed | (flaws.kinds == kind)
        row[f"auc_{kind}"] = separation(is_flawed[one], anomaly[one])["auc"]
    return row


def open_flaws(
    flaws: Flaws, seed: int, factories: dict[str, Factory], picture: Path | None
) -> Case:
    """Open a split for `run`; `picture` is the file that AVID's maps are drawn to."""

    def measure(name: str) -> list[dict[str, Any]]:
        detector = factories[name](seed)
        rows = []
        for row, maps, source in fit_maps(name, detector, flaws.train, flaws.test):
            anomaly = image_anomaly(detector, flaws.test, maps, source)
            rows.append(row | figures(flaws, maps, anomaly))
        if name == "AVID" and picture is not None:
            draw(picture, flaws, detector)
        return rows

    return Case({"n_train": len(flaws.train), "n_test": len(flaws.test)}, measure)


def first_of_each_kind(flaws: Flaws) -> list[int]:
    """Numbers of test images to show."""
    kinds = np.unique(flaws.kinds)
    return [int(np.flatnonzero(flaws.located & (flaws.kinds == kind))[0]) for kind in kinds]


def draw(path: Path, flaws: Flaws, detector: Any) -> None:
    """Draw the first image of each kind that has a mask, and what the detector makes of it."""
    import matplotlib.pyplot as plt

    shown = first_of_each_kind(flaws)
    display = AnomalyMapDisplay.from_estimator(
        detector, flaws.test[shown], masks=flaws.masks[shown]
    )
    display.figure_.savefig(path, dpi=100)
    plt.close(display.figure_)


def report(results: pd.DataFrame, args: argparse.Namespace, repeat: str) -> pd.DataFrame:
    """Write the Markdown page and the plot; returns the summary."""
    summary = summarize(results, FIGURES, by="images")
    kinds = {name: name[4:] for name in results if name.startswith("auc_")}
    by_kind = results.groupby("detector")[list(kinds)].mean().rename(columns=kinds)
    by_seed = results.pivot_table("auc", "detector", "seed")
    order = list(summary.index)
    first = results.iloc[0]
    paragraphs = [
        "Photographs of magnetic tiles, 128 x 128 pixels, some with one of five kinds of flaws "
        "(Huang et al.). Tiles are split, not images, for the same tile was photographed several "
        "times: training images are those of two thirds of the flawless tiles, "
        f"about {first.n_train}; test images those of the other third and of the flawed tiles that "
        f"are not in training, about {first.n_test}. Mean over the seeds "
        f"({', '.join(map(str, sorted(results.seed.unique())))}) of split and detectors.",
        "Image AUC and EER tell flawed images from flawless ones; pixel AUC and AUPRO tell flawed "
        "pixels from all others, without the images whose flaw has an empty mask. Rank is by image "
        f"AUC, 1 is best. Seconds are of this run, {threads(args)}, and compare only "
        "roughly. The second table has the image AUC by kind of flaw, the third by seed.",
        explain_avid(results, "images", args.steps, region_size=REGION_SIZE),
        f'{BASELINES} "Even light" takes the local mean out first and divides by the local '
        f"deviation, in squares of {2 * WINDOW_SIZE + 1} pixels.",
        f"`{repeat}` repeats it; DIR holds `{ARCHIVE}`. All figures are in [{args.name}.csv]"
        f"({args.name}.csv).",
        f"![Image AUC by detector]({args.name}.png)",
    ]
    if (args.output / f"{args.name}_maps.png").exists():
        paragraphs += [
            f"![Images and their maps]({args.name}_maps.png)",
            "*The first test image without a flaw, and of each kind in the order of the second "
            "table; AVID of the first seed.*",
        ]
    write_markdown(
        args.output / f"{args.name}.md",
        "Flaws of magnetic tiles",
        paragraphs,
        [
            summary,
            by_kind.loc[order].rename_axis("image AUC by kind of flaw"),
            by_seed.loc[order].rename_axis("image AUC by seed"),
        ],
    )
    label = "image AUC (dots: seeds, bar: mean)"
    plot_by_detector(args.output / f"{args.name}.png", results, "auc", label, by="seed")
    return summary


def main() -> None:
    """Run from the command line."""
    parser = make_parser(__doc__, "magnetic_tiles", data_help=f"folder of {ARCHIVE}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="max_steps of AVID")
    parser.set_defaults(detectors=[d for d in detectors(None) if d != AVID_FOR_GPUS])
    args = parser.parse_args()
    chosen = choose(parser, args.detectors, detectors(args.steps))
    archive = read_archive(args, parser, ARCHIVE)
    picture = args.output / f"{args.name}_maps.png"

    def open_case(_: str, seed: int) -> Case:
        drawn_to = picture if seed == args.seeds[0] else None
        return open_flaws(split_tiles(archive, seed), seed, chosen, drawn_to)

    results = run("images", ["magnetic tiles"], open_case, chosen, args)
    repeat = command(
        parser,
        args.name,
        detectors=[name for name in detectors(None) if name in set(results.detector)],
        seeds=sorted(results.seed.unique()),
        steps=[args.steps],
    )
    print(f"\n{report(results, args, repeat).to_markdown(floatfmt='.3f')}")


if __name__ == "__main__":
    main()
