"""The one loop that drives every trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sklearn_g2d.errors import TrainingDivergedError

# Looking at a loss waits for the device, so it is done for a block of steps at once.
_CHECK_EVERY = 50

OnStep = Callable[[int, dict[str, Tensor]], bool]


def run(
    steps: Iterator[dict[str, Tensor]], max_steps: int, on_step: OnStep, *, remedy: str
) -> dict[str, NDArray[np.float32]]:
    """Draw steps from a trainer until `max_steps`, or until `on_step` asks to stop.

    Parameters
    ----------
    steps : iterator of dict
        A trainer: every item trains one step and gives its losses by name.
    max_steps : int
        Most steps to take.
    on_step : callable
        Called after each step with its number (from 1) and losses; returns True to stop.
    remedy : str
        What to change when training diverges, for the error message.

    Returns
    -------
    dict of ndarray of shape (n_steps,)
        The losses by name.

    Raises
    ------
    TrainingDivergedError
        If a loss is not finite.
    """
    names: tuple[str, ...] = ()
    blocks: list[NDArray[np.float32]] = []
    block: list[Tensor] = []

    def close_block(step: int) -> None:
        values = torch.stack(block).cpu().numpy()
        block.clear()
        blocks.append(values)
        bad = ~np.isfinite(values).all(axis=0)
        if bad.any():
            raise TrainingDivergedError(
                f"{names[int(np.argmax(bad))]} became infinite or NaN within the last "
                f"{len(values)} of {step} steps. {remedy}"
            )

    for step, losses in enumerate(islice(steps, max_steps), start=1):
        names = tuple(losses)
        block.append(torch.stack(tuple(losses.values())))
        if len(block) == _CHECK_EVERY:
            close_block(step)
        if on_step(step, losses):
            break
    if block:
        close_block(step)
    if not blocks:
        return {}
    return dict(zip(names, np.concatenate(blocks).T.copy(), strict=True))
