"""Callbacks for `fit`, beside those of `sklearn.callback`."""

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
    """Let a `fit` that was killed go on, when it is called again, from where it was.

    Set it by ``detector.set_callbacks(Checkpoint("fit.checkpoint"))``. The outcome equals that of
    a fit that was not interrupted, in every bit on the same kind of machine, with the same
    versions of libraries and number of threads. What precedes training (features, scaling) is
    computed anew. The file is removed when `fit` has come to its end.

    Parameters
    ----------
    path : str or path-like
        A file, for one fit at a time; or an existing folder, in which every fit has a file of its
        own, named by its data and parameters. A search or a pipeline around the detector asks
        for a folder.
    every : float, default=60.0
        Least seconds between two writings. What is written is the last state found good, which
        training looks for after every 50 steps.

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
        # By id of the estimator: clones share their callbacks, and may be fitted in threads.
        self._fits: dict[int, _Fit] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_fits": {}}

    def setup(self, estimator: Any, context: CallbackContext) -> None:
        """See that the estimator can go on from a checkpoint, and where its file would be.

        Parameters
        ----------
        estimator : NetworkDetector
            Whose `fit` begins.
        context : CallbackContext
            Of `fit`.
        """
        if not isinstance(estimator, NetworkDetector):
            raise TypeError(
                "A Checkpoint keeps the training of a G2DOutlierDetector or an AVIDDetector, "
                f"not of {type(estimator).__name__}: set it on the detector inside."
            )
        if parallel.n_processes() > 1:
            raise ValueError(
                "A Checkpoint keeps the state of one process, but several train together here. "
                "Fit without it, or in one process."
            )
        if context.parent is not None and not os.path.isdir(self.path):
            raise ValueError(
                f"{os.fspath(self.path)!r} would be one file for all the fits of "
                f"{context.parent.estimator_name}. Pass Checkpoint an existing folder, in which "
                "each has its own."
            )

    def on_fit_task_begin(
        self,
        estimator: Any,
        context: CallbackContext,
        *,
        X: NDArray[Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Find the checkpoint of a fit, and load what it holds of a stage of training.

        Parameters
        ----------
        estimator : NetworkDetector
            Being fitted.
        context : CallbackContext
            Of `fit`, of a stage, or of a step.
        X : ndarray of shape (n_samples, n_features)
            Of `fit`.
        metadata : dict
            Of `fit`, its random state; of a stage, its `Training`.
        """
        if metadata is None:  # of a step
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
                if estimator.random_state is None:  # which would be NumPy's own, not ours to set
                    metadata["random_state"] = np.random.RandomState()
                metadata["random_state"].set_state(fit.random_state)

    def on_fit_task_end(self, estimator: Any, context: CallbackContext) -> None:
        """Write the checkpoint if it is time; remove it at the end of `fit`.

        Parameters
        ----------
        estimator : NetworkDetector
            Being fitted.
        context : CallbackContext
            Of `fit`, of a stage, or of a step.
        """
        fit = self._fits[id(estimator)]
        if context.task_name == "step":
            fit.write_if_due(self.every)
        elif fit.training is not None:
            fit.end_stage()
        if context.task_name == "fit":
            fit.path.unlink(missing_ok=True)

    def teardown(self, estimator: Any, context: CallbackContext) -> None:
        """Forget the fit. A checkpoint of training that has diverged is of no use: it is removed.

        Parameters
        ----------
        estimator : NetworkDetector
            Whose `fit` has ended, well or not.
        context : CallbackContext
            Of `fit`.
        """
        fit = self._fits.pop(id(estimator), None)
        if fit is not None and fit.training is not None and fit.training.diverged:
            fit.path.unlink(missing_ok=True)


