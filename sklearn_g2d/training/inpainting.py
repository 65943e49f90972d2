"""I + D of AVID: an inpainter and a detector of regions, trained against each other."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from sklearn_g2d.networks.inpainting import CellDetector, CellInpainter, PatchDetector, UNet
from sklearn_g2d.training.regions import Regions
from sklearn_g2d.training.runtime import Runtime

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
        Weight, in I's loss, of what D makes of the inpainted; with 0 D is not shown it.
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


class InpaintingGame:
    """Training of `inpainter` and `detector` on normal data.

    Parameters
    ----------
    inpainter : UNet or CellInpainter
        The paper's I.
    detector : PatchDetector or CellDetector
        The paper's D; its logits are high for irregular regions.
    regions : Regions
        What is hidden, exchanged and judged.
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
        settings: InpaintingSettings,
        runtime: Runtime,
    ) -> None:
        self.inpainter = inpainter.float().to(runtime.device)
        self.detector = detector.float().to(runtime.device)
        self.regions = regions
        self.settings = settings
        self.runtime = runtime
        keep: type[_BestMoment] | type[_Average]
        keep = _BestMoment if settings.published else _Average
        self._kept_inpainter, self._kept_detector = keep(self.inpainter), keep(self.detector)

    @property
    def result(self) -> tuple[Any, Any]:
        """The inpainter and the detector to be used, in evaluation mode."""
        return self._kept_inpainter.network.eval(), self._kept_detector.network.eval()

    def steps(self, X: Tensor, validation: Tensor, max_steps: int) -> Iterator[dict[str, Tensor]]:
        """Train on the samples `X` for `max_steps`; yields the losses.

        `validation` holds further ones, by which the paper recipe finds the best moments.

        "reconstruction_loss" is the mean squared error where I had to repair, "detector_loss"
        what D minimises, and "adversarial_loss" what I minimises besides.
        """
        optimizers = [
            _optimizer(network, rate, self.settings.published)
            for network, rate in zip(
                (self.inpainter, self.detector), self.settings.learning_rates, strict=True
            )
        ]
        schedules = [LambdaLR(o, _schedule(max_steps, self.settings.published)) for o in optimizers]
        self.inpainter.train()
        self.detector.train()
        every = max(1, max_steps // _CHECKS)
        for step in range(1, max_steps + 1):
            losses, inpainted = self._inpainter_step(X, optimizers[0])
            if (step - 1) % self.settings.detector_every == 0:
                detector_losses = self._detector_step(X, inpainted, optimizers[1])
            losses |= detector_losses
            for schedule in schedules:
                schedule.step()
            if not self.settings.published:
                self._keep(0.0, 0.0)
            elif (step - 1) % every == 0 or step == max_steps:
                self._keep(*self._figures(validation))
            yield losses

    def _inpainter_step(
        self, X: Tensor, optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, Tensor], Tensor]:
        settings, rng = self.settings, self.runtime.rng
        x = self.regions.draw(X, settings.batch_size, rng)
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
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {name: value.detach() for name, value in losses.items()}, inpainted.detach()

    def _detector_step(
        self, X: Tensor, inpainted: Tensor, optimizer: torch.optim.Optimizer
    ) -> dict[str, Tensor]:
        n, rng = self.settings.batch_size, self.runtime.rng
        if self.settings.published:
            real = self.regions.draw(X, n, rng)
            with self.runtime.autocast():
                irregular = torch.sigmoid(self.detector(torch.cat([real, inpainted])).float())
            # Eq. 3, which D maximises: regular real regions, irregular inpainted ones.
            loss = -_log_square(1 - irregular[:n]) - _log_square(irregular[n:])
        else:
            real, elsewhere = self.regions.draw_pairs(X, n, rng)
            mask = self.regions.mask(real, _EXCHANGED, rng)
            exchanged = torch.where(mask > 0, elsewhere, real)
            batch = [real, exchanged]
            if self.settings.adversarial_weight:
                batch.append(inpainted)
            with self.runtime.autocast():
                logits = self.detector(torch.cat(batch)).float()
            changed, certain = self.regions.compare(real, exchanged, logits[n : 2 * n])
            labels = torch.zeros_like(logits)
            weights = torch.ones_like(logits)
            labels[n : 2 * n], weights[n : 2 * n] = changed, certain
            labels[2 * n :] = 1.0
            loss = F.binary_cross_entropy_with_logits(logits, labels, weights, reduction="sum")
            loss = loss / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"detector_loss": loss.detach()}

    def _keep(self, error: float, mistakes: float) -> None:
        self._kept_inpainter.update(self.inpainter, error)
        self._kept_detector.update(self.detector, mistakes)

    @torch.no_grad()
    def _figures(self, validation: Tensor) -> tuple[float, float]:
        """Section 4.3: I's error on normal data, and how badly D tells real from inpainted."""
        x = self.regions.draw(validation, self.settings.batch_size, self.runtime.rng)
        self.inpainter.eval()
        self.detector.eval()
        with self.runtime.autocast():
            inpainted = self.inpainter(x, torch.zeros_like(x[:1, :1])).float()
            real, fake = self.detector(x), self.detector(inpainted)
        self.inpainter.train()
        self.detector.train()
        mistakes = (real > 0).float().mean() + (fake < 0).float().mean()
        return float((inpainted - x).square().mean()), float(mistakes)


class _Average:
    """The average of a network over the steps of its training."""

    def __init__(self, network: nn.Module) -> None:
        self._average = AveragedModel(network, avg_fn=_warming_average, use_buffers=True)

    @property
    def network(self) -> nn.Module:
        return self._average.module

    def update(self, network: nn.Module, figure: float) -> None:
        self._average.update_parameters(network)


class _BestMoment:
    """A network as it was when a figure was lowest."""

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network)
        self._lowest = math.inf

    def update(self, network: nn.Module, figure: float) -> None:
        if figure < self._lowest:
            self._lowest = figure
            self.network.load_state_dict(network.state_dict())


def _warming_average(average: Tensor, current: Tensor, n_averaged: Tensor | int) -> Tensor:
    """Average over the last tenth at first, so that short trainings forget their start too."""
    if not average.is_floating_point():  # a counter of batch norm
        return current
    decay = min(_DECAY, (1 + int(n_averaged)) / (10 + int(n_averaged)))
    return torch.lerp(current, average, decay)


def _optimizer(network: nn.Module, learning_rate: float, published: bool) -> torch.optim.Optimizer:
    if published:
        return torch.optim.SGD(network.parameters(), learning_rate, momentum=0.9, fused=True)
    return torch.optim.Adam(network.parameters(), learning_rate, betas=(0.9, 0.99), fused=True)


def _schedule(max_steps: int, constant: bool) -> Callable[[int], float]:
    """Warm up, then decay like a cosine; the paper's rate is constant."""

    def factor(step: int) -> float:
        if constant:
            return 1.0
        warm_up = min(1.0, (step + 1) / _WARM_UP_STEPS)
        return warm_up * (1 + math.cos(math.pi * step / max_steps)) / 2

    return factor


def _log_square(share: Tensor) -> Tensor:
    """Mean over samples of log ||.||^2 of the matrix of their regions' likelihoods, Eq. 3."""
    return share.flatten(1).square().mean(1).add(1e-12).log().mean()
