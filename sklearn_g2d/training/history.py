"""What `history_` holds: losses by step, and the steps from which training was taken up again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklearn_g2d.training.loop import Training

History = dict[str, NDArray[Any]]

_RETRIES = "_retries"


def record(name: str, training: Training) -> History:
    """Record the training of the networks called `name`; retries only if there were any."""
    retries = {name + _RETRIES: np.array(training.retries)} if training.retries else {}
    return training.history | retries


def n_steps(history: History) -> int:
    """Count the steps with losses."""
    return max((len(v) for name, v in history.items() if not name.endswith(_RETRIES)), default=0)


def extend(earlier: History, later: History) -> History:
    """Append what further training recorded."""
    n = n_steps(earlier)
    return earlier | {
        name: np.concatenate(
            [earlier.get(name, values[:0]), values + n if name.endswith(_RETRIES) else values]
        )
        for name, values in later.items()
    }
