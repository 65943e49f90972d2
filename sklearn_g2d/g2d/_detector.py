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
from sklearn_g2d.utils.columns import Label, sum_by_label, trace_columns
from sklearn_g2d.utils.copies import warn_of_copies
from sklearn_g2d.utils.mapped import as_known_dtype, take
from sklearn_g2d.utils.parts import clone_part
from sklearn_g2d.utils.search import NeighborSearch
from sklearn_g2d.utils.surroundings import shielded
from sklearn_g2d.utils.warnings import warn_caller

# Number of rows for training and for the neighbour search. They are drawn from larger tables, so
# that the times of a fit and of scoring a row do not grow with the table.
MAX_TRAINING_ROWS = 10_000

# Below this number of rows the classifier learns little. The profile is shorter, because distances
# to the last neighbours of a few rows change with each row. Scores also depend directly on
# distances.
_FEW_ROWS = 50

# For the threshold of a small table the preprocessing is refitted without each of so many folds, or
# without each row if there are few. In a large table a fold hardly changes the means: above so many
# rows, or cells in all fits, this is left out.
_PREPROCESSING_FOLDS, _MAX_REFITTED_ROWS, _MAX_REFITTED_CELLS = 20, 1000, 2**23
# Number of other rows that show how the description of rows changes in a refit.
_ROWS_THAT_TELL = 200

# With at least so many channels, convolutions are faster in bfloat16 (docs/results).
_MIN_BFLOAT16_CHANNELS = 64

# This fraction of the rows, and at least so many, that are left out by themselves are warned of:
# they take a large part of the false alarms.
_MANY_LEFT_OUT, _LEAST_GROUP = 0.02, 5

# A point lies among the normal rows if the distance to its last neighbour is below this quantile
# of the distances of normal rows.
_INSIDE_QUANTILE = 0.95


