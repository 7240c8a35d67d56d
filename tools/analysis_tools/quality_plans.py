"""Which runs answer which question."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FRESH = (0, 1, 2)  # seeds that tables are made of
TUNING = (100, 101)  # seeds that choices were made by


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        task, method: Their names.
        share: MACs to keep / MACs of the whole model.
        seed: Of weights and data order.
        label: What the options mean, in a few letters.
        options: Of the method.
    """

    task: str
    method: str
    share: float
    seed: int
    label: str = ''
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its file."""
        label = f'-{self.label}' if self.label else ''
        return f'{self.task}-{self.method}{label}-{self.share:g}-{self.seed}'

    def facts(self) -> dict[str, Any]:
        """What it is, for its file."""
        return asdict(self)


SCHEDULES = {
    'digits': ((0.1, 0.15), (0.2, 0.25), (0.35, 0.4), (0.5, 0.55)),
    'scenes': ((0.1, 0.15), (0.2, 0.25), (0.5, 0.55)),
}
UPDATES = {'waterline': {}, 'gradient': {'update': 'gradient'}}


def dense() -> list[Run]:
    """The dense starts, trained on without gates."""
    return [Run(task, 'dense', 1, seed) for task in ('digits', 'scenes') for seed in FRESH]


def schedules() -> list[Run]:
    """When to cut: the ramp's end and the settling of the gates, as shares of the run."""
    runs = dense()
    for task in ('digits', 'scenes'):
        for seed in FRESH:
            for share in (0.3, 0.15):
                for end, settle in SCHEDULES[task]:
                    options = {'end': end, 'settle': settle}
                    runs.append(Run(task, 'gdp', share, seed, f'waterline-{end:g}-{settle:g}', options))
    return runs


def updates() -> list[Run]:
    """The two updates of the gates with the same schedule."""
    runs = dense()
    for task in ('digits', 'scenes'):
        for seed in FRESH:
            for share in (0.3, 0.15, 0.05):
                for name, own in UPDATES.items():
                    options = {'end': 0.2, 'settle': 0.25, **own}
                    runs.append(Run(task, 'gdp', share, seed, f'{name}-0.2-0.25', options))
    return runs


PLANS: dict[str, Callable[[], list[Run]]] = {'schedules': schedules, 'updates': updates}
