"""Zip archives with a checksum, which are written completely or not at all."""

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

# A SHA-256 has 64 hexadecimal digits.
_DIGEST = 64
# A zip archive ends with a record of 22 bytes, which starts with this signature, and a comment.
_END = b"PK\x05\x06"
_TAIL = 22 + _DIGEST


def pack(members: Mapping[str, bytes]) -> bytes:
    """Put members into a zip archive, with the SHA-256 of all bytes before it as the comment.

    Members are neither compressed nor dated, so that equal members give equal bytes.
    """
    # Write the archive with an empty comment of the same length first, then put the digest there.
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(ZipInfo(name), content)
        archive.comment = bytes(_DIGEST)
    buffer.seek(-_DIGEST, os.SEEK_END)
    buffer.write(hashlib.sha256(buffer.getbuffer()[:-_DIGEST]).hexdigest().encode())
    return buffer.getvalue()


def unpack(content: bytes) -> ZipFile:
    """Open an archive, if its checksum is right and its members hold no more bytes than it has."""
    # The author of a file can compute a checksum, too. The other checks stop archives that are
    # small on the disk and huge in memory, or that two programs read differently.
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
    """Read an archive into memory; a file with another ending raises ValueError before that."""
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
    """Replace a file in one step after the new one is complete; or write to a file object.

    If an error occurs before that, an existing file does not change. The new file gets the mode of
    the existing one and, if the system permits it, its owner.
    """
    if hasattr(file, "write"):
        rest = memoryview(content)
        while rest:
            # An unbuffered file may write only a part. Objects that return None write everything.
            n_written = file.write(rest)
            rest = rest[len(rest) if n_written is None else n_written :]
        return
    # If the path is a link, replace the file behind it, not the link.
    path = Path(os.path.realpath(file))
    try:
        former = path.stat() if path.exists() else None
        if former and not (stat.S_ISREG(former.st_mode) or stat.S_ISDIR(former.st_mode)):
            # A pipe or a device must not be replaced by a file.
            path.write_bytes(content)
        else:
            _put(path, content, former)
    except OSError as error:
        reason = f"{error.strerror or error} (nothing was saved; an existing file is unchanged)"
        raise OSError(error.errno, reason, os.fspath(file)) from error


def _put(path: Path, content: bytes, former: os.stat_result | None) -> None:
    # The temporary file is in the same folder, because a rename works only within a file system.
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        _write(temporary, content, former)
        try:
            os.replace(temporary, path)
        except OSError as error:
            # A single file that is mounted into a container cannot be replaced, only written to.
            if former is None or error.errno not in (errno.EBUSY, errno.EXDEV):
                raise
            _write_over(path, content, former)
    finally:
        temporary.unlink(missing_ok=True)
    # Make the rename permanent, too. Ignore errors, because the file is complete, and some systems
    # cannot synchronise or open folders.
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
        # Windows has no `chown`.
        with contextlib.suppress(OSError, AttributeError):
            os.chown(path, former.st_uid, former.st_gid)
        # The umask of the process and `chown` may both have changed the mode.
        with contextlib.suppress(OSError):
            os.chmod(path, mode)


def _write_over(path: Path, content: bytes, former: os.stat_result) -> None:
    """Write over a file; until this succeeds, a copy of it is kept beside it as ".….former"."""
    before = path.read_bytes()
    copy = path.with_name(f".{secrets.token_hex(8)}.former")
    _write(copy, before, former)
    try:
        _fill(path, content)
    except BaseException:
        # `_fill` cuts a file off only at its end, so that the disk still has room for the old
        # contents.
        _fill(path, before)
        copy.unlink()
        raise
    copy.unlink()


def _fill(path: Path, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.write(content)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
