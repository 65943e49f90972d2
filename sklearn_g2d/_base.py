"""Base classes of detectors: `fit` around a subclass's `_fit`, scores, thresholds and files."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.callback import CallbackContext, CallbackSupportMixin, with_callbacks
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d import export, persistence
from sklearn_g2d.calibration import ThresholdMixin
from sklearn_g2d.errors import ModelFileError, TrainingDivergedError
from sklearn_g2d.training import parallel
from sklearn_g2d.training.history import History, record
from sklearn_g2d.training.loop import Training
from sklearn_g2d.training.runtime import (
    PRECISIONS,
    Runtime,
    arithmetic_of,
    choose_own_gpu,
    resolve_device,
    single_thread,
)
from sklearn_g2d.training.session import Session
from sklearn_g2d.training.trainer import Losses, Trainer
from sklearn_g2d.utils.files import File
from sklearn_g2d.utils.images import ImageShape, as_rows
from sklearn_g2d.utils.inputs import plain, validate
from sklearn_g2d.utils.mapped import NUMBERS, as_known_dtype, blocks, take
from sklearn_g2d.utils.parts import EstimatorOfParts
from sklearn_g2d.utils.state import Stored, unchanged_on_failure
from sklearn_g2d.utils.surroundings import shielded
from sklearn_g2d.utils.warnings import check_unused_y, warn_caller

logger = logging.getLogger("sklearn_g2d")

# Fraction of new normal rows that the threshold of contamination="auto" flags.
AUTO_FALSE_ALARM_RATE = 0.05

# Largest numbers of rows, and of cells of large images, that are scored at once, to save memory.
_SCORING_BATCH_ROWS = 8192
_SCORING_BATCH_CELLS = 2**24


class BaseDetector(ThresholdMixin, EstimatorOfParts, ABC):
    """Base class of all detectors of this package; scores are higher for more normal samples.

    A subclass sets `offset_` and `calibration_scores_` in `fit`; see `ThresholdMixin`.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "contamination": [StrOptions({"auto"}), Interval(Real, 0, 0.5, closed="right")],
        "random_state": ["random_state"],
    }

    contamination: Any

    @abstractmethod
    def _validate(self, X: Any, *, reset: bool) -> Any:
        """Check samples, and return them; `reset` is True for those of `fit`."""

    @abstractmethod
    def _score_validated(self, X: Any) -> NDArray[np.float64]:
        """Score checked samples; higher = more normal."""

    @shielded()
    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Score rows; **higher = more normal**.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Also a frame of pandas, polars, pyarrow or dask. A memory map is read in blocks.

        Returns
        -------
        ndarray of shape (n_samples,)
            Scores in float64, in units of the detector.

        Raises
        ------
        ValueError
            If `X` holds NaN or infinity, or if its columns differ from those of `fit`.
        TypeError
            If `X` is neither rows nor images.
        """
        check_is_fitted(self)
        scores = self._score_validated(self._validate(X, reset=False))
        if not np.isfinite(scores).all():
            raise ValueError(
                f"{np.sum(~np.isfinite(scores))} of {len(scores)} scores are NaN or infinite. They "
                f"come from {self._source_of_scores()}: check what it returns, and fit again."
            )
        return scores

    def _source_of_scores(self) -> str:
        """Return the name of the part that computes the scores, for error messages."""
        return type(self).__name__

    def calibrate(
        self,
        X_normal: ArrayLike,
        false_alarm_rate: float = 0.01,
        *,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Set the threshold so that new normal rows have a guaranteed rate of false alarms.

        This is split conformal prediction. For rows that are exchangeable with `X_normal`,
        `predict` gives -1 with a probability of at most `false_alarm_rate`, whatever the detector
        has learned. A `ConformalDetector` around a frozen detector does the same.

        Parameters
        ----------
        X_normal : array-like, as for `score_samples`
            At least ``1 / false_alarm_rate - 1`` normal rows that were **not** in the training
            data. Fewer rows cannot guarantee the rate, and raise a ValueError.
        false_alarm_rate : float in (0, 1), default=0.01
            Fraction of new normal rows that may be flagged.
        groups : array-like of shape (n_samples,), default=None
            Names of groups of rows that belong together, such as photographs of one part. The rate
            then holds for rows of new groups, and so many groups are needed instead of rows.

        Returns
        -------
        self
            It has a new `offset_`, `calibration_scores_` and `calibration_weights_`.
        """
        self._calibrate(self.score_samples(X_normal), false_alarm_rate, groups)
        return self

    def _set_offset(self, scores: NDArray[np.float64], groups: ArrayLike | None = None) -> None:
        """Set the threshold by `contamination`, from scores of normal samples of `fit`."""
        if self.contamination == "auto":
            self._calibrate(scores, AUTO_FALSE_ALARM_RATE, groups, too_few="warn")
        else:
            self._keep_scores(scores, groups)
            self.offset_ = float(np.percentile(scores, 100 * self.contamination))

    def to(self, device: str) -> Self:
        """Choose the device for scoring.

        It is used by AVID's networks of images, convolutional classifiers and pretrained features,
        also inside of a detector's parts. Small perceptrons and the search for neighbours stay on
        the CPU, in float64. Between two calls all networks are in the memory of the CPU, and each
        call copies them to the device. Scores in float32 agree on all devices within 1e-4 of their
        spread.

        Parameters
        ----------
        device : str
            "cpu", "cuda", "cuda:1", "mps", or "auto", which means CUDA if there is a GPU.

        Returns
        -------
        self
            It has a new `device_`.

        Raises
        ------
        ValueError
            If PyTorch does not know the device, or cannot use it.
        """
        check_is_fitted(self)
        name = str(resolve_device(device))
        for part in _on_devices(self):
            part.device_ = name
        return self

    def save(self, path: File) -> None:
        """Write the fitted detector to a file; see `sklearn_g2d.persistence.save`.

        Parameters
        ----------
        path : str, path-like or binary file object
            Destination; its name usually ends in ".skops". An existing file is replaced, or stays
            unchanged if an error is raised. Callbacks are not saved.
        """
        persistence.save(self, path)

    @classmethod
    def load(cls, path: File, *, trusted: Iterable[str | type] = ()) -> Self:
        """Read a detector that `save` has written; see `sklearn_g2d.persistence.load`.

        Parameters
        ----------
        path : str, path-like or binary file object
            The file. Code in it is not executed, unless you trust it.
        trusted : iterable of str, type or function, default=()
            Your own classes and functions that the file may use, and compiled ones.

        Returns
        -------
        detector
            A fitted detector with the same scores as the saved one.

        Raises
        ------
        ModelFileError
            If the file holds another class, and for the reasons that
            `sklearn_g2d.persistence.load` lists.
        """
        detector = persistence.load(path, trusted=trusted)
        if not isinstance(detector, cls):
            name = type(detector).__name__
            raise ModelFileError(
                f"{str(path)!r} holds a fitted {name}, not a {cls.__name__}. Call "
                "sklearn_g2d.persistence.load, which loads any class."
            )
        return detector

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A damaged file must not give a detector that labels all rows the same without an error.
        for name in ("offset_", "calibration_scores_"):
            if not np.isfinite(state.get(name, 0.0)).all():
                raise ValueError(f"{name} is infinite or NaN")
        super().__setstate__(state)

    @shielded()
    def to_onnx(self, path: str | os.PathLike[str], *, dtype: DTypeLike = "float64") -> None:
        """Write the fitted detector as an ONNX graph, which runs without PyTorch.

        The graph takes one array "X" of the same shape as in `fit`. It returns "decision_function"
        and "score_samples", both float64 of shape (n_samples,) and **higher = more normal**. The
        graph of an `AVIDDetector` or a `PatchDetector` also returns "anomaly_map". The results
        equal those of this detector up to rounding. If the detector scores in bfloat16, they
        differ more, and a warning says so. The graph does not check "X": NaN gives NaN.

        Parameters
        ----------
        path : str or path-like
            Destination. An existing file is replaced when the new one is complete on the disk.
        dtype : {"float64", "float32", "uint8"}, default="float64"
            Type of "X".

        Raises
        ------
        UnsupportedObjectError
            If features, classifier or estimator of the detector are your own.
        ImportError
            If the packages of the extra "onnx" are not installed.
        """
        export.to_onnx(self, path, dtype=dtype)


