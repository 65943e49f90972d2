"""What both detectors share: validation, training under callbacks, thresholds."""

from __future__ import annotations

import logging
import os
import warnings
from abc import ABC, abstractmethod
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.callback import CallbackContext, CallbackSupportMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from sklearn_g2d.errors import ModelFileError, TrainingDivergedError
from sklearn_g2d.training import parallel
from sklearn_g2d.training.history import History, record
from sklearn_g2d.training.loop import Training
from sklearn_g2d.training.runtime import PRECISIONS
from sklearn_g2d.training.trainer import Losses, Trainer
from sklearn_g2d.utils.images import ImageShape, as_rows
from sklearn_g2d.utils.mapped import NUMBERS, as_known_dtype, blocks, check_finite, take

logger = logging.getLogger("sklearn_g2d")

# Share of new normal rows that the threshold of contamination="auto" flags.
AUTO_FALSE_ALARM_RATE = 0.05

# What is scored at once: few enough rows, and cells of large images, for memory.
_SCORING_BATCH_ROWS = 8192
_SCORING_BATCH_CELLS = 2**24


class BaseDetector(CallbackSupportMixin, OutlierMixin, BaseEstimator, ABC):
    """Novelty detector: learns normal rows, then scores new ones, higher = more normal.

    A subclass sets `offset_` and `calibration_scores_` in `fit` and scores rows in
    `_score_batch`.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "contamination": [StrOptions({"auto"}), Interval(Real, 0, 0.5, closed="right")],
        "image_shape": ["array-like", None],
        "max_steps": [Interval(Integral, 0, None, closed="left"), None],
        "batch_size": [Interval(Integral, 2, None, closed="left"), None],
        "n_estimators": [Interval(Integral, 1, None, closed="left"), None],
        "device": [str],
        "precision": [StrOptions(set(PRECISIONS))],
        "warm_start": ["boolean"],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    image_shape_: ImageShape | None
    offset_: float
    calibration_scores_: NDArray[np.float64]

    @abstractmethod
    def _score_batch(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Score validated rows, higher = more normal."""

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Score rows; **higher = more normal**.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Rows to score; a memory map is read in blocks.

        Returns
        -------
        ndarray of shape (n_samples,)
            float64 scores in the units of the detector's logits.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ValueError
            If `X` holds NaN or infinity, or its columns are not those of `fit`.
        """
        check_is_fitted(self)
        return self._score_validated(self._validate(X, reset=False))

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Score rows relative to the threshold; **negative = outlier**.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Rows to score.

        Returns
        -------
        ndarray of shape (n_samples,)
            ``score_samples(X) - offset_``.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Label rows **+1 (inlier) or -1 (outlier)**.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Rows to label.

        Returns
        -------
        ndarray of shape (n_samples,)
            -1 where ``decision_function(X) < 0``.
        """
        return np.where(self.decision_function(X) < 0, -1, 1)

    def calibrate(self, X_normal: ArrayLike, false_alarm_rate: float = 0.01) -> Self:
        """Move the threshold so that new normal rows are flagged at a promised rate.

        Split conformal prediction: for rows exchangeable with `X_normal`, `predict` gives
        -1 with a probability of at most `false_alarm_rate`, whatever the detector learned.

        Parameters
        ----------
        X_normal : array-like, as for `score_samples`
            Normal rows that were **not** in the training data; at least
            ``1 / false_alarm_rate - 1`` of them.
        false_alarm_rate : float in (0, 1), default=0.01
            Share of normal rows that may be flagged.

        Returns
        -------
        self
            With new `offset_` and `calibration_scores_`.

        Raises
        ------
        ValueError
            If the rate is out of range, or there are too few rows to promise it.
        """
        check_is_fitted(self)
        if not 0 < false_alarm_rate < 1:
            raise ValueError(f"false_alarm_rate must lie in (0, 1), got {false_alarm_rate!r}.")
        scores = np.sort(self.score_samples(X_normal))
        rank = conformal_rank(len(scores), false_alarm_rate)
        if rank < 1:
            needed = int(np.ceil(1 / false_alarm_rate - 1e-9)) - 1
            raise ValueError(
                f"A false-alarm rate of {false_alarm_rate} takes at least {needed} normal "
                f"rows to promise, got {len(scores)}. Pass more rows or a higher rate."
            )
        self.calibration_scores_ = scores
        self.offset_ = float(scores[rank - 1])
        return self

    def p_values(self, X: ArrayLike) -> NDArray[np.float64]:
        """Conformal p-values of "this row is normal"; **small = anomalous**.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Rows to test.

        Returns
        -------
        ndarray of shape (n_samples,)
            ``(1 + number of calibration scores not above the row's) / (n + 1)``. After
            `calibrate` they are valid in finite samples; before, they rest on the
            training rows' out-of-fold scores and hold approximately.
        """
        scores = self.score_samples(X)
        at_most = np.searchsorted(self.calibration_scores_, scores, side="right")
        return np.asarray((1 + at_most) / (len(self.calibration_scores_) + 1), dtype=np.float64)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted detector to a file that holds numbers and names, never code.

        The file is complete or not there at all: whatever happens while saving, a former one
        at `path` stays whole. Callbacks are not saved.

        Parameters
        ----------
        path : str or path-like
            Where to; usually it ends in ".safetensors". An existing file is replaced.

        Raises
        ------
        NotFittedError
            Before `fit`.
        UnsupportedObjectError
            If the detector holds an object of yours (a classifier, transformer or function)
            that could not be rebuilt without executing code.
        """
        from sklearn_g2d import persistence  # which knows the detectors

        persistence.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a detector that `save` has written.

        Nothing in a file is executed, whoever wrote it.

        Parameters
        ----------
        path : str or path-like
            The file.

        Returns
        -------
        detector
            Fitted; its scores equal those of the saved one.

        Raises
        ------
        OSError
            If the file cannot be read.
        ModelFileError
            If it holds another class or no detector, is damaged, or comes from a version of
            this package whose files this version does not read; the error says which.
        """
        from sklearn_g2d import persistence

        detector = persistence.load(path)
        if not isinstance(detector, cls):
            name = type(detector).__name__
            raise ModelFileError(
                f"{os.fspath(path)!r} holds an {name}, not a {cls.__name__}: call {name}.load, or "
                "sklearn_g2d.persistence.load, which loads either."
            )
        return detector

    def to_onnx(self, path: str | os.PathLike[str], *, dtype: DTypeLike = "float64") -> None:
        """Write the fitted detector as an ONNX graph, which runs without PyTorch.

        The graph takes one array "X", shaped as `fit` was given it, and holds all that precedes
        and follows the networks. It gives "decision_function" and "score_samples", both float64
        of shape (n_samples,) and **higher = more normal**; of an `AVIDDetector`, also its
        "anomaly_map". They equal this detector's up to rounding. Nothing is checked: NaN gives
        NaN. Takes the extra "onnx".

        Parameters
        ----------
        path : str or path-like
            Where to; an existing file is replaced, once all of the new one is on the disk.
        dtype : {"float64", "float32", "uint8"}, default="float64"
            Of "X".

        Raises
        ------
        NotFittedError
            Before `fit`.
        UnsupportedObjectError
            If the detector's features or its classifier are your own.
        ImportError
            Without the packages of the extra.

        Warns
        -----
        UserWarning
            If the detector itself scores in bfloat16, which the graph does not.
        """
        from sklearn_g2d import export

        export.to_onnx(self, path, dtype=dtype)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True  # what scikit-learn calls a stack of images
        return tags

    def _validate(self, X: ArrayLike, *, reset: bool) -> NDArray[Any]:
        """Check rows or images; returns rows, which are views of images."""
        known = self.image_shape if reset else self.image_shape_
        name = type(self).__name__
        rows, image_shape = as_rows(X, known, name=name, fitted=not reset)
        rows = validate_data(
            self,
            rows,
            reset=reset,
            dtype=NUMBERS,
            ensure_all_finite=False,
            ensure_min_samples=2 if reset else 1,
        )
        check_finite(rows, name)
        if reset:
            self.image_shape_ = image_shape
            self._given_as_images = rows is not X
        return rows

    def _validate_training(self, X: ArrayLike) -> NDArray[Any]:
        """Check what `fit` is given, by all processes if several train together."""
        with parallel.together():
            rows = self._validate(X, reset=True)
        shapes = parallel.gather(self.image_shape_ or (self.n_features_in_,))
        if len(set(shapes)) > 1:
            raise ValueError(
                f"Processes that train together were given samples of different shapes, {shapes}. "
                "Give each a part of the same data."
            )
        return rows

    def _pooled(
        self, X: NDArray[Any], most: int, random_state: np.random.RandomState
    ) -> NDArray[Any]:
        """Exchange rows where several processes train together: all get the same ones.

        Each gives all it has or, should they be more than `most` together, its share by lot.
        """
        if parallel.n_processes() == 1:
            return X
        n_rows = parallel.gather(len(X))
        n_own = len(X) if sum(n_rows) <= most else most * len(X) // sum(n_rows)
        seeds = random_state.randint(np.iinfo(np.int32).max, size=len(n_rows))
        lot = np.random.RandomState(seeds[parallel.rank()]).permutation(len(X))
        return np.concatenate(parallel.gather(take(X, np.sort(lot[:n_own]))))

    def _init_callback_context(self, *args: Any, **kwargs: Any) -> CallbackContext:
        """Begin to report; of several processes that train together, only the first does."""
        callbacks = getattr(self, "_skl_callbacks", [])
        if parallel.rank() > 0:
            self.set_callbacks()
        with parallel.together():  # callbacks may refuse
            context = super()._init_callback_context(*args, **kwargs)
        self.set_callbacks(*callbacks)
        return context

    def _as_given(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Shape rows as `fit` was given them."""
        if self.image_shape_ is None or not self._given_as_images:
            return rows
        return rows.reshape(-1, *self.image_shape_)

    def _score_validated(self, X: NDArray[Any]) -> NDArray[np.float64]:
        batch_rows = min(_SCORING_BATCH_ROWS, max(1, _SCORING_BATCH_CELLS // X.shape[1]))
        batches = (as_known_dtype(block) for block in blocks(X, batch_rows))
        return np.concatenate([self._score_batch(batch) for batch in batches])

    def _set_threshold(self, X: NDArray[Any], out_of_fold: NDArray[np.float64]) -> None:
        """Set `offset_` from the training rows `X` and the scores of held-out ones."""
        if not np.isfinite(out_of_fold).all():
            raise TrainingDivergedError(
                "Scores of training rows are infinite or NaN, and so would be those of new ones. "
                "Lower max_steps, or check the classifier if it is your own."
            )
        self.calibration_scores_ = np.sort(out_of_fold)
        if self.contamination == "auto":
            self.offset_ = float(np.quantile(out_of_fold, AUTO_FALSE_ALARM_RATE))
        else:
            scores = np.concatenate(parallel.gather(self._score_validated(X)))
            self.offset_ = float(np.percentile(scores, 100 * self.contamination))

    @abstractmethod
    def _to_continue(self) -> Any:
        """Give the networks that `warm_start` continues; None if `fit` starts anew."""

    def _begin(self, X: NDArray[Any], context: CallbackContext) -> np.random.RandomState:
        """Tell callbacks that `fit` begins; returns where it draws from.

        A callback may put another random state in place of this one: that is how a checkpoint
        repeats what was drawn.
        """
        start = {
            "random_state": parallel.from_first(check_random_state(self.random_state)),
            "to_continue": self._to_continue(),
        }
        context.call_on_fit_task_begin(estimator=self, X=X, metadata=start)
        return start["random_state"]

    def _train(
        self,
        name: str,
        trainer: Trainer,
        max_steps: int,
        context: CallbackContext,
        *,
        remedy: str,
    ) -> History:
        """Run a trainer as a task of `fit` that callbacks see, and may stop, at each step.

        They are given the `Training` at the beginning, whose state they may load or keep.
        """
        training = Training(trainer, max_steps)
        stage = context.subcontext(task_name=name, max_subtasks=max_steps)
        stage.call_on_fit_task_begin(estimator=self, metadata={"training": training})
        is_watched = bool(getattr(self, "_skl_callbacks", []))

        def on_step(step: int, losses: Losses) -> bool:
            if not is_watched:
                return False
            task = stage.subcontext(task_name="step")
            task.call_on_fit_task_begin(estimator=self)
            return task.call_on_fit_task_end(
                estimator=self,
                metadata=lambda: {"step": step, **{k: float(v) for k, v in losses.items()}},
            )

        training.run(on_step, remedy=remedy)
        stage.call_on_fit_task_end(estimator=self)
        if training.retries and parallel.rank() == 0:
            steps = ", ".join(map(str, training.retries))
            warnings.warn(
                f"Training of the {name} diverged, went back to the last good state (after steps "
                f"{steps}), each time at half the learning rates, and then came to its end. Judge "
                f"the detector before you rely on it. {remedy}",
                ConvergenceWarning,
                stacklevel=7,  # where `fit` was called
            )
        if self.verbose and training.history and parallel.rank() == 0:
            final = ", ".join(f"{k} {values[-1]:.4g}" for k, values in training.history.items())
            logger.info("%s: %d steps, %s", name, training.step, final)
        return record(name, training)


def conformal_rank(n_scores: int, false_alarm_rate: float) -> int:
    """Tell which score, counted from the lowest, is split conformal's threshold.

    Parameters
    ----------
    n_scores : int
        Number of held-out normal rows.
    false_alarm_rate : float in (0, 1)
        Promised rate.

    Returns
    -------
    int
        From 1; 0 if there are too few scores for the promise.
    """
    # The epsilon mends products such as 0.07 * 100 = 7.000000000000001.
    return int(np.floor(false_alarm_rate * (n_scores + 1) + 1e-9))
