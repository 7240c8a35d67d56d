"""Where figures of the quality benchmark come from: processor, versions, commit."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path


def version_of(package: str) -> str | None:
    """Version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """Name of the processor."""
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or 'unknown processor'


@functools.cache
def commit() -> str | None:
    """Commit of this checkout, with a mark if files differ from it; None outside of a checkout."""
    git = ['git', '-C', str(Path(__file__).parent)]
    found = subprocess.run([*git, 'describe', '--always', '--dirty', '--abbrev=12'], capture_output=True, text=True)
    return found.stdout.strip() or None
