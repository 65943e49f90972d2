"""Fitted detectors and pipelines in files that run no code, by skops (https://skops.readthedocs.io).

A file is a zip archive that skops could read, too: "schema.json" describes objects as a tree of
nodes, arrays lie beside it, and "sklearn_g2d.json" says what is in the file and who wrote it.

Whoever changes what fitted estimators consist of, so that former files would be rebuilt wrongly,
raises `FORMAT` and adds to `_UPGRADES`, under the former number, a function that turns the members
of such a file into those of the next format. `load` applies them one after another. Where that is
impossible, `_UPGRADES` is emptied, and `load` names the version that reads the file. tests/saved
keeps a file of every format that has to be read.
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

# What callbacks leave on an estimator.
_OF_CALLBACKS = ("_skl_callbacks", "_callback_fit_ctx", "_parent_callback_ctx")

# Estimators of scikit-learn whose numbers only Python, NumPy and SciPy read, which check shapes
# and indices. Trees, neighbours, clusters, one-hot codes and support vectors are missing: compiled
# code of theirs trusts what is stored.
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

# Nodes of skops that build data, and the classes that each may name without being asked.
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

_PYTHON_CLASS = 1 << 9  # Py_TPFLAGS_HEAPTYPE: not of a compiled class
_MOST_USES = 8  # of an array: each time, a network may take a copy
_MOST_NUMBERS = 1000  # as keys: a file's author may have made their hashes collide


def save(estimator: BaseEstimator, path: File) -> None:
    """Write a fitted estimator to a file that holds data and names, never code.

    The file is complete or not there at all: whatever happens while saving, a former one at
    `path` stays whole. Callbacks are not saved.

    Parameters
    ----------
    estimator : estimator
        Fitted: a detector, a Pipeline, or any other that skops can hold.
    path : str, path-like or binary file object
        Where to; usually it ends in ".skops". An existing file is replaced.

    Raises
    ------
    NotFittedError
        Before `fit`.
    UnsupportedObjectError
        If the estimator holds what no file can hold, such as a lambda or a tensor.
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
    import skops.io  # which imports all of scikit-learn: .8 s

    check_is_fitted(estimator)
    name = type(estimator).__name__
    versions = {"sklearn_g2d": __version__, "python": platform.python_version()}
    versions |= {m.__name__: m.__version__ for m in (np, scipy, sklearn, skops, torch)}
    about = json.dumps({"format": FORMAT, "class": name, "versions": versions})
    try:
        stored = skops.io.dumps(_without_callbacks(estimator, {}))
        content = files.pack({_ABOUT: about.encode(), **_normalize(stored)})
        del stored
        names, _ = _audit(files.unpack(content), ())
        skops.io.loads(content, trusted=sorted(names))  # what cannot be read is not written
    except Exception as error:  # of skops, or of the objects
        raise UnsupportedObjectError(
            f"{name} holds an object that a file without code cannot hold ({type(error).__name__}: "
            f"{error}). Put functions and classes into a module of yours, or keep the estimator by "
            "joblib.dump, whose files must come from where you trust."
        ) from error
    files.replace(path, content)


