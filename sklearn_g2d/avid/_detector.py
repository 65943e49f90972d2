"""AVID: Adversarial Visual Irregularity Detection (Sabokrou et al., ACCV 2018)."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

# Largest number of values for training, because they stay in memory: images are drawn at random
# from more. More table rows than the second number improve the networks little.
MAX_TRAINING_VALUES = 2**26
MAX_TABLE_ROWS = 50_000

# Fraction of the training data that the networks are not trained on, and its largest numbers of
# images and rows. They show what maps of new normal data look like.
_HELD_OUT_FRACTION, _MAX_HELD_OUT_IMAGES, _MAX_HELD_OUT_ROWS = 0.2, 100, 2000

# Below this number of rows, a fifth of a table is too small to guarantee the rate of false alarms.
# Then the other rows are held out, too, in so many folds, each with networks of its own.
_FEW_ROWS, _FURTHER_FOLDS = 95, 4

# Each fold of the held-out data is standardised by the statistics of the other folds. Its own
# anomalies would increase the deviation that they are divided by.
_STANDARDIZING_FOLDS = 20

# A table row is an outlier if all its cells are this fraction of the bound away from the centre,
# whatever the held-out rows look like. The second number is how many such rows are tried.
_FAR, _N_FAR = 0.75, 64

# A single row is left out of training if it is so many robust deviations more remote than the
# median, because networks learn to reproduce what they have seen.
_SINGLE_ROW_LIMIT = 3.0

# Quantiles of maps of held-out data: the thresholds of Eq. 4, and the range of a color scale.
_MASK_QUANTILE = 0.95
_RANGE_QUANTILES = 0.005, 0.999

# Values of a table are bounded at so many standard deviations.
_BOUND = 8.0

BlockFunction = Callable[["AVIDDetector", NDArray[Any]], NDArray[Any]]

Source = Literal["combined", "inpainter", "detector"]
SOURCES = get_args(Source)


@dataclass(eq=False, repr=False, kw_only=True)
class AVIDDetector(NetworkDetector):
    """Detection of anomalous images, and of the anomalous places in them, by inpainting.

    Two networks learn from normal images only [1]_. The inpainter learns to restore hidden parts of
    an image, and the detector learns to tell normal regions from others. A place is anomalous where
    the image differs from what the inpainter expects, and where the detector says so. Two defaults
    differ from the paper, because the published method detects little otherwise: the inpainter
    fills in hidden blocks instead of removing noise, and the detector learns from regions that are
    exchanged between training images. `from_paper` gives the published method. In rows of a table
    the regions are the cells: the map shows which features of a row are anomalous.

    Scores are **higher for more normal** images, and `predict` gives **+1 for inliers and -1 for
    outliers**, as everywhere in scikit-learn. Maps are **higher where an image is more
    anomalous**.

    Parameters
    ----------
    region_size : "auto" or int, default="auto"
        Height and width of a region in pixels: about the size of the smallest anomaly to detect.
        "auto" means an eighth of the shorter side of an image, but at least 8. Images only.
    training : MaskedInpainting, CellInpainting or AdversarialInpainting, default=None
        Method of training the networks. None means ``MaskedInpainting()`` on images and
        ``CellInpainting()`` on tables.
    inpainter : UNet, CellNetwork or callable, default=None
        Network that inpaints. None means ``UNet()`` on images and ``CellNetwork()`` on tables. A
        callable gets the number of channels, or of columns, and returns a `torch.nn.Module`. The
        module's ``forward(x, mask)`` maps x of shape (n, channels, height, width), or
        (n, n_features), to values of the same shape. The mask is 1 where x is hidden; it has one
        channel, and 1 or n samples. If the module has an attribute `stride`, heights and widths
        are multiples of it.
    detector : PatchNet, CellNetwork or callable, default=None
        Network that judges regions. None means ``PatchNet()`` on images and ``CellNetwork()`` on
        tables. The ``forward(x)`` of a callable's module maps images to logits of shape
        (n, 1, h, w), or rows to logits of the same shape, **high = anomalous**.
    combination : {"excess", "minimum", "inpainter", "detector"}, default="excess"
        How one map is made of the maps of both networks. "excess" averages how far they exceed maps
        of normal data. On images a map has a larger weight if it rarely shows a pasted square as
        less anomalous than a normal region (docs/maps.md); on tables the inpainter's map has twice
        the weight. "minimum" is the lower value of both, as published. "inpainter" and "detector"
        are the map of one network.
    error : {"log", "absolute"}, default="log"
        Error in the inpainter's map, averaged over a region on images: the logarithm of the squared
        error, or the absolute error, as published. With "log", both maps of images are also
        standardised by what is expected at places of the same appearance.
    top_fraction : float in (0, 1], default=0.2
        The score is the mean of the map over this fraction of the regions, the most anomalous ones.
    per_location : bool, default=False
        Whether maps are standardised separately at each location. Use it for a fixed camera, or for
        a part that is always in the same position; it needs a few dozen images. Tables are always
        standardised by column.
    normalize_illumination : bool or "auto", default="auto"
        Whether to subtract the local mean and divide by the local deviation, both in a window of
        two regions around each pixel. "auto" does so only if local means make up a quarter of the
        variance of the training images. Images only.
    contamination : "auto" or float in (0, 0.5], default="auto"
        A number says that this fraction of the training rows, or images, are outliers, and sets the
        threshold so that this fraction is flagged. "auto" gives about 5 % false alarms on new
        normal ones, by the scores of held-out ones.
    support_fraction : "auto" or float in [0.5, 1], default="auto"
        Fraction of the training rows of a table to learn from, the most central ones. The threshold
        depends on the others, too. "auto" means .6 if `contamination` is a number, because then
        there are outliers among the training rows. Otherwise it leaves out all very remote rows,
        because networks learn to reproduce what they have seen. All images are used.
    image_shape : tuple of int, default=None
        Channels, height and width, if the rows given to `fit` are pixels of images. Arrays of shape
        (n_samples, channels, height, width) do not need it.
    device : str, default="auto"
        Device of training, and of networks of images in scoring. "auto" means CUDA on images if
        there is a GPU, else the CPU.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Precision of the networks of images, in training and in scoring. "auto" means bfloat16 if
        the processor multiplies in it.
    warm_start : bool, default=False
        Whether `fit` continues the training of the networks from the previous call, for
        `max_steps` more steps, instead of training new networks.
    verbose : int, default=0
        Above 0, the logger "sklearn_g2d" reports the end of training at level INFO.
    random_state : int, RandomState instance or None, default=None
        Seed of `fit`, and of parts that have no seed.

    Attributes
    ----------
    training_, inpainter_, detector_ : estimator or callable
        The parts in use.
    region_size_ : int
        The region size in use; 1 on tables.
    offset_ : float
        Threshold: ``decision_function(X) = score_samples(X) - offset_``.
    inpainter_threshold_, detector_threshold_ : float
        Thresholds of Eq. 4 on the standardised maps: quantiles of held-out maps.
    map_range_ : tuple of float
        Lowest and highest value of a color scale for maps: quantiles of held-out maps.
    history_ : dict of ndarray
        Losses by step: "reconstruction_loss" of the inpainter, "detector_loss" and, if the networks
        are trained against each other, "adversarial_loss". If training diverged, "networks_retries"
        are the steps from which it was repeated with half the learning rates.
    n_iter_ : int
        Number of training steps.
    training_scores_ : ndarray of shape (n_samples,)
        Scores of the training rows in their order, **higher = more normal**, most of them by
        networks that saw the row. They exist only if `contamination` is a number.
    calibration_scores_ : ndarray
        Sorted scores of held-out normal images, which `p_values` compares with.
    device_ : str
        Device of training, and of networks of images in scoring; see `to`.
    image_shape_ : tuple of int, or None
        Channels, height and width of the images in `fit`; None after a table.
    n_features_in_, feature_names_in_ : int, ndarray of str
        Number of columns, or of intensities of an image, and names of columns if they have names.

    See Also
    --------
    G2DOutlierDetector : Finds outliers among images in less time, without maps.
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
        """Build the published method, with all settings visible as parameters.

        Parameters
        ----------
        data : {"images", "tables"}, default="images"
            "images" gives the published networks with an eighth of the authors' channels, because
            theirs need a GPU. The paper has no tables: "tables" replaces both networks by
            perceptrons.
        **changes
            Parameters for `set_params`, such as ``training__max_steps=20``.

        Returns
        -------
        AVIDDetector
            A detector that is not fitted.

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
        """Return maps of the anomalous places in images or rows; **higher = more anomalous**.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Images or rows.
        source : {"combined", "inpainter", "detector"}, default="combined"
            "combined" gives the map that `combination` describes, the others that of one network.

        Returns
        -------
        ndarray of shape (n_samples, height, width), or (n_samples, n_features) of a table
            Deviations from maps of normal data, in standard deviations. Values of different images
            are comparable, because maps are never rescaled for a single image.

        Raises
        ------
        NotFittedError
            If the detector is not fitted.
        ValueError
            If the source is unknown, or if the shape of `X` differs from that in `fit`.
        """
        return self._in_blocks(X, lambda ready, block: ready._map(block, source), source)

    @shielded()
    def region_scores(self, X: ArrayLike, source: Source = "combined") -> NDArray[np.float64]:
        """Return the mean of the map in each region; **higher = more anomalous**.

        Parameters
        ----------
        X : array-like, as for `anomaly_map`
            Images or rows.
        source : {"combined", "inpainter", "detector"}, default="combined"
            As for `anomaly_map`.

        Returns
        -------
        ndarray of shape (n_samples, n_rows, n_columns), or (n_samples, n_features) of a table
            Means of `anomaly_map` over windows of `region_size_` pixels, which overlap by half. For
            a table, the map itself.
        """

        def regions(ready: AVIDDetector, block: NDArray[Any]) -> NDArray[np.float64]:
            return self._scorer.regions(ready._map(block, source))

        return self._in_blocks(X, regions, source)

    @shielded()
    def predict_mask(self, X: ArrayLike, source: Source = "combined") -> NDArray[np.bool_]:
        """Mark the anomalous places, Eq. 4 of the paper.

        Parameters
        ----------
        X : array-like, as for `anomaly_map`
            Images or rows.
        source : {"combined", "inpainter", "detector"}, default="combined"
            "combined" means that both networks must find a place anomalous, or only one if
            `combination` is the map of one network. The others mean one network.

        Returns
        -------
        ndarray of shape (n_samples, height, width), or (n_samples, n_features) of a table
            True where the inpainter's map is at least `inpainter_threshold_`, and the detector's
            map at least `detector_threshold_`.
        """

        def mask(ready: AVIDDetector, block: NDArray[Any]) -> NDArray[np.bool_]:
            by_inpainter, by_detector = ready._standard_maps(block)
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
        """Replace each region by what the inpainter expects there from its surroundings.

        Parameters
        ----------
        X : array-like, as for `anomaly_map`
            Images or rows.

        Returns
        -------
        ndarray of the shape of `X`
            Expected values in the units of `X`. `AdversarialInpainting` hides nothing: then it is
            the image that the inpainter restores from `X`.
        """
        return self._as_given(self._in_blocks(X, lambda ready, block: ready._model.inpaint(block)))

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
        """Raise ValueError if a part is for other data, or is a module instead of a factory."""
        if isinstance(part, nn.Module):
            raise ValueError(
                f"{name} must be a callable that builds a torch.nn.Module, because each fit needs "
                f"a new one; got the module {type(part).__name__}(...)."
            )
        if not isinstance(part, Training | Network):
            return  # it is None, or the user's own factory
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
        """Train both networks, section 3.3 of the paper, and learn from maps of normal data."""
        rows, held_out, trained_on, left_out = self._split(X, session.random_state)
        # The threshold depends on the same fraction of the rows that are left out as of the others.
        left_out = left_out[: round(len(left_out) * len(held_out) / len(rows))]
        model = self._make_model(rows, session)
        trainer = self.training_.make_trainer(
            model,
            model.encode(rows[trained_on]).to(session.runtime.device),
            model.encode(rows[held_out]).to(session.runtime.device),
            session.runtime,
        )

        def current() -> dict[str, Any]:
            networks = copy.deepcopy(trainer.result)  # because training goes on
            detector = copy.copy(self)
            # Only the first process has callbacks, so it must not wait for the others.
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
            held_out = held_out[:0]  # the model was trained on all of them
        self._learn_maps(model, X, rows[held_out], left_out, further)
        if self.warm_start and hasattr(self, "history_"):
            history = extend(self.history_, history)
        self.history_: History = history
        self.n_iter_ = n_steps(history)

    def _further_maps(
        self, rows: NDArray[Any], trained_on: NDArray[np.intp], session: Session, max_steps: int
    ) -> list[Maps]:
        """Return maps of a table's rows in `trained_on`, by networks that have not seen them."""
        found = []
        # If nothing was held out before, the folds must contain all rows.
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
            # Callbacks do not follow these trainings, and cannot stop them.
            TrainingLoop(trainer, max_steps).run(
                lambda *_: False, remedy="Lower the learning_rates of training."
            )
            found.append(model.load(trainer.result).maps(rows[unseen]))
        return found

    def _split(
        self, X: NDArray[Any], random_state: np.random.RandomState
    ) -> tuple[NDArray[Any], NDArray[np.intp], NDArray[np.intp], NDArray[Any]]:
        """Choose central rows, and split them into rows to hold out and rows to train on.

        Return the central rows, the positions among them of the rows to hold out and of the rows
        to train on, and the rows that are not central. If memory is too small for all rows, they
        are drawn at random. If there are very few rows, all of them are in both parts.
        """
        most = max(2, MAX_TRAINING_VALUES // X.shape[1])
        most_held_out = _MAX_HELD_OUT_IMAGES
        if self.image_shape_ is None:
            most, most_held_out = min(most, MAX_TABLE_ROWS), _MAX_HELD_OUT_ROWS
        rows = self._pooled(X, most, random_state)
        chosen = random_state.permutation(len(rows))[:most]
        # Sorted positions are faster to read from a memory map. `order` has the positions of these
        # rows in their random order.
        rows = take(rows, np.sort(chosen))
        order = np.argsort(np.argsort(chosen))
        if all(np.array_equal(rows[i], rows[order[0]]) for i in order[1:]):
            warn_caller(
                "All training samples are alike. The networks cannot learn from exchanging parts "
                "of them, and any deviation will count as anomalous. Pass samples that differ as "
                "normal ones do.",
            )
        is_central = self._central_rows(rows)
        # Now `order` has positions among the central rows, in the same random order.
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
                    "Remove this parameter, and remove images with anomalies from X."
                )
            return np.ones(len(rows), dtype=bool)
        points = SquashingScaler(_BOUND, 0.0).fit_transform(rows)
        fraction = resolve_fraction(self.support_fraction, self.contamination)
        return central_rows(NeighborSearch(points), fraction, single_row_limit=_SINGLE_ROW_LIMIT)

    def _make_model(self, X: NDArray[Any], session: Session) -> ImageModel | TableModel:
        """Build the networks and their preprocessing, or take those of the previous fit."""
        architecture = self._describe_architecture()
        if session.earlier is not None:
            for name, now in architecture.items():
                before = self._architecture[name]
                if before != now:
                    raise ValueError(
                        f"warm_start=True continues networks fitted with {name}={before}, but "
                        f"{name} is now {now}. Change it back, or set warm_start=False."
                    )
            model = copy.deepcopy(session.earlier)  # if this fit fails, the old state remains
        else:
            self._architecture: dict[str, str] = architecture
            model = self._make_new_model(X, session.runtime.rng)
        # These settings may differ from those of the previous fit.
        model.error = self.error
        if isinstance(model, ImageModel):
            model.bfloat16, model.device_ = session.runtime.bfloat16, self.device_
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
            # If columns of two rows are scaled separately, all of them hold the same two values.
            scaler = SquashingScaler(_BOUND, 0.0, common_scale=len(X) < 3).fit(X)
            # Draw groups even if nothing is hidden, so that batches depend on the seed only.
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
        # Remove memory addresses, because they differ from process to process.
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
        """Learn what maps of normal data look like, from data that the networks have not seen.

        These data are the held-out rows and the `further` maps. The rows in `left_out` are used for
        the threshold only.
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
        """Return scores of held-out maps, each standardised by the statistics of other maps."""
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
                scores[:] = limit  # nothing was held out: only far rows are outliers
            # Raise lower scores to the limit, so that far rows are outliers. Do not do so if the
            # networks find far rows as normal as half of the held-out rows, or as one of very few,
            # which are far from each other themselves.
            elif limit < np.quantile(self._scorer.scores(together), 0.5 if n < 19 else 0.0):
                scores = np.maximum(scores, limit)
        return scores

    def _in_blocks(
        self, X: ArrayLike, function: BlockFunction, source: str = "combined"
    ) -> NDArray[Any]:
        """Check rows, and apply a function to them in blocks, because maps need much memory."""
        check_is_fitted(self)
        if source not in SOURCES:
            raise ValueError(f"source must be one of {SOURCES}, got {source!r}.")
        return self._map_blocks(self._validate(X, reset=False), function)

    def _map_blocks(self, X: NDArray[Any], function: BlockFunction) -> NDArray[Any]:
        """Apply a function of the detector, with networks on their device, to blocks of rows."""
        size, ready = self._model.batch_size, copy.copy(self)
        with self._model.ready() as ready._model:
            for i, block in enumerate(blocks(X, size)):
                values = function(ready, as_known_dtype(block))
                if i == 0:
                    found = np.empty((len(X), *values.shape[1:]), dtype=values.dtype)
                found[i * size : i * size + len(values)] = values
        return found

    def _standard_maps(self, X: NDArray[Any]) -> list[NDArray[np.float64]]:
        """Return the inpainter's and the detector's standardised maps of checked rows."""
        return self._scorer.standardize(self._model.maps(X))

    def _map(self, X: NDArray[Any], source: Source = "combined") -> NDArray[np.float64]:
        maps = self._standard_maps(X)
        return self._scorer.combine(*maps) if source == "combined" else maps[source == "detector"]

    def _score_batch(self, X: NDArray[Any]) -> NDArray[np.float64]:
        return self._scorer.scores(self._scorer.regions(self._map(X)))

    def _score_validated(self, X: NDArray[Any]) -> NDArray[np.float64]:
        return self._map_blocks(X, lambda ready, block: ready._score_batch(block))

    def _export_module(self) -> ScoringGraph:
        return ScoringGraph(self._model, self._scorer, self.offset_)

    @property
    def _is_convolutional(self) -> bool:
        return self.image_shape_ is not None
