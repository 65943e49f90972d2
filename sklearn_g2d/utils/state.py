"""The state of an estimator, which a failed `fit` must not change."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from sklearn.base import BaseEstimator

Estimator = TypeVar("Estimator", bound=BaseEstimator)
Args = ParamSpec("Args")
Result = TypeVar("Result")


def unchanged_on_failure(
    method: Callable[Concatenate[Estimator, Args], Result],
) -> Callable[Concatenate[Estimator, Args], Result]:
    """Decorate a method, such as `fit`, so that the estimator is restored after an error."""

    @wraps(method)
    def guarded(estimator: Estimator, /, *args: Args.args, **kwargs: Args.kwargs) -> Result:
        before = estimator.__dict__.copy()
        try:
            return method(estimator, *args, **kwargs)
        except BaseException:
            # A single assignment cannot be interrupted halfway by a second Ctrl+C.
            estimator.__dict__ = before
            raise

    return guarded


class Stored:
    """Base of public classes without parameters, such as networks, that files may contain.

    No method of such a class may execute its attributes, because the author of a file chooses them.
    """
