"""Which half-trained generators to keep, and what each is good for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sklearn_g2d.utils.state import Stored

Role = Literal["far", "boundary", "normal"]


@dataclass(frozen=True)
class Snapshot(Stored):
    """The generator at one moment of its training.

    Attributes
    ----------
    step : int
        Generator steps taken before.
    loss : float
        The generator's mean loss (Eq. 3 of the paper) since the snapshot before, which is an
        epoch's where one is kept after each; NaN before the first step.
    role : "far", "boundary" or "normal"
        Where its samples lie relative to normal data (section 3.3 of the paper).
    weights : dict of ndarray
        The generator's parameters.

    Examples
    --------
    >>> from sklearn_g2d.g2d import Snapshot
    >>> Snapshot(step=20, loss=0.7, role="far", weights={})
    Snapshot(step=20, loss=0.7, role='far')
    """

    step: int
    loss: float
    role: Role
    weights: dict[str, NDArray[Any]] = field(repr=False)


def steps_to_keep(rule: Any, max_steps: int, n_snapshots: int, epoch: int) -> set[int]:
    """List the steps after which the generator is kept, beside step 0."""
    if rule == "geometric":  # a generator changes most at the beginning: snapshots lie close there
        halvings = max_steps / 2.0 ** np.arange(n_snapshots - 1)
        return {int(step) for step in np.round(halvings)}
    return set(range(epoch, max_steps + 1, epoch))


def select(
    kept: list[Snapshot], rule: Any, n: int, fraction_inside: Callable[[Snapshot], float]
) -> list[Snapshot]:
    """Give every snapshot its role, and select those that `WassersteinGAN.snapshots` names."""
    if rule == "geometric":
        roles = [role_by_distance(fraction_inside(snapshot)) for snapshot in kept]
    else:
        roles = roles_by_loss([snapshot.loss for snapshot in kept])
    snapshots = [replace(s, role=role) for s, role in zip(kept, roles, strict=True)]
    if rule == "loss":
        last = snapshots[-1]  # kept in any case, as the source of normal rows
        snapshots = spread_evenly(irregular(snapshots), n)
        return snapshots if snapshots[-1] is last else [*snapshots, last]
    if callable(rule):
        snapshots = list(rule(snapshots))
        if not snapshots:
            raise ValueError("snapshots returned no snapshot; return at least one.")
    return snapshots


def roles_by_loss(
    losses: ArrayLike, horizon: int = 5, far: float = 0.3, normal: float = 0.03
) -> list[Role]:
    """Give each snapshot a role by how fast the generator's loss still falls, the paper's rule.

    The paper compares L = loss(i) - loss(i + h), h = 5 epochs, with thresholds that it only orders
    by size. Here they are fractions of the largest such drop, so that the critic's scale does not
    matter. The loss, averaged over h epochs, rises until the critic has caught up; generators are
    far from there to the steepest fall, too, and no later one counts as farther than an earlier
    one. A loss that is NaN (before any training) counts as the first finite one.
    """
    losses = np.asarray(losses, dtype=np.float64)
    known = losses[np.isfinite(losses)]
    if len(known) == 0:
        return ["far"] * len(losses)
    losses = np.where(np.isfinite(losses), losses, known[0])
    half, n = horizon // 2, len(losses)
    smooth = np.array([losses[max(0, i - half) : i + half + 1].mean() for i in range(n)])
    drop = smooth - smooth[np.minimum(np.arange(n) + horizon, n - 1)]
    caught_up = int(smooth.argmax())
    steepest = caught_up + int(drop[caught_up:].argmax())
    if drop[steepest] <= 0:  # it has never fallen
        return ["far"] * n
    relative = drop / drop[steepest]
    relative[: steepest + 1] = 1
    relative = np.minimum.accumulate(relative)
    return ["far" if r > far else "normal" if r < normal else "boundary" for r in relative]


def role_by_distance(fraction_inside: float, far: float = 0.05, normal: float = 0.5) -> Role:
    """Give a role by the fraction of a snapshot's samples that lie as close as normal rows do."""
    return "far" if fraction_inside < far else "boundary" if fraction_inside < normal else "normal"


def irregular(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """Keep the snapshots that make outliers; all of them if every one has matured."""
    return [s for s in snapshots if s.role != "normal"] or list(snapshots)


def spread_evenly(snapshots: Sequence[Snapshot], n: int) -> list[Snapshot]:
    """Give at most `n` of the snapshots, evenly spaced, the first and the last included."""
    positions = np.unique(np.linspace(0, len(snapshots) - 1, n).round().astype(int))
    return [snapshots[i] for i in positions]
