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

from mmprune_gates.budget import Gradient, Polarizer, Schedule, Taylor, Waterline
from mmprune_gates.channels.calls import Inputs
from mmprune_gates.checks import COUNT, MAPPING, check_all, checked, one_of, optional, refuse_unknown
from mmprune_gates.pruning.gate_params import take_out
from mmprune_gates.pruning.pruner import Pruner
from mmprune_gates.pruning.ranks import mean_over_ranks
from mmprune_gates.pruning.settings import Settings
from mmprune_gates.pruning.threads import one_thread

UPDATES: dict[str, type[Polarizer]] = {'waterline': Waterline, 'gradient': Gradient}


@dataclass(frozen=True, kw_only=True)
class GDPSettings(Settings):
    """Settings of a run of GDP. The criterion is for ``update='waterline'``; ``MeanGradient`` by default.

    Attributes:
        update: ``waterline`` (this project's) or ``gradient`` (the paper's form).
        begin, end, settle, eps: Phases as shares of the run; see :class:`~mmprune_gates.budget.Schedule`.
        options: Further arguments of the update.

    Raises:
        ValueError: A value is out of range.
    """

    rules = {'update': one_of(UPDATES), 'options': optional(MAPPING)}
    update: str = 'waterline'
    begin: float = Schedule.begin
    end: float = Schedule.end
    settle: float = Schedule.settle
    eps: Sequence[float] = Schedule.eps
    options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        options, rules = self.options or {}, UPDATES[self.update].rules
        refuse_unknown(options, rules)
        if isinstance(self.criterion, Taylor):
            raise ValueError('criterion=Taylor needs gates with an importance; use MeanGradient, the default, here')
        if self.criterion is not None and 'momentum' in options:
            raise ValueError('momentum is that of the default criterion; give it to yours instead')
        if self.criterion is not None and 'criterion' not in inspect.signature(UPDATES[self.update]).parameters:
            raise ValueError(f'update={self.update!r} ranks by the gates themselves and takes no criterion')
        check_all(options, rules)
        _ = self.schedule(share=1.0)  # refuses values out of range

    def schedule(self, share: float) -> Schedule:
        """The phases, and the share of the cost that is kept at their end."""
        return Schedule(share, self.begin, self.end, self.settle, self.eps)


class GDP(Pruner):
    """Anneals and closes gates until a target is met, then lets the model settle.

    Args:
        model, example_inputs, optimizer: As in :class:`Pruner`. The gates are taken out of the optimiser.
        total_steps: Length of the run.
        **settings: Fields of :class:`GDPSettings`, and ``forward``, ``train_forward``, ``units``, ``attention`` as in
            :class:`Pruner`.
    """

    ends_at_one = True
    controller: Polarizer

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs | None,
        optimizer: torch.optim.Optimizer,
        *,
        total_steps: int,
        **settings: Any,
    ) -> None:
        self.settings, traced = GDPSettings.split(settings)
        self.phase = 0
        self.total_steps = checked('total_steps', total_steps, COUNT)
        super().__init__(model, example_inputs, optimizer, exclude=self.settings.exclude, **traced)
        own, update = self.settings, UPDATES[self.settings.update]
        with self.released_if_it_fails():
            cost, criterion = self.bound(own.cost, own.criterion)
            options = dict(own.options or {})
            if criterion is not None:
                options['criterion'] = criterion
            schedule = own.schedule(own.goal.share(cost))
            self.controller = update(self.gates, schedule, own, cost, **options)
        take_out(optimizer, self.gates)

    @property
    def method(self) -> str:
        """Name of the method, and of its update."""
        return f'GDP with update={self.settings.update!r}'

    def altered(self, name: str, grad: Tensor) -> Tensor:
        """Zero: no optimiser moves the gates, so they have no part in the gradient norm that a loop clips by."""
        return torch.zeros_like(grad)

    def is_near_target(self) -> bool:
        """Whether the target no longer falls, and the gates have not settled."""
        return self.done >= self.settings.end * self.total_steps and not self.controller.settled

    def phase_at(self, progress: float) -> int:
        """0 while scores accumulate, 1 while gates move, 2 when they settle."""
        return sum(progress >= edge for edge in (self.settings.begin, self.settings.settle))

    @one_thread()
    def step(self) -> None:
        """One step of the controller. Gates move, and settle, only if they have acted."""
        grads = self.taken_grads()
        if grads and not self.controller.settled:
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
