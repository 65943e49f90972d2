"""Which detector finds and locates flaws of parts? Magnetic tiles and printed circuit boards.

Protocol: tiles are split as in `benchmarks.magnetic_tiles`. Each of four boards has a detector
of its own, fitted on the templates of three fifths of its places; tested are the templates of the
other places, and their twins with flaws. The seeds are those of the split and of the detectors.

    python -m benchmarks.inspection --data ../shared/data
"""

from __future__ import annotations

import argparse
import inspect
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.utils._param_validation import HasMethods

from benchmarks.detectors import labels
from benchmarks.images import read_archive
from benchmarks.magnetic_tiles import ARCHIVE as TILES
from benchmarks.magnetic_tiles import Flaws, first_of_each_kind, image_figures, split_tiles
from benchmarks.map_baselines import MAX_WINDOWS, N_NEIGHBORS, WindowNeighbors
from benchmarks.maps import fit_maps, image_anomaly, pixel_figures, plot_maps
from benchmarks.report import mark_best, plot_by_detector, summarize, threads, write_markdown
from benchmarks.runner import Case, choose, command, make_parser, quality, run
from sklearn_g2d import AVIDDetector, G2DOutlierDetector
from sklearn_g2d.features import PretrainedFeatures
from sklearn_g2d.patches import PatchDetector, PatchNeighbors
from sklearn_g2d.patches._levels import LevelDetector, Maps
from sklearn_g2d.patches._neighbors import whitening_matrix

BOARDS = "deep_pcb_320.npz"  # templates, tested, masks (n, 320, 320), group, index
TRAIN_FRACTION = 0.6  # of a board's places
FAR = 32  # pixels from every flaw, where an image should look normal
RIDGE = 0.1  # of Gaussians, as `whitening` of PatchNeighbors
PICTURED = ["PatchDetector", "Gaussian per place", "5-NN windows of 32", "AVID"]
HIGHER = {
    "auc": "image AUC",
    "f1": "F1",
    "pixel_auc_within": "pixel AUC, within an image",
    "pixel_auc": "pixel AUC, pooled",
    "aupro": "AUPRO",
}
LOWER = {"eer": "image EER", "fit_seconds": "fit (s)", "map_milliseconds": "ms per image"}
NEITHER = {"false_alarms": "false alarms", "auc_far": "AUC far from flaws"}
FIGURES = {**HIGHER, **NEITHER, **LOWER}
SETS = {"tiles": "magnetic tiles", "boards": "board"}  # how the names of their cases begin


