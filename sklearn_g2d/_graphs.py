"""Fitted detectors as PyTorch modules, from the user's array to the scores: what is exported.

They repeat what the detectors' own parts compute, in the same precision, with operations that
other runtimes have. Constants are tensors, for numbers would be exported in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_g2d._base import BaseDetector
from sklearn_g2d.avid import _detector as _avid
from sklearn_g2d.avid import _models as _players
from sklearn_g2d.avid import _preprocessing as _canvas
from sklearn_g2d.avid._appearance import ConditionalScaler, deviations
from sklearn_g2d.avid._detector import AVIDDetector
from sklearn_g2d.avid._models import ImagePlayers, TablePlayers
from sklearn_g2d.avid._recipes import AVID_RECIPES
from sklearn_g2d.errors import UnsupportedObjectError
from sklearn_g2d.features import (
    NeighborProfile,
    OrientedGradients,
    RemainderPCA,
    SquashingScaler,
    _gradients,
    _neighbors,
)
from sklearn_g2d.features._scaling import RangeScaler
from sklearn_g2d.g2d._classifier import IRREGULAR, NORMAL
from sklearn_g2d.g2d._classifiers import NetworkClassifiers
from sklearn_g2d.g2d._detector import G2DOutlierDetector
from sklearn_g2d.g2d._image_networks import ConvNetwork
from sklearn_g2d.training.runtime import computes_in_bfloat16


class Constants(nn.Module):
    """A module with constant tensors.

    Parameters
    ----------
    **values
        Attributes; arrays keep their dtype, numbers become float64.
    """

    def __init__(self, **values: ArrayLike) -> None:
        super().__init__()
        for name, value in values.items():
            self.register_buffer(name, torch.tensor(np.asarray(value)))

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)  # a tensor or a module, which type checkers cannot tell


class G2DGraph(Constants):
    """Everything between rows and the scores of a `G2DOutlierDetector`.

    Parameters
    ----------
    detector : G2DOutlierDetector
        Fitted.

    Attributes
    ----------
    output_names : tuple of str
        What it gives, in order.
    rounds : bool
        Whether the detector computes in a lower precision than this module does.

    Raises
    ------
    UnsupportedObjectError
        If its features or its classifier are the user's own.
    """

    output_names = "decision_function", "score_samples"
    rounds = False

    def __init__(self, detector: G2DOutlierDetector) -> None:
        super().__init__(offset=detector.offset_)
        representation = detector._representation
        stages: list[nn.Module] = []
        if isinstance(representation._features, OrientedGradients):
            stages.append(Gradients(representation._features))
        elif representation._features is not None:
            raise UnsupportedObjectError(
                "features that are your own cannot be exported. Put them in front of the "
                'detector yourself, fit it with features="raw", and export the two apart.'
            )
        if representation._components is not None:
            stages.append(Components(representation._components))
        scaler = representation._scaler
        stages.append(Squash(scaler) if isinstance(scaler, SquashingScaler) else Range(scaler))
        if representation._profile is not None:
            stages.append(Profile(representation._profile))
        self.stages = nn.Sequential(*stages)
        if not isinstance(detector._classifiers, NetworkClassifiers):
            raise UnsupportedObjectError(
                "A classifier of your own cannot be exported. Fit with classifier=None."
            )
        self.network = detector._classifiers.network

    def forward(self, X: Tensor) -> tuple[Tensor, ...]:
        """Map rows or images to `output_names`."""
        described = self.stages(X.flatten(1).double())
        if isinstance(self.network, ConvNetwork):
            described = described.float()
        logits = self.network(described.expand(self.network.n_members, -1, -1)).double()
        scores = (logits[..., NORMAL] - logits[..., IRREGULAR]).mean(0)
        return scores - self.offset, scores


class Squash(Constants):
    """`SquashingScaler`."""

    def __init__(self, scaler: SquashingScaler) -> None:
        super().__init__(
            mean=scaler.scaler_.mean_, scale=scaler.scaler_.scale_, bound=scaler.bound, most=1e150
        )

    def forward(self, rows: Tensor) -> Tensor:
        """Standardise and bound."""
        z = torch.clamp((rows - self.mean) / self.scale, -self.most, self.most)
        return z / (1 + (z / self.bound).square()).sqrt()


class Range(Constants):
    """`RangeScaler`."""

    def __init__(self, scaler: RangeScaler) -> None:
        super().__init__(center=scaler._center, unit=scaler._half)

    def forward(self, rows: Tensor) -> Tensor:
        """Map to [-1, 1]."""
        return torch.clamp((rows - self.center) / self.unit, -1e6, 1e6)


class Components(Constants):
    """`RemainderPCA`."""

    def __init__(self, pca: RemainderPCA) -> None:
        axes = pca.pca_.components_.T.astype(np.float64)
        mean = np.asarray(pca.pca_.mean_, dtype=np.float64)
        super().__init__(mean=mean, axes=axes, most=1e100)

    def forward(self, rows: Tensor) -> Tensor:
        """Give components, and the length of the remainder."""
        centred = torch.clamp(rows.double() - self.mean, -self.most, self.most)
        components = centred @ self.axes
        squared = centred.square().sum(1) - components.square().sum(1)
        return torch.cat([components, squared.clamp(min=0).sqrt()[:, None]], 1)


class Profile(Constants):
    """`NeighborProfile`."""

    def __init__(self, profile: NeighborProfile) -> None:
        super().__init__(
            reference=profile.reference_,
            squared=np.square(profile.reference_).sum(axis=1),
            resolution=profile._resolution,
            floor=profile._floor,
            center=profile.center_,
            scale=profile.scale_,
        )
        self.n_neighbors = profile.n_neighbors_
        self.mixtures: nn.Module | None = None
        if profile.measure == "reconstruction":
            self.mixtures = Mixtures(profile.n_neighbors_)

    def forward(self, points: Tensor) -> Tensor:
        """Give standardised log-distances."""
        squared = points.square().sum(1, keepdim=True) + self.squared
        squared = squared - 2 * points @ self.reference.T
        nearest, neighbors = squared.topk(self.n_neighbors + 1, 1, largest=False)
        distances = nearest.clamp(min=0).sqrt()
        distances = torch.where(distances < self.resolution, 0 * distances, distances)
        is_reference = distances[:, :1] == 0
        if self.mixtures is None:
            measured = torch.where(is_reference, distances[:, 1:], distances[:, :-1])
        else:
            chosen = torch.where(is_reference, neighbors[:, 1:], neighbors[:, :-1])
            measured = self.mixtures(points, self.reference[chosen])
        return ((measured + self.floor).log() - self.center) / self.scale


class Mixtures(Constants):
    """Distances of points from the best mixtures of their first neighbours.

    Other runtimes have no solver for the ridge regression. In units of the penalty its matrices
    have eigenvalues from 1 to 1 + size / ridge, so that Newton's iteration for the inverse
    takes a number of steps that is known beforehand.

    Parameters
    ----------
    n_neighbors : int
        The most to mix.
    """

    def __init__(self, n_neighbors: int) -> None:
        sizes = np.array(sorted({max(1, n_neighbors // share) for share in (4, 2, 1)}))
        chosen = (np.arange(n_neighbors) < sizes[:, None]).astype(np.float64)
        shares = chosen / sizes[:, None]
        largest = 2 + n_neighbors / _neighbors._RIDGE
        super().__init__(
            shares=shares[:, :, None],
            centring=chosen[:, :, None] * (np.eye(n_neighbors) - shares[:, None]),
            ridge=_neighbors._RIDGE / sizes[:, None, None],
            one=1.0,
            eye=np.eye(n_neighbors),
            twice=2 * np.eye(n_neighbors),
            start=2 / largest * np.eye(n_neighbors),
        )
        # Each squares an error of 1 - 2 / largest.
        self.n_iterations = int(np.ceil(np.log2(18 * largest)))

    def forward(self, points: Tensor, neighbors: Tensor) -> Tensor:
        """Map (n, n_features) and (n, n_neighbors, n_features) to (n, n_sizes)."""
        center = neighbors.mean(1, keepdim=True)
        spread, rest = neighbors - center, points[:, None] - center
        products = (spread @ spread.mT)[:, None]
        overlap = (spread @ rest.mT)[:, None]
        gram = self.centring @ products @ self.centring.mT
        unit = self.ridge * (gram * self.eye).sum((2, 3), keepdim=True)
        unit = torch.where(unit > 0, unit, self.one)  # equal neighbours span nothing
        matrix = gram / unit + self.eye
        inverse = self.start
        for _ in range(self.n_iterations):
            inverse = inverse @ (self.twice - matrix @ inverse)
        mixed = products @ self.shares
        squared = rest.square().sum((1, 2))[:, None] + (
            (self.shares * (mixed - 2 * overlap)).sum((2, 3))
        )
        overlap = self.centring @ (overlap - mixed)
        explained = (overlap * (inverse @ overlap) / unit).sum((2, 3))
        return (squared - explained).clamp(min=0).sqrt()


class Gradients(Constants):
    """`OrientedGradients`, in float32."""

    def __init__(self, gradients: OrientedGradients) -> None:
        low, high = gradients.intensity_range_
        angles = np.pi * np.arange(gradients.n_orientations) / gradients.n_orientations
        super().__init__(
            low=low,
            width=high - low if high > low else 1.0,
            cosines=np.cos(angles).astype(np.float32)[:, None, None],
            sines=np.sin(angles).astype(np.float32)[:, None, None],
        )
        _, height, width = self.image_shape = gradients.image_shape_
        self.layout_weight = gradients.layout_weight / _gradients._LAYOUT_CELLS
        self.floor = float(np.square(1e-2 * gradients.contrast_) + np.finfo(np.float32).tiny)
        self.levels = nn.ModuleList(Windows(n, height, width) for n in gradients.n_cells)
        self.layout = Windows(_gradients._LAYOUT_CELLS, height, width)

    def forward(self, rows: Tensor) -> Tensor:
        """Describe every image."""
        scaled = torch.clamp((rows - self.low) / self.width, -1e6, 1e6)
        images = scaled.float().reshape(-1, *self.image_shape)
        across, down, squared = self._gradients(images)
        inverse = 1 / squared.clamp(min=float(np.finfo(np.float32).tiny))
        share = (self.cosines * across + self.sines * down).square() * inverse
        cells = share.square().square().square() * squared.sqrt()
        parts = [self._blocks(level(cells)) for level in self.levels]
        if self.layout_weight:
            parts.append(self.layout(images).flatten(1) * self.layout_weight)
        return torch.cat(parts, 1)

    @staticmethod
    def _gradients(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        across = F.pad(images[..., 2:] - images[..., :-2], (1, 1))
        down = F.pad(images[..., 2:, :] - images[..., :-2, :], (0, 0, 1, 1))
        squared = across.square() + down.square()
        if images.shape[1] > 1:
            steepest = squared.argmax(1, keepdim=True)
            across, down, squared = (a.gather(1, steepest) for a in (across, down, squared))
        return across, down, squared

    def _blocks(self, cells: Tensor) -> Tensor:
        side = cells.shape[2]
        energy = cells.square().sum(1)
        corners = [(slice(i, side - 1 + i), slice(j, side - 1 + j)) for i in (0, 1) for j in (0, 1)]
        block = sum(energy[:, rows, columns] for rows, columns in corners)
        mean = energy.mean((1, 2)).clamp(min=self.floor)[:, None, None]
        inverse = (1 / (block + mean).sqrt())[:, None]
        blocks = torch.stack([cells[:, :, rows, columns] * inverse for rows, columns in corners], 1)
        return blocks.flatten(1).clamp(max=_gradients._CLIP) / (side - 1)


class Windows(Constants):
    """Sums of pixels over cells."""

    def __init__(self, n_cells: int, height: int, width: int) -> None:
        super().__init__(
            rows=_gradients._windows(n_cells, height), columns=_gradients._windows(n_cells, width)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map (..., height, width) to (..., n_cells, n_cells)."""
        return self.rows @ maps @ self.columns.T


