"""Files that are complete and undamaged, or not there: zip archives sealed by a checksum."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

File = Any  # a path, or a file object that is opened in binary mode

_DIGEST = 64  # hexadecimal digits of a SHA-256
_END = b"PK\x05\x06"  # of an archive: 22 bytes, then its comment
_TAIL = 22 + _DIGEST


def pack(members: Mapping[str, bytes]) -> bytes:
    """Put members into a zip archive whose comment is the SHA-256 of all that precedes it.

    They are neither compressed nor dated: equal members give equal bytes.
    """
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(ZipInfo(name), content)
        archive.comment = bytes(_DIGEST)
    buffer.seek(-_DIGEST, os.SEEK_END)
    buffer.write(hashlib.sha256(buffer.getbuffer()[:-_DIGEST]).hexdigest().encode())
    return buffer.getvalue()


def unpack(content: bytes) -> ZipFile:
    """Open an archive that is whole and whose members give no more bytes than it has."""
    digest = hashlib.sha256(memoryview(content)[:-_DIGEST]).hexdigest().encode()
    if content[-_TAIL:][:4] != _END or content[-_DIGEST:] != digest:
        raise ValueError("its checksum is not that of its contents")
    archive = ZipFile(io.BytesIO(content))
    infos = archive.infolist()
    if len({info.filename for info in infos}) < len(infos):
        raise ValueError("two of its members have one name")
    if any(info.compress_type != ZIP_STORED or info.flag_bits & 1 for info in infos):
        raise ValueError("its members are compressed or encrypted")
    if sum(max(info.file_size, info.compress_size) for info in infos) > len(content):
        raise ValueError("its members overlap")
    return archive


def read(file: File) -> bytes:
    """Read an archive into memory; a huge file that ends in another way is not read."""
    if hasattr(file, "read"):
        content = file.read()
        if not isinstance(content, bytes):
            raise ValueError("open it in binary mode")
        return content
    with open(file, "rb") as opened:
        opened.seek(max(0, os.fstat(opened.fileno()).st_size - _TAIL))
        if opened.read(4) != _END:
            raise ValueError("it has another ending")
        opened.seek(0)
        return opened.read()


def replace(file: File, content: bytes) -> None:
    """Put a file in place at once, when all of it is on the disk; or write to a file object.

    Whatever happens before, a former file stays whole. The new one gets its mode and, where the
    system permits it, its owner.
    """
    if hasattr(file, "write"):
        rest = memoryview(content)
        while rest:  # unbuffered files may take a part only
            n_written = file.write(rest)
            rest = rest[len(rest) if n_written is None else n_written :]
        return
    path = Path(os.path.realpath(file))  # not the link to it
    try:
        former = path.stat() if path.exists() else None
        if former and not (stat.S_ISREG(former.st_mode) or stat.S_ISDIR(former.st_mode)):
            path.write_bytes(content)  # a pipe or a device
        else:
            _put(path, content, former)
    except OSError as error:
        reason = f"{error.strerror or error} (nothing was saved; a former file is as it was)"
        raise OSError(error.errno, reason, os.fspath(file)) from error


def _put(path: Path, content: bytes, former: os.stat_result | None) -> None:
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        _write(temporary, content, former)
        try:
            os.replace(temporary, path)
        except OSError as error:
            # A file that is mounted by itself, as into a container, cannot be replaced.
            if former is None or error.errno not in (errno.EBUSY, errno.EXDEV):
                raise
            _write_over(path, content, former)
    finally:
        temporary.unlink(missing_ok=True)
    # The file is there now; some systems cannot synchronise folders, or not even open them.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write(path: Path, content: bytes, former: os.stat_result | None) -> None:
    mode = 0o666 if former is None else stat.S_IMODE(former.st_mode)
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if former is not None:
        with contextlib.suppress(OSError, AttributeError):  # Windows has no such call
            os.chown(path, former.st_uid, former.st_gid)
        with contextlib.suppress(OSError):
            os.chmod(path, mode)  # which the mask of the process, or another owner, has changed


def _write_over(path: Path, content: bytes, former: os.stat_result) -> None:
    """Write over a file, while a copy of it lies beside as ".….former"."""
    before = path.read_bytes()
    copy = path.with_name(f".{secrets.token_hex(8)}.former")
    _write(copy, before, former)
    try:
        _fill(path, content)
    except BaseException:
        _fill(path, before)  # it was not cut off before, so that the disk has room for it
        copy.unlink()
        raise
    copy.unlink()


def _fill(path: Path, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.write(content)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
