"""What AVID hides, exchanges and judges: blocks of an image, or cells of a table's row.

Both kinds have one interface, so that one trainer serves both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

# Sizes of the blocks that training hides, in regions; scoring hides the smallest.
BLOCK_SIZES = (0.5, 0.7, 1.0)

# A region counts as irregular where the exchange changed it by more than the first share of
# the mean change, as regular below the second; between them nothing can be said.
_CHANGED, _UNCHANGED = 0.25, 0.03


# A table's columns are divided into groups that are hidden together, several times over.
_GROUPS, _DIVISIONS = 5, 4


# Least and largest values, by column.
Range = tuple[Tensor, Tensor] | None


class Regions(Protocol):
    """How one kind of data is cut up."""

    def draw(self, X: Tensor, n: int, rng: torch.Generator) -> Tensor:
        """Draw `n` samples, or crops of them at one place."""

    def range_of(self, X: Tensor) -> Range:
        """Find the least and the largest values, if `draw_pairs` has to know them."""

    def draw_pairs(
        self, X: Tensor, n: int, known: Range, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw `n` samples and, for each, values to be found at the same places elsewhere."""

    def mask(self, x: Tensor, share: float, rng: torch.Generator) -> Tensor:
        """Draw the places to hide or exchange, 1 there."""

    def partition(self, x: Tensor) -> list[Tensor]:
        """Give masks that together hide all places equally often."""

    def compare(self, before: Tensor, after: Tensor, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tell where, in the shape `like`, there is change, and where that is certain.

        Both are bool; None instead of the latter says that it is so everywhere.
        """


@dataclass(frozen=True)
class ImageRegions:
    """Square blocks of images.

    Attributes
    ----------
    size : int
        Height and width of a region, in pixels.
    crop : tuple of int
        Height and width of what training looks at.
    """

    size: int
    crop: tuple[int, int]

    def draw(self, X: Tensor, n: int, rng: torch.Generator) -> Tensor:
        """Draw `n` crops at one place."""
        chosen = _integers(len(X), n, rng)
        top, left = (
            int(_integers(length - cut + 1, 1, rng))
            for length, cut in zip(X.shape[2:], self.crop, strict=True)
        )
        return X[chosen.to(X.device), :, top : top + self.crop[0], left : left + self.crop[1]]

    def range_of(self, X: Tensor) -> Range:
        """Images are not asked."""
        return None

    def draw_pairs(
        self, X: Tensor, n: int, known: Range, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw crops, and other images' crops at the same place."""
        both = self.draw(X, 2 * n, rng)
        return both[:n], both[n:]

    def mask(self, x: Tensor, share: float, rng: torch.Generator) -> Tensor:
        """Draw blocks of one size on a grid with a random origin."""
        factor = BLOCK_SIZES[int(_integers(len(BLOCK_SIZES), 1, rng))]
        block = self._block(factor)
        height, width = x.shape[2:]
        shape = (len(x), 1, height // block + 2, width // block + 2)
        cells = (torch.rand(shape, generator=rng, device=rng.device) < share).to(x)
        top, left = _integers(block, 2, rng).tolist()
        pixels = cells.repeat_interleave(block, 2).repeat_interleave(block, 3)
        return pixels[:, :, top : top + height, left : left + width]

    def partition(self, x: Tensor) -> list[Tensor]:
        """Divide by four: every second block of every second row of blocks."""
        block = self._block(min(BLOCK_SIZES))
        rows, columns = (
            torch.arange(length, device=x.device) // block % 2 for length in x.shape[2:]
        )
        return [
            ((rows == i)[:, None] & (columns == j)).to(x)[None, None]
            for i in (0, 1)
            for j in (0, 1)
        ]

    def compare(self, before: Tensor, after: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Judge a region by the squared change in it and around it."""
        size = (like.shape[2], like.shape[3])
        change = F.adaptive_avg_pool2d((after - before).square().mean(1, keepdim=True), size)
        change = F.avg_pool2d(change, 3, 1, 1)
        mean = change.sum() / (change > 0).sum().clamp(min=1)
        changed = change > _CHANGED * mean
        return changed, changed | (change <= _UNCHANGED * mean)

    def _block(self, factor: float) -> int:
        return max(2, round(self.size * factor))


@dataclass(frozen=True)
class TableRegions:
    """Single cells of rows.

    Attributes
    ----------
    groups : ndarray of shape (n_groups, n_features), bool
        Masks that together hide all cells equally often.
    """

    groups: NDArray[np.bool_]

    @classmethod
    def create(cls, n_features: int, rng: torch.Generator) -> TableRegions:
        """Divide the columns at random, several times over."""
        orders = torch.stack(
            [
                torch.randperm(n_features, generator=rng, device=rng.device)
                for _ in range(_DIVISIONS)
            ]
        )
        groups = torch.arange(min(_GROUPS, n_features))[:, None, None]
        return cls((orders.cpu() % len(groups) == groups).flatten(0, 1).numpy())

    def draw(self, X: Tensor, n: int, rng: torch.Generator) -> Tensor:
        """Draw `n` rows."""
        return X[_integers(len(X), n, rng).to(X.device)]

    def range_of(self, X: Tensor) -> Range:
        """Find those of every column."""
        return X.amin(0), X.amax(0)

    def draw_pairs(
        self, X: Tensor, n: int, known: Range, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw rows, and for each cell another value of its column.

        One value in four is drawn from far around the column instead, or D would have to
        guess what to make of values that no row has.
        """
        places = torch.randint(len(X), (n, X.shape[1]), generator=rng, device=rng.device).to(
            X.device
        )
        other = X.gather(0, places)
        uniform = torch.rand((2, *other.shape), generator=rng, device=rng.device).to(X)
        assert known is not None
        low, high = known
        anywhere = low + (high - low) * (2 * uniform[0] - 0.5)
        return self.draw(X, n, rng), torch.where(uniform[1] < 0.25, anywhere, other)

    def mask(self, x: Tensor, share: float, rng: torch.Generator) -> Tensor:
        """Draw cells; rows differ in how many, `share` on average."""
        uniform = torch.rand((len(x), x.shape[1] + 1), generator=rng, device=rng.device).to(x)
        return (uniform[:, 1:] < 2 * share * uniform[:, :1]).to(x)

    def partition(self, x: Tensor) -> list[Tensor]:
        """Divide the columns at random, the same way for all rows."""
        return [torch.from_numpy(group)[None].to(x) for group in self.groups]

    def compare(self, before: Tensor, after: Tensor, like: Tensor) -> tuple[Tensor, None]:
        """Compare values."""
        return after != before, None


def _integers(high: int, n: int, rng: torch.Generator) -> Tensor:
    return torch.randint(high, (n,), generator=rng, device=rng.device)
