"""Check of the signs of an estimator's scores."""

from __future__ import annotations

from typing import Any

from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline


def refuse_pyod(estimator: Any) -> Any:
    """Raise a TypeError for a detector of PyOD, also inside a Pipeline or a search.

    Return the innermost estimator.
    """
    # Compare the name of the module, because PyOD is optional and may not be installed.
    last = estimator
    while True:
        if isinstance(last, Pipeline):
            last = last.steps[-1][1]
        elif isinstance(last, FrozenEstimator):
            last = last.estimator
        elif hasattr(last, "best_estimator_"):
            last = last.best_estimator_
        else:
            break
    if any(cls.__module__.split(".")[0] == "pyod" for cls in type(last).__mro__):
        raise TypeError(
            f"{type(last).__name__} is a detector of PyOD: its scores are higher for more "
            "anomalous rows and it labels outliers 1, which is the opposite of scikit-learn's "
            "signs. Wrap it before fit: sklearn_g2d.adapters.FromPyOD(detector)."
        )
    return last
