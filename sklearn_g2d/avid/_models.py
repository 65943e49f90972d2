"""AVID's two players, the inpainter I and the detector D: built, trained, asked for maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import gen_batches
from torch import Tensor
from torch.nn import functional as F

from sklearn_g2d.avid._appearance import ConditionalScaler
from sklearn_g2d.avid._masking import ImageRegions, Regions, TableRegions
from sklearn_g2d.avid._networks import CellDetector, CellInpainter, PatchDetector, UNet
from sklearn_g2d.avid._preprocessing import Canvas, box_mean
from sklearn_g2d.avid._recipes import AVIDRecipe
from sklearn_g2d.avid._training import InpaintingGame
from sklearn_g2d.features import SquashingScaler
from sklearn_g2d.training.runtime import Runtime, computes_in_bfloat16
from sklearn_g2d.utils.images import ImageShape

# Training looks at crops of so many regions in height and width.
_CROP_REGIONS = 4

# Pixels of the canvas that are scored at once.
_SCORING_PIXELS = 2**17

# Squared errors below this share of the data's variance are alike: kept from the logarithm.
_LEAST_ERROR = 0.1

# A table's values are bounded at so many standard deviations.
_BOUND = 8.0

Maps = tuple[NDArray[np.float64], NDArray[np.float64]]


class Players(ABC):
    """I and D for one kind of data."""

    inpainter: UNet | CellInpainter
    detector: PatchDetector | CellDetector
    regions: Regions

    def game(
        self,
        X: NDArray[Any],
        held_out: NDArray[Any],
        recipe: AVIDRecipe,
        runtime: Runtime,
    ) -> InpaintingGame:
        """Prepare training on the rows `X`, from where the players are."""
        return InpaintingGame(
            self.inpainter,
            self.detector,
            self.regions,
            self.encode(X).to(runtime.device),
            self.encode(held_out).to(runtime.device),
            recipe.max_steps,
            recipe.training,
            runtime,
        )

    def adopt(self, game: InpaintingGame) -> None:
        """Go on with what a game made of the players."""
        self.inpainter, self.detector = (network.cpu() for network in game.result)

    @abstractmethod
    def learn_usual(self, X: NDArray[Any]) -> None:
        """Learn, for `maps`, what is usual from normal rows that were not trained on."""

    @abstractmethod
    def encode(self, X: NDArray[Any]) -> Tensor:
        """Map rows to what the networks see."""

    @abstractmethod
    def maps(self, X: NDArray[Any]) -> Maps:
        """Say what I, and what D, finds irregular in rows: a value a pixel, high where it is."""

    @abstractmethod
    def inpaint(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Replace every place of rows by I's guess from its surroundings."""


