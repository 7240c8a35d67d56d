"""Folders of generated data that appear complete or not at all, and are never written over."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmprune_gates.engine.files import check_writable


def write_once(target: Path, params: dict[str, Any], write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a folder, or reuse it when it already holds the same data.

    Args:
        target: The folder.
        params: Everything that its contents depend on, as JSON values; saved in the folder, in a file named after
            ``generator``, the file name of the tool.
        write: Fills the empty folder that it is given.

    Returns:
        ``target``.

    Raises:
        FileExistsError: The folder exists and holds something else.
        OSError: It cannot be written.
    """
    if _is_there(target, params):
        return target
    check_writable(target, is_folder=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f'.{target.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}'
    try:
        partial.mkdir()
        write(partial)
        _manifest(partial, params).write_text(json.dumps(params, indent=2) + '\n')
        try:
            partial.rename(target)
        except OSError:  # another process was faster
            if not _is_there(target, params):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _manifest(root: Path, params: dict[str, Any]) -> Path:
    """The file that describes a folder's contents."""
    return root / Path(params['generator']).with_suffix('.json')


def _read_manifest(root: Path, params: dict[str, Any]) -> dict[str, Any]:
    """A folder's description of itself; empty if this tool did not write it."""
    try:
        found = json.loads(_manifest(root, params).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.get('generator') == params['generator'] else {}


def _is_there(root: Path, params: dict[str, Any]) -> bool:
    """Whether a folder holds exactly this data; an error if it holds anything else."""
    if not root.exists() and not root.is_symlink():
        return False
    found = _read_manifest(root, params)
    if not found:
        raise FileExistsError(f'{root} exists and was not written by {params["generator"]}; choose another folder')
    changed = sorted(key for key in params.keys() | found.keys() if params.get(key) != found.get(key))
    if changed:
        what = ', '.join(changed)
        raise FileExistsError(f'{root} holds a demo data set with other {what}; delete it or choose another folder')
    return True
