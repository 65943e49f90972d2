"""Fitted detectors as ONNX graphs, from the user's array to the scores.

A graph is traced from the methods that score. An object that can be exported computes in one method
`_compute`, which takes arrays or tensors and the constants that `_constants` returns.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from sklearn_g2d._version import __version__
from sklearn_g2d.errors import UnsupportedObjectError
from sklearn_g2d.utils.arrays import extrapolate
from sklearn_g2d.utils.files import replace
from sklearn_g2d.utils.graphs import onnx_model

__all__ = ["to_onnx"]

_DTYPES = "float64", "float32", "uint8"


def to_onnx(
    detector: BaseEstimator, path: str | os.PathLike[str], *, dtype: DTypeLike = "float64"
) -> None:
    """Write a fitted detector as an ONNX graph; see the detectors' method `to_onnx`.

    Parameters
    ----------
    detector : G2DOutlierDetector, AVIDDetector or PatchDetector
        A fitted detector.
    path : str or path-like
        The file. An existing file is replaced after the new one is complete on the disk.
    dtype : {"float64", "float32", "uint8"}, default="float64"
        Data type of the graph's input "X".

    Raises
    ------
    NotFittedError
        If the detector is not fitted.
    UnsupportedObjectError
        If a part of the detector is your own.
    ImportError
        If the packages of the extra "onnx" are missing.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_wine
    >>> from sklearn_g2d import G2DOutlierDetector
    >>> from sklearn_g2d.export import to_onnx
    >>> detector = G2DOutlierDetector(random_state=0).fit(load_wine().data)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "wine.onnx")
    ...     to_onnx(detector, path)
    ...     os.path.exists(path)
    True
    """
    check_is_fitted(detector)
    name = np.dtype(dtype).name
    if name not in _DTYPES:
        raise ValueError(f"dtype must be one of {_DTYPES}, got {dtype!r}.")
    if not hasattr(detector, "_export_module"):
        raise UnsupportedObjectError(f"A {type(detector).__name__} cannot be exported.")
    module = detector._export_module()
    if module.rounds:
        warnings.warn(
            "This detector scores in bfloat16, and the exported graph in float32: scores will "
            'differ by some hundredths. Fit with precision="float32" for equal scores.',
            UserWarning,
            stacklevel=4,
        )
    # The exporter traces the module on an example. Three rows, not one, because the exporter may
    # treat a size of 1 as a constant.
    example = detector._as_given(np.zeros((3, detector.n_features_in_), dtype=name))
    model = onnx_model(module, example, module.output_names)
    names = getattr(detector, "feature_names_in_", None)
    for key, value in (
        ("class", type(detector).__name__),
        ("sklearn_g2d", __version__),
        ("feature_names", json.dumps(None if names is None else names.tolist())),
    ):
        model.metadata_props.add(key=key, value=value)
    replace(path, model.SerializeToString())


# Modules


class Constants(nn.Module):
    """A module whose constants are tensors: the exporter would write Python's numbers as float32.

    Parameters
    ----------
    **values
        Attributes of the module. Arrays keep their dtype, and numbers become float64.
    """

    def __init__(self, **values: ArrayLike) -> None:
        super().__init__()
        for name, value in values.items():
            self.register_buffer(name, torch.tensor(np.asarray(value)))

    def __getattr__(self, name: str) -> Any:
        # Type checkers cannot tell a tensor from a module here: declare the result as Any.
        return super().__getattr__(name)


class Stage(Constants):
    """A module that computes a method of an object, such as `_compute`.

    Parameters
    ----------
    estimator : object
        A fitted object with the methods `_constants` and `_compute`.
    method : str, default="_compute"
        Name of the method; another method must take the same arguments.
    """

    def __init__(self, estimator: Any, method: str = "_compute") -> None:
        super().__init__(**estimator._constants())
        self.estimator, self.method = estimator, method
        # As an attribute of this module, the network's weights are among its parameters.
        self.network = getattr(estimator, "network_", None)
        self.rounds = getattr(estimator, "precision_", "float32") == "bfloat16"

    def forward(self, X: Tensor) -> Any:
        """Transform rows."""
        return getattr(self.estimator, self.method)(X, dict(self.named_buffers()))


def stages_of(transformer: Any) -> nn.Module:
    """Return the module of a fitted transformer.

    Parameters
    ----------
    transformer : transformer of `sklearn_g2d.features`, Pipeline of these, "passthrough" or None
        A fitted transformer.

    Returns
    -------
    nn.Module
        It maps rows to the result of `transform`.

    Raises
    ------
    UnsupportedObjectError
        If the transformer, or one in the pipeline, is the user's own.
    """
    if transformer is None or isinstance(transformer, str):
        return nn.Identity()
    if isinstance(transformer, Pipeline):
        return nn.Sequential(*(stages_of(step) for _, step in transformer.steps))
    if not hasattr(transformer, "_compute"):
        name = getattr(transformer, "__name__", type(transformer).__name__)
        raise UnsupportedObjectError(
            f"{name} is not a transformer of this package, so that it cannot be exported. Apply it "
            'before the detector yourself, fit the detector with features="passthrough", and '
            "export the two separately."
        )
    return Stage(transformer)


class ClassifierGraph(Constants):
    """The whole computation from rows or images to scores, which are a classifier's log-odds.

    Parameters
    ----------
    stages : sequence of nn.Module
        Modules that turn rows into the classifier's input, one after the other; see `stages_of`.
    network : nn.Module
        The module with all weights that `log_odds` uses.
    log_odds : callable
        A function of a float64 tensor (n, n_columns) that returns log-odds (n_members, n).
    offset : float
        The detector's threshold.
    farthest : ndarray of shape (n_values,), or None
        Argument of `sklearn_g2d.utils.arrays.extrapolate`. With None the scores are the log-odds.
    distance_weight : float
        Argument `weight` of the same function.

    Attributes
    ----------
    output_names : tuple of str
        Names of the graph's outputs, in order.
    rounds : bool
        Whether the detector computes in a lower precision than the graph.
    """

    output_names = "decision_function", "score_samples"

    def __init__(
        self,
        stages: Sequence[nn.Module],
        network: nn.Module,
        log_odds: Callable[[Tensor], Tensor],
        offset: float,
        farthest: NDArray[np.float64] | None = None,
        distance_weight: float = 0.0,
    ) -> None:
        range_: dict[str, ArrayLike] = (
            {} if farthest is None else {"farthest": farthest, "weight": distance_weight}
        )
        super().__init__(offset=offset, **range_)
        self.stages, self.network, self.log_odds = nn.Sequential(*stages), network, log_odds

    @property
    def rounds(self) -> bool:
        return any(getattr(stage, "rounds", False) for stage in self.stages.modules())

    def forward(self, X: Tensor) -> tuple[Tensor, ...]:
        """Map rows or images to `output_names`."""
        described, penalty = self.stages(X.flatten(1).double()), 0.0
        if hasattr(self, "farthest"):
            described, penalty = extrapolate(described, self.farthest, self.weight)
        scores = self.log_odds(described).mean(0) - penalty
        return scores - self.offset, scores


class Resampling(Constants):
    """A linear change of a map's size as two matrix products, one for each axis.

    The resizing operators of other runtimes do not give exactly the values of PyTorch's.

    Parameters
    ----------
    function : callable
        A linear function of arrays or tensors (n, height, width) that changes their size. A map
        that is constant along an axis must stay constant along it.
    size : tuple of int
        Height and width of the function's input.
    dtype : dtype, default=float32
        Data type of its input: with float32 `function` gets tensors, with float64 arrays.
    """

    def __init__(
        self, function: Callable[[Any], Any], size: tuple[int, int], dtype: Any = np.float32
    ) -> None:
        # A linear function is known from its results for the unit vectors of each axis.
        height, width = size
        rows: Any = np.repeat(np.eye(height, dtype=dtype)[:, :, None], width, axis=2)
        columns: Any = np.repeat(np.eye(width, dtype=dtype)[:, None], height, axis=1)
        if dtype == np.float32:
            rows, columns = torch.from_numpy(rows), torch.from_numpy(columns)
        of_rows, of_columns = np.asarray(function(rows)), np.asarray(function(columns))
        super().__init__(rows=of_rows[:, :, 0].T, columns=of_columns[:, 0])
        self.n_values = of_rows[0].size

    def forward(self, maps: Tensor) -> Tensor:
        """Resample the last two axes."""
        return self.rows @ maps @ self.columns