class ImagePlayers(Players):
    """U-Net and patch detector.

    Parameters
    ----------
    X : ndarray of shape (n, n_pixels)
        Training images, from which the canvas learns its scale.
    image_shape : tuple of int
        Channels, height, width.
    region_size : int
        In pixels.
    recipe : AVIDRecipe
        Architecture and training.
    runtime : Runtime
        Device, precision and random numbers.
    """

    def __init__(
        self,
        X: NDArray[Any],
        image_shape: ImageShape,
        region_size: int,
        recipe: AVIDRecipe,
        runtime: Runtime,
    ) -> None:
        channels = image_shape[0]
        self.inpainter = UNet(
            n_channels=channels,
            widths=tuple(recipe.width * width for width in recipe.inpainter_widths),
            first_skip=recipe.first_skip,
            rng=runtime.rng,
        )
        self.detector = PatchDetector(
            n_channels=channels,
            layers=tuple(
                (round(recipe.width * width), kernel, stride)
                for width, kernel, stride in recipe.detector_layers
            ),
            normalize=recipe.normalize_detector,
            negative_slope=recipe.detector_slope,
            rng=runtime.rng,
        )
        stride = max(self.inpainter.stride, self.detector.stride)
        self.canvas = Canvas(
            image_shape, region_size, recipe.region_pixels, stride, recipe.even_light
        )
        self.canvas.fit(X)
        crop = -(-_CROP_REGIONS * self.canvas.region_size // stride) * stride
        height, width = self.canvas.padded_size
        self.regions = ImageRegions(self.canvas.region_size, (min(crop, height), min(crop, width)))
        self.scaler: ConditionalScaler | None = None
        self.repairs_noise = recipe.corruption == "gaussian"
        self.published = recipe.published
        self.bfloat16 = runtime.bfloat16

    def encode(self, X: NDArray[Any]) -> Tensor:
        """Map rows to canvases."""
        batch = self._batch_images()
        return torch.cat([self.canvas.encode(X[rows]) for rows in gen_batches(len(X), batch)])

    def learn_usual(self, X: NDArray[Any]) -> None:
        """Learn what maps usually say where images look alike; not if as published."""
        if self.published:
            return
        batches = (
            (self._raw_maps(images)[: len(rows)], images[: len(rows)])
            for rows, images in self._batches(X)
        )
        self.scaler = ConditionalScaler(_odd(self.canvas.region_size)).fit(batches)

    def maps(self, X: NDArray[Any]) -> Maps:
        """Say what I, and what D, finds irregular: two arrays (n, height, width)."""
        by_player = []
        for rows, images in self._batches(X):
            maps = self._raw_maps(images)
            if self.scaler is not None:
                maps = self.scaler.transform(maps, images)
            by_player.append(self.canvas.to_pixels(maps)[: len(rows)].double().numpy())
        by_inpainter, by_detector = np.concatenate(by_player).swapaxes(0, 1)
        return by_inpainter, by_detector

    @torch.no_grad()
    def _raw_maps(self, images: Tensor) -> Tensor:
        """I's and D's maps of canvases: (n, 2, h, w)."""
        with self._autocast():
            inpainted, logits = self._inpainted(images), self.detector(images).float()
        logits = F.interpolate(logits, images.shape[2:], mode="bilinear")
        return torch.cat([self._irregularity(images, inpainted), logits], dim=1)

    @torch.no_grad()
    def inpaint(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Replace every block of rows of pixels by I's guess from its surroundings."""
        inpainted = []
        for rows, images in self._batches(X):
            with self._autocast():
                guessed = self._inpainted(images)[: len(rows)]
            inpainted.append(self.canvas.decode(guessed, rows))
        return np.concatenate(inpainted)

    def _inpainted(self, images: Tensor) -> Tensor:
        if self.repairs_noise:
            return self.inpainter(images, torch.zeros_like(images[:1, :1])).float()
        masks = self.regions.partition(images)
        return sum(self.inpainter(images, mask).float() * mask for mask in masks)

    def _irregularity(self, images: Tensor, inpainted: Tensor) -> Tensor:
        """Give |X - I(X)| as the paper has it; or the logarithm of its square, averaged locally."""
        if self.published:
            return (images - inpainted).abs().mean(1, keepdim=True)
        error = (images - inpainted).square().mean(1, keepdim=True)
        # Single pixels are noise: the mean over a region tells more.
        return (box_mean(error, _odd(self.canvas.region_size)) + _LEAST_ERROR).log()

    def _batch_images(self) -> int:
        height, width = self.canvas.padded_size
        return max(1, _SCORING_PIXELS // (height * width))

    def _batches(self, X: NDArray[Any]) -> Any:
        """Rows, and canvases filled up to batches of one size.

        Convolutions differ in their last digits from one size of batch to another, and an
        image's score must not depend on its neighbours.
        """
        n_images = self._batch_images()
        for batch in gen_batches(len(X), n_images):
            rows = X[batch]
            images = self.canvas.encode(rows)
            yield rows, F.pad(images, (0, 0, 0, 0, 0, 0, 0, n_images - len(rows)))

    def _autocast(self) -> torch.autocast:
        """Score in the precision of training, if this processor has it."""
        enabled = self.bfloat16 and computes_in_bfloat16(torch.device("cpu"))
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


class TablePlayers(Players):
    """Multilayer perceptrons, whose regions are the cells of a row.

    Parameters
    ----------
    X : ndarray of shape (n, n_features)
        Training rows, from which the scaler learns.
    recipe : AVIDRecipe
        Architecture and training.
    runtime : Runtime
        Device, precision and random numbers.
    """

    def __init__(self, X: NDArray[Any], recipe: AVIDRecipe, runtime: Runtime) -> None:
        sizes: dict[str, Any] = {"n_features": X.shape[1], "hidden": recipe.hidden}
        self.inpainter = CellInpainter(**sizes, rng=runtime.rng)
        self.detector = CellDetector(**sizes, rng=runtime.rng)
        self.regions = TableRegions.create(X.shape[1], runtime.rng)
        self.scaler = SquashingScaler(_BOUND).fit(X)
        self.repairs_noise = recipe.corruption == "gaussian"
        self.published = recipe.published

    def encode(self, X: NDArray[Any]) -> Tensor:
        """Map rows to scaled ones."""
        return torch.from_numpy(self.scaler.transform(X)).float()

    def adopt(self, game: InpaintingGame) -> None:
        """Go on with what a game made of the players."""
        super().adopt(game)
        # Products in float32 depend on the batch, and a row's score must not.
        self.inpainter, self.detector = self.inpainter.double(), self.detector.double()

    def learn_usual(self, X: NDArray[Any]) -> None:
        """Learn nothing: each column is standardised by itself, and that is the estimator's."""

    @torch.no_grad()
    def maps(self, X: NDArray[Any]) -> Maps:
        """Say what I, and what D, finds irregular: two arrays (n, n_features)."""
        rows = torch.from_numpy(self.scaler.transform(X))
        error, n_hidden = self._guesses(rows, of_error=True)
        error = error / n_hidden
        by_inpainter = error.sqrt() if self.published else (error + _LEAST_ERROR).log()
        return by_inpainter.numpy(), self.detector(rows).numpy()

    @torch.no_grad()
    def inpaint(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Replace every cell by I's guess from other cells of its row."""
        rows = torch.from_numpy(self.scaler.transform(X))
        guesses, n_hidden = self._guesses(rows, of_error=False)
        return self.scaler.inverse_transform((guesses / n_hidden).numpy())

    def _guesses(self, rows: Tensor, *, of_error: bool) -> tuple[Tensor, Tensor]:
        """Add up guesses, or their squared errors, over masks; and count these by cell."""
        if self.repairs_noise:
            guess = self.inpainter(rows, torch.zeros_like(rows[:1]))
            return (guess - rows).square() if of_error else guess, torch.ones_like(rows[:1])
        total, n_hidden = torch.zeros_like(rows), torch.zeros_like(rows[:1])
        for mask in self.regions.partition(rows):
            guess = self.inpainter(rows, mask)
            total += ((guess - rows).square() if of_error else guess) * mask
            n_hidden += mask
        return total, n_hidden


def _odd(size: int) -> int:
    return 2 * (size // 2) + 1
