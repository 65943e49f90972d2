"""AVID as published: functions for Eq. 2, 3 and 4, and the best moments of section 4.3.

The paper's D(X) says how normal a region is, and this package's detector how anomalous it is:
D = 1 - sigmoid(logits).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn

from sklearn_g2d.avid._masking import Crops, Rows
from sklearn_g2d.avid._models import ImageModel, Model
from sklearn_g2d.avid._training import NetworksTrainer, Training
from sklearn_g2d.training import parallel
from sklearn_g2d.training.ensemble import StorableModule
from sklearn_g2d.training.optimizers import Optimizer, Schedule
from sklearn_g2d.training.runtime import Runtime
from sklearn_g2d.training.trainer import Losses

# Number of times in a training at which the networks are compared with their best moments so far,
# and number of samples for that.
_CHECKS, _CHECKED = 20, 64
_UNDECIDED = 0.5  # between the detector's targets, 0 and 1


def contaminate(x: Tensor, gamma: float, scale: float, rng: torch.Generator) -> Tensor:
    """Add noise to normal data, Eq. 2; `gamma` is in units of `scale`."""
    noise = torch.randn(x.shape, generator=rng, device=rng.device, dtype=torch.float32).to(x)
    return x + gamma * scale * noise


def inpainter_loss(inpainted: Tensor, objective: str) -> Tensor:
    """Return the inpainter's loss, its part of Eq. 3, from Y - D(I(X with noise))."""
    return _log_square(inpainted) if objective == "log" else inpainted.square().mean()


def detector_loss(real: Tensor, inpainted: Tensor, objective: str) -> Tensor:
    """Return the detector's loss, minus Eq. 3, from Y - D(X) and Y - D(I(X with noise)).

    "log" maximises E log ||D(X)||^2 + E log ||Y - D(I(X with noise))||^2. "squares" minimises
    E ||Y - D(X)||^2 + E ||D(I(X with noise))||^2, as in the authors' code.
    """
    if objective == "log":
        return -_log_square(1 - real) - _log_square(inpainted)
    return real.square().mean() + (1 - inpainted).square().mean()


def segment(
    by_inpainter: NDArray[Any], by_detector: NDArray[Any], alpha: float, zeta: float
) -> NDArray[np.bool_]:
    """Mark where both maps reach their thresholds, Eq. 4; here high maps mean anomalies."""
    return (by_inpainter >= alpha) & (by_detector >= zeta)


@dataclass(eq=False, repr=False)
class AdversarialInpainting(Training):
    """Training of the networks against each other, as published [1]_, on images and on tables.

    The inpainter learns to remove noise so that the detector judges the result as normal. The
    detector learns to tell these results from normal data. Each network is kept as it was at its
    best step, judged on held-out data. Nothing is hidden from the inpainter.

    Parameters
    ----------
    max_steps : int, default=1000
    batch_size : int, default=16
    learning_rates : tuple of float, default=(2e-4, 2e-4)
    optimizer : {"adam", "adamw", "sgd"} or callable, default="adam"
    schedule : {"constant", "cosine"} or callable, default="constant"
        As in `MaskedInpainting`.
    gamma : float, default=0.4
        Standard deviation of the noise in Eq. 2, as a fraction of the range of the grey values on
        images, and of the columns' standard deviation on tables.
    betas : tuple of float, default=(0.9, 0.9)
        Parameters of Adam and AdamW; ignored by other optimisers.
    objective : {"log", "squares"}, default="log"
        "log" is Eq. 3; "squares" are the least squares of the authors' code.
    reconstruction_weight : float, default=0.0
        Weight of ||X - I(X with noise)||^2 in the inpainter's loss. Eq. 3 has no such term. The
        paper's text says that it is minimised, and it is an option of the authors' code.
    whole_images : bool, default=False
        If True, the networks are trained on whole images, as in the authors' code, else on random
        crops of 4 x 4 regions. Whole images take more time and memory. Ignored on tables.

    References
    ----------
    .. [1] M. Sabokrou, M. Pourreza, M. Fayyaz, R. Entezari, M. Fathy, J. Gall, E. Adeli,
       "AVID: Adversarial Visual Irregularity Detection", ACCV 2018.

    Examples
    --------
    >>> from sklearn_g2d import AVIDDetector
    >>> from sklearn_g2d.avid import AdversarialInpainting
    >>> detector = AVIDDetector(training=AdversarialInpainting(gamma=0.2))
    """

    learning_rates: tuple[float, float] = (2e-4, 2e-4)
    optimizer: Optimizer = "adam"
    schedule: Schedule = "constant"
    gamma: float = 0.4
    betas: tuple[float, float] = (0.9, 0.9)
    objective: Literal["log", "squares"] = "log"
    reconstruction_weight: float = 0.0
    whole_images: bool = False

    data: ClassVar[tuple[str, ...]] = ("images", "tables")
    hides: ClassVar[bool] = False

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **Training._parameter_constraints,
        "gamma": [Interval(Real, 0, None, closed="neither")],
        "betas": [tuple, list],
        "objective": [StrOptions({"log", "squares"})],
        "reconstruction_weight": [Interval(Real, 0, None, closed="left")],
        "whole_images": ["boolean"],
    }

    def make_trainer(
        self, model: Model, X: Tensor, held_out: Tensor, runtime: Runtime
    ) -> AdversarialTrainer:
        """Return a trainer of a model's networks on `X`, the input of the networks."""
        make: Any = Rows
        if isinstance(model, ImageModel):
            size = (X.shape[2], X.shape[3]) if self.whole_images else model.crop
            make = partial(Crops, size=size)
        samples, validation = make(X), make(held_out)
        networks = model.inpainter, model.detector
        return AdversarialTrainer(self, *networks, samples, validation, runtime)


