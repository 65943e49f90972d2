"""Callbacks for `fit`, in addition to those of `sklearn.callback`."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import time
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.callback import CallbackContext
from torch import Tensor

from sklearn_g2d._base import NetworkDetector
from sklearn_g2d._version import __version__
from sklearn_g2d.errors import CheckpointError
from sklearn_g2d.training import parallel
from sklearn_g2d.training.loop import Training
from sklearn_g2d.training.trainer import State
from sklearn_g2d.utils import files
from sklearn_g2d.utils.mapped import blocks

__all__ = ["Checkpoint"]

_IDENTITY, _STATE = "checkpoint.json", "state.pt"


class Checkpoint:
    """Let an interrupted `fit` continue from its last checkpoint when it is called again.

    Set it by ``detector.set_callbacks(Checkpoint("fit.checkpoint"))``. The result equals that of
    a fit without interruption, in every bit, on the same kind of machine with the same versions
    of libraries and number of threads. The steps before training (features, scaling) are computed
    again. The file is removed when `fit` ends.

    Parameters
    ----------
    path : str or path-like
        A file, for one fit at a time; or an existing folder, in which each fit has its own file,
        named after its data and parameters. A search or a Pipeline around the detector needs a
        folder.
    every : float, default=60.0
        Smallest number of seconds between two writes. The file holds the last state in which
        training had not diverged; training checks this every 50 steps.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d import G2DOutlierDetector
    >>> from sklearn_g2d.callbacks import Checkpoint
    >>> X = np.random.default_rng(0).normal(size=(200, 3))
    >>> detector = G2DOutlierDetector(random_state=0)
    >>> detector = detector.set_callbacks(Checkpoint("fit.checkpoint")).fit(X)
    """

    def __init__(self, path: str | os.PathLike[str], *, every: float = 60.0) -> None:
        if not every >= 0:
            raise ValueError(f"every must be a number of seconds of at least 0, got {every!r}.")
        self.path = path
        self.every = every
        # One callback serves several fits: clones share their callbacks, and threads may fit them
        # at the same time. The id of the estimator tells these fits apart.
        self._fits: dict[int, _Fit] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Running fits belong to this process: a copy for another one starts without them.
        return {**vars(self), "_fits": {}}

    def setup(self, estimator: Any, context: CallbackContext) -> None:
        """Raise an error if the estimator, or the path, does not work with checkpoints.

        Parameters
        ----------
        estimator : NetworkDetector
            The detector at the start of its `fit`.
        context : CallbackContext
            Context of `fit`.
        """
        if not isinstance(estimator, NetworkDetector):
            raise TypeError(
                "A Checkpoint saves the training of a G2DOutlierDetector or an AVIDDetector, "
                f"not of {type(estimator).__name__}: set it on the detector inside."
            )
        if parallel.n_processes() > 1:
            raise ValueError(
                "A Checkpoint saves the state of one process, but several processes train "
                "together here. Fit without it, or in one process."
            )
        if context.parent is not None and not os.path.isdir(self.path):
            raise ValueError(
                f"{os.fspath(self.path)!r} would be one file for all the fits of "
                f"{context.parent.estimator_name}. Pass Checkpoint an existing folder, in which "
                "each fit has its own file."
            )

    def on_fit_task_begin(
        self,
        estimator: Any,
        context: CallbackContext,
        *,
        X: NDArray[Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Find the checkpoint of a fit, or load the state of a stage of training.

        Parameters
        ----------
        estimator : NetworkDetector
            The detector that is being fitted.
        context : CallbackContext
            Context of `fit`, of a stage, or of a step.
        X : ndarray of shape (n_samples, n_features)
            The rows given to `fit`.
        metadata : dict
            The random state of `fit`, or the `Training` of a stage; None for a step.
        """
        if metadata is None:
            return
        if "training" in metadata:
            self._fits[id(estimator)].begin_stage(context.task_id, metadata["training"])
        elif X is not None:
            identity = _identity(estimator, X, metadata["to_continue"])
            path = Path(self.path)
            if path.is_dir():
                digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
                path /= f"{type(estimator).__name__}-{digest[:16]}.checkpoint"
            fit = _Fit(path, identity, metadata["random_state"].get_state(legacy=False))
            self._fits[id(estimator)] = fit
            if path.exists():
                fit.read()
                # With random_state=None the random state is NumPy's global one, which this package
                # must not change: use a new one for the rest of this fit.
                if estimator.random_state is None:
                    metadata["random_state"] = np.random.RandomState()
                metadata["random_state"].set_state(fit.random_state)

    def on_fit_task_end(self, estimator: Any, context: CallbackContext) -> None:
        """Write the checkpoint if the last one is old enough; remove it at the end of `fit`.

        Parameters
        ----------
        estimator : NetworkDetector
            The detector that is being fitted.
        context : CallbackContext
            Context of `fit`, of a stage, or of a step.
        """
        fit = self._fits[id(estimator)]
        if context.task_name == "step":
            fit.write_if_due(self.every)
        elif fit.training is not None:
            fit.end_stage()
        if context.task_name == "fit":
            fit.path.unlink(missing_ok=True)

    def teardown(self, estimator: Any, context: CallbackContext) -> None:
        """Forget the fit, and remove its checkpoint if training has diverged.

        Parameters
        ----------
        estimator : NetworkDetector
            The detector at the end of its `fit`, also after an error.
        context : CallbackContext
            Context of `fit`.
        """
        fit = self._fits.pop(id(estimator), None)
        # A fit that continues from this checkpoint would diverge again.
        if fit is not None and fit.training is not None and fit.training.diverged:
            fit.path.unlink(missing_ok=True)


