"""Pictures of anomaly maps: where in an image, or in a row of a table, the anomaly is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d.display._axes import import_pyplot, new_axes
from sklearn_g2d.display._pictures import as_pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

_MAX_IMAGES = 20
_MAX_FEATURE_NAMES = 60  # more would run into each other
_PANEL_WIDTH = 1.9  # inches

# The true outline lies beneath, and is broad enough to be seen where both agree.
_OUTLINES: dict[str, dict[str, Any]] = {
    "true": {"color": "deepskyblue", "linewidth": 4.0},
    "predicted": {"color": "red", "linewidth": 1.5},
}


class AnomalyMapDisplay:
    """Anomaly maps of images, or of the rows of a table.

    For each image a row of panels: the image, the inpainted image, the map over the image,
    and the image with the outlines of its masks. All images share one range of brightness,
    and all maps one scale of colours, so that both can be compared. A table is one heat map
    of rows by features.

    Use `from_estimator` or `from_predictions` to make one.

    Parameters
    ----------
    maps : ndarray of shape (n_samples, height, width) or (n_samples, n_features)
        Values of ``anomaly_map``, **higher = more anomalous**.
    value_range : tuple of float
        Values at the ends of the colour scale.
    images : ndarray of shape (n_samples, channels, height, width), default=None
        Images that the maps are of; None for a table. Three channels are drawn in colour,
        of other numbers the mean in gray.
    inpainted : ndarray of the shape of `images`, default=None
        The images as the detector fills them in; None leaves the panels out.
    predicted_masks : ndarray of bool of the shape of `maps`, default=None
        What the detector flags; None leaves the outlines out.
    masks : ndarray of bool of the shape of `maps`, default=None
        What is anomalous in truth; None leaves the outlines out.
    feature_names : list of str, default=None
        Names of the columns of a table; None numbers them.
    name : str, default=None
        Title of the plot.

    Attributes
    ----------
    pictures_ : dict of list of AxesImage
        What was drawn, by image: "image", "inpainted" and "map". A table has one "map".
    outlines_ : dict of list of LineCollection
        Outlines of the masks, by image: "predicted" and "true".
    colorbar_ : matplotlib Colorbar
        Of all maps.
    axes_ : ndarray of Axes of shape (n_samples, n_panels)
        The panels; for a table (1, 1).
    ax_ : matplotlib Axes
        The heat map, or an invisible frame around the panels.
    figure_ : matplotlib Figure

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_g2d.display import AnomalyMapDisplay
    >>> image = np.zeros((1, 1, 16, 16))
    >>> image[0, 0, 4:8, 4:8] = 1.0
    >>> anomaly_map = 3 * image[:, 0]  # higher = more anomalous
    >>> display = AnomalyMapDisplay.from_predictions(image, anomaly_map)
    >>> list(display.pictures_)
    ['image', 'map']
    """

    def __init__(
        self,
        *,
        maps: NDArray[np.float64],
        value_range: tuple[float, float],
        images: NDArray[Any] | None = None,
        inpainted: NDArray[Any] | None = None,
        predicted_masks: NDArray[np.bool_] | None = None,
        masks: NDArray[np.bool_] | None = None,
        feature_names: Sequence[str] | None = None,
        name: str | None = None,
    ) -> None:
        self.maps = maps
        self.value_range = value_range
        self.images = images
        self.inpainted = inpainted
        self.predicted_masks = predicted_masks
        self.masks = masks
        self.feature_names = feature_names
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        *,
        masks: ArrayLike | None = None,
        value_range: tuple[float, float] | None = None,
        feature_names: Sequence[str] | None = None,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Plot what a fitted detector finds anomalous in images or rows.

        Parameters
        ----------
        estimator : AVIDDetector
            Fitted, with ``anomaly_map``, ``predict_mask``, ``inpaint`` and ``map_range_``.
        X : array-like of shape (n_samples, channels, height, width) or (n_samples, n_features)
            At most 20 images, or rows of a table.
        masks : array-like, default=None
            Of the shape of the maps, not 0 where an image is anomalous in truth.
        value_range : tuple of float, default=None
            Values at the ends of the colour scale; None takes the estimator's
            ``map_range_``, by which the colours of different plots can be compared.
        feature_names : sequence of str, default=None
            Names of the columns of a table; None takes them from a data frame.
        name : str, default=None
            Title of the plot; None takes the estimator's class.
        ax : matplotlib Axes, default=None
            Where to draw, as in `plot`; None makes a figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        AnomalyMapDisplay

        Raises
        ------
        ImportError
            Without matplotlib.
        NotFittedError
            Before `fit`.
        ValueError
            As in `from_predictions`.
        """
        import_pyplot()
        check_is_fitted(estimator, "map_range_")
        shape = np.shape(X)
        # Rows of pixels are images where the detector has been told so.
        image_shape = shape[1:] if len(shape) == 4 else getattr(estimator, "image_shape_", None)
        images: Any = X
        inpainted: NDArray[Any] | None = None
        if image_shape is not None:
            _check_number(shape[0])  # before the detector takes its time
            inpainted = np.reshape(estimator.inpaint(X), (-1, *image_shape))
            images = np.reshape(np.asarray(X), inpainted.shape)
        return cls.from_predictions(
            images,
            estimator.anomaly_map(X),
            inpainted=inpainted,
            predicted_masks=estimator.predict_mask(X),
            masks=masks,
            value_range=estimator.map_range_ if value_range is None else value_range,
            feature_names=feature_names,
            name=type(estimator).__name__ if name is None else name,
            ax=ax,
            **kwargs,
        )

    @classmethod
    def from_predictions(
        cls,
        images: ArrayLike,
        maps: ArrayLike,
        *,
        inpainted: ArrayLike | None = None,
        predicted_masks: ArrayLike | None = None,
        masks: ArrayLike | None = None,
        value_range: tuple[float, float] | None = None,
        feature_names: Sequence[str] | None = None,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Plot given maps.

        Parameters
        ----------
        images : array-like of shape (n_samples, channels, height, width) or \
                (n_samples, n_features)
            At most 20 images, of any range; or a table, whose values are not drawn.
        maps : array-like of shape (n_samples, height, width) or (n_samples, n_features)
            Values of ``anomaly_map``, higher = more anomalous.
        inpainted : array-like, default=None
            Of the shape of `images`; None leaves the panels out, and a table has none.
        predicted_masks : array-like, default=None
            Of the shape of `maps`, not 0 where the detector flags; None leaves the outlines
            out.
        masks : array-like, default=None
            The same for what is anomalous in truth.
        value_range : tuple of float, default=None
            Values at the ends of the colour scale; None takes the least and the greatest
            value of all maps.
        feature_names : sequence of str, default=None
            Names of the columns of a table; None takes them from a data frame.
        name : str, default=None
            Title of the plot.
        ax : matplotlib Axes, default=None
            Where to draw, as in `plot`; None makes a figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        AnomalyMapDisplay

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            If the shapes disagree, a value is not finite, `value_range` is not two ascending
            numbers, or there are more than 20 images.
        """
        shape = np.shape(images)
        checked_maps: NDArray[np.float64] = check_array(
            maps, dtype=np.float64, ensure_2d=False, allow_nd=True, input_name="maps"
        )
        _check_shapes(shape, checked_maps.shape)
        if len(shape) == 2:
            checked_images = checked_inpainted = None
            feature_names = _check_feature_names(feature_names, images, shape[1])
        else:
            _check_number(shape[0])
            checked_images = _check_images(images, shape, "images")
            checked_inpainted = _check_images(inpainted, shape, "inpainted")
            feature_names = None
        return cls(
            maps=checked_maps,
            value_range=_check_value_range(value_range, checked_maps),
            images=checked_images,
            inpainted=checked_inpainted,
            predicted_masks=_check_masks(predicted_masks, checked_maps.shape, "predicted_masks"),
            masks=_check_masks(masks, checked_maps.shape, "masks"),
            feature_names=feature_names,
            name=name,
        ).plot(ax=ax, **kwargs)

    def plot(self, ax: Axes | None = None, *, alpha: float | None = None, **kwargs: Any) -> Self:
        """Draw the maps.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure. Panels of images divide the place of `ax`,
            which must be part of a grid, as those of ``plt.subplots`` are.
        alpha : float, default=None
            How much a map covers its image, from 0 to 1; None means 0.6 over images and 1
            in a table.
        **kwargs : dict
            Passed to ``Axes.imshow`` for each map.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            If `ax` is not part of a grid, and there are images to draw.
        """
        plt = import_pyplot()
        # One object, not equal ones, keeps the maps alike when a user changes a limit.
        norm = plt.Normalize(*self.value_range)
        style: dict[str, Any] = {"cmap": "viridis", "norm": norm} | kwargs
        self.pictures_: dict[str, list[AxesImage]] = {}
        self.outlines_: dict[str, list[Any]] = {}
        if self.images is None:
            self._plot_table(ax, style | {"alpha": alpha})
        else:
            self._plot_images(ax, style | {"alpha": 0.6 if alpha is None else alpha})
        self._add_colorbar()
        return self

    def _add_colorbar(self) -> None:
        low, high = self.value_range
        clipped = (bool(self.maps.min() < low), bool(self.maps.max() > high))
        ends = {(False, False): "neither", (True, False): "min", (False, True): "max"}
        # As broad beside many panels as beside one.
        aspect = 20.0
        if self.images is not None:
            n_images, _, height, width = self.images.shape
            aspect = n_images * height / width / 0.08
        self.colorbar_ = self.figure_.colorbar(
            self.pictures_["map"][0],
            ax=self.axes_.ravel().tolist(),
            label="higher = more anomalous",
            extend=ends.get(clipped, "both"),
            extendfrac=1.0 / aspect,
            aspect=aspect,
        )

    def _plot_images(self, ax: Axes | None, style: dict[str, Any]) -> None:
        assert self.images is not None
        n_images, _, height, width = self.images.shape
        shown = {"image": self.images}
        if self.inpainted is not None:
            shown["inpainted"] = self.inpainted
        pictures = dict(zip(shown, as_pictures(np.stack(list(shown.values()))), strict=True))
        gray = pictures["image"]
        if gray.ndim == 4:
            gray = gray.mean(axis=-1)  # lest its colours be taken for those of the map
        # As pale as the ground of the colour bar, so that colours look alike on both.
        gray = 0.5 + 0.5 * gray
        kinds = self._kinds_of_masks()
        panels = [*pictures, "map", *(["masks"] if kinds else [])]
        # As high as the panels are, with a line for their titles, the name and the legend.
        lines = 1 + (self.name is not None) + (len(kinds) > 1)
        size = (
            _PANEL_WIDTH * len(panels) + 1.0,
            _PANEL_WIDTH * height / width * n_images + 0.25 * lines,
        )
        self._divide(ax, n_images, len(panels), size)

        self.pictures_ = {kind: [] for kind in (*pictures, "map")}
        self.outlines_ = {kind: [] for kind in kinds}
        for row, axes in enumerate(self.axes_):
            for panel, panel_ax in zip(panels, axes, strict=True):
                panel_ax.set(xticks=[], yticks=[])
                below = gray if panel == "map" else pictures.get(panel, pictures["image"])
                picture = panel_ax.imshow(below[row], cmap="gray", vmin=0.0, vmax=1.0)
                if panel == "map":
                    picture = panel_ax.imshow(self.maps[row], **style)
                if panel == "masks":
                    self._outline(panel_ax, row)
                else:
                    self.pictures_[panel].append(picture)
        title_of_masks = f"{next(iter(kinds))} mask" if len(kinds) == 1 else "masks"
        titles = {"map": "anomaly map", "masks": title_of_masks}
        for panel, panel_ax in zip(panels, self.axes_[0], strict=True):
            panel_ax.set_title(titles.get(panel, panel), fontsize="medium")
        if len(kinds) > 1:
            self._add_legend(self.axes_[-1, -1], loc="upper right", bbox_to_anchor=(1.0, 0.0))
        if self.name is not None:
            # On a line of its own above the titles of the panels, in any layout of the figure.
            self.axes_[0, 0].set_title(f"{self.name}\n", loc="left", fontweight="bold")

    def _divide(
        self, ax: Axes | None, n_rows: int, n_columns: int, size: tuple[float, float]
    ) -> None:
        if ax is not None and ax.get_subplotspec() is None:
            raise ValueError(
                "Panels of images need an ax that is part of a grid, as those of plt.subplots "
                "are. Leave ax out to have a figure made."
            )
        self.ax_, self.figure_ = new_axes(ax, figsize=size, layout="constrained")
        self.ax_.set_axis_off()
        spec = self.ax_.get_subplotspec()
        assert spec is not None
        grid = spec.subgridspec(n_rows, n_columns)
        self.axes_ = np.array(
            [
                [self.figure_.add_subplot(grid[row, column]) for column in range(n_columns)]
                for row in range(n_rows)
            ]
        )

    def _plot_table(self, ax: Axes | None, style: dict[str, Any]) -> None:
        from matplotlib.ticker import MaxNLocator

        n_rows, n_features = self.maps.shape
        size = (np.clip(2.0 + 0.3 * n_features, 5, 16), np.clip(1.5 + 0.25 * n_rows, 3, 10))
        self.ax_, self.figure_ = new_axes(ax, figsize=size, layout="constrained")
        self.axes_ = np.array([[self.ax_]])
        picture = self.ax_.imshow(self.maps, **{"aspect": "auto", **style})
        self.pictures_ = {"map": [picture]}
        self.outlines_ = {kind: [] for kind in self._kinds_of_masks()}
        self._outline(self.ax_)
        if self.outlines_:
            self._add_legend(self.ax_, loc="lower right", bbox_to_anchor=(1.0, 1.0))
        ticks = np.arange(0, n_features, -(-n_features // _MAX_FEATURE_NAMES))
        names = self.feature_names or [f"x{column}" for column in range(n_features)]
        self.ax_.set_xticks(ticks, [str(names[tick]) for tick in ticks], rotation=90)
        self.ax_.yaxis.set_major_locator(MaxNLocator(integer=True))
        self.ax_.set(xlabel="feature", ylabel="row")
        if self.name is not None:
            self.ax_.set_title(self.name, loc="left" if self.outlines_ else "center")

    def _kinds_of_masks(self) -> dict[str, NDArray[np.bool_]]:
        masks = {"true": self.masks, "predicted": self.predicted_masks}
        return {kind: mask for kind, mask in masks.items() if mask is not None}

    def _outline(self, ax: Axes, row: int | None = None) -> None:
        from matplotlib.collections import LineCollection

        for kind, masks in self._kinds_of_masks().items():
            edges = _edges(masks if row is None else masks[row])
            # Lines along the border of the picture would be cut in half, or covered by its frame.
            style: dict[str, Any] = {
                "label": kind,
                "capstyle": "projecting",
                "clip_on": False,
                "zorder": 3,
            }
            outline = LineCollection(edges, **style | _OUTLINES[kind])
            self.outlines_[kind].append(ax.add_collection(outline, autolim=False))

    def _add_legend(self, ax: Axes, **place: Any) -> None:
        style: dict[str, Any] = {
            "ncols": 2,
            "frameon": False,
            "fontsize": "small",
            "handlelength": 1.2,
        }
        ax.legend(**style | place)


def _edges(mask: NDArray[np.bool_]) -> list[Any]:
    """List the sides of pixels where a mask begins or ends, in coordinates of ``imshow``.

    A contour would cut corners, and stay open where the mask reaches the border.
    """
    padded = np.pad(mask, 1)
    rows, columns = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    x, y = columns - 0.5, rows - 0.5
    upright = np.stack([x, y, x, y + 1], axis=1)
    rows, columns = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    x, y = columns - 0.5, rows - 0.5
    level = np.stack([x, y, x + 1, y], axis=1)
    return list(np.concatenate([upright, level]).reshape(-1, 2, 2))


def _check_number(n_images: int) -> None:
    if n_images > _MAX_IMAGES:
        raise ValueError(
            f"There are {n_images} images, of which at most {_MAX_IMAGES} fit into a figure. "
            f"Choose some, such as X[:{_MAX_IMAGES}]."
        )


def _check_shapes(images: tuple[int, ...], maps: tuple[int, ...]) -> None:
    if len(images) == 3:
        raise ValueError(
            f"images has shape {images}, of dim 3. Images are an array of shape (n_samples, "
            "channels, height, width): for gray ones pass images[:, np.newaxis]."
        )
    if len(images) not in (2, 4):
        raise ValueError(
            "images must be an array of shape (n_samples, channels, height, width), or a table "
            f"of shape (n_samples, n_features), got shape {images}."
        )
    wanted = images if len(images) == 2 else (images[0], *images[2:])
    if maps == wanted:
        return
    if len(images) == 4 and maps == images[:3]:
        raise ValueError(
            f"images has shape {images}, with the channels last. Images are (n_samples, "
            "channels, height, width): pass np.moveaxis(images, -1, 1)."
        )
    raise ValueError(f"maps has shape {maps}, but images of shape {images} ask for {wanted}.")


def _check_images(
    images: ArrayLike | None, shape: tuple[int, ...], name: str
) -> NDArray[Any] | None:
    if images is None:
        return None
    if np.shape(images) != shape:
        raise ValueError(f"{name} has shape {np.shape(images)}, but images has {shape}.")
    checked: NDArray[Any] = check_array(images, ensure_2d=False, allow_nd=True, input_name=name)
    return checked


def _check_masks(
    masks: ArrayLike | None, shape: tuple[int, ...], name: str
) -> NDArray[np.bool_] | None:
    if masks is None:
        return None
    if np.shape(masks) != shape:
        raise ValueError(f"{name} has shape {np.shape(masks)}, but maps has {shape}.")
    return np.asarray(masks).astype(bool)


def _check_value_range(
    value_range: tuple[float, float] | None, maps: NDArray[np.float64]
) -> tuple[float, float]:
    if value_range is None:
        return float(maps.min()), float(maps.max())
    ends = np.asarray(value_range, dtype=np.float64)
    # A range of one value is that of a detector whose maps are constant: not the user's fault.
    if ends.shape != (2,) or not np.isfinite(ends).all() or ends[0] > ends[1]:
        raise ValueError(f"value_range must be two numbers (low, high), got {value_range!r}.")
    return float(ends[0]), float(ends[1])


def _check_feature_names(names: Any, X: Any, n_features: int) -> list[str] | None:
    names = getattr(X, "columns", None) if names is None else names
    if names is None:
        return None
    if len(names) != n_features:
        raise ValueError(f"There are {len(names)} feature_names for {n_features} features.")
    return [str(name) for name in names]
