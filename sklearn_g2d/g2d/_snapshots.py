"""Choice of the half-trained generators to keep, and the role of each."""

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
        Number of generator steps before this snapshot.
    loss : float
        Mean loss of the generator (Eq. 3 of the paper) since the previous snapshot, that is, in an
        epoch if a snapshot is taken after each epoch. NaN before the first step.
    role : "far", "boundary" or "normal"
        Position of its samples relative to normal data (section 3.3 of the paper).
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
    """Return the steps after which the generator is kept, in addition to step 0."""
    # A generator changes most at the beginning: take more snapshots there.
    if rule == "geometric":
        halvings = max_steps / 2.0 ** np.arange(n_snapshots - 1)
        return {int(step) for step in np.round(halvings)}
    return set(range(epoch, max_steps + 1, epoch))


def select(
    kept: list[Snapshot], rule: Any, n: int, fraction_inside: Callable[[Snapshot], float]
) -> list[Snapshot]:
    """Give each snapshot its role, and select snapshots by the rule `WassersteinGAN.snapshots`."""
    if rule == "geometric":
        roles = [role_by_distance(fraction_inside(snapshot)) for snapshot in kept]
    else:
        roles = roles_by_loss([snapshot.loss for snapshot in kept])
    snapshots = [replace(s, role=role) for s, role in zip(kept, roles, strict=True)]
    if rule == "loss":
        # Always keep the last snapshot, because `sample_normals` draws from it.
        last = snapshots[-1]
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
    """Give each snapshot a role by the speed at which the generator's loss falls, as in the paper.

    The paper compares the drop loss(i) - loss(i + h), h = 5 epochs, with thresholds, but gives no
    values for them. Here they are fractions of the largest drop, so that they do not depend on the
    critic's scale. The loss, averaged over h epochs, first rises, until the critic is trained. All
    generators up to the steepest fall after that are "far". A later generator never counts as
    farther than an earlier one. NaN, the loss before training, counts as the first finite loss.
    """
    losses = np.asarray(losses, dtype=np.float64)
    known = losses[np.isfinite(losses)]
    if len(known) == 0:
        return ["far"] * len(losses)
    losses = np.where(np.isfinite(losses), losses, known[0])
    # Smooth the losses, because single epochs vary more than the drop from one to the next.
    half, n = horizon // 2, len(losses)
    smooth = np.array([losses[max(0, i - half) : i + half + 1].mean() for i in range(n)])
    drop = smooth - smooth[np.minimum(np.arange(n) + horizon, n - 1)]
    highest = int(smooth.argmax())
    steepest = highest + int(drop[highest:].argmax())
    # If the loss has never fallen, the generator has not learned yet.
    if drop[steepest] <= 0:
        return ["far"] * n
    relative = drop / drop[steepest]
    relative[: steepest + 1] = 1
    relative = np.minimum.accumulate(relative)
    return ["far" if r > far else "normal" if r < normal else "boundary" for r in relative]


def role_by_distance(fraction_inside: float, far: float = 0.05, normal: float = 0.5) -> Role:
    """Return a role by the fraction of samples that lie as close to normal rows as these do."""
    return "far" if fraction_inside < far else "boundary" if fraction_inside < normal else "normal"


def irregular(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """Return the snapshots that make outliers, or all if each of them is "normal"."""
    return [s for s in snapshots if s.role != "normal"] or list(snapshots)


def spread_evenly(snapshots: Sequence[Snapshot], n: int) -> list[Snapshot]:
    """Return at most `n` snapshots, evenly spaced, the first and the last included."""
    positions = np.unique(np.linspace(0, len(snapshots) - 1, n).round().astype(int))
    return [snapshots[i] for i in positions]