class NetworkDetector(CallbackSupportMixin, BaseDetector):
    """Base class of detectors with networks, which callbacks can follow during training."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseDetector._parameter_constraints,
        "image_shape": ["array-like", None],
        "device": [str],
        "precision": [StrOptions(set(PRECISIONS))],
        "warm_start": ["boolean"],
        "verbose": ["verbose"],
    }

    # Number of trainings in one `fit`, which callbacks need in advance.
    _n_stages: ClassVar[int]

    image_shape: Any
    device: str
    precision: Any
    warm_start: bool
    verbose: int
    random_state: Any
    device_: str
    image_shape_: ImageShape | None
    _training_scores: NDArray[np.float64] | None

    @abstractmethod
    def _build_parts(self, random_state: np.random.RandomState) -> None:
        """Set clones of the parts, or the default parts, as attributes that end with "_"."""

    @abstractmethod
    def _fit(self, X: NDArray[Any], session: Session) -> None:
        """Fit the parts on checked rows."""

    @abstractmethod
    def _score_batch(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Score a batch of checked rows that is small enough for memory."""

    @property
    @abstractmethod
    def _is_convolutional(self) -> bool:
        """Whether the networks are convolutional, and gain from more than one thread."""

    @property
    def _prefers_bfloat16(self) -> bool:
        """Whether the networks are faster in bfloat16 on a processor that multiplies in it."""
        return self._is_convolutional

    @unchanged_on_failure
    @shielded()
    @with_callbacks
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Learn from normal rows or images.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            At least two normal rows or images, also as a frame of pandas, polars, pyarrow or dask.
            NaN, infinity and text raise ValueError.
        y : ignored
            Labels are not used. If there are two different ones, a warning says so, because rows of
            outliers should be removed before.

        Returns
        -------
        self

        Raises
        ------
        TrainingDivergedError
            If training diverges, and three retries with lower learning rates diverge, too. If a
            retry succeeds, there is a ConvergenceWarning. After any error, or an interrupt, the
            estimator has the same state as before.
        """
        self._validate_params()
        # Do this first, because messages between processes may go through the chosen GPU.
        choose_own_gpu(self.device)
        if self.verbose and parallel.rank() == 0:
            make_visible()
        context = self._init_callback_context(max_subtasks=self._n_stages)
        rows = self._validate_training(X)
        check_unused_y(y, X)
        earlier = self._to_continue()
        random_state = parallel.from_first(check_random_state(self.random_state))
        start = {"random_state": random_state, "to_continue": earlier}
        context.call_on_fit_task_begin(estimator=self, X=rows, metadata=start)
        random_state = start["random_state"]  # a callback may restore a checkpoint's
        seed = int(random_state.randint(np.iinfo(np.int32).max))
        self._build_parts(random_state)
        runtime = Runtime.create(
            self.device,
            self.precision,
            seed,
            prefer_bfloat16=self._prefers_bfloat16,
            is_convolutional=self._is_convolutional,
        )
        self.device_ = str(runtime.device)
        session = Session(runtime, random_state, partial(self._train, context=context), earlier)
        # On one thread small networks are faster, and their scores are always the same.
        threads = nullcontext() if self._is_convolutional else single_thread()
        with threads, arithmetic_of(runtime.device):
            self._fit(rows, session)
        context.call_on_fit_task_end(estimator=self, X=rows)
        return self

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True  # scikit-learn's tag for stacks of images
        return tags

    def _validate(self, X: ArrayLike, *, reset: bool) -> NDArray[Any]:
        """Check rows or images, and return rows, which are views of images."""
        known = self.image_shape if reset else self.image_shape_
        X = plain(X)
        rows, image_shape = as_rows(X, known, name=type(self).__name__, fitted=not reset)
        given_as_images = rows is not X
        rows = validate(
            self,
            rows,
            reset=reset,
            dtype=NUMBERS,
            ensure_min_samples=2 if reset else 1,
            of_images=image_shape is not None,
        )
        if reset:
            self.image_shape_ = image_shape
            self._given_as_images = given_as_images
        return rows

    def _validate_training(self, X: ArrayLike) -> NDArray[Any]:
        """Check the data of `fit`, in all processes if several train together."""
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
        """Return the same rows in all processes: all of them, or about `most` at random."""
        if parallel.n_processes() == 1:
            return X
        n_rows = parallel.gather(len(X))
        n_own = len(X) if sum(n_rows) <= most else most * len(X) // sum(n_rows)
        # All processes draw the same seeds, and each uses another one of them.
        seeds = random_state.randint(np.iinfo(np.int32).max, size=len(n_rows))
        order = np.random.RandomState(seeds[parallel.rank()]).permutation(len(X))
        return np.concatenate(parallel.gather(take(X, np.sort(order[:n_own]))))

    def _init_callback_context(self, *args: Any, **kwargs: Any) -> CallbackContext:
        """Start callbacks; if several processes train together, only in the first one."""
        callbacks = getattr(self, "_skl_callbacks", [])
        if parallel.rank() > 0:
            self.set_callbacks()
        with parallel.together():  # because callbacks may raise an error
            context = super()._init_callback_context(*args, **kwargs)
        self.set_callbacks(*callbacks)
        return context

    @property
    def training_scores_(self) -> NDArray[np.float64]:
        """Return the scores of the training rows in their order.

        Returns
        -------
        ndarray of shape (n_samples,)
            Scores, **higher = more normal**. The class documents which networks compute them.
        """
        check_is_fitted(self)
        if self._training_scores is None:
            raise AttributeError(
                "training_scores_ does not exist for these training rows, because scoring them "
                "takes longer than fit. Call score_samples, or set contamination to a number."
            )
        return self._training_scores

    def _set_threshold(
        self,
        X: Any,
        out_of_fold: NDArray[np.float64],
        positions: NDArray[np.intp] | None = None,
    ) -> None:
        """Set `offset_` from the training rows `X` and the scores of held-out ones.

        `positions` are the positions of the held-out rows in `X`; None if they are unknown.
        """
        if not np.isfinite(out_of_fold).all():
            raise TrainingDivergedError(
                "Scores of training rows are infinite or NaN, so that new rows cannot be judged. "
                "Lower max_steps, or check the classifier if it is your own."
            )
        self._training_scores = None
        if self.contamination == "auto":
            self._calibrate(out_of_fold, AUTO_FALSE_ALARM_RATE, too_few="warn")
            # Held-out scores of all rows exist only if no rows were drawn from a larger table.
            if positions is not None and len(positions) == len(X):
                self._training_scores = np.empty(len(X))
        else:
            self._keep_scores(out_of_fold)
            self._training_scores = scores = self._score_validated(X)
            scores = np.concatenate(parallel.gather(scores))
            self.offset_ = float(np.percentile(scores, 100 * self.contamination))
        if positions is not None and self._training_scores is not None:
            self._training_scores[positions] = out_of_fold

    def _as_given(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return rows in the shape of the data in `fit`."""
        if self.image_shape_ is None or not self._given_as_images:
            return rows
        return rows.reshape(-1, *self.image_shape_)

    def _score_validated(self, X: NDArray[Any]) -> NDArray[np.float64]:
        return self._by_batch(self._score_batch, X)

    def _by_batch(
        self, compute: Callable[[NDArray[Any]], NDArray[np.float64]], X: NDArray[Any]
    ) -> NDArray[np.float64]:
        batch_rows = min(_SCORING_BATCH_ROWS, max(1, _SCORING_BATCH_CELLS // X.shape[1]))
        batches = (as_known_dtype(block) for block in blocks(X, batch_rows))
        return np.concatenate([compute(batch) for batch in batches])

    @abstractmethod
    def _to_continue(self) -> Any:
        """Return the part or model that `warm_start` continues; None if `fit` builds a new one."""

    def _train(
        self,
        name: str,
        trainer: Trainer,
        max_steps: int,
        *,
        context: CallbackContext,
        remedy: str,
        current: Callable[[], dict[str, Any]] | None = None,
    ) -> History:
        """Run a trainer as a stage of `fit`; see `Session`.

        At its beginning callbacks get the `Training`, so that they can load or keep its state.
        """
        training = Training(trainer, max_steps)
        stage = context.subcontext(task_name=name, max_subtasks=max_steps)
        stage.call_on_fit_task_begin(estimator=self, metadata={"training": training})
        is_watched = bool(getattr(self, "_skl_callbacks", []))

        def on_step(step: int, losses: Losses) -> bool:
            # Tasks for callbacks take time, which matters in the short steps of small networks.
            if not is_watched:
                return False
            task = stage.subcontext(task_name="step")
            task.call_on_fit_task_begin(estimator=self)
            return task.call_on_fit_task_end(
                estimator=self,
                metadata=lambda: {"step": step, **{k: float(v) for k, v in losses.items()}},
                reconstruction_attributes=current,
            )

        training.run(on_step, remedy=remedy)
        stage.call_on_fit_task_end(estimator=self)
        if training.retries and parallel.rank() == 0:
            steps = ", ".join(map(str, training.retries))
            warn_caller(
                f"Training of the {name} diverged. It went back to the last good state (after "
                f"steps {steps}), each time with half the learning rates, and then succeeded. "
                f"Evaluate the detector before you rely on it. {remedy}",
                ConvergenceWarning,
            )
        if self.verbose and training.history and parallel.rank() == 0:
            final = ", ".join(f"{k} {values[-1]:.4g}" for k, values in training.history.items())
            logger.info("%s: %d steps, %s", name, training.step, final)
        return record(name, training)


def _on_devices(part: Any) -> Iterator[Any]:
    """Yield a fitted part, and the parts inside of it, if they have an attribute `device_`."""
    if isinstance(part, dict | list | tuple):
        inner = list(part.values() if isinstance(part, dict) else part)
    elif isinstance(part, BaseEstimator | Stored):
        if hasattr(part, "device_"):
            yield part
        # Skip a detector's parameters: they belong to the user, and the detector uses clones.
        given = part.get_params(deep=False) if isinstance(part, BaseDetector) else {}
        inner = [value for name, value in vars(part).items() if name not in given]
    else:
        return
    for value in inner:
        yield from _on_devices(value)


def make_visible() -> None:
    """Let the logger write to stderr if the user has not set up logging."""
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)
