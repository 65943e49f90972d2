"""Detectors of anomalous cells in the maps of one layer of features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils import gen_batches

from sklearn_g2d.patches._neighbors import PatchNeighbors, whitening_matrix
from sklearn_g2d.utils.arrays import Floats
from sklearn_g2d.utils.images import ImageShape
from sklearn_g2d.utils.mapped import as_known_dtype, blocks
from sklearn_g2d.utils.parts import clone_part, fit_part

Maps = NDArray[np.float32]  # (n_images, height, width, n_features)

# Largest number of cells for the fit of an estimator.
_MAX_ROWS = 20_000

# The number of images in a product changes its last digits: use the same number always.
_IMAGES_AT_ONCE = 4

# Batch size for the user's features, which may not divide images into batches themselves.
_OWN_IMAGES_AT_ONCE = 8

# Numbers of cells and of references for the decision whether to compare places.
_N_QUERIES, _N_REFERENCES = 2000, 6000

# Places are compared if the nearest cell at the same place is clearly nearer than that elsewhere:
# if the ratio of distances is below this. It was .5 to .85 for parts in one position, and 1 or more
# for textures and for parts that turn.
_CLEARLY_NEARER = 0.9


class LevelDetector(BaseEstimator):
    """Judges the cells of maps (n_images, height, width, n_features) by an estimator of rows.

    Parameters
    ----------
    estimator : outlier detector with `score_samples`
        A clone of it is fitted on at most `_MAX_ROWS` cells.
    per_location : bool
        Whether cells are compared with cells at the same place of other images. Then
        `PatchNeighbors` uses only these cells as references, and other estimators get the
        differences from the mean of the place.
    """

    def __init__(self, estimator: Any, per_location: bool) -> None:
        self.estimator = estimator
        self.per_location = per_location

    def fit(self, maps: Maps, random_state: np.random.RandomState) -> Self:
        """Learn from the maps of normal images."""
        n_features = maps.shape[-1]
        self.center_ = maps.mean(axis=0) if self.per_location else np.zeros(n_features, np.float32)
        self.estimator_: Any = None
        self.references_: Any = None
        # All places share one whitening, because the images at one place are too few for their own.
        if self.per_location and isinstance(self.estimator, PatchNeighbors):
            self.estimator._validate_params()
            rows = (maps - self.center_).reshape(-1, n_features)
            matrix = whitening_matrix(rows, self.estimator.whitening)
            self.matrix_ = matrix.astype(np.float32)
            by_place = (rows @ self.matrix_).reshape(len(maps), -1, n_features)
            chosen = random_state.permutation(len(maps))[: self.estimator.n_references]
            self.references_ = np.ascontiguousarray(by_place[np.sort(chosen)].transpose(1, 0, 2))
            self.lengths_ = np.einsum("pnd,pnd->pn", self.references_, self.references_)
            return self
        n_cells = maps[..., 0].size
        chosen = random_state.permutation(n_cells)[:_MAX_ROWS]
        image, *place = np.unravel_index(chosen, maps.shape[:-1])
        rows = maps[image, *place]
        rows = rows - (self.center_[*place] if self.per_location else self.center_)
        self.estimator_ = fit_part(clone_part(self.estimator, random_state), rows)
        return self

    def anomalies(self, maps: Maps) -> Floats:
        """Return the anomaly of cells (n_images, height, width): **higher = more anomalous**."""
        if self.references_ is None:
            rows = (maps - self.center_).reshape(-1, maps.shape[-1])
            return -np.asarray(self.estimator_.score_samples(rows)).reshape(maps.shape[:-1])
        batches = gen_batches(len(maps), _IMAGES_AT_ONCE)
        return np.concatenate([self._from_places(maps[batch]) for batch in batches])

    def _from_places(self, maps: Maps) -> Floats:
        """Return the distances of cells to the nearest reference of their place."""
        n, height, width, n_features = maps.shape
        filled = np.pad(maps - self.center_, ((0, _IMAGES_AT_ONCE - n), *[(0, 0)] * 3))
        rows = (filled.reshape(-1, n_features) @ self.matrix_).reshape(
            _IMAGES_AT_ONCE, -1, n_features
        )
        # Now the first axis is that of places.
        rows = np.ascontiguousarray(rows.transpose(1, 0, 2))
        products = rows @ self.references_.transpose(0, 2, 1)
        nearest = np.argmin(self.lengths_[:, None] - 2 * products, axis=2)
        # Products are fast, but their rounding makes small distances inexact. They only find the
        # nearest reference, and its distance is computed from the difference.
        found = np.take_along_axis(self.references_, nearest[:, :, None], axis=1)
        squared = np.square(rows.astype(np.float64) - found).sum(axis=2)
        return np.sqrt(squared).T[:n].reshape(n, height, width)


def iter_levels(features: Any, rows: NDArray[Any], image_shape: ImageShape) -> Iterator[list[Maps]]:
    """Yield the maps of all layers batch by batch, with the features on the last axis."""
    if hasattr(features, "iter_levels"):
        by_batch = features.iter_levels(rows.reshape(-1, *image_shape))
    else:
        by_batch = (
            [_own_maps(features, as_known_dtype(batch).reshape(-1, *image_shape))]
            for batch in blocks(rows, _OWN_IMAGES_AT_ONCE)
        )
    for levels in by_batch:
        if not all(np.isfinite(maps).all() for maps in levels):
            raise ValueError(
                f"Maps of {type(features).__name__} are NaN or infinite. Choose other features, or "
                "correct your own features."
            )
        yield [np.ascontiguousarray(maps.transpose(0, 2, 3, 1)) for maps in levels]


def _own_maps(features: Any, images: NDArray[Any]) -> NDArray[np.float32]:
    maps = np.asarray(features.feature_maps(images), dtype=np.float32)
    if maps.ndim != 4 or len(maps) != len(images) or not maps.size:
        raise ValueError(
            f"feature_maps of {type(features).__name__} gave an array of shape {maps.shape} for "
            f"{len(images)} images. It must give maps of shape (n, channels, height, width)."
        )
    return maps


def own_place_is_nearer(
    levels: list[Maps],
    known: NDArray[np.intp],
    held_out: NDArray[np.intp],
    random_state: np.random.RandomState,
) -> bool:
    """Return whether cells are clearly nearer to cells of their own place than of other places.

    For cells of the images `held_out`, this finds the nearest cell of the images `known`: among the
    few cells at the same place, and among thousands of cells drawn from other places. The mean
    distances of both are compared. No label is needed.
    """
    ratios = []
    for maps in levels:
        cells = maps.reshape(len(maps), -1, maps.shape[-1])
        image = random_state.choice(held_out, _N_QUERIES)
        place = random_state.randint(cells.shape[1], size=_N_QUERIES)
        others = random_state.permutation(len(known) * cells.shape[1])[:_N_REFERENCES]
        other_place = others % cells.shape[1]
        elsewhere = cells[known[others // cells.shape[1]], other_place]
        queries = cells[image, place]
        squared = euclidean_distances(queries, elsewhere, squared=True)
        # Draws from the same place do not count as other places.
        squared[place[:, None] == other_place] = np.inf
        anywhere = np.sqrt(squared.min(axis=1)).mean()
        at_place = np.mean(
            [
                np.linalg.norm(cells[known, p] - row, axis=1).min()
                for p, row in zip(place, queries, strict=True)
            ]
        )
        ratios.append(at_place / anywhere if 0 < anywhere < np.inf else 1.0)
    return bool(np.mean(ratios) < _CLEARLY_NEARER)
