"""What all trainers share: a step, learning rates, and a state that can be kept."""

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

# Nested dicts and lists of tensors, arrays, numbers and text; read from a file, of arrays instead
# of tensors.
State = dict[str, Any]


class Trainer(ABC):
    """Networks in training, one step at a time; where several processes train, the same in all.

    `networks` are all that steps change, averages of networks included; the optimisers' learning
    rates are the settings'. `n_steps` counts the steps taken, and `rate_factor` multiplies all
    learning rates: it is 1 unless training had to be taken up again.
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
        has_own = any(isinstance(module, OwnModules) for module in self._modules())
        self._randomness: Callable[[], AbstractContextManager[Any]] = (
            partial(globally_seeded, self.runtime.rng) if has_own else nullcontext
        )
        self._optimizers = optimizers
        self._learning_rates = [
            [group["lr"] for group in optimizer.param_groups] for optimizer in optimizers
        ]
        parallel.align(self._weights())

    def step(self) -> Losses:
        """Train one step; returns the losses by name, on the device."""
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
        """Copy all that further steps depend on, but for the data and the settings."""
        return {
            "n_steps": self.n_steps,
            "networks": {name: _copies(net.state_dict()) for name, net in self._networks.items()},
            "optimizers": [
                [_copies(optimizer.state[parameter]) for parameter in _parameters(optimizer)]
                for optimizer in self._optimizers
            ],
            "rng": self.runtime.rng.get_state(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go back, or on, to a state, which may be loaded again afterwards."""
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
        self.runtime.rng.set_state(torch.as_tensor(state["rng"]))

    def is_finite(self) -> bool:
        """Whether there is neither infinity nor NaN in networks and optimisers."""
        tensors = self._weights()
        for optimizer in self._optimizers:
            tensors += [t for moments in optimizer.state.values() for t in moments.values()]
        # A sum is infinite or NaN if any of its terms is. Waits for the device only once.
        sums = [t.sum() for t in tensors if t.is_floating_point()]
        return bool(torch.stack(sums).isfinite().all())

    @abstractmethod
    def _step(self) -> Losses:
        """Train one step."""

    def _schedule(self) -> float:
        """Give the factor of the learning rates in the next step."""
        return 1.0

    def _update(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """Take a step of an optimiser down a loss's gradient."""
        for parameter in _parameters(optimizer):
            parameter.grad = None  # `zero_grad` does no more, and takes a twentieth of small steps
        loss.backward()
        self._follow_gradients(optimizer)

    def _follow_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Take a step of an optimiser down the gradients: the only place where one is taken."""
        gradients = (p.grad for p in _parameters(optimizer) if p.grad is not None)
        parallel.average(chain(gradients, self._batch_statistics()))
        optimizer.step()

    def _batch_statistics(self) -> Iterator[Tensor]:
        """Give what networks keep of the batches that they have seen."""
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
    """Copy a moment of a parameter; fused optimisers ask for its layout in memory."""
    if value.shape != parameter.shape:  # a count of steps
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter).copy_(value)
