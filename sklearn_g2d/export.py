"""Fitted detectors as ONNX graphs, from the user's array to the scores."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d._base import BaseDetector
from sklearn_g2d._graphs import graph_of
from sklearn_g2d._version import __version__
from sklearn_g2d.utils.files import replace

__all__ = ["to_onnx"]

_DTYPES = "float64", "float32", "uint8"


def to_onnx(
    detector: BaseDetector, path: str | os.PathLike[str], *, dtype: DTypeLike = "float64"
) -> None:
    """Write a fitted detector as an ONNX graph; see the detectors' method of this name.

    Parameters
    ----------
    detector : G2DOutlierDetector or AVIDDetector
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
        If the detector's features or its classifier are your own.
    ImportError
        Without the packages of the extra "onnx".

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_wine
    >>> from sklearn_g2d import G2DOutlierDetector
    >>> from sklearn_g2d.export import to_onnx
    >>> detector = G2DOutlierDetector(max_steps=0, n_estimators=1, random_state=0)
    >>> detector = detector.fit(load_wine().data)
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
    graph = graph_of(detector)
    try:
        import onnx
        from onnxscript import opset18
        from onnxscript.optimizer import fold_constants, remove_unused_nodes
    except ImportError as error:
        raise ImportError(
            "to_onnx takes onnx and onnxscript: pip install 'sklearn_g2d[onnx]'."
        ) from error
    if graph.rounds:
        warnings.warn(
            "This detector scores in bfloat16, the exported graph in float32: scores will differ "
            'by some hundredths. Fit with precision="float32" for equal ones.',
            UserWarning,
            stacklevel=3,
        )

    def leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
        # ONNX's own is not there for float64 everywhere.
        value = onnx.helper.make_tensor("slope", onnx.TensorProto.DOUBLE, [], [negative_slope])
        slope: Any = opset18.Constant(value=value)
        return opset18.Max(x, opset18.Mul(x, opset18.CastLike(slope, x)))

    example = detector._as_given(np.zeros((3, detector.n_features_in_), dtype=name))
    with _quiet():
        program: Any = torch.onnx.export(
            graph,
            (torch.from_numpy(example),),
            dynamo=True,
            input_names=["X"],
            output_names=graph.output_names,
            dynamic_shapes={"X": {0: torch.export.Dim("n_samples", min=1)}},
            custom_translation_table={torch.ops.aten.leaky_relu.default: leaky_relu},
            optimize=False,  # which takes factors close to 1 and terms close to 0 for such
            verbose=False,
        )
        fold_constants(program.model)
        remove_unused_nodes(program.model)
    model = program.model_proto
    names = getattr(detector, "feature_names_in_", None)
    for key, value in (
        ("class", type(detector).__name__),
        ("sklearn_g2d", __version__),
        ("feature_names", json.dumps(None if names is None else names.tolist())),
    ):
        model.metadata_props.add(key=key, value=value)
    replace(path, model.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which warns of its own affairs."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    disabled = logger.disabled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.disabled = True
        try:
            yield
        finally:
            logger.disabled = disabled
