"""The networks of AVID: inpainters and detectors, for images and for rows of a table.

Users pass `UNet`, `PatchNet` and `CellNetwork` to `AVIDDetector`; they build the modules. An
inpainter maps values, and a mask of the hidden ones, to values of the same shape. A detector maps
values to a logit for each region, high = anomalous.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn

from sklearn_g2d.training.convolutions import LAYOUT, UNBUILT, doubled, folded, initialize
from sklearn_g2d.training.ensemble import EnsembleMLP, OwnModules, StorableModule
from sklearn_g2d.training.runtime import globally_seeded

# Side in pixels of the images that are used to find the stride of a user's own detector.
_PROBE_PIXELS = 64


@dataclass(eq=False, repr=False)
class UNet(BaseEstimator):
    """An inpainter for images: an encoder and a decoder with skip connections [1]_.

    Parameters
    ----------
    channels : int, default=16
        Number of channels at full resolution. The authors of AVID use 64, which needs a GPU.
    multipliers : sequence of float, default=(1, 2, 4, 4)
        Number of channels at full resolution, at half, at a quarter and so on, in units of
        `channels`.
    first_skip : int, default=2
        First level with a skip connection; 0 is full resolution. Fine details of the surroundings
        do not help to guess a hidden block, and with skip connections at full resolution a network
        can copy its input.

    References
    ----------
    .. [1] O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for
       Biomedical Image Segmentation", MICCAI 2015.

    Examples
    --------
    >>> from sklearn_g2d import AVIDDetector
    >>> from sklearn_g2d.avid import UNet
    >>> detector = AVIDDetector(inpainter=UNet(channels=8))
    """

    channels: int = 16
    multipliers: Sequence[float] = (1, 2, 4, 4)
    first_skip: int = 2

    data: ClassVar[tuple[str, ...]] = ("images",)

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "channels": [Interval(Integral, 1, None, closed="left")],
        "multipliers": ["array-like"],
        "first_skip": [Interval(Integral, 0, None, closed="left")],
    }

    def build(self, n_channels: int, rng: torch.Generator) -> UNetModule:
        """Build an inpainter of images with `n_channels` channels."""
        self._validate_params()
        multipliers = check_numbers(self, "multipliers", least=1 / self.channels)
        channels = tuple(round(self.channels * multiplier) for multiplier in multipliers)
        return UNetModule(
            n_channels=n_channels, channels=channels, first_skip=self.first_skip, rng=rng
        )


@dataclass(eq=False, repr=False)
class PatchNet(BaseEstimator):
    """A detector for images: convolutions that judge all regions at once (Fig. 2 of the paper).

    Parameters
    ----------
    channels : int, default=16
        Unit of the numbers of channels in `layers`.
    layers : sequence of (multiplier, kernel, stride)
        For each convolution: the number of channels in units of `channels`, the side of the kernel,
        and the stride. A convolution of 1 x 1, which gives the logit, is added at the end.
    normalize : bool, default=True
        Whether batch norm follows each convolution except the first and the last.
    negative_slope : float, default=0.1
        Slope of the activation below zero.
    region_pixels : tuple of int, default=(12, 20)
        Smallest and largest side of a region in pixels. Images with smaller or larger regions are
        resized for the networks, because each logit depends on a fixed number of pixels.

    Examples
    --------
    >>> from sklearn_g2d import AVIDDetector
    >>> from sklearn_g2d.avid import PatchNet
    >>> detector = AVIDDetector(detector=PatchNet(channels=8))
    """

    channels: int = 16
    layers: Sequence[tuple[float, int, int]] = (
        *((1, 3, 1), (2, 4, 2), (2, 3, 1)),
        *((4, 4, 2), (4, 3, 1), (4, 1, 1)),
    )
    normalize: bool = True
    negative_slope: float = 0.1
    region_pixels: tuple[int, int] = (12, 20)

    data: ClassVar[tuple[str, ...]] = ("images",)

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "channels": [Interval(Integral, 1, None, closed="left")],
        "layers": ["array-like"],
        "normalize": ["boolean"],
        "negative_slope": [Interval(Real, 0, None, closed="left")],
        "region_pixels": ["array-like"],
    }

    def build(self, n_channels: int, rng: torch.Generator) -> PatchNetModule:
        """Build a detector of images with `n_channels` channels."""
        self._validate_params()
        sizes = np.array(self.layers, dtype=float)
        if sizes.ndim != 2 or sizes.shape[1] != 3:
            sizes = np.zeros((1, 3))
        sizes[:, 0] = np.round(self.channels * sizes[:, 0])
        if (sizes < 1).any() or (sizes % 1).any():
            raise ValueError(
                "layers of PatchNet must be a sequence of (multiplier, kernel, stride), each with "
                f"at least one channel, and integer kernel and stride; got {self.layers!r}."
            )
        region_pixels = check_numbers(self, "region_pixels", least=2)
        if len(region_pixels) != 2 or region_pixels[0] > region_pixels[1]:
            raise ValueError(
                "region_pixels of PatchNet must be two numbers, the smaller first; got "
                f"{self.region_pixels!r}."
            )
        return PatchNetModule(
            n_channels=n_channels,
            layers=tuple((int(n_out), int(kernel), int(step)) for n_out, kernel, step in sizes),
            normalize=bool(self.normalize),
            negative_slope=float(self.negative_slope),
            rng=rng,
        )


@dataclass(eq=False, repr=False)
class CellNetwork(BaseEstimator):
    """An inpainter, or a detector, for rows of a table: a multilayer perceptron.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, default=(128, 128)
        Sizes of the hidden layers.

    Examples
    --------
    >>> from sklearn_g2d import AVIDDetector
    >>> from sklearn_g2d.avid import CellNetwork
    >>> detector = AVIDDetector(inpainter=CellNetwork(), detector=CellNetwork((64,)))
    """

    hidden_layer_sizes: Sequence[int] = (128, 128)

    data: ClassVar[tuple[str, ...]] = ("tables",)

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {"hidden_layer_sizes": ["array-like"]}

    def build(
        self, n_features: int, rng: torch.Generator, *, takes_mask: bool = False
    ) -> CellNetworkModule:
        """Build a network for rows of `n_features`: an inpainter if it takes a mask."""
        self._validate_params()
        sizes = check_numbers(self, "hidden_layer_sizes", least=1, kind=Integral, n_least=0)
        return CellNetworkModule(
            n_features=n_features, hidden=tuple(sizes), takes_mask=takes_mask, rng=rng
        )


# The networks of this package, and the valid types of the parameters of `AVIDDetector`.
Network = UNet | PatchNet | CellNetwork
INPAINTER_CONSTRAINT: list[Any] = [UNet, CellNetwork, callable, None]
DETECTOR_CONSTRAINT: list[Any] = [PatchNet, CellNetwork, callable, None]


def check_numbers(
    part: Any, name: str, *, least: float, kind: Any = Real, n_least: int = 1
) -> list[Any]:
    """Return a parameter as a list; raise ValueError for a wrong kind or numbers below `least`."""
    given = getattr(part, name)
    numbers: Any = np.asarray(given, dtype=object).tolist()
    is_list = isinstance(numbers, list) and len(numbers) >= n_least
    if not (is_list and all(isinstance(v, kind) and least <= v < math.inf for v in numbers)):
        what = "integers" if kind is Integral else "numbers"
        raise ValueError(
            f"{name} of {type(part).__name__} must be a sequence of {what} of at least {least:g}, "
            f"got {given!r}."
        )
    return [int(v) if kind is Integral else float(v) for v in numbers]


# The modules. Without a random generator they have no weights until these are loaded.


class _FoldableModule(StorableModule):
    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Files rebuild the layers that `config` asks for, but a folded network has others.
        memo[id(self)] = copied = type(self).__new__(type(self))
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied


class UNetModule(_FoldableModule):
    """The module that `UNet` builds; `channels` are those at each resolution."""

    def __init__(
        self,
        *,
        n_channels: int,
        channels: Sequence[int],
        first_skip: int,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__(n_channels=n_channels, channels=channels, first_skip=first_skip)
        self.first_skip = first_skip
        self.stride = 2 ** (len(channels) - 1)
        levels = list(zip(channels[:-1], channels[1:], strict=True))
        self.first = _convolution(n_channels + 1, channels[0])
        self.encoder = nn.ModuleList(
            nn.Sequential(_convolution(above, below, 4, 2), _convolution(below, below))
            for above, below in levels
        )
        # Channels are reduced before the size is doubled, which costs a quarter of the other order.
        self.reducers = nn.ModuleList(_convolution(below, above) for above, below in levels)
        self.decoder = nn.ModuleList(
            _convolution(above * (1 + (level >= first_skip)), above)
            for level, (above, _) in enumerate(levels)
        )
        self.last = nn.Conv2d(channels[0], n_channels, 1, **UNBUILT)
        initialize(self, rng)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Inpaint `x` (n, C, H, W) where `mask` (n or 1, 1, H, W) is 1; `stride` divides H, W."""
        hidden = mask.expand(x.shape[0], -1, -1, -1)
        h = torch.cat([x * (1 - mask), hidden], dim=1).contiguous(memory_format=LAYOUT)
        h, skips = self.first(h), []
        for down in self.encoder:
            skips.append(h)
            h = down(h)
        for level in reversed(range(len(skips))):
            h = doubled(self.reducers[level](h))
            if level >= self.first_skip:
                h = torch.cat([h, skips[level]], dim=1)
            h = self.decoder[level](h)
        return self.last(h)


