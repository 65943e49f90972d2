"""Fitted detectors in files that cannot execute code: arrays as safetensors, the rest as JSON."""

from __future__ import annotations

import json
import os
import platform

import numpy as np
import scipy
import sklearn
import torch
from sklearn.utils.validation import check_is_fitted

from sklearn_g2d._base import BaseDetector
from sklearn_g2d._encoding import OTHER_REMEDY, Decoder, Encoder
from sklearn_g2d._version import __version__
from sklearn_g2d.avid._detector import AVIDDetector
from sklearn_g2d.errors import ModelFileError, UnsupportedObjectError
from sklearn_g2d.g2d._detector import G2DOutlierDetector
from sklearn_g2d.utils import files as _files

__all__ = ["load", "save"]

_DETECTORS: dict[str, type[BaseDetector]] = {
    cls.__name__: cls for cls in (AVIDDetector, G2DOutlierDetector)
}


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
            f"{name} is not a class of this package, so that no file could name it. {OTHER_REMEDY}"
        )
    encoder = Encoder()
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
        "format_version": str(_files.FORMAT),
        "class": name,
        "versions": json.dumps(versions),
        "parameters": json.dumps(stored),
        "feature_names": json.dumps(None if names is None else names.tolist()),
        "state": json.dumps(state),
    }
    _files.write(path, metadata, encoder.arrays)


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
    metadata, arrays = _files.read(path)
    versions = json.loads(metadata["versions"])
    written_by = f"sklearn_g2d {versions['sklearn_g2d']}"
    try:
        decoder = Decoder(arrays)
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
