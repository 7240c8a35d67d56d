"""GDP in any training loop.

Guo et al., GDP: Stabilized Neural Network Pruning via Gates with Differentiable Polarization, ICCV 2021,
arXiv 2109.02220. docs/gdp.md says what comes from the paper and what is this project's choice.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_gates.budget import Cost, Criterion, Goal, Gradient, Limits, Polarizer, Schedule, Taylor, Waterline
from mmprune_gates.channels.calls import Inputs
from mmprune_gates.checks import COUNT, MAPPING, check_all, checked, instance_of, one_of, optional
from mmprune_gates.gates import PolarizationGate
from mmprune_gates.pruning.gate_params import take_out
from mmprune_gates.pruning.pruner import Pruner
from mmprune_gates.pruning.ranks import mean_over_ranks

UPDATES: dict[str, type[Polarizer]] = {'waterline': Waterline, 'gradient': Gradient}
RULES = {
    'update': one_of(UPDATES),
    'cost': optional(instance_of(Cost)),
    'criterion': optional(instance_of(Criterion)),
    'options': optional(MAPPING),
}


@dataclass(frozen=True)
class GDPSettings:
    """Settings of a run of GDP, checked at once.

    Attributes:
        target_macs, target, target_ms: How much is kept; one of them, see :class:`~mmprune_gates.budget.Goal`.
        update: ``waterline`` (this project's) or ``gradient`` (the paper's form).
        begin, end, settle, eps: Phases as shares of the run; see :class:`~mmprune_gates.budget.Schedule`.
        floor, divisor, exclude: Limits on what may close; see :class:`~mmprune_gates.budget.Limits`.
        cost: The cost that the target is a share of; multiply-accumulates by default.
        criterion: Scores channels, with ``update='waterline'``.
        options: Further arguments of the update.

    Raises:
        ValueError: A value is out of range.
    """

    target_macs: float | None = None
    target: float | None = None
    target_ms: float | None = None
    update: str = 'waterline'
    begin: float = 0.05
    end: float = 0.2
    settle: float = 0.25
    eps: Sequence[float] = (0.1, 1e-4)
    floor: float = Limits.floor
    divisor: int | str = Limits.divisor
    exclude: str | Sequence[str] = ()
    cost: Cost | None = None
    criterion: Criterion | None = None
    options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_all(vars(self), RULES)
        self.goal.check_cost(self.cost)
        known = self.known_options(self.update)
        if unknown := sorted((self.options or {}).keys() - known):
            raise ValueError(f'no argument {unknown} with update={self.update!r}, which takes {sorted(known)}')
        if isinstance(self.criterion, Taylor):
            raise ValueError('criterion=Taylor needs gates with an importance; use MeanGradient, the default, here')
        if self.criterion is not None and 'momentum' in (self.options or {}):
            raise ValueError('momentum is that of the default criterion; give it to yours instead')
        if self.criterion is not None and 'criterion' not in inspect.signature(UPDATES[self.update]).parameters:
            raise ValueError(f'update={self.update!r} ranks by the gates themselves and takes no criterion')
        UPDATES[self.update].check_options(**(self.options or {}))
        _ = self.schedule(share=1.0), self.limits  # refuse values out of range

    @staticmethod
    def known_options(update: str) -> set[str]:
        """Names of the arguments that only this update has."""
        own = inspect.signature(UPDATES[update]).parameters
        return set(own) - set(inspect.signature(Polarizer).parameters)

    @property
    def goal(self) -> Goal:
        """How much of the model is kept."""
        return Goal.of(vars(self))

    def schedule(self, share: float) -> Schedule:
        """The phases, and the share of the cost that is kept at their end."""
        return Schedule(share, self.begin, self.end, self.settle, self.eps)

    @property
    def limits(self) -> Limits:
        """Limits on what may close."""
        return Limits(self.floor, self.divisor, self.exclude)


class GDP(Pruner):
    """Anneals and closes gates until a target is met, then lets the model settle.

    Args:
        model, example_inputs, optimizer: As in :class:`Pruner`. The gates are taken out of the optimiser.
        total_steps: Length of the run.
        trace: Further arguments of :class:`Pruner`: ``forward``, ``train_forward``, ``units``, ``attention``.
        **settings: Fields of :class:`GDPSettings`.
    """

    gate = PolarizationGate
    controller: Polarizer

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs | None,
        optimizer: torch.optim.Optimizer,
        *,
        total_steps: int,
        trace: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.settings, self.phase = GDPSettings(**settings), 0
        self.total_steps = checked('total_steps', total_steps, COUNT)
        super().__init__(model, example_inputs, optimizer, exclude=self.settings.limits.exclude, **(trace or {}))
        own, update = self.settings, UPDATES[self.settings.update]
        with self.released_if_it_fails():
            cost, criterion = self.bound(own.cost, own.criterion)
            options = dict(own.options or {})
            if criterion is not None:
                options['criterion'] = criterion
            schedule = own.schedule(own.goal.share(cost))
            self.controller = update(self.gates, schedule, own.limits, cost, **options)
        take_out(optimizer, self.gates)

    def altered(self, name: str, grad: Tensor) -> Tensor:
        """Zero: no optimiser moves the gates, so they have no part in the gradient norm that a loop clips by."""
        return torch.zeros_like(grad)

    def phase_at(self, progress: float) -> int:
        """0 while scores accumulate, 1 while gates move, 2 when they settle."""
        return sum(progress >= edge for edge in (self.settings.begin, self.settings.settle))

    def step(self) -> None:
        """One step of the controller. Gates move, and settle, only if they have acted."""
        if grads := self.taken_grads():
            grad = self.gates.flat(grads)
            mean_over_ranks(grad)
            self.controller.observe(grad)
        for parameter in self.gates.parameters():
            parameter.grad = None  # no optimiser zeroes it
        self.done += 1
        progress, before = self.done / self.total_steps, self.phase
        self.phase = self.phase_at(progress)
        if self.phase != before:
            self.check()
        was_settled = self.controller.settled
        self.controller.step(progress)
        if self.controller.settled and not was_settled:
            self.controller.check()

    def load_state_dict(self, state) -> None:
        """Continue from a saved state."""
        super().load_state_dict(state)
        self.phase = self.phase_at(self.done / self.total_steps)