class PatchNetModule(_FoldableModule):
    """The module that `PatchNet` builds; `layers` are (channels, kernel, stride)."""

    def __init__(
        self,
        *,
        n_channels: int,
        layers: Sequence[tuple[int, int, int]],
        normalize: bool,
        negative_slope: float,
        rng: torch.Generator | None = None,
    ) -> None:
        config = {"layers": layers, "normalize": normalize, "negative_slope": negative_slope}
        super().__init__(n_channels=n_channels, **config)
        self.stride = math.prod(stride for *_, stride in layers)
        channels = [n_channels, *(n_out for n_out, *_ in layers)]
        blocks = [
            _convolution(n_in, *layer, normalize and i > 0, negative_slope)
            for i, (n_in, layer) in enumerate(zip(channels[:-1], layers, strict=True))
        ]
        self.layers = nn.Sequential(*blocks, nn.Conv2d(channels[-1], 1, 1, **UNBUILT))
        initialize(self, rng)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, C, H, W) to logits (n, 1, H / stride, W / stride)."""
        return self.layers(x.contiguous(memory_format=LAYOUT))


class CellNetworkModule(StorableModule):
    """The module that `CellNetwork` builds: an inpainter if it takes a mask, else a detector."""

    def __init__(
        self,
        *,
        n_features: int,
        hidden: Sequence[int],
        takes_mask: bool,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__(n_features=n_features, hidden=hidden, takes_mask=takes_mask)
        n_inputs = 2 * n_features if takes_mask else n_features
        self.perceptron = EnsembleMLP(1, (n_inputs, *hidden, n_features), rng)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Inpaint `x` (n, d) where `mask` (n or 1, d) is 1; without it, return logits (n, d)."""
        if mask is not None:
            x = torch.cat([x * (1 - mask), mask.expand_as(x)], dim=1)
        return self.perceptron(x[None])[0]


