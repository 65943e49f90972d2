"""Optimisers and schedules of the learning rate, by name or from the user's functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from sklearn.utils._param_validation import StrOptions
from torch import nn

Optimizer = str | Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
Schedule = str | Callable[[float], float]

OPTIMIZER_CONSTRAINT: list[Any] = [StrOptions({"adam", "adamw", "sgd"}), callable]
SCHEDULE_CONSTRAINT: list[Any] = [StrOptions({"constant", "cosine"}), callable]


def make_optimizer(
    optimizer: Optimizer,
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.Optimizer:
    """Build an optimiser; SGD has a momentum of .9, and `betas` are for Adam and AdamW."""
    if callable(optimizer):
        made = optimizer(parameters, learning_rate)
        if not isinstance(made, torch.optim.Optimizer):
            raise TypeError(
                "A callable optimizer must return a torch.optim.Optimizer, like lambda parameters, "
                f"learning_rate: torch.optim.Adam(parameters, learning_rate); got {made!r}."
            )
        return made
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers from 0 to below 1, got {betas!r}.")
    if optimizer == "sgd":
        return torch.optim.SGD(parameters, learning_rate, momentum=0.9, fused=True)
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, learning_rate, betas=betas, fused=True)


def rate_factor(schedule: Schedule, step: int, max_steps: int, warm_up_steps: int = 0) -> float:
    """Return the factor of the learning rate after `step` steps.

    A callable gets the finished fraction of the training, from 0 to below 1. The factor of "cosine"
    first rises, over the warm-up steps.
    """
    if callable(schedule):
        return float(schedule(step / max_steps))
    if schedule == "constant":
        return 1.0
    warm_up = min(1.0, (step + 1) / warm_up_steps) if warm_up_steps else 1.0
    return warm_up * (1 + math.cos(math.pi * step / max_steps)) / 2
