"""Which half-trained generators to keep, and what each is good for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Role = Literal["far", "boundary", "normal"]


@dataclass(frozen=True)
class Snapshot:
    """The generator at one moment of its training.

    Attributes
    ----------
    step : int
        Generator steps taken before.
    loss : float
        The generator's loss (Eq. 3 of the paper) there; NaN before the first step.
    role : "far", "boundary" or "normal"
        Where its samples lie relative to normal data (section 3.3 of the paper).
    weights : dict of ndarray
        The generator's parameters.
    """

    step: int
    loss: float
    role: Role
    weights: dict[str, NDArray[Any]] = field(repr=False)


def geometric_steps(max_steps: int, n_snapshots: int) -> list[int]:
    """Step 0 and the steps max_steps, max_steps / 2, max_steps / 4, ... in order.

    A generator changes most at the beginning, so that is where snapshots lie close.
    """
    halvings = max_steps / 2.0 ** np.arange(n_snapshots - 1)
    return sorted({0, *(int(step) for step in np.round(halvings))})


def roles_by_loss(
    losses: ArrayLike, horizon: int = 5, far: float = 0.3, normal: float = 0.03
) -> list[Role]:
    """Roles from how fast the generator's loss still falls, the paper's rule.

    The paper compares L = loss(i) - loss(i + h), h = 5 epochs, with thresholds that it
    only orders by size; here they are shares of the largest such drop, which makes the
    rule independent of the critic's scale.

    Parameters
    ----------
    losses : array-like of shape (n_snapshots,)
        Loss of the generator at each snapshot, in order. NaN (a snapshot before any
        training) counts as the first finite loss.
    horizon : int, default=5
        The paper's h.
    far, normal : float
        A snapshot is "far" when its drop exceeds the share `far` of the largest one,
        "normal" when it falls below the share `normal`, "boundary" between.

    Returns
    -------
    list of str
        A role for each snapshot.
    """
    losses = np.asarray(losses, dtype=np.float64)
    known = losses[np.isfinite(losses)]
    if len(known) == 0:
        return ["far"] * len(losses)
    losses = np.where(np.isfinite(losses), losses, known[0])
    later = np.minimum(np.arange(len(losses)) + horizon, len(losses) - 1)
    drop = losses - losses[later]
    with np.errstate(over="ignore"):  # where nothing drops, every rise counts as infinite
        relative = drop / max(float(drop.max()), np.finfo(float).tiny)
    return ["far" if r > far else "normal" if r < normal else "boundary" for r in relative]


def role_by_distance(share_inside: float, far: float = 0.05, normal: float = 0.5) -> Role:
    """Role from the share of a snapshot's samples that lie as close as normal rows do."""
    if share_inside < far:
        return "far"
    return "boundary" if share_inside < normal else "normal"


def irregular(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """Keep the snapshots that make outliers; all of them if every one has matured."""
    return [s for s in snapshots if s.role != "normal"] or list(snapshots)


def spread_evenly(snapshots: Sequence[Snapshot], n: int) -> list[Snapshot]:
    """At most `n` of the snapshots, evenly spaced, the first and the last included."""
    positions = np.unique(np.linspace(0, len(snapshots) - 1, n).round().astype(int))
    return [snapshots[i] for i in positions]