class OwnNetwork(OwnModules):
    """A network that a user's factory builds."""

    @property
    def stride(self) -> int:
        """Return the number that heights and widths of images must be multiples of."""
        stride = getattr(self.members[0], "stride", 1)
        return max(stride) if isinstance(stride, tuple) else int(stride)  # convolutions have tuples

    def forward(self, *inputs: Tensor) -> Tensor:
        """Call the module."""
        return self.members[0](*inputs)


def ready_to_score(network: StorableModule) -> StorableModule:
    """Return a copy with folded batch norms; a user's network is returned unchanged."""
    return network if isinstance(network, OwnNetwork) else folded(network)


def build_network(
    part: Any, n_inputs: int, rng: torch.Generator, *, takes_mask: bool
) -> StorableModule:
    """Build an inpainter if it takes a mask, else a detector; inputs are channels or columns."""
    if isinstance(part, CellNetwork):
        return part.build(n_inputs, rng, takes_mask=takes_mask)
    if isinstance(part, UNet | PatchNet):
        return part.build(n_inputs, rng)
    return OwnNetwork(factory=part, arguments=(n_inputs,), rng=rng)


def common_stride(inpainter: Any, detector: Any, n_channels: int) -> int:
    """Return the common stride of both networks: image sizes must be multiples of it."""
    stride = detector.stride
    if isinstance(detector, OwnNetwork) and not hasattr(detector.members[0], "stride"):
        # Without this attribute, find the stride by the numbers of logits for two sizes of images.
        n_logits, n_more = (
            _run_once(detector, (1, n_channels, side, side)).shape[2]
            for side in (_PROBE_PIXELS, 2 * _PROBE_PIXELS)
        )
        stride = _PROBE_PIXELS // max(1, n_more - n_logits) if n_more > n_logits else 1
    return math.lcm(inpainter.stride, max(1, stride))