class AdversarialTrainer(NetworksTrainer):
    """Training of both networks against each other, Eq. 2 and 3."""

    def __init__(
        self,
        training: AdversarialInpainting,
        inpainter: StorableModule,
        detector: StorableModule,
        samples: Crops | Rows,
        validation: Crops | Rows,
        runtime: Runtime,
    ) -> None:
        self.training = training
        self.samples, self.validation = samples, validation
        is_image = isinstance(samples, Crops)
        self._scale = float(samples.X.max() - samples.X.min()) if is_image else 1.0
        super().__init__(training, inpainter, detector, _BestNetwork, runtime, training.betas)

    def _step(self) -> Losses:
        objective = self.training.objective
        x = self.samples.draw(self.batch_size, self.runtime)
        inpainted = self._restore(x, self.runtime.rng)
        error = (inpainted - x).square().mean()
        adversarial = inpainter_loss(self._anomaly(inpainted), objective)
        loss = adversarial + self.training.reconstruction_weight * error
        self._update(self.inpainter_optimizer, loss)
        real, inpainted = self.samples.draw(len(x), self.runtime), inpainted.detach()
        anomaly = self._anomaly(torch.cat([real, inpainted]))
        loss = detector_loss(anomaly[: len(x)], anomaly[len(x) :], objective)
        self._update(self.detector_optimizer, loss)
        last = self.training.max_steps - 1
        if self.n_steps == last or self.n_steps % max(1, (last + 1) // _CHECKS) == 0:
            self._keep_best_networks()
        return {
            "reconstruction_loss": error.detach(),
            "adversarial_loss": adversarial.detach(),
            "detector_loss": loss.detach(),
        }

    def _restore(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Inpaint samples with added noise."""
        return self._inpaint(contaminate(x, self.training.gamma, self._scale, rng))

    def _inpaint(self, x: Tensor) -> Tensor:
        with self.runtime.autocast():
            return self.inpainter(x, torch.zeros_like(x[:1, :1])).float()

    def _anomaly(self, x: Tensor) -> Tensor:
        """Return Y - D(x) for each region: a likelihood, or any number for the authors' loss."""
        with self.runtime.autocast():
            found = self.detector(x).float()
        return torch.sigmoid(found) if self.training.objective == "log" else found

    def _keep_best_networks(self) -> None:
        error, mistakes = self._validation_errors()
        if self._kept_inpainter.update(self.inpainter, error):
            # Any detector finds the results of the first inpainters. Its mistakes with a worse
            # inpainter say nothing, so start the search for the best detector again.
            self._kept_detector.lowest.fill_(math.inf)
        self._kept_detector.update(self.detector, mistakes)

    @torch.no_grad()
    def _validation_errors(self) -> tuple[float, float]:
        """Return the inpainter's error and the detector's mistakes on held-out data (4.3)."""
        # Use the same samples and noise each time, so that steps are comparable.
        runtime = self.runtime.seeded(0)
        x = self.validation.draw(_CHECKED, runtime)
        self.inpainter.eval()
        self.detector.eval()
        error = (self._inpaint(x) - x).square().mean()
        real, fake = self._anomaly(x), self._anomaly(self._restore(x, runtime.rng))
        self.inpainter.train()
        self.detector.train()
        mistakes = (real > _UNDECIDED).float().mean() + (fake < _UNDECIDED).float().mean()
        figures = torch.stack([error, mistakes])
        parallel.average([figures])  # so that all processes find their best networks at one step
        lowest_error, fewest = figures.tolist()
        return lowest_error, fewest


def _log_square(likelihoods: Tensor) -> Tensor:
    """Return the mean over samples of log ||.||^2 of the regions' likelihoods, Eq. 3."""
    return likelihoods.flatten(1).square().mean(1).add(1e-12).log().mean()


class _BestNetwork(nn.Module):
    """A copy of a network from the step at which a figure was lowest."""

    network: StorableModule
    lowest: Tensor

    def __init__(self, network: StorableModule) -> None:
        super().__init__()
        device = next(network.parameters()).device
        self.network = copy.deepcopy(network).to(device)
        lowest = torch.tensor(math.inf, dtype=torch.float32, device=device)
        self.register_buffer("lowest", lowest)

    def update(self, network: nn.Module, figure: float) -> bool:
        if figure < self.lowest:
            self.lowest.fill_(figure)
            self.network.load_state_dict(network.state_dict())
            return True
        return False
