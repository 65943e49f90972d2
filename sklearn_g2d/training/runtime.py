"""Where and how networks run: device, precision and random numbers."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from threadpoolctl import ThreadpoolController
from torch import Tensor

from sklearn_g2d.training import parallel

PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Runtime:
    """Device, precision of forward passes, and private random numbers of one fit."""

    device: torch.device
    bfloat16: bool
    rng: torch.Generator

    @classmethod
    def create(
        cls, device: str, precision: str, seed: int, *, prefer_bfloat16: bool = False
    ) -> Runtime:
        """Resolve "auto", which means bfloat16 if preferred and computed in; seed a generator."""
        resolved = resolve_device(device)
        bfloat16 = precision == "bfloat16"
        if precision == "auto":
            bfloat16 = prefer_bfloat16 and computes_in_bfloat16(resolved)
        return cls(resolved, bfloat16, torch.Generator(resolved).manual_seed(seed))

    def of_process(self) -> Runtime:
        """Give this process random numbers of its own where several train together.

        They begin alike, with equal networks, but each is to draw batches that the others do not.
        """
        if parallel.n_processes() == 1:
            return self
        n = parallel.n_processes()
        seeds = torch.randint(2**62, (n,), generator=self.rng, device=self.device)
        own = torch.Generator(self.device).manual_seed(int(seeds[parallel.rank()]))
        return replace(self, rng=own)

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which matrix products run in the chosen precision."""
        if not self.bfloat16:
            return nullcontext()  # takes no time, of which small networks leave little
        return bfloat16_products(self.device.type)

    def tensor(self, array: ArrayLike) -> Tensor:
        """Copy of `array` as float32 on the device."""
        return torch.as_tensor(np.asarray(array, dtype=np.float32)).to(self.device)


# PyTorch's global generators are the process's: threads take turns.
_GLOBAL_GENERATORS = threading.RLock()


@contextmanager
def globally_seeded(rng: torch.Generator, seed: int | None = None) -> Iterator[int]:
    """Seed PyTorch's global generators, from which users' modules draw, and put them back.

    The seed, which is given back, is drawn from `rng` if there is none. Modules may draw on the
    CPU and on the device of `rng`.
    """
    if seed is None:
        seed = int(torch.randint(2**62, (1,), generator=rng, device=rng.device))
    on_cuda = rng.device.type == "cuda"
    with _GLOBAL_GENERATORS, torch.random.fork_rng([rng.device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(rng.device):
                torch.cuda.manual_seed(seed)
        yield seed


@contextmanager
def single_thread() -> Iterator[None]:
    """Run PyTorch and BLAS on one thread of the CPU, then on as many as before.

    Handing the products of small networks to a second thread takes longer than computing them
    (docs/results). Besides, sums on several threads differ in their last digits, and training
    amplifies them: so a search gives the same scores whatever its `n_jobs`.
    """
    fit = object()
    try:  # also around what an interrupt may leave half done
        _limits.enter(fit)
        yield
    finally:
        _limits.leave(fit)


class _Limits:
    """The process's limit on threads: the first fit sets it, and the last one lifts it."""

    def __init__(self) -> None:
        self._lock, self._fits, self._lift = threading.Lock(), set[object](), ExitStack()
        self._libraries: Any = None
        self._n_modules = 0  # for which the libraries were searched

    def enter(self, fit: object) -> None:
        with self._lock:
            self._fits.add(fit)
            if len(self._fits) == 1:
                self._lift.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(1)
                # A search for libraries takes milliseconds; what is imported may bring new ones.
                if self._n_modules != len(sys.modules):
                    self._libraries, self._n_modules = ThreadpoolController(), len(sys.modules)
                self._lift.enter_context(self._libraries.limit(limits=1, user_api="blas"))

    def leave(self, fit: object) -> None:
        with self._lock:
            self._fits.discard(fit)
            if not self._fits:
                self._lift.close()


_limits = _Limits()

if hasattr(os, "register_at_fork"):  # the fits of other threads do not go on in a fork
    os.register_at_fork(after_in_child=_limits.__init__)  # type: ignore[misc]


@contextmanager
def bfloat16_products(device_type: str) -> Iterator[None]:
    """Run matrix products in bfloat16."""
    try:
        with torch.autocast(device_type, dtype=torch.bfloat16):
            yield
    finally:
        # PyTorch does so only where no other autocast is around; else the next step would compute
        # with weights of this one.
        torch.clear_autocast_cache()


def resolve_device(device: str) -> torch.device:
    """Turn "auto" (CUDA, then MPS, then the CPU) or PyTorch's name into a device that exists here.

    Of several GPUs, "auto" gives processes under torchrun, and joblib's worker processes, one each
    in turn. A device that PyTorch does not know or cannot reach is a ValueError.
    """
    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
        number = _number_of_process()
        n_devices = torch.cuda.device_count()
        return torch.device("cuda") if number is None else torch.device("cuda", number % n_devices)
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"device={device!r} cannot be used here ({str(error).splitlines()[0]}). "
            'Pass "auto", "cpu", or a device that torch.empty(0, device=...) accepts.'
        ) from error
    return resolved


def _number_of_process() -> int | None:
    """Tell this process from others of the machine that share its GPUs; None if it is alone."""
    # The workers of dask-cuda are not numbered: each of them sees its own GPU first.
    if "LOCAL_RANK" in os.environ:  # set by torchrun
        return int(os.environ["LOCAL_RANK"])
    worker = re.fullmatch(r"LokyProcess-(\d+)", multiprocessing.current_process().name)
    return int(worker[1]) - 1 if worker else None


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16, rather than emulate it at a loss."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # On older versions of PyTorch, which cannot tell, the answer is no.
        known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False
