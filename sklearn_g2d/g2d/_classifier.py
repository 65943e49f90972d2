"""D of the G2D paper: a binary classifier of normal against generated samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sklearn_g2d.g2d._image_networks import ConvNetwork
from sklearn_g2d.training import parallel
from sklearn_g2d.training.ensemble import EnsembleMLP
from sklearn_g2d.training.runtime import Runtime
from sklearn_g2d.training.trainer import Losses, Trainer

NORMAL, IRREGULAR = 0, 1


@dataclass(frozen=True)
class ClassifierSettings:
    """How the classifier is trained.

    Attributes
    ----------
    batch_size : int
        Samples a step and member, half of them normal.
    optimizer : "adamw" or "sgd"
        SGD runs with momentum .9.
    learning_rate : float
        Of either.
    """

    batch_size: int
    optimizer: str
    learning_rate: float


class ClassifierTrainer(Trainer):
    """Training of D, Eq. 1 of the paper; "classifier_loss" is the mean loss of the members.

    Parameters
    ----------
    classifier : EnsembleMLP or ConvNetwork
        Two outputs, the logits of `NORMAL` and `IRREGULAR`.
    normal : Tensor of shape (n, n_features)
        Normal samples.
    generated : Tensor of shape (m, n_features)
        Irregular samples.
    blind : Tensor of shape (n_members, n), bool
        Normal samples that a member must not be trained on.
    settings : ClassifierSettings
        How to train.
    runtime : Runtime
        Device, precision and random numbers.
    """

    def __init__(
        self,
        classifier: EnsembleMLP | ConvNetwork,
        normal: Tensor,
        generated: Tensor,
        blind: Tensor,
        settings: ClassifierSettings,
        runtime: Runtime,
    ) -> None:
        self.classifier = classifier
        self.normal, self.generated = normal, generated
        self.half = max(1, parallel.share_of(settings).batch_size // 2)
        self.allowed = [torch.nonzero(~member).squeeze(1) for member in blind]
        labels = torch.tensor([NORMAL, IRREGULAR], device=normal.device)
        self.labels = labels.repeat_interleave(self.half).repeat(classifier.n_members)
        self.optimizer: torch.optim.Optimizer
        if settings.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(
                classifier.parameters(), settings.learning_rate, momentum=0.9, fused=True
            )
        else:
            self.optimizer = torch.optim.AdamW(
                classifier.parameters(), settings.learning_rate, fused=True
            )
        super().__init__({"classifier": classifier}, [self.optimizer], runtime)

    def _step(self) -> Losses:
        n_members, half = self.classifier.n_members, self.half
        rows = torch.stack([seen[self._draw(seen.numel(), half)] for seen in self.allowed])
        generated = self.generated[self._draw(len(self.generated), n_members, half)]
        batch = torch.cat([self.normal[rows], generated], 1)
        with self.runtime.autocast():
            logits = self.classifier(batch).float()
        loss = F.cross_entropy(logits.flatten(0, 1), self.labels)
        self._update(self.optimizer, loss * n_members)  # a sum, so that members train as if alone
        return {"classifier_loss": loss.detach()}

    def _draw(self, n: int, *shape: int) -> Tensor:
        return torch.randint(n, shape, generator=self.runtime.rng, device=self.normal.device)
