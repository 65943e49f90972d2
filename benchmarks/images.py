"""What the benchmarks on images share: tasks, and the detectors with what each of them sees.

G2D takes images. PyOD's detectors take rows, so each runs twice: on rows of pixels, and on
the features that G2D computes from images by default.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from benchmarks.detectors import (
    G2D_TRAINED,
    Detector,
    MakeG2D,
    g2d_detectors,
    labels,
    pyod_detectors,
)
from benchmarks.runner import Case, quality
from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.features import OrientedGradients, PretrainedFeatures, ResidualPCA
from sklearn_g2d.g2d import ConvGenerator, ConvNetwork

CONTAMINATION = 0.05
FIGURES = {
    "auc": "AUC",
    "average_precision": "average precision",
    "eer": "EER",
    "f1": "F1 outliers",
    "f1_normal": "F1 normal",
    "false_alarms": "false alarms",
    "fit_seconds": "fit (s)",
    "score_seconds": "score (s)",
}
G2D_AS_AUTHORS = partial(
    G2DOutlierDetector.from_paper,
    data="images",
    generator__generator_network=ConvGenerator(channels=256),
    generator__critic_network=ConvNetwork(channels=256),
    classifier__network=ConvNetwork(channels=256),
)
# It takes hours without a GPU, so that it runs only if it is asked for.
FOR_GPUS: dict[str, MakeG2D] = {"G2D as published, 256 channels": G2D_AS_AUTHORS}
G2D_VARIANTS: dict[str, MakeG2D] = {
    "G2D": G2DOutlierDetector,
    "G2D trained": G2D_TRAINED,
    "G2D pretrained": partial(G2DOutlierDetector, features=PretrainedFeatures()),
    "G2D pixels": partial(G2DOutlierDetector, features=ResidualPCA()),
    "G2D as published": partial(G2DOutlierDetector.from_paper, data="images"),
    **FOR_GPUS,
}
PYOD_NAMES = ["KNN", "LOF", "IForest", "OCSVM", "PCA", "AutoEncoder", "DeepSVDD"]

# Paragraphs of every page.
DETECTORS = (
    "PyOD's detectors run at their defaults but for "
    f'`contamination={CONTAMINATION}` and the seed: as "pixels" on rows of pixels scaled to '
    '[0, 1], as "features" on what G2D itself sees, `make_pipeline(OrientedGradients(), '
    "ResidualPCA())` fitted on the training images. G2D is "
    "`G2DOutlierDetector(random_state=seed)` on the images, its threshold that of "
    '`contamination="auto"`; "G2D trained" has `generator=WassersteinGAN(max_steps=150)`, "G2D '
    'pretrained" has `features=PretrainedFeatures()`, a network trained on ImageNet, "G2D '
    'pixels" has `features=ResidualPCA()`, "G2D as published" is '
    '`G2DOutlierDetector.from_paper(data="images")`, whose threshold is the classifier\'s '
    'probability .5; with "256 channels" its networks are as wide as the authors\' (`channels=256` '
    "in all three)."
)
FIGURES_EXPLAINED = (
    "EER is the equal error rate. F1 is given for either class, by name; F1 and false alarms, "
    "the share of new normal images flagged, are at the detectors' own thresholds."
)


@dataclass(frozen=True)
class Task:
    """One-class detection: learn from normal images, find the others.

    Attributes
    ----------
    train, test : ndarray of shape (n, channels, height, width), or rows made of these
        Normal images, and images of both kinds.
    y_test : ndarray
        +1 inlier, -1 outlier.
    held_out : ndarray, optional
        Further normal images, for `calibrate`.
    fit_seconds, score_seconds : float
        What it took to bring `train`, and `test`, into this form.
    """

    train: NDArray
    test: NDArray
    y_test: NDArray
    held_out: NDArray | None = None
    fit_seconds: float = 0.0
    score_seconds: float = 0.0

    def seen_as(self, view: str) -> Task:
        """As "images", rows of "pixels" or rows of "features"."""
        transformer = VIEWS[view]()
        start = time.perf_counter()
        train = transformer.fit_transform(self.train)
        fitted = time.perf_counter()
        test = transformer.transform(self.test)
        scored = time.perf_counter()
        held_out = None if self.held_out is None else transformer.transform(self.held_out)
        return Task(train, test, self.y_test, held_out, fitted - start, scored - fitted)


def pixel_rows(images: NDArray) -> NDArray:
    """Rows of pixels in [0, 1], from images of bytes."""
    return images.reshape(len(images), -1) / 255


VIEWS: dict[str, Callable[[], Any]] = {
    "images": FunctionTransformer,
    "pixels": partial(FunctionTransformer, pixel_rows),
    "features": lambda: make_pipeline(OrientedGradients(), ResidualPCA()),
}


@dataclass(frozen=True)
class Contender:
    """A detector's factory, which takes a seed, and the view that it has of images."""

    view: str
    make: Callable[[int], Detector]


def image_detectors() -> dict[str, Contender]:
    """All detectors for images, by name."""
    contenders = {
        name: Contender("images", make)
        for name, make in g2d_detectors("auto", G2D_VARIANTS).items()
    }
    pyod = pyod_detectors(CONTAMINATION)
    for view in ("pixels", "features"):
        contenders |= {f"{name} {view}": Contender(view, pyod[name]) for name in PYOD_NAMES}
    return contenders


def evaluate(detector: Detector, task: Task) -> list[dict[str, Any]]:
    """Fit and score once; the figures, in a single row."""
    start = time.perf_counter()
    detector.fit(task.train)
    fitted = time.perf_counter()
    scores = detector.score_samples(task.test)
    scored = time.perf_counter()
    return [
        {
            **figures(task.y_test, scores, detector.offset_),
            "fit_seconds": task.fit_seconds + fitted - start,
            "score_seconds": task.score_seconds + scored - fitted,
        }
    ]


def figures(y_test: NDArray, scores: NDArray, offset: float) -> dict[str, float]:
    """Figures by name; "f1" is that of the outliers, "f1_normal" that of the inliers."""
    predicted = labels(scores, offset)
    f1_normal = float(f1_score(y_test, predicted, pos_label=1, zero_division=0.0))
    return quality(y_test, scores, predicted) | {"f1_normal": f1_normal}


def open_task(
    task: Task,
    seed: int,
    contenders: dict[str, Contender],
    evaluate: Callable[[Detector, Task], list[dict[str, Any]]] = evaluate,
    **facts: Any,
) -> Case:
    """Open a task for `run`; the first detector to ask for a view has it computed, once."""
    seen_as = cache(task.seen_as)

    def measure(name: str) -> list[dict[str, Any]]:
        contender = contenders[name]
        return evaluate(contender.make(seed), seen_as(contender.view))

    return Case({**facts, "n_train": len(task.train), "n_test": len(task.test)}, measure)


def read_archive(
    args: argparse.Namespace, parser: argparse.ArgumentParser, name: str
) -> dict[str, NDArray]:
    """Read the arrays of a file in the folder of `--data`; without it the command ends."""
    path = args.data / name
    if not path.is_file():
        parser.error(f"no {name} in {args.data}")
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
