"""AVID's networks for images or for tables, with their preprocessing: from rows to two maps."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import InitVar, dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import gen_batches
from torch import Tensor
from torch.nn import functional as F

from sklearn_g2d.avid._masking import divide_image
from sklearn_g2d.avid._networks import check_networks, ready_to_score
from sklearn_g2d.avid._preprocessing import ImagePreprocessor, box_mean, odd
from sklearn_g2d.avid._scoring import AppearanceNormalizer, Maps
from sklearn_g2d.features import SquashingScaler
from sklearn_g2d.training.ensemble import StorableModule
from sklearn_g2d.training.runtime import bfloat16_products, computes_in_bfloat16, on_device
from sklearn_g2d.utils.state import Stored

# Training uses crops of so many regions in height and in width.
_CROP_REGIONS = 4

# Numbers of pixels after preprocessing, and of table rows, that are scored at once.
_SCORING_PIXELS, _SCORING_ROWS = 2**17, 256

# This is added to squared errors, in units of the data's variance, before the logarithm. Without it
# differences between very small errors would become large.
_LEAST_ERROR = 0.1

Figures = Mapping[str, Mapping[str, Tensor]]  # constants by part and name


@dataclass(eq=False, repr=False)
class Model(Stored, ABC):
    """An inpainter and a detector for one kind of data; `error` is "log" or "absolute"."""

    inpainter: StorableModule
    detector: StorableModule
    error: str

    dtype: ClassVar[torch.dtype] = torch.float32  # of the networks when they score

    @property
    def rounds(self) -> bool:
        """Whether the networks score in a lower precision than an exported graph."""
        return False

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Return the number of samples that are scored at once."""

    def load(self, networks: tuple[StorableModule, StorableModule]) -> Self:
        """Use trained networks from now on, and return the model."""
        self.inpainter, self.detector = (network.to("cpu", self.dtype) for network in networks)
        return self

    def folded(self) -> Self:
        """Return the model for export: itself, or a copy with fewer operations."""
        return self

    def ready(self) -> AbstractContextManager[Self]:
        """Return a context with the model for scoring: itself, or a copy on the device."""
        return nullcontext(self)

    @abstractmethod
    def encode(self, X: NDArray[Any]) -> Tensor:
        """Map rows to the input of the networks, float32."""

    @abstractmethod
    def fit_normalizer(self, X: NDArray[Any]) -> None:
        """Learn to standardise `maps`, from normal rows that the networks have not seen."""

    @abstractmethod
    def maps(self, X: NDArray[Any]) -> Maps:
        """Return both maps of rows, a value for each pixel or cell; higher = more anomalous."""

    @abstractmethod
    def inpaint(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Replace all values of rows by the inpainter's guesses."""

    @abstractmethod
    def _constants(self) -> dict[str, dict[str, ArrayLike]]:
        """Return the constants of `_compute`, by part and name."""

    def _tensors(self) -> Figures:
        return {
            part: {name: torch.tensor(np.asarray(value)) for name, value in values.items()}
            for part, values in self._constants().items()
        }

    def _guesses(self, x: Tensor, c: Figures, at_once: bool) -> Iterable[tuple[Tensor, Tensor]]:
        """Return the inpainter's guesses under each mask, and masks of the places to use them.

        With `at_once` there is one batch, with a copy of each sample for each mask. This makes a
        graph smaller, but scoring must not do it: another batch size changes the last digits.
        """
        masks, counted = c["masks"]["hidden"], c["masks"]["counted"]
        if not at_once:
            guesses: Iterable[Tensor] = (self.inpainter(x, mask) for mask in masks)
        else:
            copies, hidden = (
                values.expand(len(masks), x.shape[0], *values.shape[2:]).flatten(0, 1)
                for values in (x[None], masks)
            )
            guesses = self.inpainter(copies, hidden).unflatten(0, (len(masks), -1)).unbind(0)
        return zip(guesses, counted, strict=True)


class Resizing(NamedTuple):
    """Functions that resize images, logits and maps; graphs use matrix products instead."""

    images: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    maps: Callable[[Tensor], Tensor]


@dataclass(eq=False, repr=False)
class ImageModel(Model):
    """Networks for images, with a common `stride`; their maps have the size of the images.

    With the error "log" the inpainter's map is the logarithm of the squared error, averaged over a
    region, and both maps are standardised by an `AppearanceNormalizer`. With "absolute" it is
    ``|X - I(X)|``, averaged over a region.

    For scoring, batch norms are folded into the convolutions of a copy. The networks of the model
    itself keep them, because training may go on. They are on the CPU between two calls.
    """

    preprocessor: ImagePreprocessor
    stride: InitVar[int]
    hidden_block: int | None = None  # side of blocks to hide in scoring; None hides nothing
    bfloat16: bool = False  # for scoring, if the processor multiplies in it
    device_: str = "cpu"  # for scoring
    normalizer: AppearanceNormalizer | None = None

    # These have no annotations, so that they are no fields. `_folded` are the networks for scoring.
    _folded = cast("tuple[Any, Any] | None", None)
    _is_ready, _device, _figures = False, torch.device("cpu"), cast(Figures, {})

    def __post_init__(self, stride: int) -> None:
        crop = -(-_CROP_REGIONS * self.preprocessor.region_size // stride) * stride
        height, width = self.preprocessor.padded_size
        self.crop = min(crop, height), min(crop, width)
        shape = 2, self.preprocessor.image_shape[0], *self.crop
        check_networks(self.inpainter, self.detector, shape)

    def __getstate__(self) -> dict[str, Any]:
        # Files hold the networks only once, because folding can be repeated.
        return {name: value for name, value in vars(self).items() if name != "_folded"}

    @property
    def rounds(self) -> bool:
        """Whether the networks score in a lower precision than an exported graph."""
        return self.bfloat16 and computes_in_bfloat16(self._device)

    def load(self, networks: tuple[StorableModule, StorableModule]) -> Self:
        """Use trained networks from now on, and return the model."""
        self._folded = None
        return super().load(networks)

    def folded(self) -> Self:
        """Return a copy with batch norms folded into the convolutions."""
        if self._folded is None:
            self._folded = ready_to_score(self.inpainter), ready_to_score(self.detector)
        model = copy.copy(self)
        model.inpainter, model.detector = self._folded
        return model

    @contextmanager
    def ready(self) -> Iterator[Self]:
        """Return a context with a copy that has folded networks on the device."""
        if self._is_ready:
            yield self
            return
        model = self.folded()
        with on_device(self.device_, model.inpainter, model.detector) as (device, networks):
            model.inpainter, model.detector = networks
            model._is_ready, model._device, figures = True, device, model._tensors()
            model._figures = {  # the others are float64, which not every device has
                part: {name: value.to(device) for name, value in figures[part].items()}
                for part in ("masks", "normalizer")
            }
            yield model

    @property
    def batch_size(self) -> int:
        """Return the number of images that are scored at once."""
        return max(1, _SCORING_PIXELS // math.prod(self.preprocessor.padded_size))

    def encode(self, X: NDArray[Any]) -> Tensor:
        """Map rows to images for the networks, float32."""
        batches = gen_batches(len(X), self.batch_size)
        return torch.cat([self.preprocessor.encode(X[rows]) for rows in batches])

    def fit_normalizer(self, X: NDArray[Any]) -> None:
        """Learn to standardise maps by appearance, except maps of absolute errors."""
        self.normalizer = None
        if self.error == "log":
            window = odd(self.preprocessor.region_size)
            with self.ready() as model:
                self.normalizer = AppearanceNormalizer(window).fit(
                    (maps[: len(rows)].cpu(), images[: len(rows)].cpu())
                    for rows, images, maps in model._raw_maps(X)
                )

    def maps(self, X: NDArray[Any]) -> Maps:
        """Return both maps: arrays (n, height, width)."""
        with self.ready() as model:
            found = [
                model._finish(images, maps, model._figures, model.resizing())[: len(rows)]
                for rows, images, maps in model._raw_maps(X)
            ]
            by_inpainter, by_detector = torch.cat(found).cpu().double().unbind(1)
        return by_inpainter.numpy(), by_detector.numpy()

    @torch.no_grad()
    def inpaint(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Replace all blocks of images by the inpainter's guesses."""
        found = []
        with self.ready() as model:
            for rows, images in model._batches(X):
                with model._autocast():
                    guessed = model._inpainted(images, model._figures)[: len(rows)]
                found.append(self.preprocessor.decode(guessed.cpu(), rows))
        return np.concatenate(found)

    def resizing(self) -> Resizing:
        """Return the functions that resize; `_compute` takes these, or the versions of a graph."""
        size = self.preprocessor.padded_size
        to_images = partial(F.interpolate, size=size, mode="bilinear")
        return Resizing(self.preprocessor.resize, to_images, self.preprocessor.to_pixels)

    def _constants(self) -> dict[str, dict[str, ArrayLike]]:
        # If nothing is hidden, there is one mask of zeros, and its guesses are used everywhere.
        if self.hidden_block is None:
            hidden = self.preprocessor.blank()[:, None, :1].numpy()
            counted = 1 - hidden
        else:
            hidden = divide_image(self.preprocessor.padded_size, self.hidden_block).numpy()
            counted = hidden
        return {
            "preprocessor": self.preprocessor._constants(),
            "masks": {"hidden": hidden, "counted": counted},
            "normalizer": {} if self.normalizer is None else self.normalizer._constants(),
        }

    def _compute(self, rows: Tensor, c: Figures, *functions: Any) -> tuple[Tensor, ...]:
        """Map rows of pixels, float64, to both maps, in one batch, for graphs."""
        resizing = Resizing(*functions)
        images = self.preprocessor._compute(rows, c["preprocessor"], resizing.images)
        inpainted = self._inpainted(images, c, at_once=True)
        raw = self._raw(images, inpainted, self.detector(images), resizing)
        return self._finish(images, raw, c, resizing).unbind(1)

    def _inpainted(self, images: Tensor, c: Figures, at_once: bool = False) -> Tensor:
        guesses = self._guesses(images, c, at_once)
        return sum(guess.float() * counted for guess, counted in guesses)  # type: ignore[return-value]

    def _raw(self, images: Tensor, inpainted: Tensor, logits: Tensor, resizing: Resizing) -> Tensor:
        """Return the error of the inpainted images, and the logits, as maps (n, 2, h, w)."""
        window = odd(self.preprocessor.region_size)
        # Errors of single pixels are mostly noise, so take the mean over a region.
        if self.error == "absolute":
            error = box_mean((images - inpainted).abs().mean(1, keepdim=True), window)
        else:
            error = (images - inpainted).square().mean(1, keepdim=True)
            error = (box_mean(error, window) + _LEAST_ERROR).log()
        return torch.cat([error, resizing.logits(logits)], dim=1)

    def _finish(self, images: Tensor, maps: Tensor, c: Figures, resizing: Resizing) -> Tensor:
        """Standardise maps by the images' appearance, and resize them to the images' size."""
        if self.normalizer is not None:
            maps = self.normalizer._compute(maps, images, c["normalizer"])
        return resizing.maps(maps)

    @torch.no_grad()
    def _raw_maps(self, X: NDArray[Any]) -> Iterator[tuple[NDArray[Any], Tensor, Tensor]]:
        """Yield batches of rows, with their images and the raw maps of the images."""
        resizing = self.resizing()
        for rows, images in self._batches(X):
            with self._autocast():
                inpainted = self._inpainted(images, self._figures)
                logits = self.detector(images).float()
            yield rows, images, self._raw(images, inpainted, logits, resizing)

    def _batches(self, X: NDArray[Any]) -> Iterator[tuple[NDArray[Any], Tensor]]:
        """Yield batches of rows, and of their images, filled up with zeros to one size.

        An image's score must not depend on the other images, but the last digits of convolutions
        depend on the batch size.
        """
        for batch in gen_batches(len(X), self.batch_size):
            images = self.preprocessor.encode(X[batch]).to(self._device)
            yield X[batch], F.pad(images, (0, 0, 0, 0, 0, 0, 0, self.batch_size - len(images)))

    def _autocast(self) -> AbstractContextManager[Any]:
        """Return a context with bfloat16 if the model scores in it."""
        return bfloat16_products(self._device.type) if self.rounds else nullcontext()


@dataclass(eq=False, repr=False)
class TableModel(Model):
    """Networks for rows of a table; the regions are the cells.

    The inpainter's input is clipped at the `lowest` and `highest` values of training (n_features,),
    because it would extrapolate to values outside of them. Errors are those of the rows before
    clipping.

    Each row of `groups` (n_groups, n_features) marks columns that are hidden together, if `hides`.
    The inpainter's map is the logarithm, or the root, of the mean squared error.
    """

    scaler: SquashingScaler
    groups: NDArray[np.bool_]
    hides: bool
    lowest: NDArray[np.float64]
    highest: NDArray[np.float64]

    # Networks for tables are small enough for float64.
    dtype: ClassVar[torch.dtype] = torch.float64

    def __post_init__(self) -> None:
        check_networks(self.inpainter, self.detector, (2, self.groups.shape[1]))

    @property
    def batch_size(self) -> int:
        """Return the number of rows that are scored at once."""
        return _SCORING_ROWS

    def encode(self, X: NDArray[Any]) -> Tensor:
        """Map rows to scaled rows, float32."""
        return torch.from_numpy(self.scaler.transform(X)).float()

    def fit_normalizer(self, X: NDArray[Any]) -> None:
        """Do nothing, because a `MapScorer` standardises each column."""

    @torch.no_grad()
    def maps(self, X: NDArray[Any]) -> Maps:
        """Return both maps: arrays (n, n_features)."""
        c, rows = self._tensors(), torch.from_numpy(self.scaler.transform(X))
        # All batches have one size, because the last digits of products depend on it.
        batches = F.pad(rows, (0, 0, 0, -len(rows) % _SCORING_ROWS)).split(_SCORING_ROWS)
        found = zip(*(self._compute(batch, c, at_once=False) for batch in batches), strict=True)
        by_inpainter, by_detector = (torch.cat(maps)[: len(rows)].numpy() for maps in found)
        return by_inpainter, by_detector

    @torch.no_grad()
    def inpaint(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Replace all cells by the inpainter's guesses from other cells of the row."""
        rows, c = torch.from_numpy(self.scaler.transform(X)), self._tensors()
        guessed = _mean(self._guesses(rows, c, at_once=False), c)
        return self.scaler.inverse_transform(guessed.numpy())

    def _constants(self) -> dict[str, dict[str, ArrayLike]]:
        hidden = counted = self.groups[:, None].astype(np.float64)
        if not self.hides:
            hidden, counted = np.zeros_like(counted[:1]), np.ones_like(counted[:1])
        return {
            "masks": {"hidden": hidden, "counted": counted, "times": counted.sum(axis=0)},
            "error": {"least": _LEAST_ERROR},
            "range": {"lowest": self.lowest, "highest": self.highest},
        }

    def _compute(self, rows: Tensor, c: Figures, at_once: bool = True) -> tuple[Tensor, ...]:
        """Map scaled rows, float64, to both maps."""
        known = rows.maximum(c["range"]["lowest"]).minimum(c["range"]["highest"])
        guesses = self._guesses(known, c, at_once)
        error = _mean((((guess - rows).square(), counted) for guess, counted in guesses), c)
        least = c["error"]["least"]
        by_inpainter = error.sqrt() if self.error == "absolute" else (error + least).log()
        return by_inpainter, self.detector(rows)


def _mean(values: Iterable[tuple[Tensor, Tensor]], c: Figures) -> Tensor:
    """Average the values under all masks, each over the masks that use it."""
    return sum(value * counted for value, counted in values) / c["masks"]["times"]
