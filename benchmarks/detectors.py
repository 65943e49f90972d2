"""The detectors that the benchmarks compare, all behind scikit-learn's conventions.

PyOD labels outliers 1 and scores them high; scikit-learn labels them -1 and scores them
low. `PyOD` converts at this border, so that no benchmark handles two signs.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import random
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.calibration import conformal_threshold
from sklearn_g2d.g2d import WassersteinGAN


class Detector(Protocol):
    """What a benchmark asks of a detector."""

    offset_: float
    training_scores_: NDArray

    def fit(self, X: NDArray) -> Any: ...

    def score_samples(self, X: NDArray) -> NDArray: ...

    def predict(self, X: NDArray) -> NDArray: ...

    def calibrate(self, X_normal: NDArray, false_alarm_rate: float) -> Any: ...


class PyOD:
    """A PyOD detector with scikit-learn's signs and labels.

    Parameters
    ----------
    path : str
        Module and class below `pyod.models`, such as "knn.KNN".
    contamination : float
        Share of the training rows that PyOD's threshold flags.
    seed : int
        Given as `random_state` where the detector has one, and to the global generators
        of those that read only these.
    **params
        Further parameters; all others stay at PyOD's defaults.
    """

    def __init__(self, path: str, contamination: float, seed: int, **params: Any) -> None:
        self.path, self.contamination, self.seed, self.params = path, contamination, seed, params

    def fit(self, X: NDArray) -> PyOD:
        X = X.reshape(len(X), -1)  # of images, the pixels
        module, name = self.path.split(".")
        detector_class = getattr(importlib.import_module(f"pyod.models.{module}"), name)
        accepted = detector_class.__init__.__code__.co_varnames
        params = {"contamination": self.contamination, **self.params}
        if "random_state" in accepted:
            params["random_state"] = self.seed
        if "n_features" in accepted:
            params["n_features"] = X.shape[1]
        if name in ("AutoEncoder", "DeepSVDD"):
            params["verbose"] = 0
        random.seed(self.seed)
        np.random.seed(self.seed)  # noqa: NPY002 (what PyOD reads)
        torch.manual_seed(self.seed)
        with _quiet():
            self.model_ = detector_class(**params).fit(X)
        self.offset_ = -float(self.model_.threshold_)
        self.training_scores_ = -self.model_.decision_scores_
        return self

    def score_samples(self, X: NDArray) -> NDArray:
        with _quiet():
            return -self.model_.decision_function(X.reshape(len(X), -1))

    def predict(self, X: NDArray) -> NDArray:
        return labels(self.score_samples(X), self.offset_)

    def calibrate(self, X_normal: NDArray, false_alarm_rate: float) -> PyOD:
        """Set the threshold by held-out normal rows, as `G2DOutlierDetector.calibrate` does."""
        self.offset_ = conformal_threshold(self.score_samples(X_normal), false_alarm_rate)
        return self


def labels(scores: NDArray, offset: float) -> NDArray:
    """+1 for inliers, -1 for outliers, by a detector's scores and its `offset_`."""
    return np.where(scores < offset, -1, 1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # Several PyOD detectors print their epochs and warn about their own internals.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


PYOD_PATHS = {
    "KNN": "knn.KNN",
    "LOF": "lof.LOF",
    "IForest": "iforest.IForest",
    "OCSVM": "ocsvm.OCSVM",
    "PCA": "pca.PCA",
    "HBOS": "hbos.HBOS",
    "ECOD": "ecod.ECOD",
    "COPOD": "copod.COPOD",
    "INNE": "inne.INNE",
    "CBLOF": "cblof.CBLOF",
    "LUNAR": "lunar.LUNAR",
    "AutoEncoder": "auto_encoder.AutoEncoder",
    "DeepSVDD": "deep_svdd.DeepSVDD",
    "ALAD": "alad.ALAD",
    "SO_GAAL": "so_gaal.SO_GAAL",
}


def pyod_detectors(contamination: float) -> dict[str, Callable[[int], Detector]]:
    """Factories of PyOD's detectors by name; each takes a seed."""
    return {name: partial(PyOD, path, contamination) for name, path in PYOD_PATHS.items()}


MakeG2D = Callable[..., G2DOutlierDetector]  # takes parameters that are common to all variants

G2D_TRAINED: MakeG2D = partial(G2DOutlierDetector, generator=WassersteinGAN(max_steps=150))
G2D_VARIANTS: dict[str, MakeG2D] = {
    "G2D": G2DOutlierDetector,
    "G2D trained": G2D_TRAINED,
    "G2D no profile": partial(G2DOutlierDetector, n_neighbors=0),
    "G2D as published": partial(G2DOutlierDetector.from_paper, data="tables"),
    "G2D as published, untrained": partial(
        G2DOutlierDetector.from_paper, data="tables", generator__max_steps=0
    ),
}


def g2d_detectors(
    contamination: float | Literal["auto"], variants: dict[str, MakeG2D] = G2D_VARIANTS
) -> dict[str, Callable[[int], Detector]]:
    """Factories of G2D's default, its ablations and the published method; each takes a seed."""
    return {name: partial(_g2d, contamination, make) for name, make in variants.items()}


def _g2d(contamination: float | Literal["auto"], make: MakeG2D, seed: int) -> Detector:
    return make(contamination=contamination, random_state=seed)
