"""Networks of the generator, the critic and the classifier, and the classes that ask for them.

A user passes `ConvGenerator`, `RowGenerator` or `ConvNetwork`. These build modules for a whole
ensemble: the first axis of their tensors is that of the members.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sklearn_g2d.training.convolutions import LAYOUT, UNBUILT, initialize
from sklearn_g2d.training.ensemble import (
    EnsembleMLP,
    OwnNetworks,
    StorableModule,
    check_sizes,
    weights_of,
)

# Size of the batch that gives batch norm its statistics.
_CALIBRATION_SAMPLES = 512

# The shape of a sample: (n_features,), or (channels, height, width).
Shape = tuple[int, ...]


@dataclass(eq=False, repr=False)
class ConvGenerator(BaseEstimator):
    """Transposed convolutions with batch norm, ReLU and tanh, the generator of the paper's Fig. 3.

    Use it in a `WassersteinGAN` on images in [-1, 1], with the scaler `GlobalMinMaxScaler`.

    Parameters
    ----------
    channels : int, default=16
        Number of channels of the last hidden layer. Each earlier layer has twice as many as the
        next one. The authors use 256, which needs a GPU.
    deviation : float, default=2.0
        Standard deviation of the untrained network's values before tanh. The authors' network with
        PyTorch's initial weights has 1.9 on colour images and 3.3 on gray ones.

    Examples
    --------
    >>> from sklearn_g2d.g2d import ConvGenerator, WassersteinGAN
    >>> gan = WassersteinGAN(generator_network=ConvGenerator(channels=32))
    """

    channels: int = 16
    deviation: float = 2.0

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "channels": [Interval(Integral, 1, None, closed="left")],
        "deviation": [Interval(Real, 0, None, closed="neither")],
    }

    def build(
        self, n_members: int, latent_dim: int, shape: Shape, rng: torch.Generator
    ) -> ConvGeneratorModule:
        """Build generators of images of a shape (channels, height, width)."""
        self._validate_params()
        shape = _image_shape(self, shape)
        module = ConvGeneratorModule(n_members, shape, latent_dim, self.channels, rng)
        return _scaled(module, self.deviation)


@dataclass(eq=False, repr=False)
class RowGenerator(BaseEstimator):
    """The generator of the paper's Fig. 3 for rows instead of images: batch norm, ReLU and tanh.

    Use it in a `WassersteinGAN` on rows in [-1, 1], with the scaler `ColumnMinMaxScaler`.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int, default=(128, 64, 32)
        Widths of the hidden layers. The authors' convolutions have 1024, 512 and 256 channels.
    deviation : float, default=2.0
        As in `ConvGenerator`. With the default, generated rows of the untrained network lie on all
        sides of the rows of a table.

    Examples
    --------
    >>> from sklearn_g2d.g2d import RowGenerator, WassersteinGAN
    >>> gan = WassersteinGAN(generator_network=RowGenerator((64, 32)))
    """

    hidden_layer_sizes: Sequence[int] = (128, 64, 32)
    deviation: float = 2.0

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "hidden_layer_sizes": [tuple, list],
        "deviation": [Interval(Real, 0, None, closed="neither")],
    }

    def build(
        self, n_members: int, latent_dim: int, shape: Shape, rng: torch.Generator
    ) -> RowGeneratorModule:
        """Build generators of rows, with one value for each element of a sample."""
        self._validate_params()
        hidden = tuple(self.hidden_layer_sizes)
        module = RowGeneratorModule(n_members, math.prod(shape), latent_dim, hidden, rng)
        return _scaled(module, self.deviation)


@dataclass(eq=False, repr=False)
class ConvNetwork(BaseEstimator):
    """Convolutions of stride 2 with instance norm, critic and detector of the paper's Fig. 3.

    Parameters
    ----------
    channels : int, default=16
        Number of channels of the first layer. Each later layer has twice as many as the one before.
        The authors use 256, which needs a GPU.

    Examples
    --------
    >>> from sklearn_g2d.g2d import ConvNetwork, NetworkClassifier
    >>> classifier = NetworkClassifier(network=ConvNetwork(channels=32), n_members=1)
    """

    channels: int = 16

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "channels": [Interval(Integral, 1, None, closed="left")]
    }

    def build(
        self, n_members: int, shape: Shape, n_outputs: int, rng: torch.Generator
    ) -> ConvNetworkModule:
        """Build networks that map images to `n_outputs` numbers."""
        self._validate_params()
        shape = _image_shape(self, shape)
        return ConvNetworkModule(n_members, shape, self.channels, n_outputs, rng)


class OwnGenerators(OwnNetworks):
    """The user's generators."""

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Draw `n` samples from each member: (n_members, n, n_values)."""
        return self(_noise(self.n_members, n, *self.input_shape, rng=rng))


# Values that parts accept as a network.
GENERATOR_CONSTRAINT: list[Any] = [
    *(StrOptions({"perceptron"}), ConvGenerator, RowGenerator, callable)
]
NETWORK_CONSTRAINT: list[Any] = [StrOptions({"perceptron"}), ConvNetwork, callable]


def build_generator(
    part: Any, X: Tensor, latent_dim: int, shape: Shape, bound: float, rng: torch.Generator
) -> Any:
    """Build the generators of a part, around rows X (n, n_features)."""
    network = part.generator_network
    if network == "perceptron":
        generator = PerceptronGenerator(
            n_members=part.n_members,
            n_features=X.shape[1],
            latent_dim=latent_dim,
            hidden=tuple(part.hidden_layer_sizes),
            skip=part.spread > 0,
            tail=part.tail,
            bound=bound,
            rng=rng,
        ).to(X.device)
        generator.surround(X, part.spread, rng)
        return generator
    if isinstance(network, ConvGenerator | RowGenerator):
        return network.build(part.n_members, latent_dim, shape, rng)
    return OwnGenerators(
        factory=network,
        arguments=(latent_dim, shape),
        n_members=part.n_members,
        input_shape=(latent_dim,),
        output_shape=shape,
        rng=rng,
    )


def build_network(
    part: Any, network: Any, shape: Shape, n_outputs: int, rng: torch.Generator
) -> EnsembleMLP | ConvNetworkModule | OwnNetworks:
    """Build the critics (one output) or classifiers (two outputs) of a part.

    They map rows (n_members, n, n_values) to (n_members, n, n_outputs).
    """
    if network == "perceptron":
        sizes = (math.prod(shape), *part.hidden_layer_sizes, n_outputs)
        return EnsembleMLP(part.n_members, sizes, rng)
    if isinstance(network, ConvNetwork):
        return network.build(part.n_members, shape, n_outputs, rng)
    own = OwnNetworks(
        factory=network,
        arguments=(shape, n_outputs),
        n_members=part.n_members,
        input_shape=shape,
        output_shape=(n_outputs,),
        rng=rng,
    )
    return own.to(rng.device)


def _image_shape(network: Any, shape: Shape) -> Shape:
    if len(shape) != 3:
        raise ValueError(
            f"{type(network).__name__} needs images, but its samples have shape {shape}. Fit on an "
            'array (n_samples, channels, height, width) with features="passthrough" and, for a '
            "classifier, with n_neighbors=0, so that it gets the images themselves; or use "
            '"perceptron" instead.'
        )
    return shape


def _noise(*shape: int, rng: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=rng, device=rng.device, dtype=torch.float32)


class PerceptronGenerator(StorableModule):
    """Generators that map Gaussian noise to rows: a perceptron plus a linear skip connection.

    The samples of an untrained perceptron lie close to the mean of the data, and a classifier
    would learn from them that the centre is anomalous. With the skip connection, which `surround`
    sets, the samples start as a cloud around the data. The paper's generator does not have it.

    Noise vectors are multiplied by exp(tail * u**2) with u uniform in (0, 1), so that some samples
    lie far outside. Samples are bounded to +-bound by the function of `SquashingScaler`.
    """

    def __init__(
        self,
        *,
        n_members: int,
        n_features: int,
        latent_dim: int,
        hidden: tuple[int, ...],
        skip: bool,
        tail: float,
        bound: float,
        rng: torch.Generator | None = None,
    ) -> None:
        config = {"hidden": hidden, "skip": skip, "tail": tail, "bound": bound}
        super().__init__(
            n_members=n_members, n_features=n_features, latent_dim=latent_dim, **config
        )
        self.n_members, self.n_features, self.latent_dim = n_members, n_features, latent_dim
        self.tail, self.bound = tail, bound
        self.mlp = EnsembleMLP(n_members, (latent_dim, *hidden, n_features), rng)
        zeros = torch.zeros(n_members, latent_dim, n_features, dtype=torch.float32)
        self.skip = nn.Parameter(zeros) if skip else None

    def forward(self, z: Tensor) -> Tensor:
        """Map noise (n_members, n, latent_dim) to rows (n_members, n, n_features)."""
        x = self.mlp(z)
        if self.skip is not None:
            x = torch.baddbmm(x, z, self.skip)
        return x / torch.hypot(x.new_ones(()), x / self.bound)

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Draw `n` rows from each member: (n_members, n, n_features)."""
        z = _noise(self.n_members, n, self.latent_dim, rng=rng)
        if self.tail:
            shape = self.n_members, n, 1
            u = torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float32)
            z = z * torch.exp(self.tail * u.square())
        return self(z)

    @torch.no_grad()
    def surround(self, X: Tensor, spread: float, rng: torch.Generator) -> None:
        """Set the skip connection so that samples surround the rows `X` of shape (n, n_features).

        Even members make a round cloud with the standard deviation `spread`. Odd members make a
        cloud with `spread` times the root of the data's covariance, which keeps correlations.
        """
        if self.skip is None:
            return
        even, odd = self.skip[::2], self.skip[1::2]
        # With fewer noise values than columns a round cloud needs random directions.
        rank = min(self.latent_dim, self.n_features)
        if self.latent_dim >= self.n_features:
            even[:, :rank] = spread * torch.eye(rank, device=X.device, dtype=torch.float32)
        else:
            noise = _noise(*even.shape, rng=rng)
            even.copy_(noise * spread / math.sqrt(self.latent_dim))
        covariance = torch.cov(X.T.cpu()).reshape(X.shape[1], X.shape[1])
        # The covariance is on the CPU, because some devices have no `eigh`.
        variances, axes = torch.linalg.eigh(covariance)
        roots = (variances.clamp(min=0).sqrt() * axes).T.to(X.device)
        # `eigh` gives the largest variances last. Turn the order, so that they are kept if there
        # are fewer noise values than columns.
        odd[:, :rank] = spread * roots.flip(0)[:rank]


