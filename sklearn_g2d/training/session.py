"""Random numbers and training that a detector gives its parts during `fit`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sklearn_g2d.training.history import History
from sklearn_g2d.training.runtime import Runtime


@dataclass(frozen=True)
class Session:
    """Random numbers and training stages of one `fit`.

    `runtime` has the random numbers of PyTorch, and `random_state` those of NumPy.
    ``train(name, trainer, max_steps, remedy=..., current=...)`` trains as one stage of `fit`, which
    callbacks can follow and stop at each step, and returns the losses by step. `remedy` is part of
    the error message if training diverges. `current` is a function for callbacks. It returns
    attributes with which a copy of the detector scores, or draws samples, as if training had ended
    at this step. `earlier` is the part or model of the previous fit that `warm_start` continues.
    """

    runtime: Runtime
    random_state: np.random.RandomState
    train: Callable[..., History]
    earlier: Any = None
