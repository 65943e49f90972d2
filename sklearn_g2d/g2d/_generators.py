"""The space in which generators of outliers work, and drawing samples from any generator."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sklearn_g2d.g2d._networks import Shape
from sklearn_g2d.utils.arrays import Floats


@dataclass(frozen=True)
class Space:
    """The space of generated points: the output of the scaler, before the neighbour profile.

    `shape` is the shape of a point. `bound` is the largest magnitude of a coordinate, which may be
    infinite. `fraction_inside` maps points (n, n_features) to the fraction of them that lies as
    close to normal points as normal points do.
    """

    shape: Shape
    bound: float
    fraction_inside: Callable[[Floats], float]


def draw(generator: Any, n: int, rng: torch.Generator, **kwargs: Any) -> Floats:
    """Draw points (n, n_features) by `draw` of our generators, or `sample` of other generators."""
    if hasattr(generator, "draw"):
        return generator.draw(n, rng, **kwargs)
    # Estimators of scikit-learn differ: KernelDensity.sample takes a seed, and
    # GaussianMixture.sample has its own.
    seed = int(torch.randint(2**31 - 1, (1,), generator=rng, device=rng.device))
    takes_seed = "random_state" in inspect.signature(generator.sample).parameters
    samples = generator.sample(n, random_state=seed) if takes_seed else generator.sample(n)
    # Mixtures return points and the numbers of their components.
    if isinstance(samples, tuple):
        samples = samples[0]
    samples = np.asarray(samples, dtype=np.float64)
    if samples.ndim != 2 or len(samples) != n:
        raise ValueError(
            f"{type(generator).__name__}.sample({n}) returned shape {samples.shape}; a generator "
            f"must return {n} rows with as many columns as the rows that it was fitted on."
        )
    return samples
