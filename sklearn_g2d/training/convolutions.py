"""Memory layout, initial weights and resizing of convolutional networks."""

from __future__ import annotations

import copy
import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sklearn_g2d.training.runtime import deterministic

Network = TypeVar("Network", bound=nn.Module)

# Layout of images in memory. Convolutions are fastest with it on most processors (docs/results).
LAYOUT = torch.channels_last

# Arguments of layers, so that they have no memory until `initialize` is called.
UNBUILT: dict[str, Any] = {"device": "meta", "dtype": torch.float32}


@torch.no_grad()
def initialize(network: nn.Module, rng: torch.Generator | None) -> None:
    """Give layers memory, and weights that are uniform in +-1/sqrt(fan in).

    Layers are built without memory (on the device "meta"), because PyTorch would draw their weights
    from its global random generator. If `rng` is None they stay like that until weights are loaded.
    """
    if rng is None:
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to_empty(device=rng.device)
            fan_in = module.in_channels * math.prod(module.kernel_size)
            # Each output of a transposed convolution depends on a part of the kernel only.
            if isinstance(module, nn.ConvTranspose2d):
                fan_in //= math.prod(module.stride)
            bound = 1 / math.sqrt(fan_in)
            for parameter in module.parameters():
                parameter.uniform_(-bound, bound, generator=rng)
            module.to(memory_format=LAYOUT)  # type: ignore[call-overload]
        elif isinstance(module, nn.Linear):
            module.to_empty(device=rng.device)
            bound = 1 / math.sqrt(module.in_features)
            for parameter in module.parameters():
                parameter.uniform_(-bound, bound, generator=rng)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm2d):
            module.to(rng.device)


def folded(network: Network) -> Network:
    """Return a copy for scoring, with batch norms folded into the convolutions before them."""
    network = copy.deepcopy(network).eval()
    for block in list(network.modules()):
        if isinstance(block, nn.Sequential):
            for i in reversed(range(1, len(block))):
                convolution, norm = block[i - 1], block[i]
                if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    fused = fuse_conv_bn_eval(convolution.double(), norm.double()).float()
                    block[i - 1] = fused.to(memory_format=LAYOUT)  # type: ignore[call-overload]
                    del block[i]
    return network


def doubled(maps: Tensor) -> Tensor:
    """Double height and width of maps (n, channels, h, w), bilinearly."""
    if maps.is_cuda and torch.is_grad_enabled() and deterministic():
        return _doubled(maps)
    return F.interpolate(maps, scale_factor=2, mode="bilinear")


def _doubled(maps: Tensor) -> Tensor:
    """Do the same with slices. CUDA adds their gradients in a fixed order, not those of PyTorch."""
    for axis in (2, 3):
        first, last = maps.narrow(axis, 0, 1), maps.narrow(axis, -1, 1)
        n_others = maps.shape[axis] - 1
        before = torch.cat([first, maps.narrow(axis, 0, n_others)], axis)
        after = torch.cat([maps.narrow(axis, 1, n_others), last], axis)
        nearer = [torch.lerp(maps, other, 0.25) for other in (before, after)]
        maps = torch.stack(nearer, axis + 1).flatten(axis, axis + 1)
    return maps
