"""Ensembles of networks that are computed together, by batched matrix products.

Small networks need more time for starting operations than for arithmetic. Therefore eight members
in one call take little more time than one.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_parameter_registration_hook

from sklearn_g2d.training.convolutions import LAYOUT
from sklearn_g2d.training.runtime import globally_seeded
from sklearn_g2d.utils.state import Stored
from sklearn_g2d.utils.surroundings import float32_by_default


class StorableModule(Stored, nn.Module):
    """A module that is pickled as `config`, the constructor's arguments, and NumPy arrays.

    A file holds no tensors, so that a network can be loaded without the device that it was trained
    on, and with other versions of PyTorch.
    """

    # Networks on "meta" take no memory, so that a damaged file cannot ask for too much of it.
    _built_on: ClassVar[str] = "meta"

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = config

    def __reduce__(self) -> tuple[Any, ...]:
        return _new, (type(self),), self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "weights": weights_of(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        with torch.device(self._built_on), _limit_weights(len(state["weights"])):
            type(self).__init__(self, **state["config"])
        load_weights(self, state["weights"])
        self.eval()  # stored networks are for scoring; trainers set the other mode

    def input_gradient(self, x: Tensor) -> Tensor:
        """Return the gradient of the single output at inputs (n_members, n, n_values).

        It has the shape of the inputs, and is differentiable with respect to the weights.
        """
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self(x).float().sum(), x, create_graph=True)[0]


def weights_of(module: nn.Module) -> dict[str, NDArray[Any]]:
    """Return copies of a module's parameters and buffers as NumPy arrays."""
    return {name: value.cpu().numpy().copy() for name, value in module.state_dict().items()}


def load_weights(module: nn.Module, weights: dict[str, NDArray[Any]]) -> None:
    """Replace a module's parameters and buffers by copies of NumPy arrays with their dtype."""
    for name, value in weights.items():
        if not np.isfinite(value).all():
            raise ValueError(f"the weights {name!r} of {type(module).__name__} are not finite")
    state = {name: _laid_out(torch.tensor(value)) for name, value in weights.items()}
    module.load_state_dict(state, assign=True)


def _laid_out(weight: Tensor) -> Tensor:
    """Copy a kernel to the memory layout of images, also with one channel, unlike `contiguous`.

    The order of sums, and with it the last digits, depends on the layout.
    """
    if weight.ndim != 4:
        return weight
    return torch.empty_like(weight, memory_format=LAYOUT).copy_(weight)


@contextmanager
def _limit_weights(n_weights: int) -> Iterator[None]:
    """Raise ValueError if this thread builds a network with many more parameters than that."""
    thread, n_left = threading.get_ident(), 2 * n_weights + 8

    def count(*_: Any) -> None:
        nonlocal n_left
        n_left -= threading.get_ident() == thread
        if n_left < 0:
            raise ValueError(f"the file asks for a network of more than {n_weights} parameters")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _new(module_class: type[StorableModule]) -> StorableModule:
    return module_class.__new__(module_class)


