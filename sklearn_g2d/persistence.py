"""Fitted detectors in files that cannot execute code: arrays as safetensors, the rest as JSON.

Saving walks the fitted state; loading builds nothing but instances of the classes listed in
`_CLASSES`, whose names a file can merely choose from.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterable
from typing import Any

import numpy as np
import safetensors
import scipy
import sklearn
import torch
from numpy.typing import NDArray
from safetensors.numpy import save as to_safetensors
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d._avid import AVIDDetector
from sklearn_g2d._canvas import Canvas
from sklearn_g2d._classifiers import NetworkClassifiers, SklearnClassifiers
from sklearn_g2d._conditional import ConditionalScaler
from sklearn_g2d._detector import BaseDetector
from sklearn_g2d._files import replace
from sklearn_g2d._g2d import G2DOutlierDetector
from sklearn_g2d._generator import IrregularityGenerator
from sklearn_g2d._players import ImagePlayers, TablePlayers
from sklearn_g2d._representation import Representation
from sklearn_g2d._version import __version__
from sklearn_g2d.errors import ModelFileError, UnsupportedObjectError
from sklearn_g2d.features import NeighborProfile, OrientedGradients, RemainderPCA, SquashingScaler
from sklearn_g2d.features._scaling import RangeScaler
from sklearn_g2d.networks.ensemble import EnsembleMLP, StorableModule
from sklearn_g2d.networks.images import ConvGenerator, ConvNetwork
from sklearn_g2d.networks.inpainting import CellDetector, CellInpainter, PatchDetector, UNet
from sklearn_g2d.networks.tables import TableGenerator
from sklearn_g2d.training.regions import ImageRegions, TableRegions
from sklearn_g2d.training.snapshots import Snapshot

__all__ = ["load", "save"]

# Of the files. It rises with every change to what fitted detectors consist of, and then the
# files of before are either converted in `load` or missing from the readable ones.
_FORMAT = 1
_READABLE_FORMATS = (1,)

_DETECTORS: dict[str, type[BaseDetector]] = {
    cls.__name__: cls for cls in (AVIDDetector, G2DOutlierDetector)
}

# What a file may hold instances of: this package's classes, and those of scikit-learn whose state
# is nothing but arrays and numbers that only Python code reads. (Compiled trees trust theirs.)
_CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        Canvas,
        CellDetector,
        CellInpainter,
        ConditionalScaler,
        ConvGenerator,
        ConvNetwork,
        EnsembleMLP,
        ImagePlayers,
        ImageRegions,
        IrregularityGenerator,
        LogisticRegression,
        MinMaxScaler,
        NearestNeighbors,
        NeighborProfile,
        NetworkClassifiers,
        OrientedGradients,
        PatchDetector,
        PCA,
        RangeScaler,
        RemainderPCA,
        Representation,
        RobustScaler,
        SklearnClassifiers,
        Snapshot,
        SquashingScaler,
        StandardScaler,
        TableGenerator,
        TablePlayers,
        TableRegions,
        UNet,
    )
}
_NAMES = {cls: name for name, cls in _CLASSES.items()}

# What to do about a parameter that cannot be stored.
_REMEDIES = {
    "features": (
        'Put it in front of the detector yourself, fit that with features="raw", and save the '
        "two apart."
    ),
    "classifier": (
        "Take a LogisticRegression or the default network, which can be stored, or keep the "
        "detector by joblib.dump, whose files must come from where you trust."
    ),
    "snapshot_selection": (
        "Only fit needs it: call set_params(snapshot_selection=None) before you save."
    ),
}
_OTHER_REMEDY = (
    "Keep the detector by joblib.dump instead, whose files must come from where you trust."
)

_DTYPES = "?bBhHiIlLqQefd"  # NumPy's codes of what safetensors hold


def save(detector: BaseDetector, path: str | os.PathLike[str]) -> None:
    """Write a fitted detector to a file that holds numbers and names, never code.

    The file is complete or not there at all: whatever happens while saving, a former one at
    `path` stays whole. Callbacks are not saved.

    Parameters
    ----------
    detector : G2DOutlierDetector or AVIDDetector
        Fitted.
    path : str or path-like
        Where to; usually it ends in ".safetensors". An existing file is replaced.

    Raises
    ------
    NotFittedError
        Before `fit`.
    UnsupportedObjectError
        If the detector holds an object of yours (a classifier, transformer or function) that
        could not be rebuilt without executing code.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_wine
    >>> from sklearn_g2d import G2DOutlierDetector
    >>> from sklearn_g2d.persistence import load, save
    >>> X = load_wine().data
    >>> detector = G2DOutlierDetector(max_steps=0, n_estimators=1, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "wine.safetensors")
    ...     save(detector, path)
    ...     loaded = load(path)
    >>> bool((loaded.score_samples(X) == detector.score_samples(X)).all())
    True
    """
    check_is_fitted(detector)
    name = type(detector).__name__
    if _DETECTORS.get(name) is not type(detector):
        raise UnsupportedObjectError(
            f"{name} is not a class of this package, so that no file could name it. {_OTHER_REMEDY}"
        )
    encoder = _Encoder()
    parameters = detector.get_params(deep=False)
    stored = {key: encoder.encode(value, key) for key, value in parameters.items()}
    left_out = {*parameters, "feature_names_in_", "_skl_callbacks"}
    state = {
        key: encoder.encode(value, key)
        for key, value in vars(detector).items()
        if key not in left_out
    }
    names = getattr(detector, "feature_names_in_", None)
    versions = {
        "sklearn_g2d": __version__,
        "scikit-learn": sklearn.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
    }
    metadata = {
        "format": "sklearn_g2d",
        "format_version": str(_FORMAT),
        "class": name,
        "versions": json.dumps(versions),
        "parameters": json.dumps(stored),
        "feature_names": json.dumps(None if names is None else names.tolist()),
        "state": json.dumps(state),
    }
    _write(path, metadata, encoder.arrays)


def load(path: str | os.PathLike[str]) -> G2DOutlierDetector | AVIDDetector:
    """Read a detector that `save` has written.

    Nothing in a file is executed, whoever wrote it. Scores of the detector equal those of the
    saved one in every bit, on the same kind of machine and with the same versions of libraries.

    Parameters
    ----------
    path : str or path-like
        The file.

    Returns
    -------
    G2DOutlierDetector or AVIDDetector
        Whichever was saved, fitted.

    Raises
    ------
    OSError
        If the file cannot be read.
    ModelFileError
        If it is no file of a detector, is damaged, or comes from a version of this package
        whose files this version does not read; the error says which.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_wine
    >>> from sklearn_g2d import G2DOutlierDetector
    >>> from sklearn_g2d.persistence import load
    >>> detector = G2DOutlierDetector(max_steps=0, n_estimators=1, random_state=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "wine.safetensors")
    ...     detector.fit(load_wine().data).save(path)
    ...     type(load(path)).__name__
    'G2DOutlierDetector'
    """
    metadata, arrays = _read(path)
    versions = json.loads(metadata["versions"])
    written_by = f"sklearn_g2d {versions['sklearn_g2d']}"
    try:
        decoder = _Decoder(arrays)
        parameters = json.loads(metadata["parameters"])
        state = json.loads(metadata["state"])
        detector = _DETECTORS[metadata["class"]](
            **{name: decoder.decode(node) for name, node in parameters.items()}
        )
        detector.__dict__.update({name: decoder.decode(node) for name, node in state.items()})
        names = json.loads(metadata["feature_names"])
        if names is not None:
            detector.feature_names_in_ = np.asarray(names, dtype=object)
        check_is_fitted(detector)
    except Exception as error:  # whatever an odd file can bring about
        raise ModelFileError(
            f"{os.fspath(path)!r} is whole, but sklearn_g2d {__version__} cannot rebuild what it "
            f"holds ({type(error).__name__}: {error}). It was written by {written_by}: load it "
            "with that version, or fit and save again."
        ) from error
    return detector


class _Encoder:
    """Python objects to JSON, whose arrays are kept aside.

    Attributes
    ----------
    arrays : dict of ndarray
        Everything that goes into tensors, by name.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}
        # By identity; the arrays are kept, too, lest another one take their place in memory.
        self._known: dict[int, tuple[NDArray[Any], dict[str, Any]]] = {}

    def encode(self, value: Any, place: str) -> Any:
        """Turn an object into what `json.dumps` takes; `place` says where it was found."""
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            # JSON has neither infinity nor NaN.
            return value if math.isfinite(value) else {"kind": "float", "value": str(value)}
        if type(value) is list:
            return [self.encode(item, f"{place}[{i}]") for i, item in enumerate(value)]
        if type(value) is tuple:
            return {"kind": "tuple", "items": self.encode(list(value), place)}
        if type(value) is dict and all(type(key) is str for key in value):
            return {"kind": "dict", "items": self._items(value, place)}
        if isinstance(value, np.ndarray):
            return self._array(value, place)
        if isinstance(value, np.generic):
            return {"kind": "scalar", "array": self._array(np.asarray(value), place)}
        if type(value) is np.random.RandomState:
            state = value.get_state(legacy=False)
            return {"kind": "random_state", "state": self.encode(state, place)}
        if type(value) is NearestNeighbors:
            # Its tree is rebuilt: compiled code would trust a stored one.
            state = {"parameters": value.get_params(), "rows": value._fit_X}
        elif type(value) in _NAMES:
            state = value.__getstate__() or {}
        else:
            raise _unsupported(value, place)
        return {
            "kind": "object",
            "class": _NAMES[type(value)],
            "state": self._items(state, place),
        }

    def _items(self, values: dict[str, Any], place: str) -> dict[str, Any]:
        return {key: self.encode(value, f"{place}.{key}") for key, value in values.items()}

    def _array(self, array: NDArray[Any], place: str) -> dict[str, Any]:
        if id(array) in self._known:
            return self._known[id(array)][1]
        if array.dtype.kind in "OU" and all(isinstance(item, str) for item in array.flat):
            return {
                "kind": "strings",
                "items": array.ravel().tolist(),
                "shape": list(array.shape),
                "object": array.dtype.kind == "O",
            }
        if array.dtype.char not in _DTYPES:
            raise _unsupported(array, place)
        name = place
        while name in self.arrays:
            name += "'"
        # The order in memory decides on the order of sums, and so on the last digits.
        transposed = array.flags.f_contiguous and not array.flags.c_contiguous
        plain = np.asarray(array).astype(array.dtype.newbyteorder("="))
        self.arrays[name] = np.array(plain.T if transposed else plain, order="C")
        node = {"kind": "array", "name": name} | ({"transposed": True} if transposed else {})
        self._known[id(array)] = array, node
        return node


