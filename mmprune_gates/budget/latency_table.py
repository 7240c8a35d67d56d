"""Times of ops on a machine, at several widths: a file that grows with every model measured there."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from mmprune_gates.checks import COUNT, NUMBER, POSITIVE, Rule, check_all, checked, one_of

BACKENDS = ('torch', 'onnxruntime')
PROCEDURE = 3  # how ops are timed; another number where older tables must not be used
DEVICE = Rule('cpu, cuda, or cuda:N', lambda value: isinstance(value, str) and value.split(':')[0] in ('cpu', 'cuda'))
RULES = {'backend': one_of(BACKENDS), 'device': DEVICE, 'threads': COUNT, 'batch': COUNT}


@dataclass(frozen=True)
class Target:
    """The platform that a model should be fast on.

    Attributes:
        backend: ``torch``, eager mode, or ``onnxruntime``.
        device: ``cpu``, or a CUDA device.
        threads: CPU threads.
        batch: Images at a time.

    Raises:
        ValueError: A value is invalid, or the device is not available.
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
        """Everything that a measurement depends on: settings, machine, version of the backend, precision."""
        return {
            **asdict(self),
            'machine': processor() if self.device == 'cpu' else torch.cuda.get_device_name(self.device),
            'version': version_of(self.backend),
            'precision': 'fp32',
            'procedure': PROCEDURE,
        }

    def path(self) -> Path:
        """The default file of its table, below ``XDG_CACHE_HOME`` or ``~/.cache``."""
        cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
        digest = hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()[:12]
        return cache / 'mmprune_gates' / 'latency' / f'{self.backend}-{digest}.json'

    def options(self) -> str:
        """The settings that differ from the defaults, as command line options."""
        given = {name: value for name, value in asdict(self).items() if value != getattr(Target, name)}
        return ' '.join(f'--{name} {value}' for name, value in given.items())


def version_of(backend: str) -> str:
    """Version of a backend.

    Raises:
        ValueError: It is not installed.
    """
    try:
        return import_module(backend).__version__
    except ImportError as error:
        raise ValueError(f"backend={backend!r} cannot be imported ({error}): pip install '.[onnx]'") from error


DETAILS = ('cpu family', 'model', 'stepping', 'CPU implementer', 'CPU variant', 'CPU part')  # of x86, and of ARM


def processor() -> str:
    """Name of the processor, and numbers that tell apart those of one name."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    facts: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(':')
        facts.setdefault(name.strip(), value.strip())  # of the first core
    known = [f'{detail} {facts[detail]}' for detail in DETAILS if detail in facts]
    name = facts.get('model name') or platform.processor() or platform.machine()
    return f'{name} ({", ".join(known)})' if known else name


@dataclass(frozen=True)
class Curve:
    """Times of one kind of op at several widths.

    Attributes:
        reads: (R,) widths read, rising; a single one for ops other than layers.
        makes: (M,) widths made, rising; for ops other than layers, the elements of their largest tensor.
        ms: (R, M) median milliseconds.
    """

    reads: list[int]
    makes: list[int]
    ms: list[list[float]]


@dataclass(frozen=True)
class Fit:
    """Turns the sum over a model's ops into the latency of the model.

    Attributes:
        scale: Factor of the sum.
        overhead: Additional milliseconds per op; negative where timing an op alone takes longer.
        selections: Predicted and measured milliseconds of the random selections that it was fitted to.
    """

    scale: float
    overhead: float
    selections: list[tuple[float, float]]


@dataclass
class Table:
    """Curves of ops on one machine, and fits of the models they were measured for.

    Attributes:
        facts: Settings and machine that it holds for.
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
            ValueError: The file is not a table of latencies.
        """
        try:
            data = json.loads(path.read_text())
            curves = {signature: Curve(**curve) for signature, curve in data['curves'].items()}
            fits = {digest: Fit(**fit) for digest, fit in data['fits'].items()}
            table = cls(dict(data['facts']), checked('step', data['step'], COUNT), curves, fits)
            table.check_numbers()
            return table
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{path} is not a table of latencies ({error}): delete it and measure again') from error

    def check_numbers(self) -> None:
        """Refuse a damaged table.

        Raises:
            TypeError, ValueError: A number in it cannot be.
        """
        for signature, curve in self.curves.items():
            least = min(*curve.reads, *curve.makes)
            checked(f'a width of {signature}', least, COUNT)
            sizes = (len(curve.reads), len(curve.makes))
            times = torch.tensor(curve.ms, dtype=torch.double)
            has_all = times.shape == sizes
            fine = times.isfinite() & (times >= 0)
            if not has_all or not fine.all():
                raise ValueError(f'the times of {signature}')
        for digest, fit in self.fits.items():
            checked(f'scale of {digest}', fit.scale, POSITIVE)
            checked(f'overhead of {digest}', fit.overhead, NUMBER)

    def check(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Refuse to use it for something else than it was measured for.

        Args:
            path: Its file, for the message.
            facts: Settings, and perhaps the machine, that it should hold for.

        Raises:
            ValueError: It holds for others; names the first.
        """
        for name, value in facts.items():
            if self.facts.get(name) != value:
                raise ValueError(
                    f'{path} was measured with {name} {self.facts.get(name)!r}, not {value!r}; give another table'
                )

    def text(self) -> str:
        """The contents of its file."""
        return json.dumps(asdict(self), indent=1)

    def missing(self, signatures: Iterable[str]) -> list[str]:
        """Signatures without a curve, each once."""
        return [signature for signature in dict.fromkeys(signatures) if signature not in self.curves]


def relative_errors(pairs: Iterable[tuple[float, float]]) -> list[float]:
    """Relative errors of predictions, from predicted and measured milliseconds."""
    return [abs(predicted / measured - 1) for predicted, measured in pairs]


def digest_of(signatures: Sequence[str]) -> str:
    """A short name for the ops of a model."""
    return hashlib.sha256('\n'.join(signatures).encode()).hexdigest()[:16]
