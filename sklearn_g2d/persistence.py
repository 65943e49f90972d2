"""Fitted detectors and pipelines in files that run no code, by skops (https://skops.readthedocs.io).

A file is a zip archive that skops can read, too. "schema.json" describes objects as a tree of
nodes, each array has a file of its own, and "sklearn_g2d.json" holds the class and the versions.

A change of the attributes of fitted estimators can make older files load wrongly. With such a
change, raise `FORMAT`, and add to `_UPGRADES`, under the old number, a function that converts the
members of an old file to the next format. `load` applies these functions one after another. If a
conversion is impossible, empty `_UPGRADES`: then `load` names the version that reads the file.
tests/saved holds a file of each format that `load` must read.
"""

from __future__ import annotations

import importlib
import io
import json
import math
import platform
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import scipy
import sklearn
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d._version import __version__
from sklearn_g2d.errors import ModelFileError, UnsupportedObjectError
from sklearn_g2d.utils import files
from sklearn_g2d.utils.files import File
from sklearn_g2d.utils.state import Stored

__all__ = ["load", "save"]

Members = dict[str, bytes]

FORMAT = 1
_UPGRADES: dict[int, Callable[[Members], Members]] = {}

_ABOUT, _SCHEMA = "sklearn_g2d.json", "schema.json"

# Attributes that callbacks set on an estimator.
_OF_CALLBACKS = ("_skl_callbacks", "_callback_fit_ctx", "_parent_callback_ctx")

# These estimators of scikit-learn read their stored numbers only by Python, NumPy and SciPy, which
# check shapes and indices. Trees, neighbours, clusters, one-hot encoders and support vectors are
# missing on purpose: their compiled code does not check stored indices, so that a file could make
# it read or write outside its memory.
_OF_SKLEARN = {
    "compose": "ColumnTransformer",
    "decomposition": "FactorAnalysis FastICA IncrementalPCA PCA TruncatedSVD",
    "discriminant_analysis": "LinearDiscriminantAnalysis QuadraticDiscriminantAnalysis",
    "frozen": "FrozenEstimator",
    "impute": "SimpleImputer",
    "linear_model": "LinearRegression LogisticRegression Ridge",
    "naive_bayes": "BernoulliNB GaussianNB MultinomialNB",
    "pipeline": "FeatureUnion Pipeline",
    "preprocessing": "Binarizer FunctionTransformer MaxAbsScaler MinMaxScaler Normalizer "
    "PolynomialFeatures PowerTransformer QuantileTransformer RobustScaler StandardScaler",
}

_SCALARS = {
    f"numpy.{scalar.__name__}"
    for scalar in np.sctypeDict.values()
    if issubclass(scalar, np.number | np.bool_ | np.str_)
}

# Nodes of skops that build data, and the classes that each may name without the user's trust.
_DATA = {
    "JsonNode": {"builtins.str"},
    "DictNode": {"builtins.dict", "collections.OrderedDict"},
    "ListNode": {"builtins.list"},
    "TupleNode": {"builtins.tuple"},
    "SetNode": {"builtins.set"},
    "SliceNode": {"builtins.slice"},
    "BytesNode": {"builtins.bytes"},
    "TypeNode": {"builtins.str", "builtins.int", "builtins.float", *_SCALARS},
    "DTypeNode": {"numpy.dtype"},
    "NdArrayNode": {"numpy.ndarray", *_SCALARS},
    "RandomStateNode": {"numpy.random.mtrand.RandomState"},
}

# Py_TPFLAGS_HEAPTYPE, a flag that compiled classes do not have.
_PYTHON_CLASS = 1 << 9
# A file may name one array several times, and each use can become a copy in memory. The limit
# keeps the memory in proportion to the size of the file.
_MOST_USES = 8
# The author of a file can choose numbers with equal hashes, which make a dict very slow.
_MOST_NUMBERS = 1000


