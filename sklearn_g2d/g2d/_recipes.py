"""Named bundles of settings: what a parameter left at None stands for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from sklearn_g2d.g2d._classifier import ClassifierSettings
from sklearn_g2d.g2d._wgan import WGANSettings


@dataclass(frozen=True)
class G2DRecipe:
    """Everything that `G2DOutlierDetector` can be told, resolved.

    The first block can be overridden by the estimator's parameters of the same names.
    """

    n_estimators: int
    max_steps: int
    batch_size: int
    latent_dim: int | None  # None: as many as columns, from 16 to 200
    n_critic: int
    gradient_penalty: float
    n_snapshots: int
    snapshot_selection: Any
    n_generated: float
    features: Any
    n_neighbors: int
    width: int  # maps of the narrowest layer; 0 stands for multilayer perceptrons

    principal_components: bool  # instead of the features of images
    common_scale: bool  # of all columns
    measure: Literal["distance", "reconstruction"]  # of the neighbour profile
    gan_learning_rate: float
    hidden: tuple[int, ...]  # of the generator and the critic
    spread: float  # of the initial samples; 0: no linear skip
    latent_tail: float
    bound: float  # of the scaled columns
    range_weight: float  # in their scale: 0 standardises, 1 is min-max scaling
    classifier_hidden: tuple[int, ...]
    classifier_steps: int
    classifier_training: ClassifierSettings
    auto_threshold: str  # "out_of_fold" or "probability"

    @property
    def gan_training(self) -> WGANSettings:
        """Settings of the generator's trainer."""
        return WGANSettings(
            batch_size=self.batch_size,
            n_critic=self.n_critic,
            gradient_penalty=self.gradient_penalty,
            learning_rate=self.gan_learning_rate,
        )


G2D_RECIPES = {
    # What measures best (docs/results).
    "default": G2DRecipe(
        n_estimators=8,
        max_steps=0,  # training changes nothing that could be measured (docs/training.md)
        batch_size=64,
        latent_dim=None,
        n_critic=1,
        gradient_penalty=10.0,
        n_snapshots=6,
        snapshot_selection="geometric",
        n_generated=2.0,
        features="raw",
        n_neighbors=20,
        width=0,
        principal_components=False,
        common_scale=False,
        measure="distance",
        gan_learning_rate=1e-3,
        hidden=(64, 64),
        spread=2.0,
        latent_tail=1.6,
        bound=8.0,
        range_weight=0.25,
        classifier_hidden=(16,),
        classifier_steps=300,
        classifier_training=ClassifierSettings(
            batch_size=128, optimizer="adamw", learning_rate=2e-3
        ),
        auto_threshold="out_of_fold",
    ),
    # As published (section 4.1), the gaps filled from the authors' code and, for tables,
    # which the paper does not treat, by multilayer perceptrons.
    "paper": G2DRecipe(
        n_estimators=1,
        max_steps=1000,
        batch_size=64,
        latent_dim=100,
        n_critic=5,
        gradient_penalty=10.0,
        n_snapshots=10,
        snapshot_selection="loss",
        n_generated=1.0,
        features="raw",
        n_neighbors=0,
        width=0,
        principal_components=False,
        common_scale=False,
        measure="distance",
        gan_learning_rate=1e-4,
        hidden=(64, 64),
        spread=0.0,
        latent_tail=0.0,
        bound=math.inf,
        range_weight=0.0,
        classifier_hidden=(64, 64),
        classifier_steps=1000,
        classifier_training=ClassifierSettings(batch_size=32, optimizer="sgd", learning_rate=1e-2),
        auto_threshold="probability",
    ),
}

# The same for images. Features of images are coordinates of one space, in which normal ones
# lie on a smooth surface: hence the common scale and the other measure.
G2D_IMAGE_RECIPES = {
    "default": replace(
        G2D_RECIPES["default"],
        features="oriented_gradients",
        principal_components=True,
        common_scale=True,
        range_weight=0.0,
        bound=math.inf,
        measure="reconstruction",
    ),
    # Fig. 3 of the paper at a sixteenth of the authors' 256 maps, which take a GPU.
    "paper": replace(G2D_RECIPES["paper"], width=16, max_steps=300),
}
