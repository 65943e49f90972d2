"""Methods of training AVID's networks, by hiding and exchanging parts of the samples.

The published method, `AdversarialInpainting`, is in `_paper.py`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sklearn_g2d.avid._masking import Blocks, Cells, block_pixels
from sklearn_g2d.avid._models import ImageModel, Model
from sklearn_g2d.avid._networks import check_numbers
from sklearn_g2d.training import parallel
from sklearn_g2d.training.ensemble import StorableModule
from sklearn_g2d.training.optimizers import (
    OPTIMIZER_CONSTRAINT,
    SCHEDULE_CONSTRAINT,
    Optimizer,
    Schedule,
    make_optimizer,
    rate_factor,
)
from sklearn_g2d.training.runtime import Runtime
from sklearn_g2d.training.trainer import Losses, State, Trainer

_BETAS = 0.9, 0.99  # of Adam
_WARM_UP_STEPS = 50


@dataclass(eq=False, repr=False)
class Training(BaseEstimator, ABC):
    """Base class of the methods of training: steps, batches and learning rates."""

    max_steps: int = 1000
    batch_size: int = 16
    learning_rates: tuple[float, float] = (2e-3, 2e-3)
    optimizer: Optimizer = "adam"
    schedule: Schedule = "cosine"

    data: ClassVar[tuple[str, ...]]  # kinds of data that the method is for
    hides: ClassVar[bool]  # whether parts are hidden from the inpainter, also in scoring

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "max_steps": [Interval(Integral, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "learning_rates": ["array-like"],
        "optimizer": OPTIMIZER_CONSTRAINT,
        "schedule": SCHEDULE_CONSTRAINT,
    }

    def validate(self) -> None:
        """Raise ValueError if a parameter is out of range."""
        self._validate_params()
        if len(check_numbers(self, "learning_rates", least=0)) != 2:
            raise ValueError(
                "learning_rates must be two numbers, for the inpainter and for the detector; got "
                f"{self.learning_rates!r}."
            )

    @abstractmethod
    def make_trainer(
        self, model: Model, X: Tensor, held_out: Tensor, runtime: Runtime
    ) -> NetworksTrainer:
        """Return a trainer of a model's networks on `X`, the input of the networks."""


@dataclass(eq=False, repr=False)
class _Inpainting(Training):
    """Base class of the two methods that hide and exchange parts of the samples."""

    detector_every: int = 1
    reconstruction_weight: float = 1.0
    adversarial_weight: float = 0.0
    hidden_fraction: float = 0.5
    exchanged_fraction: float = 0.3
    averaging_decay: float = 0.99

    hides: ClassVar[bool] = True

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **Training._parameter_constraints,
        "detector_every": [Interval(Integral, 1, None, closed="left")],
        "reconstruction_weight": [Interval(Real, 0, None, closed="left")],
        "adversarial_weight": [Interval(Real, 0, None, closed="left")],
        "hidden_fraction": [Interval(Real, 0, 1, closed="right")],
        "exchanged_fraction": [Interval(Real, 0, 1, closed="right")],
        "averaging_decay": [Interval(Real, 0, 1, closed="left")],
    }


@dataclass(eq=False, repr=False)
class MaskedInpainting(_Inpainting):
    """Training by inpainting hidden blocks of images, and by detecting exchanged blocks.

    This is the default of `AVIDDetector` on images. Both networks see crops of images. The
    inpainter learns to restore blocks that are hidden from it; in new images blocks are hidden,
    too. The detector learns to find regions that were replaced by those of another image at the
    same place.

    Parameters
    ----------
    max_steps : int, default=4000
        Number of training steps; 0 leaves the networks untrained.
    batch_size : int, default=16
        Number of crops in a step.
    learning_rates : tuple of float, default=(4e-3, 3e-3)
        Learning rates of the inpainter and of the detector.
    optimizer : {"adam", "adamw", "sgd"} or callable, default="adam"
        Adam and AdamW have betas of .9 and .99, SGD has a momentum of .9. A callable gets the
        parameters and the learning rate, and returns a `torch.optim.Optimizer`.
    schedule : {"constant", "cosine"} or callable, default="cosine"
        Factor of both learning rates. "cosine" rises over 50 steps, and then falls to 0. A callable
        gets the finished fraction of the training.
    detector_every : int, default=3
        Number of inpainter steps for each detector step. The detector is easier to train, and after
        more steps it would look only at the edges of exchanged blocks.
    reconstruction_weight : float, default=1.0
        Weight of the squared error in the inpainter's loss.
    adversarial_weight : float, default=0.0
        Weight of the adversarial term in the inpainter's loss: how anomalous the detector finds the
        inpainted crops. Above 0 the detector also learns that inpainted regions that differ from
        the original are anomalous. It improved no benchmark (docs/ablation.md).
    hidden_fraction : float, default=0.5
        Fraction of the pixels that are hidden from the inpainter.
    exchanged_fraction : float, default=0.3
        Fraction of the pixels that are exchanged for the detector.
    averaging_decay : float, default=0.99
        Decay of the running average of the weights over steps, which is used in scoring. 0 means
        the weights after the last step.
    block_sizes : sequence of float, default=(0.5, 0.7, 1.0)
        Sides of hidden and exchanged blocks, in units of the region size. Each batch has blocks of
        one size. In scoring the smallest blocks are hidden.

    Examples
    --------
    >>> from sklearn_g2d import AVIDDetector
    >>> from sklearn_g2d.avid import MaskedInpainting
    >>> detector = AVIDDetector(training=MaskedInpainting(max_steps=1000))
    """

    max_steps: int = 4000
    learning_rates: tuple[float, float] = (4e-3, 3e-3)
    detector_every: int = 3
    block_sizes: Sequence[float] = (0.5, 0.7, 1.0)

    data: ClassVar[tuple[str, ...]] = ("images",)

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **_Inpainting._parameter_constraints,
        "block_sizes": ["array-like"],
    }

    def validate(self) -> None:
        """Raise ValueError if a parameter is out of range."""
        super().validate()
        check_numbers(self, "block_sizes", least=0.01)

    def hidden_block(self, region_size: int) -> int:
        """Return the side in pixels of the blocks that are hidden in scoring."""
        return block_pixels(region_size, min(self.block_sizes))

    def make_trainer(
        self, model: Model, X: Tensor, held_out: Tensor, runtime: Runtime
    ) -> InpaintingTrainer:
        """Return a trainer of a model's networks on images `X`."""
        assert isinstance(model, ImageModel)
        blocks = Blocks(X, model.crop, model.preprocessor.region_size, self.block_sizes)
        return InpaintingTrainer(self, model.inpainter, model.detector, blocks, runtime)


