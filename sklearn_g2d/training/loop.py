"""The loop that runs all trainers, and repeats steps of training that diverges."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sklearn_g2d.errors import TrainingDivergedError
from sklearn_g2d.training import parallel
from sklearn_g2d.training.trainer import Losses, State, Trainer

# Number of steps in a block. Losses are checked at its end, because checks wait for the device.
_BLOCK = 50

# Largest number of retries, and the factor of the learning rates in each of them.
MAX_RETRIES, RETRY_FACTOR = 3, 0.5

# A loss has exploded if it is more than so many times the first one (or 1). A critic's loss may
# also grow in a good training, but more slowly: steps of Adam are bounded, so that losses grow like
# a low power of the number of steps. If training diverges, they grow without limit.
_EXPLOSION = 1e9

# A function that is called after each step with its number (from 1) and losses, and returns True to
# stop.
OnStep = Callable[[int, Losses], bool]


class Training:
    """The training of one trainer for a number of steps, with a record of its losses.

    After every 50 steps the trainer's state is kept if it is good: no loss and no weight is
    infinite or NaN, and no loss has exploded. Otherwise training goes back to the last good state,
    after `step` steps, and continues with half the learning rates, at most three times. `retries`
    lists the steps from which this was done. `diverged` is True if it did not help.
    """

    def __init__(self, trainer: Trainer, max_steps: int) -> None:
        self.trainer = trainer
        self.step = 0
        self.retries: list[int] = []
        self.diverged = False
        self._last_step = max_steps
        self._names: list[str] = []
        self._blocks: list[NDArray[np.float32]] = []  # of losses: (n_steps, n_losses)
        self._kept = trainer.state_dict()

    @property
    def history(self) -> dict[str, NDArray[np.float32]]:
        """Return the losses by name, each of shape (step,)."""
        if not self._blocks:
            return {}
        return dict(zip(self._names, np.concatenate(self._blocks).T.copy(), strict=True))

    def state_dict(self) -> State:
        """Return the last good state, and the record until then."""
        return {
            "trainer": self._kept,
            "last_step": self._last_step,
            "retries": list(self.retries),
            "losses": self.history,
        }

    def load_state_dict(self, state: State) -> None:
        """Load a state, as if all its steps had been taken here."""
        self.trainer.load_state_dict(state["trainer"])
        self.step = self.trainer.n_steps
        self.retries = list(state["retries"])
        self.trainer.rate_factor = RETRY_FACTOR ** len(self.retries)
        self._last_step = state["last_step"]
        self._names = list(state["losses"])
        self._blocks = [np.stack(list(state["losses"].values()), axis=1)] if self._names else []
        self._kept = state["trainer"]

    def run(self, on_step: OnStep, *, remedy: str) -> None:
        """Take the remaining steps, or stop when `on_step` returns True.

        `on_step` is called once for each step, also for the steps of a loaded state, but not again
        for steps that are repeated in a retry. If training diverges after the last retry, a
        TrainingDivergedError with the `remedy` is raised.
        """
        shown = self._show_again(on_step)
        step, losses = self.step, list[Tensor]()
        while step < self._last_step:
            named = self.trainer.step()
            self._names = list(named)
            losses += named.values()
            step += 1
            if step > shown:
                shown = step
                if parallel.from_first(on_step(step, named)):
                    self._last_step = step
            if step == self.step + _BLOCK or step == self._last_step:
                self._close(losses, remedy)
                step, losses = self.step, []

    def _show_again(self, on_step: OnStep) -> int:
        """Call `on_step` with the steps of a loaded state, and return their number."""
        history, stop = self.history, False
        for i in range(self.step):
            stop = on_step(i + 1, {name: torch.tensor(v[i]) for name, v in history.items()})
        if stop:  # the callback wanted to stop before the state was loaded
            self._last_step = self.step
        return self.step

    def _close(self, block: list[Tensor], remedy: str) -> None:
        """Keep the state after a block of steps, or go back to the last good one."""
        # Copy all losses at once: a copy in each step takes a fiftieth of a small network's time.
        losses = torch.stack(block).cpu().numpy().reshape(-1, len(self._names))
        divergence = self._find_divergence(losses)
        if divergence is None:
            self._blocks.append(losses)
            self.step += len(losses)
            self._kept = self.trainer.state_dict()
            return
        if len(self.retries) == MAX_RETRIES:
            self.diverged = True
            raise TrainingDivergedError(
                f"{divergence} within steps {self.step + 1} to {self.step + len(losses)}, also "
                f"after {MAX_RETRIES} retries, each with half the learning rates of the one "
                f"before. {remedy}"
            )
        self.retries.append(self.step)
        self.trainer.load_state_dict(self._kept)
        self.trainer.rate_factor = RETRY_FACTOR ** len(self.retries)

    def _find_divergence(self, losses: NDArray[np.float32]) -> str | None:
        """Return a description of what went wrong in a block of steps, or None."""
        bad = ~np.isfinite(losses).all(axis=0)
        if bad.any():
            return f"{self._names[int(np.argmax(bad))]} became infinite or NaN"
        first = np.abs((self._blocks or [losses])[0][0]).astype(np.float64)
        largest = np.abs(losses).max(axis=0)
        exploded = largest > _EXPLOSION * np.maximum(1, first)
        if exploded.any():
            which = int(np.argmax(exploded))
            return f"{self._names[which]} grew to {largest[which]:.1g}"
        return None if self.trainer.is_finite() else "Weights became infinite or NaN"