def save(estimator: BaseEstimator, path: File) -> None:
    """Write a fitted estimator to a file that holds data and names, never code.

    A file is written completely or not at all: if saving fails, an existing file at `path` does
    not change. Callbacks are not saved.

    Parameters
    ----------
    estimator : estimator
        A fitted detector, a fitted Pipeline, or another fitted estimator that skops can hold.
    path : str, path-like or binary file object
        The file, usually with a name that ends in ".skops". An existing file is replaced.

    Raises
    ------
    NotFittedError
        If the estimator is not fitted.
    UnsupportedObjectError
        If the estimator holds an object that no file can hold, such as a lambda or a tensor.
    OSError
        If the system cannot write the file.

    Examples
    --------
    >>> from io import BytesIO
    >>> from sklearn.datasets import load_wine
    >>> from sklearn_g2d import G2DOutlierDetector
    >>> from sklearn_g2d.persistence import save
    >>> save(G2DOutlierDetector(random_state=0).fit(load_wine().data), BytesIO())
    """
    # skops imports all of scikit-learn, which takes .8 s: do it only when it is needed.
    import skops.io

    check_is_fitted(estimator)
    name = type(estimator).__name__
    versions = {"sklearn_g2d": __version__, "python": platform.python_version()}
    versions |= {m.__name__: m.__version__ for m in (np, scipy, sklearn, skops, torch)}
    about = json.dumps({"format": FORMAT, "class": name, "versions": versions})
    try:
        stored = skops.io.dumps(_without_callbacks(estimator, {}))
        content = files.pack({_ABOUT: about.encode(), **_normalize(stored)})
        del stored
        # Read the content once: a file that cannot be read must not be written. Errors of any type
        # may come from skops or from the user's objects.
        names, _ = _audit(files.unpack(content), ())
        skops.io.loads(content, trusted=sorted(names))
    except Exception as error:
        raise UnsupportedObjectError(
            f"{name} holds an object that a file without code cannot hold ({type(error).__name__}: "
            f"{error}). Put functions and classes into a module of yours, or save the estimator by "
            "joblib.dump; load such a file only if you trust its source."
        ) from error
    files.replace(path, content)


def load(path: File, *, trusted: Iterable[str | type] = ()) -> Any:
    """Read an estimator that `save` has written.

    No code in a file runs, except classes and functions that you trust by name. Scores equal those
    of the saved estimator in every bit, on the same kind of machine with the same versions of
    libraries.

    Parameters
    ----------
    path : str, path-like or binary file object
        The file.
    trusted : iterable of str, type or function, default=()
        More classes and functions that the file may name. Their code runs on the contents of the
        file. Always allowed are classes of this package, arrays, Python's containers, and
        estimators of scikit-learn that have no compiled code for reading their state.

    Returns
    -------
    estimator
        The fitted estimator.

    Raises
    ------
    OSError
        If the file cannot be read.
    ModelFileError
        If `save` did not write the file, if it is damaged, if it names a class or function that is
        not trusted, or if this version of the package cannot read its format. The error says which.

    Examples
    --------
    >>> from io import BytesIO
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_g2d.persistence import load, save
    >>> save(StandardScaler().fit([[0.0], [1.0]]), file := BytesIO())
    >>> load(BytesIO(file.getvalue()))
    StandardScaler()
    """
    import skops.io

    known = _names_of(trusted)
    shown = repr(str(path))
    try:
        content = files.read(path)
        archive = files.unpack(content)
        about = json.loads(archive.read(_ABOUT))
        version, written_by = int(about["format"]), str(about["versions"]["sklearn_g2d"])
    except (OSError, MemoryError):
        raise
    # A damaged file causes errors of many types in zipfile and json.
    except Exception as error:
        raise ModelFileError(
            f"{shown} is not a file that sklearn_g2d has saved, or it is damaged ({error}). Copy "
            "it again from where it was saved."
        ) from error
    if not FORMAT - len(_UPGRADES) <= version <= FORMAT:
        needed = f">={written_by}" if version > FORMAT else f"=={written_by}"
        raise ModelFileError(
            f"{shown} was written by sklearn_g2d {written_by} in format {version}; this is "
            f"sklearn_g2d {__version__}, which does not read it. Load it with sklearn_g2d{needed}, "
            "or fit and save again."
        )
    try:
        if version < FORMAT:
            members = {name: archive.read(name) for name in archive.namelist()}
            for number in range(version, FORMAT):
                members = _UPGRADES[number](members)
            content = files.pack(members)
            archive = files.unpack(content)
        names, untrusted = _audit(archive, known)
        if not untrusted:
            estimator = skops.io.loads(content, trusted=sorted(names))
            check_is_fitted(estimator)
            return estimator
    # A file of unknown origin can cause an error of any type.
    except Exception as error:
        raise ModelFileError(
            f"{shown} is whole, but sklearn_g2d {__version__} cannot rebuild what it holds "
            f"({type(error).__name__}: {error}). It was written by sklearn_g2d {written_by}: load "
            "it with that version, or fit and save again."
        ) from error
    listed = ", ".join(f'"{name}"' for name in sorted(untrusted))
    raise ModelFileError(
        f"{shown} names classes or functions that sklearn_g2d does not load unless you ask for it: "
        f"{listed}. Loading runs their code on the contents of the file, and compiled code, such "
        "as that of trees, does not check these. The author of the file can crash this process, or "
        "run code in it if a name means a function that can do so. If you trust the author, call "
        f"sklearn_g2d.persistence.load({shown}, trusted=[{listed}])."
    )


