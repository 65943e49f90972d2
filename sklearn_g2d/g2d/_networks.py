"""Networks of the generator I, the critic C and the detector D, and how to ask for them.

`ConvGenerator` and `ConvNetwork` are what a user passes; they build modules whose tensors have a
leading axis of ensemble members.
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

# Samples of the batch that tells batch norm its statistics.
_CALIBRATION_SAMPLES = 512

Shape = tuple[int, ...]  # of a sample: (n_features,), or (channels, height, width)


@dataclass(eq=False, repr=False)
class ConvGenerator(BaseEstimator):
    """Transposed convolutions with batch norm, ReLU and tanh, the generator of the paper's Fig. 3.

    For `WassersteinGAN` on images in [-1, 1], as `GlobalMinMaxScaler` gives them.

    Parameters
    ----------
    channels : int, default=16
        Channels of the last hidden layer; each layer before has twice as many. The authors have
        256, which wants a GPU.
    deviation : float, default=2.0
        Standard deviation of the untrained network's values before tanh. PyTorch's initial weights
        give the authors' network 1.9 on colour images and 3.3 on grey ones.

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
        return _widened(module, self.deviation)


@dataclass(eq=False, repr=False)
class RowGenerator(BaseEstimator):
    """The generator of the paper's Fig. 3 carried over to rows: batch norm, ReLU and tanh.

    For `WassersteinGAN` on rows in [-1, 1], as `ColumnMinMaxScaler` gives them.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int, default=(128, 64, 32)
        Widths of the hidden layers; the authors' convolutions have 1024, 512 and 256 channels.
    deviation : float, default=2.0
        As of `ConvGenerator`: rows of the untrained network lie all around those of a table.

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
        """Build generators of rows with as many values as a shape has."""
        self._validate_params()
        hidden = tuple(self.hidden_layer_sizes)
        module = RowGeneratorModule(n_members, math.prod(shape), latent_dim, hidden, rng)
        return _widened(module, self.deviation)


@dataclass(eq=False, repr=False)
class ConvNetwork(BaseEstimator):
    """Convolutions of stride 2 with instance norm, critic and detector of the paper's Fig. 3.

    Parameters
    ----------
    channels : int, default=16
        Channels of the first layer; each layer after has twice as many. The authors have 256,
        which wants a GPU.

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
        """Build networks that map images of a shape to `n_outputs` numbers."""
        self._validate_params()
        shape = _image_shape(self, shape)
        return ConvNetworkModule(n_members, shape, self.channels, n_outputs, rng)


