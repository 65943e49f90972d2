"""The base class of trainers: steps, learning rates, and a state that can be kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_g2d.training import parallel
from sklearn_g2d.training.ensemble import OwnModules
from sklearn_g2d.training.runtime import Runtime, globally_seeded

Losses = dict[str, Tensor]

# Nested dicts and lists of tensors, arrays, numbers and text. A state that was read from a file has
# arrays instead of tensors.
State = dict[str, Any]


class Trainer(ABC):
    """Trains networks step by step; if several processes train, they are the same in all.

    `networks` are all networks that change in a step, including averages of networks. The
    optimisers start with the learning rates of the settings. `n_steps` is the number of steps
    taken. `rate_factor` is a factor of all learning rates: it is 1 unless there were retries.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        runtime: Runtime,
    ) -> None:
        self.runtime = runtime.of_process()
        self.n_steps = 0
        self.rate_factor = 1.0
        self._networks = networks
        # Only the user's modules draw from PyTorch's global generators. Seeding these takes time,
        # so do it only for such modules.
        has_own = any(isinstance(module, OwnModules) for module in self._modules())
        self._randomness: Callable[[], AbstractContextManager[Any]] = (
            partial(globally_seeded, self.runtime.host, device=self.runtime.device)
            if has_own
            else nullcontext
        )
        self._optimizers = optimizers
        self._learning_rates = [
            [group["lr"] for group in optimizer.param_groups] for optimizer in optimizers
        ]
        parallel.copy_from_first(self._weights())

    def step(self) -> Losses:
        """Train one step, and return the losses by name, on the device."""
        factor = self.rate_factor * self._schedule()
        for optimizer, rates in zip(self._optimizers, self._learning_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        with self._randomness():
            losses = self._step()
        parallel.average(losses.values())
        self.n_steps += 1
        return losses

    def state_dict(self) -> State:
        """Copy everything that further steps depend on, except the data and the settings."""
        return {
            "n_steps": self.n_steps,
            "networks": {name: _copies(net.state_dict()) for name, net in self._networks.items()},
            "optimizers": [
                [_copies(optimizer.state[parameter]) for parameter in _parameters(optimizer)]
                for optimizer in self._optimizers
            ],
            "rngs": [rng.get_state() for rng in (self.runtime.rng, self.runtime.host)],
        }

    def load_state_dict(self, state: State) -> None:
        """Load an earlier or a later state, which may be loaded again afterwards."""
        self.n_steps = state["n_steps"]
        for name, network in self._networks.items():
            tensors = state["networks"][name].items()
            network.load_state_dict({key: torch.as_tensor(value) for key, value in tensors})
        for optimizer, moments in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.state.clear()
            for parameter, values in zip(_parameters(optimizer), moments, strict=True):
                if values:
                    optimizer.state[parameter] = {
                        name: _laid_out_like(parameter, torch.as_tensor(value))
                        for name, value in values.items()
                    }
        for rng, at in zip((self.runtime.rng, self.runtime.host), state["rngs"], strict=True):
            rng.set_state(torch.as_tensor(at))

    def is_finite(self) -> bool:
        """Return whether networks and optimisers hold neither infinity nor NaN."""
        tensors = self._weights()
        for optimizer in self._optimizers:
            tensors += [t for moments in optimizer.state.values() for t in moments.values()]
        # A sum is infinite or NaN if one of its terms is. Collect the sums first, so that Python
        # waits for the device only once.
        sums = [t.sum() for t in tensors if t.is_floating_point()]
        return bool(torch.stack(sums).isfinite().all())

    @abstractmethod
    def _step(self) -> Losses:
        """Train one step."""

    def _schedule(self) -> float:
        """Return the factor of the learning rates in the next step."""
        return 1.0

    def _update(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """Compute the gradients of a loss, and take an optimiser's step."""
        for parameter in _parameters(optimizer):
            parameter.grad = None  # `zero_grad` does the same, but is slower in small steps
        loss.backward()
        self._follow_gradients(optimizer)

    def _follow_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Average the gradients over processes, and take an optimiser's step."""
        gradients = (p.grad for p in _parameters(optimizer) if p.grad is not None)
        parallel.average(chain(gradients, self._batch_statistics()))
        optimizer.step()

    def _batch_statistics(self) -> Iterator[Tensor]:
        """Yield the running statistics of batch norms."""
        for module in self._modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                yield from (s for s in (module.running_mean, module.running_var) if s is not None)

    def _modules(self) -> Iterator[nn.Module]:
        return chain.from_iterable(network.modules() for network in self._networks.values())

    def _weights(self) -> list[Tensor]:
        return [t for network in self._networks.values() for t in network.state_dict().values()]


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Copy an optimiser's moment to the memory layout of its parameter, which fused steps need."""
    if value.shape != parameter.shape:  # it is a number of steps
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter).copy_(value)