class AVIDGraph(Constants):
    """Everything between images, or rows, and the maps and scores of an `AVIDDetector`.

    Parameters
    ----------
    detector : AVIDDetector
        Fitted.

    Attributes
    ----------
    output_names : tuple of str
        What it gives, in order.
    rounds : bool
        Whether the detector computes in a lower precision than this module does.
    """

    output_names = "decision_function", "score_samples", "anomaly_map"

    def __init__(self, detector: AVIDDetector) -> None:
        means, deviations = detector._map_means, detector._map_deviations
        super().__init__(
            offset=detector.offset_,
            inpainter_mean=means[0],
            detector_mean=means[1],
            inpainter_deviation=deviations[0],
            detector_deviation=deviations[1],
            sharpness=_avid._SHARPNESS,
            weight=_avid._INPAINTER_WEIGHT,
        )
        self.kind, self.published = detector.map, detector.recipe == "paper"
        self.pairs = nn.ModuleList(_maps_of(pair) for pair in detector._players)
        self.regions: nn.Module = nn.Identity()
        n_regions = detector.n_features_in_
        if detector.image_shape_ is not None:
            self.regions = Resampling(detector._regions_of, detector.image_shape_[1:], np.float64)
            n_regions = self.regions.n_values
        self.rounds = any(pair.rounds for pair in self.pairs)
        share = AVID_RECIPES[detector.recipe].top_share
        self.n_top = max(1, round(share * n_regions))

    def forward(self, X: Tensor) -> tuple[Tensor, ...]:
        """Map images or rows to `output_names`."""
        by_pair = [pair(X.flatten(1).double()) for pair in self.pairs]
        by_inpainter, by_detector = (
            torch.stack(maps).double().mean(0) for maps in zip(*by_pair, strict=True)
        )
        anomaly_map = self._combined(
            (by_inpainter - self.inpainter_mean) / self.inpainter_deviation,
            (by_detector - self.detector_mean) / self.detector_deviation,
        )
        top = self.regions(anomaly_map).flatten(1).topk(self.n_top, 1)[0]
        scores = -top.mean(1)
        return scores - self.offset, scores, anomaly_map

    def _combined(self, by_inpainter: Tensor, by_detector: Tensor) -> Tensor:
        if self.kind != "combined":
            return by_inpainter if self.kind == "inpainter" else by_detector
        if self.published:
            return torch.minimum(by_inpainter, by_detector)
        total = self.weight * self._excess(by_inpainter) + self._excess(by_detector)
        return total / (1 + self.weight)

    def _excess(self, deviations: Tensor) -> Tensor:
        x = self.sharpness * deviations
        return (x.clamp(min=0) + (1 + (-x.abs()).exp()).log()) / self.sharpness


