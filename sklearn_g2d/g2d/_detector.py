"""G2D: Generate to Detect Anomalies (Pourreza et al., WACV 2021)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator
from sklearn.callback import CallbackContext, with_callbacks
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d._base import BaseDetector
from sklearn_g2d.features import NeighborProfile
from sklearn_g2d.g2d._classifier import ClassifierTrainer
from sklearn_g2d.g2d._classifiers import (
    Classifiers,
    NetworkClassifiers,
    SklearnClassifiers,
    blind_folds,
    out_of_fold_scores,
)
from sklearn_g2d.g2d._generator import IrregularityGenerator
from sklearn_g2d.g2d._image_networks import ConvNetwork
from sklearn_g2d.g2d._preprocessing import Representation
from sklearn_g2d.g2d._recipes import G2D_IMAGE_RECIPES, G2D_RECIPES, G2DRecipe
from sklearn_g2d.g2d._snapshots import (
    Snapshot,
    irregular,
    role_by_distance,
    roles_by_loss,
    spread_evenly,
)
from sklearn_g2d.training.ensemble import EnsembleMLP
from sklearn_g2d.training.history import History, extend
from sklearn_g2d.training.runtime import Runtime, single_thread
from sklearn_g2d.utils.mapped import as_known_dtype, take
from sklearn_g2d.utils.recipes import resolve
from sklearn_g2d.utils.state import unchanged_on_failure

# Rows that training and the neighbour search see; more are drawn from at random, so that
# neither fitting nor scoring a row slows down as tables grow.
MAX_TRAINING_ROWS = 10_000

# Maps from which convolutions gain by bfloat16 (docs/results).
MIN_BFLOAT16_WIDTH = 64

# Every classifier is kept from the rows of one fold, for honest scores of these rows.
N_FOLDS = 4


class G2DOutlierDetector(BaseDetector):
    """Novelty detection by a classifier of normal rows against generated outliers.

    A Wasserstein GAN is trained on normal rows only. Its generator, saved while it is
    still imperfect, makes irregular rows; a binary classifier learns normal against
    generated and alone detects [1]_. The default recipe changes what has to be changed
    for the method to detect on tables: the generator starts as a cloud around the data, and the
    classifier judges a row by its distances to the nearest normal rows. As it turns out, this
    cloud serves as well as whatever training makes of it; so by default there is none, and
    `max_steps` asks for it.

    Scores are **higher for more normal** rows, and `predict` gives **+1 for inliers and
    -1 for outliers**, as everywhere in scikit-learn. (PyOD's signs are the opposite.)

    Parameters
    ----------
    contamination : "auto" or float in (0, 0.5], default="auto"
        Where `predict` draws the line. A float flags that share of the training rows.
        "auto" promises about 5 % false alarms on new normal rows, judged by out-of-fold
        scores; under ``recipe="paper"`` it is the classifier's probability .5.
    image_shape : tuple of int, default=None
        Channels, height and width, if the rows given to `fit` are pixels of images. Arrays of
        shape (n_samples, channels, height, width) need not say so.
    recipe : "default" or "paper", default="default"
        What the parameters left at None stand for: what measures best, or the published
        method with its networks, optimisers, snapshot rule and threshold.
    max_steps : int, default=None
        Training steps of the generator; 0 leaves it untrained. The default recipe takes
        0, for 150 take longer and change no benchmark's AUC by more than .001; the paper
        recipe 1000.
    batch_size : int, default=None
        Rows in a training step of the GAN. Both recipes take 64.
    n_estimators : int, default=None
        Generators and classifiers trained side by side, whose scores are averaged. The
        default recipe takes 8, the paper recipe 1.
    latent_dim : int, default=None
        Length of the generator's noise vector. The default recipe takes the number of columns,
        but at least 16 and at most 200; the paper recipe 100.
    n_critic : int, default=None
        Critic steps before each generator step. The default recipe takes 1, the paper recipe 5.
    gradient_penalty : float, default=None
        Weight of the critic's gradient penalty. Both recipes take 10.
    n_snapshots : int, default=None
        Generators kept as makers of irregular rows, the paper's k. The default recipe
        takes 6, the paper recipe 10.
    snapshot_selection : "geometric", "loss" or callable, default=None
        Which generators. "geometric" (default recipe): after no step and after max_steps
        times 1, 1/2, 1/4, ..., except those whose samples already lie among the normal rows.
        "loss" (paper recipe): evenly from the epochs in which the generator's loss still
        falls. A callable is given one `Snapshot` for each epoch and returns those to use.
    n_generated : float, default=None
        Generated rows in units of the training rows, the paper's mk / n. The default
        recipe takes 2, the paper recipe 1.
    features : {"raw", "oriented_gradients"}, transformer or callable, default=None
        What stands in front of scaling. "raw" takes columns or pixels as they are;
        "oriented_gradients", the default recipe's choice for images, describes images by
        `OrientedGradients`. A scikit-learn transformer is cloned and fitted on the training
        rows, or images if its tag ``three_d_array`` says so; a callable, such as a pretrained
        network, maps images (or rows) to an array with a row of features for each.
    n_neighbors : int, default=None
        Length of the neighbour profile by which the classifier judges a row; 0 shows it
        the row itself. The default recipe takes 20, the paper recipe 0.
    width : int, default=None
        Maps in the narrowest layer of convolutional networks, which the paper recipe trains
        on images; it takes 16. The authors' own networks have 256 and want a GPU.
    classifier : scikit-learn classifier, default=None
        Takes the place of the network that tells normal from generated; needs
        ``predict_proba``. One clone for each of four folds is trained.
    support_fraction : float in [0.5, 1], default=1
        Share of the training rows to learn from, the most central ones. Lower it where
        outliers hide among them, to .8 for a suspected tenth (docs/results); clean data
        loses by it. Thresholds still regard all training rows.
    device : str, default="auto"
        Device of training: "auto" takes CUDA, then MPS, then the CPU.
    precision : "auto", "float32" or "bfloat16", default="auto"
        Of the networks' forward passes in training. "auto" takes bfloat16 for convolutional
        networks of width 64 or more where the processor multiplies in it, else float32:
        smaller networks do not gain. Scoring never uses it.
    warm_start : bool, default=False
        Whether `fit` continues from the networks of the previous call, taking
        `max_steps` further steps, instead of starting anew.
    verbose : int, default=0
        Above 0, the end of each stage of training is logged to the logger
        "sklearn_g2d" at level INFO.
    random_state : int, RandomState instance or None, default=None
        Seed of everything random in `fit` and, by default, in sampling.

    Attributes
    ----------
    offset_ : float
        Threshold: ``decision_function(X) = score_samples(X) - offset_``.
    snapshots_ : list of Snapshot
        The generators kept, in order of training, each with its step, loss and role ("far",
        "boundary" or "normal").
    history_ : dict of ndarray
        Losses by step: "critic_loss" and "generator_loss" (Eq. 3), then
        "classifier_loss" (Eq. 1) if the classifier is a network. After a retry also
        "generator_retries" or "classifier_retries": the steps from which training was taken up
        again, each time at half the learning rates.
    n_iter_ : int
        Generator steps taken.
    calibration_scores_ : ndarray
        Sorted scores of held-out normal rows, on which `p_values` rest.
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
    sklearn_g2d.model_selection.NormalOnlySplit : Keeps outliers out of training folds.
    sklearn.ensemble.IsolationForest : Detector without training, for comparison.

    References
    ----------
    .. [1] M. Pourreza, B. Mohammadi, M. Khaki, S. Bouindour, H. Snoussi, M. Sabokrou,
       "G2D: Generate to Detect Anomalies", WACV 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d import G2DOutlierDetector
    >>> X = np.random.default_rng(0).normal(size=(200, 3))
    >>> detector = G2DOutlierDetector(random_state=0).fit(X)
    >>> detector.predict([[0.0, 0.0, 0.0], [6.0, -6.0, 6.0]])
    array([ 1, -1])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseDetector._parameter_constraints,
        "recipe": [StrOptions(set(G2D_RECIPES))],
        "latent_dim": [Interval(Integral, 1, None, closed="left"), None],
        "n_critic": [Interval(Integral, 1, None, closed="left"), None],
        "gradient_penalty": [Interval(Real, 0, None, closed="left"), None],
        "n_snapshots": [Interval(Integral, 1, None, closed="left"), None],
        "snapshot_selection": [StrOptions({"geometric", "loss"}), callable, None],
        "n_generated": [Interval(Real, 0, None, closed="neither"), None],
        "features": [
            StrOptions({"raw", "oriented_gradients"}),
            HasMethods(["fit", "transform"]),
            callable,
            None,
        ],
        "width": [Interval(Integral, 1, None, closed="left"), None],
        "n_neighbors": [Interval(Integral, 0, None, closed="left"), None],
        "support_fraction": [Interval(Real, 0.5, 1, closed="both")],
        "classifier": [HasMethods(["fit", "predict_proba"]), None],
    }

    n_iter_: int
    snapshots_: list[Snapshot]
    history_: dict[str, NDArray[Any]]
    _representation: Representation
    _generator: IrregularityGenerator
    _classifiers: Classifiers

    def __init__(
        self,
        *,
        contamination: float | Literal["auto"] = "auto",
        image_shape: Sequence[int] | None = None,
        recipe: Literal["default", "paper"] = "default",
        max_steps: int | None = None,
        batch_size: int | None = None,
        n_estimators: int | None = None,
        latent_dim: int | None = None,
        n_critic: int | None = None,
        gradient_penalty: float | None = None,
        n_snapshots: int | None = None,
        snapshot_selection: str | Callable[[list[Snapshot]], list[Snapshot]] | None = None,
        n_generated: float | None = None,
        features: Literal["raw", "oriented_gradients"] | Any = None,
        n_neighbors: int | None = None,
        width: int | None = None,
        classifier: BaseEstimator | None = None,
        support_fraction: float = 1.0,
        device: str = "auto",
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        warm_start: bool = False,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.contamination = contamination
        self.image_shape = image_shape
        self.recipe = recipe
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.n_estimators = n_estimators
        self.latent_dim = latent_dim
        self.n_critic = n_critic
        self.gradient_penalty = gradient_penalty
        self.n_snapshots = n_snapshots
        self.snapshot_selection = snapshot_selection
        self.n_generated = n_generated
        self.features = features
        self.n_neighbors = n_neighbors
        self.width = width
        self.classifier = classifier
        self.support_fraction = support_fraction
        self.device = device
        self.precision = precision
        self.warm_start = warm_start
        self.verbose = verbose
        self.random_state = random_state

    @unchanged_on_failure
    @with_callbacks
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Learn what normal rows look like.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Normal rows or images, at least two. Outliers among them count as normal: see
            `support_fraction`.
        y : ignored
            Accepted for scikit-learn's sake. Labels are not used: give normal rows only.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter is out of range, or `X` holds NaN, infinity, text, complex or
            sparse data, or fewer than two rows.
        TrainingDivergedError
            If training diverges, and three retries at lower learning rates do, too. Whatever is
            raised, also by an interrupt, the estimator keeps the state that it had before.

        Warns
        -----
        ConvergenceWarning
            If training diverged, but a retry did not; `history_` says where.
        """
        self._validate_params()
        context = self._init_callback_context(max_subtasks=2)
        rows = self._validate_training(X)
        random_state = self._begin(rows, context)
        recipe = self._resolve_recipe()
        with nullcontext() if recipe.width else single_thread():
            self._fit(rows, recipe, random_state, context)
        context.call_on_fit_task_end(estimator=self, X=rows)
        return self

    def _fit(
        self,
        X: NDArray[Any],
        recipe: G2DRecipe,
        random_state: np.random.RandomState,
        context: CallbackContext,
    ) -> None:
        seed = int(random_state.randint(np.iinfo(np.int32).max))
        runtime = Runtime.create(
            self.device, self.precision, seed, prefer_bfloat16=recipe.width >= MIN_BFLOAT16_WIDTH
        )
        self.device_ = str(runtime.device)
        rows = self._pooled(X, MAX_TRAINING_ROWS, random_state)
        if len(rows) > MAX_TRAINING_ROWS:
            chosen = random_state.choice(len(rows), MAX_TRAINING_ROWS, replace=False)
            rows = take(rows, np.sort(chosen))
        else:
            # Sums depend on the memory layout in their last digits, and training amplifies them.
            rows = np.ascontiguousarray(as_known_dtype(rows))
        self._representation = Representation(recipe, self.image_shape_)
        normal, described, is_central = self._representation.fit(rows, self.support_fraction)

        history = self._train_generator(normal, recipe, runtime, context)
        self.snapshots_ = self._select_snapshots(normal, described, recipe, runtime)
        n_generated = max(1, round(recipe.n_generated * len(normal)))
        generated = self._generator.sample(irregular(self.snapshots_), n_generated, runtime)

        out_of_fold, classifier_history = self._train_classifiers(
            described, self._representation.describe(generated), recipe, runtime, context
        )
        self.history_ = history | classifier_history
        if not is_central.all():
            left_out = self._score_validated(rows[~is_central])
            out_of_fold = np.concatenate([out_of_fold, left_out])
        self._set_threshold(X, out_of_fold)
        if recipe.auto_threshold == "probability" and self.contamination == "auto":
            self.offset_ = 0.0  # log-odds of the paper's alpha, .5

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Give the classifier's probabilities, normal against generated.

        They compare a row with the *generated* outliers and are no frequencies of real
        ones; for a promised rate of false alarms use `calibrate` or `p_values`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to judge.

        Returns
        -------
        ndarray of shape (n_samples, 2)
            Columns in the order of the labels -1 and +1: probability of being an
            outlier, probability of being an inlier.
        """
        inlier = expit(self.score_samples(X))
        return np.column_stack([1 - inlier, inlier])

    def sample_outliers(
        self,
        n_samples: int = 1,
        *,
        snapshots: Sequence[Snapshot] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> NDArray[np.float64]:
        """Generate irregular rows or images, as the classifier was trained on.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        snapshots : sequence of Snapshot, default=None
            Generators to draw from, equally; None takes all of `snapshots_` that make
            outliers.
        random_state : int, RandomState instance or None, default=None
            Seed; None takes the estimator's own.

        Returns
        -------
        ndarray of shape (n_samples, n_features) or (n_samples, channels, height, width)
            In the shape and units of the training data.

        Raises
        ------
        ValueError
            If the features cannot be turned back into rows, as oriented gradients cannot.
        """
        check_is_fitted(self)
        _check_n_samples(n_samples)
        chosen = irregular(self.snapshots_) if snapshots is None else snapshots
        return self._sample(chosen, n_samples, random_state)

    def sample_normals(
        self, n_samples: int = 1, *, random_state: int | np.random.RandomState | None = None
    ) -> NDArray[np.float64]:
        """Generate rows or images that resemble normal ones, to augment a small data set.

        They come from the last generator, and only rows that the detector accepts as inliers are
        kept. A generator has to mature for that: set `max_steps` to a few thousand when normal
        rows are what you want.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        random_state : int, RandomState instance or None, default=None
            Seed; None takes the estimator's own.

        Returns
        -------
        ndarray of shape (n_samples, n_features) or (n_samples, channels, height, width)
            In the shape and units of the training data.

        Raises
        ------
        ValueError
            If the features cannot be turned back into rows, as oriented gradients cannot.
        RuntimeError
            If fewer than one generated row in a hundred is accepted.
        """
        check_is_fitted(self)
        _check_n_samples(n_samples)
        drawn = self._sample(self.snapshots_[-1:], 100 * n_samples, random_state)
        accepted = drawn[self.predict(drawn) == 1]
        if len(accepted) < n_samples:
            raise RuntimeError(
                f"Only {len(accepted)} of {len(drawn)} rows of the generator after "
                f"{self.n_iter_} steps are like normal ones. Fit with a larger max_steps, or "
                "continue by warm_start=True, and sample again."
            )
        return accepted[:n_samples]

    # Parameters and representation

    def _resolve_recipe(self) -> G2DRecipe:
        given = {
            "n_estimators": self.n_estimators,
            "max_steps": self.max_steps,
            "batch_size": self.batch_size,
            "latent_dim": self.latent_dim,
            "n_critic": self.n_critic,
            "gradient_penalty": self.gradient_penalty,
            "n_snapshots": self.n_snapshots,
            "snapshot_selection": self.snapshot_selection,
            "n_generated": self.n_generated,
            "features": self.features,
            "n_neighbors": self.n_neighbors,
        }
        if self.image_shape_ is None:
            return resolve(G2D_RECIPES[self.recipe], **given)
        recipe = resolve(G2D_IMAGE_RECIPES[self.recipe], **given)
        if not recipe.width:
            return recipe
        if recipe.features != "raw":
            # Features have no rows and columns that a convolution could slide over.
            return resolve(G2D_RECIPES[self.recipe], **given)
        return resolve(recipe, width=self.width)

    def _score_batch(self, X: NDArray[Any]) -> NDArray[np.float64]:
        points = self._representation.encode(X)
        return self._classifiers.log_odds(self._representation.describe(points)).mean(axis=0)

    # The generator I and its critic C: sections 3.1 and 3.3 of the paper

    def _train_generator(
        self,
        normal: NDArray[np.float64],
        recipe: G2DRecipe,
        runtime: Runtime,
        context: CallbackContext,
    ) -> History:
        """Train I and C; returns the losses."""
        X = runtime.tensor(normal)
        history: History = {}
        earlier = self._to_continue()
        if earlier is not None:
            earlier.check_continues(recipe, normal.shape[1], self.image_shape_)
            # A copy, for the former state has to survive a failure.
            self._generator = copy.deepcopy(earlier)
            history = {k: v for k, v in self.history_.items() if not k.startswith("classifier_")}
        else:
            self._generator = IrregularityGenerator(X, recipe, self.image_shape_, runtime)
        losses = self._train(
            "generator",
            self._generator.trainer(X, recipe, runtime),
            recipe.max_steps,
            context,
            remedy="Lower max_steps, or move gradient_penalty towards 10.",
        )
        if losses:
            self._generator.keep(losses["generator_loss"][-1])
        self.n_iter_ = self._generator.n_steps
        return extend(history, losses)

    def _to_continue(self) -> IrregularityGenerator | None:
        return getattr(self, "_generator", None) if self.warm_start else None

    def _select_snapshots(
        self,
        normal: NDArray[np.float64],
        described: NDArray[np.float64],
        recipe: G2DRecipe,
        runtime: Runtime,
    ) -> list[Snapshot]:
        """Give every snapshot its role and keep those that `snapshot_selection` names."""
        candidates = self._generator.snapshots
        if recipe.snapshot_selection == "geometric":
            describe: Callable[[NDArray[np.float64]], NDArray[np.float64]]
            describe = self._representation.describe
            if not recipe.n_neighbors:
                profile = NeighborProfile()
                described, describe = profile.fit_transform(normal), profile.transform
            limit = np.quantile(described[:, -1], 0.95)

            def share_inside(snapshot: Snapshot) -> float:
                samples = self._generator.sample([snapshot], 512, runtime)
                return float(np.mean(describe(samples)[:, -1] < limit))

            roles = [role_by_distance(share_inside(s)) for s in candidates]
        else:
            roles = roles_by_loss([s.loss for s in candidates])
        snapshots = [replace(s, role=role) for s, role in zip(candidates, roles, strict=True)]
        if recipe.snapshot_selection == "loss":
            selected = spread_evenly(irregular(snapshots), recipe.n_snapshots)
            # The last one is kept in any case, as the maker of normal rows.
            return selected if selected[-1] is snapshots[-1] else [*selected, snapshots[-1]]
        if callable(recipe.snapshot_selection):
            snapshots = list(recipe.snapshot_selection(snapshots))
            if not snapshots:
                raise ValueError("snapshot_selection returned no snapshot; return at least one.")
        return snapshots

    def _sample(
        self,
        snapshots: Sequence[Snapshot],
        n_samples: int,
        random_state: int | np.random.RandomState | None,
    ) -> NDArray[np.float64]:
        seeds = self.random_state if random_state is None else random_state
        seed = int(check_random_state(seeds).randint(np.iinfo(np.int32).max))
        runtime = Runtime.create("cpu", "float32", seed)
        points = self._generator.sample(snapshots, n_samples, runtime)
        return self._as_given(self._representation.decode(points))

    # The detector network D: section 3.2 of the paper

    def _train_classifiers(
        self,
        normal: NDArray[np.float64],
        generated: NDArray[np.float64],
        recipe: G2DRecipe,
        runtime: Runtime,
        context: CallbackContext,
    ) -> tuple[NDArray[np.float64], History]:
        """Train D; returns the normal rows' out-of-fold scores, and the losses."""
        n_members = recipe.n_estimators if self.classifier is None else N_FOLDS
        blind = blind_folds(n_members, len(normal), N_FOLDS)
        history: History = {}
        if self.classifier is None:
            network: EnsembleMLP | ConvNetwork
            if recipe.width and not recipe.n_neighbors and self.image_shape_ is not None:
                network = ConvNetwork(
                    n_members=n_members,
                    image_shape=self.image_shape_,
                    width=recipe.width,
                    n_outputs=2,
                    rng=runtime.rng,
                )
            else:
                sizes = (normal.shape[1], *recipe.classifier_hidden, 2)
                network = EnsembleMLP(n_members, sizes, runtime.rng)
            trainer = ClassifierTrainer(
                network,
                runtime.tensor(normal),
                runtime.tensor(generated),
                torch.from_numpy(blind).to(runtime.device),
                recipe.classifier_training,
                runtime,
            )
            history = self._train(
                "classifier",
                trainer,
                recipe.classifier_steps,
                context,
                remedy="Check the scale of what a custom features transformer returns.",
            )
            self._classifiers = NetworkClassifiers(network)
        else:
            self._classifiers = SklearnClassifiers(self.classifier, normal, generated, blind)
        return out_of_fold_scores(self._classifiers.log_odds(normal), blind), history


def _check_n_samples(n_samples: int) -> None:
    if not isinstance(n_samples, Integral) or n_samples < 1:
        raise ValueError(f"n_samples must be an integer of at least 1, got {n_samples!r}.")
