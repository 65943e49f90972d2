"""Modules that compute like a fitted `PatchDetector`, for export to ONNX graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_g2d.errors import UnsupportedObjectError
from sklearn_g2d.export import Constants, Stage
from sklearn_g2d.patches._levels import LevelDetector
from sklearn_g2d.patches._neighbors import PatchNeighbors
from sklearn_g2d.utils.parts import unfrozen


class LevelGraph(Constants):
    """A module that judges the cells of one layer's maps (n, n_features, height, width).

    Parameters
    ----------
    level : LevelDetector
        A fitted detector of one layer.
    mean, deviation : float
        Mean and standard deviation of the anomalies of held-out images.
    """

    def __init__(self, level: LevelDetector, mean: float, deviation: float) -> None:
        estimator = unfrozen(level.estimator_)
        center: Any
        matrix: Any
        if level.references_ is not None:
            center, matrix, references = level.center_, level.matrix_, level.references_
        elif isinstance(estimator, PatchNeighbors):
            center, matrix = estimator.mean_, estimator.whitening_matrix_
            references = estimator.references_[None]
        else:
            raise UnsupportedObjectError(
                f"A PatchDetector with estimator {type(estimator).__name__} cannot be exported. "
                "Fit with estimator=PatchNeighbors(), or save it by `save`."
            )
        super().__init__(
            center=center,
            matrix=matrix,
            references=references.transpose(0, 2, 1),
            lengths=np.square(references).sum(axis=2)[:, None],
            mean=mean,
            deviation=deviation,
        )
        self.by_place = level.references_ is not None

    def forward(self, maps: Tensor) -> Tensor:
        """Return anomalies (n, height, width), in units of held-out images."""
        # By place, each place is a batch of its own; otherwise all cells are one batch.
        cells = (maps.movedim(1, 3).to(self.center.dtype) - self.center) @ self.matrix
        by_image = cells.flatten(1, 2)
        rows = by_image.movedim(1, 0) if self.by_place else by_image.flatten(0, 1)[None]
        nearest = (self.lengths - 2 * rows @ self.references).argmin(2)
        # Products are fast, but their rounding makes small distances inexact. They only find the
        # nearest reference, and its distance is computed from the difference.
        columns = nearest[:, None].expand(-1, rows.shape[2], -1)
        found = self.references.gather(2, columns).transpose(1, 2)
        distances = (rows.double() - found).square().sum(2).sqrt()
        by_image = distances.T if self.by_place else distances
        return (by_image.reshape(-1, *cells.shape[1:3]) - self.mean) / self.deviation


class PatchGraph(nn.Module):
    """The whole computation from images to scores and maps.

    Parameters
    ----------
    features : transformer with `_compute_maps`
        Fitted features.
    levels : sequence of LevelGraph
        One for each layer of the features.
    resizing : sequence of nn.Module
        Modules that resize the anomalies of each layer to the finest grid, and a last one that
        resizes this grid to an image.
    n_top : int
        Number of places in the mean that is the score.
    offset : float
        The detector's threshold.
    """

    output_names = "decision_function", "score_samples", "anomaly_map"

    def __init__(
        self,
        features: Any,
        levels: Sequence[LevelGraph],
        resizing: Sequence[nn.Module],
        n_top: int,
        offset: float,
    ) -> None:
        super().__init__()
        if not hasattr(features, "_compute_maps"):
            raise UnsupportedObjectError(
                f"{type(features).__name__} are not features of this package, so that a "
                "PatchDetector with them cannot be exported. Fit with PretrainedFeatures, or save "
                "it by `save`."
            )
        self.maps = Stage(features, "_compute_maps")
        self.rounds, self.n_top = self.maps.rounds, n_top
        self.levels, self.constants = nn.ModuleList(levels), Constants(offset=offset)
        self.resizing = nn.ModuleList(resizing)

    def forward(self, X: Tensor) -> tuple[Tensor, ...]:
        """Map images to `output_names`."""
        all_maps = self.maps(X.flatten(1))
        *to_finest, to_image = self.resizing
        grids = [
            resize(level(maps))
            for resize, level, maps in zip(to_finest, self.levels, all_maps, strict=True)
        ]
        together = torch.stack(grids).mean(0)
        scores = -together.flatten(1).topk(self.n_top).values.mean(1)
        return scores - self.constants.offset, scores, to_image(together)
