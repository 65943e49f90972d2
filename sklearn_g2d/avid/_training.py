"""I + D of AVID: an inpainter and a detector of regions, trained against each other."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sklearn_g2d.avid._masking import Regions
from sklearn_g2d.avid._networks import CellDetector, CellInpainter, PatchDetector, UNet
from sklearn_g2d.training import parallel
from sklearn_g2d.training.runtime import Runtime
from sklearn_g2d.training.trainer import Losses, State, Trainer

# Share of the places that are hidden from I, and exchanged before D.
_HIDDEN, _EXCHANGED = 0.5, 0.3

_WARM_UP_STEPS = 50
_DECAY = 0.99  # of the average over steps

# How often in a training the paper recipe looks for the best moments of I and D.
_CHECKS = 20


@dataclass(frozen=True)
class InpaintingSettings:
    """How the inpainter and the detector are trained.

    Attributes
    ----------
    batch_size : int
        Samples, or crops, a step.
    corruption : "blocks" or "gaussian"
        What I has to repair: hidden blocks, or noise everywhere (Eq. 2).
    noise_scale : float
        The paper's gamma: the noise's standard deviation, in that of the data.
    reconstruction_weight : float
        Weight of I's squared error.
    adversarial_weight : float
        Weight, in I's loss, of what D makes of the inpainted; with 0 D is not shown it. D is told
        that it is irregular where it changed, as much as with exchanged regions.
    learning_rates : tuple of float
        Of I and of D.
    published : bool
        Whether to train as the paper does: D learns from the inpainted alone, by Eq. 3 and
        SGD, and both networks are kept at their best moments. Otherwise exchanged regions are
        what D learns from, by Adam, and networks are averaged over steps.
    detector_every : int, default=1
        D takes a step after so many of I's.
    """

    batch_size: int
    corruption: str
    noise_scale: float
    reconstruction_weight: float
    adversarial_weight: float
    learning_rates: tuple[float, float]
    published: bool
    detector_every: int = 1


class InpaintingGame(Trainer):
    """Training of `inpainter` and `detector` on normal data.

    Of the losses, "reconstruction_loss" is the mean squared error where I had to repair,
    "detector_loss" what D minimises, and "adversarial_loss" what I minimises besides.

    Parameters
    ----------
    inpainter : UNet or CellInpainter
        The paper's I.
    detector : PatchDetector or CellDetector
        The paper's D; its logits are high for irregular regions.
    regions : Regions
        What is hidden, exchanged and judged.
    X : Tensor of shape (n, ...)
        Samples to train on.
    validation : Tensor of shape (m, ...)
        Further ones, by which the paper recipe finds the best moments.
    max_steps : int
        Steps that the training is going to have, unless it is stopped.
    settings : InpaintingSettings
        How to train.
    runtime : Runtime
        Device, precision and random numbers.
    """

    def __init__(
        self,
        inpainter: UNet | CellInpainter,
        detector: PatchDetector | CellDetector,
        regions: Regions,
        X: Tensor,
        validation: Tensor,
        max_steps: int,
        settings: InpaintingSettings,
        runtime: Runtime,
    ) -> None:
        self.inpainter = inpainter.float().to(runtime.device)
        self.detector = detector.float().to(runtime.device)
        self.regions = regions
        self.X, self.validation = X, validation
        self._range = regions.range_of(X)
        self.max_steps = max_steps
        self.settings = parallel.share_of(settings)
        keep: type[_BestMoment] | type[_Average]
        keep = _BestMoment if settings.published else _Average
        self._kept_inpainter, self._kept_detector = keep(self.inpainter), keep(self.detector)
        self.inpainter.train()
        self.detector.train()
        self._inpainter_optimizer, self._detector_optimizer = (
            _optimizer(network, rate, settings.published)
            for network, rate in zip(
                (self.inpainter, self.detector), settings.learning_rates, strict=True
            )
        )
        self._detector_losses: Losses = {}  # of D's last step
        super().__init__(
            {
                "inpainter": self.inpainter,
                "detector": self.detector,
                "kept_inpainter": self._kept_inpainter,
                "kept_detector": self._kept_detector,
            },
            (self._inpainter_optimizer, self._detector_optimizer),
            runtime,
        )

    @property
    def result(self) -> tuple[Any, Any]:
        """The inpainter and the detector to be used, in evaluation mode."""
        return self._kept_inpainter.network.eval(), self._kept_detector.network.eval()

    def state_dict(self) -> State:
        """Copy all that further steps depend on, but for the data and the settings."""
        return super().state_dict() | {"detector_losses": dict(self._detector_losses)}

    def load_state_dict(self, state: State) -> None:
        """Go back, or on, to a state, which may be loaded again afterwards."""
        super().load_state_dict(state)
        self._detector_losses = {
            name: torch.as_tensor(loss, device=self.runtime.device)
            for name, loss in state["detector_losses"].items()
        }

    def _step(self) -> Losses:
        losses, x, inpainted = self._inpainter_step()
        if self.n_steps % self.settings.detector_every == 0:
            self._detector_losses = self._detector_step(x, inpainted)
        if not self.settings.published:
            self._keep(0.0, 0.0)
        elif self.n_steps % max(1, self.max_steps // _CHECKS) == 0 or (
            self.n_steps == self.max_steps - 1
        ):
            self._keep(*self._figures())
        return losses | self._detector_losses

    def _schedule(self) -> float:
        """Warm up, then decay like a cosine; the paper's rate is constant."""
        if self.settings.published:
            return 1.0
        warm_up = min(1.0, (self.n_steps + 1) / _WARM_UP_STEPS)
        return warm_up * (1 + math.cos(math.pi * self.n_steps / self.max_steps)) / 2

    def _inpainter_step(self) -> tuple[Losses, Tensor, Tensor]:
        settings, rng = self.settings, self.runtime.rng
        x = self.regions.draw(self.X, settings.batch_size, rng)
        if settings.corruption == "gaussian":
            noise = torch.randn(x.shape, generator=rng, device=rng.device).to(x)
            seen, hidden = x + settings.noise_scale * noise, torch.zeros_like(x[:1, :1])
            counted = torch.ones_like(x[:, :1])
        else:
            hidden = counted = self.regions.mask(x, _HIDDEN, rng)
            seen = x
        with self.runtime.autocast():
            inpainted = self.inpainter(seen, hidden).float()
        inpainted = torch.where(counted > 0, inpainted, x)
        error = (inpainted - x).square().sum() / (x.numel() * counted.mean()).clamp(min=1)
        loss, losses = settings.reconstruction_weight * error, {"reconstruction_loss": error}
        if settings.adversarial_weight:
            with self.runtime.autocast():
                logits = self.detector(inpainted).float()
            if settings.published:
                adversarial = _log_square(torch.sigmoid(logits))  # 1 - D(I(X)) of Eq. 3
            else:
                adversarial = F.softplus(logits).mean()
            loss = loss + settings.adversarial_weight * adversarial
            losses["adversarial_loss"] = adversarial
        self._update(self._inpainter_optimizer, loss)
        return {name: value.detach() for name, value in losses.items()}, x, inpainted.detach()

    def _detector_step(self, x: Tensor, inpainted: Tensor) -> Losses:
        n, rng = self.settings.batch_size, self.runtime.rng
        if self.settings.published:
            real = self.regions.draw(self.X, n, rng)
            with self.runtime.autocast():
                irregular = torch.sigmoid(self.detector(torch.cat([real, inpainted])).float())
            # Eq. 3, which D maximises: regular real regions, irregular inpainted ones.
            loss = -_log_square(1 - irregular[:n]) - _log_square(irregular[n:])
        else:
            real, elsewhere = self.regions.draw_pairs(self.X, n, self._range, rng)
            mask = self.regions.mask(real, _EXCHANGED, rng)
            before, after = real, torch.where(mask > 0, elsewhere, real)
            if self.settings.adversarial_weight:
                before, after = torch.cat([before, x]), torch.cat([after, inpainted])
            with self.runtime.autocast():
                logits = self.detector(torch.cat([real, after])).float()
            changed, certain = self.regions.compare(before, after, logits[n:])
            labels = torch.zeros_like(logits)
            labels[n:] = changed
            if certain is None:
                loss = F.binary_cross_entropy_with_logits(logits, labels)
            else:
                weights = torch.ones_like(logits)
                weights[n:] = certain
                loss = F.binary_cross_entropy_with_logits(logits, labels, weights, reduction="sum")
                loss = loss / weights.sum()
        self._update(self._detector_optimizer, loss)
        return {"detector_loss": loss.detach()}

    def _keep(self, error: float, mistakes: float) -> None:
        self._kept_inpainter.update(self.inpainter, self.n_steps, error)
        self._kept_detector.update(self.detector, self.n_steps, mistakes)

    @torch.no_grad()
    def _figures(self) -> tuple[float, float]:
        """Section 4.3: I's error on normal data, and how badly D tells real from inpainted."""
        x = self.regions.draw(self.validation, self.settings.batch_size, self.runtime.rng)
        self.inpainter.eval()
        self.detector.eval()
        with self.runtime.autocast():
            inpainted = self.inpainter(x, torch.zeros_like(x[:1, :1])).float()
            real, fake = self.detector(x), self.detector(inpainted)
        self.inpainter.train()
        self.detector.train()
        mistakes = (real > 0).float().mean() + (fake < 0).float().mean()
        figures = torch.stack([(inpainted - x).square().mean(), mistakes])
        parallel.average([figures])  # lest processes find their best moments at different steps
        error, mistaken = figures.tolist()
        return error, mistaken