@dataclass(eq=False, repr=False)
class CellInpainting(_Inpainting):
    """Training by inpainting hidden cells of a table's rows, and by detecting exchanged cells.

    This is the default of `AVIDDetector` on tables. The inpainter learns to restore cells that are
    hidden from it; in new rows cells are hidden, too. The detector learns to find cells that have
    the value of another row.

    Parameters
    ----------
    max_steps : int, default=2000
    batch_size : int, default=128
    learning_rates : tuple of float, default=(2e-3, 2e-3)
    optimizer : {"adam", "adamw", "sgd"} or callable, default="adam"
    schedule : {"constant", "cosine"} or callable, default="cosine"
    detector_every : int, default=1
    reconstruction_weight : float, default=1.0
    adversarial_weight : float, default=0.0
    averaging_decay : float, default=0.99
        As in `MaskedInpainting`.
    hidden_fraction : float, default=0.5
        Mean fraction of the cells that are hidden from the inpainter, at most .5.
    exchanged_fraction : float, default=0.3
        Mean fraction of the cells that are exchanged for the detector, at most .5.
    far_fraction : float, default=0.25
        Fraction of the exchanged cells that get a value from a range wider than that of the column,
        instead of the value of another row.

    Examples
    --------
    >>> from sklearn_g2d import AVIDDetector
    >>> from sklearn_g2d.avid import CellInpainting
    >>> detector = AVIDDetector(training=CellInpainting(max_steps=500))
    """

    max_steps: int = 2000
    batch_size: int = 128
    far_fraction: float = 0.25

    data: ClassVar[tuple[str, ...]] = ("tables",)

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **_Inpainting._parameter_constraints,
        "hidden_fraction": [Interval(Real, 0, 0.5, closed="right")],
        "exchanged_fraction": [Interval(Real, 0, 0.5, closed="right")],
        "far_fraction": [Interval(Real, 0, 1, closed="both")],
    }

    def make_trainer(
        self, model: Model, X: Tensor, held_out: Tensor, runtime: Runtime
    ) -> InpaintingTrainer:
        """Return a trainer of a model's networks on rows `X`."""
        cells = Cells(X, self.far_fraction)
        return InpaintingTrainer(self, model.inpainter, model.detector, cells, runtime)


class NetworksTrainer(Trainer):
    """Base class of trainers of both networks; `keep` makes modules with those for scoring."""

    def __init__(
        self,
        training: Training,
        inpainter: StorableModule,
        detector: StorableModule,
        keep: Callable[[StorableModule], Any],
        runtime: Runtime,
        betas: tuple[float, float] = _BETAS,
    ) -> None:
        networks = inpainter, detector
        self.inpainter, self.detector = (net.float().to(runtime.device) for net in networks)
        self._kept_inpainter, self._kept_detector = keep(self.inpainter), keep(self.detector)
        self.inpainter.train()
        self.detector.train()
        self.inpainter_optimizer, self.detector_optimizer = (
            make_optimizer(training.optimizer, list(net.parameters()), rate, betas)
            for net, rate in zip(networks, training.learning_rates, strict=True)
        )
        self.batch_size = parallel.own_batch_size(training.batch_size)
        self._training = training
        trained = {"inpainter": self.inpainter, "detector": self.detector}
        kept = {"kept_inpainter": self._kept_inpainter, "kept_detector": self._kept_detector}
        optimizers = self.inpainter_optimizer, self.detector_optimizer
        super().__init__(trained | kept, optimizers, runtime)

    @property
    def result(self) -> tuple[StorableModule, StorableModule]:
        """Return the inpainter and the detector for scoring, in evaluation mode."""
        return self._kept_inpainter.network.eval(), self._kept_detector.network.eval()

    def _schedule(self) -> float:
        training = self._training
        return rate_factor(training.schedule, self.n_steps, training.max_steps, _WARM_UP_STEPS)


