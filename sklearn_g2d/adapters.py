"""Detectors of PyOD as scikit-learn's, and the other way round. Needs the extra "pyod".

scikit-learn, and this package, label inliers +1 and outliers -1, and score **higher = more
normal**; PyOD labels them 0 and 1, and scores **higher = more anomalous**.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, MetaEstimatorMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from sklearn_g2d.calibration import VerdictMixin
from sklearn_g2d.training.runtime import globally_seeded
from sklearn_g2d.utils.parts import clone_part
from sklearn_g2d.utils.state import unchanged_on_failure
from sklearn_g2d.utils.surroundings import shielded
from sklearn_g2d.utils.warnings import check_unused_y

try:
    from pyod.models.base import BaseDetector
except ImportError as error:
    raise ImportError(
        "sklearn_g2d.adapters takes pyod: pip install 'sklearn_g2d[pyod]'."
    ) from error

__all__ = ["FromPyOD", "ToPyOD"]


class FromPyOD(MetaEstimatorMixin, VerdictMixin, BaseEstimator):
    """Turn a detector of PyOD into one of scikit-learn, with its signs, labels and methods.

    Parameters
    ----------
    detector : detector of PyOD
        An instance that learns without labels, such as ``KNN()``. A clone of it is fitted on
        numbers: put encoders of texts or images before this adapter, in a Pipeline.
    random_state : int, RandomState instance or None, default=None
        Seed of the fit. It seeds each `random_state` that is None in the detector, and the global
        random generators, which some detectors read and which `fit` restores at its end. A
        `random_state` that is not None stays; the default of `AutoEncoder` and `VAE` is 42.

    Attributes
    ----------
    detector_ : detector of PyOD
        The fitted clone.
    offset_ : float
        Minus PyOD's `threshold_`: ``decision_function(X) = score_samples(X) - offset_``.
    training_scores_ : ndarray of shape (n_samples,)
        Minus PyOD's `decision_scores_`, **higher = more normal**. They can differ from
        `score_samples` of the same rows: KNN, for example, leaves out the row itself in training.
    n_features_in_, feature_names_in_ : int, ndarray
        Number of columns, and their names if all names are texts.

    See Also
    --------
    ToPyOD : The other way round.

    Notes
    -----
    The scores are PyOD's. `ECOD` and `COPOD` give a row another score when it is scored together
    with other rows; `VAE` and `ALAD` draw random numbers when they score. Fits in several threads
    run one after another, because they share the global random generators. Other code that draws
    from these generators during a fit, such as ``AutoEncoder()`` or ``LUNAR()``, changes the fit.

    Examples
    --------
    >>> import numpy as np
    >>> from pyod.models.knn import KNN
    >>> from sklearn_g2d.adapters import FromPyOD
    >>> X = np.random.default_rng(0).normal(size=(200, 3))
    >>> detector = FromPyOD(KNN()).set_params(detector__n_neighbors=10).fit(X)
    >>> detector.predict([[0.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
    array([ 1, -1])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {"random_state": ["random_state"]}

    def __init__(
        self, detector: Any, *, random_state: int | np.random.RandomState | None = None
    ) -> None:
        self.detector = detector
        self.random_state = random_state

    @unchanged_on_failure
    @shielded()
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Fit a clone of the detector.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : ignored
            Labels are not used. A warning is given if there are labels of two kinds.

        Returns
        -------
        self

        Raises
        ------
        TypeError
            If `detector` is not an instance of a detector of PyOD.
        ValueError
            If `X` or a score is NaN or infinite, or if the detector's `contamination` is not a
            number.
        """
        self._validate_params()
        _check_is_instance(self, self.detector)
        name = type(self.detector).__name__
        if not isinstance(self.detector, BaseDetector):
            raise TypeError(
                f"FromPyOD takes a detector of PyOD, got {name}. Use a detector of scikit-learn "
                "without FromPyOD; in a Pipeline, wrap only its last step."
            )
        if not isinstance(self.detector.contamination, Real):
            raise ValueError(
                f"contamination of {name} must be a number, got {self.detector.contamination!r}: "
                "it sets no threshold for scores. Call set_params(detector__contamination=.1)."
            )
        X = validate_data(self, X, ensure_min_samples=2)
        check_unused_y(y, X)
        rng = check_random_state(self.random_state)
        with _global_generators(int(rng.randint(2**31))):
            # Some detectors draw random numbers in their constructor. A clone calls it again, so
            # that it must be made after the generators are seeded.
            self.detector_ = clone_part(self.detector, rng).fit(X)
        self.training_scores_ = _negate(self.detector_.decision_scores_, name)
        self.offset_ = -float(self.detector_.threshold_)
        return self

    @shielded()
    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Score rows; **higher = more normal**.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,)
            Minus PyOD's `decision_function`, as float64, in the units of the detector.

        Raises
        ------
        ValueError
            If `X` or a score is not finite, or if `X` has other columns than in `fit`.
        """
        check_is_fitted(self)
        X = validate_data(self, X, reset=False)
        return _negate(self.detector_.decision_function(X), type(self.detector_).__name__)


class ToPyOD(BaseDetector):
    """Turn an outlier detector of scikit-learn, or of this package, into one of PyOD.

    The result has PyOD's methods, signs and labels. It works in PyOD's ensembles, and in its
    detectors for time series and embeddings.

    Parameters
    ----------
    detector : outlier detector, or Pipeline that ends with one
        It needs `score_samples`, **higher = more normal**. A clone of it is fitted; a
        `FrozenEstimator` is not fitted again. The detector's own threshold is not used.
    contamination : float in (0, 0.5], default=0.1
        Fraction of the training rows that is labelled 1.

    Attributes
    ----------
    detector_ : outlier detector
        The fitted clone.
    decision_scores_ : ndarray of shape (n_samples,)
        Scores of the training rows, **higher = more anomalous**: minus `training_scores_` or
        `negative_outlier_factor_`, if the detector has one of them, because these compare a row
        with other rows only; else minus `score_samples`.
    threshold_ : float
        Rows with a score above it are labelled 1.
    labels_ : ndarray of shape (n_samples,)
        Labels of the training rows, **0 (inlier) or 1 (outlier)**.

    See Also
    --------
    FromPyOD : The other way round.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d import G2DOutlierDetector
    >>> from sklearn_g2d.adapters import ToPyOD
    >>> X = np.random.default_rng(0).normal(size=(200, 3))
    >>> detector = ToPyOD(G2DOutlierDetector(random_state=0), contamination=0.05).fit(X)
    >>> detector.predict([[0.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
    array([0, 1])
    >>> int(detector.labels_.sum())
    10
    """

    def __init__(self, detector: Any, contamination: float = 0.1) -> None:
        super().__init__(contamination=contamination)
        self.detector = detector

    @unchanged_on_failure
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Fit a clone of the detector.

        Parameters
        ----------
        X : array-like, as the detector takes it
        y : ignored
            Labels give a warning, as in PyOD's detectors.

        Returns
        -------
        self

        Raises
        ------
        TypeError
            If `detector` is a detector of PyOD, is a class, or has no `score_samples`.
        """
        _check_is_instance(self, self.detector)
        name = type(self.detector).__name__
        if isinstance(self.detector, BaseDetector):
            raise TypeError(f"{name} is a detector of PyOD already. Use it without ToPyOD.")
        if not hasattr(self.detector, "score_samples"):
            raise TypeError(
                f"ToPyOD takes an outlier detector with score_samples, got {name}. "
                "LocalOutlierFactor has this method if novelty=True. Wrap a detector of PyOD in "
                "a Pipeline by FromPyOD."
            )
        self._set_n_classes(y)
        # FrozenEstimator.fit has no default for y.
        self.detector_ = clone(self.detector).fit(X, None)
        last = self.detector_
        while isinstance(last, Pipeline):
            last = last.steps[-1][1]
        scores = None
        # A frozen detector was trained on other rows, so that its training scores do not fit X.
        if not isinstance(last, FrozenEstimator):
            scores = getattr(last, "training_scores_", None)
            scores = getattr(last, "negative_outlier_factor_", scores)
        if scores is None:
            scores = self.detector_.score_samples(X)
        self.decision_scores_ = _negate(scores, name)
        self._process_decision_scores()
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Score rows; **higher = more anomalous**.

        Parameters
        ----------
        X : array-like, as the detector takes it

        Returns
        -------
        ndarray of shape (n_samples,)
            Minus the detector's `score_samples`, as float64.
        """
        check_is_fitted(self, ["decision_scores_", "threshold_", "labels_"])
        return _negate(self.detector_.score_samples(X), type(self.detector_).__name__)


def _check_is_instance(adapter: Any, detector: Any) -> None:
    if isinstance(detector, type):
        raise TypeError(
            f"{type(adapter).__name__} takes an instance, got the class {detector.__name__}. Pass "
            f"{detector.__name__}()."
        )


def _negate(scores: ArrayLike, name: str) -> NDArray[np.float64]:
    """Change the sign of a detector's scores."""
    negated = -np.asarray(scores, dtype=np.float64).reshape(-1)
    if not np.isfinite(negated).all():
        raise ValueError(
            f"{np.sum(~np.isfinite(negated))} of {len(negated)} scores of {name} are NaN or "
            "infinite. Scale the rows, or use another detector."
        )
    return negated


@contextmanager
def _global_generators(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and PyTorch, and restore them at the end."""
    # Do not start CUDA here: if this process is a fork, it cannot start CUDA.
    device = "cuda" if torch.cuda.is_initialized() else "cpu"
    # This context also holds a lock, so that only one thread at a time seeds the generators.
    with globally_seeded(torch.Generator(device), seed):
        of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
        try:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002 (PyOD reads this generator)
            # This seeds CUDA, too, in case PyOD starts to use it.
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002
