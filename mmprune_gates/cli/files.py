"""Results as JSON; files written completely or not at all, mmengine's checkpoints as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend, register_backend

from mmprune_gates.engine.files import check_writable, write_bytes, write_text

__all__ = ['WholeFiles', 'check_writable', 'read_json', 'write_bytes', 'write_json', 'write_text']


def read_json(path: str | Path) -> Any:
    """The contents of a JSON file."""
    return json.loads(Path(path).read_text())


def write_json(path: str | Path, data: Any) -> None:
    """Write a JSON file completely or not at all."""
    write_text(path, json.dumps(data, indent=1))


class WholeFiles(LocalBackend):
    """mmengine's local files, but a run that is killed or fills a disk leaves no half-written checkpoint."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file completely or not at all."""
        write_bytes(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write a text file completely or not at all."""
        write_bytes(filepath, obj.encode(encoding))


register_backend('local', WholeFiles, force=True, prefixes='')
