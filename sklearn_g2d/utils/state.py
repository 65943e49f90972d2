"""What an estimator knows, kept when `fit` goes wrong."""

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
    """Give an estimator its former state back when a method, `fit`, fails or is interrupted."""

    @wraps(method)
    def guarded(estimator: Estimator, /, *args: Args.args, **kwargs: Args.kwargs) -> Result:
        before = estimator.__dict__.copy()
        try:
            return method(estimator, *args, **kwargs)
        except BaseException:
            estimator.__dict__ = before  # at once, should a second interrupt follow
            raise

    return guarded


class Stored:
    """Marks a public class without parameters, such as a network, whose instances files may hold.

    None of its methods runs what it keeps: whoever wrote the file has chosen that.
    """
