"""Parts of a detector: estimators that it clones, seeds and fits."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from sklearn.base import clone


def clone_part(part: Any, random_state: np.random.RandomState) -> Any:
    """Clone an estimator or other object, and give a seed to every `random_state` that is None.

    Two fits with one seed are equal only if nothing inside draws from NumPy's global generator.
    """
    copy = clone(part, safe=False)
    if not hasattr(copy, "get_params") or isinstance(copy, type):
        return copy
    largest = np.iinfo(np.int32).max
    for name, value in sorted(copy.get_params(deep=True).items()):
        if value is None and name.split("__")[-1] == "random_state":
            with contextlib.suppress(
                ValueError
            ):  # of a FrozenEstimator, whose parameters are fixed
                copy.set_params(**{name: int(random_state.randint(largest))})
    return copy
