"""The default generator of outliers: a random cloud around the data, without a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions

from sklearn_g2d.g2d._generators import Space
from sklearn_g2d.training.session import Session
from sklearn_g2d.utils.arrays import Floats

# This fraction of the points should lie as close to normal rows as normal rows do. With fewer the
# cloud is too far away for the classifier to learn from; with more it cannot be told from normal
# rows.
_FRACTION_INSIDE = 0.1
# The spread is found by bisection: its limits, the number of steps, and the number of points.
_SPREADS, _BISECTIONS, _N_DRAWN = (0.7, 2.0), 6, 300


@dataclass(eq=False, repr=False)
class GaussianCloud(BaseEstimator):
    """Outliers from a Gaussian cloud around the normal rows that is wider than these rows.

    One half of the points has the same standard deviation in each direction. The other half has the
    covariance of the normal rows, which keeps correlations. The cloud replaces the half-trained
    generators of the paper, because training them improved no benchmark.

    Parameters
    ----------
    spread : "auto" or float, default="auto"
        Standard deviation of the cloud in units of that of the normal rows. "auto" finds a value
        between .7 and 2 for each half: a tenth of the points then lies as close to normal rows as
        normal rows do.
    tail : float, default=1.6
        Each point is moved outwards by the factor ``exp(tail * u**2)`` with u uniform in (0, 1), so
        that some points lie far outside. 0 gives a plain Gaussian cloud.

    Attributes
    ----------
    spread_ : tuple of two floats
        Spread of the round half, and of the half with the covariance of the normal rows.
    center_ : ndarray of shape (n_features,)
        Mean of the normal rows.
    root_ : ndarray of shape (n_directions, n_features)
        Root of the covariance of the normal rows: ``root_.T @ root_`` is the covariance.
    scale_ : float
        Root of the mean variance of the normal rows.
    bound_ : float
        Largest magnitude of a coordinate.

    Examples
    --------
    >>> from sklearn_g2d import G2DOutlierDetector
    >>> from sklearn_g2d.g2d import GaussianCloud
    >>> detector = G2DOutlierDetector(generator=GaussianCloud(spread=3.0))
    """

    spread: float | Literal["auto"] = "auto"
    tail: float = 1.6

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "spread": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "tail": [Interval(Real, 0, None, closed="left")],
    }

    def fit_in(self, points: Floats, session: Session, space: Space) -> None:
        """Learn centre, covariance and spread from normal points (n_samples, n_features)."""
        self._validate_params()
        self.center_ = points.mean(axis=0)
        centred = points - self.center_
        self.scale_ = float(np.sqrt(np.square(centred).mean())) or 1.0
        # Unlike a covariance matrix, this decomposition stays small for a table with many columns
        # and few rows.
        _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
        self.root_ = (lengths / np.sqrt(max(1, len(points) - 1)))[:, None] * axes
        self.bound_ = space.bound
        if self.spread == "auto":
            drawn = self._draw_offsets((_N_DRAWN, _N_DRAWN), session.runtime.rng)
            self.spread_ = tuple(self._calibrate(half, space.fraction_inside) for half in drawn)
        else:
            self.spread_ = (self.spread, self.spread)

    def draw(self, n: int, rng: torch.Generator) -> Floats:
        """Draw `n` points (n, n_features)."""
        halves = self._draw_offsets((n - n // 2, n // 2), rng)
        return np.concatenate(
            [self._place(*half) for half in zip(halves, self.spread_, strict=True)]
        )

    def _draw_offsets(self, sizes: tuple[int, int], rng: torch.Generator) -> tuple[Floats, Floats]:
        """Draw points of both halves, with the spread 1 around 0."""
        options: dict[str, Any] = {"generator": rng, "device": rng.device, "dtype": torch.float64}

        def noise(n: int, n_directions: int) -> Floats:
            values = torch.randn(n, n_directions, **options)
            stretch = torch.exp(self.tail * torch.rand(n, 1, **options).square())
            return (values * stretch).cpu().numpy()

        round_half = self.scale_ * noise(sizes[0], len(self.center_))
        return round_half, noise(sizes[1], len(self.root_)) @ self.root_

    def _place(self, offsets: Floats, spread: float) -> Floats:
        """Move the points of a half around the normal rows, within the bound."""
        points = self.center_ + spread * offsets
        # The scaler bounds normal rows in the same way.
        return points / np.hypot(1, points / self.bound_)

    def _calibrate(self, offsets: Floats, fraction_inside: Callable[[Floats], float]) -> float:
        """Find the spread with which a tenth of the points lies as close as normal points do."""
        # Each step uses the same offsets, because new draws would disturb the bisection.
        low, high = _SPREADS
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if fraction_inside(self._place(offsets, middle)) > _FRACTION_INSIDE:
                low = middle
            else:
                high = middle
        return (low + high) / 2
