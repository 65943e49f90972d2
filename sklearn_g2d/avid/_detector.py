"""AVID: Adversarial Visual Irregularity Detection (Sabokrou et al., ACCV 2018)."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sklearn_g2d._base import NetworkDetector
from sklearn_g2d.avid._export import ScoringGraph
from sklearn_g2d.avid._masking import divide_columns, paste_squares
from sklearn_g2d.avid._models import ImageModel, TableModel
from sklearn_g2d.avid._networks import (
    DETECTOR_CONSTRAINT,
    INPAINTER_CONSTRAINT,
    CellNetwork,
    Network,
    PatchNet,
    UNet,
    build_network,
    common_stride,
)
from sklearn_g2d.avid._paper import AdversarialInpainting, segment
from sklearn_g2d.avid._preprocessing import ImagePreprocessor
from sklearn_g2d.avid._scoring import Maps, MapScorer
from sklearn_g2d.avid._training import CellInpainting, MaskedInpainting, Training
from sklearn_g2d.features import SquashingScaler
from sklearn_g2d.training import parallel
from sklearn_g2d.training.history import History, extend, n_steps
from sklearn_g2d.training.loop import Training as TrainingLoop
from sklearn_g2d.training.session import Session
from sklearn_g2d.utils.centrality import central_rows, resolve_fraction
from sklearn_g2d.utils.mapped import as_known_dtype, blocks, take
from sklearn_g2d.utils.parts import clone_part
from sklearn_g2d.utils.search import NeighborSearch
from sklearn_g2d.utils.surroundings import shielded
from sklearn_g2d.utils.warnings import warn_caller

# Training keeps its images in memory: at most so many values, drawn at random from more.
MAX_TRAINING_VALUES = 2**26
MAX_TABLE_ROWS = 50_000  # of a table: more hardly add to what a training looks at

# Fraction of the training data that the networks are not trained on, and the most images, or
# rows, of it: they tell what maps of new normal data look like.
_HELD_OUT_FRACTION, _MAX_HELD_OUT_IMAGES, _MAX_HELD_OUT_ROWS = 0.2, 100, 2000

# Of fewer rows a table's fifth is too few for the promised rate of false alarms: the other rows
# are held out, too, in so many folds, each by networks of its own.
_FEW_ROWS, _FURTHER_FOLDS = 95, 4

# Held-out data are standardised without the fold that is judged: a few would hide behind their
# own deviation.
_STANDARDIZING_FOLDS = 20

# A row of which every cell is so many of a table's bounds out is an outlier, whatever rows were
# held out.
_FAR, _N_FAR = 0.75, 64

# Robust deviations by which a row is too remote to learn from: networks reproduce what they saw.
_LEAST_ALONE = 3.0

# Quantiles of maps of held-out data: the thresholds of Eq. 4, and the range of a color scale.
_MASK_QUANTILE = 0.95
_RANGE_QUANTILES = 0.005, 0.999

# A table's values are bounded at so many standard deviations.
_BOUND = 8.0

Source = Literal["combined", "inpainter", "detector"]
SOURCES = get_args(Source)


@dataclass(eq=False, repr=False, kw_only=True)
class AVIDDetector(NetworkDetector):
    """Find anomalous images and where they are anomalous, by inpainting and patch detection.

    Two networks are trained on normal images only [1]_: the inpainter learns to restore what was
    hidden from it, and the detector to tell normal regions from others. A place is anomalous where
    the inpainter restores something else than is there, and where the detector says so. The
    defaults change what has to be changed for the method to detect: the inpainter fills in hidden
    blocks instead of removing noise, and the detector learns from regions exchanged between
    training images. `from_paper` is the published method. On rows of a table the regions are the
    cells: the map says which features of a row are odd.

    Scores are **higher for more normal** images, and `predict` gives **+1 for inliers and -1 for
    outliers**, as everywhere in scikit-learn; maps are **higher where an image is more
    anomalous**.

    Parameters
    ----------
    region_size : "auto" or int, default="auto"
        Height and width in pixels of what is judged at once: about the size of the smallest
        anomaly. "auto" takes an eighth of the shorter side, but at least 8. Images only.
    training : MaskedInpainting, CellInpainting or AdversarialInpainting, default=None
        How the networks are trained. None stands for ``MaskedInpainting()`` on images and
        ``CellInpainting()`` on tables.
    inpainter : UNet, CellNetwork or callable, default=None
        Network that inpaints. None stands for ``UNet()`` on images and ``CellNetwork()`` on
        tables. A callable is given the number of channels, or of columns, and returns a
        `torch.nn.Module` whose ``forward(x, mask)`` maps x of shape (n, channels, height, width),
        or (n, n_features), to values of that shape. The mask is 1 where x is hidden; it has one
        sample or n, and one channel. Sizes of images are multiples of the module's attribute
        `stride`, if it has one.
    detector : PatchNet, CellNetwork or callable, default=None
        Network that judges regions. None stands for ``PatchNet()`` on images and
        ``CellNetwork()`` on tables. The ``forward(x)`` of a callable's module maps images to
        logits of shape (n, 1, h, w), or rows to logits of their shape, high = anomalous.
    combination : {"excess", "minimum", "inpainter", "detector"}, default="excess"
        How the maps of both networks become one: the mean of what exceeds that of normal data;
        the lower one, as published; or that of one network. On images the mean is weighted by how
        rarely a map shows a square that was pasted into a held-out image below a normal region
        (docs/maps.md); on tables the inpainter's map counts twice.
    error : {"log", "absolute"}, default="log"
        What the inpainter's map shows, on images averaged over a region: the logarithm of the
        squared error, or the absolute error, as published. With "log", both maps of images are
        also standardised by what is expected at places of the same appearance.
    top_fraction : float in (0, 1], default=0.2
        Fraction of the regions, the most anomalous ones, whose mean is the score.
    per_location : bool, default=False
        Whether maps are standardised for each location by itself. For a fixed camera or a
        part that always lies alike; needs some dozens of images. Always so on tables.
    normalize_illumination : bool or "auto", default="auto"
        Whether each place is seen relative to the mean and the deviation of a window of two
        regions around it. "auto": only where such means make up a quarter of the variance of the
        training images. Images only.
    contamination : "auto" or float in (0, 0.5], default="auto"
        Where `predict` draws the line. A float says that outliers are among the training rows, or
        images, and flags that fraction of them. "auto" promises about 5 % false alarms on new
        normal ones, judged by held-out ones.
    support_fraction : "auto" or float in [0.5, 1], default="auto"
        Fraction of a table's rows to learn from, as of `G2DOutlierDetector`, but "auto" leaves out
        all very remote rows, since networks reproduce what they have seen. Of images, all.
    image_shape : tuple of int, default=None
        Channels, height and width, if the rows given to `fit` are pixels of images. Arrays of
        shape (n_samples, channels, height, width) need not say so.
    device : str, default="auto"
        Device of training: "auto" takes CUDA, then MPS, then the CPU.
    precision : "auto", "float32" or "bfloat16", default="auto"
        Of the networks on images. "auto" takes bfloat16 where the processor multiplies in it.
    warm_start : bool, default=False
        Whether `fit` continues from the networks of the previous call instead of starting anew.
    verbose : int, default=0
        Above 0, the end of training is logged to the logger "sklearn_g2d" at level INFO.
    random_state : int, RandomState instance or None, default=None
        Seed of everything random in `fit`.

    Attributes
    ----------
    training_, inpainter_, detector_ : estimator or callable
        The parts that were used.
    region_size_ : int
        What `region_size` came to; 1 on tables.
    offset_ : float
        Threshold: ``decision_function(X) = score_samples(X) - offset_``.
    inpainter_threshold_, detector_threshold_ : float
        Thresholds of Eq. 4 on the standardised maps: quantiles of held-out maps.
    map_range_ : tuple of float
        Lowest and highest value of a color scale for maps: quantiles of held-out maps.
    history_ : dict of ndarray
        Losses by step: "reconstruction_loss" of the inpainter, "detector_loss" and, where the
        networks train against each other, "adversarial_loss". "networks_retries" are the steps
        from which training was taken up again, if it was, each time at half the learning rates.
    n_iter_ : int
        Training steps taken.
    training_scores_ : ndarray of shape (n_samples,)
        Scores of the training rows in their order, **higher = more normal**, most of them by
        networks that saw the row. Kept only where `contamination` is a number.
    calibration_scores_ : ndarray
        Sorted scores of held-out normal images, on which `p_values` rest.
    device_ : str
        Device that training ran on.
    image_shape_ : tuple of int, or None
        Channels, height and width of the images in `fit`; None after a table.
    n_features_in_ : int
        Number of columns, or of intensities of an image, in `fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Their names, if all were strings.

    See Also
    --------
    G2DOutlierDetector : Says which images are outliers, in less time, but not where.
    sklearn_g2d.display.AnomalyMapDisplay : Draws maps over images.

    References
    ----------
    .. [1] M. Sabokrou, M. Pourreza, M. Fayyaz, R. Entezari, M. Fathy, J. Gall, E. Adeli,
       "AVID: Adversarial Visual Irregularity Detection", ACCV 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d import AVIDDetector
    >>> from sklearn_g2d.avid import MaskedInpainting
    >>> stripes = np.random.default_rng(0).normal(size=(50, 1, 32, 32)) + np.arange(32) % 4
    >>> detector = AVIDDetector(training=MaskedInpainting(max_steps=30), random_state=0)
    >>> detector.fit(stripes).anomaly_map(stripes[:2]).shape
    (2, 32, 32)
    """

    _n_stages = 1

    _default_parts: ClassVar[dict[str, Callable[[], Any]]] = {
        "training": MaskedInpainting,
        "inpainter": UNet,
        "detector": PatchNet,
    }

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **NetworkDetector._parameter_constraints,
        "region_size": [StrOptions({"auto"}), Interval(Integral, 2, None, closed="left")],
        "training": [Training, None],
        "inpainter": INPAINTER_CONSTRAINT,
        "detector": DETECTOR_CONSTRAINT,
        "combination": [StrOptions({"excess", "minimum", "inpainter", "detector"})],
        "error": [StrOptions({"log", "absolute"})],
        "top_fraction": [Interval(Real, 0, 1, closed="right")],
        "per_location": ["boolean"],
        "normalize_illumination": [StrOptions({"auto"}), "boolean"],
        "support_fraction": [StrOptions({"auto"}), Interval(Real, 0.5, 1, closed="both")],
    }

    region_size: int | Literal["auto"] = "auto"
    training: Training | None = None
    inpainter: Network | Callable[[int], nn.Module] | None = None
    detector: Network | Callable[[int], nn.Module] | None = None
    combination: Literal["excess", "minimum", "inpainter", "detector"] = "excess"
    error: Literal["log", "absolute"] = "log"
    top_fraction: float = 0.2
    per_location: bool = False
    normalize_illumination: bool | Literal["auto"] = "auto"
    contamination: float | Literal["auto"] = "auto"
    support_fraction: float | Literal["auto"] = "auto"
    image_shape: Sequence[int] | None = None
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    warm_start: bool = False
    verbose: int = 0
    random_state: int | np.random.RandomState | None = None

    @classmethod
    def from_paper(
        cls, data: Literal["images", "tables"] = "images", **changes: Any
    ) -> AVIDDetector:
        """Give the published method, every setting visible.

        Channels of the networks are the authors' at an eighth, for theirs take a GPU. The paper
        does not treat tables; there both networks are perceptrons.

        Parameters
        ----------
        data : {"images", "tables"}, default="images"
            What the detector is for.
        **changes
            Parameters to set, also of parts: ``training__max_steps=20``.

        Returns
        -------
        AVIDDetector
            Not fitted.

        Examples
        --------
        >>> from sklearn_g2d import AVIDDetector
        >>> AVIDDetector.from_paper("images", training__gamma=0.2).error
        'absolute'
        """
        if data == "images":
            ones = ((1.5, 1, 1),) * 2
            layers = ((1.5, 11, 4), *ones, (1.5, 3, 2), *ones, (4, 5, 2), (8, 1, 1), (16, 1, 1))
            parts: dict[str, Any] = {
                "training": AdversarialInpainting(reconstruction_weight=1.0),
                "inpainter": UNet(channels=8, first_skip=0),
                "detector": PatchNet(8, layers, False, 0.0, region_pixels=(18, 22)),
                "normalize_illumination": False,
            }
        elif data == "tables":
            parts = {
                "training": AdversarialInpainting(batch_size=128, reconstruction_weight=1.0),
                "inpainter": CellNetwork(),
                "detector": CellNetwork(),
            }
        else:
            raise ValueError(f'data must be "images" or "tables", got {data!r}.')
        scoring: dict[str, Any] = {"combination": "minimum", "error": "absolute"}
        detector = cls(top_fraction=0.1, support_fraction=1.0, **scoring, **parts)
        return detector.set_params(**changes)

    @shielded()
    def anomaly_map(self, X: ArrayLike, source: Source = "combined") -> NDArray[np.float64]:
        """Say where images, or rows, are anomalous; **higher = more anomalous**.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Images or rows.
        source : {"combined", "inpainter", "detector"}, default="combined"
            Whose map: that of the `combination` of `fit`, or one network's.

        Returns
        -------
        ndarray of shape (n_samples, height, width), or (n_samples, n_features) of a table
            How far the networks deviate, in standard deviations, from what they say of normal
            data. Never adjusted to an image, so that values of different images compare.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ValueError
            If the source is unknown, or `X` is not what the detector was fitted on.
        """
        return self._in_blocks(X, partial(self._map, source=source), source)

    @shielded()
    def region_scores(self, X: ArrayLike, source: Source = "combined") -> NDArray[np.float64]:
        """Say which regions are anomalous; **higher = more anomalous**.

        Parameters
        ----------
        X : array-like, as for `anomaly_map`
            Images or rows.
        source : {"combined", "inpainter", "detector"}, default="combined"
            As for `anomaly_map`.

        Returns
        -------
        ndarray of shape (n_samples, n_rows, n_columns), or (n_samples, n_features) of a table
            Means of `anomaly_map` over windows of `region_size_`, half of it apart. Of a table,
            the map itself.
        """

        def regions(block: NDArray[Any]) -> NDArray[np.float64]:
            return self._scorer.regions(self._map(block, source))

        return self._in_blocks(X, regions, source)

    @shielded()
    def predict_mask(self, X: ArrayLike, source: Source = "combined") -> NDArray[np.bool_]:
        """Segment what is anomalous, Eq. 4 of the paper.

        Parameters
        ----------
        X : array-like, as for `anomaly_map`
            Images or rows.
        source : {"combined", "inpainter", "detector"}, default="combined"
            Who has to find a place anomalous: both networks, unless the `combination` of `fit`
            is one network's map; or one network.

        Returns
        -------
        ndarray of shape (n_samples, height, width), or (n_samples, n_features) of a table
            True where the inpainter's map reaches `inpainter_threshold_` and the detector's
            reaches `detector_threshold_`.
        """

        def mask(block: NDArray[Any]) -> NDArray[np.bool_]:
            by_inpainter, by_detector = self._standard_maps(block)
            asked = self._scorer.combination if source == "combined" else source
            alpha, zeta = self.inpainter_threshold_, self.detector_threshold_
            return segment(
                by_inpainter,
                by_detector,
                -math.inf if asked == "detector" else alpha,
                -math.inf if asked == "inpainter" else zeta,
            )

        return self._in_blocks(X, mask, source)

    @shielded()
    def inpaint(self, X: ArrayLike) -> NDArray[np.float64]:
        """Show what the inpainter expects instead of each region, given its surroundings.

        Parameters
        ----------
        X : array-like, as for `anomaly_map`
            Images or rows.

        Returns
        -------
        ndarray of the shape of `X`
            In its units. After `AdversarialInpainting`, which hides nothing, the restored image.
        """
        return self._as_given(self._in_blocks(X, lambda block: self._model.inpaint(block)))

    # Fitting

    def _build_parts(self, random_state: np.random.RandomState) -> None:
        defaults: dict[str, Callable[[], Any]] = self._default_parts
        if self.image_shape_ is None:
            defaults = {
                "training": CellInpainting,
                "inpainter": CellNetwork,
                "detector": CellNetwork,
            }

        def build(name: str) -> Any:
            part = getattr(self, name)
            self._check_kind(name, part, defaults[name])
            return defaults[name]() if part is None else clone_part(part, random_state)

        self.training_: Training = build("training")
        self.inpainter_, self.detector_ = build("inpainter"), build("detector")
        self.training_.validate()
        self.region_size_ = self._resolve_region_size()

    def _check_kind(self, name: str, part: Any, right: Any) -> None:
        """Refuse a part that is for other data, or a network that is already built."""
        if isinstance(part, nn.Module):
            raise ValueError(
                f"{name} must be a callable that builds a torch.nn.Module, for every fit starts "
                f"anew; got the module {type(part).__name__}(...)."
            )
        if not isinstance(part, Training | Network):
            return  # None, or the user's own factory
        data = "tables" if self.image_shape_ is None else "images"
        if data not in part.data:
            hint = "" if self.image_shape_ else ", or image_shape if the rows are pixels of images"
            raise ValueError(
                f"{name}={type(part).__name__}(...) is not for {data}: pass {right.__name__}(...)"
                f"{hint}."
            )

    def _resolve_region_size(self) -> int:
        if self.image_shape_ is None:
            for name in ("region_size", "normalize_illumination"):
                if getattr(self, name) not in ("auto", False):
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} is for images, but X is a table. Leave it "
                        "out, or pass image_shape if the rows are pixels of images."
                    )
            return 1
        _, height, width = self.image_shape_
        shorter = min(height, width)
        if self.region_size == "auto":
            return max(shorter // 8, min(8, -(-shorter // 2)))
        if self.region_size > shorter:
            raise ValueError(
                f"region_size={self.region_size} is larger than the images, which have "
                f"{height} x {width} pixels. Lower it; an eighth of the shorter side is usual."
            )
        return int(self.region_size)

    def _fit(self, X: NDArray[Any], session: Session) -> None:
        """Train both networks, section 3.3 of the paper, and learn what their maps look like."""
        rows, held_out, trained_on, left_out = self._split(X, session.random_state)
        # For the threshold, as many of those left out as are held out of the others.
        left_out = left_out[: round(len(left_out) * len(held_out) / len(rows))]
        model = self._make_model(rows, session)
        trainer = self.training_.make_trainer(
            model,
            model.encode(rows[trained_on]).to(session.runtime.device),
            model.encode(rows[held_out]).to(session.runtime.device),
            session.runtime,
        )

        def current() -> dict[str, Any]:
            networks = copy.deepcopy(trainer.result)  # which train on
            detector = copy.copy(self)
            with parallel.alone():
                trained = copy.copy(model).load(networks)
                detector._learn_maps(trained, X, rows[held_out], left_out)
            return dict(vars(detector))

        history = session.train(
            "networks",
            trainer,
            self.training_.max_steps,
            remedy="Lower the learning_rates of training.",
            current=current,
        )
        model.load(trainer.result)
        further: list[Maps] = []
        if self.image_shape_ is None and 2 < len(rows) < _FEW_ROWS:
            further = self._further_maps(rows, trained_on, session, n_steps(history))
        if further and len(held_out) == len(trained_on):
            held_out = held_out[:0]  # all were trained on
        self._learn_maps(model, X, rows[held_out], left_out, further)
        if self.warm_start and hasattr(self, "history_"):
            history = extend(self.history_, history)
        self.history_: History = history
        self.n_iter_ = n_steps(history)

    def _further_maps(
        self, rows: NDArray[Any], trained_on: NDArray[np.intp], session: Session, max_steps: int
    ) -> list[Maps]:
        """Give maps of a table's rows in `trained_on`, by networks that have not seen them."""
        found = []
        n_folds = _FURTHER_FOLDS if len(trained_on) < len(rows) else min(len(rows), 5)
        for unseen in (trained_on[fold::n_folds] for fold in range(n_folds)):
            seen = np.delete(rows, unseen, axis=0)
            model = self._make_new_model(seen, session.runtime.rng)
            device = session.runtime.device
            trainer = self.training_.make_trainer(
                model,
                model.encode(seen).to(device),
                model.encode(rows[unseen]).to(device),
                session.runtime,
            )
            TrainingLoop(trainer, max_steps).run(
                lambda *_: False, remedy="Lower the learning_rates of training."
            )
            found.append(model.load(trainer.result).maps(rows[unseen]))
        return found

    def _split(
        self, X: NDArray[Any], random_state: np.random.RandomState
    ) -> tuple[NDArray[Any], NDArray[np.intp], NDArray[np.intp], NDArray[Any]]:
        """Draw the rows to train with; returns them, those to hold out, and the others.

        More samples than fit into memory are drawn from at random. Of very few none is spared: all
        are trained on and held out. The rows that come last are not central, and left out.
        """
        most = max(2, MAX_TRAINING_VALUES // X.shape[1])
        most_held_out = _MAX_HELD_OUT_IMAGES
        if self.image_shape_ is None:
            most, most_held_out = min(most, MAX_TABLE_ROWS), _MAX_HELD_OUT_ROWS
        rows = self._pooled(X, most, random_state)
        chosen = random_state.permutation(len(rows))[:most]
        rows = take(rows, np.sort(chosen))
        order = np.argsort(np.argsort(chosen))
        if all(np.array_equal(rows[i], rows[order[0]]) for i in order[1:]):
            warn_caller(
                "All training samples are alike: there is nothing to exchange between them, and "
                "any deviation will count as anomalous. Pass samples that differ as normal ones "
                "do.",
            )
        is_central = self._central_rows(rows)
        order = (np.cumsum(is_central) - 1)[order[is_central[order]]]
        rows, left_out = rows[is_central], rows[~is_central]
        n = min(int(_HELD_OUT_FRACTION * len(order)), most_held_out)
        if n < 2:
            return rows, order, order, left_out
        return rows, order[:n], np.setdiff1d(np.arange(len(rows)), order[:n]), left_out

    def _central_rows(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        if self.image_shape_ is not None:
            if self.support_fraction not in ("auto", 1):
                raise ValueError(
                    f"support_fraction={self.support_fraction} is for tables, but X holds images. "
                    "Leave it out, and leave out images with flaws."
                )
            return np.ones(len(rows), dtype=bool)
        points = SquashingScaler(_BOUND, 0.0).fit_transform(rows)
        fraction = resolve_fraction(self.support_fraction, self.contamination)
        return central_rows(NeighborSearch(points), fraction, least_alone=_LEAST_ALONE)

    def _make_model(self, X: NDArray[Any], session: Session) -> ImageModel | TableModel:
        """Build the networks and what precedes them, or continue those of the previous fit."""
        architecture = self._describe_architecture()
        if session.earlier is not None:
            for name, now in architecture.items():
                before = self._architecture[name]
                if before != now:
                    raise ValueError(
                        f"warm_start=True continues networks fitted with {name}={before}, but "
                        f"{name} is now {now}. Change it back, or set warm_start=False."
                    )
            model = copy.deepcopy(session.earlier)  # for the former state has to survive a failure
        else:
            self._architecture: dict[str, str] = architecture
            model = self._make_new_model(X, session.runtime.rng)
        # What may change between fits that continue.
        model.error = self.error
        if isinstance(model, ImageModel):
            model.bfloat16 = session.runtime.bfloat16
            if isinstance(self.training_, MaskedInpainting):
                region_size = model.preprocessor.region_size
                model.hidden_block = self.training_.hidden_block(region_size)
        return model

    def _make_new_model(self, X: NDArray[Any], rng: torch.Generator) -> ImageModel | TableModel:
        shape = self.image_shape_
        n_inputs = X.shape[1] if shape is None else shape[0]
        inpainter = build_network(self.inpainter_, n_inputs, rng, takes_mask=True)
        detector = build_network(self.detector_, n_inputs, rng, takes_mask=False)
        if shape is None:
            # Of two rows, each column by itself would hold the same two values.
            scaler = SquashingScaler(_BOUND, 0.0, common_scale=len(X) < 3).fit(X)
            # Drawn also where nothing is hidden, so that one seed draws one set of batches.
            groups = divide_columns(n_inputs, rng)
            seen = scaler.transform(X)
            limits = seen.min(axis=0), seen.max(axis=0)
            hides = self.training_.hides
            return TableModel(inpainter, detector, self.error, scaler, groups, hides, *limits)
        stride = common_stride(inpainter, detector, n_inputs)
        preprocessor = ImagePreprocessor(
            shape,
            self.region_size_,
            getattr(self.detector_, "region_pixels", PatchNet.region_pixels),
            stride,
            self.normalize_illumination,
        )
        return ImageModel(inpainter, detector, self.error, preprocessor.fit(X), stride)

    def _to_continue(self) -> ImageModel | TableModel | None:
        return getattr(self, "_model", None) if self.warm_start else None

    def _describe_architecture(self) -> dict[str, str]:
        described: dict[str, Any] = {
            "image_shape": self.image_shape_,
            "n_features": self.n_features_in_,
            "training": type(self.training_).__name__,
            "inpainter": self.inpainter_,
            "detector": self.detector_,
            "region_size": self.region_size_,
            "normalize_illumination": self.normalize_illumination,
        }
        # Without places in memory, which differ from process to process.
        places = re.compile(" at 0x[0-9a-fA-F]+")
        return {name: places.sub("", repr(value)) for name, value in described.items()}

    # Maps and scores

    def _learn_maps(
        self,
        model: ImageModel | TableModel,
        X: NDArray[Any],
        held_out: NDArray[Any],
        left_out: NDArray[Any],
        further: Sequence[Maps] = (),
    ) -> None:
        """Learn what maps of normal data are, from data that the networks have not seen.

        These are rows held out and the `further` maps. Rows `left_out` count for the threshold
        only.
        """
        model.fit_normalizer(held_out)
        found = [*([model.maps(held_out)] if len(held_out) else []), *further]
        first, second = zip(*found, strict=True)
        maps: Maps = np.concatenate(first), np.concatenate(second)
        self._model, self._scorer = model, self._new_scorer().fit(maps)
        if self.image_shape_ is not None and self.combination == "excess":
            images = held_out.reshape(-1, *self.image_shape_)
            pasted, changed = paste_squares(images, self.region_size_, np.random.RandomState(0))
            self._scorer.fit_weights(maps, model.maps(pasted.reshape(held_out.shape)), changed)
        by_inpainter, by_detector = self._scorer.standardize(maps)
        self.inpainter_threshold_ = float(np.quantile(by_inpainter, _MASK_QUANTILE))
        self.detector_threshold_ = float(np.quantile(by_detector, _MASK_QUANTILE))
        combined = self._scorer.combine(by_inpainter, by_detector)
        low, high = np.quantile(combined, _RANGE_QUANTILES)
        self.map_range_ = (float(low), float(high))
        scores = self._held_out_scores(maps)
        if len(left_out):
            scores = np.append(scores, self._score_validated(left_out))
        self._set_threshold(X, scores)

    def _new_scorer(self) -> MapScorer:
        region_size = None if self.image_shape_ is None else self.region_size_
        return MapScorer(self.combination, region_size, self.top_fraction, self.per_location)

    def _held_out_scores(self, maps: Maps) -> NDArray[np.float64]:
        """Score maps, each standardised by others."""
        n = len(maps[0])
        n_folds = min(n, _STANDARDIZING_FOLDS)
        scores = np.empty(n)
        for unseen in (np.arange(n) % n_folds == fold for fold in range(n_folds)):
            scorer = self._scorer
            if n > 2:
                scorer = copy.copy(scorer).fit((maps[0][~unseen], maps[1][~unseen]))
            combined = scorer.combine(*scorer.standardize([values[unseen] for values in maps]))
            scores[unseen] = scorer.scores(scorer.regions(combined))
        if isinstance(self._model, TableModel):
            signs = np.random.RandomState(0).choice([-1.0, 1.0], (_N_FAR, self.n_features_in_))
            far = self._model.scaler.inverse_transform(_FAR * _BOUND * signs)
            limit = self._score_batch(far).max()
            together = self._scorer.combine(*self._scorer.standardize(maps))
            if n < 3:
                scores[:] = limit  # nothing was held out: only what is far is an outlier
            # Else the networks know no better. Of very few, those held out are far out themselves.
            elif limit < np.quantile(self._scorer.scores(together), 0.5 if n < 19 else 0.0):
                scores = np.maximum(scores, limit)
        return scores

    def _in_blocks(
        self, X: ArrayLike, function: Callable[[NDArray[Any]], Any], source: str = "combined"
    ) -> NDArray[Any]:
        """Check rows and map them by a function, few at a time: maps take memory."""
        check_is_fitted(self)
        if source not in SOURCES:
            raise ValueError(f"source must be one of {SOURCES}, got {source!r}.")
        return self._map_blocks(self._validate(X, reset=False), function)

    def _map_blocks(
        self, X: NDArray[Any], function: Callable[[NDArray[Any]], NDArray[Any]]
    ) -> NDArray[Any]:
        size = self._model.batch_size
        for i, block in enumerate(blocks(X, size)):
            values = function(as_known_dtype(block))
            if i == 0:
                found = np.empty((len(X), *values.shape[1:]), dtype=values.dtype)
            found[i * size : i * size + len(values)] = values
        return found

    def _standard_maps(self, X: NDArray[Any]) -> list[NDArray[np.float64]]:
        """Give the inpainter's and the detector's maps of checked rows."""
        return self._scorer.standardize(self._model.maps(X))

    def _map(self, X: NDArray[Any], source: Source = "combined") -> NDArray[np.float64]:
        maps = self._standard_maps(X)
        return self._scorer.combine(*maps) if source == "combined" else maps[source == "detector"]

    def _score_batch(self, X: NDArray[Any]) -> NDArray[np.float64]:
        return self._scorer.scores(self._scorer.regions(self._map(X)))

    def _score_validated(self, X: NDArray[Any]) -> NDArray[np.float64]:
        return self._map_blocks(X, self._score_batch)

    def _export_module(self) -> ScoringGraph:
        return ScoringGraph(self._model, self._scorer, self.offset_)

    @property
    def _is_convolutional(self) -> bool:
        return self.image_shape_ is not None