class RowGeneratorModule(StorableModule):
    """Generators that map Gaussian noise to rows in [-1, 1]: batch norm and ReLU, then tanh."""

    def __init__(
        self,
        n_members: int,
        n_features: int,
        latent_dim: int,
        hidden: tuple[int, ...],
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            n_members=n_members, n_features=n_features, latent_dim=latent_dim, hidden=hidden
        )
        check_sizes(hidden)
        self.n_members, self.latent_dim = n_members, latent_dim
        widths = [latent_dim, *hidden]

        def member() -> nn.Sequential:
            layers: list[nn.Module] = []
            for n_in, n_out in zip(widths[:-1], hidden, strict=True):
                layers += [nn.Linear(n_in, n_out, **UNBUILT)]
                layers += [nn.BatchNorm1d(n_out, dtype=torch.float32), nn.ReLU()]
            return nn.Sequential(*layers, nn.Linear(widths[-1], n_features, **UNBUILT), nn.Tanh())

        self.members = nn.ModuleList(member() for _ in range(n_members))
        initialize(self, rng)

    def forward(self, z: Tensor) -> Tensor:
        """Map noise (n_members, n, latent_dim) to rows (n_members, n, n_features)."""
        return torch.stack([member(noise) for member, noise in zip(self.members, z, strict=True)])

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Draw `n` rows from each member: (n_members, n, n_features)."""
        return self(_noise(self.n_members, n, self.latent_dim, rng=rng))


def _scaled(generator: Any, deviation: float) -> Any:
    """Scale untrained generators to a given standard deviation of values before their tanh."""
    for member in generator.members:
        # Each value is a sum of `fan in` products. Initial weights have the mean square
        # 1 / (3 fan in), and outputs of batch norm and ReLU 1 / 2, so that the sum has 1 / 6.
        member[-2].weight.data *= deviation * math.sqrt(6)
    return generator


@torch.no_grad()
def calibrated_weights(generator: Any) -> dict[str, NDArray[Any]]:
    """Copy weights, with the statistics of a large batch instead of running averages.

    Running averages lag behind the weights. Before the first step they come from no batch at all,
    so that samples would be flat gray images.
    """
    norms = [m for m in generator.modules() if isinstance(m, _BatchNorm)]
    if not norms:
        return weights_of(generator)
    was_training, momenta = generator.training, [norm.momentum for norm in norms]
    before = [{name: t.clone() for name, t in norm.named_buffers()} for norm in norms]
    generator.eval()
    for norm in norms:
        norm.reset_running_stats()
        # With None batch norm takes the plain mean of all its batches.
        norm.momentum = None
        norm.train()
    # Use a separate random generator: taking a snapshot must not change later draws of training.
    device = next(generator.parameters()).device
    generator.sample(_CALIBRATION_SAMPLES, torch.Generator(device).manual_seed(0))
    weights = weights_of(generator)
    generator.train(was_training)
    for norm, momentum, buffers in zip(norms, momenta, before, strict=True):
        norm.momentum = momentum
        for name, tensor in norm.named_buffers():
            tensor.copy_(buffers[name])
    return weights


def n_halvings(size: Sequence[int]) -> int:
    """Return the number of layers of stride 2: three, as in the paper, or fewer in small images."""
    if min(size) < 2:
        raise ValueError(
            f"Convolutional networks need images of at least 2 x 2 pixels, got {size[0]} x "
            f'{size[1]}. Use "perceptron" instead.'
        )
    return max(1, min(3, int(math.log2(min(size))) - 1))


class ConvGeneratorModule(StorableModule):
    """Generators that map Gaussian noise to images in [-1, 1], as rows of pixels.

    They consist of transposed convolutions with batch norm and ReLU, and then tanh. The first
    convolution makes the smallest map, with an eighth of the image's sides (more for a small
    image), rounded up. The result may be larger than the image, and is cut to its size.
    """

    def __init__(
        self,
        n_members: int,
        image_shape: Shape,
        latent_dim: int,
        channels: int,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            n_members=n_members, image_shape=image_shape, latent_dim=latent_dim, channels=channels
        )
        self.n_members, self.latent_dim, self.image_shape = n_members, latent_dim, image_shape
        n_colors, *size = image_shape
        n_layers = n_halvings(size)
        smallest = tuple(math.ceil(length / 2**n_layers) for length in size)
        widths = [channels * 2**i for i in reversed(range(n_layers))]

        def member() -> nn.Sequential:
            layers: list[nn.Module] = [_up(latent_dim, widths[0], smallest, stride=1, padding=0)]
            for n_in, n_out in zip(widths, [*widths[1:], n_colors], strict=True):
                layers += [
                    nn.BatchNorm2d(n_in, dtype=torch.float32),
                    nn.ReLU(),
                    _up(n_in, n_out, (4, 4)),
                ]
            return nn.Sequential(*layers, nn.Tanh())

        self.members = nn.ModuleList(member() for _ in range(n_members))
        initialize(self, rng)

    def forward(self, z: Tensor) -> Tensor:
        """Map noise (n_members, n, latent_dim) to rows (n_members, n, n_pixels)."""
        _, height, width = self.image_shape
        pairs = zip(self.members, z, strict=True)
        images = [member(noise[:, :, None, None]) for member, noise in pairs]
        top, left = (images[0].shape[2] - height) // 2, (images[0].shape[3] - width) // 2
        return torch.stack(images)[..., top : top + height, left : left + width].flatten(2)

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Draw `n` images from each member: (n_members, n, n_pixels)."""
        return self(_noise(self.n_members, n, self.latent_dim, rng=rng))


