"""Parts of an estimator: estimators that it clones, seeds and fits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted


class EstimatorOfParts(BaseEstimator):
    """Base of estimators that consist of parts; a part that is None means its default."""

    # Functions that make the default of a part. They are needed when the part is None and the user
    # sets one of its parameters.
    _default_parts: ClassVar[dict[str, Callable[[], Any]]] = {}

    def set_params(self, **params: Any) -> Self:
        """Set parameters of the estimator and of its parts.

        Parameters
        ----------
        **params
            Parameters by name; ``generator__spread=1`` sets `spread` of the part `generator`. If
            this part is None, it is replaced by its default first.

        Returns
        -------
        self
        """
        for name in list(params):
            part, _, nested = name.partition("__")
            is_part = nested and part in self._default_parts
            if is_part and params.get(part, getattr(self, part)) is None:
                params[part] = self._default_parts[part]()
        return super().set_params(**params)

    def _clone_of(self, name: str, random_state: np.random.RandomState) -> Any:
        """Clone a part, or make its default if it is None, and give it a seed."""
        part = getattr(self, name)
        return clone_part(self._default_parts[name]() if part is None else part, random_state)

    def _validate_params(self) -> None:
        """Check parameters. A class of estimators is an error, but a factory may be a class."""
        for name, value in self.get_params().items():
            if isinstance(value, type) and (hasattr(value, "get_params") or hasattr(value, "fit")):
                raise ValueError(
                    f"{name} must be an instance, but is the class {value.__name__}: pass "
                    f"{name}={value.__name__}()."
                )
        super()._validate_params()


def clone_part(part: Any, random_state: np.random.RandomState) -> Any:
    """Clone an estimator or other object, and give a seed to every `random_state` that is None.

    With None, a part would draw from NumPy's global generator, and two fits with one seed would
    differ.
    """
    copy = clone(part, safe=False)
    if not hasattr(copy, "get_params") or isinstance(copy, type):
        return copy
    largest = np.iinfo(np.int32).max
    # Sort the names, so that a part gets the same seed in every run.
    for name, value in sorted(copy.get_params(deep=True).items()):
        if value is None and name.split("__")[-1] == "random_state":
            # A FrozenEstimator refuses new parameters with a ValueError.
            with contextlib.suppress(ValueError):
                copy.set_params(**{name: int(random_state.randint(largest))})
    return copy


def unfrozen(part: Any) -> Any:
    """Return the estimator inside a FrozenEstimator, or the part itself."""
    return part.estimator if isinstance(part, FrozenEstimator) else part


def fit_part(part: Any, X: Any) -> Any:
    """Fit a part, which may be any object; of a FrozenEstimator, only check that it is fitted."""
    # FrozenEstimator.fit does nothing, and has no default for y.
    if isinstance(part, FrozenEstimator):
        check_is_fitted(part.estimator)
    else:
        part.fit(X)
    return part