def check_networks(inpainter: Any, detector: Any, shape: tuple[int, ...]) -> None:
    """Raise ValueError if a user's network returns a wrong shape for a batch of this shape."""
    if isinstance(inpainter, OwnNetwork):
        found = tuple(_run_once(inpainter, shape, takes_mask=True).shape)
        if found != shape:
            raise ValueError(
                f"The inpainter must return values of the shape of its input, {shape}; got {found}."
            )
    if isinstance(detector, OwnNetwork):
        _run_once(detector, shape)


@torch.no_grad()
def _run_once(network: OwnNetwork, shape: tuple[int, ...], takes_mask: bool = False) -> Tensor:
    """Call a user's network; raise ValueError if a detector's logits have a wrong shape."""
    x = torch.zeros(shape, dtype=torch.float32, device="cpu")
    mask = x[:1, :1] if x.ndim == 4 else x[:1]
    # The user's module may draw from PyTorch's global random generator, which must not change.
    with globally_seeded(torch.Generator(), 0):
        output = network.eval()(x, mask) if takes_mask else network.eval()(x)
    wanted = "(n, 1, height, width)" if x.ndim == 4 else "(n, n_features)"
    expected = (len(x), 1, *output.shape[2:]) if x.ndim == 4 else shape
    if not takes_mask and (output.shape != expected or output.ndim != x.ndim):
        raise ValueError(
            f"The detector must return logits of shape {wanted}; got {tuple(output.shape)} for "
            f"input of shape {shape}."
        )
    return output


def _convolution(
    n_in: int,
    n_out: int,
    kernel: int = 3,
    stride: int = 1,
    normalize: bool = True,
    negative_slope: float = 0.1,
) -> nn.Sequential:
    """Return a convolution; its padding keeps the size, or divides it by the stride, rounded up."""
    padding = (kernel - 1) // 2 if kernel % 2 or stride == 1 else (kernel - stride) // 2
    layers: list[nn.Module] = [
        nn.Conv2d(n_in, n_out, kernel, stride, padding, bias=not normalize, **UNBUILT)
    ]
    if normalize:
        layers.append(nn.BatchNorm2d(n_out, dtype=torch.float32))
    return nn.Sequential(*layers, nn.LeakyReLU(negative_slope, inplace=True))
