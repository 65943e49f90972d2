"""Engines that apply a network to images: PyTorch and ONNX Runtime."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_g2d.training.runtime import arithmetic_of, bfloat16_products
from sklearn_g2d.utils.graphs import onnx_model

# An engine maps images (n, 3, h, w) to the outputs of a network, as tensors on the CPU.
Engine = Callable[[Tensor], Any]

# PyTorch's exporter does not work in several threads at once.
_EXPORTING = threading.Lock()


def pytorch_engine(network: nn.Module, device: torch.device, *, bfloat16: bool) -> Engine:
    """Return an engine that applies the network on the CPU, or a copy of it on another device."""
    if device.type != "cpu":
        network = copy.deepcopy(network).to(device)

    def apply(images: Tensor) -> Any:
        with arithmetic_of(device), bfloat16_products(device.type) if bfloat16 else nullcontext():
            given = network(images.to(device))
        return given.cpu() if isinstance(given, Tensor) else [maps.cpu() for maps in given]

    return apply


def onnxruntime_session(network: nn.Module, shape: tuple[int, ...]) -> Any:
    """Translate a network for images of one shape (n, 3, h, w), to run on one CPU thread."""
    try:
        import onnxruntime

        with _EXPORTING:
            example = np.zeros(shape, dtype=np.float32)
            graph = onnx_model(network, example, any_number=False).SerializeToString()
    except ImportError as error:
        raise ImportError(
            'engine="onnxruntime" needs onnxruntime, onnx and onnxscript: pip install '
            "'sklearn_g2d[onnx]'."
        ) from error
    # The exporter's packages raise errors of many types if they cannot translate the user's module.
    except Exception as error:
        reason, _, _ = str(error).partition("\n")
        raise ValueError(
            f"{type(network).__name__} cannot be translated to an ONNX graph "
            f'({type(error).__name__}: {reason}). Pass engine="torch".'
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def onnxruntime_engine(session: Any) -> Engine:
    """Return an engine that applies the network of a session."""
    return lambda images: [torch.from_numpy(m) for m in session.run(None, {"X": images.numpy()})]