class ConvNetworkModule(StorableModule):
    """Critics or classifiers of images in rows of pixels.

    They consist of convolutions of stride 2 with affine instance norm and LeakyReLU, and then one
    convolution as large as the smallest map.
    """

    def __init__(
        self,
        n_members: int,
        image_shape: Shape,
        channels: int,
        n_outputs: int,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            n_members=n_members, image_shape=image_shape, channels=channels, n_outputs=n_outputs
        )
        self.n_members, self.image_shape = n_members, image_shape
        n_colors, *size = image_shape
        n_layers = n_halvings(size)
        smallest = tuple(length // 2**n_layers for length in size)
        widths = [channels * 2**i for i in range(n_layers)]

        def member() -> nn.Sequential:
            layers: list[nn.Module] = []
            for n_in, n_out in zip([n_colors, *widths[:-1]], widths, strict=True):
                layers += [_down(n_in, n_out)]
                # A smaller image ends as a map of one pixel, which has no variance for the norm.
                if max(size) > 3:
                    layers += [nn.InstanceNorm2d(n_out, affine=True, dtype=torch.float32)]
                layers += [nn.LeakyReLU(0.2)]
            head = nn.Conv2d(widths[-1], n_outputs, smallest, **UNBUILT)
            return nn.Sequential(*layers, head)

        self.members = nn.ModuleList(member() for _ in range(n_members))
        initialize(self, rng)

    def forward(self, x: Tensor) -> Tensor:
        """Map rows (n_members, n, n_pixels) to (n_members, n, n_outputs)."""
        outputs = []
        for member, rows in zip(self.members, x, strict=True):
            images = rows.unflatten(1, self.image_shape).contiguous(memory_format=LAYOUT)
            outputs.append(member(images).flatten(1))
        return torch.stack(outputs)


def _up(n_in: int, n_out: int, kernel: tuple[int, ...], **geometry: Any) -> nn.Module:
    geometry = {"stride": 2, "padding": 1} | geometry
    return nn.ConvTranspose2d(n_in, n_out, kernel, **UNBUILT, **geometry)  # type: ignore[arg-type]


def _down(n_in: int, n_out: int) -> nn.Module:
    return nn.Conv2d(n_in, n_out, 4, stride=2, padding=1, **UNBUILT)
