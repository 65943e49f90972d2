"""What a detector hands to its parts while it fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sklearn_g2d.training.history import History
from sklearn_g2d.training.runtime import Runtime


@dataclass(frozen=True)
class Session:
    """Random numbers (PyTorch's in `runtime`, NumPy's in `random_state`) and stages of one `fit`.

    ``train(name, trainer, max_steps, remedy=..., current=...)`` trains as a stage, which callbacks
    see and may stop at each step, and returns the losses by step. The error message says the
    `remedy` for divergence; `current` gives, for callbacks that ask, the attributes with which a
    copy of the detector scores, or draws samples, as if training had ended at this step.
    `earlier` is what `warm_start` continues: a part, or a model, of the previous fit.
    """

    runtime: Runtime
    random_state: np.random.RandomState
    train: Callable[..., History]
    earlier: Any = None
