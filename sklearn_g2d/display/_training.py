"""Plots of a fit: its losses, and samples of the generators that were kept in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d.display._drawing import as_pictures, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sklearn_g2d.g2d import Snapshot

# A few extreme pixels must not determine the brightness of all images.
_BRIGHTNESS_QUANTILES = 0.01, 0.99

_LOSS_COLORS = ("tab:blue", "tab:gray", "tab:purple", "tab:brown")
_ROLE_COLORS = {"far": "tab:red", "boundary": "tab:orange", "normal": "tab:green"}


@dataclass(kw_only=True, eq=False, repr=False)
class LossCurveDisplay:  # numpydoc ignore=PR02
    """Losses in training; with a generator and a critic, kept generators are marked.

    Use `from_estimator` to make one.

    Parameters
    ----------
    history : mapping of str to ndarray of shape (n_steps,)
        Losses by step. If there are a "generator_loss" and a "critic_loss", these are drawn,
        otherwise all losses: without a `WassersteinGAN` those of the classifier only.
    snapshots : sequence of Snapshot, default=()
        Generators to mark, each with its step, loss and role.
    name : str, default=None
        Title of the plot.

    Attributes
    ----------
    lines_ : dict of Line2D
        Curves by loss.
    markers_ : dict of PathCollection
        Marked snapshots by role: "far", "boundary" or "normal".
    texts_ : list of Annotation
        Numbers of steps beside the markers, in the order of `snapshots`.
    ax_, figure_ : matplotlib Axes and Figure

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d import G2DOutlierDetector
    >>> from sklearn_g2d.display import LossCurveDisplay
    >>> from sklearn_g2d.g2d import WassersteinGAN
    >>> X = np.random.default_rng(0).normal(size=(60, 2))
    >>> generator = WassersteinGAN(max_steps=20, n_members=1)
    >>> detector = G2DOutlierDetector(generator=generator, random_state=0).fit(X)
    >>> sorted(LossCurveDisplay.from_estimator(detector).lines_)
    ['critic_loss', 'generator_loss']
    """

    history: Mapping[str, NDArray[Any]]
    snapshots: Sequence[Snapshot] = ()
    name: str | None = None

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, name: str | None = None, ax: Axes | None = None, **kwargs: Any
    ) -> Self:
        """Plot the training of a fitted detector.

        Parameters
        ----------
        estimator : G2DOutlierDetector or AVIDDetector
            A fitted detector with `history_`; its `snapshots_` are marked, if it has any.
        name : str, default=None
            Title of the plot; None means the name of the estimator's class.
        ax, **kwargs : as in `plot`

        Returns
        -------
        LossCurveDisplay

        Raises
        ------
        NotFittedError, TypeError
            If the estimator is not fitted, or keeps no losses.
        ImportError, ValueError
            As in `plot`.
        """
        check_is_fitted(estimator)
        if not hasattr(estimator, "history_"):
            raise TypeError(
                f"{type(estimator).__name__} keeps no losses. Pass a detector that has the "
                "attribute history_, such as G2DOutlierDetector."
            )
        name = type(estimator).__name__ if name is None else name
        snapshots = getattr(estimator, "snapshots_", ())
        display = cls(history=estimator.history_, snapshots=snapshots, name=name)
        return display.plot(ax=ax, **kwargs)

    def plot(self, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Draw the losses and mark the snapshots.

        Parameters
        ----------
        ax : matplotlib Axes, default=None, which makes a figure
        **kwargs : passed to ``Axes.plot`` for each loss

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If the history holds no loss.
        """
        losses = {name: v for name, v in self.history.items() if name.endswith("_loss")}
        if not losses:
            raise ValueError(
                f"The history holds no loss, only {sorted(self.history)}. Fit with a "
                "NetworkClassifier or a WassersteinGAN, or fit an AVIDDetector, with max_steps of "
                "at least 1."
            )
        of_gan = {k: losses[k] for k in ("generator_loss", "critic_loss") if k in losses}
        self.ax_, self.figure_ = new_axes(ax, self.name)
        self.lines_ = {}
        colors = cycle(_LOSS_COLORS)
        for name, loss in (of_gan or losses).items():
            style = {"label": name.replace("_", " "), "color": next(colors)} | kwargs
            (self.lines_[name],) = self.ax_.plot(np.arange(1, len(loss) + 1), loss, **style)
        self.markers_: dict[str, Any] = {}
        self.texts_: list[Any] = []
        if of_gan:
            self._mark_snapshots(first_loss=float(next(iter(of_gan.values()))[0]))
        # Leave room for the labels of markers.
        self.ax_.margins(y=0.15)
        self.ax_.set(xlabel="generator step" if of_gan else "step", ylabel="loss")
        self.ax_.legend()
        return self

    def _mark_snapshots(self, first_loss: float) -> None:
        # A generator that was kept before the first step has no loss: draw it at the first loss.
        points = [(s.step, s.loss if np.isfinite(s.loss) else first_loss) for s in self.snapshots]
        for role, color in _ROLE_COLORS.items():
            chosen = [p for p, s in zip(points, self.snapshots, strict=True) if s.role == role]
            if chosen:
                self.markers_[role] = self.ax_.scatter(
                    *np.transpose(chosen), color=color, zorder=3, label=f"snapshot: {role}"
                )
        above: dict[str, Any] = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center"}
        style: dict[str, Any] = above | {"va": "bottom", "rotation": 90, "fontsize": "small"}
        self.texts_ = [
            self.ax_.annotate(str(s.step), point, color=_ROLE_COLORS[s.role], **style)
            for s, point in zip(self.snapshots, points, strict=True)
        ]


