"""The goal of pruning: a share of the model's cost, or milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mmprune_gates.budget.costs import Cost
from mmprune_gates.budget.latency import Latency
from mmprune_gates.checks import POSITIVE, SHARE, checked

NAMES = {'target_macs': SHARE, 'target': SHARE, 'target_ms': POSITIVE}


@dataclass(frozen=True)
class Goal:
    """The goal of a run, as the user states it.

    Attributes:
        name: ``target`` or ``target_macs``, cost of the kept channels / cost of the whole model, in (0, 1]; or
            ``target_ms``, milliseconds of one call, with the cost ``Latency``.
        value: Its value.
    """

    name: str
    value: float

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Goal:
        """The goal among the options of a hook, or among the fields of a method's settings.

        Raises:
            ValueError: There is no goal, there are several, or its value is out of range.
        """
        given = {name: options[name] for name in NAMES if options.get(name) is not None}
        if len(given) != 1:
            raise ValueError(f'give one of {", ".join(NAMES)}, got {given or "none of them"}')
        ((name, value),) = given.items()
        return cls(name, checked(name, value, NAMES[name]))

    def check_cost(self, cost: Cost | None) -> None:
        """Check that the goal fits a cost.

        Raises:
            ValueError: The goal is in milliseconds, and the cost is not a latency.
        """
        if self.name == 'target_ms' and not isinstance(cost, Latency):
            raise ValueError(
                "target_ms is a latency: give cost=dict(type='Latency', ...) as well, or target, a share of the cost"
            )

    def share(self, cost: Cost) -> float:
        """Cost of the kept channels / cost of the whole model.

        Args:
            cost: The cost, bound to the whole model.

        Raises:
            ValueError: The whole model is faster than the goal already.
        """
        if self.name != 'target_ms':
            return self.value
        whole = float(cost.price(torch.ones(cost.graph.num_channels).double()))
        if self.value > whole:
            raise ValueError(f'target_ms is {self.value}, but the whole model takes only {whole:.3f} ms by the table')
        return self.value / whole
