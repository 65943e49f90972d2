"""Where and how networks run: device, precision and random numbers."""

from __future__ import annotations

import copy
import multiprocessing
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn

from sklearn_g2d.training import parallel
from sklearn_g2d.utils.warnings import warn_caller

PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Runtime:
    """Device, precision of forward passes, and private random numbers of one fit.

    `rng` draws on the device. `host` draws on the CPU what Python goes by, such as places, so that
    no step has to wait for the device; where the device is the CPU, it is `rng`.
    """

    device: torch.device
    bfloat16: bool
    rng: torch.Generator
    host: torch.Generator

    @classmethod
    def create(
        cls,
        device: str,
        precision: str,
        seed: int,
        *,
        prefer_bfloat16: bool = False,
        is_convolutional: bool = True,
    ) -> Runtime:
        """Resolve "auto", which means bfloat16 if preferred and computed in; seed generators."""
        resolved = resolve_device(device, is_convolutional=is_convolutional)
        bfloat16 = precision == "bfloat16"
        if precision == "auto":
            bfloat16 = prefer_bfloat16 and computes_in_bfloat16(resolved)
        return cls(resolved, bfloat16, *_generators(resolved, seed))

    def seeded(self, seed: int) -> Runtime:
        """Give the same with other random numbers."""
        rng, host = _generators(self.device, seed)
        return replace(self, rng=rng, host=host)

    def of_process(self) -> Runtime:
        """Give this process random numbers of its own where several train together.

        They begin alike, with equal networks, but each is to draw batches that the others do not.
        """
        if parallel.n_processes() == 1:
            return self
        n = parallel.n_processes()
        seeds = torch.randint(2**62, (n,), generator=self.host, device="cpu")
        return self.seeded(int(seeds[parallel.rank()]))

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which matrix products run in the chosen precision."""
        if not self.bfloat16:
            return nullcontext()  # takes no time, of which small networks leave little
        return bfloat16_products(self.device.type)

    def tensor(self, array: ArrayLike) -> Tensor:
        """Copy of `array` as float32 on the device."""
        return torch.as_tensor(np.asarray(array, dtype=np.float32)).to(self.device)


def _generators(device: torch.device, seed: int) -> tuple[torch.Generator, torch.Generator]:
    rng = torch.Generator(device).manual_seed(seed)
    return rng, rng if device.type == "cpu" else torch.Generator().manual_seed(seed)


# PyTorch's global generators are the process's: threads take turns.
_GLOBAL_GENERATORS = threading.RLock()


@contextmanager
def globally_seeded(
    rng: torch.Generator, seed: int | None = None, device: torch.device | None = None
) -> Iterator[int]:
    """Seed PyTorch's global generators, from which users' modules draw, and put them back.

    The seed, which is given back, is drawn from `rng` if there is none. Modules may draw on the
    CPU and on the device, by default that of `rng`.
    """
    if seed is None:
        (seed,) = torch.randint(2**62, (1,), generator=rng, device=rng.device).tolist()
    device = device or rng.device
    on_cuda = device.type == "cuda"
    with _GLOBAL_GENERATORS, torch.random.fork_rng([device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield seed


@contextmanager
def single_thread() -> Iterator[None]:
    """Run PyTorch and BLAS on one thread of the CPU, then on as many as before.

    Handing the products of small networks to a second thread takes longer than computing them
    (docs/results). Besides, sums on several threads differ in their last digits, and training
    amplifies them: so a search gives the same scores whatever its `n_jobs`.
    """
    with _one_thread.while_needed():
        yield


class _Shared:
    """A setting of the whole process: the first call that needs it puts it, the last lifts it."""

    def __init__(self, put: Callable[[ExitStack], None]) -> None:
        self._put = put
        self._forget()
        if hasattr(os, "register_at_fork"):  # the calls of other threads do not go on in a fork
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock, self._calls, self._lift = threading.Lock(), set[object](), ExitStack()

    @contextmanager
    def while_needed(self) -> Iterator[None]:
        call = object()
        try:  # also around what an interrupt may leave half done
            with self._lock:
                self._calls.add(call)
                if len(self._calls) == 1:
                    self._put(self._lift)
            yield
        finally:
            with self._lock:
                self._calls.discard(call)
                if not self._calls:
                    self._lift.close()


def _limit_threads(lift: ExitStack) -> None:
    global _libraries, _n_modules
    lift.callback(torch.set_num_threads, torch.get_num_threads())
    torch.set_num_threads(1)
    # A search for libraries takes milliseconds; what is imported may bring new ones.
    if _n_modules != len(sys.modules):
        _libraries, _n_modules = ThreadpoolController(), len(sys.modules)
    lift.enter_context(_libraries.limit(limits=1, user_api="blas"))


_libraries: Any = None
_n_modules = 0  # for which the libraries were searched
_one_thread = _Shared(_limit_threads)


# Whether CUDA may round to TF32, and whether it has to be deterministic.
_arithmetic = ContextVar("_arithmetic", default=(False, True))


@contextmanager
def cuda_arithmetic(*, tf32: bool = False, deterministic: bool = True) -> Iterator[None]:
    """Choose how CUDA devices compute in the calls of this thread that the context is around.

    Whatever PyTorch is set to, fits and scores are computed in full float32, and the same in every
    bit each time, unless this says otherwise. Calls at the same time in other threads compute as
    the first of them does, and worker processes have to enter the context themselves.

    Parameters
    ----------
    tf32 : bool, default=False
        Whether products may round their factors to 10 bits, which is several times faster on
        recent GPUs. Scores then differ from those of the CPU by more than 1e-4 of their spread.
    deterministic : bool, default=True
        Whether gradients are computed in a fixed order. Without it training is somewhat faster,
        and gives other last digits each time.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d import G2DOutlierDetector
    >>> from sklearn_g2d.training import cuda_arithmetic
    >>> X = np.random.default_rng(0).normal(size=(50, 3))
    >>> with cuda_arithmetic(tf32=True):  # of no effect on a CPU
    ...     detector = G2DOutlierDetector(random_state=0).fit(X)
    """
    token = _arithmetic.set((tf32, deterministic))
    try:
        yield
    finally:
        _arithmetic.reset(token)


def deterministic() -> bool:
    """Whether gradients are to be computed in a fixed order."""
    return _arithmetic.get()[1]


def arithmetic_of(device: torch.device) -> AbstractContextManager[Any]:
    """Compute on a CUDA device as `cuda_arithmetic` says, whatever the process is set to."""
    return _cuda_settings.while_needed() if device.type == "cuda" else nullcontext()


def _set_cuda(lift: ExitStack) -> None:
    tf32, is_deterministic = _arithmetic.get()
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    settings: list[tuple[Any, str, Any]] = [
        (cudnn, "deterministic", is_deterministic),
        (cudnn, "benchmark", False),
    ]
    if hasattr(cudnn, "conv"):  # PyTorch 2.9 and later, where the names below must not be mixed in
        precision = "tf32" if tf32 else "ieee"
        settings += [(p, "fp32_precision", precision) for p in (matmul, cudnn.conv, cudnn.rnn)]
    else:
        settings += [(part, "allow_tf32", tf32) for part in (matmul, cudnn)]
    for part, name, value in settings:
        lift.callback(setattr, part, name, getattr(part, name))
        setattr(part, name, value)


_cuda_settings = _Shared(_set_cuda)


@contextmanager
def on_device(name: str, *networks: nn.Module) -> Iterator[tuple[torch.device, list[Any]]]:
    """Give a fitted detector's device, and networks there, which stay on the CPU themselves.

    So files, pickles and forks hold nothing of a GPU. Where the device is not to be had, that is
    the CPU, and a warning says so.
    """
    device = available(name)
    with arithmetic_of(device):
        is_cpu = device.type == "cpu"
        yield device, [n if is_cpu else copy.deepcopy(n).to(device) for n in networks]


def available(name: str) -> torch.device:
    """Give the device of a `fit`, or the CPU with a warning where there is none of this name."""
    try:
        return resolve_device(name)
    except ValueError:
        warn_caller(
            f"The device {name!r}, on which networks were fitted, is not here: they are "
            'computed on the CPU, which takes longer. detector.to("auto") chooses what is here.'
        )
        return torch.device("cpu")


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


def resolve_device(device: str, *, is_convolutional: bool = True) -> torch.device:
    """Turn "auto" or PyTorch's name into a device that exists here.

    "auto" is CUDA for convolutions, if there is a GPU, and else the CPU: steps of perceptrons are
    so short that a GPU would be slower. Apple's MPS has to be asked for, since nothing of this
    package has been tested there. Of several GPUs, "auto" gives processes under torchrun, and
    joblib's worker processes, one each in turn. A device that PyTorch does not know or cannot
    reach is a ValueError.
    """
    if device == "auto":
        if not (is_convolutional and torch.cuda.is_available()):
            return torch.device("cpu")
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


def choose_own_gpu(device: str) -> None:
    """Let messages of nccl pass through this process's GPU: all would take the first one else."""
    if parallel.uses_nccl():
        own = resolve_device(device)
        torch.cuda.set_device(own if own.type == "cuda" else resolve_device("auto"))
