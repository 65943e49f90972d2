"""The default generator of outliers: a cloud around the data, without a network."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval

from sklearn_g2d.g2d._generators import Space
from sklearn_g2d.training.session import Session
from sklearn_g2d.utils.arrays import Floats


@dataclass(eq=False, repr=False)
class GaussianCloud(BaseEstimator):
    """Outliers from a Gaussian cloud around the normal rows, wider than they are.

    Half of the points are drawn with the same deviation in every direction, the other half with the
    covariance of the normal rows, which keeps correlations. The cloud takes the place of the
    paper's half-trained generators, because training them improved no benchmark.

    Parameters
    ----------
    spread : float, default=2.0
        Standard deviation of the cloud in units of that of the normal rows.
    tail : float, default=1.6
        Points are moved outwards by the factor ``exp(tail * u**2)``, where u is uniform in (0, 1),
        so that some lie far outside; 0 gives a plain Gaussian cloud.

    Attributes
    ----------
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

    spread: float = 2.0
    tail: float = 1.6

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "spread": [Interval(Real, 0, None, closed="neither")],
        "tail": [Interval(Real, 0, None, closed="left")],
    }

    def fit_in(self, points: Floats, session: Session, space: Space) -> None:
        """Learn centre and covariance of normal points (n_samples, n_features)."""
        self._validate_params()
        self.center_ = points.mean(axis=0)
        centred = points - self.center_
        self.scale_ = float(np.sqrt(np.square(centred).mean())) or 1.0
        # Thin, so that wide tables cost no more than their rows.
        _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
        self.root_ = (lengths / np.sqrt(max(1, len(points) - 1)))[:, None] * axes
        self.bound_ = space.bound

    def draw(self, n: int, rng: torch.Generator) -> Floats:
        """Draw `n` points (n, n_features)."""
        n_correlated = n // 2
        noise = self._noise(n - n_correlated, len(self.center_), rng)
        correlated = self._noise(n_correlated, len(self.root_), rng)
        offsets = np.concatenate([self.scale_ * noise, correlated @ self.root_])
        points = self.center_ + self.spread * offsets
        return points / np.hypot(1, points / self.bound_)

    def _noise(self, n: int, n_directions: int, rng: torch.Generator) -> Floats:
        options: dict[str, Any] = {"generator": rng, "device": rng.device, "dtype": torch.float64}
        noise = torch.randn(n, n_directions, **options)
        stretch = torch.exp(self.tail * torch.rand(n, 1, **options).square())
        return (noise * stretch).cpu().numpy()
