"""What is normal in the maps of one layer: cells compared with others, or with their own place."""

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

# Of cells that any detector of rows is fitted on.
_MAX_ROWS = 20_000

# Always one number of images at once, which decides on the last digits of products.
_IMAGES_AT_ONCE = 4

# Images that features without batches of their own are given at once.
_OWN_IMAGES_AT_ONCE = 8

# Cells and references by which it is decided whether places can be compared.
_N_ASKED, _N_ANSWERS = 2000, 6000

# Distance at the own place, in units of that elsewhere, from which on places are not compared: of
# parts in one position it was .5 to .85, of textures and of parts that turn, 1 and more.
_CLEARLY_NEARER = 0.9


class LevelDetector(BaseEstimator):
    """Judges the cells of maps (n_images, height, width, n_features) by an estimator of rows.

    Parameters
    ----------
    estimator : outlier detector with `score_samples`
        A clone is fitted on cells, at most `_MAX_ROWS` of them.
    per_location : bool
        Whether cells are compared with those at the same place of other images. A `PatchNeighbors`
        then takes only these for references. Other estimators are given the differences from the
        mean of the place.
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
        """Say how anomalous cells are: (n_images, height, width), **higher = more anomalous**."""
        if self.references_ is None:
            rows = (maps - self.center_).reshape(-1, maps.shape[-1])
            return -np.asarray(self.estimator_.score_samples(rows)).reshape(maps.shape[:-1])
        batches = gen_batches(len(maps), _IMAGES_AT_ONCE)
        return np.concatenate([self._from_places(maps[batch]) for batch in batches])

    def _from_places(self, maps: Maps) -> Floats:
        """Give the distances of cells from the nearest reference of their place."""
        n, height, width, n_features = maps.shape
        filled = np.pad(maps - self.center_, ((0, _IMAGES_AT_ONCE - n), *[(0, 0)] * 3))
        rows = (filled.reshape(-1, n_features) @ self.matrix_).reshape(
            _IMAGES_AT_ONCE, -1, n_features
        )
        rows = np.ascontiguousarray(rows.transpose(1, 0, 2))  # by place
        products = rows @ self.references_.transpose(0, 2, 1)
        nearest = np.argmin(self.lengths_[:, None] - 2 * products, axis=2)
        # The product tells which is nearest; the difference, how near, in every digit.
        found = np.take_along_axis(self.references_, nearest[:, :, None], axis=1)
        squared = np.square(rows.astype(np.float64) - found).sum(axis=2)
        return np.sqrt(squared).T[:n].reshape(n, height, width)


def iter_levels(features: Any, rows: NDArray[Any], image_shape: ImageShape) -> Iterator[list[Maps]]:
    """Give the maps of all layers of images in rows, some at a time, features last."""
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
                "check what yours return."
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
    """Decide whether cells find nearer ones at their own place than among those of other places.

    Cells of the images `held_out` look for the nearest cell of the images `known`: at their place,
    of which there are few, and among thousands drawn from other places. It must be clearly nearer
    there on average. No label is needed.
    """
    ratios = []
    for maps in levels:
        cells = maps.reshape(len(maps), -1, maps.shape[-1])
        image = random_state.choice(held_out, _N_ASKED)
        place = random_state.randint(cells.shape[1], size=_N_ASKED)
        others = random_state.permutation(len(known) * cells.shape[1])[:_N_ANSWERS]
        other_place = others % cells.shape[1]
        elsewhere = cells[known[others // cells.shape[1]], other_place]
        asked = cells[image, place]
        squared = euclidean_distances(asked, elsewhere, squared=True)
        squared[place[:, None] == other_place] = np.inf
        anywhere = np.sqrt(squared.min(axis=1)).mean()
        at_place = np.mean(
            [
                np.linalg.norm(cells[known, p] - row, axis=1).min()
                for p, row in zip(place, asked, strict=True)
            ]
        )
        ratios.append(at_place / anywhere if 0 < anywhere < np.inf else 1.0)
    return bool(np.mean(ratios) < _CLEARLY_NEARER)
