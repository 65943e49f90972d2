"""What the benchmarks of anomaly maps share: detectors by name, figures and pictures.

Maps are higher where more anomalous, scores of images lower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from benchmarks.map_baselines import (
    MAX_WINDOWS,
    N_COMPONENTS,
    N_NEIGHBORS,
    ConvAutoEncoder,
    MapBaseline,
    WindowNeighbors,
    WindowPCA,
)
from sklearn_g2d import AVIDDetector
from sklearn_g2d.avid import CellInpainting, MaskedInpainting, UNet
from sklearn_g2d.display import OutlierRocCurveDisplay
from sklearn_g2d.metrics import equal_error_rate, outlier_roc_auc_score, per_region_overlap_auc


class MapDetector(Protocol):
    """What these benchmarks ask of a detector."""

    def fit(self, X: NDArray) -> Any: ...

    def anomaly_map(self, X: NDArray) -> NDArray: ...


Data = Literal["images", "tables"]
Factory = Callable[[int], MapDetector]  # takes a seed

AVID_PUBLISHED = "AVID as published"
# As wide as the authors' networks, and on whole images. It takes hours without a GPU, so that it
# runs only if it is asked for.
AVID_FOR_GPUS = "AVID as published, 64 channels"
AVID_NAMES = ["AVID", "AVID adversarial", AVID_PUBLISHED, AVID_FOR_GPUS]
# One fit serves all maps; the one that gives the detector its name comes last.
AVID_MAPS = {" I alone": "inpainter", " D alone": "detector", "": "combined"}

SECONDS = {"fit_seconds": "fit (s)", "map_milliseconds": "map (ms per image)"}

# A paragraph of every page on images.
BASELINES = (
    "The baselines see the same images. Windows are squares of the region's size, a quarter of it "
    f'apart, at most {MAX_WINDOWS:,} random ones for training: "5-NN" is the mean '
    f"distance from the {N_NEIGHBORS} nearest of these, between pixels, or between gradients by "
    f'orientation and mean intensities; "PCA" is what {N_COMPONENTS} components leave out of a '
    "window. A pixel gets the mean over the windows that cover it. The autoencoder is a "
    "convolutional one of whole images. They judge an image by the highest tenth of its map, after "
    "averaging over regions."
)


def avid_detectors(data: Data, max_steps: int | None = None, **common: Any) -> dict[str, Factory]:
    """Factories of AVID by name; `max_steps` and the parameters `common` are those of all."""
    return {
        name: partial(_avid, name, params)
        for name, params in _avid_params(data, max_steps, common).items()
    }


def _avid(name: str, params: dict[str, Any], seed: int) -> MapDetector:
    make = AVIDDetector.from_paper if name.startswith(AVID_PUBLISHED) else AVIDDetector
    return make(**params, random_state=seed)


def _avid_params(
    data: Data, max_steps: int | None, common: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    training: Callable[..., Any] = MaskedInpainting if data == "images" else CellInpainting
    steps = {} if max_steps is None else {"max_steps": max_steps}
    nested = {f"training__{name}": value for name, value in steps.items()}
    published = {"data": data, **common, **nested}
    params = {
        "AVID": common | ({"training": training(**steps)} if steps else {}),
        "AVID adversarial": common | {"training": training(adversarial_weight=0.003, **steps)},
        AVID_PUBLISHED: published,
    }
    if data == "images":
        params[AVID_FOR_GPUS] = published | {
            "inpainter": UNet(channels=64, multipliers=(1, 2, 4, 8), first_skip=0),
            "detector__channels": 64,
            "training__whole_images": True,
        }
    return params


def explain_avid(
    results: pd.DataFrame, data: Data, max_steps: int | None = None, **common: Any
) -> str:
    """Say what stands behind the names of AVID in the results."""
    by_name = _avid_params(data, max_steps, common)

    def written(name: str) -> str:
        is_published = name.startswith(AVID_PUBLISHED)
        call = "AVIDDetector.from_paper" if is_published else "AVIDDetector"
        given = [f"{key}={value!r}" for key, value in by_name[name].items()]
        return f"`{call}({', '.join([*given, 'random_state=seed'])})`"

    text = (
        f'AVID is {written("AVID")}; "I alone" and "D alone" are maps of the same fit, '
        '`anomaly_map(X, source="inpainter")` and `anomaly_map(X, source="detector")`.'
    )
    others = [name for name in by_name if name != "AVID" and name in set(results.detector)]
    text += "".join(f' "{name}" is {written(name)}.' for name in others)
    return text.replace("'", '"')


def window_baselines(region_size: int) -> dict[str, Factory]:
    """Factories of the baselines that know nothing of a grid, by name."""
    neighbors = partial(WindowNeighbors, region_size)
    return {
        "5-NN windows": lambda seed: neighbors(seed=seed),
        "5-NN windows, gradients": lambda seed: neighbors(features="gradients", seed=seed),
        "PCA windows": lambda seed: WindowPCA(region_size, seed=seed),
        "autoencoder": lambda seed: ConvAutoEncoder(region_size, seed=seed),
    }


def fit_maps(
    name: str, detector: Any, train: NDArray, test: NDArray, **fit_params: Any
) -> Iterator[tuple[dict[str, Any], NDArray, str | None]]:
    """Fit once; for each kind of map give the start of a result row, the maps and their source.

    The source is None where a detector has one kind of map only.
    """
    start = time.perf_counter()
    detector.fit(train, **fit_params)
    fit_seconds = time.perf_counter() - start
    for suffix, source in AVID_MAPS.items() if name in AVID_NAMES else [("", None)]:
        start = time.perf_counter()
        maps = detector.anomaly_map(test, **({"source": source} if source else {}))
        milliseconds = 1000 * (time.perf_counter() - start) / len(test)
        row = {
            "detector": name + suffix,
            "fit_seconds": fit_seconds,
            "map_milliseconds": milliseconds,
        }
        yield row, maps, source


def image_anomaly(
    detector: Any, images: NDArray, maps: NDArray, source: str | None = None
) -> NDArray:
    """Anomaly of images, by their maps where these have a source of their own."""
    if isinstance(detector, MapBaseline):
        return -detector.score_maps(maps)
    if source in (None, "combined"):
        return -detector.score_samples(images)
    # As the detector pools the maps that it was fitted to judge images by.
    regions = np.sort(detector.region_scores(images, source=source).reshape(len(images), -1))
    n_top = max(1, round(detector.top_fraction * regions.shape[1]))
    return regions[:, -n_top:].mean(axis=1)


# Figures


def separation(is_anomalous: NDArray, anomaly: NDArray, prefix: str = "") -> dict[str, float]:
    """AUC and EER of telling the anomalous from the normal, of whatever shape."""
    y = np.where(is_anomalous.ravel(), -1, 1)
    score = -anomaly.ravel()
    return {
        f"{prefix}auc": outlier_roc_auc_score(y, score),
        f"{prefix}eer": equal_error_rate(y, score),
    }


def region_means(maps: NDArray, grid_shape: tuple[int, int]) -> NDArray:
    """Mean of the maps within each tile of a grid: (n, rows, columns)."""
    n, height, width = maps.shape
    rows, columns = grid_shape
    tiles = maps.reshape(n, rows, height // rows, columns, width // columns)
    return tiles.mean(axis=(2, 4))


def pixel_figures(masks: NDArray, maps: NDArray) -> dict[str, float]:
    """AUC of pixels, and AUPRO."""
    return {
        "pixel_auc": float(roc_auc_score(masks.ravel(), maps.ravel())),
        "aupro": per_region_overlap_auc(masks, maps),
    }


# Curves and pictures


class RocCurves:
    """ROC curves in a CSV file, so that a resumed run can draw those of the run before.

    Parameters
    ----------
    path : str or Path
        Of the file; each of its columns is a curve, "what: detector".
    """

    FALSE_ALARMS = np.linspace(0, 1, 201).round(3)

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def add(self, detector: str, judged: Mapping[str, tuple[NDArray, NDArray]]) -> None:
        """Write curves, given the truth and the anomaly by what is detected."""
        curves = self.read()
        for what, (is_anomalous, anomaly) in judged.items():
            fpr, tpr, _ = roc_curve(is_anomalous.ravel(), anomaly.ravel())
            curves[f"{what}: {detector}"] = np.interp(self.FALSE_ALARMS, fpr, tpr)
        curves.to_csv(self.path, float_format="%.4g")

    def read(self) -> pd.DataFrame:
        """Read all curves, detection rates by false alarms."""
        if self.path.exists():
            return pd.read_csv(self.path, index_col=0)
        return pd.DataFrame(index=pd.Index(self.FALSE_ALARMS, name="false_alarms"))

    def plot(self, path: str | Path, panels: list[str], detectors: list[str]) -> None:
        """Save a picture: a panel for each "what", with the curves that there are."""
        import matplotlib.pyplot as plt

        curves = self.read()
        figure, axes = plt.subplots(
            1, len(panels), figsize=(5 * len(panels), 5), layout="constrained", squeeze=False
        )
        for ax, what in zip(axes[0], panels, strict=True):
            for number, name in enumerate(detectors):
                if f"{what}: {name}" not in curves:
                    continue
                curve = OutlierRocCurveDisplay(
                    fpr=self.FALSE_ALARMS, tpr=curves[f"{what}: {name}"].to_numpy(), name=name
                )
                width = 2.5 if name == "AVID" else 1.2
                curve.plot(ax=ax, color=f"C{number}", linewidth=width)
            # Where it crosses a curve is the equal error rate.
            ax.plot([0, 1], [1, 0], ":", color="0.6")
            ax.set(title=what)
        figure.savefig(path, dpi=120)
        plt.close(figure)


def plot_maps(
    path: str | Path, images: NDArray, masks: NDArray, maps: Mapping[str, NDArray]
) -> None:
    """Save a picture: images with the truth outlined, below them the maps of each detector.

    Parameters
    ----------
    path : str or Path
    images, masks : ndarray of shape (n, height, width)
    maps : mapping of str to ndarray of shape (n, height, width)
        By detector; all maps of a detector have one scale of colours.
    """
    import matplotlib.pyplot as plt

    n_rows, n_columns = 1 + len(maps), len(images)
    figure, axes = plt.subplots(
        n_rows,
        n_columns,
        figsize=(2 * n_columns, 2 * n_rows + 0.2),
        layout="constrained",
        squeeze=False,
    )
    for ax, image, mask in zip(axes[0], images, masks, strict=True):
        ax.imshow(image, cmap="gray")
        if mask.any():
            ax.contour(mask, [0.5], colors="red", linewidths=0.8)
    for row, (name, of_detector) in zip(axes[1:], maps.items(), strict=True):
        low, high = np.quantile(of_detector, [0.02, 0.995])
        for ax, values in zip(row, of_detector, strict=True):
            ax.imshow(values, cmap="viridis", vmin=low, vmax=high)
        row[0].set_ylabel(name)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=100)
    plt.close(figure)
