"""Modules of PyTorch as ONNX graphs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn


def onnx_model(
    module: nn.Module,
    example: NDArray[Any],
    output_names: Sequence[str] | None = None,
    *,
    any_number: bool = True,
) -> Any:
    """Trace a module and translate it to an ONNX model.

    Parameters
    ----------
    module : nn.Module
        It maps a tensor "X" to one tensor or several.
    example : ndarray of shape (n_samples, ...)
        An example of the input.
    output_names : sequence of str, default=None
        Names of the outputs. With None the exporter chooses names.
    any_number : bool, default=True
        Whether the graph takes any number of samples, or only the number in the example.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    ImportError
        If the packages of the extra "onnx" are missing.
    """
    try:
        from onnxscript import opset18
        from onnxscript.optimizer import fold_constants, remove_unused_nodes
    except ImportError as error:
        raise ImportError(
            "ONNX graphs need onnx and onnxscript: pip install 'sklearn_g2d[onnx]'."
        ) from error
    with _quiet():
        program: Any = torch.onnx.export(
            module.eval(),
            (torch.from_numpy(example),),
            dynamo=True,
            input_names=["X"],
            output_names=output_names,
            dynamic_shapes=({0: torch.export.Dim("n_samples", min=1)},) if any_number else None,
            custom_translation_table=_translations(opset18),
            # The optimiser removes factors that are nearly 1 and terms that are nearly 0, which
            # changes scores. Instead call below the two steps that do not change values.
            optimize=False,
            verbose=False,
        )
        fold_constants(program.model)
        remove_unused_nodes(program.model)
    return program.model_proto


def _translations(op: Any) -> dict[Any, Callable[..., Any]]:
    """Give translations, to operators `op`, of functions that lack one for float64."""
    import onnx

    def number(value: float, like: Any) -> Any:
        tensor = onnx.helper.make_tensor("number", onnx.TensorProto.DOUBLE, [], [value])
        constant: Any = op.Constant(value=tensor)
        return op.CastLike(constant, like)

    def leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
        # ONNX Runtime has no LeakyRelu in float64. This equals it, because the slope is below 1.
        return op.Max(x, op.Mul(x, number(negative_slope, x)))

    def hypot(x: Any, y: Any) -> Any:
        x, y = op.Abs(x), op.Abs(y)
        larger = op.Max(x, y)
        # Divide by the larger value, because squares could overflow.
        divisor = op.Where(op.Greater(larger, number(0.0, x)), larger, number(1.0, x))
        ratio = op.Div(op.Min(x, y), divisor)
        return op.Mul(larger, op.Sqrt(op.Add(number(1.0, x), op.Mul(ratio, ratio))))

    def logaddexp(x: Any, y: Any) -> Any:
        # Only differences are exponentiated, because exp(x) could overflow.
        distance = op.Abs(op.Sub(x, y))
        tail = op.Log(op.Add(number(1.0, x), op.Exp(op.Neg(distance))))
        return op.Add(op.Max(x, y), tail)

    aten = torch.ops.aten
    return {
        aten.leaky_relu.default: leaky_relu,
        aten.hypot.default: hypot,
        aten.logaddexp.default: logaddexp,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: its warnings are about its own internals, not the user's code."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    disabled = logger.disabled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.disabled = True
        try:
            yield
        finally:
            logger.disabled = disabled
