"""AVID's training as published: Eq. 2 and 3, and the stopping criterion of section 4.3.

Where the paper has D(X), how normal a region is, this package's detector says how anomalous it is:
D = 1 - sigmoid(logits).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn

from sklearn_g2d.avid._masking import Crops, Rows
from sklearn_g2d.avid._models import ImageModel, Model
from sklearn_g2d.avid._training import NetworksTrainer, Training
from sklearn_g2d.training import parallel
from sklearn_g2d.training.ensemble import StorableModule
from sklearn_g2d.training.optimizers import Optimizer, Schedule
from sklearn_g2d.training.runtime import Runtime
from sklearn_g2d.training.trainer import Losses

# How often, in a training, the best moments of the networks are looked for.
_CHECKS = 20


@dataclass(eq=False, repr=False)
class AdversarialInpainting(Training):
    """Train the networks against each other, as published [1]_; on images and on tables.

    The inpainter learns to remove noise so that the detector takes what it inpaints for normal; the
    detector learns to tell it from normal data. Each is kept at its best moment on held-out data.
    Nothing is hidden from the inpainter.

    Parameters
    ----------
    max_steps : int, default=1000
    batch_size : int, default=16
    learning_rates : tuple of float, default=(2e-3, 2e-3)
    optimizer : {"adam", "adamw", "sgd"} or callable, default="sgd"
    schedule : {"constant", "cosine"} or callable, default="constant"
        As for `MaskedInpainting`.
    gamma : float, default=0.4
        Standard deviation of the noise in Eq. 2, in that of the data.

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

    optimizer: Optimizer = "sgd"
    schedule: Schedule = "constant"
    gamma: float = 0.4

    data: ClassVar[tuple[str, ...]] = ("images", "tables")
    hides: ClassVar[bool] = False

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **Training._parameter_constraints,
        "gamma": [Interval(Real, 0, None, closed="neither")],
    }

    def make_trainer(
        self, model: Model, X: Tensor, held_out: Tensor, runtime: Runtime
    ) -> AdversarialTrainer:
        """Prepare the training of a model's networks on what they see, `X`."""
        samples, validation = (
            Crops(part, model.crop) if isinstance(model, ImageModel) else Rows(part)
            for part in (X, held_out)
        )
        networks = model.inpainter, model.detector
        return AdversarialTrainer(self, *networks, samples, validation, runtime)


class AdversarialTrainer(NetworksTrainer):
    """Training of both networks against each other; nothing minimises "reconstruction_loss"."""

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
        super().__init__(training, inpainter, detector, _BestMoment, runtime)

    def _step(self) -> Losses:
        n, rng = self.batch_size, self.runtime.rng
        x = self.samples.draw(n, rng)
        # Eq. 2: normal data with noise.
        noise = torch.randn(x.shape, generator=rng, device=rng.device, dtype=torch.float32).to(x)
        inpainted = self._inpaint(x + self.training.gamma * noise)
        # Eq. 3: E log ||D(X)||^2 + E log ||Y - D(I(X with noise))||^2. The inpainter minimises the
        # second term,
        adversarial = _log_square(self._anomaly(inpainted))
        self._update(self.inpainter_optimizer, adversarial)
        # and the detector maximises both.
        real, inpainted = self.samples.draw(n, rng), inpainted.detach()
        anomaly = self._anomaly(torch.cat([real, inpainted]))
        detector_loss = -_log_square(1 - anomaly[:n]) - _log_square(anomaly[n:])
        self._update(self.detector_optimizer, detector_loss)
        last = self.training.max_steps - 1
        if self.n_steps == last or self.n_steps % max(1, (last + 1) // _CHECKS) == 0:
            error, mistakes = self._figures()
            self._kept_inpainter.update(self.inpainter, error)
            self._kept_detector.update(self.detector, mistakes)
        return {
            "reconstruction_loss": (inpainted - x).square().mean(),
            "adversarial_loss": adversarial.detach(),
            "detector_loss": detector_loss.detach(),
        }

    def _inpaint(self, x: Tensor) -> Tensor:
        with self.runtime.autocast():
            return self.inpainter(x, torch.zeros_like(x[:1, :1])).float()

    def _anomaly(self, x: Tensor) -> Tensor:
        """Give Y - D(x), a likelihood for each region."""
        with self.runtime.autocast():
            return torch.sigmoid(self.detector(x).float())

    @torch.no_grad()
    def _figures(self) -> tuple[float, float]:
        """Section 4.3: I's error on normal data, and how badly D tells real from inpainted."""
        x = self.validation.draw(self.batch_size, self.runtime.rng)
        self.inpainter.eval()
        self.detector.eval()
        inpainted = self._inpaint(x)
        with self.runtime.autocast():
            real, fake = self.detector(x), self.detector(inpainted)
        self.inpainter.train()
        self.detector.train()
        mistakes = (real > 0).float().mean() + (fake < 0).float().mean()
        figures = torch.stack([(inpainted - x).square().mean(), mistakes])
        parallel.average([figures])  # so that all processes find their best moments at one step
        error, mistaken = figures.tolist()
        return error, mistaken


def _log_square(likelihoods: Tensor) -> Tensor:
    """Mean over samples of log ||.||^2 of the matrix of their regions' likelihoods, Eq. 3."""
    return likelihoods.flatten(1).square().mean(1).add(1e-12).log().mean()


class _BestMoment(nn.Module):
    """A network as it was when a figure was lowest."""

    network: StorableModule
    lowest: Tensor

    def __init__(self, network: StorableModule) -> None:
        super().__init__()
        device = next(network.parameters()).device
        self.network = copy.deepcopy(network).to(device)
        lowest = torch.tensor(math.inf, dtype=torch.float32, device=device)
        self.register_buffer("lowest", lowest)

    def update(self, network: nn.Module, figure: float) -> None:
        if figure < self.lowest:
            self.lowest.fill_(figure)
            self.network.load_state_dict(network.state_dict())
