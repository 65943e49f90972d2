"""Files of arrays, as safetensors, that are complete and undamaged or not there."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save as to_safetensors

from sklearn_g2d._version import __version__
from sklearn_g2d.errors import ModelFileError

# Of the files. It rises with every change to what fitted detectors consist of, and then the
# files of before are either converted in `load` or missing from the readable ones.
FORMAT = 1
_READABLE_FORMATS = (1,)


def write(
    path: str | os.PathLike[str], metadata: dict[str, str], arrays: dict[str, NDArray[Any]]
) -> None:
    """Put a file of arrays in place, with a checksum of all that it holds."""
    metadata["sha256"] = checksum(metadata, arrays)
    replace(path, to_safetensors(arrays, metadata))


def read(
    path: str | os.PathLike[str], *, kind: str = "sklearn_g2d"
) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """Metadata and arrays of a file, once they are known to be what `write` has written."""
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
    if metadata.get("sha256") != checksum(metadata, arrays):
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
    needed = f">={written_by}" if version > FORMAT else f"=={written_by}"
    raise ModelFileError(
        f"{shown} was written by sklearn_g2d {written_by} in format {version}; this is "
        f"sklearn_g2d {__version__}, which does not read it. Load it with sklearn_g2d{needed}, "
        "or fit and save again."
    )


def checksum(metadata: dict[str, str], arrays: dict[str, NDArray[Any]]) -> str:
    """Digest of all that a file holds, but for the digest itself."""
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


def replace(path: str | os.PathLike[str], content: bytes) -> None:
    """Put a file in place at once, when all of it is on the disk.

    Whatever happens before, a former file at `path` stays whole.
    """
    target = Path(os.path.realpath(path))  # not the link to it
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere folders cannot be opened
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