class _Decoder:
    """What `_Encoder` made, back to Python objects.

    Parameters
    ----------
    arrays : dict of ndarray
        The tensors of a file.
    """

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._arrays = arrays

    def decode(self, node: Any) -> Any:
        """Rebuild an object; odd nodes raise whatever they bring about."""
        if isinstance(node, list):
            return [self.decode(item) for item in node]
        if not isinstance(node, dict):
            return node
        match node["kind"]:
            case "float":
                return float(node["value"])
            case "tuple":
                return tuple(self.decode(item) for item in node["items"])
            case "dict":
                return self._items(node["items"])
            case "array":
                array = self._arrays[node["name"]]
                return array.T if node.get("transposed") else array
            case "scalar":
                return self.decode(node["array"])[()]
            case "strings":
                dtype = object if node["object"] else str
                return np.array(node["items"], dtype=dtype).reshape(node["shape"])
            case "random_state":
                random_state = np.random.RandomState()
                random_state.set_state(self.decode(node["state"]))
                return random_state
            case "object":
                return _rebuild(_CLASSES[node["class"]], self._items(node["state"]))
            case other:
                raise ValueError(f"there is no kind {other!r}")

    def _items(self, nodes: dict[str, Any]) -> dict[str, Any]:
        return {key: self.decode(node) for key, node in nodes.items()}


