"""Pictures of anomaly maps, which show the place of an anomaly in an image or a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d.display._drawing import as_pictures, import_pyplot, new_axes
from sklearn_g2d.display._overlays import Painter, file_names, write_png
from sklearn_g2d.utils.inputs import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.image import AxesImage

_MAX_IMAGES = 20
# More names would overlap.
_MAX_FEATURE_NAMES = 60
_PANEL_WIDTH = 1.9  # inches

# The true outline is drawn first. It is so wide that it can be seen where both outlines agree.
_OUTLINES: dict[str, dict[str, Any]] = {
    "true": {"color": "deepskyblue", "linewidth": 4.0},
    "predicted": {"color": "red", "linewidth": 1.5},
}


@dataclass(kw_only=True, eq=False, repr=False)
class AnomalyMapDisplay:  # numpydoc ignore=PR02
    """Anomaly maps of images, or of the rows of a table.

    Each image has a row of panels: the image, the inpainted image, the map over the image,
    and the image with the outlines of its masks. All images share one range of brightness,
    and all maps share one colour scale, so that they can be compared. A table is one heat map
    of rows and features. Use `from_estimator` or `from_predictions` to make one, and
    `save_overlays` to write files of many images.

    Parameters
    ----------
    maps : ndarray of shape (n_samples, height, width) or (n_samples, n_features)
        Values of ``anomaly_map``, **higher = more anomalous**.
    value_range : tuple of float
        Values at the ends of the colour scale.
    images : ndarray of shape (n_samples, channels, height, width), default=None
        Images of the maps; None for a table. Three channels are drawn in colour; for other
        numbers the mean is drawn in gray.
    inpainted, predicted_masks, masks, feature_names, name : as in `from_predictions`
        Masks must be arrays of bool.

    Attributes
    ----------
    pictures_ : dict of list of AxesImage
        The pictures "image", "inpainted" and "map", with one entry for each image. A table has
        one "map".
    outlines_ : dict of list of LineCollection
        Outlines of the masks "predicted" and "true", with one entry for each image.
    colorbar_ : matplotlib Colorbar of all maps
    axes_ : ndarray of Axes of shape (n_samples, n_panels), for a table (1, 1)
    ax_, figure_ : matplotlib Axes and Figure
        The heat map, or an invisible frame around the panels, and the figure.

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

    maps: NDArray[np.float64]
    value_range: tuple[float, float]
    images: NDArray[Any] | None = None
    inpainted: NDArray[Any] | None = None
    predicted_masks: NDArray[np.bool_] | None = None
    masks: NDArray[np.bool_] | None = None
    feature_names: Sequence[str] | None = None
    name: str | None = None

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
        """Plot the anomaly maps of a fitted detector.

        Parameters
        ----------
        estimator : AVIDDetector, PatchDetector or FixedCameraDetector
            A fitted detector with ``anomaly_map`` and ``map_range_``. If it has ``inpaint``,
            inpainted images are drawn, too, and if it has ``predict_mask``, the outlines of masks.
        X : array-like of shape (n_samples, channels, height, width) or (n_samples, n_features)
            At most 20 images, or rows of a table.
        masks : array-like of the shape of the maps, default=None
            True masks: not 0 where an image is anomalous. None draws no outlines of them.
        value_range : tuple of float, default=None
            Values at the ends of the colour scale; None means the estimator's
            ``map_range_``, so that the colours of different plots can be compared.
        feature_names, name, ax, **kwargs : as in `from_predictions`
            The default `name` is the name of the estimator's class.

        Returns
        -------
        AnomalyMapDisplay

        Raises
        ------
        NotFittedError, TypeError
            If the detector is not fitted, or has no maps.
        ImportError, ValueError
            As in `from_predictions`.
        """
        # Raise an error about a missing matplotlib before a long computation.
        import_pyplot()
        _check_has_maps(estimator)
        check_is_fitted(estimator, "map_range_")
        shape = np.shape(X)
        # Rows of pixels are images if the detector knows their shape.
        image_shape = shape[1:] if len(shape) == 4 else getattr(estimator, "image_shape_", None)
        images: Any = X
        inpainted: NDArray[Any] | None = None
        if image_shape is not None:
            _check_number(shape[0])
            images = np.reshape(np.asarray(X), (-1, *image_shape))
            if hasattr(estimator, "inpaint"):
                inpainted = np.reshape(estimator.inpaint(X), images.shape)
        # Detectors of clips mark no places.
        marks = hasattr(estimator, "predict_mask")
        return cls.from_predictions(
            images,
            estimator.anomaly_map(X),
            inpainted=inpainted,
            predicted_masks=estimator.predict_mask(X) if marks else None,
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
            At most 20 images of any range; or a table, whose values are not drawn.
        maps : array-like of shape (n_samples, height, width) or (n_samples, n_features)
            Values of ``anomaly_map``, higher = more anomalous.
        inpainted : array-like of the shape of `images`, default=None
            The images that the inpainter returns. None draws no such panels; for a table it is
            ignored.
        predicted_masks : array-like of the shape of `maps`, default=None
            Predicted masks: not 0 where the detector finds an anomaly. None draws no outlines of
            them.
        masks : array-like of the shape of `maps`, default=None
            True masks: not 0 where an image is anomalous. None draws no outlines of them.
        value_range : tuple of float, default=None
            Values at the ends of the colour scale; None means the smallest and the largest value of
            all maps.
        feature_names : sequence of str, default=None
            Names of the columns of a table; None takes them from a data frame.
        name : str, default=None
            Title of the plot.
        ax, **kwargs : as in `plot`

        Returns
        -------
        AnomalyMapDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If the shapes disagree, a value is not finite, `value_range` is not two ascending
            numbers, or there are more than 20 images.
        """
        shape = np.shape(images)
        checked_maps: NDArray[np.float64] = check_array(
            maps, dtype=np.float64, ensure_2d=False, allow_nd=True, input_name="maps"
        )
        _check_shapes(shape, checked_maps.shape)
        parts: dict[str, Any] = {}
        if len(shape) == 2:
            names = getattr(images, "columns", None) if feature_names is None else feature_names
            if names is not None and len(names) != shape[1]:
                raise ValueError(f"There are {len(names)} feature_names for {shape[1]} features.")
            parts["feature_names"] = names if names is None else [str(name) for name in names]
        else:
            _check_number(shape[0])
            for part, values in {"images": images, "inpainted": inpainted}.items():
                if values is not None:
                    _check_shape(part, values, "images", shape)
                    parts[part] = check_array(
                        values, ensure_2d=False, allow_nd=True, input_name=part
                    )
        for part, values in {"predicted_masks": predicted_masks, "masks": masks}.items():
            if values is not None:
                _check_shape(part, values, "maps", checked_maps.shape)
                parts[part] = np.asarray(values).astype(bool)
        ends = _check_value_range(value_range, checked_maps)
        return cls(maps=checked_maps, value_range=ends, name=name, **parts).plot(ax=ax, **kwargs)

    @staticmethod
    def save_overlays(
        estimator: Any,
        X: ArrayLike,
        folder: str | PathLike[str],
        names: Sequence[Any],
        *,
        masks: ArrayLike | None = None,
        value_range: tuple[float, float] | None = None,
        cmap: str | Colormap = "viridis",
        alpha: float = 0.6,
    ) -> list[Path]:
        """Write each image, with its anomaly map over it, to a PNG file.

        The map is transparent where the image is normal. Colours have the same meaning in all
        files, also in files of other calls, so that thousands of images can be written in batches.

        Parameters
        ----------
        estimator : AVIDDetector or PatchDetector
            A fitted detector, or another object with ``anomaly_map`` and, unless `value_range` is
            given, ``map_range_``.
        X : array-like of shape (n_samples, channels, height, width)
            Images, or rows of pixels if the detector knows their shape. Bytes are drawn without
            scaling, and an image of other numbers from its lowest to its highest value. Three
            channels are drawn in colour; for other numbers the mean is drawn in gray.
        folder : str or path-like
            Folder of the files; it is made if it does not exist. Files of the same names are
            replaced.
        names : sequence of str or path-like
            A name for each image, such as the ``paths`` of `load_images`. "good/7.jpg" is written
            to "good_7.jpg.png": a name does not depend on other images.
        masks : array-like of shape (n_samples, height, width), default=None
            Masks, for example of true anomalies, with values that are not 0 inside the outlines.
            None draws no outlines.
        value_range : tuple of float, default=None
            Values at the ends of the colour scale; None means the estimator's ``map_range_``.
            The lower half of the scale is transparent.
        cmap : str or Colormap of matplotlib, default="viridis"
            The colour scale. Most colour-blind readers can read the default.
        alpha : float, default=0.6
            Opacity of the map at the upper end of the scale, from 0 to 1.

        Returns
        -------
        list of pathlib.Path
            The files that were written, one for each image.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        NotFittedError
            If the detector is not fitted.
        OSError
            If a file cannot be written.
        TypeError
            If the estimator has no ``anomaly_map``.
        ValueError
            If X holds no images, the number of names or masks differs from that of images, two
            names lead to the same file, or `value_range` or `alpha` is out of range.

        Examples
        --------
        >>> from sklearn.utils import gen_batches
        >>> from sklearn_g2d.datasets import load_images
        >>> new = load_images("parts/new", size=256)  # doctest: +SKIP
        >>> for rows in gen_batches(len(new.paths), 100):  # doctest: +SKIP
        ...     AnomalyMapDisplay.save_overlays(
        ...         detector, new.images[rows], "overlays", new.paths[rows]
        ...     )
        """
        plt = import_pyplot()
        _check_has_maps(estimator)
        if value_range is None:
            check_is_fitted(estimator, "map_range_")
            value_range = estimator.map_range_
        ends = _check_value_range(value_range, np.empty(0))
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha must be a number from 0 to 1, got {alpha!r}.")
        images = np.asarray(plain(X))
        image_shape = getattr(estimator, "image_shape_", None)
        if images.ndim == 2 and image_shape is not None:
            images = images.reshape(-1, *image_shape)
        if images.ndim != 4:
            hint = (
                "gray images pass X[:, np.newaxis]"
                if images.ndim == 3
                else "a table use from_estimator"
            )
            raise ValueError(
                "Overlays need images, an array of shape (n_samples, channels, height, width), got "
                f"shape {images.shape}. For {hint}."
            )
        if len(names) != len(images):
            raise ValueError(f"There are {len(names)} names for {len(images)} images.")
        paths = [Path(folder, name) for name in file_names(names)]
        # Check everything before the detector computes maps, which takes long.
        outlined = [None] * len(images) if masks is None else np.asarray(masks)
        shape = len(images), *images.shape[2:]
        if masks is not None and np.shape(masks) != shape:
            raise ValueError(f"masks has shape {np.shape(masks)}, but X has maps of shape {shape}.")
        maps: NDArray[np.float64] = check_array(
            estimator.anomaly_map(X),
            dtype=np.float64,
            ensure_2d=False,
            allow_nd=True,
            input_name="maps",
        )
        _check_shapes(images.shape, maps.shape)
        colors = plt.get_cmap(cmap)(np.linspace(0.0, 1.0, 256))[:, :3]
        color_of_outlines = plt.matplotlib.colors.to_rgb(_OUTLINES["true"]["color"])
        painter = Painter(colors, ends, alpha, color_of_outlines)
        Path(folder).mkdir(parents=True, exist_ok=True)
        for path, image, anomaly_map, mask in zip(paths, images, maps, outlined, strict=True):
            write_png(path, painter.paint(image, anomaly_map, mask))
        return paths

    def plot(self, ax: Axes | None = None, *, alpha: float | None = None, **kwargs: Any) -> Self:
        """Draw the maps.

        Parameters
        ----------
        ax : matplotlib Axes, default=None, which makes a figure
            Panels of images divide its area. It must be part of a grid, as the axes of
            ``plt.subplots`` are.
        alpha : float, default=None
            Opacity of a map, from 0 to 1; None means 0.6 over images and 1 in a table.
        **kwargs : passed to ``Axes.imshow`` for each map

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there are images to draw, and `ax` is not part of a grid.
        """
        # All maps share this object, so that a user who changes a limit changes it for all.
        norm = import_pyplot().Normalize(*self.value_range)
        style: dict[str, Any] = {"cmap": "viridis", "norm": norm, "alpha": alpha} | kwargs
        self.pictures_: dict[str, list[AxesImage]] = {}
        self.outlines_: dict[str, list[Any]] = {kind: [] for kind in self._kinds_of_masks()}
        if self.images is None:
            aspect = 20.0
            self._plot_table(ax, style)
        else:
            # With this aspect the bar has the same width beside many panels as beside one.
            n_images, _, height, width = self.images.shape
            aspect = n_images * height / width / 0.08
            self._plot_images(self.images, ax, style | ({"alpha": 0.6} if alpha is None else {}))
        # Pointed ends of the bar show that some values are outside of the scale.
        low, high = self.value_range
        clipped = 2 * bool(self.maps.max() > high) + bool(self.maps.min() < low)
        self.colorbar_ = self.figure_.colorbar(
            self.pictures_["map"][0],
            ax=self.axes_.ravel().tolist(),
            label="higher = more anomalous",
            extend=("neither", "min", "max", "both")[clipped],
            extendfrac=1.0 / aspect,
            aspect=aspect,
        )
        return self

    def _plot_images(self, images: NDArray[Any], ax: Axes | None, style: dict[str, Any]) -> None:
        shown = {"image": images}
        if self.inpainted is not None:
            shown["inpainted"] = self.inpainted
        pictures = dict(zip(shown, as_pictures(np.stack(list(shown.values()))), strict=True))
        # Under a map the image is gray, because its colours would mix with those of the map.
        gray = pictures["image"]
        if gray.ndim == 4:
            gray = gray.mean(axis=-1)
        # It is pale like the background of the colour bar, so that colours look the same on both.
        gray = 0.5 + 0.5 * gray
        kinds = list(self.outlines_)
        panels = {**pictures, "map": gray} | ({"masks": pictures["image"]} if kinds else {})
        n_images, _, height, width = images.shape
        # The figure is as high as the panels and the lines of text: titles, name and legend.
        lines = 1 + (self.name is not None) + (len(kinds) > 1)
        panels_height = _PANEL_WIDTH * height / width * n_images
        size = (_PANEL_WIDTH * len(panels) + 1.0, panels_height + 0.25 * lines)
        if ax is not None and ax.get_subplotspec() is None:
            raise ValueError(
                "Panels of images need an ax that is part of a grid, as the axes of plt.subplots "
                "are. Leave ax out to make a new figure."
            )
        self.ax_, self.figure_ = new_axes(ax, figsize=size, layout="constrained")
        self.ax_.set_axis_off()
        spec: Any = self.ax_.get_subplotspec()
        self.axes_ = spec.subgridspec(n_images, len(panels)).subplots(squeeze=False)
        for row, axes in enumerate(self.axes_):
            for panel, panel_ax in zip(panels, axes, strict=True):
                panel_ax.set(xticks=[], yticks=[])
                picture = panel_ax.imshow(panels[panel][row], cmap="gray", vmin=0.0, vmax=1.0)
                if panel == "map":
                    picture = panel_ax.imshow(self.maps[row], **style)
                if panel == "masks":
                    self._outline(panel_ax, row)
                else:
                    self.pictures_.setdefault(panel, []).append(picture)
        one_kind = f"{kinds[0]} mask" if len(kinds) == 1 else "masks"
        titles = {"map": "anomaly map", "masks": one_kind}
        for panel, panel_ax in zip(panels, self.axes_[0], strict=True):
            panel_ax.set_title(titles.get(panel, panel), fontsize="medium")
        if len(kinds) > 1:
            self._add_legend(self.axes_[-1, -1], loc="upper right", bbox_to_anchor=(1.0, 0.0))
        if self.name is not None:
            # Add the name to the title of the first panel, one line higher. A title of the figure
            # would overlap with panel titles in some layouts.
            self.axes_[0, 0].set_title(f"{self.name}\n", loc="left", fontweight="bold")

    def _plot_table(self, ax: Axes | None, style: dict[str, Any]) -> None:
        from matplotlib.ticker import MaxNLocator

        n_rows, n_features = self.maps.shape
        size = (np.clip(2.0 + 0.3 * n_features, 5, 16), np.clip(1.5 + 0.25 * n_rows, 3, 10))
        self.ax_, self.figure_ = new_axes(ax, figsize=size, layout="constrained")
        self.axes_ = np.array([[self.ax_]])
        self.pictures_ = {"map": [self.ax_.imshow(self.maps, **{"aspect": "auto", **style})]}
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
        # The order is that of drawing: predicted outlines are on top.
        masks = {"true": self.masks, "predicted": self.predicted_masks}
        return {kind: mask for kind, mask in masks.items() if mask is not None}

    def _outline(self, ax: Axes, row: int | None = None) -> None:
        from matplotlib.collections import LineCollection

        # Without these settings, lines along the border of the picture would be cut in half, or
        # covered by its frame.
        style: dict[str, Any] = {"capstyle": "projecting", "clip_on": False, "zorder": 3}
        for kind, masks in self._kinds_of_masks().items():
            edges = _edges(masks if row is None else masks[row])
            outline = LineCollection(edges, label=kind, **style, **_OUTLINES[kind])
            self.outlines_[kind].append(ax.add_collection(outline, autolim=False))

    def _add_legend(self, ax: Axes, **place: Any) -> None:
        ax.legend(ncols=2, frameon=False, fontsize="small", handlelength=1.2, **place)


def _edges(mask: NDArray[np.bool_]) -> list[Any]:
    """List the sides of pixels where a mask begins or ends, in coordinates of ``imshow``.

    A contour line would cut corners, and would be open where the mask reaches the border.
    """
    padded = np.pad(mask, 1)
    y, x = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    upright = np.stack([x, y, x, y + 1], axis=1)
    y, x = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    level = np.stack([x, y, x + 1, y], axis=1)
    return list(np.concatenate([upright, level]).reshape(-1, 2, 2) - 0.5)


def _check_number(n_images: int) -> None:
    if n_images > _MAX_IMAGES:
        raise ValueError(
            f"There are {n_images} images, but at most {_MAX_IMAGES} fit into a figure. "
            f"Choose some, such as X[:{_MAX_IMAGES}]."
        )


def _check_shapes(images: tuple[int, ...], maps: tuple[int, ...]) -> None:
    if len(images) not in (2, 4):
        hint = "; for gray images pass images[:, np.newaxis]" if len(images) == 3 else ""
        raise ValueError(
            "images must be an array of shape (n_samples, channels, height, width), or a table "
            f"of shape (n_samples, n_features), got shape {images}{hint}."
        )
    wanted = images if len(images) == 2 else (images[0], *images[2:])
    if maps != wanted:
        last = len(images) == 4 and maps == images[:3]
        hint = " Are the channels last? Then pass np.moveaxis(images, -1, 1)." if last else ""
        raise ValueError(
            f"maps has shape {maps}, but images of shape {images} need maps of {wanted}.{hint}"
        )


def _check_shape(name: str, values: Any, model: str, shape: tuple[int, ...]) -> None:
    if np.shape(values) != shape:
        raise ValueError(f"{name} has shape {np.shape(values)}, but {model} has {shape}.")


def _check_has_maps(estimator: Any) -> None:
    if not hasattr(estimator, "anomaly_map"):
        raise TypeError(
            f"{type(estimator).__name__} has no maps. Pass a detector that has the method "
            "anomaly_map, such as PatchDetector."
        )


def _check_value_range(value_range: Any, maps: NDArray[np.float64]) -> tuple[float, float]:
    if value_range is None:
        return float(maps.min()), float(maps.max())
    ends = np.asarray(value_range, dtype=np.float64)
    # Two equal ends are allowed, because a detector with constant maps has such a range.
    if ends.shape != (2,) or not np.isfinite(ends).all() or ends[0] > ends[1]:
        raise ValueError(f"value_range must be two numbers (low, high), got {value_range!r}.")
    return float(ends[0]), float(ends[1])
