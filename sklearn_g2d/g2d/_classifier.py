"""The paper's detector: classifiers of normal against generated rows, with held-out folds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils._param_validation import HasMethods, Interval
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_g2d.g2d._networks import NETWORK_CONSTRAINT, Shape, build_network
from sklearn_g2d.training import optimizers, parallel
from sklearn_g2d.training.ensemble import EnsembleMLP
from sklearn_g2d.training.history import History
from sklearn_g2d.training.runtime import Runtime, on_device
from sklearn_g2d.training.session import Session
from sklearn_g2d.training.trainer import Losses, Trainer
from sklearn_g2d.utils.arrays import Floats

NORMAL, OUTLIER = 0, 1

# No classifier is trained on the rows of its own fold, so that it scores them like new rows.
N_FOLDS = 4

# Number of samples in each batch of scoring. It never changes, see `log_odds`.
_BATCH = 256


@dataclass(eq=False, repr=False)
class NetworkClassifier(BaseEstimator):
    """An ensemble of networks that tell normal from generated rows, trained by PyTorch.

    This is the detector of the paper (section 3.2, Eq. 1). The rows are divided into four folds,
    and each member is trained without the rows of one fold. The threshold depends on scores of rows
    by members that did not see them.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int, default=(16,)
        Hidden layers of the perceptrons; ignored by other networks.
    n_members : int, default=8
        Number of networks, which are trained in parallel. The score is the mean of their scores. A
        single network sees all rows.
    max_steps, batch_size : int, default=300 and 128
        Number of training steps (0 leaves the networks untrained), and of rows in a step.
    optimizer : {"adam", "adamw", "sgd"} or callable, default="adamw"
        A callable gets the parameters and the learning rate, and returns a
        ``torch.optim.Optimizer``.
    learning_rate : float, default=2e-3
        Learning rate of all networks.
    schedule : {"constant", "cosine"} or callable, default="constant"
        Factor of the learning rate. A callable gets the finished fraction of the training.
    network : "perceptron", ConvNetwork or callable, default="perceptron"
        A callable gets the shape of a sample, (n_features,) or (channels, height, width), and the
        number of outputs, 2, and returns a ``torch.nn.Module`` that maps samples ``(n, *shape)`` to
        logits (n, 2) of normal and generated.

    Attributes
    ----------
    history_ : dict of ndarray
        "classifier_loss" (Eq. 1) by step.
    device_ : str
        Device of scoring; perceptrons always score on the CPU.

    Examples
    --------
    >>> from sklearn_g2d import G2DOutlierDetector
    >>> from sklearn_g2d.g2d import NetworkClassifier
    >>> detector = G2DOutlierDetector(classifier=NetworkClassifier(hidden_layer_sizes=(32, 32)))
    """

    hidden_layer_sizes: Sequence[int] = (16,)
    n_members: int = 8
    max_steps: int = 300
    batch_size: int = 128
    optimizer: optimizers.Optimizer = "adamw"
    learning_rate: float = 2e-3
    schedule: optimizers.Schedule = "constant"
    network: Any = "perceptron"

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "hidden_layer_sizes": [tuple, list],
        "n_members": [Interval(Integral, 1, None, closed="left")],
        "max_steps": [Interval(Integral, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "optimizer": optimizers.OPTIMIZER_CONSTRAINT,
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "schedule": optimizers.SCHEDULE_CONSTRAINT,
        "network": NETWORK_CONSTRAINT,
    }

    def fit_in(
        self,
        normal: Floats,
        generated: Floats,
        session: Session,
        shape: Shape,
        as_new: Floats | None = None,
    ) -> Floats:
        """Train by Eq. 1 on normal rows (n_samples, n_values) and generated rows.

        `shape` is the shape of a sample. `as_new` (n_samples, n_values) is how the normal rows
        would look if they were new. Return scores (n_samples,) of `as_new`, or else of the normal
        rows, by members that did not see them, **higher = more normal**.
        """
        self._validate_params()
        held_out = held_out_folds(self.n_members, len(normal))
        network = build_network(self, self.network, shape, 2, session.runtime.rng)
        self.history_ = session.train(
            "classifier",
            ClassifierTrainer(self, network, normal, generated, held_out, session.runtime),
            self.max_steps,
            remedy="Lower the classifier's learning_rate, or check the scale of the features.",
            current=lambda: {"classifier_": self._current(network)},
        )
        self.device_ = str(session.runtime.device)
        self._network = _ready_to_score(network)
        return held_out_scores(self.log_odds(normal if as_new is None else as_new), held_out)

    @torch.no_grad()
    def log_odds(self, X: Floats) -> Floats:
        """Return log p(normal) - log p(generated): (n_members, n_samples).

        A row's score must not depend on the other rows, but the last digits of matrix products
        depend on their sizes. Therefore networks score in batches of one size. Perceptrons score in
        float64 on the CPU; other networks would be slow in float64.
        """
        is_perceptron = isinstance(self._network, EnsembleMLP)
        samples = torch.from_numpy(X if is_perceptron else X.astype(np.float32))
        padded = F.pad(samples, (0, 0, 0, -len(X) % _BATCH))
        with on_device("cpu" if is_perceptron else self.device_, self._network) as (device, (net,)):
            odds = [_log_odds(net, batch.to(device)) for batch in padded.split(_BATCH)]
            return torch.cat(odds, 1)[:, : len(X)].cpu().numpy()

    def scoring_module(self) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        """Return the networks and a function from float64 rows to `log_odds`, for the graph."""
        network = self._network

        def log_odds(rows: Tensor) -> Tensor:
            return _log_odds(network, rows if isinstance(network, EnsembleMLP) else rows.float())

        return network, log_odds

    def _current(self, network: Any) -> NetworkClassifier:
        """Return a fitted copy with a copy of the networks at this step of their training."""
        fitted = copy.copy(self)
        fitted._network, fitted.device_ = _ready_to_score(copy.deepcopy(network)), "cpu"
        return fitted


@dataclass(eq=False, repr=False)
class FoldedClassifier(BaseEstimator):
    """A scikit-learn classifier of normal (0) against generated (1) rows.

    `members_` are its fitted clones: one for each of the four folds, trained without its rows.
    """

    classifier: Any

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "classifier": [HasMethods(["fit", "predict_proba"])]
    }

    def fit_in(
        self,
        normal: Floats,
        generated: Floats,
        session: Session,
        shape: Shape,
        as_new: Floats | None = None,
    ) -> Floats:
        """Fit the clones; see `NetworkClassifier.fit_in`."""
        self._validate_params()
        self.history_: History = {}
        self.members_ = []
        held_out = held_out_folds(N_FOLDS, len(normal))
        for unseen in held_out:
            X = np.concatenate([normal[~unseen], generated])
            y = np.repeat([NORMAL, OUTLIER], [np.sum(~unseen), len(generated)])
            self.members_.append(clone(self.classifier).fit(X, y))
        return held_out_scores(self.log_odds(normal if as_new is None else as_new), held_out)

    def log_odds(self, X: Floats) -> Floats:
        """Return log p(normal) - log p(generated): (n_members, n_samples)."""
        # Trees and neighbours may give exact zeros. Clip them, because their logarithm is infinite.
        odds = []
        for member in self.members_:
            # Another library's classifier may have no `classes_`: assume that they are in order.
            classes = list(getattr(member, "classes_", (NORMAL, OUTLIER)))
            logs = np.log(np.clip(member.predict_proba(X), 1e-6, 1 - 1e-6))
            odds.append(logs[:, classes.index(NORMAL)] - logs[:, classes.index(OUTLIER)])
        return np.stack(odds)


class ClassifierTrainer(Trainer):
    """Training of the classifier, Eq. 1; "classifier_loss" is the mean loss of the members.

    `held_out` (n_members, n_samples) marks the normal rows that a member is not trained on.
    """

    def __init__(
        self,
        settings: NetworkClassifier,
        network: Any,
        normal: Floats,
        generated: Floats,
        held_out: NDArray[np.bool_],
        runtime: Runtime,
    ) -> None:
        self.settings, self.network = settings, network
        self.normal, self.generated = runtime.tensor(normal), runtime.tensor(generated)
        # Each batch has as many generated rows as normal rows.
        self.half = max(1, parallel.own_batch_size(settings.batch_size) // 2)
        masks = torch.from_numpy(~held_out).to(runtime.device)
        self.n_allowed = (~held_out).sum(axis=1).tolist()
        # Positions of the rows that each member may see. Members may see different numbers of rows:
        # the positions after these are never drawn.
        self.allowed = masks.int().argsort(dim=1, descending=True, stable=True)
        labels = torch.tensor([NORMAL, OUTLIER], device=runtime.device)
        self.targets = F.one_hot(labels.repeat_interleave(self.half)).float()
        rate = settings.learning_rate
        self.optimizer = optimizers.make_optimizer(settings.optimizer, network.parameters(), rate)
        super().__init__({"classifier": network}, [self.optimizer], runtime)

    def _schedule(self) -> float:
        return optimizers.rate_factor(self.settings.schedule, self.n_steps, self.settings.max_steps)

    def _step(self) -> Losses:
        n_members, half = self.settings.n_members, self.half
        drawn = torch.stack([self._draw(n, half) for n in self.n_allowed])
        rows = self.allowed.gather(1, drawn)
        generated = self.generated[self._draw(len(self.generated), n_members, half)]
        batch = torch.cat([self.normal[rows], generated], 1)
        # These networks compute their gradients faster than autograd, but not in bfloat16.
        if isinstance(self.network, EnsembleMLP) and not self.runtime.bfloat16:
            loss = self.network.backpropagate_cross_entropy(batch, self.targets)
            self._follow_gradients(self.optimizer)
            return {"classifier_loss": loss}
        with self.runtime.autocast():
            logits = self.network(batch).float()
        loss = F.cross_entropy(logits.flatten(0, 1), self.targets.repeat(n_members, 1))
        # Take the gradient of the sum, not of the mean, so that each member trains as if alone.
        self._update(self.optimizer, loss * n_members)
        return {"classifier_loss": loss.detach()}

    def _draw(self, n: int, *shape: int) -> Tensor:
        return torch.randint(n, shape, generator=self.runtime.rng, device=self.normal.device)


def held_out_folds(n_members: int, n_samples: int) -> NDArray[np.bool_]:
    """Mark the samples that each member must not be trained on: (n_members, n_samples).

    Nothing is held out if there is a single member, or if folds would have fewer than two samples.
    """
    n_folds = min(N_FOLDS, n_members, n_samples // 2)
    if n_folds < 2:
        return np.zeros((n_members, n_samples), dtype=bool)
    return (np.arange(n_members) % n_folds)[:, None] == np.arange(n_samples) % n_folds


def held_out_scores(log_odds: Floats, held_out: NDArray[np.bool_]) -> Floats:
    """Average the log-odds of members that were not trained on a sample: (n_samples,).

    If nothing was held out, average those of all members.
    """
    if not held_out.any():
        return log_odds.mean(axis=0)
    return (log_odds * held_out).sum(axis=0) / held_out.sum(axis=0)


def _log_odds(network: Any, rows: Tensor) -> Tensor:
    logits = network(rows.expand(network.n_members, -1, -1)).double()
    return logits[..., NORMAL] - logits[..., OUTLIER]


def _ready_to_score(network: Any) -> Any:
    network = network.cpu().eval()
    return network.double() if isinstance(network, EnsembleMLP) else network
