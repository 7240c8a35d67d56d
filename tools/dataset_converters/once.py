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
        params: What its content depends on, as JSON would hold it; kept in the folder. ``generator`` is the file
            name of the tool, after which the file is named.
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
    """The file in which a folder says what it holds."""
    return root / Path(params['generator']).with_suffix('.json')


def _read_manifest(root: Path, params: dict[str, Any]) -> dict[str, Any]:
    """What a folder says of itself; empty when it is not one of this tool's."""
    try:
        found = json.loads(_manifest(root, params).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.get('generator') == params['generator'] else {}


def _is_there(root: Path, params: dict[str, Any]) -> bool:
    """Whether a folder holds this very data; an error when what it holds should not be touched."""
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
