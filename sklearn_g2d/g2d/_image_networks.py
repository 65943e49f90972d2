"""I, C and D of the G2D paper for images (Fig. 3): a DCGAN's halves, stored by rows of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_g2d.training.convolutions import LAYOUT, initialize
from sklearn_g2d.training.ensemble import StorableModule


def n_halvings(size: Sequence[int]) -> int:
    """Count the stride-2 layers: three, as the authors have for 32 x 32, or what fits.

    Raises
    ------
    ValueError
        If an image is narrower than 2 pixels.
    """
    if min(size) < 2:
        raise ValueError(
            f"Convolutional networks take images of at least 2 x 2 pixels, got {size[0]} x "
            f'{size[1]}. Take recipe="default" with features="raw".'
        )
    return max(1, min(3, int(math.log2(min(size))) - 1))


class ConvGenerator(StorableModule):
    """Generators that map Gaussian noise to images in [-1, 1], given as rows of pixels.

    Transposed convolutions with batch norm and ReLU, then tanh. The first spans the
    smallest map, an eighth of the image (more of a small one) rounded up; what the last one
    makes beyond the image's size is cut off.

    Parameters
    ----------
    n_members : int
        Number of independent generators.
    image_shape : tuple of int
        Channels, height, width.
    latent_dim : int
        Length of the noise vector.
    width : int
        Maps of the last hidden layer; each layer before has twice as many. 256 in the
        authors' code.
    rng : torch.Generator, optional
        Source of the initial weights; without it they are left to be loaded.
    """

    def __init__(
        self,
        *,
        n_members: int,
        image_shape: tuple[int, int, int],
        latent_dim: int,
        width: int,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            n_members=n_members, image_shape=image_shape, latent_dim=latent_dim, width=width
        )
        self.n_members, self.latent_dim, self.image_shape = n_members, latent_dim, image_shape
        channels, *size = image_shape
        n_layers = n_halvings(size)
        smallest = tuple(math.ceil(length / 2**n_layers) for length in size)
        widths = [width * 2**i for i in reversed(range(n_layers))]

        def member() -> nn.Sequential:
            layers: list[nn.Module] = [_up(latent_dim, widths[0], smallest, stride=1, padding=0)]
            for n_in, n_out in zip(widths, [*widths[1:], channels], strict=True):
                layers += [nn.BatchNorm2d(n_in), nn.ReLU(), _up(n_in, n_out, (4, 4))]
            return nn.Sequential(*layers, nn.Tanh())

        self.members = nn.ModuleList(member() for _ in range(n_members))
        initialize(self, rng)

    def forward(self, z: Tensor) -> Tensor:
        """Map noise (n_members, n, latent_dim) to rows (n_members, n, n_pixels)."""
        _, height, width = self.image_shape
        images = [
            member(noise[:, :, None, None]) for member, noise in zip(self.members, z, strict=True)
        ]
        top, left = (images[0].shape[2] - height) // 2, (images[0].shape[3] - width) // 2
        cut = torch.stack(images)[..., top : top + height, left : left + width]
        return cut.flatten(2)

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Draw `n` images from every member: (n_members, n, n_pixels)."""
        shape = (self.n_members, n, self.latent_dim)
        return self(torch.randn(shape, generator=rng, device=rng.device))


class ConvNetwork(StorableModule):
    """Critics or classifiers of images, given as rows of pixels.

    Convolutions of stride 2 with LeakyReLU, all but the first with affine instance norm,
    then one convolution that spans the smallest map.

    Parameters
    ----------
    n_members : int
        Number of independent networks.
    image_shape : tuple of int
        Channels, height, width.
    width : int
        Maps of the first layer; each layer after has twice as many. 256 in the authors'
        code.
    n_outputs : int
        1 for a critic, 2 for a classifier.
    rng : torch.Generator, optional
        Source of the initial weights; without it they are left to be loaded.
    """

    def __init__(
        self,
        *,
        n_members: int,
        image_shape: tuple[int, int, int],
        width: int,
        n_outputs: int,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            n_members=n_members, image_shape=image_shape, width=width, n_outputs=n_outputs
        )
        self.n_members, self.image_shape = n_members, image_shape
        channels, *size = image_shape
        n_layers = n_halvings(size)
        smallest = tuple(length // 2**n_layers for length in size)
        widths = [width * 2**i for i in range(n_layers)]

        def member() -> nn.Sequential:
            layers: list[nn.Module] = [_down(channels, width), nn.LeakyReLU(0.2)]
            for n_in, n_out in zip(widths[:-1], widths[1:], strict=True):
                layers += [_down(n_in, n_out), nn.InstanceNorm2d(n_out, affine=True)]
                layers += [nn.LeakyReLU(0.2)]
            head = nn.Conv2d(widths[-1], n_outputs, smallest, device="meta")
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

    def input_gradient(self, x: Tensor) -> Tensor:
        """Gradient of a single output with respect to the input, as a function of weights.

        Parameters
        ----------
        x : Tensor of shape (n_members, n, n_pixels)
            Where to take it.

        Returns
        -------
        Tensor of shape (n_members, n, n_pixels)
            Differentiable with respect to the weights.
        """
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self(x).float().sum(), x, create_graph=True)[0]


def _up(n_in: int, n_out: int, kernel: tuple[int, ...], **geometry: Any) -> nn.Module:
    geometry = {"stride": 2, "padding": 1} | geometry
    return nn.ConvTranspose2d(n_in, n_out, kernel, device="meta", **geometry)  # type: ignore[arg-type]


def _down(n_in: int, n_out: int) -> nn.Module:
    return nn.Conv2d(n_in, n_out, 4, stride=2, padding=1, device="meta")
