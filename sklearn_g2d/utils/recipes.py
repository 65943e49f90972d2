"""A bundle of settings, some of them replaced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

Recipe = TypeVar("Recipe", bound=Any)


def resolve(recipe: Recipe, **overrides: Any) -> Recipe:
    """Replace what is given, that is not None, in a recipe."""
    return replace(recipe, **{k: v for k, v in overrides.items() if v is not None})
