"""I and D of AVID: what inpaints regions, and what judges them, for images and for tables.

Both kinds have one interface. I maps what it may see, and the mask of what it may not, to
values of the same shape; D maps values to one logit for each region, high = irregular.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_g2d.training.convolutions import LAYOUT, initialize
from sklearn_g2d.training.ensemble import EnsembleMLP, StorableModule

# (maps, kernel, stride) of every layer of D but the last, in units of its width.
Layers = Sequence[tuple[int, int, int]]


class UNet(StorableModule):
    """I for images: an encoder and a decoder with skips between their halves [1]_.

    Parameters
    ----------
    n_channels : int
        Of the images.
    widths : sequence of int
        Maps at full resolution, at a half, at a quarter, and so on.
    first_skip : int
        Level, counted from full resolution, above which there is no skip: fine detail of the
        surroundings does not help to guess what is hidden, and skips at full
        resolution let a network copy its input.
    rng : torch.Generator, optional
        Source of the initial weights; without it they are left to be loaded.

    References
    ----------
    .. [1] O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for
       Biomedical Image Segmentation", MICCAI 2015.
    """

    def __init__(
        self,
        *,
        n_channels: int,
        widths: Sequence[int],
        first_skip: int,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__(n_channels=n_channels, widths=widths, first_skip=first_skip)
        self.first_skip = first_skip
        self.stride = 2 ** (len(widths) - 1)
        levels = list(zip(widths[:-1], widths[1:], strict=True))
        self.first = _convolution(n_channels + 1, widths[0])
        self.encoder = nn.ModuleList(
            nn.Sequential(_convolution(above, below, 4, 2), _convolution(below, below))
            for above, below in levels
        )
        # Maps become fewer before they become larger, which costs a quarter of the reverse.
        self.reducers = nn.ModuleList(_convolution(below, above) for above, below in levels)
        self.decoder = nn.ModuleList(
            _convolution(above * (1 + (level >= first_skip)), above)
            for level, (above, _) in enumerate(levels)
        )
        self.last = nn.Conv2d(widths[0], n_channels, 1, device="meta")
        initialize(self, rng)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Inpaint `x` (n, C, H, W) where `mask` (n or 1, 1, H, W) is 1.

        Height and width have to be multiples of `stride`.
        """
        hidden = mask.expand(x.shape[0], -1, -1, -1)
        h = torch.cat([x * (1 - mask), hidden], dim=1).contiguous(memory_format=LAYOUT)
        h = self.first(h)
        skips = []
        for down in self.encoder:
            skips.append(h)
            h = down(h)
        for level in reversed(range(len(skips))):
            h = F.interpolate(self.reducers[level](h), scale_factor=2, mode="bilinear")
            if level >= self.first_skip:
                h = torch.cat([h, skips[level]], dim=1)
            h = self.decoder[level](h)
        return self.last(h)


class PatchDetector(StorableModule):
    """D for images: a fully convolutional network that scores every region at once (Fig. 2).

    Parameters
    ----------
    n_channels : int
        Of the images.
    layers : sequence of (maps, kernel, stride)
        All convolutions but the last, which is 1 x 1 and gives the logit.
    normalize : bool
        Whether batch norm follows each convolution but the first and the last.
    negative_slope : float
        Slope of the activation below zero.
    rng : torch.Generator, optional
        Source of the initial weights; without it they are left to be loaded.
    """

    def __init__(
        self,
        *,
        n_channels: int,
        layers: Layers,
        normalize: bool,
        negative_slope: float,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            n_channels=n_channels,
            layers=layers,
            normalize=normalize,
            negative_slope=negative_slope,
        )
        self.stride = 1
        blocks: list[nn.Module] = []
        n_in = n_channels
        for i, (n_out, kernel, stride) in enumerate(layers):
            bn = normalize and i > 0
            blocks.append(_convolution(n_in, n_out, kernel, stride, bn, negative_slope))
            n_in, self.stride = n_out, self.stride * stride
        self.layers = nn.Sequential(*blocks, nn.Conv2d(n_in, 1, 1, device="meta"))
        initialize(self, rng)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, C, H, W) to logits (n, 1, H / stride, W / stride)."""
        return self.layers(x.contiguous(memory_format=LAYOUT))


class CellInpainter(StorableModule):
    """I for rows of a table: a multilayer perceptron that guesses masked cells.

    Parameters
    ----------
    n_features : int
        Length of a row.
    hidden : sequence of int
        Widths of the hidden layers.
    rng : torch.Generator, optional
        Source of the initial weights; without it they are left to be loaded.
    """

    def __init__(
        self, *, n_features: int, hidden: Sequence[int], rng: torch.Generator | None = None
    ) -> None:
        super().__init__(n_features=n_features, hidden=hidden)
        self.perceptron = EnsembleMLP(1, (2 * n_features, *hidden, n_features), rng)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Guess the cells of `x` (n, d) where `mask` (n or 1, d) is 1."""
        seen = torch.cat([x * (1 - mask), mask.expand_as(x)], dim=1)
        return self.perceptron(seen[None])[0]


class CellDetector(StorableModule):
    """D for rows of a table: a multilayer perceptron that gives each cell a logit.

    Parameters
    ----------
    n_features : int
        Length of a row.
    hidden : sequence of int
        Widths of the hidden layers.
    rng : torch.Generator, optional
        Source of the initial weights; without it they are left to be loaded.
    """

    def __init__(
        self, *, n_features: int, hidden: Sequence[int], rng: torch.Generator | None = None
    ) -> None:
        super().__init__(n_features=n_features, hidden=hidden)
        self.perceptron = EnsembleMLP(1, (n_features, *hidden, n_features), rng)

    def forward(self, x: Tensor) -> Tensor:
        """Map rows (n, d) to logits (n, d)."""
        return self.perceptron(x[None])[0]


def _convolution(
    n_in: int,
    n_out: int,
    kernel: int = 3,
    stride: int = 1,
    normalize: bool = True,
    negative_slope: float = 0.1,
) -> nn.Sequential:
    """Convolve with padding that keeps the size, or divides it by the stride, rounded up."""
    padding = (kernel - 1) // 2 if kernel % 2 or stride == 1 else (kernel - stride) // 2
    layers: list[nn.Module] = [
        nn.Conv2d(n_in, n_out, kernel, stride, padding, bias=not normalize, device="meta")
    ]
    if normalize:
        layers.append(nn.BatchNorm2d(n_out))
    return nn.Sequential(*layers, nn.LeakyReLU(negative_slope, inplace=True))
