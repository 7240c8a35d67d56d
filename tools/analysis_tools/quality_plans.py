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
        rate_scale: What the learning rate is multiplied with.
        after: Name of the run whose kept channels this one takes over; it is carried out before.
    """

    task: str
    method: str
    share: float
    seed: int
    label: str = ''
    options: Mapping[str, Any] = field(default_factory=dict)
    rate_scale: float = 1.0
    after: str = ''

    @property
    def name(self) -> str:
        """Name of its file."""
        label = f'-{self.label}' if self.label else ''
        rate = '' if self.rate_scale == 1 else f'-x{self.rate_scale:g}'
        return f'{self.task}-{self.method}{label}{rate}-{self.share:g}-{self.seed}'

    def facts(self) -> dict[str, Any]:
        """What it is, for its file."""
        return asdict(self)


def try_out() -> list[Run]:
    """One run of each task."""
    return [
        Run(task, method, share, 100)
        for task in ('scenes', 'digits')
        for method, share in (('dense', 1), ('gdp', 0.3), ('gdp', 0.15))
    ]


PLANS: dict[str, Callable[[], list[Run]]] = {'try': try_out}
