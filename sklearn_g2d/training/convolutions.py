"""What convolutional networks share: their layout in memory, and their initial weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

# Of images in memory: convolutions run fastest so on most processors (docs/results).
LAYOUT = torch.channels_last

# How convolutions are built before they have memory; `initialize` gives it to them.
UNBUILT: dict[str, Any] = {"device": "meta", "dtype": torch.float32}


@torch.no_grad()
def initialize(network: nn.Module, rng: torch.Generator | None) -> None:
    """Give convolutions memory, and weights uniform in +-1/sqrt(fan in).

    They are built without either (device "meta"), for PyTorch would draw from its global
    generator. Without a generator they are left like that, to be loaded.
    """
    if rng is None:
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to_empty(device=rng.device)
            fan_in = module.in_channels * math.prod(module.kernel_size)
            # Every output of a transposed convolution meets only a part of its kernel.
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
