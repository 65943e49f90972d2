"""The paper's generator and critic: a Wasserstein GAN, and the snapshots of its training."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import FunctionType
from typing import Any, ClassVar, Literal

import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from sklearn_g2d.g2d import _networks as networks
from sklearn_g2d.g2d._generators import Space
from sklearn_g2d.g2d._snapshots import Snapshot, irregular, select, steps_to_keep
from sklearn_g2d.training import optimizers, parallel
from sklearn_g2d.training.ensemble import load_weights
from sklearn_g2d.training.history import History, extend
from sklearn_g2d.training.runtime import Runtime
from sklearn_g2d.training.session import Session
from sklearn_g2d.training.trainer import Losses, State, Trainer
from sklearn_g2d.utils.arrays import Floats

# Parameters that determine the architecture of the networks. They must not change between fits
# with warm_start=True.
_ARCHITECTURE = (
    *("n_members", "latent_dim", "hidden_layer_sizes", "spread", "tail"),
    *("generator_network", "critic_network"),
)

# Largest number of epochs. A generator is kept after each, and an epoch of a small table has few
# steps.
_MAX_EPOCHS = 100

# Number of samples of a snapshot for finding its role.
_ROLE_SAMPLES = 512


@dataclass(eq=False, repr=False, kw_only=True)
class WassersteinGAN(BaseEstimator):
    """Outliers from the half-trained generators of a Wasserstein GAN [1]_.

    A generator is trained against a critic on normal rows (Eq. 3 of the paper). Its snapshots make
    the outliers: they are taken while its samples are still far from the normal rows or at their
    boundary (section 3.3). ``G2DOutlierDetector.from_paper`` has the published settings.

    Parameters
    ----------
    max_steps, batch_size : int, default=150 and 64
        Number of training steps of the generator (0 leaves it untrained), and of rows in a step.
    n_critic : int, default=1
        Number of critic steps before each generator step.
    gradient_penalty : float, default=10.0
        Weight of the penalty that keeps the norm of the critic's gradient near 1 [2]_.
    optimizer, schedule : str or callable, default="adam" and "constant"
        As in `NetworkClassifier`, for both networks.
    learning_rate : float, default=1e-3
        Learning rate of both networks.
    betas : tuple of float, default=(0.5, 0.999)
        Parameters of Adam and AdamW; ignored by other optimisers.
    n_members : int, default=8
        Number of generators. Each has its own critic, and all are trained in parallel.
    latent_dim : int or "auto", default="auto"
        Length of the noise vector. "auto" is the number of columns, but at least 16 and at most
        200.
    hidden_layer_sizes : tuple of int, default=(64, 64)
        Hidden layers of the perceptrons; ignored by other networks.
    spread : float, default=2.0
        A linear connection beside the perceptron makes the untrained generator a Gaussian cloud
        around the data, with `spread` times their standard deviation. 0 leaves the connection out,
        as published. Ignored by other networks.
    tail : float, default=1.6
        Noise vectors are multiplied by ``exp(tail * u**2)`` with u uniform in (0, 1). Ignored by
        other networks.
    snapshots : {"geometric", "loss"} or callable, default="geometric"
        Choice of the generators that make outliers. "geometric" takes those before the first step
        and after `max_steps` times 1, 1/2, 1/4 and so on, without those whose samples already lie
        among the normal rows. "loss" (as published) takes them evenly from the epochs in which the
        generator's loss still falls. A callable gets one `Snapshot` for each epoch and returns
        those to use.
    n_snapshots : int, default=6
        Number of snapshots, the paper's k. Ignored if `snapshots` is a callable.
    epoch_steps : int or "auto", default="auto"
        Number of steps in an epoch. With "auto" the critic sees all rows once in an epoch, but an
        epoch has at least a hundredth of `max_steps`. Ignored if `snapshots` is "geometric".
    generator_network : "perceptron", ConvGenerator, RowGenerator or callable, default="perceptron"
        A callable gets `latent_dim` and the shape of a sample, (n_features,) or (channels, height,
        width), and returns a ``torch.nn.Module`` that maps noise (n, latent_dim) to samples
        ``(n, *shape)``.
    critic_network : "perceptron", ConvNetwork or callable, default="perceptron"
        A callable gets the shape of a sample and the number of outputs, 1, and returns a
        ``torch.nn.Module`` that maps samples ``(n, *shape)`` to (n, 1).

    Attributes
    ----------
    snapshots_ : list of Snapshot
        The generators that were kept, in order of training.
    n_steps_, latent_dim_ : int
        Number of generator steps so far, and the length of the noise vector.
    history_ : dict of ndarray
        "critic_loss" and "generator_loss" (Eq. 3) by step.

    References
    ----------
    .. [1] M. Pourreza et al., "G2D: Generate to Detect Anomalies", WACV 2021.
    .. [2] I. Gulrajani et al., "Improved Training of Wasserstein GANs", NIPS 2017.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from sklearn_g2d import G2DOutlierDetector
    >>> from sklearn_g2d.g2d import WassersteinGAN
    >>> detector = G2DOutlierDetector(generator=WassersteinGAN(max_steps=20), random_state=0)
    >>> len(detector.fit(load_wine().data).snapshots_)
    6
    """

    max_steps: int = 150
    batch_size: int = 64
    n_critic: int = 1
    gradient_penalty: float = 10.0
    optimizer: optimizers.Optimizer = "adam"
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.999)
    schedule: optimizers.Schedule = "constant"
    n_members: int = 8
    latent_dim: int | str = "auto"
    hidden_layer_sizes: Sequence[int] = (64, 64)
    spread: float = 2.0
    tail: float = 1.6
    snapshots: Any = "geometric"
    n_snapshots: int = 6
    epoch_steps: int | Literal["auto"] = "auto"
    generator_network: Any = "perceptron"
    critic_network: Any = "perceptron"

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "max_steps": [Interval(Integral, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "n_critic": [Interval(Integral, 1, None, closed="left")],
        "gradient_penalty": [Interval(Real, 0, None, closed="left")],
        "optimizer": optimizers.OPTIMIZER_CONSTRAINT,
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "betas": [tuple, list],
        "schedule": optimizers.SCHEDULE_CONSTRAINT,
        "n_members": [Interval(Integral, 1, None, closed="left")],
        "latent_dim": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "hidden_layer_sizes": [tuple, list],
        "spread": [Interval(Real, 0, None, closed="left")],
        "tail": [Interval(Real, 0, None, closed="left")],
        "snapshots": [StrOptions({"geometric", "loss"}), callable],
        "n_snapshots": [Interval(Integral, 1, None, closed="left")],
        "epoch_steps": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "generator_network": networks.GENERATOR_CONSTRAINT,
        "critic_network": networks.NETWORK_CONSTRAINT,
    }

    def fit_in(self, points: Floats, session: Session, space: Space) -> None:
        """Train on normal points (n_samples, n_features), and choose the snapshots."""
        self._validate_params()
        X = session.runtime.tensor(points)
        if session.earlier is None:
            self._build(X, space, session.runtime)
        else:
            self._continue(session.earlier, space)
        losses = session.train(
            "generator",
            WGANTrainer(self, X, session.runtime),
            self.max_steps,
            remedy="Lower max_steps, or move gradient_penalty towards 10.",
            current=lambda: {"generator_": self._current()},
        )
        # Keep the final generator, too, if the last epoch is not complete.
        n_new = self.n_steps_ - self._kept[-1].step
        if n_new:
            self.keep(losses["generator_loss"][-n_new:].mean())
        self.history_: History = extend(self.history_, losses)

        def fraction_inside(snapshot: Snapshot) -> float:
            return space.fraction_inside(self.draw(_ROLE_SAMPLES, session.runtime.rng, [snapshot]))

        self.snapshots_ = select(self._kept, self.snapshots, self.n_snapshots, fraction_inside)

    def draw(
        self, n: int, rng: torch.Generator, snapshots: Sequence[Snapshot] | None = None
    ) -> Floats:
        """Draw points (n, n_features), equally many from each snapshot.

        The default is all snapshots that make outliers.
        """
        chosen = irregular(self.snapshots_) if snapshots is None else snapshots
        # In `eval` mode batch norm uses the statistics of `calibrated_weights`. Those of the batch
        # would make a sample depend on the others, and do not exist for a single sample.
        generator = copy.deepcopy(self._generator).eval()
        n_each = math.ceil(n / (len(chosen) * generator.n_members))
        drawn = []
        for snapshot in chosen:
            load_weights(generator, snapshot.weights)
            with torch.no_grad():
                samples = generator.to(rng.device).sample(n_each, rng)
            drawn.append(samples.flatten(0, 1))
        rows = torch.cat(drawn)
        order = torch.randperm(len(rows), generator=rng, device=rows.device)[:n]
        return rows[order].cpu().double().numpy()

    def keep(self, loss: Tensor | float) -> None:
        """Keep a snapshot of the generator, unless there is one of this step."""
        if not self._kept or self._kept[-1].step < self.n_steps_:
            self._kept.append(self._snapshot(loss))

    def _snapshot(self, loss: Tensor | float) -> Snapshot:
        # `select` replaces the role after training.
        weights = networks.calibrated_weights(self._generator)
        return Snapshot(self.n_steps_, float(loss), "far", weights)

    def _current(self) -> WassersteinGAN:
        """Return a fitted copy with one snapshot, the generator at this step of its training."""
        current = copy.copy(self)
        current.snapshots_ = [self._snapshot(math.nan)]
        return current

    def _build(self, X: Tensor, space: Space, runtime: Runtime) -> None:
        n_features = X.shape[1]
        by_data = min(max(16, n_features), 200)
        self.latent_dim_ = by_data if self.latent_dim == "auto" else int(self.latent_dim)
        self._generator = networks.build_generator(
            self, X, self.latent_dim_, space.shape, space.bound, runtime.rng
        )
        self._critic = networks.build_network(
            self, self.critic_network, space.shape, 1, runtime.rng
        )
        self._architecture = self._describe(space)
        self.n_steps_, self.history_ = 0, {}
        self._kept: list[Snapshot] = []
        self.keep(math.nan)

    def _continue(self, earlier: WassersteinGAN, space: Space) -> None:
        """Continue with copies of another's networks; after an error the other is unchanged."""
        for name, now in self._describe(space).items():
            before = earlier._architecture[name]
            if before != now:
                raise ValueError(
                    f"warm_start=True continues networks fitted with {name}={before}, but {name} "
                    f"is now {now}. Change it back, or set warm_start=False."
                )
        for name in ("_generator", "_critic", "_kept", "latent_dim_", "n_steps_", "history_"):
            setattr(self, name, copy.deepcopy(getattr(earlier, name)))
        self._architecture = earlier._architecture

    def _describe(self, space: Space) -> dict[str, Any]:
        """Return all values that determine the networks' architecture, by name."""
        own = {name: _identity(getattr(self, name)) for name in _ARCHITECTURE}
        return own | {"shape of a sample": space.shape, "bound of the scaler": space.bound}