@dataclass(eq=False, repr=False, kw_only=True)
class G2DOutlierDetector(NetworkDetector):
    """Novelty detection by a classifier of normal rows against generated outliers.

    A generator makes outliers around the normal rows. A binary classifier learns to tell normal
    rows from these outliers; it alone is the detector [1]_. The paper uses half-trained generators
    of a Wasserstein GAN. Here the default generator is a random cloud, because training a generator
    improved no benchmark, and the classifier judges a row by its distances to the nearest normal
    rows. `from_paper` gives the published method.

    Scores are **higher for more normal** rows, and `predict` gives **+1 for inliers and -1 for
    outliers**, as everywhere in scikit-learn. (PyOD's signs are the opposite.)

    Parameters
    ----------
    features : transformer, callable or "passthrough", default=None
        With None, columns of a table are used unchanged, as with "passthrough", and images get
        ``make_pipeline(OrientedGradients(), ResidualPCA())``. A transformer is fitted on the
        training rows, or on images if it has the tag ``three_d_array``. A callable, such as a
        pretrained network, maps images (or rows) to an array with one row for each of them.
    scaler : transformer, default=None
        None means ``SquashingScaler()`` on tables. On images, whose features are coordinates of
        one space, it means ``SquashingScaler(bound=inf, range_weight=0, common_scale=True)``.
    generator : GaussianCloud, WassersteinGAN or estimator, default=None
        The generator of outliers. None means ``GaussianCloud()``. It can also be any estimator with
        `fit` and `sample`, such as ``KernelDensity``.
    n_neighbors : int, default=20
        Length of the `NeighborProfile`, the input of the classifier. With 0 the input is the row
        itself, as published.
    measure : {"auto", "distance", "reconstruction"}, default="auto"
        Measure of the profile. "auto" means "reconstruction" on images, and "distance" on tables.
        Ignored if `n_neighbors` is 0.
    n_generated : float, default=2.0
        Number of generated rows divided by the number of training rows, the paper's mk / n.
    classifier : NetworkClassifier or scikit-learn classifier, default=None
        The classifier of normal against generated rows, which the paper calls the detector. None
        means ``NetworkClassifier()``. A classifier of scikit-learn needs ``predict_proba``; one
        clone of it is trained for each of four folds.
    contamination : "auto" or float in (0, 0.5], default="auto"
        A number says that this fraction of the training rows are outliers, and sets the threshold
        so that this fraction is flagged. With "auto" the parameter `threshold` decides.
    threshold : {"conformal", "probability"}, default="conformal"
        "conformal" gives about 5 % false alarms on new normal rows, by the scores of held-out
        rows. "probability" is a classifier's probability of .5, as published. Ignored if
        `contamination` is a number.
    support_fraction : "auto" or float in [0.5, 1], default="auto"
        Fraction of the training rows to learn from, the most central ones. The threshold depends
        on all rows. "auto" means .6 if `contamination` is a number, because then there are outliers
        among the training rows. Otherwise it leaves out only clusters of outliers, that is, remote
        rows with others near to them, and single rows so remote that they would determine the scale
        of all others.
    image_shape : tuple of int, default=None
        Channels, height and width, if the rows given to `fit` are pixels of images. Arrays of shape
        (n_samples, channels, height, width) do not need it.
    device : str, default="auto"
        Device of training, and of convolutional classifiers in scoring. "auto" means CUDA if there
        is a GPU and a network is not a perceptron, else the CPU.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Precision of the networks in training. "auto" means bfloat16 for convolutional networks of
        64 channels or more if the processor multiplies in it. Scoring never uses bfloat16.
    warm_start : bool, default=False
        Whether `fit` continues the training of a `WassersteinGAN` from the previous call, for
        `max_steps` more steps, instead of training new networks.
    verbose : int, default=0
        Above 0, the logger "sklearn_g2d" reports the end of each stage at level INFO, and the
        progress of `PretrainedFeatures` if it takes long.
    random_state : int, RandomState instance or None, default=None
        Seed of `fit`, of parts that have no seed, and, by default, of sampling.

    Attributes
    ----------
    features_, scaler_, generator_, classifier_ : estimator
        The fitted parts; `features_` may be "passthrough" or a function. Clones of a scikit-learn
        classifier are in ``classifier_.members_``.
    profile_ : NeighborProfile or None
        The profile, fitted on the normal rows; None if `n_neighbors` is 0.
    measure_ : str
        The measure in use.
    offset_ : float
        Threshold: ``decision_function(X) = score_samples(X) - offset_``.
    snapshots_ : list of Snapshot
        Generators that were kept, in order of training; only with a `WassersteinGAN`.
    history_ : dict of ndarray
        Losses of trained parts by step. If training diverged, "generator_retries" or
        "classifier_retries" are the steps from which it was repeated with half the learning rates.
    n_iter_ : int
        Number of generator steps; 0 for generators without training.
    training_scores_ : ndarray of shape (n_samples,)
        Scores of the training rows in their order, **higher = more normal**, by classifiers that
        did not see them. Use them to rank the rows of an unlabelled table. With
        ``contamination="auto"`` they exist for at most 10,000 rows.
    calibration_scores_ : ndarray
        Sorted scores of held-out normal rows, which `p_values` compares with.
    device_ : str
        Device of training, and of convolutional classifiers in scoring; see `to`.
    image_shape_ : tuple of int, or None
        Channels, height and width of the images in `fit`; None after a table.
    n_features_in_, feature_names_in_ : int, ndarray of str
        Number of columns, or of intensities of an image, and names of columns if they have names.

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
        """Build the published method, with all settings visible as parameters.

        Parameters
        ----------
        data : {"tables", "images"}, default="tables"
            "images" gives the networks of Fig. 3, with a sixteenth of the authors' 256 channels.
            The paper has no tables: "tables" replaces its convolutions by layers with an eighth as
            many units.
        **changes
            Parameters for `set_params`, such as ``generator__max_steps=20``.

        Returns
        -------
        G2DOutlierDetector
            A detector that is not fitted.

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
        # A classifier of scikit-learn has no `fit_in`: the wrapper trains its clones.
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
        channels = [getattr(network, "channels", None) for network in self._networks()]
        return any(isinstance(n, Integral) and int(n) >= _MIN_BFLOAT16_CHANNELS for n in channels)

    def _networks(self) -> list[Any]:
        # Only our own parts with `fit_in` have networks as parameters.
        parts = [p for p in (self.generator_, self.classifier_) if hasattr(p, "fit_in")]
        settings = [item for part in parts for item in part.get_params(deep=False).items()]
        return [value for name, value in settings if name.endswith("network")]

    def _to_continue(self) -> Any:
        earlier = getattr(self, "generator_", None)
        return earlier if self.warm_start and isinstance(earlier, WassersteinGAN) else None

    def _fit(self, X: NDArray[Any], session: Session) -> None:
        rows, positions = self._training_rows(X, session)
        if len(rows) < 3 and self.scaler is None:
            # If columns of two rows are scaled separately, all of them hold the same two values.
            self.scaler_.common_scale = True
        points, described, is_central = self._fit_preprocessing(rows)

        # The generator and its critic: sections 3.1 and 3.3 of the paper.
        bound = float(getattr(self.scaler_, "bound_", math.inf))
        inside = self._make_fraction_inside(points, described)
        space = Space(self._shape_of(points), bound, inside)
        if hasattr(self.generator_, "fit_in"):
            self.generator_.fit_in(points, session, space)
        else:
            self.generator_.fit(points)
        n_generated = max(1, round(self.n_generated * len(points)))
        generated = draw(self.generator_, n_generated, session.runtime.rng)

        # The paper's detector, a classifier of normal against generated rows: section 3.2, Eq. 1.
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
        # No member saw the rows that are not central, so that their scores need no folds.
        scores = np.empty(len(rows))
        scores[is_central] = held_out_scores
        if not is_central.all():
            scores[~is_central] = self._score_validated(rows[~is_central])
        self._set_threshold(X, scores, positions)
        # Scores are log-odds, and the paper's threshold is the probability .5.
        if self.threshold == "probability" and self.contamination == "auto":
            self.offset_ = 0.0

    def _training_rows(
        self, X: NDArray[Any], session: Session
    ) -> tuple[NDArray[Any], NDArray[np.intp] | None]:
        """Return the rows for `fit`, and their positions in `X`, or None with several processes."""
        rows = self._pooled(X, MAX_TRAINING_ROWS, session.random_state)
        positions = np.arange(len(rows))
        if len(rows) > MAX_TRAINING_ROWS:
            chosen = session.random_state.choice(len(rows), MAX_TRAINING_ROWS, replace=False)
            positions = np.sort(chosen)
            rows = take(rows, positions)
        # The last digits of sums depend on the memory layout, and training amplifies the
        # differences.
        rows = np.ascontiguousarray(as_known_dtype(rows))
        return rows, positions if parallel.n_processes() == 1 else None

    def _fit_preprocessing(self, X: NDArray[Any]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Fit features, scaler and profile.

        Return the rows to learn from in the generator's space (n_central, n_features), as input of
        the classifier (n_central, n_values), and the mask of these rows (n_samples,).
        """
        rows = featurize(self.features_, X, self.image_shape_, fit=True)
        points = self._scale(rows, fit=True)
        search = NeighborSearch(points)
        fraction = resolve_fraction(self.support_fraction, self.contamination)
        is_central = central_rows(search, fraction)
        n, n_left_out = len(rows), int(np.sum(~is_central))
        if fraction == "auto" and n_left_out >= max(_LEAST_GROUP, _MANY_LEFT_OUT * n):
            warn_caller(
                f"{n_left_out} of the {n} rows are not learned from, because they are remote from "
                "the others and near to each other, like a cluster of outliers. New rows like them "
                "will be flagged. If they are normal, pass support_fraction=1."
            )
        # Outliers have moved the scales: fit the scaler again without them.
        if not is_central.all():
            rows = rows[is_central]
            points = self._scale(rows, fit=True)
            search = NeighborSearch(points)
        if not self.n_neighbors:
            self.profile_ = None
            return points, points, is_central
        self.profile_ = NeighborProfile(self._n_neighbors_of(len(points)), self.measure_)
        described = self.profile_._fit_to_search(search)
        if len(rows) > 2:
            warn_of_copies(rows, search.nearest_of_references(3)[0][:, 1:])
        return points, described, is_central

    def _n_neighbors_of(self, n: int) -> int:
        """Return the number of neighbours for `n` rows, small enough for a refit without a fold."""
        if n < _FEW_ROWS:
            return min(self.n_neighbors, max(1, n // 8))
        return min(self.n_neighbors, n - -(-n // _PREPROCESSING_FOLDS) - 1)

    def _describe_as_new(self, rows: NDArray[Any], described: Floats) -> Floats:
        """Describe training rows by features, scaler and neighbours that were fitted without them.

        Each row of a small table changes the scales and components that it is judged by, so that
        new rows look farther away than training rows. Therefore a held-out row is described by a
        refit without it. In such a refit, with fewer rows, the other rows look farther away, too.
        The held-out row is moved back by this shift, because a new row is judged by all rows.
        """
        n = len(rows)
        n_folds = n if n <= _FEW_ROWS else _PREPROCESSING_FOLDS
        n_folds = min(n_folds, _MAX_REFITTED_CELLS // rows.size)
        # There is nothing to refit for a function. Without a profile the classifier sees
        # components, and refitted ones have another meaning. Features of images hardly depend on
        # single images.
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
        # A refit without two rows needs at least 12 rows, because otherwise too few are left. It
        # also needs tables without features: a PCA of n - 1 components, for example, needs n - 1
        # rows.
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
            # Rows that were in the refit shift less than new rows do. Correct the mean shift by
            # that of held-out rows when one more fold is left out.
            shift += (further - as_new).mean(axis=0) - shift.mean(axis=0)
        return as_new - shift

    def _refit_description(self, rows: NDArray[Any]) -> Callable[[NDArray[Any]], Floats]:
        """Return a function from rows to the classifier's input, fitted on other training rows."""
        assert self.profile_ is not None
        other = copy.copy(self)
        other.features_, other.scaler_ = clone(self.features_, safe=False), clone(self.scaler_)
        seen = featurize(other.features_, rows, self.image_shape_, fit=True)
        other.profile_ = self.profile_._with_reference(other._scale(seen, fit=True))
        return lambda new: other._describe(
            other._scale(featurize(other.features_, new, self.image_shape_))
        )

    def _make_fraction_inside(self, points: Floats, described: Floats) -> Callable[[Floats], float]:
        """Return the function `Space.fraction_inside`."""

        # The profile is needed only if a generator calls the function, and then once for all
        # snapshots.
        @cache
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
        """Return the shape of a point: that of an image if points are pixels."""
        if self.image_shape_ is not None and points.shape[1] == math.prod(self.image_shape_):
            return self.image_shape_
        return (points.shape[1],)

    # Scoring

    def _describe(self, points: Floats) -> Floats:
        """Map points to the classifier's input."""
        return points if self.profile_ is None else self.profile_.transform(points)

    def _learn_range(self, described: Floats, generated: Floats) -> None:
        """Learn the farthest input that the classifier has seen, and the weight of distances."""
        self._farthest = np.maximum(described.max(axis=0), generated.max(axis=0))
        self._distance_weight = max(0.0, _FEW_ROWS / len(described) - 1)

    def _extrapolate(self, described: Floats) -> tuple[Floats, Floats | float]:
        """Return the classifier's input, and a penalty to subtract from its scores (n_samples,).

        Far from the training data the scores of a network may rise or fall. There the input is cut
        off, and the penalty lets scores fall with the distance.
        """
        if self.profile_ is None:
            return described, 0.0
        return extrapolate(described, self._farthest, self._distance_weight)

    def _limit(self, scores: Floats, described: Floats, generated: Floats) -> Floats:
        """Raise held-out scores to at least the score of the farthest input seen in training.

        No row beyond this input is normal. The scales of a few other rows may move a held-out row
        to any distance; therefore with few rows the limit is the score of an input beyond 90 % of
        the generated rows. If the user's classifier finds this input normal, there is no limit.
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
        # NumPy sums contiguous rows in an order that does not depend on the number of samples.
        return np.ascontiguousarray(odds.T).mean(axis=1) - penalty

    def _source_of_scores(self) -> str:
        part = self.classifier_
        return f"the classifier {type(getattr(part, 'classifier', part)).__name__}"

    def _scale(self, rows: NDArray[Any], fit: bool = False) -> Floats:
        """Map rows of features to points by the scaler; `fit` fits it on these rows first."""
        scaler = self.scaler_.fit(rows) if fit else self.scaler_
        points = np.asarray(scaler.transform(rows), dtype=np.float64)
        if points.ndim != 2 or len(points) != len(rows):
            raise ValueError(
                f"The scaler {type(scaler).__name__} returned shape {points.shape} for {len(rows)} "
                "rows; it must return one row for each."
            )
        return points

    def _score_batch(self, X: NDArray[Any]) -> Floats:
        rows = featurize(self.features_, X, self.image_shape_)
        points = self._scale(rows)
        return self._score_described(self._describe(points))

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return the classifier's probabilities of generated and normal rows.

        They compare a row with *generated* outliers, and are not frequencies of real outliers. For
        a guaranteed rate of false alarms use `calibrate` or `p_values`.

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
        """Return each column's contribution to the squared distance from rows to their neighbours.

        The classifier judges a row of a table by its distances to its `n_neighbors` nearest normal
        rows. The contribution of a column is its squared difference, ``(x - neighbour) ** 2``, in
        the units of `scaler_`, averaged over these neighbours. So the sums
        ``explain(X).sum(axis=1)`` are the mean squared distances to the neighbours. As in
        `profile_`, a training row that equals the row in question is left out. A training row that
        is nearer than most training rows are to each other is left out in part. So training rows
        are explained like new rows.

        Contributions explain the distance of a row and not its score, which also depends on the
        distances between normal rows. `sklearn_g2d.inspection.column_contributions` explains by
        the columns of a Pipeline, and `sklearn_g2d.display.ContributionDisplay` draws one row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            **Not negative; higher = farther from normal**. Columns are in the order of `fit`. A
            column that `features` leaves out contributes 0.

        Raises
        ------
        ValueError
            If the classifier does not judge distances to neighbours (images, ``n_neighbors=0``,
            ``measure="reconstruction"``), or if `features` or `scaler` mix columns. Also for the
            reasons that `score_samples` lists.
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
        """Return the column that each coordinate of points comes from, or raise ValueError."""
        if self.image_shape_ is not None:
            raise ValueError(
                "explain is for tables, and this detector was fitted on images. To see where an "
                "image is anomalous, use the anomaly_map of a PatchDetector or an AVIDDetector."
            )
        if self.profile_ is None or self.profile_.mixture_sizes_:
            seen = "the row itself" if self.profile_ is None else "distances to mixtures of rows"
            raise ValueError(
                f"explain splits distances to neighbours by columns, but the classifier sees {seen}"
                '. Fit with n_neighbors=20 and measure="distance", the defaults on tables.'
            )
        labels: list[Label] = list(range(self.n_features_in_))
        for part in (self.features_, self.scaler_):
            labels = trace_columns(part, labels)
            if not all(isinstance(label, int) for label in labels):
                raise ValueError(
                    f"explain needs columns that are kept apart, but {type(part).__name__} mixes "
                    "them. Put it before the detector, in a Pipeline, and call "
                    "sklearn_g2d.inspection.column_contributions, which lists its new columns."
                )
        return labels

    # Sampling

    @property
    def snapshots_(self) -> list[Snapshot]:
        """Return the generators that a `WassersteinGAN` kept, in order of training.

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
        """Generate outliers, rows or images, like those in the training of the classifier.

        Features without an inverse, such as oriented gradients, raise ValueError.

        Parameters
        ----------
        n_samples : int, default=1
            Number of outliers.
        snapshots : sequence of Snapshot, default=None
            Generators of a `WassersteinGAN`; equally many samples are drawn from each. None means
            all `snapshots_` that make outliers.
        random_state : int, RandomState instance or None, default=None
            Seed; None means the estimator's own seed.

        Returns
        -------
        ndarray of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Outliers in the units of the training data.
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
        """Generate rows or images that resemble normal ones, for example to enlarge a data set.

        They are samples of the last generator of a `WassersteinGAN` that the detector finds
        normal. If fewer than one in a hundred samples are, a RuntimeError is raised. The generator
        needs enough training for this: set its `max_steps` to a few thousand.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows or images.
        random_state : int, RandomState instance or None, default=None
            Seed; None means the estimator's own seed.

        Returns
        -------
        ndarray of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Samples in the units of the training data.
        """
        check_is_fitted(self)
        _check_n_samples(n_samples)
        self._check_has_snapshots("sample_normals", ValueError)
        drawn = self._sample(100 * n_samples, random_state, snapshots=self.snapshots_[-1:])
        accepted = drawn[self.predict(drawn) == 1]
        if len(accepted) < n_samples:
            raise RuntimeError(
                f"Only {len(accepted)} of {len(drawn)} rows of the generator after "
                f"{self.n_iter_} steps are like normal rows. Fit with a larger max_steps, or "
                "continue with warm_start=True, and sample again."
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
