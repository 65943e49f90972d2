"""Plain detectors that draw anomaly maps, to hold AVID against.

Three judge overlapping windows of an image, by their neighbours among the windows of normal
images or by what principal components leave out of them; one is an autoencoder of whole
images. All take images (n, channels, height, width) of bytes or floats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import gen_batches
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_g2d.features import ResidualPCA

MAX_WINDOWS = 20_000  # of the training images; more are drawn from at random
N_NEIGHBORS = 5
N_COMPONENTS = 32  # that PCA windows keep
N_ORIENTATIONS = 8
TOP_FRACTION = 0.1  # of an image, by which it is judged
BATCH_IMAGES = 16


class MapBaseline(ABC):
    """A detector that judges an image by the most anomalous tenth of its map."""

    def __init__(self, region_size: int, seed: int = 0) -> None:
        self.region_size, self.seed = region_size, seed

    @abstractmethod
    def fit(self, X: NDArray) -> MapBaseline: ...

    @abstractmethod
    def anomaly_map(self, X: NDArray) -> NDArray: ...

    def score_samples(self, X: NDArray) -> NDArray:
        return self.score_maps(self.anomaly_map(X))

    def score_maps(self, maps: NDArray) -> NDArray:
        """Score images whose maps are known, higher = more normal."""
        smoothed = smooth(maps, self.region_size).reshape(len(maps), -1)
        n_highest = max(1, round(TOP_FRACTION * smoothed.shape[1]))
        return -np.partition(smoothed, -n_highest)[:, -n_highest:].mean(axis=1)


class WindowDetector(MapBaseline):
    """Judges windows; a pixel's anomaly is the mean over the windows that cover it.

    Parameters
    ----------
    region_size : int
        Side of a window.
    features : "pixels" or "gradients"
        What describes a window: its pixels, or the gradients in its quarters by orientation
        and the mean intensities of 4 x 4 cells.
    normalize_illumination : bool
        Whether to take out the local mean and deviation of the intensity first.
    stride : int, optional
        Between windows; None takes a quarter of the region. The region's size cuts
        puzzles into their very tiles.
    seed : int
        Of the choice of training windows.
    """

    def __init__(
        self,
        region_size: int,
        *,
        features: Literal["pixels", "gradients"] = "pixels",
        normalize_illumination: bool = False,
        stride: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(region_size, seed)
        self.features, self.normalize_illumination = features, normalize_illumination
        self.stride = max(1, region_size // 4) if stride is None else stride

    @abstractmethod
    def learn(self, rows: NDArray) -> None:
        """Learn from the descriptions of normal windows."""

    @abstractmethod
    def judge(self, rows: NDArray) -> NDArray:
        """Give the anomaly of windows, by their descriptions."""

    def fit(self, X: NDArray) -> WindowDetector:
        image, row, column = self._windows(X)
        rng = np.random.default_rng(self.seed)
        chosen = np.sort(rng.permutation(len(image))[:MAX_WINDOWS])
        image, row, column = image[chosen], row[chosen], column[chosen]
        described: list[list[NDArray]] = []
        for batch in gen_batches(len(X), BATCH_IMAGES):
            inside = slice(*np.searchsorted(image, [batch.start, batch.stop]))
            windows = image[inside] - batch.start, row[inside], column[inside]
            described.append(self._describe(X[batch], *windows))
        parts = [np.concatenate(part) for part in zip(*described, strict=True)]
        # Parts of a description, of different units, get the same share in a distance.
        self.scales_ = [np.sqrt(part.var(axis=0).sum()) for part in parts]
        self.learn(self._rows(parts))
        return self

    def anomaly_map(self, X: NDArray) -> NDArray:
        rows, columns = (self._corners(length) for length in X.shape[2:])
        down = _coverage(rows, self.region_size, X.shape[2])
        across = _coverage(columns, self.region_size, X.shape[3])
        maps = []
        for batch in gen_batches(len(X), BATCH_IMAGES):
            images = X[batch]
            described = self._describe(images, *self._windows(images))
            judged = self.judge(self._rows(described)).reshape(-1, len(rows), len(columns))
            maps.append(down @ judged @ across.T)
        return np.concatenate(maps)

    def _corners(self, length: int) -> NDArray:
        """Where windows begin along an axis; the last one ends with the image."""
        last = length - self.region_size
        return np.append(np.arange(0, last, self.stride), last)

    def _windows(self, X: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """Image, row and column of every window."""
        corners = (self._corners(length) for length in X.shape[2:])
        image, row, column = np.meshgrid(np.arange(len(X)), *corners, indexing="ij")
        return image.ravel(), row.ravel(), column.ravel()

    def _describe(self, X: NDArray, image: NDArray, row: NDArray, column: NDArray) -> list[NDArray]:
        """Describe windows in parts of shape (n_windows, n_features)."""
        images = X.astype(np.float32)
        if self.normalize_illumination:
            images = normalize_illumination(images, 2 * self.region_size + 1)
        size = self.region_size
        if self.features == "pixels":
            return [_gather(images, np.arange(size), image, row, column)]
        half, quarter = -(-size // 2), -(-size // 4)
        energies = np.sqrt(_pool(oriented_energies(images), half))
        halves = np.array([0, size - half])
        quarters = np.linspace(0, size - quarter, 4).round().astype(int)
        return [
            _gather(energies, halves, image, row, column),
            _gather(_pool(images, quarter), quarters, image, row, column),
        ]

    def _rows(self, parts: list[NDArray]) -> NDArray:
        scaled = [part / (scale or 1) for part, scale in zip(parts, self.scales_, strict=True)]
        return np.concatenate(scaled, axis=1)


class WindowNeighbors(WindowDetector):
    """Mean distance from the nearest windows of normal images."""

    def learn(self, rows: NDArray) -> None:
        # Fewer columns make the search affordable, and next to no distance changes.
        self.pca_ = ResidualPCA().fit(rows)
        self.search_ = NearestNeighbors(n_neighbors=N_NEIGHBORS, algorithm="brute")
        self.search_.fit(self._components(rows))

    def judge(self, rows: NDArray) -> NDArray:
        distances, _ = self.search_.kneighbors(self._components(rows))
        return distances.mean(axis=1)

    def _components(self, rows: NDArray) -> NDArray:
        return self.pca_.transform(rows).astype(np.float32)


class WindowPCA(WindowDetector):
    """Length of what the first principal components leave out of a window."""

    def learn(self, rows: NDArray) -> None:
        self.pca_ = ResidualPCA(N_COMPONENTS).fit(rows)

    def judge(self, rows: NDArray) -> NDArray:
        return self.pca_.transform(rows)[:, -1]


class ConvAutoEncoder(MapBaseline):
    """Squared residual of an autoencoder that sees whole images.

    Parameters
    ----------
    region_size : int
        Side of the regions that an image is judged by; the map is smoothed over half of it.
    n_steps, batch_size : int
        Of the training by Adam.
    channels : int
        Of the first layer.
    n_codes : int
        Channels of the bottleneck, whose sides are an eighth of the image's.
    seed : int
        Of PyTorch's global generator.
    """

    def __init__(
        self,
        region_size: int,
        *,
        n_steps: int = 600,
        batch_size: int = 16,
        channels: int = 16,
        n_codes: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__(region_size, seed)
        self.n_steps, self.batch_size = n_steps, batch_size
        self.channels, self.n_codes = channels, n_codes

    def fit(self, X: NDArray) -> ConvAutoEncoder:
        torch.manual_seed(self.seed)
        self.mean_, self.std_ = float(X.mean()), float(X.std()) or 1.0
        self.network_ = _autoencoder(X.shape[1], self.channels, self.n_codes)
        optimizer = torch.optim.Adam(self.network_.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.n_steps)
        for _ in range(self.n_steps):
            images = self._scaled(X[torch.randint(len(X), (self.batch_size,)).numpy()])
            loss = self._residuals(images).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        self.network_.eval()
        return self

    @torch.no_grad()
    def anomaly_map(self, X: NDArray) -> NDArray:
        residuals = [
            self._residuals(self._scaled(X[batch])).mean(dim=1).numpy()
            for batch in gen_batches(len(X), BATCH_IMAGES)
        ]
        return smooth(np.concatenate(residuals), self.region_size // 2)

    def _scaled(self, X: NDArray) -> Tensor:
        return (torch.from_numpy(X.astype(np.float32)) - self.mean_) / self.std_

    def _residuals(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        # Three layers of stride 2 want sides that 8 divides.
        padded = F.pad(images, (0, -width % 8, 0, -height % 8), mode="replicate")
        return (self.network_(padded)[..., :height, :width] - images).square()


def _autoencoder(n_channels: int, channels: int, n_codes: int) -> nn.Sequential:
    def down(n_in: int, n_out: int) -> list[nn.Module]:
        return [nn.Conv2d(n_in, n_out, 4, 2, 1), nn.BatchNorm2d(n_out), nn.ReLU()]

    def up(n_in: int, n_out: int) -> list[nn.Module]:
        return [nn.ConvTranspose2d(n_in, n_out, 4, 2, 1), nn.BatchNorm2d(n_out), nn.ReLU()]

    return nn.Sequential(
        *down(n_channels, channels),
        *down(channels, 2 * channels),
        *down(2 * channels, 4 * channels),
        nn.Conv2d(4 * channels, n_codes, 1),
        nn.Conv2d(n_codes, 4 * channels, 1),
        nn.ReLU(),
        *up(4 * channels, 2 * channels),
        *up(2 * channels, channels),
        nn.ConvTranspose2d(channels, n_channels, 4, 2, 1),
    )


def smooth(maps: NDArray, size: int) -> NDArray:
    """Average maps over squares."""
    return ndimage.uniform_filter(maps, (0, size, size), mode="nearest")


def normalize_illumination(images: NDArray, size: int) -> NDArray:
    """Take out the local mean and deviation, of squares of `size` pixels."""
    mean = ndimage.uniform_filter(images, (0, 0, size, size))
    difference = images - mean
    variance = ndimage.uniform_filter(np.square(difference), (0, 0, size, size))
    deviation = np.sqrt(np.maximum(variance, 0))
    # Where next to nothing is seen, noise must not become structure.
    floor = 0.1 * deviation.mean(axis=(2, 3), keepdims=True) + np.finfo(np.float32).tiny
    return difference / (deviation + floor)


def oriented_energies(images: NDArray) -> NDArray:
    """Lengths of gradients, shared out by orientation: (n, orientations, height, width)."""
    down, across = np.gradient(images.mean(axis=1), axis=(1, 2))
    orientations = np.pi * np.arange(N_ORIENTATIONS, dtype=np.float32) / N_ORIENTATIONS
    turned = np.arctan2(down, across)[:, None] - orientations[:, None, None]
    return np.hypot(down, across)[:, None] * np.cos(turned) ** 8


def _pool(images: NDArray, size: int) -> NDArray:
    """Average over the squares that begin at each pixel and fit into the image."""
    return F.avg_pool2d(torch.from_numpy(images), size, stride=1).numpy()


def _gather(
    maps: NDArray, offsets: NDArray, image: NDArray, row: NDArray, column: NDArray
) -> NDArray:
    """Values of maps (n, channels, height, width) on a grid in each window, in rows."""
    down = row[:, None, None] + offsets[:, None]
    across = column[:, None, None] + offsets
    return maps[image[:, None, None], :, down, across].reshape(len(image), -1)


def _coverage(corners: NDArray, size: int, length: int) -> NDArray:
    """Weights that average, at every pixel of an axis, over the windows that cover it."""
    pixels = np.arange(length)[:, None]
    covers = (pixels >= corners) & (pixels < corners + size)
    return covers / covers.sum(axis=1, keepdims=True)
