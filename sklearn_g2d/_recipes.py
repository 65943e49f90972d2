"""Named bundles of settings: what a parameter left at None stands for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from sklearn_g2d.training.classifier import ClassifierSettings
from sklearn_g2d.training.inpainting import InpaintingSettings
from sklearn_g2d.training.wgan import WGANSettings


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


@dataclass(frozen=True)
class AVIDRecipe:
    """Everything that `AVIDDetector` can be told, resolved.

    The first block can be overridden by the estimator's parameters of the same names.
    """

    n_estimators: int
    max_steps: int
    batch_size: int
    corruption: str
    noise_scale: float
    reconstruction_weight: float
    adversarial_weight: float
    width: int  # maps of I at full resolution; 0 stands for multilayer perceptrons
    even_light: bool | None  # None: if the light of the training images is uneven

    inpainter_widths: tuple[int, ...]  # in units of `width`
    first_skip: int  # level of I from which there are skips
    detector_layers: tuple[tuple[float, int, int], ...]  # maps in units of `width`, kernel, stride
    normalize_detector: bool
    detector_slope: float
    hidden: tuple[int, ...]  # of the perceptrons
    learning_rates: tuple[float, float]  # of I and of D
    detector_every: int  # steps of I for one of D
    region_pixels: tuple[int, int]  # sizes of a region that need no rescaling
    published: bool  # training, and maps as the paper reads them
    top_share: float  # of the regions, whose mean is the score

    @property
    def training(self) -> InpaintingSettings:
        """Settings of the trainer."""
        return InpaintingSettings(
            batch_size=self.batch_size,
            corruption=self.corruption,
            noise_scale=self.noise_scale,
            reconstruction_weight=self.reconstruction_weight,
            adversarial_weight=self.adversarial_weight,
            learning_rates=self.learning_rates,
            detector_every=self.detector_every,
            published=self.published,
        )


AVID_IMAGE_RECIPES = {
    # What measures best (docs/results).
    "default": AVIDRecipe(
        n_estimators=1,
        max_steps=4000,
        batch_size=16,
        corruption="blocks",
        noise_scale=0.4,
        reconstruction_weight=1.0,
        adversarial_weight=0.0,
        width=16,
        even_light=None,
        inpainter_widths=(1, 2, 4, 4),
        first_skip=2,
        detector_layers=((1, 3, 1), (2, 4, 2), (2, 3, 1), (4, 4, 2), (4, 3, 1), (4, 1, 1)),
        normalize_detector=True,
        detector_slope=0.1,
        hidden=(),
        learning_rates=(4e-3, 3e-3),
        detector_every=3,  # D is easier to train, and more of it makes it see edges only
        region_pixels=(12, 20),
        published=False,
        top_share=0.2,
    ),
    # As published; the widths are the authors' at an eighth, for theirs take a GPU.
    "paper": AVIDRecipe(
        n_estimators=1,
        max_steps=1000,
        batch_size=16,
        corruption="gaussian",
        noise_scale=0.4,
        reconstruction_weight=0.0,
        adversarial_weight=1.0,
        width=8,
        even_light=False,
        inpainter_widths=(1, 2, 4, 4),
        first_skip=0,
        detector_layers=(
            (1.5, 11, 4),
            (1.5, 1, 1),
            (1.5, 1, 1),
            (1.5, 3, 2),
            (1.5, 1, 1),
            (1.5, 1, 1),
            (4, 5, 2),
            (8, 1, 1),
            (16, 1, 1),
        ),
        normalize_detector=False,
        detector_slope=0.0,
        hidden=(),
        learning_rates=(2e-3, 2e-3),
        detector_every=1,
        region_pixels=(18, 22),
        published=True,
        top_share=0.1,
    ),
}

# The same for tables, which the paper does not treat, by multilayer perceptrons.
AVID_RECIPES = {
    name: replace(
        recipe,
        batch_size=128,
        max_steps=2000,
        width=0,
        hidden=(128, 128),
        learning_rates=(2e-3, 2e-3),
        detector_every=1,
    )
    for name, recipe in AVID_IMAGE_RECIPES.items()
}


Recipe = TypeVar("Recipe", G2DRecipe, AVIDRecipe)


def resolve(recipe: Recipe, **overrides: Any) -> Recipe:
    """Replace what is given, that is not None, in a recipe."""
    return replace(recipe, **{k: v for k, v in overrides.items() if v is not None})
