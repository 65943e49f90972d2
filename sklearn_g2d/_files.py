"""Files that are complete or not there."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


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
