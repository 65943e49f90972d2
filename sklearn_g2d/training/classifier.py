"""D of the G2D paper: a binary classifier of normal against generated samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sklearn_g2d.networks.ensemble import EnsembleMLP
from sklearn_g2d.networks.images import ConvNetwork
from sklearn_g2d.training.runtime import Runtime

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


def train_classifier(
    classifier: EnsembleMLP | ConvNetwork,
    normal: Tensor,
    generated: Tensor,
    blind: Tensor,
    settings: ClassifierSettings,
    runtime: Runtime,
) -> Iterator[dict[str, Tensor]]:
    """Train without end, one step an item; Eq. 1 of the paper.

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

    Yields
    ------
    dict
        The mean loss of the members.
    """
    n_members, half = classifier.n_members, settings.batch_size // 2
    allowed = [torch.nonzero(~member).squeeze(1) for member in blind]
    labels = torch.tensor([NORMAL, IRREGULAR], device=normal.device)
    labels = labels.repeat_interleave(half).repeat(n_members)
    if settings.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            classifier.parameters(), settings.learning_rate, momentum=0.9, fused=True
        )
    else:
        optimizer = torch.optim.AdamW(classifier.parameters(), settings.learning_rate, fused=True)

    def draw(n: int, *shape: int) -> Tensor:
        return torch.randint(n, shape, generator=runtime.rng, device=normal.device)

    while True:
        rows = torch.stack([seen[draw(len(seen), half)] for seen in allowed])
        batch = torch.cat([normal[rows], generated[draw(len(generated), n_members, half)]], 1)
        with runtime.autocast():
            logits = classifier(batch).float()
        loss = F.cross_entropy(logits.flatten(0, 1), labels)
        optimizer.zero_grad()
        (loss * n_members).backward()  # a sum over members, so that each trains as if alone
        optimizer.step()
        yield {"classifier_loss": loss.detach()}
