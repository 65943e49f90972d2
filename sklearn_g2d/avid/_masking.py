"""Samples for AVID's training, with parts to hide and exchange: blocks of images, or table cells.

`Blocks` and `Cells` have the same interface, so that one trainer works with both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sklearn_g2d.training.runtime import Runtime

# A region is labelled anomalous if the exchange changed it by more than the first fraction of the
# mean change, and normal if by less than the second. In between the label is uncertain, and the
# region has no weight in the loss.
_CHANGED, _UNCHANGED = 0.25, 0.03

# The columns of a table are divided at random into so many groups, each of which is hidden as a
# whole. There are several such divisions, so that a column is guessed from different others.
_GROUPS, _DIVISIONS = 5, 4

# Number of squares that are pasted into an image to find out which network's map is better.
_SQUARES = 3


@dataclass(eq=False, repr=False)
class Crops:
    """Crops from images `X` (n, channels, height, width), with `size` as height and width."""

    X: Tensor
    size: tuple[int, int]

    def draw(self, n: int, runtime: Runtime) -> Tensor:
        """Draw `n` crops from random images, all at the same place."""
        chosen = _integers(len(self.X), n, runtime.rng)
        top, left = (
            _number(length - cut + 1, runtime)
            for length, cut in zip(self.X.shape[2:], self.size, strict=True)
        )
        height, width = self.size
        return self.X[chosen, :, top : top + height, left : left + width]


class Blocks(Crops):
    """Crops of images with square blocks to hide or exchange; `block_sizes` are in regions."""

    def __init__(
        self, X: Tensor, size: tuple[int, int], region_size: int, block_sizes: Sequence[float]
    ) -> None:
        super().__init__(X, size)
        self.blocks = [block_pixels(region_size, factor) for factor in block_sizes]

    def draw_pairs(self, n: int, runtime: Runtime) -> tuple[Tensor, Tensor]:
        """Draw crops, and crops of other images at the same place."""
        both = self.draw(2 * n, runtime)
        return both[:n], both[n:]

    def mask(self, x: Tensor, fraction: float, runtime: Runtime) -> Tensor:
        """Draw a mask of blocks of one size, on a grid with a random origin."""
        block = self.blocks[_number(len(self.blocks), runtime)]
        height, width = x.shape[2:]
        shape = (len(x), 1, height // block + 2, width // block + 2)
        cells = (_uniform(shape, runtime.rng) < fraction).to(x)
        top, left = _integers(block, 2, runtime.host).tolist()
        pixels = cells.repeat_interleave(block, 2).repeat_interleave(block, 3)
        return pixels[:, :, top : top + height, left : left + width]

    def compare(self, before: Tensor, after: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Label regions by the squared change in and around them; also return which are certain."""
        size = (like.shape[2], like.shape[3])
        change = F.adaptive_avg_pool2d((after - before).square().mean(1, keepdim=True), size)
        change = F.avg_pool2d(change, 3, 1, 1)
        mean = change.sum() / (change > 0).sum().clamp(min=1)
        changed = change > _CHANGED * mean
        return changed, changed | (change <= _UNCHANGED * mean)


@dataclass(eq=False, repr=False)
class Rows:
    """Rows `X` (n, n_features) of a table."""

    X: Tensor

    def draw(self, n: int, runtime: Runtime) -> Tensor:
        """Draw `n` rows."""
        return self.X[_integers(len(self.X), n, runtime.rng)]


class Cells(Rows):
    """Rows of a table with single cells to hide or exchange.

    The fraction `far_fraction` of the exchanged values is drawn from a range wider than that of the
    column, so that the detector also learns to judge values that no training row has.
    """

    def __init__(self, X: Tensor, far_fraction: float) -> None:
        super().__init__(X)
        self.far_fraction = far_fraction
        self._low, self._high = X.amin(0), X.amax(0)

    def draw_pairs(self, n: int, runtime: Runtime) -> tuple[Tensor, Tensor]:
        """Draw rows, and for each cell another value from its column, or from a wider range."""
        shape, rng = (n, self.X.shape[1]), runtime.rng
        places = torch.randint(len(self.X), shape, generator=rng, device=rng.device)
        other = self.X.gather(0, places)
        uniform = _uniform((2, *other.shape), rng)
        anywhere = self._low + (self._high - self._low) * (2 * uniform[0] - 0.5)
        return self.draw(n, runtime), torch.where(uniform[1] < self.far_fraction, anywhere, other)

    def mask(self, x: Tensor, fraction: float, runtime: Runtime) -> Tensor:
        """Draw a mask of cells: a different fraction in each row, and `fraction` on average."""
        uniform = _uniform((len(x), x.shape[1] + 1), runtime.rng)
        return (uniform[:, 1:] < 2 * fraction * uniform[:, :1]).to(x)

    def compare(self, before: Tensor, after: Tensor, like: Tensor) -> tuple[Tensor, None]:
        """Label cells with another value; all labels are certain."""
        return after != before, None


def block_pixels(region_size: int, factor: float) -> int:
    """Return the side in pixels of a block that is `factor` times as wide as a region."""
    return max(2, round(region_size * factor))


def divide_image(size: tuple[int, int], block: int) -> Tensor:
    """Return masks (4, 1, 1, height, width) that together hide every pixel once.

    Each mask hides every second block of every second row of blocks, so that the blocks beside a
    hidden block are visible.
    """
    rows, columns = (torch.arange(length, device="cpu") // block % 2 for length in size)
    masks = [((rows == i)[:, None] & (columns == j)) for i in (0, 1) for j in (0, 1)]
    return torch.stack(masks).float()[:, None, None]


def paste_squares(
    images: NDArray[Any], size: int, random_state: np.random.RandomState
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Paste squares of other images into images (n, channels, height, width).

    Return the images, and a mask (n, height, width) that is 1 where they were changed.
    """
    pasted = images.copy()
    n, _, *shape = images.shape
    changed = np.zeros((n, *shape))
    n_places = np.array(shape) - size + 1
    for i in range(n):
        for other in i - random_state.randint(1, max(n, 2), _SQUARES):
            # Paste at another place. In training the places are equal, and a test with the task of
            # its training would favour the detector.
            source, target = (
                (..., *(slice(start, start + size) for start in random_state.randint(n_places)))
                for _ in range(2)
            )
            pasted[i][target] = images[other][source]
            changed[i][target] = 1
    return pasted, changed


def divide_columns(n_features: int, rng: torch.Generator) -> NDArray[np.bool_]:
    """Return masks (n_masks, n_features) that together hide all columns equally often."""
    orders = torch.stack(
        [torch.randperm(n_features, generator=rng, device=rng.device) for _ in range(_DIVISIONS)]
    )
    groups = torch.arange(min(_GROUPS, n_features), device="cpu")[:, None, None]
    return (orders.cpu() % len(groups) == groups).flatten(0, 1).numpy()


def _integers(high: int, n: int, rng: torch.Generator) -> Tensor:
    return torch.randint(high, (n,), generator=rng, device=rng.device)


def _number(high: int, runtime: Runtime) -> int:
    """Draw a number on the CPU, so that Python need not wait for the device."""
    (number,) = _integers(high, 1, runtime.host).tolist()
    return number


def _uniform(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float32)
