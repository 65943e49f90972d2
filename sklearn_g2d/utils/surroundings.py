"""What a caller has set for PyTorch and scikit-learn does not reach into a call."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from sklearn import config_context
from threadpoolctl import threadpool_limits

_is_forked = False


@contextmanager
def shielded() -> Iterator[None]:
    """Compute as if nothing had been set around the call; also a decorator of methods.

    That is scikit-learn's `transform_output`, and PyTorch's `no_grad`, `inference_mode`, autocast
    and default device. A default dtype cannot be set for one thread only: whoever makes tensors
    names theirs.
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
        yield


def _use_own_threads() -> None:
    """Keep a forked process from waiting for ever for its parent's threads of OpenMP.

    Only a process that computes needs that; one that merely imports the package is left alone.
    """
    global _is_forked
    if _is_forked:
        _is_forked = False
        torch.set_num_threads(1)
        threadpool_limits(1, user_api="openmp")


def _note_fork() -> None:
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
