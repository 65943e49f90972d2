"""What holds for every trainer; each function takes trainers made alike from two seeds."""

import contextlib

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode


def as_arrays(value):
    """Turn the tensors of a state into arrays, as reading it from a file does."""
    if isinstance(value, dict):
        return {key: as_arrays(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_arrays(item) for item in value]
    return value.numpy().copy() if isinstance(value, torch.Tensor) else value


def assert_equal_states(first, second):
    np.testing.assert_equal(as_arrays(first), as_arrays(second))


def check_goes_on_from_its_state(trainer, other, at):
    for _ in range(at):
        trainer.step()
    state = trainer.state_dict()
    kept = as_arrays(state)
    losses = [trainer.step() for _ in range(5)]
    assert_equal_states(state, kept)  # a copy, which training does not touch
    after = trainer.state_dict()
    other.step()
    for loaded, into in ((state, trainer), (kept, other), (kept, trainer)):
        into.load_state_dict(loaded)
        assert_equal_states(into.state_dict(), kept)
        again = [into.step() for _ in range(5)]
        assert_equal_states(again, losses)
        assert_equal_states(into.state_dict(), after)
    assert trainer.is_finite()


class Waits(TorchDispatchMode):
    """Lists operations whose result Python, or the size of a tensor, depends on."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function.overloadpacket)
        if name in ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select"):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def waiting_is_an_error():
    """Let CUDA raise where Python would wait for it."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_waits_for_nothing(trainer):
    """Of 90 steps, the 14th to the 16th are none at which networks are kept or judged."""
    for _ in range(13):
        trainer.step()
    on_cuda = trainer.runtime.device.type == "cuda"
    with Waits() as waits, waiting_is_an_error() if on_cuda else contextlib.nullcontext():
        for _ in range(3):
            trainer.step()
    assert not waits.found


def check_finds_what_is_not_finite(trainer):
    for _ in range(2):
        trainer.step()
    good = trainer.state_dict()
    assert trainer.is_finite()
    for network in good["networks"]:
        for value in (np.nan, np.inf):
            bad = as_arrays(good)
            arrays = bad["networks"][network].values()
            next(a for a in arrays if a.dtype.kind == "f")[...] = value
            trainer.load_state_dict(bad)
            assert not trainer.is_finite(), network
    bad = as_arrays(good)
    next(iter(bad["optimizers"][0][0].values()))[...] = np.inf
    trainer.load_state_dict(bad)
    assert not trainer.is_finite()


def check_rates_can_be_lowered(trainer):
    trainer.step()
    state = trainer.state_dict()
    moves = []
    for factor in (1.0, 0.5, 0.0):
        trainer.load_state_dict(state)
        trainer.rate_factor = factor
        trainer.step()
        after = as_arrays(trainer.state_dict())["networks"]
        before = as_arrays(state)["networks"]
        moved_by = [
            np.abs(after[key][parameter] - before[key][parameter]).max()
            for key, network in before.items()
            for parameter in network
            if "kept" not in key and "running" not in parameter and "num" not in parameter
        ]
        moves.append(max(moved_by))
    assert moves[2] == 0
    assert 0.3 < moves[1] / moves[0] < 0.7