_averaging = lru_cache(maxsize=1)(get_ema_multi_avg_fn)  # both networks' decay is the same


class _Average(nn.Module):
    """The average of a network over the steps of its training."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        # Found once: PyTorch's own `AveragedModel` walks through the modules at every step, which
        # takes a tenth of it where networks are small.
        self._averages, self._values = (
            [value for value in net.state_dict().values() if value.is_floating_point()]
            for net in (self.network, network)
        )

    def update(self, network: nn.Module, n_before: int, figure: float) -> None:
        # Over the last tenth at first, so that short trainings forget their start too.
        decay = min(_DECAY, (1 + n_before) / (10 + n_before)) if n_before else 0.0
        _averaging(decay)(self._averages, self._values, n_before)


class _BestMoment(nn.Module):
    """A network as it was when a figure was lowest."""

    lowest: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        device = next(network.parameters()).device
        self.register_buffer("lowest", torch.tensor(math.inf, device=device))

    def update(self, network: nn.Module, n_before: int, figure: float) -> None:
        if figure < self.lowest:
            self.lowest.fill_(figure)
            self.network.load_state_dict(network.state_dict())


def _optimizer(network: nn.Module, learning_rate: float, published: bool) -> torch.optim.Optimizer:
    if published:
        return torch.optim.SGD(network.parameters(), learning_rate, momentum=0.9, fused=True)
    return torch.optim.Adam(network.parameters(), learning_rate, betas=(0.9, 0.99), fused=True)


def _log_square(share: Tensor) -> Tensor:
    """Mean over samples of log ||.||^2 of the matrix of their regions' likelihoods, Eq. 3."""
    return share.flatten(1).square().mean(1).add(1e-12).log().mean()
