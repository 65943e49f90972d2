"""Processes that train one detector together, by torch.distributed.

They do so wherever its default process group is initialised, as under torchrun: each takes its
share of every batch, and gradients are averaged. For a process by itself all of this is nothing.
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
    """Count the processes that train together; 1 if this one trains by itself."""
    if _is_alone.get():
        return 1
    together = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if together else 1


def rank() -> int:
    """Give this process's number among them, from 0; the first one reports."""
    return distributed.get_rank() if n_processes() > 1 else 0


def batch_share(batch_size: int) -> int:
    """Divide a batch between the processes, rounded up."""
    return -(-batch_size // n_processes())


def uses_nccl() -> bool:
    """Whether messages to other processes pass through GPUs."""
    return n_processes() > 1 and "nccl" in distributed.get_backend_config()


def _sendable(tensor: Tensor) -> Tensor:
    """Put a tensor where messages pass: nccl by itself takes none from the CPU."""
    return tensor if "cpu:" in distributed.get_backend_config() else tensor.cuda()


def average(tensors: Iterable[Tensor]) -> None:
    """Put the means over processes in place of tensors; in one message, for many cost as many."""
    if n_processes() == 1:
        return
    own = [tensor.detach() for tensor in tensors]
    means = _sendable(torch.cat([tensor.flatten() for tensor in own]))
    distributed.all_reduce(means)
    means /= n_processes()
    for tensor, mean in zip(own, means.split([tensor.numel() for tensor in own]), strict=True):
        tensor.copy_(mean.view(tensor.shape))


@torch.no_grad()
def align(tensors: Iterable[Tensor]) -> None:
    """Put the first process's tensors in place of all others'."""
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
    """Give the first process's picklable value."""
    values = [value]
    if n_processes() > 1:
        distributed.broadcast_object_list(values, src=0)
    return values[0]


@contextmanager
def alone() -> Iterator[None]:
    """Compute something that the other processes do not: only the first one has callbacks."""
    token = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(token)


@contextmanager
def together() -> Iterator[None]:
    """Raise in all processes what one of them raises, or the others would wait for it forever.

    Theirs is a RuntimeError that says which process it was, and what it raised.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    failures = gather(failure and f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for number, message in enumerate(failures):
        if message:
            raise RuntimeError(
                f"Process {number} of {len(failures)} that train together has failed: {message}"
            )
