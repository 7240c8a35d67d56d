"""The ``gradient`` update, the paper's form: theta follows the gradient of task loss plus price times relaxed cost.

The cost is relaxed by alternation: with all other gates held fixed it is linear in each gate. Loss and cost reach a
gate as one gradient, dL/dg + price * dC/dg + resistance, which is divided by r, the root of the mean square of dL/dg,
as an optimiser with a diagonal preconditioner does it. The slope dg/dtheta multiplies all of it alike, so it cancels.

The resistance is that of a loss which grows by r/2 (1 - theta)^2 as a gate closes: at a trained optimum the mean of
dL/dg is about zero, and only its size tells gates apart. With it, a gate closes where its price exceeds r; else it
rests in between, where the gate's shape makes it nearly 1. The price follows the target of the moment by dual ascent.
What is the paper's and what is this project's choice stands in docs/gdp.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmprune_gates.budget.costs import Cost
from mmprune_gates.budget.criteria import MOMENTUM
from mmprune_gates.budget.polarizer import Polarizer, Schedule
from mmprune_gates.budget.selection import Limits
from mmprune_gates.channels.kept import Kept
from mmprune_gates.checks import NUMBER, POSITIVE
from mmprune_gates.gates import GateSet

FIRST_PRICE = 0.1  # of the mean of r
SLACK = 0.05  # relative distance from the target of the moment beyond which the price moves at its full pace


class Gradient(Polarizer):
    """One preconditioned gradient of task loss and cost; the price of the cost by dual ascent.

    Args:
        gates: The gates.
        schedule: Phases and target.
        limits: What must stay.
        cost: What has a price; multiply-accumulates by default.
        momentum: Of the running means of dL/dg and of its square.
        rate: Most that a theta moves in one iteration.
        price_step: Most that the logarithm of the price moves in one iteration.
        exponent: Power of a group's marginal cost, relative to the mean over groups, that its price scales with: below
            1 a costly layer is less prone to close as a whole.
    """

    rules = {'momentum': MOMENTUM, 'rate': POSITIVE, 'price_step': POSITIVE, 'exponent': NUMBER}

    def __init__(
        self,
        gates: GateSet,
        schedule: Schedule,
        limits: Limits,
        cost: Cost | None = None,
        momentum: float = 0.98,
        rate: float = 0.05,
        price_step: float = 0.1,
        exponent: float = 0.5,
    ) -> None:
        self.check_options(momentum=momentum, rate=rate, price_step=price_step, exponent=exponent)
        super().__init__(gates, schedule, limits, cost)
        self.momentum, self.rate, self.price_step, self.exponent = momentum, rate, price_step, exponent
        self.mean = torch.zeros(gates.graph.num_channels)
        self.square = torch.zeros(gates.graph.num_channels)
        self.price = 0.0

    @torch.no_grad()
    def observe(self, grad: Tensor) -> None:
        """Take in (num_channels,) dL/dg of one iteration, unless it overflows."""
        if self.settled or not grad.isfinite().all():
            return
        grad, share = grad.to(self.mean.dtype), 1 - self.momentum
        self.mean = self.mean.to(grad.device).lerp(grad, share)
        self.square = self.square.to(grad.device).lerp(grad.square(), share)

    def ranking(self) -> Tensor:
        """(num_channels,) theta; where it is the same, what would rise most is kept."""
        return self.gates.theta().cpu() - 1e-3 * self.direction()

    @torch.no_grad()
    def move(self, progress: float) -> None:
        """Update the price, then the thetas."""
        self.update_price(self.schedule.target_at(progress))
        moved = self.gates.theta().cpu() - self.rate * self.direction()
        self.gates.set_theta(moved.clamp_(0, 1))

    def update_price(self, target: float) -> None:
        """One step of the dual ascent: up while the relaxed cost is above the target of the moment, else down."""
        if self.price == 0:
            self.price = FIRST_PRICE * float(self.root().mean())
        share = float(self.candidates.cost.price(self.value())) / self.candidates.total
        distance = math.log(share / target) / SLACK
        self.price *= math.exp(self.price_step * min(1.0, max(-1.0, distance)))

    @torch.no_grad()
    def direction(self) -> Tensor:
        """(num_channels,) the preconditioned gradient, in [-1, 1]: where it is positive theta falls."""
        theta = self.gates.theta().cpu()
        mean, root = self.mean.cpu(), self.root().cpu()
        prices = self.prices()
        direction = torch.zeros_like(theta)
        for group in self.candidates.groups:
            own = group.span
            objective = (mean[own] + prices[group.name]) / root[own]
            resistance = theta[own] - 1  # divided by r as well
            direction[own] = (objective + resistance).clamp(-1, 1)
            must_stay = theta[own].topk(self.candidates.least(group)).indices
            direction[group.start + must_stay] = -1  # they open
        return direction

    def prices(self) -> dict[str, float]:
        """Group that may shrink -> what its channels have to pay: the price times a power of their relative cost."""
        marginal = self.candidates.cost.marginal(self.value())
        costs = {}
        for group in self.candidates.groups:
            costs[group.name] = float(marginal[group.span].mean())
        usual = sum(costs.values()) / max(1, len(costs))
        prices = {}
        for name, cost in costs.items():
            relative = cost / usual
            prices[name] = self.price * relative**self.exponent
        return prices

    def value(self) -> Tensor:
        """(num_channels,) gate values, float64."""
        return self.gates.vector().detach().cpu().double()

    def root(self) -> Tensor:
        """(num_channels,) r, never 0."""
        root = self.square.sqrt()
        return root.clamp_min(1e-3 * float(root.mean()) + 1e-30)

    def narrow(self, gates: GateSet, kept: Kept) -> None:
        """Go on with the gates of what is left once channels have gone."""
        super().narrow(gates, kept)
        vector = kept.vector.to(self.mean.device)
        self.mean, self.square = self.mean[vector], self.square[vector]

    def state_dict(self) -> dict[str, Any]:
        """Adds price and means."""
        own = {'price': self.price, 'mean': self.mean.cpu(), 'square': self.square.cpu()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        super().load_state_dict(state)
        self.price = float(state['price'])
        self.mean, self.square = state['mean'].clone(), state['square'].clone()
