"""Named bundles of settings: what a parameter left at None stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sklearn_g2d.avid._training import InpaintingSettings


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
