"""The one loop that drives every trainer, and takes training up again when it diverges."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sklearn_g2d.errors import TrainingDivergedError
from sklearn_g2d.training import parallel
from sklearn_g2d.training.trainer import Losses, State, Trainer

# Looking at a loss waits for the device, so it is done for a block of steps at once.
_BLOCK = 50

# How often training is taken up again, and by how much learning rates are lowered each time.
MAX_RETRIES, RETRY_FACTOR = 3, 0.5

# A loss beyond so many times the first one (or 1) has exploded. No critic's score of an honest
# training comes near it: steps of Adam are bounded, and so its losses grow like a low power of
# their number, while those of a training that diverges are soon beyond all numbers.
_EXPLOSION = 1e9

# Called after each step with its number (from 1) and losses; returns True to stop.
OnStep = Callable[[int, Losses], bool]


class Training:
    """A trainer on its way through so many steps, its losses recorded.

    After every 50 steps the trainer's state is kept if all is well: no loss and no weight is
    infinite or NaN, and no loss has exploded. Otherwise training goes back to the state kept last,
    that after `step` steps, and is taken up again at half the learning rates, at most three times.
    `retries` lists the steps from which that was done; `diverged` says that it was of no use.
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
        """Losses by name, each of shape (step,)."""
        if not self._blocks:
            return {}
        return dict(zip(self._names, np.concatenate(self._blocks).T.copy(), strict=True))

    def state_dict(self) -> State:
        """Give the state kept last, and all that was recorded until then."""
        return {
            "trainer": self._kept,
            "last_step": self._last_step,
            "retries": list(self.retries),
            "losses": self.history,
        }

    def load_state_dict(self, state: State) -> None:
        """Go on to a state, as if all its steps had been taken here."""
        self.trainer.load_state_dict(state["trainer"])
        self.step = self.trainer.n_steps
        self.retries = list(state["retries"])
        self.trainer.rate_factor = RETRY_FACTOR ** len(self.retries)
        self._last_step = state["last_step"]
        self._names = list(state["losses"])
        self._blocks = [np.stack(list(state["losses"].values()), axis=1)] if self._names else []
        self._kept = state["trainer"]

    def run(self, on_step: OnStep, *, remedy: str) -> None:
        """Take the steps that are left, or until `on_step` asks to stop.

        `on_step` is called once for every number of a step, also for those that a loaded state has
        taken; steps that are taken again after a retry are not shown again. If training diverges
        once more than it may, a TrainingDivergedError says so and names the `remedy`.
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
        """Show `on_step` what a loaded state has recorded; returns the number of steps."""
        history, stop = self.history, False
        for i in range(self.step):
            stop = on_step(i + 1, {name: torch.tensor(v[i]) for name, v in history.items()})
        if stop:  # which was asked for when the process ended
            self._last_step = self.step
        return self.step

    def _close(self, block: list[Tensor], remedy: str) -> None:
        """Keep the state after a block of steps, or go back to the one before."""
        # All at once: an operation a step takes a fiftieth of the time of small networks.
        losses = torch.stack(block).cpu().numpy().reshape(-1, len(self._names))
        trouble = self._trouble(losses)
        if trouble is None:
            self._blocks.append(losses)
            self.step += len(losses)
            self._kept = self.trainer.state_dict()
            return
        if len(self.retries) == MAX_RETRIES:
            self.diverged = True
            raise TrainingDivergedError(
                f"{trouble} within steps {self.step + 1} to {self.step + len(losses)}, also after "
                f"{MAX_RETRIES} retries, each at half the learning rates of the one before. "
                f"{remedy}"
            )
        self.retries.append(self.step)
        self.trainer.load_state_dict(self._kept)
        self.trainer.rate_factor = RETRY_FACTOR ** len(self.retries)

    def _trouble(self, losses: NDArray[np.float32]) -> str | None:
        """Say what went wrong in a block of steps, if anything."""
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
