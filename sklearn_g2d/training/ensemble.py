"""Ensembles whose members run as one batched matrix product.

Small networks are bound by the cost of launching operations, not by arithmetic, so that
eight members in one call cost little more than one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_g2d.training.convolutions import LAYOUT


class StorableModule(nn.Module):
    """A module that pickles as its constructor's arguments and numpy arrays.

    Such a file holds no tensor, so that a network trained on one device loads on any,
    with whatever version of PyTorch is there.

    Parameters
    ----------
    **config
        Arguments from which the constructor builds the same architecture again.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = config

    def __reduce__(self) -> tuple[Any, ...]:
        return _new, (type(self),), self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "weights": weights_of(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        with torch.device("meta"):  # whatever sizes a file asks for, they take no memory
            type(self).__init__(self, **state["config"])
        load_weights(self, state["weights"])
        self.eval()  # what is stored is there to be used; trainers know another mode


def weights_of(module: nn.Module) -> dict[str, NDArray[Any]]:
    """Copy a module's parameters to numpy."""
    return {name: value.cpu().numpy().copy() for name, value in module.state_dict().items()}


def load_weights(module: nn.Module, weights: dict[str, NDArray[Any]]) -> None:
    """Put copies of numpy arrays in place of a module's parameters, keeping their dtype."""
    state = {name: torch.tensor(value) for name, value in weights.items()}
    # The layout of a kernel decides on the order of sums, and so on the last digits; even that of
    # a single channel, whose strides `contiguous` would leave as they are.
    state = {
        name: torch.empty_like(value, memory_format=LAYOUT).copy_(value)
        if value.ndim == 4
        else value
        for name, value in state.items()
    }
    module.load_state_dict(state, assign=True)


def _new(module_class: type[StorableModule]) -> StorableModule:
    return module_class.__new__(module_class)


class EnsembleLinear(nn.Module):
    """Affine maps of `n_members` independent networks.

    Parameters
    ----------
    n_members, in_features, out_features : int
        Sizes.
    rng : torch.Generator or None
        Source of the initial weights, uniform in +-1/sqrt(in_features); None leaves them
        to be loaded.
    """

    def __init__(
        self, n_members: int, in_features: int, out_features: int, rng: torch.Generator | None
    ) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)

        def uniform(*shape: int) -> nn.Parameter:
            if rng is None:
                return nn.Parameter(torch.empty(shape))
            share = torch.rand(shape, generator=rng, device=rng.device)
            return nn.Parameter((2 * share - 1) * bound)

        self.weight = uniform(n_members, in_features, out_features)
        self.bias = uniform(n_members, 1, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n_members, n, in_features) to (n_members, n, out_features)."""
        # At once: a module looks for an attribute in three places, which takes time in small steps.
        own = cast(dict[str, Tensor], self._parameters)
        return torch.baddbmm(own["bias"], x, own["weight"])


class EnsembleMLP(StorableModule):
    """Multilayer perceptrons with LeakyReLU between their layers.

    Parameters
    ----------
    n_members : int
        Number of independent networks.
    sizes : sequence of int
        Width of the input, of every hidden layer, and of the output.
    rng : torch.Generator, optional
        Source of the initial weights; without it they are left to be loaded.
    negative_slope : float, default=0.2
        Slope of the activation below zero.
    """

    def __init__(
        self,
        n_members: int,
        sizes: Sequence[int],
        rng: torch.Generator | None = None,
        negative_slope: float = 0.2,
    ) -> None:
        super().__init__(n_members=n_members, sizes=sizes, negative_slope=negative_slope)
        self.n_members = n_members
        self.negative_slope = negative_slope
        self.layers = nn.ModuleList(
            EnsembleLinear(n_members, n_in, n_out, rng)
            for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n_members, n, sizes[0]) to (n_members, n, sizes[-1])."""
        hidden, last = self._split_layers()
        for layer in hidden:
            x = F.leaky_relu(layer(x), self.negative_slope)
        return last(x)

    def input_gradient(self, x: Tensor) -> Tensor:
        """Gradient of a single output with respect to the input, as a function of weights.

        LeakyReLU's derivative is constant almost everywhere, so that the gradient is a
        product of the weight matrices, masked: half the cost of differentiating twice.

        Parameters
        ----------
        x : Tensor of shape (n_members, n, sizes[0])
            Where to take it.

        Returns
        -------
        Tensor of shape (n_members, n, sizes[0])
            Differentiable with respect to the weights.
        """
        hidden, last = self._split_layers()
        slopes = []
        with torch.no_grad():
            for layer in hidden:
                x = layer(x)
                slopes.append(torch.where(x > 0, 1.0, self.negative_slope))
                x = x * slopes[-1]
        gradient = last.weight.mT.expand(-1, x.shape[1], -1)
        for layer, slope in zip(reversed(hidden), reversed(slopes), strict=True):
            gradient = torch.bmm(gradient * slope, layer.weight.mT)
        return gradient

    def _split_layers(self) -> tuple[list[EnsembleLinear], EnsembleLinear]:
        *hidden, last = cast(Iterable[EnsembleLinear], self.layers)
        return hidden, last
