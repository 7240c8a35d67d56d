"""The ``gradient`` update, the paper's form: theta follows the gradient of task loss plus price times relaxed cost.

The cost is relaxed by alternation: with all other gates held fixed it is linear in each gate. Loss and cost reach a
gate as one gradient, dL/dg + price * dC/dg + resistance, which is divided by r, the root of the mean square of dL/dg,
as in an optimiser with a diagonal preconditioner. The slope dg/dtheta would multiply all of it alike, so it cancels.

The resistance is the gradient of a loss r/2 (1 - theta)^2, which grows as a gate closes: at a trained optimum the mean
of dL/dg is about zero, and only its size tells gates apart. With the resistance, a gate closes where its price exceeds
r; otherwise it rests in between, where the gate's shape makes it nearly 1. The price follows the current target by dual
ascent. docs/gdp.md says what comes from the paper and what is this project's choice.
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
from mmprune_gates.checks import NUMBER, POSITIVE, check_all
from mmprune_gates.gates import GateSet

FIRST_PRICE = 0.1  # times the mean of r
SLACK = 0.05  # relative distance from the current target beyond which the price moves at full speed


class Gradient(Polarizer):
    """Moves theta along one preconditioned gradient of task loss and cost; dual ascent sets the price of the cost.

    Args:
        gates: The gates.
        schedule: Phases and target.
        limits: Limits on what may close.
        cost: The cost that has a price; multiply-accumulates by default.
        momentum: Momentum of the running means of dL/dg and of its square.
        rate: Largest change of a theta in one iteration.
        price_step: Largest change of the logarithm of the price in one iteration.
        exponent: A group's price scales with this power of its marginal cost, relative to the mean over groups: below 1
            a costly layer is less likely to close as a whole.
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
        own = {'momentum': momentum, 'rate': rate, 'price_step': price_step, 'exponent': exponent}
        check_all(own, self.rules)
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
        """(num_channels,) theta; among equal values, the channel that would rise most is kept."""
        return self.gates.theta().cpu() - 1e-3 * self.direction()

    @torch.no_grad()
    def move(self, progress: float) -> None:
        """Update the price, then the thetas."""
        self.update_price(self.target_at(progress))
        moved = self.gates.theta().cpu() - self.rate * self.direction()
        self.gates.set_theta(moved.clamp_(0, 1))

    def update_price(self, target: float) -> None:
        """One step of the dual ascent: up while the relaxed cost is above the current target, else down."""
        if self.price == 0:
            self.price = FIRST_PRICE * float(self.root().mean())
        cost = float(self.candidates.cost.price(self.value()))
        share = cost / self.candidates.total
        distance = math.log(share / target) / SLACK
        direction = min(1.0, max(-1.0, distance))
        self.price *= math.exp(self.price_step * direction)

    @torch.no_grad()
    def direction(self) -> Tensor:
        """(num_channels,) the preconditioned gradient, in [-1, 1]; theta falls where it is positive."""
        theta = self.gates.theta().cpu()
        mean, root = self.mean.cpu(), self.root().cpu()
        prices = self.prices()
        direction = torch.zeros_like(theta)
        for group in self.candidates.groups:
            own = group.span
            objective = (mean[own] + prices[group.name]) / root[own]
            resistance = theta[own] - 1  # divided by r as well
            direction[own] = (objective + resistance).clamp(-1, 1)
            must_stay = theta[own].topk(self.candidates.leasts[group.name]).indices
            direction[group.start + must_stay] = -1  # they open
        return direction

    def prices(self) -> dict[str, float]:
        """Group that may shrink -> price of its channels: the common price times a power of their relative cost."""
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
        """Continue with the gates that remain after channels were removed."""
        super().narrow(gates, kept)
        vector = kept.staying.to(self.mean.device)
        self.mean, self.square = self.mean[vector], self.square[vector]

    def state_dict(self) -> dict[str, Any]:
        """Adds the price and the running means."""
        own = {'price': self.price, 'mean': self.mean.cpu(), 'square': self.square.cpu()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        super().load_state_dict(state)
        self.price = float(state['price'])
        self.mean, self.square = state['mean'].clone(), state['square'].clone()