class WGANTrainer(Trainer):
    """Adversarial training of a generator and a critic on normal rows, Eq. 3.

    A step is a step of the generator. Its losses are means over the ensemble: "generator_loss" is
    Eq. 3 of the paper, and "critic_loss" is the loss that the critic minimises. `gan` holds the
    settings, the networks and the snapshots.
    """

    def __init__(self, gan: WassersteinGAN, X: Tensor, runtime: Runtime) -> None:
        self.gan, self.X = gan, X
        self.generator = gan._generator.to(runtime.device)
        self.critic = gan._critic.to(runtime.device)
        self.batch_size = parallel.own_batch_size(gan.batch_size)
        self.generator_optimizer, self.critic_optimizer = (
            optimizers.make_optimizer(gan.optimizer, n.parameters(), gan.learning_rate, gan.betas)
            for n in (self.generator, self.critic)
        )
        self._first_step = gan.n_steps_
        # Losses since the last snapshot, for the mean loss of the next one.
        self._since_kept: list[Tensor] = []
        epoch: Any = gan.epoch_steps
        if epoch == "auto":
            epoch = round(len(X) / (gan.batch_size * gan.n_critic))
            epoch = max(1, epoch, gan.max_steps // _MAX_EPOCHS)
        self._kept_after = steps_to_keep(gan.snapshots, gan.max_steps, gan.n_snapshots, epoch)
        # In training batch norm uses the statistics of the batch; `draw` uses other ones.
        self.generator.train()
        super().__init__(
            {"generator": self.generator, "critic": self.critic},
            (self.generator_optimizer, self.critic_optimizer),
            runtime,
        )

    def step(self) -> Losses:
        """Train one step, and keep a snapshot after the steps of the schedule."""
        losses = super().step()
        self.gan.n_steps_ += 1
        self._since_kept.append(losses["generator_loss"])
        if self.n_steps in self._kept_after:
            self.gan.keep(torch.stack(self._since_kept).mean())
            self._since_kept = []
        return losses

    def state_dict(self) -> State:
        """Copy everything that further steps depend on, except the data and the settings."""
        return super().state_dict() | {
            "snapshots": [dict(vars(s)) for s in self.gan._kept],
            "since_kept": list(self._since_kept),
        }

    def load_state_dict(self, state: State) -> None:
        """Load a state of this training. Later steps do not change it: it can be loaded again."""
        super().load_state_dict(state)
        self.gan.n_steps_ = self._first_step + self.n_steps
        self.gan._kept = [Snapshot(**snapshot) for snapshot in state["snapshots"]]
        device = self.runtime.device
        self._since_kept = [torch.as_tensor(v, device=device) for v in state["since_kept"]]

    def _schedule(self) -> float:
        return optimizers.rate_factor(self.gan.schedule, self.n_steps, self.gan.max_steps)

    def _step(self) -> Losses:
        for _ in range(self.gan.n_critic):
            losses = self._critic_step()
        self._generator_step()
        return losses

    def _critic_step(self) -> Losses:
        X, n, rng = self.X, self.batch_size, self.runtime.rng
        rows = torch.randint(len(X), (self.generator.n_members, n), generator=rng, device=X.device)
        real = X[rows]
        with self.runtime.autocast():
            with torch.no_grad():
                generated = self.generator.sample(n, rng)
            # Eq. 3: the critic's mean score of real rows minus that of generated rows. It
            # estimates the Wasserstein distance, which is the generator's loss.
            distance = (self.critic(real) - self.critic(generated)).float().mean((1, 2))
        # The penalty of Gulrajani et al.: at random points between real and generated rows, the
        # critic's gradient should have the norm 1.
        fraction = torch.rand(
            real.shape[:2], generator=rng, device=X.device, dtype=torch.float32
        ).unsqueeze(2)
        with self.runtime.autocast():
            slope = self.critic.input_gradient(torch.lerp(generated.float(), real, fraction))
        # The epsilon is needed because the root has no finite gradient at zero.
        norm = (slope.float().square().sum(2) + 1e-12).sqrt()
        penalty = (norm - 1).square().mean(1)
        loss = self.gan.gradient_penalty * penalty - distance
        # Members share no weights, so that each trains on its own term of the sum.
        self._update(self.critic_optimizer, loss.sum())
        return {"critic_loss": loss.detach().mean(), "generator_loss": distance.detach().mean()}

    def _generator_step(self) -> None:
        # Real rows do not depend on the generator: their term of Eq. 3 has no gradient here.
        with self.runtime.autocast():
            generated = self.generator.sample(self.batch_size, self.runtime.rng)
            loss = -self.critic(generated).float().mean((1, 2))
        self._update(self.generator_optimizer, loss.sum())


def _identity(value: Any) -> Any:
    """Return a value that can be compared between fits: the setting itself, or its `repr`."""
    if isinstance(value, list | tuple):
        return tuple(value)
    if isinstance(value, FunctionType | Real | str):
        return value
    # Addresses in memory differ between equal objects.
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
