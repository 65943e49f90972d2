"""G2D: Generate to Detect Anomalies (Pourreza et al., WACV 2021)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d._base import NetworkDetector
from sklearn_g2d.errors import UnsupportedObjectError
from sklearn_g2d.export import ClassifierGraph, stages_of
from sklearn_g2d.features import (
    ColumnMinMaxScaler,
    GlobalMinMaxScaler,
    OrientedGradients,
    ResidualPCA,
    SquashingScaler,
)
from sklearn_g2d.features._neighbors import NeighborProfile
from sklearn_g2d.g2d._classifier import FoldedClassifier, NetworkClassifier
from sklearn_g2d.g2d._cloud import GaussianCloud
from sklearn_g2d.g2d._features import PASSTHROUGH, featurize, unfeaturize
from sklearn_g2d.g2d._generators import Space, draw
from sklearn_g2d.g2d._networks import ConvGenerator, ConvNetwork, RowGenerator, Shape
from sklearn_g2d.g2d._snapshots import Snapshot
from sklearn_g2d.g2d._wgan import WassersteinGAN
from sklearn_g2d.training import parallel
from sklearn_g2d.training.runtime import Runtime
from sklearn_g2d.training.session import Session
from sklearn_g2d.utils.arrays import Floats, extrapolate
from sklearn_g2d.utils.centrality import central_rows, resolve_fraction
from sklearn_g2d.utils.columns import Label, follow, sum_by_label
from sklearn_g2d.utils.mapped import as_known_dtype, take
from sklearn_g2d.utils.parts import clone_part
from sklearn_g2d.utils.surroundings import shielded

# Rows that training and the neighbour search see; more are drawn from at random, so that
# neither fitting nor scoring a row slows down as tables grow.
MAX_TRAINING_ROWS = 10_000

# Below so many rows the classifier learns little: its profile is shorter, since distances to
# neighbours far down a short list change with each row, and the distances themselves count, too.
_FEW_ROWS = 50

# Folds that are held out when the preprocessing is refitted for the threshold (of few rows each row
# alone), which pays for small tables only: a row of many hardly moves the means. Cells that may be
# refitted in all, and rows that tell how the others' description changes.
_PREPROCESSING_FOLDS, _MAX_REFITTED_ROWS, _MAX_REFITTED_CELLS = 20, 1000, 2**23
_ROWS_THAT_TELL = 200

# Channels from which convolutions gain by bfloat16 (docs/results).
_MIN_BFLOAT16_CHANNELS = 64

# A point lies among the normal ones if its last neighbour is as near as theirs mostly are.
_INSIDE_QUANTILE = 0.95


@dataclass(eq=False, repr=False, kw_only=True)
class G2DOutlierDetector(NetworkDetector):
    """Novelty detection by a classifier of normal rows against generated outliers.

    A generator makes outliers around the normal rows, and a binary classifier that learns one
    against the other detects alone [1]_. In the paper the generators are the half-trained ones of
    a Wasserstein GAN. Here the generator is a cloud by default, because training it improved no
    benchmark, and the classifier judges a row by its distances to the nearest normal rows;
    `from_paper` gives the method as published.

    Scores are **higher for more normal** rows, and `predict` gives **+1 for inliers and -1 for
    outliers**, as everywhere in scikit-learn. (PyOD's signs are the opposite.)

    Parameters
    ----------
    features : transformer, callable or "passthrough", default=None
        None takes the columns of a table as they are, as "passthrough" does with pixels, too, and
        describes images by ``make_pipeline(OrientedGradients(), ResidualPCA())``. A transformer is
        fitted on the training rows, or on images if its tag ``three_d_array`` says so; a callable,
        such as a pretrained network, maps images (or rows) to an array with a row for each.
    scaler : transformer, default=None
        None is ``SquashingScaler()`` on tables, and on images, whose features are coordinates of
        one space, ``SquashingScaler(bound=inf, range_weight=0, common_scale=True)``.
    generator : GaussianCloud, WassersteinGAN or estimator, default=None
        Makes the outliers. None is ``GaussianCloud()``. Any estimator with `fit` and `sample`, such
        as ``KernelDensity``, can take its place.
    n_neighbors : int, default=20
        Length of the `NeighborProfile` by which the classifier judges a row; 0 shows it the row
        itself, as published.
    measure : {"auto", "distance", "reconstruction"}, default="auto"
        Of the profile. "auto" is "reconstruction" on images, else "distance". Ignored if
        `n_neighbors` is 0.
    n_generated : float, default=2.0
        Generated rows in units of the training rows, the paper's mk / n.
    classifier : NetworkClassifier or scikit-learn classifier, default=None
        Tells normal from generated rows, the paper's D. None is ``NetworkClassifier()``. Of a
        classifier with ``predict_proba`` one clone for each of four folds is trained.
    contamination : "auto" or float in (0, 0.5], default="auto"
        A float says that outliers are among the training rows, and flags that fraction of them.
        "auto" says nothing of the kind, and leaves the line to `threshold`.
    threshold : {"conformal", "probability"}, default="conformal"
        "conformal" promises about 5 % false alarms on new normal rows, judged by scores of rows
        that were held out; "probability" is the classifier's .5, as published. Ignored if
        `contamination` is a number.
    support_fraction : "auto" or float in [0.5, 1], default="auto"
        Fraction of the training rows to learn from, the most central ones; thresholds regard all.
        "auto" takes .6 where `contamination` is a number, which says that outliers are among them.
        Otherwise it leaves out only rows that are remote and yet in company, as a cluster of
        outliers is, and single rows so far out that they would set the scale of all others.
    image_shape : tuple of int, default=None
        Channels, height and width, if the rows given to `fit` are pixels of images; arrays of shape
        (n_samples, channels, height, width) need not say so.
    device : str, default="auto"
        Device of training: "auto" takes CUDA, then MPS, then the CPU.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Of the networks in training. "auto" takes bfloat16 for convolutional networks of 64 channels
        or more where the processor multiplies in it. Scoring never uses it.
    warm_start : bool, default=False
        Whether `fit` trains the networks of a `WassersteinGAN` from the previous call for
        `max_steps` further steps, instead of starting anew.
    verbose : int, default=0
        Above 0, the end of each stage is logged to the logger "sklearn_g2d" at level INFO, and the
        progress of `PretrainedFeatures` where it takes long.
    random_state : int, RandomState instance or None, default=None
        Seed of `fit`, also of parts whose own is None, and, by default, of sampling.

    Attributes
    ----------
    features_, scaler_, generator_, classifier_ : estimator
        The parts in use, fitted; `features_` may be "passthrough" or a function. Clones of a
        scikit-learn classifier are in ``classifier_.members_``.
    profile_ : NeighborProfile or None
        Fitted on the normal rows; None if `n_neighbors` is 0.
    measure_ : str
        What `measure` came to.
    offset_ : float
        Threshold: ``decision_function(X) = score_samples(X) - offset_``.
    snapshots_ : list of Snapshot
        Of a `WassersteinGAN` only: the generators kept, in order of training.
    history_ : dict of ndarray
        Losses by step, of the parts that are trained; perhaps "generator_retries" or
        "classifier_retries", the steps from which training was taken up again at half the rates.
    n_iter_ : int
        Generator steps taken; 0 of generators that are not trained.
    training_scores_ : ndarray of shape (n_samples,)
        Scores of the training rows in their order, **higher = more normal**, by classifiers that
        did not see them: to rank the rows of an unlabelled table. Not kept of more than 10,000
        rows under ``contamination="auto"``.
    calibration_scores_ : ndarray
        Sorted scores of held-out normal rows, on which `p_values` rest.
    device_ : str
        Device that training ran on.
    image_shape_ : tuple of int, or None
        Channels, height and width of the images in `fit`; None after a table.
    n_features_in_, feature_names_in_ : int, ndarray of str
        Number of columns, or of intensities of an image, and names of columns that had any.

    References
    ----------
    .. [1] M. Pourreza, B. Mohammadi, M. Khaki, S. Bouindour, H. Snoussi, M. Sabokrou,
       "G2D: Generate to Detect Anomalies", WACV 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d import G2DOutlierDetector
    >>> X = np.random.default_rng(0).normal(size=(200, 3))
    >>> detector = G2DOutlierDetector(random_state=0).fit(X)
    >>> detector.predict([[0.0, 0.0, 0.0], [6.0, -6.0, 6.0]])
    array([ 1, -1])
    """

    features: Any = None
    scaler: Any = None
    generator: Any = None
    n_neighbors: int = 20
    measure: Literal["auto", "distance", "reconstruction"] = "auto"
    n_generated: float = 2.0
    classifier: Any = None
    contamination: float | Literal["auto"] = "auto"
    threshold: Literal["conformal", "probability"] = "conformal"
    support_fraction: float | Literal["auto"] = "auto"
    image_shape: Sequence[int] | None = None
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    warm_start: bool = False
    verbose: int = 0
    random_state: int | np.random.RandomState | None = None

    _n_stages = 2

    _default_parts: ClassVar[dict[str, Callable[[], Any]]] = {
        "features": lambda: make_pipeline(OrientedGradients(), ResidualPCA()),
        "scaler": SquashingScaler,
        "generator": GaussianCloud,
        "classifier": NetworkClassifier,
    }

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **NetworkDetector._parameter_constraints,
        "features": [StrOptions({PASSTHROUGH}), HasMethods(["fit", "transform"]), callable, None],
        "scaler": [HasMethods(["fit", "transform"]), None],
        "generator": [HasMethods(["fit_in", "draw"]), HasMethods(["fit", "sample"]), None],
        "n_neighbors": [Interval(Integral, 0, None, closed="left")],
        "measure": [StrOptions({"auto", "distance", "reconstruction"})],
        "n_generated": [Interval(Real, 0, None, closed="neither")],
        "classifier": [
            *(NetworkClassifier, FoldedClassifier),
            *(HasMethods(["fit", "predict_proba"]), None),
        ],
        "threshold": [StrOptions({"conformal", "probability"})],
        "support_fraction": [StrOptions({"auto"}), Interval(Real, 0.5, 1, closed="both")],
    }

    @classmethod
    def from_paper(cls, data: Literal["tables", "images"] = "tables", **changes: Any) -> Self:
        """Build the detector as published, with every setting in sight.

        Parameters
        ----------
        data : {"tables", "images"}, default="tables"
            The paper treats images only (Fig. 3, at a sixteenth of the authors' 256 channels); on
            tables layers with as many units, at an eighth, take the place of its convolutions.
        **changes
            Passed to `set_params`, as ``generator__max_steps=20``.

        Returns
        -------
        G2DOutlierDetector

        Examples
        --------
        >>> from sklearn_g2d import G2DOutlierDetector
        >>> detector = G2DOutlierDetector.from_paper("images", generator__max_steps=50)
        >>> detector.generator.n_critic, detector.generator.max_steps
        (1, 50)
        """
        if data not in ("tables", "images"):
            raise ValueError(f'data must be "tables" or "images", got {data!r}.')
        # fmt: off
        generator = WassersteinGAN(
            max_steps=2000, batch_size=64, n_critic=5, gradient_penalty=10.0,
            optimizer="adam", learning_rate=1e-4, betas=(0.5, 0.999), n_members=1,
            latent_dim=100, hidden_layer_sizes=(32, 64, 128), spread=0.0, tail=0.0,
            snapshots="loss", n_snapshots=10, epoch_steps="auto",
            generator_network=RowGenerator(hidden_layer_sizes=(128, 64, 32)),
        )
        classifier = NetworkClassifier(
            hidden_layer_sizes=(64, 64), n_members=1, max_steps=1000, batch_size=32,
            optimizer="sgd", learning_rate=1e-2,
        )
        # fmt: on
        scaler: Any = ColumnMinMaxScaler()
        if data == "images":
            scaler = GlobalMinMaxScaler()
            generator.set_params(
                max_steps=300,
                n_critic=1,
                epoch_steps=3,
                generator_network=ConvGenerator(),
                critic_network=ConvNetwork(),
            )
            classifier.set_params(max_steps=200, network=ConvNetwork())
        parts = cls(features=PASSTHROUGH, scaler=scaler, generator=generator, classifier=classifier)
        parts.set_params(n_neighbors=0, n_generated=1.0, support_fraction=1.0)
        return parts.set_params(threshold="probability").set_params(**changes)

    # Fitting

    def _build_parts(self, random_state: np.random.RandomState) -> None:
        of_images = self.image_shape_ is not None
        default = dict(self._default_parts)
        if of_images:
            default["scaler"] = partial(SquashingScaler, math.inf, 0.0, common_scale=True)
        else:
            default["features"] = lambda: PASSTHROUGH

        def build(name: str) -> Any:
            part = getattr(self, name)
            return default[name]() if part is None else clone_part(part, random_state)

        self.features_, self.scaler_ = build("features"), build("scaler")
        self.generator_, self.classifier_ = build("generator"), build("classifier")
        if not hasattr(self.classifier_, "fit_in"):
            self.classifier_ = FoldedClassifier(self.classifier_)
        by_data: Any = "reconstruction" if of_images else "distance"
        self.measure_ = by_data if self.measure == "auto" else self.measure
        if self.warm_start and not isinstance(self.generator_, WassersteinGAN):
            raise ValueError(
                f"warm_start=True continues training, but {type(self.generator_).__name__} is not "
                "trained. Pass generator=WassersteinGAN(), or set warm_start=False."
            )

    @property
    def _is_convolutional(self) -> bool:
        return any(not isinstance(network, str) for network in self._networks())

    @property
    def _prefers_bfloat16(self) -> bool:
        return any(getattr(n, "channels", 0) >= _MIN_BFLOAT16_CHANNELS for n in self._networks())

    def _networks(self) -> list[Any]:
        parts = [p for p in (self.generator_, self.classifier_) if hasattr(p, "fit_in")]
        settings = [item for part in parts for item in part.get_params(deep=False).items()]
        return [value for name, value in settings if name.endswith("network")]

    def _to_continue(self) -> Any:
        earlier = getattr(self, "generator_", None)
        return earlier if self.warm_start and isinstance(earlier, WassersteinGAN) else None

    def _fit(self, X: NDArray[Any], session: Session) -> None:
        rows, positions = self._training_rows(X, session)
        if len(rows) < 3 and self.scaler is None:
            # Each column by itself would hold the same two values.
            self.scaler_.common_scale = True
        points, described, is_central = self._fit_preprocessing(rows)

        # The irregularity generator I and its critic C: sections 3.1 and 3.3 of the paper.
        bound = float(getattr(self.scaler_, "bound_", math.inf))
        inside = self._make_fraction_inside(points, described)
        space = Space(self._shape_of(points), bound, inside)
        if hasattr(self.generator_, "fit_in"):
            self.generator_.fit_in(points, session, space)
        else:
            self.generator_.fit(points)
        n_generated = max(1, round(self.n_generated * len(points)))
        generated = draw(self.generator_, n_generated, session.runtime.rng)

        # The detector network D, which learns normal against generated: section 3.2, Eq. 1.
        described_generated = self._describe(generated)
        self._learn_range(described, described_generated)
        as_new = self._describe_as_new(rows[is_central], described)
        known, penalty = self._extrapolate(as_new)
        held_out_scores = self.classifier_.fit_in(
            described, described_generated, session, self._shape_of(described), known
        )
        held_out_scores = self._limit(held_out_scores - penalty, described, described_generated)
        self.history_ = getattr(self.generator_, "history_", {}) | self.classifier_.history_
        self.n_iter_ = getattr(self.generator_, "n_steps_", 0)
        scores = np.empty(len(rows))
        scores[is_central] = held_out_scores
        if not is_central.all():
            scores[~is_central] = self._score_validated(rows[~is_central])
        self._set_threshold(X, scores, positions)
        if self.threshold == "probability" and self.contamination == "auto":
            self.offset_ = 0.0  # log-odds of the paper's alpha, .5

    def _training_rows(
        self, X: NDArray[Any], session: Session
    ) -> tuple[NDArray[Any], NDArray[np.intp] | None]:
        """Give the rows to fit with, and where they are in `X`, or None if in other processes."""
        rows = self._pooled(X, MAX_TRAINING_ROWS, session.random_state)
        positions = np.arange(len(rows))
        if len(rows) > MAX_TRAINING_ROWS:
            chosen = session.random_state.choice(len(rows), MAX_TRAINING_ROWS, replace=False)
            positions = np.sort(chosen)
            rows = take(rows, positions)
        # Sums depend on the memory layout in their last digits, and training amplifies them.
        rows = np.ascontiguousarray(as_known_dtype(rows))
        return rows, positions if parallel.n_processes() == 1 else None

    def _fit_preprocessing(self, X: NDArray[Any]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Fit features, scaler and profile.

        Returns the rows to learn from as the generator sees them (n_central, n_features) and as
        the classifier does (n_central, n_values), and which rows they are (n_samples,).
        """
        rows = featurize(self.features_, X, self.image_shape_, fit=True)
        points = self._scale(rows, fit=True)
        is_central = central_rows(
            points, resolve_fraction(self.support_fraction, self.contamination)
        )
        if not is_central.all():
            rows = rows[is_central]
            points = self._scale(rows, fit=True)
        if not self.n_neighbors:
            self.profile_ = None
            return points, points, is_central
        self.profile_ = NeighborProfile(self._n_neighbors_of(len(points)), self.measure_)
        return points, self.profile_.fit_transform(points), is_central

    def _n_neighbors_of(self, n: int) -> int:
        """Give the neighbours in use among `n` rows, and among those that are not held out."""
        if n < _FEW_ROWS:
            return min(self.n_neighbors, max(1, n // 8))
        return min(self.n_neighbors, n - -(-n // _PREPROCESSING_FOLDS) - 1)

    def _describe_as_new(self, rows: NDArray[Any], described: Floats) -> Floats:
        """Describe training rows by features, scaler and neighbours that did not know them.

        The rows of a small table move the scales and the components that they are judged by, so
        that a new row looks farther away than any of them. Without it the other rows look farther
        away, too. A held-out row is moved back by that much, since all rows judge a new one.
        """
        n = len(rows)
        n_folds = n if n <= _FEW_ROWS else _PREPROCESSING_FOLDS
        n_folds = min(n_folds, _MAX_REFITTED_CELLS // rows.size)
        # Functions are not fitted, and without a profile refitted components would mean something
        # else to the classifier. The features of images hardly depend on single ones.
        is_table = self.image_shape_ is None and not callable(self.features_)
        if (
            self.profile_ is None
            or not is_table
            or min(n, n_folds + 1) < 3
            or n > _MAX_REFITTED_ROWS
        ):
            return described
        as_new, shift, further = (np.empty_like(described) for _ in range(3))
        folds = np.arange(n) % n_folds
        # Without two of fewer than 12 rows too little is left to go by; and features, such as a PCA
        # of n - 1 components, may need n - 1 rows.
        is_small = 12 <= n_folds == n < _FEW_ROWS and isinstance(self.features_, str)
        for fold in range(n_folds):
            unseen = folds == fold
            describe = self._refit_description(rows[~unseen])
            as_new[unseen] = describe(rows[unseen])
            others = np.flatnonzero(~unseen)[:: 1 + n // _ROWS_THAT_TELL]
            shift[unseen] = (describe(rows[others]) - described[others]).mean(axis=0)
            if is_small:
                without_next = ~unseen & (folds != (fold + 1) % n_folds)
                further[unseen] = self._refit_description(rows[without_next])(rows[unseen])
        if is_small:
            # Rows that the scales were fitted on show too little of the mean shift of new ones.
            shift += (further - as_new).mean(axis=0) - shift.mean(axis=0)
        return as_new - shift

    def _refit_description(self, rows: NDArray[Any]) -> Callable[[NDArray[Any]], Floats]:
        """Give what maps rows to what the classifier sees, fitted on other training rows."""
        assert self.profile_ is not None
        other = copy.copy(self)
        other.features_, other.scaler_ = clone(self.features_, safe=False), clone(self.scaler_)
        seen = featurize(other.features_, rows, self.image_shape_, fit=True)
        other.profile_ = self.profile_._around(other._scale(seen, fit=True))
        return lambda new: other._describe(
            other._scale(featurize(other.features_, new, self.image_shape_))
        )

    def _make_fraction_inside(self, points: Floats, described: Floats) -> Callable[[Floats], float]:
        """Make the function that tells how many of some samples lie as close as normal points."""

        @cache  # for all snapshots, and only if a generator asks
        def limit() -> tuple[NeighborProfile, float]:
            profile, own = self.profile_, described
            if profile is None:
                profile = NeighborProfile()
                own = profile.fit_transform(points)
            return profile, float(np.quantile(own[:, -1], _INSIDE_QUANTILE))

        def fraction_inside(samples: Floats) -> float:
            profile, farthest = limit()
            return float(np.mean(profile.transform(samples)[:, -1] < farthest))

        return fraction_inside

    def _shape_of(self, points: Floats) -> Shape:
        """Give the shape of a sample of points; pixels that stayed pixels are images."""
        if self.image_shape_ is not None and points.shape[1] == math.prod(self.image_shape_):
            return self.image_shape_
        return (points.shape[1],)

    # Scoring

    def _describe(self, points: Floats) -> Floats:
        """Map points to what the classifier sees."""
        return points if self.profile_ is None else self.profile_.transform(points)

    def _learn_range(self, described: Floats, generated: Floats) -> None:
        """Learn how far out the classifier has seen rows, and what distances weigh besides it."""
        self._farthest = np.maximum(described.max(axis=0), generated.max(axis=0))
        self._distance_weight = max(0.0, _FEW_ROWS / len(described) - 1)

    def _extrapolate(self, described: Floats) -> tuple[Floats, Floats | float]:
        """Give what the classifier judges, and what to subtract from its scores (n_samples,).

        Beyond what it saw in training a network goes on in any direction; there scores fall with
        the distance.
        """
        if self.profile_ is None:
            return described, 0.0
        return extrapolate(described, self._farthest, self._distance_weight)

    def _limit(self, scores: Floats, described: Floats, generated: Floats) -> Floats:
        """Raise held-out scores to that of the farthest place seen: nothing beyond is normal.

        Without a row the scales of few others may put it anywhere, so that of few rows nothing is
        normal beyond most generated ones. A classifier of the user's that finds such a place normal
        gives no limit.
        """
        if self.profile_ is None:
            return scores
        farthest = self._farthest
        if len(described) < _FEW_ROWS:
            farthest = np.quantile(generated, 0.9, axis=0)
        limit = self._score_described(farthest[None])
        is_lowest = limit < self._score_described(described).min()
        return np.maximum(scores, limit) if is_lowest else scores

    def _score_described(self, described: Floats) -> Floats:
        inside, penalty = self._extrapolate(described)
        odds = self.classifier_.log_odds(inside)
        # A mean over rows of memory, whose sums take the same order for one sample and for many.
        return np.ascontiguousarray(odds.T).mean(axis=1) - penalty

    def _source_of_scores(self) -> str:
        part = self.classifier_
        return f"the classifier {type(getattr(part, 'classifier', part)).__name__}"

    def _scale(self, rows: NDArray[Any], fit: bool = False) -> Floats:
        """Map rows of features to points, by the scaler, which is fitted on them first if asked."""
        scaler = self.scaler_.fit(rows) if fit else self.scaler_
        points = np.asarray(scaler.transform(rows), dtype=np.float64)
        if points.ndim != 2 or len(points) != len(rows):
            raise ValueError(
                f"The scaler {type(scaler).__name__} returned shape {points.shape} for {len(rows)} "
                "rows; it must return a row for each."
            )
        return points

    def _score_batch(self, X: NDArray[Any]) -> Floats:
        rows = featurize(self.features_, X, self.image_shape_)
        points = self._scale(rows)
        return self._score_described(self._describe(points))

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Give the classifier's probabilities, normal against generated.

        They compare a row with the *generated* outliers and are no frequencies of real ones; for a
        promised rate of false alarms use `calibrate` or `p_values`.

        Parameters
        ----------
        X : array-like, as for `score_samples`

        Returns
        -------
        ndarray of shape (n_samples, 2)
            Probabilities of the labels -1 (outlier) and +1 (inlier).
        """
        inlier = expit(self.score_samples(X))
        return np.column_stack([1 - inlier, inlier])

    @shielded()
    def explain(self, X: ArrayLike) -> Floats:
        """Give each column's contribution to the squared distance from rows to their neighbours.

        The classifier judges a row of a table by its distances to its `n_neighbors` nearest normal
        rows. The contribution of a column is its squared difference, ``(x - neighbour) ** 2``, in
        the units of `scaler_`, averaged over these neighbours. So the row sums,
        ``explain(X).sum(axis=1)``, are the mean squared distances to the neighbours. As in
        `profile_`, a training row that equals the row in question is left out, and one that is
        nearer than training rows mostly are to each other is left out in part, so that training
        rows are explained like new ones.

        They explain how far a row lies and not its score, which also depends on how far normal
        rows lie from each other. `sklearn_g2d.inspection.column_contributions` explains by the
        columns of a Pipeline, and `sklearn_g2d.display.ContributionDisplay` draws one row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            **Not negative; higher = farther from normal**. Columns are in the order of `fit`; one
            that `features` leaves out contributes 0.

        Raises
        ------
        ValueError
            If the classifier sees no distances to neighbours (images, ``n_neighbors=0``,
            ``measure="reconstruction"``), or if `features` or `scaler` mix columns; also as in
            `score_samples`.
        """
        check_is_fitted(self)
        labels, columns = self._labels_of_points(), range(self.n_features_in_)
        profile = self.profile_
        assert profile is not None

        def explain_batch(rows: NDArray[Any]) -> Floats:
            points = self._scale(featurize(self.features_, rows, None))
            return sum_by_label(profile._by_column(points), labels, columns)

        return self._by_batch(explain_batch, self._validate(X, reset=False))

    def _labels_of_points(self) -> list[Label]:
        """Say of which column each coordinate of the points is made, or that there is none."""
        if self.image_shape_ is not None:
            raise ValueError(
                "explain is for tables, and this detector was fitted on images. To see where an "
                "image is anomalous, use the anomaly_map of an AVIDDetector."
            )
        if self.profile_ is None or self.profile_.mixture_sizes_:
            seen = "the row itself" if self.profile_ is None else "distances to mixtures of rows"
            raise ValueError(
                f"explain splits distances to neighbours by columns, but the classifier sees {seen}"
                '. Fit with n_neighbors=20 and measure="distance", the defaults on tables.'
            )
        labels: list[Label] = list(range(self.n_features_in_))
        for part in (self.features_, self.scaler_):
            labels = follow(part, labels)
            if not all(isinstance(label, int) for label in labels):
                raise ValueError(
                    f"explain needs columns that are kept apart, but {type(part).__name__} mixes "
                    "them. Put it before the detector, in a Pipeline, and call "
                    "sklearn_g2d.inspection.column_contributions, which lists what it makes."
                )
        return labels

    # Sampling

    @property
    def snapshots_(self) -> list[Snapshot]:
        """Give the generators kept by a `WassersteinGAN`, in order of training.

        Returns
        -------
        list of Snapshot
        """
        self._check_has_snapshots("snapshots_", AttributeError)
        return self.generator_.snapshots_

    @shielded()
    def sample_outliers(
        self,
        n_samples: int = 1,
        *,
        snapshots: Sequence[Snapshot] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> Floats:
        """Generate outliers, rows or images, as the classifier was trained on.

        Features that cannot be turned back into rows, as oriented gradients cannot, are a
        ValueError.

        Parameters
        ----------
        n_samples : int, default=1
        snapshots : sequence of Snapshot, default=None
            Generators of a `WassersteinGAN` to draw from, equally; None takes all of `snapshots_`
            that make outliers.
        random_state : int, RandomState instance or None, default=None
            Seed; None takes the estimator's own.

        Returns
        -------
        ndarray of shape (n_samples, n_features) or (n_samples, channels, height, width)
            In the units of the training data.
        """
        check_is_fitted(self)
        _check_n_samples(n_samples)
        if snapshots is None:
            return self._sample(n_samples, random_state)
        self._check_has_snapshots("snapshots", ValueError)
        return self._sample(n_samples, random_state, snapshots=snapshots)

    @shielded()
    def sample_normals(
        self, n_samples: int = 1, *, random_state: int | np.random.RandomState | None = None
    ) -> Floats:
        """Generate rows or images that resemble normal ones, to augment a small data set.

        They are rows of the last generator of a `WassersteinGAN` that the detector accepts as
        inliers; fewer than one in a hundred are a RuntimeError. A generator has to mature for that:
        set its `max_steps` to a few thousand.

        Parameters
        ----------
        n_samples : int, default=1
        random_state : int, RandomState instance or None, default=None
            Seed; None takes the estimator's own.

        Returns
        -------
        ndarray of shape (n_samples, n_features) or (n_samples, channels, height, width)
            In the units of the training data.
        """
        check_is_fitted(self)
        _check_n_samples(n_samples)
        self._check_has_snapshots("sample_normals", ValueError)
        drawn = self._sample(100 * n_samples, random_state, snapshots=self.snapshots_[-1:])
        accepted = drawn[self.predict(drawn) == 1]
        if len(accepted) < n_samples:
            raise RuntimeError(
                f"Only {len(accepted)} of {len(drawn)} rows of the generator after "
                f"{self.n_iter_} steps are like normal ones. Fit with a larger max_steps, or "
                "continue by warm_start=True, and sample again."
            )
        return accepted[:n_samples]

    def _sample(
        self, n: int, random_state: int | np.random.RandomState | None, **kwargs: Any
    ) -> Floats:
        seeds = self.random_state if random_state is None else random_state
        seed = int(check_random_state(seeds).randint(np.iinfo(np.int32).max))
        points = draw(self.generator_, n, Runtime.create("cpu", "float32", seed).rng, **kwargs)
        if not hasattr(self.scaler_, "inverse_transform"):
            raise ValueError(
                f"The scaler {type(self.scaler_).__name__} has no inverse_transform, so that "
                "generated points cannot be turned into rows."
            )
        rows = unfeaturize(self.features_, self.scaler_.inverse_transform(points))
        return self._as_given(rows)

    def _check_has_snapshots(self, name: str, error: type[Exception]) -> None:
        check_is_fitted(self)
        if not hasattr(self.generator_, "snapshots_"):
            raise error(
                f"{name} needs a WassersteinGAN, but the generator is a "
                f"{type(self.generator_).__name__}. Fit with generator=WassersteinGAN()."
            )

    def _export_module(self) -> ClassifierGraph:
        if not isinstance(self.classifier_, NetworkClassifier):
            raise UnsupportedObjectError(
                "A classifier of your own cannot be exported. Fit with "
                "classifier=NetworkClassifier()."
            )
        stages = [stages_of(part) for part in (self.features_, self.scaler_, self.profile_)]
        farthest = None if self.profile_ is None else self._farthest
        return ClassifierGraph(
            stages,
            *self.classifier_.scoring_module(),
            self.offset_,
            farthest,
            self._distance_weight,
        )


def _check_n_samples(n_samples: int) -> None:
    if not isinstance(n_samples, Integral) or n_samples < 1:
        raise ValueError(f"n_samples must be an integer of at least 1, got {n_samples!r}.")