def _rebuild(cls: type, state: dict[str, Any]) -> Any:
    """Make an instance of one of `_CLASSES`."""
    if cls is NearestNeighbors:
        return NearestNeighbors(**state["parameters"]).fit(state["rows"])
    if issubclass(cls, StorableModule):
        _check_sizes(state["config"], state["weights"])
    instance: Any = object.__new__(cls)
    if hasattr(instance, "__setstate__"):
        instance.__setstate__(state)
    else:
        vars(instance).update(state)
    return instance


def _check_sizes(config: dict[str, Any], weights: dict[str, NDArray[Any]]) -> None:
    """Refuse networks of more members or layers than the weights can be for."""
    most = 8 * sum(value.size for value in weights.values())  # a side of 8 pixels has a weight

    def check(value: Any) -> None:
        if isinstance(value, list | tuple):
            for item in value:
                check(item)
        elif isinstance(value, int) and value > most:
            raise ValueError(f"a network of size {value} has only {most // 8} weights")

    check(list(config.values()))


def _write(
    path: str | os.PathLike[str], metadata: dict[str, str], arrays: dict[str, NDArray[Any]]
) -> None:
    """Put a file of arrays in place, with a checksum of all that it holds."""
    metadata["sha256"] = _checksum(metadata, arrays)
    replace(path, to_safetensors(arrays, metadata))


