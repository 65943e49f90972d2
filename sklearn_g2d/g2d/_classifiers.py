"""The classifiers of normal against generated, networks or scikit-learn's, as one."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from torch import Tensor
from torch.nn import functional as F

from sklearn_g2d.g2d._classifier import IRREGULAR, NORMAL
from sklearn_g2d.g2d._image_networks import ConvNetwork
from sklearn_g2d.training.ensemble import EnsembleMLP

_CONV_BATCH = 256


class Classifiers(Protocol):
    """Several classifiers, averaged by the detector."""

    def log_odds(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return log p(normal) - log p(irregular), of shape (n_members, n_samples)."""


class NetworkClassifiers:
    """A trained ensemble of networks.

    A row's score must not depend on its neighbours, but float32 products depend on the
    batch that they are computed in. Small networks score in float64, and convolutions,
    which would be slow in it, in batches of one size.
    """

    def __init__(self, network: EnsembleMLP | ConvNetwork) -> None:
        network = network.cpu()
        self.network = network if isinstance(network, ConvNetwork) else network.double()

    @torch.no_grad()
    def log_odds(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        if isinstance(self.network, ConvNetwork):
            images = torch.from_numpy(X.astype(np.float32))
            padded = F.pad(images, (0, 0, 0, -len(X) % _CONV_BATCH))
            logits = torch.cat([self._logits(batch) for batch in padded.split(_CONV_BATCH)], 1)
            logits = logits[:, : len(X)].double()
        else:
            logits = self._logits(torch.from_numpy(X))
        return (logits[..., NORMAL] - logits[..., IRREGULAR]).numpy()

    def _logits(self, rows: Tensor) -> Tensor:
        return self.network(rows.expand(self.network.n_members, -1, -1))


class SklearnClassifiers:
    """Clones of a scikit-learn classifier, one for every fold that it is kept from."""

    def __init__(
        self,
        classifier: BaseEstimator,
        normal: NDArray[np.float64],
        generated: NDArray[np.float64],
        blind: NDArray[np.bool_],
    ) -> None:
        self.members = []
        for unseen in blind:
            X = np.concatenate([normal[~unseen], generated])
            y = np.repeat([NORMAL, IRREGULAR], [np.sum(~unseen), len(generated)])
            self.members.append(clone(classifier).fit(X, y))

    def log_odds(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        # Trees and neighbours give exact zeros and ones, whose logarithm is infinite.
        probabilities = [np.clip(m.predict_proba(X), 1e-6, 1 - 1e-6) for m in self.members]
        return np.stack([np.log(p[:, NORMAL]) - np.log(p[:, IRREGULAR]) for p in probabilities])


def blind_folds(n_members: int, n_samples: int, n_folds: int) -> NDArray[np.bool_]:
    """Which samples each member must not be trained on: (n_members, n_samples).

    Every sample is held out by at least one member, unless there is a single member or
    folds would have fewer than two samples; then nothing is held out.
    """
    n_folds = min(n_folds, n_members, n_samples // 2)
    if n_folds < 2:
        return np.zeros((n_members, n_samples), dtype=bool)
    return (np.arange(n_members) % n_folds)[:, None] == np.arange(n_samples) % n_folds


def out_of_fold_scores(
    log_odds: NDArray[np.float64], blind: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Mean log-odds of the members that were not trained on a sample; of all if none."""
    if not blind.any():
        return log_odds.mean(axis=0)
    return (log_odds * blind).sum(axis=0) / blind.sum(axis=0)
