"""Fitted detectors as ONNX graphs, from the user's array to the scores.

A graph is traced from the very methods that score: whatever is exported computes by one method
`_compute`, which takes arrays or tensors, from its `_constants`.
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
    """Write a fitted detector as an ONNX graph; see the detectors' method of this name.

    Parameters
    ----------
    detector : G2DOutlierDetector, AVIDDetector or PatchDetector
        Fitted.
    path : str or path-like
        Where to; an existing file is replaced, once all of the new one is on the disk.
    dtype : {"float64", "float32", "uint8"}, default="float64"
        Of the graph's input "X".

    Raises
    ------
    NotFittedError
        Before `fit`.
    UnsupportedObjectError
        If a part of the detector is your own.
    ImportError
        Without the packages of the extra "onnx".

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
            "This detector scores in bfloat16, the exported graph in float32: scores will differ "
            'by some hundredths. Fit with precision="float32" for equal ones.',
            UserWarning,
            stacklevel=4,
        )
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
    """A module with constant tensors, because the exporter writes Python's numbers in float32.

    Parameters
    ----------
    **values
        Attributes; arrays keep their dtype, numbers become float64.
    """

    def __init__(self, **values: ArrayLike) -> None:
        super().__init__()
        for name, value in values.items():
            self.register_buffer(name, torch.tensor(np.asarray(value)))

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)  # a tensor or a module, which type checkers cannot tell


class Stage(Constants):
    """What an object computes in a method such as `_compute`, as a module.

    Parameters
    ----------
    estimator : object
        Fitted, with the methods `_constants` and `_compute`.
    method : str, default="_compute"
        Another method of the same arguments.
    """

    def __init__(self, estimator: Any, method: str = "_compute") -> None:
        super().__init__(**estimator._constants())
        self.estimator, self.method = estimator, method
        self.network = getattr(estimator, "network_", None)  # whose weights are to be found
        self.rounds = getattr(estimator, "precision_", "float32") == "bfloat16"

    def forward(self, X: Tensor) -> Any:
        """Transform rows."""
        return getattr(self.estimator, self.method)(X, dict(self.named_buffers()))


def stages_of(transformer: Any) -> nn.Module:
    """Give the module of a fitted transformer.

    Parameters
    ----------
    transformer : transformer of `sklearn_g2d.features`, Pipeline of such, "passthrough" or None
        Fitted.

    Returns
    -------
    nn.Module
        Maps rows to what `transform` gives.

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
            'in front of the detector yourself, fit the detector with features="passthrough", and '
            "export the two apart."
        )
    return Stage(transformer)


class ClassifierGraph(Constants):
    """Everything between rows, or images, and scores that are a classifier's log-odds.

    Parameters
    ----------
    stages : sequence of nn.Module
        From rows to what the classifier sees, one after the other; see `stages_of`.
    network : nn.Module
        Everything with weights that `log_odds` calls.
    log_odds : callable
        Maps a float64 tensor (n, n_columns) to the log-odds (n_members, n).
    offset : float
        The detector's threshold.
    farthest : ndarray of shape (n_values,), or None
        Of `sklearn_g2d.utils.arrays.extrapolate`; None scores by `log_odds` alone.
    distance_weight : float
        The same.

    Attributes
    ----------
    output_names : tuple of str
        What the graph gives, in order.
    rounds : bool
        Whether the detector computes in a lower precision than the graph does.
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
    """A linear change of a map's size, along one axis after the other, as matrix products.

    Other runtimes do not resize exactly as PyTorch does.

    Parameters
    ----------
    function : callable
        Maps arrays or tensors (n, height, width) to such ones of another size; of an axis
        along which a map is constant, the result is constant.
    size : tuple of int
        Height and width of its input.
    dtype : dtype, default=float32
        Of its input; arrays are given to `function` in float64, tensors in float32.
    """

    def __init__(
        self, function: Callable[[Any], Any], size: tuple[int, int], dtype: Any = np.float32
    ) -> None:
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
