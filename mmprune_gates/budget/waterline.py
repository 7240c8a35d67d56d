"""The ``waterline`` update, this project's own: benefit per marginal cost decides which gates shrink.

It keeps GDP's gate, its annealing and its bilinear cost, and replaces the gradient on theta. The worth of a gate is a
running mean of |dL/dg| divided by a power of the cost that closing it alone would save, all others held fixed. The
waterline is the worth below which closing everything meets the current target: gates below it shrink by a proximal step
and reach exactly 0, the others relax back to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmprune_gates.budget.costs import Cost
from mmprune_gates.budget.criteria import MOMENTUM, Criterion, MeanGradient
from mmprune_gates.budget.polarizer import Polarizer, Schedule
from mmprune_gates.budget.selection import Limits
from mmprune_gates.checks import COUNT, NUMBER, check_all
from mmprune_gates.gates import GateSet


class Waterline(Polarizer):
    """Lowers gates whose benefit per marginal cost is below a falling waterline, and raises the others.

    Args:
        gates: The gates.
        schedule: Phases and target.
        limits: Limits on what may close.
        cost: The cost that the benefit is divided by; multiply-accumulates by default.
        criterion: The benefit; by default a running mean of abs(dL/dg).
        momentum: Momentum of that mean.
        exponent: Power of the marginal cost that divides the benefit; 0 ranks by benefit alone.
        steps: Iterations in which theta falls from 1 to 0 (and rises back from 0 to 1).
    """

    criterion: Criterion
    rules = {'momentum': MOMENTUM, 'exponent': NUMBER, 'steps': COUNT}

    def __init__(
        self,
        gates: GateSet,
        schedule: Schedule,
        limits: Limits,
        cost: Cost | None = None,
        criterion: Criterion | None = None,
        momentum: float = 0.98,
        exponent: float = 0.5,
        steps: int = 30,
    ) -> None:
        check_all({'momentum': momentum, 'exponent': exponent, 'steps': steps}, self.rules)
        super().__init__(gates, schedule, limits, cost, criterion or MeanGradient(momentum).bind(gates))
        self.exponent, self.steps = exponent, steps

    def observe(self, grad: Tensor) -> None:
        """Take in (num_channels,) dL/dg of one iteration."""
        if not self.settled:
            self.criterion.observe({group.name: grad[group.span] for group in self.gates.graph.groups})

    def ranking(self) -> Tensor:
        """(num_channels,) benefit per marginal cost.

        Raises:
            RuntimeError: The criterion has no scores yet.
        """
        scores = self.criterion.scores()
        if scores is None:
            raise RuntimeError(f'{type(self.criterion).__name__} has observed nothing that scores could rest on')
        return self.candidates.per_cost(scores, self.gates.theta().cpu() > 0, self.exponent)

    @torch.no_grad()
    def move(self, progress: float) -> None:
        """Lower theta below the waterline, raise it above."""
        kept = self.candidates.select(self.ranking(), self.target_at(progress))
        theta = self.gates.theta()
        towards = torch.where(kept.vector.to(theta.device), 1.0, -1.0) / self.steps
        self.gates.set_theta((theta + towards).clamp_(0, 1))