class EnsembleLinear(nn.Module):
    """A linear layer of `n_members` independent networks.

    The initial weights are uniform in +-1/sqrt(in_features). If `rng` is None they are not
    initialised, because they will be loaded.
    """

    def __init__(
        self, n_members: int, in_features: int, out_features: int, rng: torch.Generator | None
    ) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)

        def uniform(*shape: int) -> nn.Parameter:
            if rng is None:
                return nn.Parameter(torch.empty(shape, dtype=torch.float32))
            share = torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float32)
            return nn.Parameter((2 * share - 1) * bound)

        self.weight = uniform(n_members, in_features, out_features)
        self.bias = uniform(n_members, 1, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n_members, n, in_features) to (n_members, n, out_features)."""
        # A module looks for an attribute in three dictionaries. In small steps that takes time, so
        # use the right one directly.
        own = cast(dict[str, Tensor], self._parameters)
        return torch.baddbmm(own["bias"], x, own["weight"])


def check_sizes(hidden: Sequence[int]) -> None:
    """Raise ValueError unless hidden layers have positive sizes."""
    if not all(isinstance(size, Integral) and int(size) > 0 for size in hidden):
        raise ValueError(f"hidden_layer_sizes must be positive integers, got {tuple(hidden)}.")


class EnsembleMLP(StorableModule):
    """An ensemble of `n_members` multilayer perceptrons, with LeakyReLU between their layers.

    `sizes` are the sizes of the input, of each hidden layer, and of the output.
    """

    def __init__(
        self,
        n_members: int,
        sizes: Sequence[int],
        rng: torch.Generator | None = None,
        negative_slope: float = 0.2,
    ) -> None:
        super().__init__(n_members=n_members, sizes=sizes, negative_slope=negative_slope)
        check_sizes(sizes[1:-1])
        self.n_members, self.negative_slope = n_members, negative_slope
        self.layers = nn.ModuleList(
            EnsembleLinear(n_members, n_in, n_out, rng)
            for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n_members, n, sizes[0]) to (n_members, n, sizes[-1])."""
        *hidden, last = cast(Iterable[EnsembleLinear], self.layers)
        for layer in hidden:
            x = F.leaky_relu(layer(x), self.negative_slope)
        return last(x)

    @torch.no_grad()
    def backpropagate_cross_entropy(self, x: Tensor, targets: Tensor) -> Tensor:
        """Set `grad` to the gradients of the members' cross-entropies, and return their mean.

        Samples (n_members, n, sizes[0]) have the probabilities `targets` (n, sizes[-1]). Autograd
        takes three times as long for such small networks.
        """
        *hidden, last = layers = list(cast(Iterable[EnsembleLinear], self.layers))
        inputs = [x]
        for layer in hidden:
            inputs.append(F.leaky_relu(layer(inputs[-1]), self.negative_slope))
        log_probabilities = F.log_softmax(last(inputs[-1]), 2)
        gradient = (log_probabilities.exp() - targets) / len(targets)
        for depth, (layer, values) in reversed(list(enumerate(zip(layers, inputs, strict=True)))):
            layer.bias.grad = gradient.sum(1, keepdim=True)
            layer.weight.grad = torch.bmm(values.mT, gradient)
            if depth:
                gradient = torch.ops.aten.leaky_relu_backward(
                    torch.bmm(gradient, layer.weight.mT), values, self.negative_slope, True
                )
        return -(log_probabilities * targets).sum() / (self.n_members * len(targets))

    def input_gradient(self, x: Tensor) -> Tensor:
        """Return the same in half of the time that autograd needs to differentiate twice.

        The derivative of LeakyReLU is constant almost everywhere. Therefore the gradient is a
        product of masked weight matrices.
        """
        *hidden, last = cast(Iterable[EnsembleLinear], self.layers)
        slopes = []
        with torch.no_grad():
            for layer in hidden:
                x = layer(x)
                slopes.append(torch.where(x > 0, torch.ones_like(x), self.negative_slope))
                x = x * slopes[-1]
        gradient = last.weight.mT.expand(-1, x.shape[1], -1)
        for layer, slope in zip(reversed(hidden), reversed(slopes), strict=True):
            gradient = torch.bmm(gradient * slope, layer.weight.mT)
        return gradient


class OwnModules(StorableModule):
    """The user's modules: `n_members` of them, which a factory returns for `arguments`.

    They draw from PyTorch's global random generator. It is seeded for them (with `seed`, or from
    `rng`), here and by `Trainer`, and then restored.
    """

    # A loaded network is built again from the same seed, and not on "meta": modules may hold values
    # that are neither parameters nor buffers.
    _built_on: ClassVar[str] = "cpu"

    def __init__(
        self,
        *,
        factory: Callable[..., nn.Module],
        arguments: tuple[Any, ...],
        n_members: int = 1,
        rng: torch.Generator | None = None,
        seed: int | None = None,
        **config: Any,
    ) -> None:
        if isinstance(factory, nn.Module):
            raise TypeError(
                "A network must be a callable that builds a torch.nn.Module, because each fit "
                f"needs a new one; got the module {type(factory).__name__}(...)."
            )
        seeded = globally_seeded(rng or torch.Generator(), seed)
        with seeded as seed, torch.device("cpu"), float32_by_default():
            members = [factory(*arguments) for _ in range(n_members)]
        super().__init__(
            factory=factory, arguments=arguments, n_members=n_members, seed=seed, **config
        )
        for member in members:
            if not isinstance(member, nn.Module):
                raise TypeError(
                    f"A factory of networks must return a torch.nn.Module, got {member!r}."
                )
        self.n_members = n_members
        self.members = nn.ModuleList(members)
        for parameter in self.parameters():
            parameter.data = _laid_out(parameter.data)  # the same layout as after loading


class OwnNetworks(OwnModules):
    """The user's networks, from samples ``(n, *input_shape)`` to ``(n, *output_shape)``."""

    def __init__(
        self, *, input_shape: tuple[int, ...], output_shape: tuple[int, ...], **own: Any
    ) -> None:
        super().__init__(input_shape=input_shape, output_shape=output_shape, **own)
        self.input_shape, self.output_shape = input_shape, output_shape

    def forward(self, x: Tensor) -> Tensor:
        """Map rows (n_members, n, n_values) to rows (n_members, n, n_outputs)."""
        outputs = []
        for member, rows in zip(self.members, x, strict=True):
            output = member(rows.unflatten(1, self.input_shape))
            if output.shape != (len(rows), *self.output_shape):
                raise ValueError(
                    f"The network {type(member).__name__} returned shape {tuple(output.shape)} for "
                    f"{len(rows)} samples; it must return ({len(rows)}, "
                    f"{', '.join(map(str, self.output_shape))})."
                )
            outputs.append(output.flatten(1))
        return torch.stack(outputs)