def is_saved(path: Path) -> bool:
    # Returns whether a file looks like one of `save`. Do not open a pipe: reading takes its data.
    if not path.is_file():
        return False
    try:
        with ZipFile(path) as archive:
            return _ABOUT in archive.namelist()
    except (OSError, BadZipFile):
        return False


def _names_of(trusted: Iterable[str | type]) -> list[str]:
    """Return the full names of the classes and functions that a user trusts."""
    if isinstance(trusted, Iterable) and not isinstance(trusted, str | type):
        trusted = list(trusted)
        if all(isinstance(t, str) or hasattr(t, "__qualname__") for t in trusted):
            return [
                t if isinstance(t, str) else f"{t.__module__}.{t.__qualname__}" for t in trusted
            ]
    raise TypeError(
        f"trusted must list names, classes or functions, got {trusted!r}. Load without it: the "
        "error lists the names that the file needs."
    )


def _without_callbacks(value: Any, copies: dict[int, Any]) -> Any:
    """Copy an estimator and those inside it without their callbacks; other objects are shared."""
    # An estimator may occur twice, as a parameter and as a fitted part. `copies` makes it one
    # object in the copy, too.
    if isinstance(value, BaseEstimator):
        if id(value) not in copies:
            copies[id(value)] = copy = object.__new__(type(value))
            for name, attribute in vars(value).items():
                if name not in _OF_CALLBACKS:
                    vars(copy)[name] = _without_callbacks(attribute, copies)
        return copies[id(value)]
    if type(value) in (list, tuple):
        return type(value)(_without_callbacks(item, copies) for item in value)
    if type(value) is dict:
        return {key: _without_callbacks(item, copies) for key, item in value.items()}
    return value


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every node of a schema, in order, and every dict that skops could take for a node."""
    pending = [schema]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += reversed(value)
        elif isinstance(value, dict):
            pending += reversed(value.values())
            # A dict of the user may have a key "__loader__"; then its value is a node, not a text.
            if isinstance(value.get("__loader__"), str):
                yield value


def _normalize(stored: bytes) -> Members:
    """Name members by the order of nodes, because skops names them by addresses in memory.

    An array that occurs several times is stored once. Other objects are written out each time, so
    that no node refers to another node.
    """
    archive = ZipFile(io.BytesIO(stored))
    schema = json.loads(archive.read(_SCHEMA))
    names: dict[str, str] = {}
    uses = Counter[str]()
    members: Members = {}
    for node in _nodes(schema):
        node.pop("__id__", None)
        # A saved memory map is an array like any other.
        if f"{node['__module__']}.{node['__class__']}" == "numpy.memmap":
            node["__class__"] = "ndarray"
        # skops stores only the attributes that Python sees. A compiled object without any would
        # be loaded empty.
        if node["__loader__"] == "ObjectNode" and node["content"].get("content") == "null":
            cls = getattr(importlib.import_module(node["__module__"]), node["__class__"])
            if not cls.__flags__ & _PYTHON_CLASS:
                raise TypeError(f"{cls.__name__} is compiled and hides its state")
        if "file" in node:
            source = node["file"]
            if uses[source] % _MOST_USES == 0:
                names[source] = f"{len(members) + 1}.{source.rpartition('.')[2]}"
                members[names[source]] = archive.read(source)
            uses[source] += 1
            node["file"] = names[source]
            if node["__loader__"] == "NdArrayNode":
                node["__id__"] = int(node["file"].partition(".")[0])
    return {_SCHEMA: json.dumps(schema, separators=(",", ":")).encode(), **members}


def _audit(archive: ZipFile, trusted: Iterable[str]) -> tuple[set[str], set[str]]:
    """Check all nodes of a file before one is built; return all names, and the untrusted ones.

    A node raises an error, of any type, if `_normalize` would not write it, if it could need more
    memory or time than the size of the file justifies, or if compiled code could crash on it.
    """
    schema = json.loads(archive.read(_SCHEMA))
    if type(schema["protocol"]) is not int or schema["protocol"] < 2:
        raise ValueError("its protocol is older than this package")
    names, untrusted, uses = set[str](), set[str](), Counter[str]()
    for node in _nodes(schema):
        loader, module, name = node["__loader__"], node["__module__"], node["__class__"]
        found = {f"{module}.{name}"}
        if loader == "MethodNode":
            found.add(f"{module}.{name}.{node['content']['func']}")
        names |= found
        is_object = loader == "ObjectNode"
        if not (
            _is_trusted_class(module, name) if is_object else found <= _DATA.get(loader, set())
        ):
            untrusted |= found.difference(trusted)
        if "file" in node:
            uses[node["file"]] += 1
            if uses[node["file"]] > _MOST_USES:
                raise ValueError(f"{node['file']} is named more than {_MOST_USES} times")
        # Only arrays may be shared by an id. With other shared nodes these checks would not see
        # what is built, and a small file could need much memory.
        of_array = loader == "NdArrayNode" and node.get("file") == f"{node.get('__id__')}.npy"
        if "__id__" in node and not of_array:
            raise ValueError(f"a {loader} refers to another node")
        _check_node(node, loader, archive)
    return names, untrusted


def _check_node(node: dict[str, Any], loader: str, archive: ZipFile) -> None:
    if loader == "NdArrayNode" and node["type"] == "numpy":
        shape = _check_array(archive, node["file"])
        if shape and node["__class__"] != "ndarray":
            raise ValueError("a number is an array")
    elif loader == "NdArrayNode":
        # In an array of objects with several axes, NumPy would copy the elements of inner arrays.
        if len(node["shape"]["content"]) != 1 and "NdArrayNode" in json.dumps(node["content"]):
            raise ValueError("an array of objects of several axes holds arrays")
    elif loader == "RandomStateNode":
        # NumPy's compiled code does not check this index, and would read outside its array.
        state = node["content"]["content"]["state"]["content"]
        if not 0 <= json.loads(state["pos"]["content"]) <= 624:
            raise ValueError("a random state points outside of itself")
    elif loader == "DictNode":
        # skops pairs keys with their types and stops at the shorter list. It makes True of every
        # key of type bool, also of False.
        kinds = [f"{key['__module__']}.{key['__class__']}" for key in node["key_types"]["content"]]
        if len(kinds) != len(node["content"]) or "builtins.bool" in kinds:
            raise ValueError("keys of a dict would be lost")
        if len(kinds) > _MOST_NUMBERS and set(kinds) != {"builtins.str"}:
            raise ValueError(f"a dict has more than {_MOST_NUMBERS} keys that are not texts")
    elif loader == "SetNode" and len(node["content"]) > _MOST_NUMBERS:
        raise ValueError(f"a set has more than {_MOST_NUMBERS} elements")


def _check_array(archive: ZipFile, name: str) -> tuple[int, ...]:
    """Return an array's shape, if the size in its header agrees with the size of its member."""
    size = archive.getinfo(name).file_size
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read(member)
        n_items = math.prod(shape)
        if n_items > size or n_items * dtype.itemsize != size - member.tell():
            raise ValueError(f"{name} does not have the size that its header says")
    return shape


def _is_trusted_class(module: str, name: str) -> bool:
    """Return whether instances of a class may be built without the user's trust.

    The class must be in `_OF_SKLEARN`, or be a public estimator or `Stored` class of this package.
    """
    package, *parts = module.split(".")
    if package == "sklearn":
        if name not in _OF_SKLEARN.get(parts[0], "").split():
            return False
        return getattr(importlib.import_module(f"sklearn.{parts[0]}"), name).__module__ == module
    if not re.fullmatch(r"sklearn_g2d(\._?[a-z]\w*)*", module) or name.startswith("_"):
        return False
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        return False
    if not isinstance(found, type) or (found.__module__, found.__qualname__) != (module, name):
        return False
    return issubclass(found, BaseEstimator | Stored)
