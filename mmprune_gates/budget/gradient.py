"""The ``gradient`` update, the paper's form: theta follows the task loss plus a price on the bilinear MACs.

GDP relaxes the bilinear cost by alternation: one side of the products is held fixed while the other moves. The
exact update, the price's controller and the safeguards are this project's choice: the price acts on every other
group in turn; it grows with a group's marginal MACs only by a power below one, so that a costly layer is less
prone to close as a whole; it follows a slowly falling target; and a floor per group is never priced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmprune_gates.budget.costs import Cost
from mmprune_gates.budget.polarizer import Polarizer, Schedule
from mmprune_gates.budget.selection import Limits
from mmprune_gates.checks import NOT_NEGATIVE, NUMBER, POSITIVE
from mmprune_gates.gates import GateSet

SMALL = 1e-2  # theta below it is closed


class Gradient(Polarizer):
    """Task gradient by the optimiser, price by this controller.

    Args:
        gates: The gates; their thetas are in a group of the optimiser.
        schedule: Phases and target.
        limits: What must stay.
        cost: What has a price; multiply-accumulates by default.
        price_step: How fast the price rises while the soft cost is above the target of the moment, and falls
            while they are below, per iteration.
        rate: Most a theta may fall in one iteration.
        exponent: Power of a group's marginal cost, relative to the mean over groups, that its price scales with.
    """

    rules = {'price_step': POSITIVE, 'rate': NOT_NEGATIVE, 'exponent': NUMBER}

    def __init__(
        self,
        gates: GateSet,
        schedule: Schedule,
        limits: Limits,
        cost: Cost | None = None,
        price_step: float = 1e-3,
        rate: float = 0.02,
        exponent: float = 0.5,
    ) -> None:
        super().__init__(gates, schedule, limits, cost)
        self.check_options(price_step=price_step, rate=rate, exponent=exponent)
        self.price_step, self.rate, self.exponent = price_step, rate, exponent
        self.price, self.turn = 0.0, 0

    def ranking(self) -> Tensor:
        """(num_channels,) theta itself."""
        return self.gates.theta().cpu()

    @torch.no_grad()
    def move(self, progress: float) -> None:
        """Update the price, then the thetas of one side."""
        theta = self.gates.theta()
        value = self.gates.vector()
        cost = self.candidates.cost
        share = float(cost.price(value)) / self.candidates.total
        above = share > self.schedule.target_at(progress)
        step = self.price_step if above else -self.price_step
        self.price = max(0.0, self.price + step)
        force = self.price * self.priced(theta, cost.marginal(value)) * self.gates.slope()
        moved = theta - force.clamp(max=self.rate)
        self.turn += 1
        self.gates.set_theta(self.limited(snapped(moved).clamp(max=1)))

    def priced(self, theta: Tensor, marginal: Tensor) -> Tensor:
        """(num_channels,) relative price: zero for the side held fixed, for floors and for what must stay."""
        price = torch.zeros_like(theta)
        groups, limits = self.candidates.groups, self.candidates.limits
        means = [marginal[group.span].mean() for group in groups]
        mean = sum(means) / max(1, len(means))
        for group in groups[self.turn % 2 :: 2]:
            own = (marginal[group.span] / mean).pow(self.exponent)
            largest = theta[group.span].topk(limits.least(group))
            own[largest.indices] = 0
            price[group.span] = own
        return price

    def limited(self, theta: Tensor) -> Tensor:
        """Theta with what must stay put back where the optimiser has moved it: 1, or open in a floor."""
        limited = torch.ones_like(theta)
        for group in self.candidates.groups:
            own = theta[group.span].clone()
            largest = own.topk(self.candidates.limits.least(group))
            own[largest.indices] = largest.values.clamp_min(SMALL)
            limited[group.span] = own
        return limited

    def state_dict(self) -> dict[str, Any]:
        """Adds price and turn."""
        return super().state_dict() | {'price': self.price, 'turn': self.turn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        super().load_state_dict(state)
        self.price = float(state['price'])
        self.turn = int(state['turn'])


def snapped(theta: Tensor) -> Tensor:
    """Theta with values too small to matter set to exactly 0, where its gradient vanishes."""
    return theta.masked_fill(theta < SMALL, 0)