class InpaintingTrainer(NetworksTrainer):
    """Training by hiding and exchanging parts of the `samples`.

    The "reconstruction_loss" is the mean squared error of the hidden parts.
    """

    def __init__(
        self,
        training: _Inpainting,
        inpainter: StorableModule,
        detector: StorableModule,
        samples: Blocks | Cells,
        runtime: Runtime,
    ) -> None:
        self.training = training
        self.samples = samples
        self._detector_losses: Losses = {}  # those of its last step
        keep = partial(_Average, decay=training.averaging_decay)
        super().__init__(training, inpainter, detector, keep, runtime)

    def state_dict(self) -> State:
        """Copy everything that further steps depend on, except the data and the settings."""
        return super().state_dict() | {"detector_losses": dict(self._detector_losses)}

    def load_state_dict(self, state: State) -> None:
        """Load an earlier or a later state, which may be loaded again afterwards."""
        super().load_state_dict(state)
        self._detector_losses = {
            name: torch.as_tensor(loss, device=self.runtime.device)
            for name, loss in state["detector_losses"].items()
        }

    def _step(self) -> Losses:
        losses, x, inpainted = self._inpainter_step()
        if self.n_steps % self.training.detector_every == 0:
            self._detector_losses = self._detector_step(x, inpainted)
        self._kept_inpainter.update(self.inpainter, self.n_steps)
        self._kept_detector.update(self.detector, self.n_steps)
        return losses | self._detector_losses

    def _inpainter_step(self) -> tuple[Losses, Tensor, Tensor]:
        """Train the inpainter; return losses, samples, and the inpainted samples."""
        training = self.training
        x = self.samples.draw(self.batch_size, self.runtime)
        hidden = self.samples.mask(x, training.hidden_fraction, self.runtime)
        with self.runtime.autocast():
            guess = self.inpainter(x, hidden).float()
        inpainted = torch.where(hidden > 0, guess, x)
        error = (inpainted - x).square().sum() / (x.numel() * hidden.mean()).clamp(min=1)
        loss, losses = training.reconstruction_weight * error, {"reconstruction_loss": error}
        if training.adversarial_weight:
            with self.runtime.autocast():
                logits = self.detector(inpainted).float()
            adversarial = F.softplus(logits).mean()
            loss = loss + training.adversarial_weight * adversarial
            losses["adversarial_loss"] = adversarial
        self._update(self.inpainter_optimizer, loss)
        return {name: value.detach() for name, value in losses.items()}, x, inpainted.detach()

    def _detector_step(self, x: Tensor, inpainted: Tensor) -> Losses:
        """Train the detector on normal and exchanged samples, and on inpainted ones if asked."""
        n = self.batch_size
        real, elsewhere = self.samples.draw_pairs(n, self.runtime)
        mask = self.samples.mask(real, self.training.exchanged_fraction, self.runtime)
        before, after = real, torch.where(mask > 0, elsewhere, real)
        if self.training.adversarial_weight:
            before, after = torch.cat([before, x]), torch.cat([after, inpainted])
        with self.runtime.autocast():
            logits = self.detector(torch.cat([real, after])).float()
        changed, certain = self.samples.compare(before, after, logits[n:])
        labels = torch.zeros_like(logits)
        labels[n:] = changed
        if certain is None:
            loss = F.binary_cross_entropy_with_logits(logits, labels)
        else:
            weights = torch.ones_like(logits)
            weights[n:] = certain
            loss = F.binary_cross_entropy_with_logits(logits, labels, weights, reduction="sum")
            loss = loss / weights.sum()
        self._update(self.detector_optimizer, loss)
        return {"detector_loss": loss.detach()}


_averaging = lru_cache(maxsize=1)(get_ema_multi_avg_fn)  # the decay of both networks is the same


class _Average(nn.Module):
    """The running average of a network's weights over the steps of its training."""

    network: StorableModule

    def __init__(self, network: StorableModule, decay: float) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).to(next(network.parameters()).device)
        self.decay = decay
        # Collect the tensors only once. PyTorch's `AveragedModel` searches the modules at each
        # step, which takes a tenth of a small network's step.
        self._averages, self._values = (
            [value for value in net.state_dict().values() if value.is_floating_point()]
            for net in (self.network, network)
        )

    def update(self, network: nn.Module, n_before: int) -> None:
        # At first average only over the last tenth of the steps, so that a short training forgets
        # its start, too.
        decay = min(self.decay, (1 + n_before) / (10 + n_before)) if n_before else 0.0
        _averaging(decay)(self._averages, self._values, n_before)
