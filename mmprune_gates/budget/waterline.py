"""The ``waterline`` update, this project's own: benefit per marginal MAC decides which gates shrink.

It keeps GDP's gate, its annealing and its bilinear cost, and replaces the gradient on theta: a gate is worth a
running mean of |dL/dg| divided by the MACs it alone would save with all others held fixed. Gates below the
level at which closing everything beneath it meets the target of the moment shrink by a proximal step and reach
exactly 0; the others relax back to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmprune_gates.budget.controller import Controller, Schedule
from mmprune_gates.budget.selection import Limits, per_mac
from mmprune_gates.gates import GateSet


class WaterlineController(Controller):
    """Benefit per marginal MAC against a falling waterline.

    Args:
        gates: The gates.
        schedule: Phases and target.
        limits: What must stay.
        momentum: Of the running mean of |dL/dg|.
        exponent: Power of the marginal MACs that divides it; 0 ranks by benefit alone.
        steps: Iterations in which theta falls from 1 to 0 (and rises back from 0 to 1).
    """

    straight_through = True  # theta.grad is dL/dg: this controller moves theta itself

    def __init__(
        self,
        gates: GateSet,
        schedule: Schedule,
        limits: Limits,
        momentum: float = 0.98,
        exponent: float = 0.5,
        steps: int = 30,
    ) -> None:
        super().__init__(gates, schedule, limits)
        if not 0 <= momentum < 1:
            raise ValueError(f'momentum must be in [0, 1), got {momentum}')
        if steps < 1:
            raise ValueError(f'steps must be at least 1, got {steps}')
        self.momentum, self.exponent, self.steps = momentum, exponent, steps
        self.benefit = torch.zeros(gates.graph.num_channels)

    def observe(self, grad: Tensor) -> None:
        """Take in (num_channels,) dL/dg of one iteration."""
        if not self.settled and bool(grad.isfinite().all()):
            self.benefit = self.benefit.to(grad.device).lerp(grad.abs(), 1 - self.momentum)

    def ranking(self) -> Tensor:
        """(num_channels,) benefit per marginal MAC."""
        return per_mac(self.benefit, self.gates.graph, self.gates.theta().cpu() > 0, self.exponent)

    @torch.no_grad()
    def move(self, progress: float) -> None:
        """Lower theta below the waterline, raise it above."""
        kept = self.candidates.select(self.ranking(), self.schedule.target_at(progress))
        theta = self.gates.theta()
        towards = torch.where(kept.to(theta.device), 1.0, -1.0) / self.steps
        self.gates.set_theta((theta + towards).clamp_(0, 1))

    def state_dict(self) -> dict:
        """Adds the running mean."""
        return {**super().state_dict(), 'benefit': self.benefit.cpu()}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a saved state."""
        super().load_state_dict(state)
        self.benefit = state['benefit'].clone()
