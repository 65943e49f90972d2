"""Objects as JSON and arrays, and back, without a way to execute code.

Encoding walks an object's state; decoding builds nothing but instances of the classes listed in
`_CLASSES`, whose names a file can merely choose from.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler

from sklearn_g2d.avid._appearance import ConditionalScaler
from sklearn_g2d.avid._masking import ImageRegions, TableRegions
from sklearn_g2d.avid._models import ImagePlayers, TablePlayers
from sklearn_g2d.avid._networks import CellDetector, CellInpainter, PatchDetector, UNet
from sklearn_g2d.avid._preprocessing import Canvas
from sklearn_g2d.errors import UnsupportedObjectError
from sklearn_g2d.features import NeighborProfile, OrientedGradients, RemainderPCA, SquashingScaler
from sklearn_g2d.features._scaling import RangeScaler
from sklearn_g2d.g2d._classifiers import NetworkClassifiers, SklearnClassifiers
from sklearn_g2d.g2d._generator import IrregularityGenerator
from sklearn_g2d.g2d._image_networks import ConvGenerator, ConvNetwork
from sklearn_g2d.g2d._networks import TableGenerator
from sklearn_g2d.g2d._preprocessing import Representation
from sklearn_g2d.g2d._snapshots import Snapshot
from sklearn_g2d.training.ensemble import EnsembleMLP, StorableModule

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
OTHER_REMEDY = (
    "Keep the detector by joblib.dump instead, whose files must come from where you trust."
)

_DTYPES = "?bBhHiIlLqQefd"  # NumPy's codes of what safetensors hold


class Encoder:
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


class Decoder:
    """What `Encoder` made, back to Python objects.

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
                return rebuild(_CLASSES[node["class"]], self._items(node["state"]))
            case other:
                raise ValueError(f"there is no kind {other!r}")

    def _items(self, nodes: dict[str, Any]) -> dict[str, Any]:
        return {key: self.decode(node) for key, node in nodes.items()}


def rebuild(cls: type, state: dict[str, Any]) -> Any:
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


def _unsupported(value: Any, place: str) -> UnsupportedObjectError:
    what = getattr(value, "__name__", None) or type(value).__name__
    parameter = place.split(".")[0].split("[")[0]
    remedy = _REMEDIES.get(parameter, OTHER_REMEDY)
    return UnsupportedObjectError(
        f"{place} is {what}, which a file without code cannot hold. {remedy}"
    )
