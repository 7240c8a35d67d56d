"""The base of both updates of GDP's gates: the schedule, the gradients they see, and when they settle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmprune_gates.budget.controller import Controller
from mmprune_gates.budget.costs import Cost
from mmprune_gates.budget.criteria import Criterion
from mmprune_gates.budget.selection import Limits
from mmprune_gates.channels.kept import Kept
from mmprune_gates.checks import NUMBER, POSITIVE, SHARE, Rule, checked, pair_of
from mmprune_gates.gates import GateSet

FALLING = Rule(
    'two positive numbers, the second not above the first',
    lambda value: pair_of(POSITIVE).holds(value) and value[0] >= value[1],
)


@dataclass(frozen=True)
class Schedule:
    """The phases of a run, as shares of its iterations. All values are this project's choice.

    Attributes:
        target: Cost of the kept channels / cost of the whole model at the end.
        begin: Until here scores accumulate and every gate stays open.
        end: From ``begin`` to here the current target falls geometrically from 1 to ``target``.
        settle: From here gates are exactly 0 or 1 and only weights and norms learn.
        eps: Smoothness of the gate at ``begin`` and at ``settle``, geometric between.
    """

    target: float
    begin: float = 0.05
    end: float = 0.2
    settle: float = 0.25
    eps: Sequence[float] = (0.1, 1e-4)

    def __post_init__(self) -> None:
        checked('target', self.target, SHARE)
        for name in ('begin', 'end', 'settle'):
            checked(name, getattr(self, name), NUMBER)
        checked('eps', self.eps, FALLING)
        if not 0 <= self.begin < self.end <= self.settle <= 1:
            raise ValueError(
                'phases must satisfy 0 <= begin < end <= settle <= 1, '
                f'got begin={self.begin}, end={self.end}, settle={self.settle}'
            )

    def target_at(self, progress: float) -> float:
        """The current target, after a share of the run."""
        return self.target ** within(progress, self.begin, self.end)

    def eps_at(self, progress: float) -> float:
        """The current smoothness, after a share of the run."""
        first, last = self.eps
        return first * (last / first) ** within(progress, self.begin, self.settle)


def within(progress: float, begin: float, end: float) -> float:
    """How far ``progress`` has come between two points, in [0, 1]."""
    if progress >= end:
        return 1.0
    return max(0.0, (progress - begin) / (end - begin))


class Polarizer(Controller):
    """Drives the gates of a model to a budget, one step per training iteration.

    It alone moves the gates, by dL/dg, which ``theta.grad`` receives (straight-through).

    Args:
        gates: The gates.
        schedule: Phases and target.
        limits: Limits on what may close.
        cost, criterion: As in :class:`Controller`.

    Attributes:
        rules: Rules for its further arguments.
    """

    rules: Mapping[str, Rule] = {}

    def __init__(
        self,
        gates: GateSet,
        schedule: Schedule,
        limits: Limits,
        cost: Cost | None = None,
        criterion: Criterion | None = None,
    ) -> None:
        super().__init__(gates, schedule.target, limits, cost, criterion)
        self.schedule = schedule
        for group in gates.graph.free:
            gates[group.name].straight_through = True

    def observe(self, grad: Tensor) -> None:
        """Take in (num_channels,) dL/dg of one iteration."""

    def step(self, progress: float) -> None:
        """Move the gates after an optimiser step; ``progress`` is the share of the run that is done."""
        if self.kept is not None:
            return
        self.gates.set_eps(self.schedule.eps_at(progress))
        if progress >= self.schedule.settle:
            self.settle()
        elif progress >= self.schedule.begin:
            self.move(progress)

    def open(self) -> Kept:
        """The open channels; until the gates settle, those closed at the moment count as closed, within the limits."""
        return self.candidates.allowed(self.gates.kept()) if self.kept is None else self.kept

    def target_at(self, progress: float) -> float:
        """The current target, corrected."""
        return self.corrected(self.schedule.target_at(progress))

    def candidate(self) -> Kept:
        """What would be kept if the gates settled now."""
        if self.kept is not None:
            return self.kept
        scores = self.ranking().cpu()
        return self.candidates.choose(scores, self.aim)

    def move(self, progress: float) -> None:
        """Move the gates by one step between ``begin`` and ``settle``."""
        raise NotImplementedError

    def ranking(self) -> Tensor:
        """(num_channels,) scores by which channels are chosen when the gates settle; higher = keep."""
        raise NotImplementedError

    @torch.no_grad()
    def settle(self) -> None:
        """Set every gate to exactly 0 or 1, meeting the target as closely as the limits allow."""
        kept = self.choose(self.ranking().cpu())
        self.gates.set_theta(kept.vector.float())

    @torch.no_grad()
    def scalars(self) -> dict[str, float]:
        """Adds eps."""
        return {**super().scalars(), 'gate_eps': self.gates.eps()}
