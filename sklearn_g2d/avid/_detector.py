"""AVID: Adversarial Visual Irregularity Detection (Sabokrou et al., ACCV 2018)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import uniform_filter
from sklearn.callback import CallbackContext, with_callbacks
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch.nn import functional as F

from sklearn_g2d._base import BaseDetector
from sklearn_g2d.avid._models import ImagePlayers, Maps, Players, TablePlayers
from sklearn_g2d.avid._recipes import AVID_IMAGE_RECIPES, AVID_RECIPES, AVIDRecipe
from sklearn_g2d.training.history import History, average, extend, n_steps
from sklearn_g2d.training.runtime import Runtime, single_thread
from sklearn_g2d.utils.mapped import take
from sklearn_g2d.utils.recipes import resolve
from sklearn_g2d.utils.state import unchanged_on_failure

# Training keeps its images in memory: at most so many values, drawn at random from more.
MAX_TRAINING_VALUES = 2**26
MAX_TABLE_ROWS = 50_000  # of a table: more hardly add to what a training looks at

# Share of the training data that is kept from each pair of networks, and the most images, or
# rows, of it: they tell what maps of new normal data look like.
_HELD_OUT_SHARE, _MAX_HELD_OUT_IMAGES, _MAX_HELD_OUT_ROWS = 0.2, 100, 2000

# Of the bend at which a map begins to count; an infinite one would make ties.
_SHARPNESS = 3.0

# Of I's map, where D's counts once: D knows fewer ways of being irregular.
_INPAINTER_WEIGHT = 2.0

# Quantiles of training maps: thresholds of I and D in Eq. 4, and the range of a color scale.
_MASK_QUANTILES = 0.95, 0.95
_RANGE_QUANTILES = 0.005, 0.999


class AVIDDetector(BaseDetector):
    """Find irregular images and where they are irregular, by inpainting and patch detection.

    Two networks are trained on normal images only [1]_: the inpainter I learns to restore
    what was hidden from it, and the patch detector D to tell real regions from
    irregular ones. An image is irregular where I restores something else than is there, and
    where D says so. The default recipe changes what has to be changed for the method to detect: I
    inpaints erased blocks instead of removing noise, and D learns from regions exchanged
    between training images. On rows of a table the regions are the cells: the map
    says which features of a row are odd.

    Scores are **higher for more normal** images, and `predict` gives **+1 for inliers and -1 for
    outliers**, as everywhere in scikit-learn; maps are **higher where an image is more
    anomalous**.

    Parameters
    ----------
    contamination : "auto" or float in (0, 0.5], default="auto"
        Where `predict` draws the line. A float flags that share of the training images.
        "auto" promises about 5 % false alarms on new normal images, judged by held-out ones.
    image_shape : tuple of int, default=None
        Channels, height and width, if the rows given to `fit` are pixels of images. Arrays of
        shape (n_samples, channels, height, width) need not say so.
    recipe : "default" or "paper", default="default"
        What the parameters left at None stand for: what measures best, or the published
        method with its networks, losses, optimisers and maps.
    region_size : int, default=None
        Height and width in pixels of what is judged at once: about the size of the smallest
        thing that can be irregular. None takes an eighth of the shorter side, but at least 8.
        Images only.
    corruption : "blocks" or "gaussian", default=None
        What I has to repair in training. "blocks" (default recipe): erased blocks; they are
        erased from new images, too. "gaussian" (paper recipe): noise everywhere, Eq. 2.
    noise_scale : float, default=None
        Standard deviation of that noise in units of the pixels', the paper's gamma. Both
        recipes take .4.
    reconstruction_weight : float, default=None
        Weight of I's squared error. The default recipe takes 1, the paper recipe 0.
    adversarial_weight : float, default=None
        Weight, in I's loss, of D's judgement of the inpainted. Above 0, D also learns that what
        came out otherwise than it was is irregular (paper recipe: all that was inpainted). The
        default recipe takes 0, for it does not help (docs/ablation.md); the paper recipe 1.
    map : "combined", "inpainter" or "detector", default="combined"
        Whose map counts: both networks', or that of one, the paper's ablation. May be
        changed after `fit`; `offset_` stays that of the map it was fitted with.
    per_location : bool, default=False
        Whether maps are standardised for each location by itself. For a fixed camera or a
        part that always lies alike; needs some dozens of images. Always so on tables.
    max_steps : int, default=None
        Training steps; 0 leaves the networks untrained. The default recipe takes 4000 on
        images and 2000 on tables, the paper recipe 1000.
    batch_size : int, default=None
        Crops, or rows, in a training step. Both recipes take 16 crops, 128 rows.
    n_estimators : int, default=None
        Pairs of networks, trained one after another, whose maps are averaged. Both recipes
        take 1.
    width : int, default=None
        Maps of I at full resolution; those of other layers follow. The default recipe takes
        16, the paper recipe 8; the authors' 64 wants a GPU. Images only.
    even_light : bool, default=None
        Whether each place is seen relative to the mean and the deviation of a window of two
        regions around it. None leaves it to the training images under the default recipe: only
        where such means make up a quarter of the variance; the paper recipe does not. Images only.
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
    offset_ : float
        Threshold: ``decision_function(X) = score_samples(X) - offset_``.
    alpha_, zeta_ : float
        Thresholds of Eq. 4 on the standardised maps of I and of D: quantiles of training maps.
    map_range_ : tuple of float
        Lowest and highest value of a color scale for maps: quantiles of training maps.
    region_size_ : int
        What `region_size` came to; 1 on tables.
    history_ : dict of ndarray
        Losses by step: "reconstruction_loss" of I, "detector_loss" of D (Eq. 3 under the paper
        recipe) and, with an adversarial term, "adversarial_loss". After a retry also
        "networks_retries": the steps from which training was taken up again, each time at half
        the learning rates.
    n_iter_ : int
        Training steps taken by each pair of networks.
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
    G2DOutlierDetector : Says which images are irregular, in less time, but not where.
    sklearn_g2d.display.AnomalyMapDisplay : Draws maps over images.

    References
    ----------
    .. [1] M. Sabokrou, M. Pourreza, M. Fayyaz, R. Entezari, M. Fathy, J. Gall, E. Adeli,
       "AVID: Adversarial Visual Irregularity Detection", ACCV 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d import AVIDDetector
    >>> stripes = np.random.default_rng(0).normal(size=(50, 1, 32, 32)) + np.arange(32) % 4
    >>> detector = AVIDDetector(max_steps=30, random_state=0).fit(stripes)
    >>> detector.anomaly_map(stripes[:2]).shape
    (2, 32, 32)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseDetector._parameter_constraints,
        "recipe": [StrOptions(set(AVID_RECIPES))],
        "region_size": [Interval(Integral, 2, None, closed="left"), None],
        "corruption": [StrOptions({"blocks", "gaussian"}), None],
        "noise_scale": [Interval(Real, 0, None, closed="neither"), None],
        "reconstruction_weight": [Interval(Real, 0, None, closed="left"), None],
        "adversarial_weight": [Interval(Real, 0, None, closed="left"), None],
        "map": [StrOptions({"combined", "inpainter", "detector"})],
        "per_location": ["boolean"],
        "even_light": ["boolean", None],
        "width": [Interval(Integral, 2, None, closed="left"), None],
    }

    n_iter_: int
    region_size_: int
    alpha_: float
    zeta_: float
    map_range_: tuple[float, float]
    history_: dict[str, NDArray[Any]]
    _players: list[Players]
    _map_means: Maps
    _map_deviations: Maps

    def __init__(
        self,
        *,
        contamination: float | Literal["auto"] = "auto",
        image_shape: Sequence[int] | None = None,
        recipe: Literal["default", "paper"] = "default",
        region_size: int | None = None,
        corruption: Literal["blocks", "gaussian"] | None = None,
        noise_scale: float | None = None,
        reconstruction_weight: float | None = None,
        adversarial_weight: float | None = None,
        map: Literal["combined", "inpainter", "detector"] = "combined",
        per_location: bool = False,
        max_steps: int | None = None,
        batch_size: int | None = None,
        n_estimators: int | None = None,
        width: int | None = None,
        even_light: bool | None = None,
        device: str = "auto",
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        warm_start: bool = False,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.contamination = contamination
        self.image_shape = image_shape
        self.recipe = recipe
        self.region_size = region_size
        self.corruption = corruption
        self.noise_scale = noise_scale
        self.reconstruction_weight = reconstruction_weight
        self.adversarial_weight = adversarial_weight
        self.map = map
        self.per_location = per_location
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.n_estimators = n_estimators
        self.width = width
        self.even_light = even_light
        self.device = device
        self.precision = precision
        self.warm_start = warm_start
        self.verbose = verbose
        self.random_state = random_state

    @unchanged_on_failure
    @with_callbacks
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Learn what normal images, or rows, look like.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Normal images or rows, at least two.
        y : ignored
            Accepted for scikit-learn's sake. Labels are not used: give normal data only.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter is out of range, or `X` holds NaN, infinity, text, complex or
            sparse data, or fewer than two samples.
        TrainingDivergedError
            If training diverges, and three retries at lower learning rates do, too. Whatever is
            raised, also by an interrupt, the estimator keeps the state that it had before.

        Warns
        -----
        ConvergenceWarning
            If training diverged, but a retry did not; `history_` says where.
        """
        self._validate_params()
        n_pairs = self.n_estimators or AVID_RECIPES[self.recipe].n_estimators
        context = self._init_callback_context(max_subtasks=n_pairs)
        rows = self._validate_training(X)
        random_state = self._begin(rows, context)
        with single_thread() if self.image_shape_ is None else nullcontext():
            self._fit(rows, random_state, context)
        context.call_on_fit_task_end(estimator=self, X=rows)
        return self

    def _fit(
        self, X: NDArray[Any], random_state: np.random.RandomState, context: CallbackContext
    ) -> None:
        recipe = self._resolve_recipe()
        self.region_size_ = self._resolve_region_size()
        seed = int(random_state.randint(np.iinfo(np.int32).max))
        runtime = Runtime.create(
            self.device, self.precision, seed, prefer_bfloat16=self.image_shape_ is not None
        )
        self.device_ = str(runtime.device)
        # More samples than fit into memory are drawn from at random.
        most = self._max_samples(X.shape[1])
        rows = self._pooled(X, most, random_state)
        chosen = random_state.permutation(len(rows))[:most]
        rows = take(rows, np.sort(chosen))
        order = np.argsort(np.argsort(chosen))
        if all(np.array_equal(rows[i], rows[order[0]]) for i in order[1:]):
            warnings.warn(
                "All training samples are alike: D has nothing to exchange between them, and any "
                "deviation will count as irregular. Pass samples that differ as normal ones do.",
                UserWarning,
                stacklevel=5,
            )
        self._players = self._make_players(rows, recipe, runtime)
        histories, held_out_maps = [], []
        for pair, held_out in zip(self._players, self._held_out(order, recipe), strict=True):
            histories.append(self._train_pair(pair, rows, held_out, recipe, runtime, context))
            pair.learn_usual(rows[held_out])
            held_out_maps.append(pair.maps(rows[held_out]))
        history = average(histories)
        if self.warm_start and hasattr(self, "history_"):
            history = extend(self.history_, history)
        self.history_, self.n_iter_ = history, n_steps(history)
        self._learn_thresholds(X, held_out_maps)

    def _train_pair(
        self,
        pair: Players,
        X: NDArray[Any],
        held_out: NDArray[np.intp],
        recipe: AVIDRecipe,
        runtime: Runtime,
        context: CallbackContext,
    ) -> History:
        """Train I and D against each other, section 3.3; returns the losses."""
        trained_on = np.setdiff1d(np.arange(len(X)), held_out)
        if not len(trained_on):  # of very few samples, none are spared
            trained_on = held_out
        game = pair.game(X[trained_on], X[held_out], recipe, runtime)
        remedy = "Lower reconstruction_weight, adversarial_weight or max_steps."
        losses = self._train("networks", game, recipe.max_steps, context, remedy=remedy)
        pair.adopt(game)
        return losses

    def anomaly_map(self, X: ArrayLike) -> NDArray[np.float64]:
        """Say where images, or rows, are irregular; **higher = more anomalous**.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Images or rows.

        Returns
        -------
        ndarray of shape (n_samples, height, width), or (n_samples, n_features) of a table
            How far I and D deviate, in standard deviations, from what they say of normal images,
            at all or where these look alike, whichever is further (of a table, of the same column).
            Never adjusted to an image, so that values of different images compare. Of
            both together only what exceeds the usual counts: the mean excess, I's twice.
        """
        check_is_fitted(self)
        return self._map_validated(self._validate(X, reset=False))

    def region_scores(self, X: ArrayLike) -> NDArray[np.float64]:
        """Say which regions are irregular; **higher = more anomalous**.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Images or rows.

        Returns
        -------
        ndarray of shape (n_samples, n_rows, n_columns), or (n_samples, n_features) of a table
            Means of `anomaly_map` over windows of `region_size_`, half of it apart. Of a table,
            the map itself.
        """
        return self._regions_of(self.anomaly_map(X))

    def predict_mask(self, X: ArrayLike) -> NDArray[np.bool_]:
        """Segment what is irregular, Eq. 4 of the paper.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Images or rows.

        Returns
        -------
        ndarray of shape (n_samples, height, width), or (n_samples, n_features) of a table
            True where I's map reaches `alpha_` and D's reaches `zeta_`; with another `map` than
            "combined", where the one map does.
        """
        check_is_fitted(self)
        by_inpainter, by_detector = self._standard_maps(self._validate(X, reset=False))
        irregular = np.ones(by_inpainter.shape, dtype=bool)
        if self.map != "detector":
            irregular &= by_inpainter >= self.alpha_
        if self.map != "inpainter":
            irregular &= by_detector >= self.zeta_
        return irregular

    def inpaint(self, X: ArrayLike) -> NDArray[np.float64]:
        """Show what I expects instead of each region, given its surroundings.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Images or rows.

        Returns
        -------
        ndarray of the shape of `X`
            In its units. Under ``corruption="gaussian"`` the restored image, as in the paper.
        """
        check_is_fitted(self)
        rows = self._validate(X, reset=False)
        return self._as_given(np.mean([pair.inpaint(rows) for pair in self._players], axis=0))

    # Parameters and data

    def _resolve_recipe(self) -> AVIDRecipe:
        given = {
            "n_estimators": self.n_estimators,
            "max_steps": self.max_steps,
            "batch_size": self.batch_size,
            "corruption": self.corruption,
            "noise_scale": self.noise_scale,
            "reconstruction_weight": self.reconstruction_weight,
            "adversarial_weight": self.adversarial_weight,
        }
        if self.image_shape_ is None:
            return resolve(AVID_RECIPES[self.recipe], **given)
        return resolve(
            AVID_IMAGE_RECIPES[self.recipe],
            width=self.width,
            even_light=self.even_light,
            **given,
        )

    def _resolve_region_size(self) -> int:
        if self.image_shape_ is None:
            return 1
        _, height, width = self.image_shape_
        shorter = min(height, width)
        if self.region_size is not None and self.region_size > shorter:
            raise ValueError(
                f"region_size={self.region_size} is larger than the images, which have "
                f"{height} x {width} pixels. Lower it; an eighth of the shorter side is usual."
            )
        return self.region_size or max(shorter // 8, min(8, -(-shorter // 2)))

    def _max_samples(self, n_features: int) -> int:
        most = max(2, MAX_TRAINING_VALUES // n_features)
        return min(most, MAX_TABLE_ROWS) if self.image_shape_ is None else most

    def _held_out(self, order: NDArray[np.intp], recipe: AVIDRecipe) -> list[NDArray[np.intp]]:
        """Which samples each pair is not trained on; all of very few, which none can be spared."""
        most = _MAX_HELD_OUT_ROWS if self.image_shape_ is None else _MAX_HELD_OUT_IMAGES
        n = min(int(_HELD_OUT_SHARE * len(order)), most)
        if n < 2:
            n = len(order)
        return [np.roll(order, -n * i)[:n] for i in range(recipe.n_estimators)]

    def _make_players(self, X: NDArray[Any], recipe: AVIDRecipe, runtime: Runtime) -> list[Players]:
        earlier = self._to_continue()
        if earlier is not None:
            self._check_continues(recipe)
            return copy.deepcopy(earlier)  # for the former state has to survive a failure
        self._architecture = self._describe_architecture(recipe)
        if self.image_shape_ is None:
            return [TablePlayers(X, recipe, runtime) for _ in range(recipe.n_estimators)]
        return [
            ImagePlayers(X, self.image_shape_, self.region_size_, recipe, runtime)
            for _ in range(recipe.n_estimators)
        ]

    def _to_continue(self) -> list[Players] | None:
        return getattr(self, "_players", None) if self.warm_start else None

    def _describe_architecture(self, recipe: AVIDRecipe) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "image_shape": self.image_shape_,
            "n_features": self.n_features_in_,
            "region_size": self.region_size_,
            "width": recipe.width,
            "n_estimators": recipe.n_estimators,
            "corruption": recipe.corruption,
        }

    def _check_continues(self, recipe: AVIDRecipe) -> None:
        for name, now in self._describe_architecture(recipe).items():
            before = self._architecture[name]
            if before != now:
                raise ValueError(
                    f"warm_start=True continues networks fitted with {name}={before!r}, but {name} "
                    f"is now {now!r}. Change it back, or set warm_start=False."
                )

    # Maps and scores

    def _learn_thresholds(self, X: NDArray[Any], held_out_maps: list[Maps]) -> None:
        """Learn what maps of normal data look like, from data that I and D have not seen."""
        raw = [np.concatenate(maps) for maps in zip(*held_out_maps, strict=True)]
        statistics = [self._statistics(maps) for maps in raw]
        self._map_means, self._map_deviations = (tuple(s) for s in zip(*statistics, strict=True))
        by_inpainter, by_detector = self._standardised(raw)
        self.alpha_ = float(np.quantile(by_inpainter, _MASK_QUANTILES[0]))
        self.zeta_ = float(np.quantile(by_detector, _MASK_QUANTILES[1]))
        combined = self._combined(by_inpainter, by_detector)
        low, high = np.quantile(combined, _RANGE_QUANTILES)
        self.map_range_ = (float(low), float(high))
        self._set_threshold(X, self._scores_of(combined))

    def _statistics(self, maps: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Mean and deviation of maps; for each location if asked, smoothed over half a region."""
        if not self.per_location and self.image_shape_ is not None:
            mean, deviation = np.mean(maps), np.std(maps)
        else:
            mean, deviation = maps.mean(axis=0), maps.std(axis=0)
            if self.image_shape_ is not None:
                width = 2 * (self.region_size_ // 4) + 1
                mean, deviation = (
                    uniform_filter(figure, width, mode="nearest") for figure in (mean, deviation)
                )
        # Where all maps agree, a deviation far below the usual would make noise an alarm.
        least = 0.1 * np.std(maps)
        deviation = np.maximum(deviation, least if least > 0 else 1.0)
        return np.asarray(mean), np.asarray(deviation)

    def _standardised(self, maps: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
        scales = zip(maps, self._map_means, self._map_deviations, strict=True)
        return [(values - mean) / deviation for values, mean, deviation in scales]

    def _standard_maps(self, X: NDArray[Any]) -> list[NDArray[np.float64]]:
        """I's and D's maps of validated rows, averaged over pairs."""
        by_pair = [self._standardised(pair.maps(X)) for pair in self._players]
        return [np.mean(maps, axis=0) for maps in zip(*by_pair, strict=True)]

    def _combined(
        self, by_inpainter: NDArray[np.float64], by_detector: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        if self.map != "combined":
            return by_inpainter if self.map == "inpainter" else by_detector
        if self.recipe == "paper":
            # Eq. 4 keeps what both find; as both thresholds rise, that is the lower one.
            return np.minimum(by_inpainter, by_detector)
        # What one finds more regular than usual must not outweigh what the other suspects: D is
        # surest of what could not have been exchanged unnoticed, be it never so irregular.
        total = _INPAINTER_WEIGHT * _excess(by_inpainter) + _excess(by_detector)
        return total / (1 + _INPAINTER_WEIGHT)

    def _map_validated(self, X: NDArray[Any]) -> NDArray[np.float64]:
        return self._combined(*self._standard_maps(X))

    def _regions_of(self, maps: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.image_shape_ is None:
            return maps
        size = self.region_size_
        windows = F.avg_pool2d(torch.from_numpy(maps)[:, None], size, max(1, size // 2))
        return windows[:, 0].numpy()

    def _scores_of(self, maps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Minus the mean of the most irregular regions."""
        regions = np.sort(self._regions_of(maps).reshape(len(maps), -1), axis=1)
        share = AVID_RECIPES[self.recipe].top_share
        n_top = max(1, round(share * regions.shape[1]))
        return -regions[:, -n_top:].mean(axis=1)

    def _score_batch(self, X: NDArray[Any]) -> NDArray[np.float64]:
        return self._scores_of(self._map_validated(X))


def _excess(deviations: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far values lie above 0, smoothly, so that those below still differ."""
    return np.logaddexp(0, _SHARPNESS * deviations) / _SHARPNESS
