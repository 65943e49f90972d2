"""Training of one detector by several processes, with torch.distributed.

Processes train together if the default process group is initialised, for example by a script under
torchrun. Each takes a part of every batch, and gradients are averaged. In a single process these
functions do nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")

_is_alone = ContextVar("_is_alone", default=False)


def n_processes() -> int:
    """Return the number of processes that train together; 1 if this one trains alone."""
    if _is_alone.get():
        return 1
    together = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if together else 1


def rank() -> int:
    """Return the number of this process, from 0. Only process 0 reports."""
    return distributed.get_rank() if n_processes() > 1 else 0


def own_batch_size(batch_size: int) -> int:
    """Divide a batch between the processes, rounded up."""
    return -(-batch_size // n_processes())


def uses_nccl() -> bool:
    """Whether messages to other processes pass through GPUs."""
    return n_processes() > 1 and "nccl" in distributed.get_backend_config()


def _sendable(tensor: Tensor) -> Tensor:
    """Return a tensor on a device that can send messages: nccl sends only from GPUs."""
    return tensor if "cpu:" in distributed.get_backend_config() else tensor.cuda()


def average(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their means over processes, in one message, which is faster than many."""
    if n_processes() == 1:
        return
    own = [tensor.detach() for tensor in tensors]
    means = _sendable(torch.cat([tensor.flatten() for tensor in own]))
    distributed.all_reduce(means)
    means /= n_processes()
    for tensor, mean in zip(own, means.split([tensor.numel() for tensor in own]), strict=True):
        tensor.copy_(mean.view(tensor.shape))


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Replace the tensors of all processes by those of the first one."""
    if n_processes() > 1:
        for tensor in tensors:
            whole = _sendable(tensor.contiguous())
            distributed.broadcast(whole, src=0)
            tensor.copy_(whole)


def gather(value: T) -> list[T]:
    """Collect a picklable value from each process, in order."""
    values: list[Any] = [value] * n_processes()
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values


def from_first(value: T) -> T:
    """Return the picklable value of the first process."""
    values = [value]
    if n_processes() > 1:
        distributed.broadcast_object_list(values, src=0)
    return values[0]


@contextmanager
def alone() -> Iterator[None]:
    """Compute as a single process, because only the first process calls callbacks."""
    token = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(token)


@contextmanager
def together() -> Iterator[None]:
    """Raise an error in all processes if one fails, because they would wait for it forever.

    In the others it is a RuntimeError with the number of the process and its error.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    # All processes meet here, also those without an error, so that each learns of all errors.
    failures = gather(failure and f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for number, message in enumerate(failures):
        if message:
            raise RuntimeError(
                f"Process {number} of {len(failures)} that train together has failed: {message}"
            )