class _Fit:
    """A fit on its way: its file, what makes it this fit and no other, and where it drew from."""

    def __init__(self, path: Path, identity: dict[str, str], random_state: dict[str, Any]) -> None:
        self.path, self.identity, self.random_state = path, identity, random_state
        self.stages: list[State] = []
        self.training: Training | None = None
        self._stage = -1
        self._written_step = 0
        self._written_at = time.monotonic()
        self._stamp: tuple[int, ...] | None = None

    def begin_stage(self, number: int, training: Training) -> None:
        """Load what is known of a stage; make sure of the file before the first one."""
        self._stage, self.training = number, training
        if number == len(self.stages):
            self.stages.append(training.state_dict())
        else:
            try:
                training.load_state_dict(self.stages[number])
            except Exception as error:  # whatever an odd file can bring about
                raise self._unusable(error) from error
        self._written_step = training.step
        if self._stamp is None:
            self._write()  # what was drawn is needed from the start, if there is no seed

    def end_stage(self) -> None:
        """Keep the outcome of a stage."""
        assert self.training is not None
        self.stages[self._stage] = self.training.state_dict()
        self.training = None

    def write_if_due(self, every: float) -> None:
        """Write the file if there is something new, and the last time was long ago."""
        training = self.training
        assert training is not None
        if training.step == self._written_step or time.monotonic() - self._written_at < every:
            return
        self.stages[self._stage] = training.state_dict()
        self._write()
        self._written_step, self._written_at = training.step, time.monotonic()

    def read(self) -> None:
        """Read the file."""
        shown = repr(str(self.path))
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
            differences = "; ".join(
                f"{name}: {identity.get(name, 'nothing')} there, {here.get(name, 'nothing')} now"
                for name in names
                if not any(name.startswith(f"{part}__") for part in names)  # of another class
            )
            raise CheckpointError(
                f"{shown} is the checkpoint of another fit ({differences}). Call that one again to "
                f"go on with it. {_ANEW}"
            )
        try:
            stored = torch.load(io.BytesIO(archive.read(_STATE)), weights_only=True)
            state = _converted(stored, np.ndarray)
            self.random_state, self.stages = state["random_state"], state["stages"]
            np.random.RandomState().set_state(self.random_state)
            if not 0 <= self.random_state["state"]["pos"] <= 624:  # an index of compiled code
                raise ValueError("a random state points outside of itself")
        except Exception as error:  # whatever an odd file can bring about
            raise self._unusable(error) from error
        self._stamp = stamp

    def _write(self) -> None:
        stamp = self._stamp_of_file()
        if stamp is not None and stamp != self._stamp:
            raise CheckpointError(
                f"{str(self.path)!r} was written by another fit meanwhile. Give each fit a path of "
                "its own, or pass Checkpoint a folder."
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
        """Tell the file from another one of its name; None if there is none."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


_ANEW = "To begin anew, delete the file, or pass another path."


def _identity(estimator: NetworkDetector, X: NDArray[Any], to_continue: Any) -> dict[str, str]:
    """Describe a fit, alike in every process: class, version, parameters and data."""
    data = hashlib.sha256()
    for block in blocks(X, 8192):
        data.update(np.ascontiguousarray(block).data)
    shape = " x ".join(map(str, estimator.image_shape_ or X.shape[1:]))
    kind = "images" if estimator.image_shape_ else "rows"
    parameters = estimator.get_params(deep=True)
    if to_continue is not None:
        parameters["networks to continue"] = to_continue
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
    """Show numbers and text, and digests of all else but functions, which have only names."""
    name = type(value).__name__
    if isinstance(value, BaseEstimator):  # whose parameters are listed, too
        parameters = value.get_params(deep=False)
        value = {key: item for key, item in vars(value).items() if key not in parameters}
        if not value:
            return name
    with contextlib.suppress(TypeError, ValueError):
        json.dumps(value)
        return repr(value)
    if not hasattr(value, "__name__"):
        with contextlib.suppress(Exception):  # of pickle, or of the user's objects
            return f"{name} {joblib.hash(value)[:16]}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))  # without places in memory


def _converted(state: Any, kind: type) -> Any:
    """Copy a state with tensors in place of arrays, or the reverse."""
    if isinstance(state, dict):
        return {key: _converted(value, kind) for key, value in state.items()}
    if isinstance(state, list):
        return [_converted(value, kind) for value in state]
    if kind is np.ndarray:
        return state.numpy() if isinstance(state, Tensor) else state
    if isinstance(state, np.ndarray | Tensor):
        return torch.as_tensor(state).cpu()
    return state.item() if isinstance(state, np.generic) else state
