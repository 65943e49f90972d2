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
    """Base of what is put together from parts, each of which may be None for its default."""

    # What stands in for a part that is None when one of its own parameters is set.
    _default_parts: ClassVar[dict[str, Callable[[], Any]]] = {}

    def set_params(self, **params: Any) -> Self:
        """Set parameters, also of the parts that an estimator is put together from.

        Parameters
        ----------
        **params
            By name; ``generator__spread=1`` sets the parameter `spread` of the part `generator`. A
            part that is None becomes its default first.

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
        """Clone a part, or make its default if it is None, and seed it."""
        part = getattr(self, name)
        return clone_part(self._default_parts[name]() if part is None else part, random_state)

    def _validate_params(self) -> None:
        """Check parameters, also that none is a class of estimators; a factory may be a class."""
        for name, value in self.get_params().items():
            if isinstance(value, type) and (hasattr(value, "get_params") or hasattr(value, "fit")):
                raise ValueError(
                    f"{name} must be an instance, but is the class {value.__name__}: pass "
                    f"{name}={value.__name__}()."
                )
        super()._validate_params()


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


def unfrozen(part: Any) -> Any:
    """Give the estimator inside a FrozenEstimator, or the part itself."""
    return part.estimator if isinstance(part, FrozenEstimator) else part


def fit_part(part: Any, X: Any) -> Any:
    """Fit a part, which may be any object; a FrozenEstimator, whose `fit` wants a y, stays."""
    if isinstance(part, FrozenEstimator):
        check_is_fitted(part.estimator)
    else:
        part.fit(X)
    return part
