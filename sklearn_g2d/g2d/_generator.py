"""The irregularity generator I: built, trained against its critic C, kept, sampled."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sklearn_g2d.g2d._image_networks import ConvGenerator, ConvNetwork
from sklearn_g2d.g2d._networks import TableGenerator
from sklearn_g2d.g2d._recipes import G2DRecipe
from sklearn_g2d.g2d._snapshots import Snapshot, geometric_steps
from sklearn_g2d.g2d._wgan import WGAN
from sklearn_g2d.training.ensemble import EnsembleMLP, load_weights, weights_of
from sklearn_g2d.training.runtime import Runtime
from sklearn_g2d.training.trainer import Losses, State
from sklearn_g2d.utils.images import ImageShape

# Most generators kept when there is one for each epoch: small tables have short epochs.
_MAX_EPOCHS_KEPT = 100


class IrregularityGenerator:
    """Generators, their critics, and the moments at which they were kept.

    Parameters
    ----------
    X : Tensor of shape (n, n_features)
        Normal rows, scaled.
    recipe : G2DRecipe
        Architecture and training.
    image_shape : tuple of int, or None
        Channels, height and width, if the rows are pixels for convolutional networks.
    runtime : Runtime
        Device, precision and random numbers.

    Attributes
    ----------
    n_steps : int
        Generator steps taken.
    snapshots : list of Snapshot
        The untrained generator first; roles are not assigned yet.
    """

    def __init__(
        self, X: Tensor, recipe: G2DRecipe, image_shape: ImageShape | None, runtime: Runtime
    ) -> None:
        self.generator: TableGenerator | ConvGenerator
        self.critic: EnsembleMLP | ConvNetwork
        n_features = X.shape[1]
        latent_dim = recipe.latent_dim or min(max(16, n_features), 200)
        if recipe.width and image_shape is not None:
            shared: dict[str, Any] = {
                "n_members": recipe.n_estimators,
                "image_shape": image_shape,
                "width": recipe.width,
                "rng": runtime.rng,
            }
            self.generator = ConvGenerator(latent_dim=latent_dim, **shared)
            self.critic = ConvNetwork(n_outputs=1, **shared)
        else:
            self.generator = TableGenerator(
                n_members=recipe.n_estimators,
                n_features=n_features,
                latent_dim=latent_dim,
                hidden=recipe.hidden,
                skip=recipe.spread > 0,
                tail=recipe.latent_tail,
                bound=recipe.bound,
                rng=runtime.rng,
            ).to(runtime.device)
            self.generator.cover(X, recipe.spread, runtime.rng)
            sizes = (n_features, *recipe.hidden, 1)
            self.critic = EnsembleMLP(recipe.n_estimators, sizes, runtime.rng)
        self.n_steps = 0
        self.snapshots: list[Snapshot] = []
        self.keep(math.nan)

    def check_continues(
        self, recipe: G2DRecipe, n_features: int, image_shape: ImageShape | None
    ) -> None:
        """Raise ValueError if further training would need another architecture."""
        config = self.generator.config
        asked = {
            "n_members": recipe.n_estimators,
            "latent_dim": recipe.latent_dim or self.generator.latent_dim,
            "width": recipe.width,
            **({"image_shape": image_shape} if recipe.width else {"n_features": n_features}),
        }
        for key, now in asked.items():
            before, name = config.get(key, 0), key.replace("n_members", "n_estimators")
            if before != now:
                raise ValueError(
                    f"warm_start=True continues networks fitted with {name}={before}, but "
                    f"{name} is now {now}. Change it back, or set warm_start=False."
                )

    def trainer(self, X: Tensor, recipe: G2DRecipe, runtime: Runtime) -> WGAN:
        """Prepare training on the rows `X`, from where the networks are."""
        if recipe.snapshot_selection == "geometric":
            schedule = set(geometric_steps(recipe.max_steps, recipe.n_snapshots))
        else:
            epoch = round(len(X) / (recipe.batch_size * recipe.n_critic))
            interval = max(1, epoch, recipe.max_steps // _MAX_EPOCHS_KEPT)
            schedule = set(range(interval, recipe.max_steps + 1, interval))
        return _SnapshotTrainer(self, schedule, X, recipe, runtime)

    def keep(self, loss: Tensor | float) -> None:
        """Keep the generator as it is now, unless that has been done."""
        if not self.snapshots or self.snapshots[-1].step < self.n_steps:
            weights = weights_of(self.generator)
            self.snapshots.append(Snapshot(self.n_steps, float(loss), "far", weights))

    def sample(
        self, snapshots: Sequence[Snapshot], n: int, runtime: Runtime
    ) -> NDArray[np.float64]:
        """Draw `n` rows, equally from snapshots and members, in the space of `X`."""
        # Averages kept by batch norm, not those of the batch: a sample's value must not depend
        # on its neighbours, nor two samples be the least.
        generator = copy.deepcopy(self.generator).eval()
        n_each = math.ceil(n / (len(snapshots) * generator.n_members))
        drawn = []
        for snapshot in snapshots:
            load_weights(generator, snapshot.weights)
            with torch.no_grad():
                samples = generator.to(runtime.device).sample(n_each, runtime.rng)
            drawn.append(samples.flatten(0, 1))
        rows = torch.cat(drawn)
        chosen = torch.randperm(len(rows), generator=runtime.rng, device=rows.device)[:n]
        return rows[chosen].cpu().double().numpy()


class _SnapshotTrainer(WGAN):
    """Trains an `IrregularityGenerator`, keeping snapshots after the steps of a schedule."""

    def __init__(
        self,
        owner: IrregularityGenerator,
        schedule: set[int],
        X: Tensor,
        recipe: G2DRecipe,
        runtime: Runtime,
    ) -> None:
        super().__init__(owner.generator, owner.critic, X, recipe.gan_training, runtime)
        self._owner, self._first_step = owner, owner.n_steps
        self._schedule_of_snapshots = schedule

    def step(self) -> Losses:
        losses = super().step()
        self._owner.n_steps += 1
        if self.n_steps in self._schedule_of_snapshots:
            self._owner.keep(losses["generator_loss"])
        return losses

    def state_dict(self) -> State:
        return super().state_dict() | {"snapshots": list(self._owner.snapshots)}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._owner.n_steps = self._first_step + self.n_steps
        self._owner.snapshots = list(state["snapshots"])