@dataclass(kw_only=True, eq=False, repr=False)
class SnapshotSamplesDisplay:  # numpydoc ignore=PR02
    """Generated images of the kept generators, from the first one to the last.

    Each snapshot has one row of images, from "far" over "boundary" to "normal", as in Fig. 1 and 4
    of the paper of G2D. All images share one range of brightness, which covers 98 % of the last
    snapshot's pixels; values outside it are black or white. Use `from_estimator` to make one.

    Parameters
    ----------
    samples : ndarray of shape (n_snapshots, n_samples, channels, height, width)
        Generated images. One channel is drawn in gray, and three in colour; for other numbers
        the mean is drawn.
    snapshots : sequence of Snapshot
        The generators, each with its step and role.
    name : str, default=None
        Title of the plot.

    Attributes
    ----------
    image_ : AxesImage of all samples in one picture
    ax_, figure_ : matplotlib Axes and Figure

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_g2d import G2DOutlierDetector
    >>> from sklearn_g2d.display import SnapshotSamplesDisplay
    >>> from sklearn_g2d.g2d import WassersteinGAN
    >>> images = load_digits().images[:60, None]
    >>> generator = WassersteinGAN(max_steps=8, n_members=1, n_snapshots=3)
    >>> detector = G2DOutlierDetector(
    ...     features="passthrough", generator=generator, random_state=0
    ... ).fit(images)
    >>> SnapshotSamplesDisplay.from_estimator(detector, n_samples=5).samples.shape
    (3, 5, 1, 8, 8)
    """

    samples: NDArray[Any]
    snapshots: Sequence[Snapshot]
    name: str | None = None

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        n_samples: int = 10,
        random_state: int | np.random.RandomState | None = None,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw samples of a fitted detector's snapshots.

        Parameters
        ----------
        estimator : G2DOutlierDetector
            A detector that was fitted on images with a `WassersteinGAN`. Its features must have
            an inverse, as ``features="passthrough"`` has.
        n_samples : int, default=10
            Number of images for each snapshot.
        random_state : int, RandomState instance or None, default=None
            Seed of the samples; None means the estimator's own seed.
        name : str, default=None
            Title of the plot; None means the name of the estimator's class.
        ax, **kwargs : as in `plot`

        Returns
        -------
        SnapshotSamplesDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        NotFittedError
            If the detector is not fitted.
        ValueError
            If the detector has no snapshots, was fitted on a table, or its features have no
            inverse.
        """
        check_is_fitted(estimator)
        title = type(estimator).__name__
        snapshots = getattr(estimator, "snapshots_", None)
        if snapshots is None:
            raise ValueError(
                f"This {title} has no snapshots: only a WassersteinGAN keeps generators. Fit "
                "a G2DOutlierDetector(generator=WassersteinGAN(...))."
            )
        if estimator.image_shape_ is None:
            raise ValueError(
                "Samples of a detector that was fitted on a table are not pictures. Fit it on "
                "images, or plot the rows of sample_outliers like the rows of your table."
            )
        samples = [
            estimator.sample_outliers(n_samples, snapshots=[s], random_state=random_state)
            for s in snapshots
        ]
        shape = (len(samples), n_samples, *estimator.image_shape_)
        name = title if name is None else name
        display = cls(samples=np.reshape(samples, shape), snapshots=snapshots, name=name)
        return display.plot(ax=ax, **kwargs)

    def plot(self, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Draw the samples, a row for each snapshot.

        Parameters
        ----------
        ax : matplotlib Axes, default=None, which makes a figure
        **kwargs : passed to ``Axes.imshow``

        Returns
        -------
        self
        """
        self.ax_, self.figure_ = new_axes(ax, self.name, layout="constrained")
        # Images of early generators have extreme values. With their range, the images of the last
        # generator would look gray.
        low, high = np.quantile(self.samples[-1], _BRIGHTNESS_QUANTILES)
        images = as_pictures(self.samples.clip(low, high))
        # A border of one pixel separates the images.
        pad = [(0, 0), (0, 0), (1, 0), (1, 0), (0, 0)][: images.ndim]
        framed = np.pad(images, pad, constant_values=1.0)
        picture = np.concatenate(np.concatenate(framed, axis=1), axis=1)
        style: dict[str, Any] = {"cmap": "gray", "vmin": 0.0, "vmax": 1.0} | kwargs
        self.image_ = self.ax_.imshow(picture, **style)
        middles = (np.arange(len(self.snapshots)) + 0.5) * framed.shape[2]
        labels = [f"step {snapshot.step}: {snapshot.role}" for snapshot in self.snapshots]
        self.ax_.set(xticks=[], yticks=middles, yticklabels=labels)
        for label, snapshot in zip(self.ax_.get_yticklabels(), self.snapshots, strict=True):
            label.set_color(_ROLE_COLORS[snapshot.role])
        return self
