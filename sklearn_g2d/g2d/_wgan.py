"""I + C of the G2D paper: the Wasserstein GAN whose generator makes irregular samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sklearn_g2d.g2d._image_networks import ConvGenerator, ConvNetwork
from sklearn_g2d.g2d._networks import TableGenerator
from sklearn_g2d.training import parallel
from sklearn_g2d.training.ensemble import EnsembleMLP
from sklearn_g2d.training.runtime import Runtime
from sklearn_g2d.training.trainer import Losses, Trainer


@dataclass(frozen=True)
class WGANSettings:
    """How the generator and the critic are trained.

    Attributes
    ----------
    batch_size : int
        Rows a step and member.
    n_critic : int
        Steps of the critic before each step of the generator.
    gradient_penalty : float
        Weight of the penalty that holds the critic's gradient near norm 1
        (Gulrajani et al., 2017).
    learning_rate : float
        Adam's, for both networks.
    betas : tuple of float
        Adam's.
    """

    batch_size: int
    n_critic: int
    gradient_penalty: float
    learning_rate: float
    betas: tuple[float, float] = (0.5, 0.999)


class WGAN(Trainer):
    """Adversarial training of `generator` and `critic` on normal rows.

    A step is one of the generator. Of its mean losses, "generator_loss" is Eq. 3 of the paper,
    "critic_loss" what the critic minimises.

    Parameters
    ----------
    generator : TableGenerator or ConvGenerator
        The paper's I.
    critic : EnsembleMLP or ConvNetwork
        The paper's C, with one output.
    X : Tensor of shape (n, n_features)
        Normal rows.
    settings : WGANSettings
        How to train.
    runtime : Runtime
        Device, precision and random numbers.
    """

    def __init__(
        self,
        generator: TableGenerator | ConvGenerator,
        critic: EnsembleMLP | ConvNetwork,
        X: Tensor,
        settings: WGANSettings,
        runtime: Runtime,
    ) -> None:
        self.generator = generator.to(runtime.device)
        self.critic = critic.to(runtime.device)
        self.X = X
        self.settings = parallel.share_of(settings)
        self.generator_optimizer, self.critic_optimizer = (
            torch.optim.Adam(
                network.parameters(),
                lr=settings.learning_rate,
                betas=settings.betas,
                fused=True,
            )
            for network in (generator, critic)
        )
        self.generator.train()  # batch norm as in a batch; it knows another mode, for sampling
        super().__init__(
            {"generator": generator, "critic": critic},
            (self.generator_optimizer, self.critic_optimizer),
            runtime,
        )

    def _step(self) -> Losses:
        for _ in range(self.settings.n_critic):
            losses = self._critic_step()
        self._generator_step()
        return losses

    def _critic_step(self) -> Losses:
        X, n, rng = self.X, self.settings.batch_size, self.runtime.rng
        rows = torch.randint(len(X), (self.generator.n_members, n), generator=rng, device=X.device)
        real = X[rows]
        with self.runtime.autocast():
            with torch.no_grad():
                generated = self.generator.sample(n, rng)
            # Eq. 3: how much higher the critic scores real rows than generated ones, an
            # estimate of the Wasserstein distance, and so the generator's loss.
            distance = (self.critic(real) - self.critic(generated)).float().mean((1, 2))
        share = torch.rand(real.shape[:2], generator=rng, device=X.device).unsqueeze(2)
        with self.runtime.autocast():
            slope = self.critic.input_gradient(torch.lerp(generated.float(), real, share))
        # The root of an exact zero has no gradient, hence the epsilon inside.
        norm = (slope.float().square().sum(2) + 1e-12).sqrt()
        penalty = (norm - 1).square().mean(1)
        loss = self.settings.gradient_penalty * penalty - distance
        self._update(self.critic_optimizer, loss.sum())  # members train as if alone
        return {"critic_loss": loss.detach().mean(), "generator_loss": distance.detach().mean()}

    def _generator_step(self) -> None:
        with self.runtime.autocast():
            generated = self.generator.sample(self.settings.batch_size, self.runtime.rng)
            loss = -self.critic(generated).float().mean((1, 2))
        self._update(self.generator_optimizer, loss.sum())
