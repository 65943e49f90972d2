"""What detectors share: `fit` around a subclass's `_fit`, scores, thresholds, p-values, files."""

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
from sklearn_g2d.utils.warnings import warn_caller, warn_of_labels

logger = logging.getLogger("sklearn_g2d")

# Share of new normal rows that the threshold of contamination="auto" flags.
AUTO_FALSE_ALARM_RATE = 0.05

# What is scored at once: few enough rows, and cells of large images, for memory.
_SCORING_BATCH_ROWS = 8192
_SCORING_BATCH_CELLS = 2**24


class BaseDetector(ThresholdMixin, EstimatorOfParts, ABC):
    """Learns normal samples, then scores new ones, higher = more normal.

    A subclass sets `offset_` and `calibration_scores_` in `fit`; see `ThresholdMixin`.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "contamination": [StrOptions({"auto"}), Interval(Real, 0, 0.5, closed="right")],
        "random_state": ["random_state"],
    }

    contamination: Any

    @abstractmethod
    def _validate(self, X: Any, *, reset: bool) -> Any:
        """Check samples; `reset` says that they are those of `fit`."""

    @abstractmethod
    def _score_validated(self, X: Any) -> NDArray[np.float64]:
        """Score checked samples, higher = more normal."""

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
            float64, in the detector's own units.

        Raises
        ------
        ValueError
            If `X` holds what is not a finite number, or its columns are not those of `fit`.
        TypeError
            If `X` is something else than rows or images.
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
        """Name the part whose output the scores are."""
        return type(self).__name__

    def calibrate(
        self,
        X_normal: ArrayLike,
        false_alarm_rate: float = 0.01,
        *,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Move the threshold so that new normal rows are flagged at a promised rate.

        Split conformal prediction: for rows exchangeable with `X_normal`, `predict` gives -1 with
        a probability of at most `false_alarm_rate`, whatever the detector learned. It is what a
        `ConformalDetector` of a frozen detector does.

        Parameters
        ----------
        X_normal : array-like, as for `score_samples`
            At least ``1 / false_alarm_rate - 1`` normal rows that were **not** in the training
            data; fewer cannot promise the rate and raise a ValueError.
        false_alarm_rate : float in (0, 1), default=0.01
            Fraction of normal rows that may be flagged.
        groups : array-like of shape (n_samples,), default=None
            Which rows belong together, such as photographs of one part. The promise is then for
            rows of new groups, and needs as many groups.

        Returns
        -------
        self
            With new `offset_`, `calibration_scores_` and `calibration_weights_`.
        """
        self._calibrate(self.score_samples(X_normal), false_alarm_rate, groups)
        return self

    def _set_offset(self, scores: NDArray[np.float64], groups: ArrayLike | None = None) -> None:
        """Set the threshold as `contamination` says, by scores of normal samples of `fit`."""
        if self.contamination == "auto":
            self._calibrate(scores, AUTO_FALSE_ALARM_RATE, groups, too_few="warn")
        else:
            self._keep_scores(scores, groups)
            self.offset_ = float(np.percentile(scores, 100 * self.contamination))

    def to(self, device: str) -> Self:
        """Choose where networks compute from now on.

        These are AVID's networks of images, convolutional classifiers, and pretrained features,
        also those of a detector's parts. Small perceptrons and the search for neighbours stay on
        the CPU, in float64. Nothing is moved before it is needed: networks lie in the memory of the
        CPU between two calls. Scores in float32 agree on all devices within 1e-4 of their spread.

        Parameters
        ----------
        device : str
            "cpu", "cuda", "cuda:1", "mps", or "auto", CUDA if it is there.

        Returns
        -------
        self
            With another `device_`.

        Raises
        ------
        ValueError
            If PyTorch does not know the device, or cannot reach it.
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
            Where to; usually it ends in ".skops". A former file is replaced, or stays whole if an
            error is raised. Callbacks are not saved.
        """
        persistence.save(self, path)

    @classmethod
    def load(cls, path: File, *, trusted: Iterable[str | type] = ()) -> Self:
        """Read a detector that `save` has written; see `sklearn_g2d.persistence.load`.

        Parameters
        ----------
        path : str, path-like or binary file object
            Nothing in it is executed, whoever wrote it, unless you trust it.
        trusted : iterable of str, type or function, default=()
            Your own classes and functions in the file, and compiled ones.

        Returns
        -------
        detector
            Fitted; its scores equal those of the saved one.

        Raises
        ------
        ModelFileError
            If the file holds another class; also what `sklearn_g2d.persistence.load` raises.
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
        for name in ("offset_", "calibration_scores_"):
            if not np.isfinite(state.get(name, 0.0)).all():
                raise ValueError(f"{name} is infinite or NaN")
        super().__setstate__(state)

    @shielded()
    def to_onnx(self, path: str | os.PathLike[str], *, dtype: DTypeLike = "float64") -> None:
        """Write the fitted detector as an ONNX graph, which runs without PyTorch.

        The graph takes one array "X", shaped as `fit` was given it. It gives "decision_function"
        and "score_samples", both float64 of shape (n_samples,) and **higher = more normal**; of an
        `AVIDDetector` or a `PatchDetector`, also its "anomaly_map". They equal this detector's up
        to rounding, but for one that scores in bfloat16, which is warned of. Nothing is checked:
        NaN gives NaN.

        Parameters
        ----------
        path : str or path-like
            Where to; an existing file is replaced, once all of the new one is on the disk.
        dtype : {"float64", "float32", "uint8"}, default="float64"
            Of "X".

        Raises
        ------
        UnsupportedObjectError
            If the detector's features, its classifier or its estimator are your own.
        ImportError
            Without the packages of the extra "onnx".
        """
        export.to_onnx(self, path, dtype=dtype)


class NetworkDetector(CallbackSupportMixin, BaseDetector):
    """Detector of rows or images whose parts train networks, under callbacks."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseDetector._parameter_constraints,
        "image_shape": ["array-like", None],
        "device": [str],
        "precision": [StrOptions(set(PRECISIONS))],
        "warm_start": ["boolean"],
        "verbose": ["verbose"],
    }

    # Trainings in one `fit`, of which callbacks are told.
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
        """Put clones of the parts, or their defaults, into attributes that end with "_"."""

    @abstractmethod
    def _fit(self, X: NDArray[Any], session: Session) -> None:
        """Learn from checked rows."""

    @abstractmethod
    def _score_batch(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Score checked rows, few enough for memory."""

    @property
    @abstractmethod
    def _is_convolutional(self) -> bool:
        """Whether networks are large enough for more than one thread."""

    @property
    def _prefers_bfloat16(self) -> bool:
        """Whether networks gain by bfloat16 on a processor that has it."""
        return self._is_convolutional

    @unchanged_on_failure
    @shielded()
    @with_callbacks
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Learn what normal rows, or images, look like.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Normal rows or images, at least two, also as a frame of pandas, polars, pyarrow or dask;
            without NaN, infinity or text.
        y : ignored
            Labels are not used. Two kinds of them are warned of, as the rows of outliers should be
            dropped.

        Returns
        -------
        self

        Raises
        ------
        TrainingDivergedError
            If training diverges, and three retries at lower learning rates do, too; a
            ConvergenceWarning says that a retry did not. Whatever is raised, also by an interrupt,
            the estimator keeps the state that it had before.
        """
        self._validate_params()
        choose_own_gpu(self.device)
        if self.verbose and parallel.rank() == 0:
            make_visible()
        context = self._init_callback_context(max_subtasks=self._n_stages)
        rows = self._validate_training(X)
        warn_of_labels(y)
        earlier = self._to_continue()
        random_state = parallel.from_first(check_random_state(self.random_state))
        start = {"random_state": random_state, "to_continue": earlier}
        context.call_on_fit_task_begin(estimator=self, X=rows, metadata=start)
        random_state = start["random_state"]  # of a checkpoint, which repeats what was drawn
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
        threads = nullcontext() if self._is_convolutional else single_thread()
        with threads, arithmetic_of(runtime.device):
            self._fit(rows, session)
        context.call_on_fit_task_end(estimator=self, X=rows)
        return self

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True  # what scikit-learn calls a stack of images
        return tags

    def _validate(self, X: ArrayLike, *, reset: bool) -> NDArray[Any]:
        """Check rows or images; returns rows, which are views of images."""
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
        """Give all processes that train together the same rows: all, or about `most` by lot."""
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

    @property
    def training_scores_(self) -> NDArray[np.float64]:
        """Give the scores of the training rows in their order; the class says by which networks.

        Returns
        -------
        ndarray of shape (n_samples,)
            **Higher = more normal**.
        """
        check_is_fitted(self)
        if self._training_scores is None:
            raise AttributeError(
                "training_scores_ is not kept of these training rows, because to score them takes "
                "longer than to fit. Call score_samples, or set contamination to a number."
            )
        return self._training_scores

    def _set_threshold(
        self,
        X: Any,
        out_of_fold: NDArray[np.float64],
        positions: NDArray[np.intp] | None = None,
    ) -> None:
        """Set `offset_` from the training rows `X` and the scores of held-out ones.

        `positions` says which rows of `X` these are; None stands for any.
        """
        if not np.isfinite(out_of_fold).all():
            raise TrainingDivergedError(
                "Scores of training rows are infinite or NaN, and so would be those of new ones. "
                "Lower max_steps, or check the classifier if it is your own."
            )
        self._training_scores = None
        if self.contamination == "auto":
            self._calibrate(out_of_fold, AUTO_FALSE_ALARM_RATE, too_few="warn")
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
        """Shape rows as `fit` was given them."""
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
        """Give the networks that `warm_start` continues; None if `fit` starts anew."""

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

        Callbacks are given the `Training` at the beginning, whose state they may load or keep.
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
                reconstruction_attributes=current,
            )

        training.run(on_step, remedy=remedy)
        stage.call_on_fit_task_end(estimator=self)
        if training.retries and parallel.rank() == 0:
            steps = ", ".join(map(str, training.retries))
            warn_caller(
                f"Training of the {name} diverged, went back to the last good state (after steps "
                f"{steps}), each time at half the learning rates, and then came to its end. Judge "
                f"the detector before you rely on it. {remedy}",
                ConvergenceWarning,
            )
        if self.verbose and training.history and parallel.rank() == 0:
            final = ", ".join(f"{k} {values[-1]:.4g}" for k, values in training.history.items())
            logger.info("%s: %d steps, %s", name, training.step, final)
        return record(name, training)


def _on_devices(part: Any) -> Iterator[Any]:
    """Give a fitted part, and what it is made of, as far as it says on which device it computes."""
    if isinstance(part, dict | list | tuple):
        inner = list(part.values() if isinstance(part, dict) else part)
    elif isinstance(part, BaseEstimator | Stored):
        if hasattr(part, "device_"):
            yield part
        # A detector's parameters are the user's, and are not in use: it has fitted clones.
        given = part.get_params(deep=False) if isinstance(part, BaseDetector) else {}
        inner = [value for name, value in vars(part).items() if name not in given]
    else:
        return
    for value in inner:
        yield from _on_devices(value)


def make_visible() -> None:
    """Let the logger write to stderr if nobody has set up logging."""
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)
