"""Where figures of the quality benchmark come from: versions and commit."""

from __future__ import annotations

import functools
import subprocess
from importlib import metadata
from pathlib import Path


def version_of(package: str) -> str | None:
    """Version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def commit() -> str | None:
    """Commit of this checkout, with a mark if files differ from it; None outside of a checkout."""
    git = ['git', '-C', str(Path(__file__).parent)]
    found = subprocess.run([*git, 'describe', '--always', '--dirty', '--abbrev=12'], capture_output=True, text=True)
    return found.stdout.strip() or None
