"""Files that are written completely or not at all, and their digests."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from pathlib import Path


def write_text(path: str | Path, text: str) -> None:
    """Write a text file completely or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file completely or not at all; missing folders are created.

    An existing path that is no regular file, such as ``/dev/stdout``, is written to, not replaced.

    Raises:
        OSError: It cannot be written; names the file.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, data)
    except OSError as error:
        raise OSError(error.errno, f'cannot write: {error.strerror}', str(path)) from error


def check_writable(path: str | Path, is_folder: bool = False) -> None:
    """Check, before any work, that a file can be written, or files in a folder.

    Raises:
        OSError: It cannot; names the path.
    """
    path = Path(path)
    if path.exists() and not is_folder and not path.is_file():
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, 'cannot write: it is a folder', str(path))
        return  # a device
    folder = (path if is_folder else path.parent).absolute()
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise OSError(error.errno, f'cannot write: {error.strerror}', str(path)) from error


def _replace(path: Path, data: bytes) -> None:
    """Write a file under a temporary name beside its own, then rename it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name[:40]}-')
    try:
        with open(handle, 'wb') as file:
            file.write(data)
        os.chmod(temporary, 0o644)  # only its owner can read a temporary file
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def digest(path: str | Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
