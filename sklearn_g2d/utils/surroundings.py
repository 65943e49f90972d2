"""Protection of a call from the caller's settings of PyTorch and scikit-learn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn import config_context
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.overrides import TorchFunctionMode

_is_forked = False


@contextmanager
def shielded() -> Iterator[None]:
    """Compute with default settings, whatever the caller has set; also a decorator of methods.

    The settings are scikit-learn's `transform_output`, and PyTorch's `no_grad`, `inference_mode`,
    autocast, default device and default dtype.
    """
    _use_own_threads()
    with ExitStack() as stack:
        stack.enter_context(config_context(transform_output="default"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device_type in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(float32_by_default())
        yield


def float32_by_default() -> AbstractContextManager[Any]:
    """Let the user's code make tensors as if the default dtype were float32, in this thread.

    The real default dtype is shared by all threads, and is therefore not changed. Code of this
    package always names dtypes and does not need this.
    """
    default = torch.get_default_dtype()
    return nullcontext() if default == torch.float32 else _Float32ByDefault(default)


class _Float32ByDefault(TorchFunctionMode):
    """Gives float32 where PyTorch would choose its default dtype.

    PyTorch does not call this mode for old constructors such as ``torch.Tensor(2, 3)``.
    """

    # The dtype of these functions depends only on the default. It must be passed to them, because
    # converting the result would give other random numbers.
    _makers: ClassVar = frozenset(
        {
            *(torch.empty, torch.empty_strided, torch.zeros, torch.ones, torch.eye, torch.rand),
            *(torch.randn, torch.normal, torch.linspace, torch.logspace, torch.scalar_tensor),
            *(torch.bartlett_window, torch.blackman_window, torch.hamming_window),
            *(torch.hann_window, torch.kaiser_window),
        }
    )
    # The dtype of these functions depends on their arguments: only Python's numbers become the
    # default dtype.
    _readers: ClassVar = frozenset(
        [torch.tensor, torch.as_tensor, torch.asarray, torch.full, torch.arange]
    )
    _converters: ClassVar = frozenset({Tensor.double, Tensor.half, Tensor.bfloat16})

    def __init__(self, default: torch.dtype) -> None:
        super().__init__()
        self._float32: dict[torch.dtype, torch.dtype] = {
            default: torch.float32,
            default.to_complex(): torch.complex64,
        }

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of PyTorch."""
        kwargs = kwargs or {}
        is_asked_for = func in self._converters or self._is_in((args, kwargs))
        if func in self._makers and not is_asked_for and kwargs.get("dtype") is None:
            kwargs = kwargs | {"dtype": torch.float32}
        result = func(*args, **kwargs)
        dtype = self._float32.get(result.dtype) if isinstance(result, Tensor) else None
        if dtype is None or is_asked_for:
            return result
        if func in self._readers:
            return func(*args, **kwargs | {"dtype": dtype})
        # Convert a higher precision only: a lower one may come from autocast.
        return result.to(dtype) if result.itemsize > dtype.itemsize else result

    def _is_in(self, given: Any) -> bool:
        """Return whether arguments have or name the dtype, so that the user has asked for it."""
        if isinstance(given, dict):
            return any(map(self._is_in, given.values()))
        if isinstance(given, list | tuple):
            return any(map(self._is_in, given))
        if isinstance(given, Tensor | torch.dtype):
            return getattr(given, "dtype", given) in self._float32
        if isinstance(given, np.ndarray | np.generic):
            return given.dtype in (np.float64, np.complex128)
        return isinstance(given, type) or (isinstance(given, str) and given.startswith("torch."))


def _use_own_threads() -> None:
    """Prevent a forked process from waiting without end for OpenMP threads of its parent.

    This runs at the first computation, because a process that only imports the package does not
    need it.
    """
    global _is_forked
    if _is_forked:
        _is_forked = False
        torch.set_num_threads(1)
        threadpool_limits(1, user_api="openmp")


def _note_fork() -> None:
    # A handler of forks should do as little as possible: it only sets this flag.
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
