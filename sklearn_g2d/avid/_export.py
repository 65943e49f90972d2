"""The module of a fitted `AVIDDetector` that `sklearn_g2d.export` writes as an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_g2d.avid._models import ImageModel, TableModel
from sklearn_g2d.avid._scoring import MapScorer
from sklearn_g2d.export import Constants, Resampling, stages_of


class ScoringGraph(nn.Module):
    """All computations from an array of images or rows to the scores of a fitted detector."""

    output_names = "decision_function", "score_samples", "anomaly_map"

    def __init__(self, model: ImageModel | TableModel, scorer: MapScorer, offset: float) -> None:
        super().__init__()
        model = model.folded()
        self.rounds = model.rounds
        self.model, self.scorer = model, scorer
        self.networks = nn.ModuleList([model.inpainter, model.detector])
        parts = model._constants() | {"scorer": scorer._constants(), "offset": {"offset": offset}}
        self.constants = nn.ModuleDict({name: Constants(**part) for name, part in parts.items()})
        self.first: nn.Module = nn.Identity()
        self.regions: nn.Module = nn.Identity()
        self.functions = nn.ModuleList()
        if isinstance(model, ImageModel):
            self.functions.extend(_resizing(model))
            _, height, width = model.preprocessor.image_shape
            self.regions = Resampling(scorer.regions, (height, width), np.float64)
        else:
            self.first = stages_of(model.scaler)

    def forward(self, X: Tensor) -> tuple[Tensor, ...]:
        """Map images or rows to `output_names`."""
        c = {part: dict(values.named_buffers()) for part, values in self.constants.items()}
        raw = self.model._compute(self.first(X.flatten(1).double()), c, *self.functions)
        maps = self.scorer.standardize([values.double() for values in raw], c["scorer"])
        anomaly_map = self.scorer.combine(*maps)
        scores = self.scorer.scores(self.regions(anomaly_map))
        return scores - c["offset"]["offset"], scores, anomaly_map


def _resizing(model: ImageModel) -> list[Resampling]:
    """Return the resizing functions of a model as matrix products, for its sizes only."""
    _, *size = model.preprocessor.image_shape
    with torch.no_grad():
        logits_size = model.detector(model.preprocessor.blank()).shape[2:]
    sizes = size, logits_size, model.preprocessor.padded_size
    return [
        Resampling(partial(_resize_maps, function), tuple(of_input))
        for function, of_input in zip(model.resizing(), sizes, strict=True)
    ]


def _resize_maps(resize: Callable[[Tensor], Tensor], maps: Tensor) -> Tensor:
    return resize(maps[:, None])[:, 0]