class ByLevels(PatchDetector):
    """A PatchDetector whose estimator sees the maps of a layer, not rows of them."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **PatchDetector._parameter_constraints,
        "estimator": [HasMethods(["fit", "anomalies"])],
    }

    def _level(self, estimator: LevelDetector) -> LevelDetector:
        return clone(estimator)


class CoresetLevel(LevelDetector):
    """Compares cells with the given fraction of all cells in `fit`."""

    def __init__(self, fraction: float) -> None:
        super().__init__(None, per_location=False)
        self.fraction = fraction

    def fit(self, maps: Maps, random_state: np.random.RandomState) -> Self:
        n_references = max(1, round(self.fraction * maps[..., 0].size))
        self.estimator = PatchNeighbors(n_references=n_references)
        return super().fit(maps, random_state)


class GaussianLevel(LevelDetector):
    """Gives the Mahalanobis distance of a cell from the mean of its place, as PaDiM does."""

    def __init__(self) -> None:
        super().__init__(None, per_location=True)

    def fit(self, maps: Maps, random_state: np.random.RandomState) -> Self:
        self.center_ = maps.mean(axis=0)
        places = self._by_place(maps)
        self.matrices_ = np.stack([whitening_matrix(rows, RIDGE) for rows in places])
        return self

    def anomalies(self, maps: Maps) -> NDArray:
        distances = np.linalg.norm(self._by_place(maps) @ self.matrices_, axis=2)
        return distances.T.reshape(maps.shape[:-1])

    def _by_place(self, maps: Maps) -> NDArray:
        """Differences from the mean, as (n_places, n_images, n_features)."""
        centred = (maps - self.center_).reshape(len(maps), -1, maps.shape[-1])
        return np.ascontiguousarray(centred.transpose(1, 0, 2))


def detectors() -> dict[str, Callable[[int], Any]]:
    """Factories of all detectors, by name; they take a seed."""

    def patches(kind: type[PatchDetector] = PatchDetector, *args: Any, **params: Any) -> Any:
        return lambda seed: kind(*args, **params, random_state=seed)

    def windows(size: int, **params: Any) -> Callable[[int], WindowNeighbors]:
        return lambda seed: WindowNeighbors(size, **params, seed=seed)

    by_levels = partial(patches, ByLevels, per_location=False)
    return {
        "PatchDetector": patches(),
        "PatchDetector, per place": patches(per_location=True),
        "PatchDetector, pooled": patches(per_location=False),
        "PatchDetector, coreset of 1 %": by_levels(estimator=CoresetLevel(0.01)),
        "PatchDetector, coreset of 10 %": by_levels(estimator=CoresetLevel(0.1)),
        "PatchDetector, IsolationForest": patches(estimator=IsolationForest()),
        "PatchDetector, G2D": patches(estimator=G2DOutlierDetector()),
        "Gaussian per place": by_levels(estimator=GaussianLevel()),
        "5-NN windows of 16": windows(16),
        "5-NN windows of 32": windows(32),
        "5-NN windows of 8, gradients": windows(8, features="gradients", stride=4),
        "AVID": lambda seed: AVIDDetector(random_state=seed),
        "G2D pretrained": lambda seed: G2DOutlierDetector(
            features=PretrainedFeatures(), random_state=seed
        ),
    }


def seeds_of(results: pd.DataFrame) -> str:
    """Name the seeds of tiles and of boards, if these differ."""
    by_set = {
        kind: sorted(results.seed[results.images.str.startswith(prefix)].unique())
        for kind, prefix in SETS.items()
    }
    written = {kind: ", ".join(map(str, seeds)) for kind, seeds in by_set.items() if len(seeds)}
    if len(set(written.values())) == 1:
        return next(iter(written.values()))
    return "; ".join(f"{kind} {seeds}" for kind, seeds in written.items())


def split_board(archive: dict[str, NDArray], board: int, seed: int) -> Flaws:
    """Split by the place on a board that an image shows ("index")."""
    of_board = np.flatnonzero(archive["group"] == board)
    places = np.random.default_rng(seed).permutation(np.unique(archive["index"][of_board]))
    known = np.isin(archive["index"][of_board], places[: round(TRAIN_FRACTION * len(places))])
    train, test = of_board[known], of_board[~known]
    masks = archive["masks"][test]
    return Flaws(
        train=archive["templates"][train, None],
        test=np.concatenate([archive["templates"][test], archive["tested"][test]])[:, None],
        masks=np.concatenate([np.zeros_like(masks), masks]),
        kinds=np.repeat(["", "any"], len(test)),
    )


def map_figures(flaws: Flaws, maps: NDArray) -> dict[str, float]:
    """Figures of pixels, pooled and within images, and of what lies far from every flaw."""
    masks, maps = flaws.masks[flaws.located], maps[flaws.located]
    is_flawed = masks.any(axis=(1, 2))
    within = [
        roc_auc_score(mask.ravel(), of_image.ravel())
        for mask, of_image in zip(masks[is_flawed], maps[is_flawed], strict=True)
    ]
    return {
        **pixel_figures(masks, maps),
        "pixel_auc_within": float(np.mean(within)),
        "auc_far": auc_far_from_flaws(masks[is_flawed], maps[is_flawed], maps[~is_flawed]),
    }


def auc_far_from_flaws(masks: NDArray, flawed: NDArray, flawless: NDArray) -> float:
    """AUC of telling flawed images from flawless ones by the mean of what is far from flaws.

    Flawless images are averaged over the very pixels that are far from flaws in the flawed one
    that they are compared with, as some places look more anomalous than others in every image.
    """
    far = np.array([ndimage.distance_transform_edt(~mask) > FAR for mask in masks])
    some = far.any(axis=(1, 2))
    weights = far.reshape(len(far), -1)[some] / far[some].sum(axis=(1, 2))[:, None]
    own = np.sum(weights * flawed.reshape(len(far), -1)[some], axis=1)
    others = flawless.reshape(len(flawless), -1) @ weights.T
    return float(np.mean((others < own) + 0.5 * (others == own)))


def evaluate(
    name: str, detector: Any, flaws: Flaws, keep: Callable[[str, NDArray], None]
) -> list[dict[str, Any]]:
    """Fit once; the figures, in a row for each kind of map. `keep` is given all maps by name."""
    # A threshold that is promised for new parts needs to know which images are of one part.
    takes_groups = "groups" in inspect.signature(detector.fit).parameters
    given = {"groups": flaws.groups} if takes_groups else {}
    if not hasattr(detector, "anomaly_map"):
        start = time.perf_counter()
        detector.fit(flaws.train, **given)
        fitted = time.perf_counter()
        scores = detector.score_samples(flaws.test)
        milliseconds = 1000 * (time.perf_counter() - fitted) / len(scores)
        row: dict[str, Any] = {"fit_seconds": fitted - start, "map_milliseconds": milliseconds}
        return [row | judged(flaws, -scores, detector.offset_)]
    rows = []
    for head, maps, source in fit_maps(name, detector, flaws.train, flaws.test, **given):
        anomaly = image_anomaly(detector, flaws.test, maps, source)
        # Baselines have no threshold, and one is for both maps of AVID together.
        offset = getattr(detector, "offset_", None) if source in (None, "combined") else None
        rows.append(head | judged(flaws, anomaly, offset) | map_figures(flaws, maps))
        keep(head["detector"], maps)
    return rows


def judged(flaws: Flaws, anomaly: NDArray, offset: float | None) -> dict[str, float]:
    """Figures of images; those of verdicts only where there is a threshold."""
    row = image_figures(flaws, anomaly)
    if offset is not None:
        y = np.where(flaws.kinds == "", 1, -1)
        row |= quality(y, -anomaly, labels(-anomaly, offset))
    return row


def report(results: pd.DataFrame, args: argparse.Namespace, repeat: str) -> pd.DataFrame:
    """Write the Markdown page and the plots; returns the summary, set by set."""
    paragraphs = [
        "**Tiles**: photographs of magnetic tiles, 128 x 128 pixels, some with one of five kinds "
        "of flaws (Huang et al.), split as on [their own page](magnetic_tiles.md): training images "
        "are those of two thirds of the flawless tiles, test images those of the other third and "
        "of flawed tiles that are not in training. **Boards**: crops of four printed circuit "
        "boards, 320 x 320 pixels, black and white (DeepPCB). Each board has a detector of its "
        "own, fitted on the templates of three fifths of its places, drawn at random. Test images "
        "are the templates of the other places and their twins, which show the same places with "
        "three to twelve flaws, known as boxes. Figures are means over the seeds "
        f"({seeds_of(results)}) of split and detectors, then over the boards. Where the column "
        '"seeds" has 1, a detector was measured with the first seed only.',
        "Image AUC and EER tell flawed images from flawless ones. F1, of the flawed images, and "
        "false alarms, the fraction of flawless test images that are flagged, are at the default "
        "threshold, which windows do not have. Pixel AUC and AUPRO tell flawed pixels from all "
        'others, at full resolution, without images whose flaw has an empty mask; "within an '
        'image" is the mean over flawed images of the AUC of their own pixels, which the light of '
        "an image cannot change. AUC far from flaws is a control on tiles: it tells flawed images "
        f"from flawless ones by the mean of the map where it is farther than {FAR} pixels from "
        "every flaw, and by the mean over the same places of flawless images. At "
        ".5 the flaws alone are detected. The more it differs, the more of the image AUC may come "
        "from something else that flawed images have in common, such as their light. **Bold** is "
        f"the best of a column. Seconds are of this run, {threads(args)}, and compare only "
        "roughly. Rank is by image AUC, 1 is best.",
        "`PatchDetector(random_state=seed)` is this package's detector of still images at its "
        'defaults. "Per place" and "pooled" have `per_location=True` and `False`, between which '
        'the default chooses. "Coreset" is pooled, with as many references as that percentage of '
        'all training cells, chosen from 10,000 of them in each layer. "IsolationForest" and '
        '"G2D" have `estimator=IsolationForest()` and `estimator=G2DOutlierDetector()`. '
        '"Gaussian per place" is the Mahalanobis distance from the mean of a place, by a '
        "covariance of that place; layers, scores and threshold are those of PatchDetector. All "
        "of these are told which photographs show the same tile (`groups`), as G2D and AVID "
        f'cannot be. "5-NN windows" is the mean distance from the {N_NEIGHBORS} nearest of '
        f"{MAX_WINDOWS:,} random windows of the training images, a quarter of their size apart, "
        "between pixels, or, half of their size apart, between gradients by orientation and mean "
        "intensities. "
        '"AVID" is `AVIDDetector(random_state=seed)`; "I alone" and "D alone" are the maps of its '
        'inpainter and its detector. "G2D pretrained" is '
        "`G2DOutlierDetector(features=PretrainedFeatures(), random_state=seed)`, which judges "
        "whole images and has no map.",
        f"`{repeat}` repeats it; DIR holds `{TILES}` and `{BOARDS}`. All figures are in "
        f"[{args.name}.csv]({args.name}.csv).",
    ]
    summaries = {}
    for kind, start in SETS.items():
        of_kind = results[results.images.str.startswith(start)]
        if of_kind.empty:
            continue
        stem = f"{args.name}_{kind}"
        # What a twin of a template shows far from its flaws is chosen by where tracks are.
        shown = {c: title for c, title in FIGURES.items() if kind == "tiles" or c != "auc_far"}
        of_kind = of_kind.reindex(columns=[*results, *(set(shown) - set(results))])
        summary = summarize(of_kind, shown, by="images")
        summaries[kind] = mark_best(summary, list(HIGHER.values()), list(LOWER.values()))
        plot_by_detector(
            args.output / f"{stem}.png", of_kind, "auc", "image AUC (bar: mean)", by="seed"
        )
        paragraphs.append(f"![Image AUC by detector, {kind}]({stem}.png)")
        if (args.output / f"{stem}_maps.png").exists():
            paragraphs.append(f"![Images with flaws outlined, and their maps]({stem}_maps.png)")
    tables = [table.rename_axis(kind) for kind, table in summaries.items()]
    tiles = results[results.images.str.startswith(SETS["tiles"])]
    if not tiles.empty:
        kinds = {
            c: c[4:] for c in tiles if c.startswith("auc_") and c not in ("auc_far", "auc_any")
        }
        by_kind = tiles.groupby("detector")[list(kinds)].mean().rename(columns=kinds)
        by_kind = by_kind.loc[summaries["tiles"].index]
        tables.append(
            mark_best(by_kind, list(by_kind), []).rename_axis("image AUC by kind of flaw")
        )
    write_markdown(args.output / f"{args.name}.md", "Flaws of parts", paragraphs, tables)
    return pd.concat(summaries)


class Picture:
    """The maps that some detectors make of some images of a set.

    Parameters
    ----------
    path : Path
        Of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.maps: dict[str, NDArray] = {}

    def keep(self, flaws: Flaws, name: str, maps: NDArray) -> None:
        """Remember the maps of a detector."""
        if name in PICTURED:
            shown = first_of_each_kind(flaws)
            self.images, self.masks = flaws.test[shown, 0], flaws.masks[shown]
            self.maps[name] = maps[shown]

    def draw(self) -> None:
        """Draw, but not over the picture of a run before if that had more detectors."""
        if PICTURED[0] in self.maps:
            plot_maps(self.path, self.images, self.masks, self.maps)


