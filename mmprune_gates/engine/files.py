"""Files that are written completely or not at all, and their digests."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any


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
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.stem[:40]}{path.suffix}-')
    try:
        with open(handle, 'wb') as file:
            file.write(data)
        os.chmod(temporary, 0o644)  # only its owner can read a temporary file
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The dictionaries in a file of JSON lines; a line that was cut as its writer was killed is left out."""
    found = []
    for text in Path(path).read_text(errors='replace').splitlines():
        with suppress(json.JSONDecodeError):
            line = json.loads(text)
            if isinstance(line, dict):
                found.append(line)
    return found


def remove_leftovers(folder: str | Path, suffix: str) -> None:
    """Remove what killed processes have left in a folder of the files they were writing.

    Args:
        folder: The folder; no process may write such files there now.
        suffix: Of the files, such as ``.pth``.
    """
    for path in Path(folder).glob(f'.*{suffix}-????????'):
        path.unlink(missing_ok=True)


def digest(path: str | Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