class _Fit:
    """A running fit: its file, its identity, its random state and the states of its stages."""

    def __init__(self, path: Path, identity: dict[str, str], random_state: dict[str, Any]) -> None:
        self.path, self.identity, self.random_state = path, identity, random_state
        self.stages: list[State] = []
        self.training: Training | None = None
        self._stage = -1
        self._written_step = 0
        self._written_at = time.monotonic()
        self._stamp: tuple[int, ...] | None = None

    def begin_stage(self, number: int, training: Training) -> None:
        """Load the state of a stage if the file has one; write the file before the first stage."""
        self._stage, self.training = number, training
        if number == len(self.stages):
            self.stages.append(training.state_dict())
        else:
            # A file of unknown origin can cause an error of any type.
            try:
                training.load_state_dict(self.stages[number])
            except Exception as error:
                raise self._unusable(error) from error
        self._written_step = training.step
        # A fit without a seed can only be repeated from its random state at the start: save this
        # state before the first step, not only after `every` seconds.
        if self._stamp is None:
            self._write()

    def end_stage(self) -> None:
        """Keep the final state of a stage, so that later checkpoints include it."""
        assert self.training is not None
        self.stages[self._stage] = self.training.state_dict()
        self.training = None

    def write_if_due(self, every: float) -> None:
        """Write the file if the state is new and the last write is `every` seconds ago."""
        training = self.training
        assert training is not None
        if training.step == self._written_step or time.monotonic() - self._written_at < every:
            return
        self.stages[self._stage] = training.state_dict()
        self._write()
        self._written_step, self._written_at = training.step, time.monotonic()

    def read(self) -> None:
        """Read the file, and raise an error if it does not belong to this fit."""
        shown = repr(str(self.path))
        # Take the stamp before reading: if another fit replaces the file meanwhile, `_write` sees
        # a stamp that differs.
        stamp = self._stamp_of_file()
        try:
            archive = files.unpack(files.read(self.path))
            identity = json.loads(archive.read(_IDENTITY))
        except (BadZipFile, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{shown} is no checkpoint of sklearn_g2d, or it is damaged. {_ANEW}"
            ) from error
        here = self.identity
        names = [name for name in {**identity, **here} if identity.get(name) != here.get(name)]
        if names:
            # If a part itself differs, its parameters differ, too: naming the part is enough.
            differences = "; ".join(
                f"{name}: {identity.get(name, 'nothing')} there, {here.get(name, 'nothing')} now"
                for name in names
                if not any(name.startswith(f"{part}__") for part in names)
            )
            raise CheckpointError(
                f"{shown} is the checkpoint of another fit ({differences}). Call that fit again to "
                f"continue it. {_ANEW}"
            )
        try:
            stored = torch.load(io.BytesIO(archive.read(_STATE)), weights_only=True)
            state = _converted(stored, np.ndarray)
            self.random_state, self.stages = state["random_state"], state["stages"]
            np.random.RandomState().set_state(self.random_state)
            # NumPy's compiled code does not check this index, and would read outside its array.
            if not 0 <= self.random_state["state"]["pos"] <= 624:
                raise ValueError("a random state points outside of itself")
        except Exception as error:
            raise self._unusable(error) from error
        self._stamp = stamp

    def _write(self) -> None:
        stamp = self._stamp_of_file()
        if stamp is not None and stamp != self._stamp:
            raise CheckpointError(
                f"{str(self.path)!r} was written by another fit meanwhile. Give each fit its own "
                "path, or pass Checkpoint a folder."
            )
        stored = io.BytesIO()
        state = {"random_state": self.random_state, "stages": self.stages}
        torch.save(_converted(state, Tensor), stored)
        members = {_IDENTITY: json.dumps(self.identity).encode(), _STATE: stored.getvalue()}
        files.replace(self.path, files.pack(members))
        self._stamp = self._stamp_of_file()

    def _unusable(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"Training cannot go on from {str(self.path)!r} ({error}). {_ANEW}")

    def _stamp_of_file(self) -> tuple[int, ...] | None:
        """Return numbers that change when the file is replaced; None if there is no file."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


_ANEW = "To start a new fit, delete the file or pass another path."


def _identity(estimator: NetworkDetector, X: NDArray[Any], to_continue: Any) -> dict[str, str]:
    """Describe a fit by class, version, parameters and data, the same in every process."""
    data = hashlib.sha256()
    for block in blocks(X, 8192):
        data.update(np.ascontiguousarray(block).data)
    shape = " x ".join(map(str, estimator.image_shape_ or X.shape[1:]))
    kind = "images" if estimator.image_shape_ else "rows"
    parameters = estimator.get_params(deep=True)
    if to_continue is not None:
        parameters["networks to continue"] = to_continue
    # `verbose` is left out because it does not change the result: a user may want to continue the
    # fit with more messages.
    return {
        "class": type(estimator).__name__,
        "version of sklearn_g2d": __version__,
        "X": f"{len(X)} {kind} of {shape} {X.dtype}, sha256 {data.hexdigest()[:16]}",
    } | {
        name: _described(value)
        for name, value in parameters.items()
        if name.rpartition("__")[2] != "verbose"
    }


def _described(value: Any) -> str:
    """Return a text for a value: numbers and texts as such, names of functions, else a digest."""
    name = type(value).__name__
    # Parameters of a nested estimator have entries of their own. Describe its other attributes,
    # which it has if it is fitted.
    if isinstance(value, BaseEstimator):
        parameters = value.get_params(deep=False)
        value = {key: item for key, item in vars(value).items() if key not in parameters}
        if not value:
            return name
    with contextlib.suppress(TypeError, ValueError):
        json.dumps(value)
        return repr(value)
    if not hasattr(value, "__name__"):
        # The user's object may fail in any way when it is pickled.
        with contextlib.suppress(Exception):
            return f"{name} {joblib.hash(value)[:16]}"
    # Addresses in memory differ from process to process.
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _converted(state: Any, kind: type) -> Any:
    """Copy a state with tensors instead of arrays, or the reverse."""
    # Files hold tensors only, because `torch.load` with weights_only=True reads no NumPy arrays.
    if isinstance(state, dict):
        return {key: _converted(value, kind) for key, value in state.items()}
    if isinstance(state, list):
        return [_converted(value, kind) for value in state]
    if kind is np.ndarray:
        return state.numpy() if isinstance(state, Tensor) else state
    if isinstance(state, np.ndarray | Tensor):
        return torch.as_tensor(state).cpu()
    return state.item() if isinstance(state, np.generic) else state
