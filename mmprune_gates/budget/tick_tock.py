"""Tick-Tock, Gate Decorator's cycle: Ticks score the filters and close a few, Tocks repair the damage.

You et al., NeurIPS 2019, arXiv 1909.08174, section 3.3: one Tock first, one after every T Ticks, and a longer one
without penalty, the fine-tune, once the target is met.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmprune_gates.budget.controller import Controller
from mmprune_gates.budget.costs import Cost
from mmprune_gates.budget.criteria import Criterion, Taylor
from mmprune_gates.budget.selection import Limits
from mmprune_gates.channels.kept import Kept
from mmprune_gates.checks import COUNT, NUMBER, SHARE, checked
from mmprune_gates.gates import GateSet

TICK, TOCK, FINETUNE = 'tick', 'tock', 'finetune'
PLACE = ('phase', 'done', 'length', 'ticks', 'scored', 'wasted')  # place in the cycle, as a saved state holds it


@dataclass(frozen=True)
class Cycle:
    """Lengths of the phases, in iterations.

    Attributes:
        tick: Length of a Tick.
        tock: Length of a Tock.
        ticks: Number of Ticks after each Tock.
        fraction: Share of all filters that a Tick closes.
    """

    tick: int
    tock: int
    ticks: int = 10
    fraction: float = 0.002

    def __post_init__(self) -> None:
        for name in ('tick', 'tock', 'ticks'):
            checked(name, getattr(self, name), COUNT)
        checked('fraction', self.fraction, SHARE)


class TickTock(Controller):
    """The state of the cycle: current phase, progress in it, scores, and closed channels.

    Args:
        gates: The gates.
        target: Cost of the kept channels / cost of the whole model; once it is met no Tick follows.
        limits: Limits on what may close.
        cycle: Lengths of the phases.
        cost: The cost; multiply-accumulates by default.
        criterion: What a Tick gathers; by default the paper's Taylor importance, which needs gates that have one
            (:class:`~mmprune_gates.gates.DecoratorGate`).
        exponent: Power of a channel's marginal cost that divides its importance; 0 as in the paper.
    """

    kept: Kept
    criterion: Criterion

    def __init__(
        self,
        gates: GateSet,
        target: float,
        limits: Limits,
        cycle: Cycle,
        cost: Cost | None = None,
        criterion: Criterion | None = None,
        exponent: float = 0.0,
    ) -> None:
        super().__init__(gates, target, limits, cost, criterion or Taylor().bind(gates))
        self.cycle, self.exponent = cycle, checked('macs_exponent', exponent, NUMBER)
        counted = gates.graph.free_channels or gates.graph.channel_groups  # all, if only blocks may go
        filters = [int(gates.graph.filters[group.span].sum()) for group in counted]
        self.filters = sum(filters)
        self.phase, self.length = TOCK, cycle.tock
        self.done = self.ticks = self.scored = 0
        self.wasted = 0  # Ticks without a finite mini-batch
        self.kept = gates.graph.kept()

    @property
    def settled(self) -> bool:
        """Whether no further Tick follows."""
        return self.phase == FINETUNE

    @property
    def share(self) -> float:
        """Cost of the kept channels / cost of the whole model."""
        return self.candidates.share(self.kept)

    @property
    def progress(self) -> float:
        """Share of the current phase that is done, in [0, 1]."""
        return min(1.0, self.done / self.length) if self.length else 1.0

    @torch.no_grad()
    def observe(self, grads: Mapping[str, Tensor]) -> None:
        """Take in a mini-batch of a Tick (paper, equation 8).

        Args:
            grads: Group name -> gradient of the loss with respect to its gate.
        """
        self.criterion.observe(grads)
        self.scored += 1

    def step(self, remaining: int) -> bool:
        """Count an iteration; at the end of a phase, act and begin the next one.

        Args:
            remaining: Iterations left of the run: the length of a fine-tune that begins now.

        Returns:
            Whether a phase begins.
        """
        self.done += 1
        if self.phase == FINETUNE or self.done < self.length:
            return False
        if self.phase == TICK:
            self.close()
            self.ticks += 1
        if self.share <= self.aim:
            self.begin(FINETUNE, remaining)
        elif self.phase == TOCK or self.ticks % self.cycle.ticks:
            self.begin(TICK, self.cycle.tick)
        else:
            self.begin(TOCK, self.cycle.tock)
        return True

    def begin(self, phase: str, length: int) -> None:
        """Begin a phase, with no scores gathered."""
        self.phase, self.done, self.length = phase, 0, length
        self.criterion.forget()

    def close(self) -> None:
        """Close the filters of least importance, as many as a Tick may close, and no more than the target requires.

        Nothing closes if no mini-batch of the Tick had finite gradients.
        """
        score = self.criterion.scores()
        if score is None:
            self.wasted += 1
            return
        score = self.candidates.per_cost(score, self.kept.vector, self.exponent)
        kept = self.candidates.close(score, self.kept, self.cycle.fraction * self.filters, self.aim)
        if self.candidates.share(kept) <= self.aim:  # the last Tick closes no more than it must
            kept = self.candidates.fill(kept, score, self.aim, among=self.kept.vector)
        self.kept = kept
        self.hold()

    def expected_ticks(self) -> int:
        """Approximate number of Ticks that the target takes if all groups shrink alike."""
        return round((1 - self.target**0.5) / self.cycle.fraction)

    def scalars(self) -> dict[str, float]:
        """Figures to log: share of MACs kept, share of gates closed, Ticks done."""
        return {**self.figures(self.kept.vector.double()), 'ticks': float(self.ticks)}

    def state_dict(self) -> dict[str, Any]:
        """Adds the place in the cycle."""
        return {**super().state_dict(), **{name: getattr(self, name) for name in PLACE}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        super().load_state_dict(state)
        for name in PLACE:
            setattr(self, name, state[name])
