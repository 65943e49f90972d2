"""Device, precision and random numbers of the networks."""

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
    """Device, precision of forward passes, and random generators of one fit.

    `rng` draws on the device. `host` draws numbers for Python on the CPU, such as places of crops,
    so that no step has to wait for the device. If the device is the CPU, both are the same.
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
        """Resolve "auto" (bfloat16 if preferred and supported), and seed the generators."""
        resolved = resolve_device(device, is_convolutional=is_convolutional)
        bfloat16 = precision == "bfloat16"
        if precision == "auto":
            bfloat16 = prefer_bfloat16 and computes_in_bfloat16(resolved)
        return cls(resolved, bfloat16, *_generators(resolved, seed))

    def seeded(self, seed: int) -> Runtime:
        """Return a copy with other random numbers."""
        rng, host = _generators(self.device, seed)
        return replace(self, rng=rng, host=host)

    def of_process(self) -> Runtime:
        """Return a copy with random numbers of this process if several processes train together.

        All processes start with the same random numbers, so that their networks are equal. From
        then on each draws batches of its own.
        """
        if parallel.n_processes() == 1:
            return self
        n = parallel.n_processes()
        seeds = torch.randint(2**62, (n,), generator=self.host, device="cpu")
        return self.seeded(int(seeds[parallel.rank()]))

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which matrix products have the chosen precision."""
        if not self.bfloat16:
            return nullcontext()  # costs no time, which matters for small networks
        return bfloat16_products(self.device.type)

    def tensor(self, array: ArrayLike) -> Tensor:
        """Return a copy of `array` as float32 on the device."""
        return torch.as_tensor(np.asarray(array, dtype=np.float32)).to(self.device)


def _generators(device: torch.device, seed: int) -> tuple[torch.Generator, torch.Generator]:
    rng = torch.Generator(device).manual_seed(seed)
    return rng, rng if device.type == "cpu" else torch.Generator().manual_seed(seed)


# All threads of a process share PyTorch's global generators, so only one at a time may seed them.
_GLOBAL_GENERATORS = threading.RLock()


@contextmanager
def globally_seeded(
    rng: torch.Generator, seed: int | None = None, device: torch.device | None = None
) -> Iterator[int]:
    """Seed PyTorch's global random generators for the user's modules, and restore them.

    Without a seed, one is drawn from `rng`; the context returns it. Modules may draw on the CPU and
    on `device`, by default the device of `rng`.
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
    """Run PyTorch and BLAS on one CPU thread, and restore the numbers of threads afterwards.

    For small networks a second thread costs more time than it saves (docs/results). Besides, the
    last digits of sums depend on the number of threads, and training amplifies the differences.
    With one thread, a parameter search gives the same scores with any `n_jobs`.
    """
    with _one_thread.while_needed():
        yield


class _Shared:
    """A setting of the whole process: the first of several calls sets it, the last restores it."""

    def __init__(self, set_up: Callable[[ExitStack], None]) -> None:
        self._set = set_up
        self._reset()
        if hasattr(os, "register_at_fork"):  # other threads, and their calls, end in a fork
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock, self._calls, self._undo = threading.Lock(), set[object](), ExitStack()

    @contextmanager
    def while_needed(self) -> Iterator[None]:
        call = object()
        try:  # around all, because an interrupt may come at any point
            with self._lock:
                self._calls.add(call)
                if len(self._calls) == 1:
                    self._set(self._undo)
            yield
        finally:
            with self._lock:
                self._calls.discard(call)
                if not self._calls:
                    self._undo.close()


def _limit_threads(undo: ExitStack) -> None:
    global _libraries, _n_modules
    undo.callback(torch.set_num_threads, torch.get_num_threads())
    torch.set_num_threads(1)
    # Searching for libraries takes milliseconds. Do it again only after imports, which may load new
    # libraries.
    if _n_modules != len(sys.modules):
        _libraries, _n_modules = ThreadpoolController(), len(sys.modules)
    undo.enter_context(_libraries.limit(limits=1, user_api="blas"))


_libraries: Any = None
_n_modules = 0  # number of modules when the libraries were searched
_one_thread = _Shared(_limit_threads)


# Whether CUDA may round to TF32, and whether it must be deterministic.
_arithmetic = ContextVar("_arithmetic", default=(False, True))


@contextmanager
def cuda_arithmetic(*, tf32: bool = False, deterministic: bool = True) -> Iterator[None]:
    """Choose how CUDA devices compute in calls of this package inside of the context.

    Without it, fits and scores are computed in full float32 and are equal in every bit each time;
    PyTorch's own settings are not used. The context holds for its own thread. Calls that run at the
    same time in several threads compute like the first of them. Worker processes must enter the
    context themselves.

    Parameters
    ----------
    tf32 : bool, default=False
        Whether products may round their factors to 10 bits, which is several times faster on
        recent GPUs. Scores then differ from those of the CPU by more than 1e-4 of their spread.
    deterministic : bool, default=True
        Whether sums of gradients have a fixed order. With False training is slightly faster, but
        the last digits change each time.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d import G2DOutlierDetector
    >>> from sklearn_g2d.training import cuda_arithmetic
    >>> X = np.random.default_rng(0).normal(size=(50, 3))
    >>> with cuda_arithmetic(tf32=True):  # no effect on a CPU
    ...     detector = G2DOutlierDetector(random_state=0).fit(X)
    """
    token = _arithmetic.set((tf32, deterministic))
    try:
        yield
    finally:
        _arithmetic.reset(token)


def deterministic() -> bool:
    """Return whether gradients must be computed in a fixed order."""
    return _arithmetic.get()[1]


def arithmetic_of(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which a CUDA device computes as `cuda_arithmetic` says."""
    return _cuda_settings.while_needed() if device.type == "cuda" else nullcontext()