def _maps_of(pair: Any) -> ImageMaps | TableMaps:
    return ImageMaps(pair) if isinstance(pair, ImagePlayers) else TableMaps(pair)


class ImageMaps(Constants):
    """`ImagePlayers`, in float32."""

    def __init__(self, players: ImagePlayers) -> None:
        canvas = players.canvas
        super().__init__(mean=canvas._mean, deviation=canvas._deviation)
        self.players, self.canvas = players, canvas
        self.rounds = players.bfloat16 and computes_in_bfloat16(torch.device("cpu"))
        self.inpainter, self.detector = players.inpainter, players.detector
        blank = torch.zeros(1, 1, *canvas.padded_size)
        masks = [blank] if players.repairs_noise else players.regions.partition(blank)
        self.register_buffer("masks", torch.stack(masks))
        self.register_buffer("shown", 1 + blank if players.repairs_noise else self.masks)
        self.to_canvas = Resampling(
            lambda maps: canvas._resized(maps[:, None], canvas._size)[:, 0], canvas.image_shape[1:]
        )
        self.scaler = None if players.scaler is None else Conditional(players.scaler)
        height, width = size = canvas.padded_size
        stride = int(players.detector.stride)  # type: ignore[arg-type]
        self.to_pixels = Resampling(lambda maps: canvas.to_pixels(maps[:, None])[:, 0], size)
        self.logits_to_canvas = Resampling(
            lambda logits: F.interpolate(logits[:, None], size, mode="bilinear")[:, 0],
            (-(-height // stride), -(-width // stride)),
        )

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Give I's and D's maps (n, height, width)."""
        images = self._encoded(rows)
        # All masks at once: an image for each.
        masks = self.masks.expand(-1, images.shape[0], -1, -1, -1)
        copies = images.expand(masks.shape[0], -1, -1, -1, -1)
        guesses = self.inpainter(copies.flatten(0, 1), masks.flatten(0, 1))
        inpainted = (guesses.unflatten(0, (masks.shape[0], -1)) * self.shown).sum(0)
        error = self.players._irregularity(images, inpainted)
        maps = torch.cat([error, self.logits_to_canvas(self.detector(images))], dim=1)
        if self.scaler is not None:
            maps = self.scaler(maps, images)
        by_inpainter, by_detector = self.to_pixels(maps).unbind(1)
        return by_inpainter, by_detector

    def _encoded(self, rows: Tensor) -> Tensor:
        pixels = (rows.reshape(-1, *self.canvas.image_shape) - self.mean) / self.deviation
        pixels = pixels.clamp(-_canvas._BOUND, _canvas._BOUND).float()
        images = self.to_canvas(pixels)
        if self.canvas.even_light:
            mean, deviation = self.canvas._light(images)
            images = (images - mean) / deviation
        bottom, right = (
            padded - length
            for padded, length in zip(self.canvas.padded_size, self.canvas._size, strict=True)
        )
        return F.pad(images, (0, right, 0, bottom), mode="replicate")


class Conditional(Constants):
    """`ConditionalScaler`, in float32."""

    def __init__(self, scaler: ConditionalScaler) -> None:
        super().__init__(**scaler.figures)
        self.window = scaler.window

    def forward(self, maps: Tensor, images: Tensor) -> Tensor:
        """Give deviations from what is usual."""
        return deviations(maps, images, self.window, dict(self.named_buffers()))


class TableMaps(Constants):
    """`TablePlayers`, in float64."""

    rounds = False

    def __init__(self, players: TablePlayers) -> None:
        regions: Any = players.regions
        groups = regions.groups[:, None].astype(np.float64)
        masks = np.zeros_like(groups[:1]) if players.repairs_noise else groups
        super().__init__(
            least=_players._LEAST_ERROR,
            masks=masks,
            counted=np.ones_like(masks) if players.repairs_noise else masks,
        )
        self.published = players.published
        self.inpainter, self.detector = players.inpainter, players.detector
        self.scaler = Squash(players.scaler)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Give I's and D's maps (n, n_features)."""
        scaled = self.scaler(rows)
        # All masks at once: a row for each.
        masks = self.masks.expand(-1, scaled.shape[0], -1)
        copies = scaled.expand(masks.shape[0], -1, -1)
        guesses = self.inpainter(copies.flatten(0, 1), masks.flatten(0, 1))
        errors = (guesses.unflatten(0, (masks.shape[0], -1)) - scaled).square()
        error = (errors * self.counted).sum(0) / self.counted.sum(0)
        by_inpainter = error.sqrt() if self.published else (error + self.least).log()
        return by_inpainter, self.detector(scaled)


class Resampling(Constants):
    """A linear change of a map's size, along one axis after the other, as matrix products.

    Parameters
    ----------
    function : callable
        Maps arrays or tensors (n, height, width) to such ones of another size; of an axis
        along which a map is constant, the result is constant.
    size : tuple of int
        Height and width of its input.
    dtype : dtype, default=float32
        Of its input; arrays are given to `function` in float64, tensors in float32.
    """

    def __init__(
        self, function: Callable[[Any], Any], size: tuple[int, int], dtype: Any = np.float32
    ) -> None:
        height, width = size
        rows: Any = np.repeat(np.eye(height, dtype=dtype)[:, :, None], width, axis=2)
        columns: Any = np.repeat(np.eye(width, dtype=dtype)[:, None], height, axis=1)
        if dtype == np.float32:
            rows, columns = torch.from_numpy(rows), torch.from_numpy(columns)
        of_rows, of_columns = np.asarray(function(rows)), np.asarray(function(columns))
        super().__init__(rows=of_rows[:, :, 0].T, columns=of_columns[:, 0])
        self.n_values = of_rows[0].size

    def forward(self, maps: Tensor) -> Tensor:
        """Resample the last two axes."""
        return self.rows @ maps @ self.columns


def graph_of(detector: BaseDetector) -> G2DGraph | AVIDGraph:
    """Build the module that computes what a fitted detector does.

    Raises
    ------
    UnsupportedObjectError
        If a part of the detector is the user's own.
    """
    if isinstance(detector, G2DOutlierDetector):
        return G2DGraph(detector).eval()
    if isinstance(detector, AVIDDetector):
        return AVIDGraph(detector).eval()
    raise UnsupportedObjectError(f"{type(detector).__name__} is not a class of this package.")
