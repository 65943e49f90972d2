"""The contents of `history_`: losses by step, and the steps from which training was repeated."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklearn_g2d.training.loop import Training

History = dict[str, NDArray[Any]]

_RETRIES = "_retries"


def record(name: str, training: Training) -> History:
    """Return the losses of a training and, if there were retries, the steps of these."""
    retries = {name + _RETRIES: np.array(training.retries)} if training.retries else {}
    return training.history | retries


def n_steps(history: History) -> int:
    """Return the number of steps with losses."""
    return max((len(v) for name, v in history.items() if not name.endswith(_RETRIES)), default=0)


def extend(earlier: History, later: History) -> History:
    """Append the history of further training."""
    n = n_steps(earlier)
    return earlier | {
        name: np.concatenate(
            [earlier.get(name, values[:0]), values + n if name.endswith(_RETRIES) else values]
        )
        for name, values in later.items()
    }