def main() -> None:
    """Run from the command line."""
    parser = make_parser(__doc__, "inspection", data_help=f"folder of {TILES} and {BOARDS}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.set_defaults(detectors=list(detectors()))
    args = parser.parse_args()
    chosen = choose(parser, args.detectors, detectors())
    cases: dict[str, Callable[[int], Flaws]] = {}
    pictures: dict[str, Picture] = {}
    for kind in args.sets:
        if kind == "tiles":
            archive = read_archive(args, parser, TILES)
            of_set = {SETS[kind]: partial(split_tiles, archive)}
        else:
            archive = read_archive(args, parser, BOARDS)
            boards = np.unique(archive["group"])
            of_set = {f"{SETS[kind]} {b}": partial(split_board, archive, b) for b in boards}
        cases |= of_set
        pictures[next(iter(of_set))] = Picture(args.output / f"{args.name}_{kind}_maps.png")

    def open_case(images: str, seed: int) -> Case:
        flaws = cases[images](seed)

        def keep(name: str, maps: NDArray) -> None:
            if images in pictures and seed == args.seeds[0]:
                pictures[images].keep(flaws, name, maps)

        facts = {"n_train": len(flaws.train), "n_test": len(flaws.test)}
        return Case(facts, lambda name: evaluate(name, chosen[name](seed), flaws, keep))

    results = run("images", cases, open_case, chosen, args)
    for picture in pictures.values():
        picture.draw()
    repeat = command(
        parser,
        args.name,
        detectors=[name for name in detectors() if name in set(results.detector)],
        seeds=sorted(results.seed.unique()),
        sets=[kind for kind, start in SETS.items() if results.images.str.startswith(start).any()],
    )
    print(f"\n{report(results, args, repeat).to_markdown()}")


if __name__ == "__main__":
    main()
