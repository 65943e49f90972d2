"""What AVID hides, exchanges and judges: blocks of images, or cells of a table's rows.

`Blocks` and `Cells` have one interface, so that one trainer serves both.
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

# A region counts as anomalous where the exchange changed it by more than the first fraction of
# the mean change, as normal below the second; between them nothing can be said.
_CHANGED, _UNCHANGED = 0.25, 0.03

# A table's columns are divided into groups that are hidden together, several times over.
_GROUPS, _DIVISIONS = 5, 4

# Squares that are pasted into an image to learn which network's map tells more.
_SQUARES = 3


@dataclass(eq=False, repr=False)
class Crops:
    """Crops of a `size`, height and width, from images `X` (n, channels, height, width)."""

    X: Tensor
    size: tuple[int, int]

    def draw(self, n: int, runtime: Runtime) -> Tensor:
        """Draw `n` crops, all at one place."""
        chosen = _integers(len(self.X), n, runtime.rng)
        top, left = (
            _number(length - cut + 1, runtime)
            for length, cut in zip(self.X.shape[2:], self.size, strict=True)
        )
        height, width = self.size
        return self.X[chosen, :, top : top + height, left : left + width]


class Blocks(Crops):
    """Crops of images, of which square blocks are hidden or exchanged; `block_sizes` in regions."""

    def __init__(
        self, X: Tensor, size: tuple[int, int], region_size: int, block_sizes: Sequence[float]
    ) -> None:
        super().__init__(X, size)
        self.blocks = [block_pixels(region_size, factor) for factor in block_sizes]

    def draw_pairs(self, n: int, runtime: Runtime) -> tuple[Tensor, Tensor]:
        """Draw crops, and other images' crops at the same place."""
        both = self.draw(2 * n, runtime)
        return both[:n], both[n:]

    def mask(self, x: Tensor, fraction: float, runtime: Runtime) -> Tensor:
        """Draw blocks of one size on a grid with a random origin."""
        block = self.blocks[_number(len(self.blocks), runtime)]
        height, width = x.shape[2:]
        shape = (len(x), 1, height // block + 2, width // block + 2)
        cells = (_uniform(shape, runtime.rng) < fraction).to(x)
        top, left = _integers(block, 2, runtime.host).tolist()
        pixels = cells.repeat_interleave(block, 2).repeat_interleave(block, 3)
        return pixels[:, :, top : top + height, left : left + width]

    def compare(self, before: Tensor, after: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Judge a region by the squared change in it and around it."""
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
    """Rows of a table, of which single cells are hidden or exchanged.

    A `far_fraction` of the exchanged values are drawn from far around their column instead of from
    it: otherwise the detector would have to guess what to make of values that no row has.
    """

    def __init__(self, X: Tensor, far_fraction: float) -> None:
        super().__init__(X)
        self.far_fraction = far_fraction
        self._low, self._high = X.amin(0), X.amax(0)

    def draw_pairs(self, n: int, runtime: Runtime) -> tuple[Tensor, Tensor]:
        """Draw rows, and for each cell another value of its column, or around it."""
        shape, rng = (n, self.X.shape[1]), runtime.rng
        places = torch.randint(len(self.X), shape, generator=rng, device=rng.device)
        other = self.X.gather(0, places)
        uniform = _uniform((2, *other.shape), rng)
        anywhere = self._low + (self._high - self._low) * (2 * uniform[0] - 0.5)
        return self.draw(n, runtime), torch.where(uniform[1] < self.far_fraction, anywhere, other)

    def mask(self, x: Tensor, fraction: float, runtime: Runtime) -> Tensor:
        """Draw cells; rows differ in how many, `fraction` on average."""
        uniform = _uniform((len(x), x.shape[1] + 1), runtime.rng)
        return (uniform[:, 1:] < 2 * fraction * uniform[:, :1]).to(x)

    def compare(self, before: Tensor, after: Tensor, like: Tensor) -> tuple[Tensor, None]:
        """Compare values."""
        return after != before, None


def block_pixels(region_size: int, factor: float) -> int:
    """Give the side of a block that is so many regions wide."""
    return max(2, round(region_size * factor))


def divide_image(size: tuple[int, int], block: int) -> Tensor:
    """Give masks (4, 1, 1, height, width) that together hide every pixel once.

    Each hides every second block of every second row of blocks, so that something near is seen of
    whatever is hidden.
    """
    rows, columns = (torch.arange(length, device="cpu") // block % 2 for length in size)
    masks = [((rows == i)[:, None] & (columns == j)) for i in (0, 1) for j in (0, 1)]
    return torch.stack(masks).float()[:, None, None]


def paste_squares(
    images: NDArray[Any], size: int, random_state: np.random.RandomState
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Put squares from other places of other images into images (n, channels, height, width).

    Gives these, and where they were changed, 1 or 0: (n, height, width).
    """
    pasted = images.copy()
    n, _, *shape = images.shape
    changed = np.zeros((n, *shape))
    n_places = np.array(shape) - size + 1
    for i in range(n):
        for other in i - random_state.randint(1, max(n, 2), _SQUARES):
            # Not at the same place, as in training: the detector would be judged by its own task.
            source, target = (
                (..., *(slice(start, start + size) for start in random_state.randint(n_places)))
                for _ in range(2)
            )
            pasted[i][target] = images[other][source]
            changed[i][target] = 1
    return pasted, changed


def divide_columns(n_features: int, rng: torch.Generator) -> NDArray[np.bool_]:
    """Give masks (n_masks, n_features) that together hide all columns equally often."""
    orders = torch.stack(
        [torch.randperm(n_features, generator=rng, device=rng.device) for _ in range(_DIVISIONS)]
    )
    groups = torch.arange(min(_GROUPS, n_features), device="cpu")[:, None, None]
    return (orders.cpu() % len(groups) == groups).flatten(0, 1).numpy()


def _integers(high: int, n: int, rng: torch.Generator) -> Tensor:
    return torch.randint(high, (n,), generator=rng, device=rng.device)


def _number(high: int, runtime: Runtime) -> int:
    """Draw a number that Python goes by."""
    (number,) = _integers(high, 1, runtime.host).tolist()
    return number


def _uniform(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float32)