def load(path: File, *, trusted: Iterable[str | type] = ()) -> Any:
    """Read an estimator that `save` has written.

    Nothing in a file is executed, whoever wrote it, unless you trust it. Scores equal those of the
    saved estimator in every bit, on the same kind of machine with the same versions of libraries.

    Parameters
    ----------
    path : str, path-like or binary file object
        The file.
    trusted : iterable of str, type or function, default=()
        Classes and functions that the file may name besides classes of this package, arrays,
        Python's containers, and estimators of scikit-learn that only Python reads. Their code runs
        on what the file says.

    Returns
    -------
    estimator
        Fitted.

    Raises
    ------
    OSError
        If the file cannot be read.
    ModelFileError
        If it is no file of `save`, is damaged, names what is not trusted, or comes from a version
        of this package whose files this version does not read; the error says which.

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
    except Exception as error:  # of zipfile and json, which have several
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
    except Exception as error:  # whatever an odd file can bring about
        raise ModelFileError(
            f"{shown} is whole, but sklearn_g2d {__version__} cannot rebuild what it holds "
            f"({type(error).__name__}: {error}). It was written by sklearn_g2d {written_by}: load "
            "it with that version, or fit and save again."
        ) from error
    listed = ", ".join(f'"{name}"' for name in sorted(untrusted))
    raise ModelFileError(
        f"{shown} names what sklearn_g2d does not load unless you ask for it: {listed}. Loading "
        "runs code of these classes and functions on what the file says, and compiled code, such "
        "as that of trees, does not check it: whoever made the file can crash this process, and "
        "run code of theirs if a name stands for a function that can. If you trust them, call "
        f"sklearn_g2d.persistence.load({shown}, trusted=[{listed}])."
    )


def is_saved(path: Path) -> bool:
    # Says whether a file looks as if `save` had written it.
    if not path.is_file():  # but a pipe
        return False
    try:
        with ZipFile(path) as archive:
            return _ABOUT in archive.namelist()
    except (OSError, BadZipFile):
        return False


def _names_of(trusted: Iterable[str | type]) -> list[str]:
    """Name what a user trusts."""
    if isinstance(trusted, Iterable) and not isinstance(trusted, str | type):
        trusted = list(trusted)
        if all(isinstance(t, str) or hasattr(t, "__qualname__") for t in trusted):
            return [
                t if isinstance(t, str) else f"{t.__module__}.{t.__qualname__}" for t in trusted
            ]
    raise TypeError(
        f"trusted must list names, classes or functions, got {trusted!r}. Load without it: if the "
        "file needs any, the error says which."
    )


def _without_callbacks(value: Any, copies: dict[int, Any]) -> Any:
    """Copy an estimator, and those within, without callbacks; all else is shared."""
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
    """Give every node of a schema, in order, and whatever else might pass for one."""
    pending = [schema]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += reversed(value)
        elif isinstance(value, dict):
            pending += reversed(value.values())
            if isinstance(value.get("__loader__"), str):  # else a dict that has such a key
                yield value


def _normalize(stored: bytes) -> Members:
    """Name members in the order of nodes, where skops names them by addresses in memory.

    An array that occurs again is stored once. Other objects are spelled out again, so that no node
    refers to another.
    """
    archive = ZipFile(io.BytesIO(stored))
    schema = json.loads(archive.read(_SCHEMA))
    names: dict[str, str] = {}
    uses = Counter[str]()
    members: Members = {}
    for node in _nodes(schema):
        node.pop("__id__", None)
        if f"{node['__module__']}.{node['__class__']}" == "numpy.memmap":
            node["__class__"] = "ndarray"
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
    """Look at every node of a file before any is built: all names, and those that nobody trusts.

    Nodes that are not as `_normalize` leaves them, that could take memory or time out of proportion
    to the file, or on which compiled code could crash, raise whatever they bring about.
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
        # NumPy would copy the elements of arrays within an array of objects of several axes.
        if len(node["shape"]["content"]) != 1 and "NdArrayNode" in json.dumps(node["content"]):
            raise ValueError("an array of objects of several axes holds arrays")
    elif loader == "RandomStateNode":
        state = node["content"]["content"]["state"]["content"]
        if not 0 <= json.loads(state["pos"]["content"]) <= 624:  # an index of compiled code
            raise ValueError("a random state points outside of itself")
    elif loader == "DictNode":
        kinds = [f"{key['__module__']}.{key['__class__']}" for key in node["key_types"]["content"]]
        if len(kinds) != len(node["content"]) or "builtins.bool" in kinds:
            raise ValueError("keys of a dict would be lost")
        if len(kinds) > _MOST_NUMBERS and set(kinds) != {"builtins.str"}:
            raise ValueError(f"a dict has more than {_MOST_NUMBERS} keys that are no text")
    elif loader == "SetNode" and len(node["content"]) > _MOST_NUMBERS:
        raise ValueError(f"a set has more than {_MOST_NUMBERS} elements")


def _check_array(archive: ZipFile, name: str) -> tuple[int, ...]:
    """Compare the size that an array's header claims with that of its member."""
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
            raise ValueError(f"{name} has not the size that its header says")
    return shape


def _is_trusted_class(module: str, name: str) -> bool:
    """Say whether instances of a class are built without asking.

    They are if it is in `_OF_SKLEARN`, or an estimator or `Stored`, public, and of this package.
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
