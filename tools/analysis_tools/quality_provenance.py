"""Provenance of a benchmark's figures: machine, versions and commit."""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import mmprune_gates
from mmprune_gates.budget.latency_table import processor

PACKAGES = ('torch', 'torch-pruning', 'mmengine', 'mmsegmentation', 'mmpretrain', 'numpy')  # of the quality benchmark
ROOT = Path(__file__).resolve().parents[2]


def machine() -> str:
    """Processor and system."""
    return f'{processor()}, {platform.system()} {platform.machine()}'


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Versions of Python, of this package and of others; None for those that are not installed."""
    installed = {package: version_of(package) for package in packages}
    return {'python': platform.python_version(), 'mmprune_gates': mmprune_gates.__version__, **installed}


def version_of(package: str) -> str | None:
    """Version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def commit() -> str | None:
    """Commit of this checkout, with a mark if files differ from it; None outside of a checkout, or without git."""
    if not (ROOT / '.git').exists():  # installed from a wheel, perhaps inside of another repository
        return None
    command = ['git', '-C', str(ROOT), 'describe', '--always', '--dirty', '--abbrev=12']
    try:
        found = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None
