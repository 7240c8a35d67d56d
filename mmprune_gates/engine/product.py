"""The folder of a slim model: its files are written together, and the remains of a killed run are cleaned up.

New files gather in a subfolder, so that the folder itself may be a mount point. Once all are complete, the subfolder is
renamed, and the files are moved to their places. A run killed before the renaming leaves the earlier product as it was;
the moves of one killed later are completed by whichever tool reads or writes the product next.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mmprune_gates.engine.files import check_writable, write_bytes

REPORT = 'slim.json'
FILES = ('slim.py', 'slim.pth', REPORT)
WRITING, WHOLE = '.slim-writing', '.slim-whole'
ALLOWED = (*FILES, WRITING, WHOLE, '__pycache__')


def is_product(folder: Path) -> bool:
    """Whether a folder holds a slim model."""
    return (folder / REPORT).is_file()


def prepare_folder(out_dir: Path) -> None:
    """Check, before any work, that a product can be written; clean up what an earlier run has left.

    Raises:
        OSError: The folder holds something else, or cannot be written to; nothing has changed then.
    """
    refuse_foreign(out_dir)
    check_writable(out_dir, is_folder=True)
    complete(out_dir)
    shutil.rmtree(out_dir / WRITING, ignore_errors=True)


def refuse_foreign(out_dir: Path) -> None:
    """Raise unless a folder is absent, empty, or an earlier product of slimming."""
    if not out_dir.exists():
        return
    if not out_dir.is_dir():
        raise FileExistsError(f'OUT_DIR {out_dir} is a file; choose another folder')
    foreign = sorted(entry.name for entry in out_dir.iterdir() if entry.name not in ALLOWED)
    if foreign:
        raise FileExistsError(f'OUT_DIR {out_dir} holds {foreign[0]!r}, which slimming did not write; choose another')


def write_product(out_dir: Path, contents: Mapping[str, bytes]) -> None:
    """Write the files of a product, all or none.

    Args:
        out_dir: Its folder, after :func:`prepare_folder`.
        contents: Name of each file -> its contents.

    Raises:
        OSError: They cannot be written; an earlier product is unchanged.
    """
    made = topmost_missing(out_dir)
    writing = out_dir / WRITING
    try:
        for name, data in contents.items():
            write_bytes(writing / name, data)
        writing.rename(out_dir / WHOLE)
    except BaseException:
        shutil.rmtree(made or writing, ignore_errors=True)
        raise
    complete(out_dir)


def complete(out_dir: Path) -> None:
    """Move the files of a complete product to their places, if a killed run has not."""
    whole = out_dir / WHOLE
    with suppress(FileNotFoundError, NotADirectoryError):  # there is none, or another process was faster
        for file in whole.iterdir():
            file.replace(out_dir / file.name)
        whole.rmdir()


def topmost_missing(path: Path) -> Path | None:
    """The highest folder that has to be created for ``path``; None if ``path`` exists."""
    path = path.absolute()
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    return missing[-1] if missing else None
