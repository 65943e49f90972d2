"""The default generator of outliers: a cloud around the data, without a network."""

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

# Points of either half that are to lie as close as normal rows do: fewer are too far away for the
# classifier to learn from, and more cannot be told from normal rows. And how it is found: the
# spreads to look between, steps of bisection, and points drawn for it.
_FRACTION_INSIDE = 0.1
_SPREADS, _BISECTIONS, _N_DRAWN = (0.7, 2.0), 6, 300


@dataclass(eq=False, repr=False)
class GaussianCloud(BaseEstimator):
    """Outliers from a Gaussian cloud around the normal rows, wider than they are.

    Half of the points are drawn with the same deviation in every direction, the other half with the
    covariance of the normal rows, which keeps correlations. The cloud takes the place of the
    paper's half-trained generators, because training them improved no benchmark.

    Parameters
    ----------
    spread : "auto" or float, default="auto"
        Standard deviation of the cloud in units of that of the normal rows. "auto" finds one
        between .7 and 2 for each half, at which a tenth of the points lie as close as normal rows.
    tail : float, default=1.6
        Points are moved outwards by the factor ``exp(tail * u**2)``, where u is uniform in (0, 1),
        so that some lie far outside; 0 gives a plain Gaussian cloud.

    Attributes
    ----------
    spread_ : tuple of two floats
        Of the round half, and of that with the covariance of the normal rows.
    center_ : ndarray of shape (n_features,)
        Mean of the normal rows.
    root_ : ndarray of shape (n_directions, n_features)
        Root of their covariance: its product with its transpose is the covariance.
    scale_ : float
        Root of their mean variance.
    bound_ : float
        Magnitude that no coordinate exceeds.

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
        # Thin, so that wide tables cost no more than their rows.
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
        """Draw points of both halves, of spread 1 around 0."""
        options: dict[str, Any] = {"generator": rng, "device": rng.device, "dtype": torch.float64}

        def noise(n: int, n_directions: int) -> Floats:
            values = torch.randn(n, n_directions, **options)
            stretch = torch.exp(self.tail * torch.rand(n, 1, **options).square())
            return (values * stretch).cpu().numpy()

        round_half = self.scale_ * noise(sizes[0], len(self.center_))
        return round_half, noise(sizes[1], len(self.root_)) @ self.root_

    def _place(self, offsets: Floats, spread: float) -> Floats:
        """Put a half around the normal rows, within the bound."""
        points = self.center_ + spread * offsets
        return points / np.hypot(1, points / self.bound_)

    def _calibrate(self, offsets: Floats, fraction_inside: Callable[[Floats], float]) -> float:
        """Find the spread at which a tenth of the points lie as close as normal points do."""
        low, high = _SPREADS
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if fraction_inside(self._place(offsets, middle)) > _FRACTION_INSIDE:
                low = middle
            else:
                high = middle
        return (low + high) / 2
