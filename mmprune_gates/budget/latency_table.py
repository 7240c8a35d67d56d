"""What ops take on a machine, at several widths: a file that grows with the models that are measured there."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mmprune_gates.checks import COUNT, Rule, check_all, one_of

BACKENDS = ('torch', 'onnxruntime')
DEVICE = Rule('cpu, cuda, or cuda:N', lambda value: isinstance(value, str) and value.split(':')[0] in ('cpu', 'cuda'))
RULES = {'backend': one_of(BACKENDS), 'device': DEVICE, 'threads': COUNT, 'batch': COUNT}


@dataclass(frozen=True)
class Target:
    """What a model is to be fast on.

    Attributes:
        backend: ``torch``, eager mode, or ``onnxruntime``.
        device: ``cpu``, or a CUDA device.
        threads: CPU threads.
        batch: Images at a time.

    Raises:
        ValueError: A value is not what it must be, or the device is not there.
    """

    backend: str = 'torch'
    device: str = 'cpu'
    threads: int = 1
    batch: int = 1

    def __post_init__(self) -> None:
        check_all(asdict(self), RULES)
        if self.device != 'cpu' and not torch.cuda.is_available():
            raise ValueError(f'device={self.device!r}: this machine has no CUDA device that torch can use')

    def facts(self) -> dict[str, Any]:
        """All that a measurement holds for: machine, packages, settings."""
        return {
            **asdict(self),
            'machine': processor() if self.device == 'cpu' else torch.cuda.get_device_name(self.device),
            'version': version(self.backend),
            'precision': 'fp32',
        }

    def path(self) -> Path:
        """The file that belongs to it, below ``XDG_CACHE_HOME`` or ``~/.cache``."""
        cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
        digest = hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()[:12]
        return cache / 'mmprune_gates' / 'latency' / f'{self.backend}-{digest}.json'

    def options(self) -> str:
        """Its settings as options of the command line, those that are not the defaults."""
        given = {name: value for name, value in asdict(self).items() if value != getattr(Target, name)}
        return ' '.join(f'--{name} {value}' for name, value in given.items())


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


@dataclass(frozen=True)
class Curve:
    """What one kind of op takes as it becomes narrower.

    Attributes:
        reads: (R,) widths read, rising; of ops other than layers a single one.
        makes: (M,) widths made, rising; of ops other than layers the elements of their largest tensor.
        ms: (R, M) median milliseconds.
    """

    reads: list[int]
    makes: list[int]
    ms: list[list[float]]


@dataclass(frozen=True)
class Fit:
    """How the sum over a model's ops becomes the latency of the model.

    Attributes:
        scale: Of the sum.
        overhead: Milliseconds that each op takes besides; negative where timing an op alone takes longer.
        selections: Predicted and measured milliseconds of random selections that it was fitted to.
    """

    scale: float
    overhead: float
    selections: list[tuple[float, float]]


@dataclass
class Table:
    """Curves of ops on one machine, and fits of the models they were measured for.

    Attributes:
        facts: What it holds for.
        step: Widths are rounded up to multiples of it: a narrower kernel takes as long.
        curves: Signature -> curve.
        fits: Digest of a model's ops -> fit.
    """

    facts: Mapping[str, Any]
    step: int = 1
    curves: dict[str, Curve] = field(default_factory=dict)
    fits: dict[str, Fit] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Table:
        """Read a table.

        Raises:
            ValueError: The file is no such table.
        """
        try:
            data = json.loads(path.read_text())
            curves = {signature: Curve(**curve) for signature, curve in data['curves'].items()}
            fits = {digest: Fit(**fit) for digest, fit in data['fits'].items()}
            return cls(data['facts'], int(data['step']), curves, fits)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{path} is not a table of latencies ({error}): delete it and measure again') from error

    def text(self) -> str:
        """What its file holds."""
        return json.dumps(asdict(self), indent=1)

    def missing(self, signatures: Iterable[str]) -> list[str]:
        """Signatures that it has no curve for, each once."""
        return [signature for signature in dict.fromkeys(signatures) if signature not in self.curves]


def relative_errors(pairs: Iterable[tuple[float, float]]) -> list[float]:
    """How far predictions are off, from predicted and measured milliseconds."""
    return [abs(predicted / measured - 1) for predicted, measured in pairs]


def digest_of(signatures: Sequence[str]) -> str:
    """A short name for the ops of a model."""
    return hashlib.sha256('\n'.join(signatures).encode()).hexdigest()[:16]