class OwnGenerators(OwnNetworks):
    """Generators of the user's."""

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Draw `n` samples from every member: (n_members, n, n_values)."""
        return self(_noise(self.n_members, n, *self.input_shape, rng=rng))


# What parts take for a network.
GENERATOR_CONSTRAINT: list[Any] = [
    *(StrOptions({"perceptron"}), ConvGenerator, RowGenerator, callable)
]
NETWORK_CONSTRAINT: list[Any] = [StrOptions({"perceptron"}), ConvNetwork, callable]


def build_generator(
    part: Any, X: Tensor, latent_dim: int, shape: Shape, bound: float, rng: torch.Generator
) -> Any:
    """Build a part's generators of samples of a shape, around rows X (n, n_features)."""
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
        generator.cover(X, part.spread, rng)
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
    """Build a part's critics (one output) or classifiers (two) of samples of a shape.

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
            f"{type(network).__name__} needs images, but the samples that it is given have shape "
            f"{shape}. Fit on an array (n_samples, channels, height, width) with "
            'features="passthrough" and, for a classifier, n_neighbors=0, which shows it the '
            'images themselves; or use "perceptron" instead of it.'
        )
    return shape


def _noise(*shape: int, rng: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=rng, device=rng.device, dtype=torch.float32)


class PerceptronGenerator(StorableModule):
    """Generators that map Gaussian noise to rows: a perceptron beside a linear skip.

    A freshly initialised perceptron puts its samples next to the mean of the data, where they
    would teach a classifier that the centre is anomalous. The skip connection, set by `cover`,
    starts as a cloud around the data instead; the paper's generator has none.

    Noise vectors are stretched by exp(tail * u**2), u uniform in (0, 1), so that some samples lie
    far outside. Samples are squashed into +-bound as `SquashingScaler` does.
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
        """Draw `n` rows from every member: (n_members, n, n_features)."""
        z = _noise(self.n_members, n, self.latent_dim, rng=rng)
        if self.tail:
            shape = self.n_members, n, 1
            u = torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float32)
            z = z * torch.exp(self.tail * u.square())
        return self(z)

    @torch.no_grad()
    def cover(self, X: Tensor, spread: float, rng: torch.Generator) -> None:
        """Set the skip so that samples surround the rows `X` of shape (n, n_features).

        The cloud of every other member is isotropic, of standard deviation `spread`; the
        others' have `spread` times the data's covariance root, which keeps correlations.
        """
        if self.skip is None:
            return
        even, odd = self.skip[::2], self.skip[1::2]
        rank = min(self.latent_dim, self.n_features)
        if self.latent_dim >= self.n_features:
            even[:, :rank] = spread * torch.eye(rank, device=X.device, dtype=torch.float32)
        else:
            noise = _noise(*even.shape, rng=rng)
            even.copy_(noise * spread / math.sqrt(self.latent_dim))
        covariance = torch.cov(X.T.cpu()).reshape(X.shape[1], X.shape[1])
        variances, axes = torch.linalg.eigh(covariance)  # not there on every device
        roots = (variances.clamp(min=0).sqrt() * axes).T.to(X.device)
        # The largest variances come last, and first should noise be short of dimensions.
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
        """Draw `n` rows from every member: (n_members, n, n_features)."""
        return self(_noise(self.n_members, n, self.latent_dim, rng=rng))


def _widened(generator: Any, deviation: float) -> Any:
    """Give untrained generators values of a standard deviation before their tanh."""
    for member in generator.members:
        # Each value is a sum of `fan in` terms: initial weights, of mean square 1 / (3 fan in),
        # times what batch norm and ReLU give, of mean square 1/2.
        member[-2].weight.data *= deviation * math.sqrt(6)
    return generator


@torch.no_grad()
def calibrated_weights(generator: Any) -> dict[str, NDArray[Any]]:
    """Copy weights, with the statistics of a large batch in the place of running averages.

    These lag behind the weights, and are those of no batch at all before the first step, so that
    samples would come out as one flat grey.
    """
    norms = [m for m in generator.modules() if isinstance(m, _BatchNorm)]
    if not norms:
        return weights_of(generator)
    was_training, momenta = generator.training, [norm.momentum for norm in norms]
    before = [{name: t.clone() for name, t in norm.named_buffers()} for norm in norms]
    generator.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of what it sees
        norm.train()
    # A seed of its own, so that nothing that is drawn later depends on who looks on.
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
    """Count the stride-2 layers: three, as the authors have for 32 x 32, or what fits."""
    if min(size) < 2:
        raise ValueError(
            f"Convolutional networks take images of at least 2 x 2 pixels, got {size[0]} x "
            f"{size[1]}. Use the perceptrons."
        )
    return max(1, min(3, int(math.log2(min(size))) - 1))


class ConvGeneratorModule(StorableModule):
    """Generators that map Gaussian noise to images in [-1, 1], given as rows of pixels.

    Transposed convolutions with batch norm and ReLU, then tanh. The first spans the smallest map,
    an eighth of the image (more of a small one) rounded up; what the last one makes beyond the
    image's size is cut off.
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
        """Draw `n` images from every member: (n_members, n, n_pixels)."""
        return self(_noise(self.n_members, n, self.latent_dim, rng=rng))


class ConvNetworkModule(StorableModule):
    """Critics or classifiers of images, given as rows of pixels.

    Convolutions of stride 2 with affine instance norm and LeakyReLU, then one convolution that
    spans the smallest map.
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
                if max(size) > 3:  # else a map of one pixel is left, which has no variance
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