def _read(
    path: str | os.PathLike[str], *, kind: str = "sklearn_g2d"
) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """Metadata and arrays of a file, once they are known to be what `_write` has written."""
    shown = repr(os.fspath(path))
    with open(path, "rb"):  # for the system's own words on a missing file or permission
        pass
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != kind:
                raise ModelFileError(f"{shown} is a file of tensors, but not of a detector.")
            _check_format(metadata, shown)
            arrays = {name: np.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except ModelFileError:
        raise
    except Exception as error:  # of safetensors, which has several
        raise ModelFileError(
            f"{shown} is not a file of a detector, or it is damaged ({error}). Copy it again from "
            "where it was saved."
        ) from error
    if metadata.get("sha256") != _checksum(metadata, arrays):
        raise ModelFileError(
            f"{shown} is damaged: its checksum is not that of its contents. Copy it again from "
            "where it was saved."
        )
    return metadata, arrays


def _check_format(metadata: dict[str, str], shown: str) -> None:
    """Raise ModelFileError if another version of the package is needed."""
    version = int(metadata["format_version"])
    written_by = json.loads(metadata["versions"])["sklearn_g2d"]
    if version in _READABLE_FORMATS:
        return
    needed = f">={written_by}" if version > _FORMAT else f"=={written_by}"
    raise ModelFileError(
        f"{shown} was written by sklearn_g2d {written_by} in format {version}; this is "
        f"sklearn_g2d {__version__}, which does not read it. Load it with sklearn_g2d{needed}, "
        "or fit and save again."
    )


def _checksum(metadata: dict[str, str], arrays: dict[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()

    def add(parts: Iterable[str]) -> None:
        digest.update(json.dumps(list(parts)).encode())

    for key in sorted(metadata.keys() - {"sha256"}):
        add((key, metadata[key]))
    for name in sorted(arrays):
        array = arrays[name]
        add((name, array.dtype.name, str(array.shape)))
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _unsupported(value: Any, place: str) -> UnsupportedObjectError:
    what = getattr(value, "__name__", None) or type(value).__name__
    parameter = place.split(".")[0].split("[")[0]
    remedy = _REMEDIES.get(parameter, _OTHER_REMEDY)
    return UnsupportedObjectError(
        f"{place} is {what}, which a file without code cannot hold. {remedy}"
    )