def _set_cuda(undo: ExitStack) -> None:
    tf32, is_deterministic = _arithmetic.get()
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    settings: list[tuple[Any, str, Any]] = [
        (cudnn, "deterministic", is_deterministic),
        (cudnn, "benchmark", False),
    ]
    if hasattr(cudnn, "conv"):  # PyTorch 2.9 and later, which does not allow both names
        precision = "tf32" if tf32 else "ieee"
        settings += [(p, "fp32_precision", precision) for p in (matmul, cudnn.conv, cudnn.rnn)]
    else:
        settings += [(part, "allow_tf32", tf32) for part in (matmul, cudnn)]
    for part, name, value in settings:
        undo.callback(setattr, part, name, getattr(part, name))
        setattr(part, name, value)


_cuda_settings = _Shared(_set_cuda)


@contextmanager
def on_device(name: str, *networks: nn.Module) -> Iterator[tuple[torch.device, list[Any]]]:
    """Return a context with a fitted detector's device, and copies of networks on it.

    The networks themselves stay on the CPU, so that files, pickles and forks hold no data of a GPU.
    If the device is missing, the CPU is used, with a warning.
    """
    device = available(name)
    with arithmetic_of(device):
        is_cpu = device.type == "cpu"
        yield device, [n if is_cpu else copy.deepcopy(n).to(device) for n in networks]


def available(name: str) -> torch.device:
    """Return the device of `fit`, or the CPU with a warning if that device is missing."""
    try:
        return resolve_device(name)
    except ValueError:
        warn_caller(
            f"The device {name!r} of the fitted networks is not here. They are computed on the "
            'CPU, which takes longer. Call detector.to("auto") to choose a device that is here.'
        )
        return torch.device("cpu")


@contextmanager
def bfloat16_products(device_type: str) -> Iterator[None]:
    """Run matrix products in bfloat16."""
    try:
        with torch.autocast(device_type, dtype=torch.bfloat16):
            yield
    finally:
        # Inside of another autocast PyTorch does not clear its cache of weights. Then the next step
        # would compute with the weights of this step.
        torch.clear_autocast_cache()


def resolve_device(device: str, *, is_convolutional: bool = True) -> torch.device:
    """Return the device for "auto" or for one of PyTorch's names.

    "auto" means CUDA for convolutions if there is a GPU, else the CPU, because steps of perceptrons
    are so short that a GPU would be slower. It never means Apple's MPS, because this package has
    not been tested on it. If there are several GPUs, "auto" distributes processes of torchrun and
    worker processes of joblib over them. A device that PyTorch does not know or cannot use raises
    ValueError.
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
            f"device={device!r} cannot be used here ({str(error).splitlines()[0].split('. ')[0]}). "
            'Pass "auto" or "cpu"; "cuda" needs a GPU, and a build of PyTorch that supports it.'
        ) from error
    return resolved


def _number_of_process() -> int | None:
    """Return this process's number among those that share the GPUs; None if it is alone."""
    # Workers of dask-cuda need no number, because the first GPU is a different one for each.
    if "LOCAL_RANK" in os.environ:  # set by torchrun
        return int(os.environ["LOCAL_RANK"])
    worker = re.fullmatch(r"LokyProcess-(\d+)", multiprocessing.current_process().name)
    return int(worker[1]) - 1 if worker else None


def computes_in_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies in bfloat16; emulating it would be slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Older versions of PyTorch do not know this: then the answer is no.
        known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def choose_own_gpu(device: str) -> None:
    """Let nccl send messages from this process's GPU instead of the first one for all."""
    if parallel.uses_nccl():
        own = resolve_device(device)
        torch.cuda.set_device(own if own.type == "cuda" else resolve_device("auto"))
