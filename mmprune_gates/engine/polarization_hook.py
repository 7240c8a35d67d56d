"""GDP as an mmengine hook: when the gates move. How they move is the controllers' affair."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from mmprune_gates.budget import Controller, GradientController, Limits, Schedule, WaterlineController
from mmprune_gates.engine.gate_params import gates_group, own_param_group, take_out
from mmprune_gates.engine.pruning_hook import PruningHook, flat_grads, forget_grads
from mmprune_gates.engine.registry import HOOKS

UPDATES: dict[str, type[Controller]] = {'waterline': WaterlineController, 'gradient': GradientController}


@HOOKS.register_module()
class PolarizationHook(PruningHook):
    """Anneals and closes the gates of a ``GatedModel`` until a MACs target is met, then lets the model settle.

    Args:
        target_macs: Kept MACs / original MACs, in (0, 1].
        update: ``waterline`` (this project's) or ``gradient`` (the paper's form).
        begin, end, settle, eps: Phases as shares of the run; see :class:`~mmprune_gates.budget.Schedule`.
        floor, divisor, exclude: What stays; see :class:`~mmprune_gates.budget.Limits`.
        gate_lr: Learning rate of the gates' own optimiser group with ``update='gradient'``.
        **options: Further arguments of the controller.

    Raises:
        ValueError: A value out of range; a model without gates; a target out of reach under the limits.
    """

    priority = 'NORMAL'

    def __init__(
        self,
        target_macs: float,
        update: str = 'waterline',
        begin: float = 0.05,
        end: float = 0.5,
        settle: float = 0.55,
        eps: Sequence[float] = (0.1, 1e-4),
        floor: float = 0.05,
        divisor: int = 1,
        exclude: Sequence[str] = (),
        gate_lr: float = 0.01,
        **options: Any,
    ) -> None:
        if update not in UPDATES:
            raise ValueError(f'PolarizationHook: update must be one of {sorted(UPDATES)}, got {update!r}')
        known = list(inspect.signature(UPDATES[update]).parameters)[3:]  # after gates, schedule, limits
        if unknown := sorted(options.keys() - set(known)):
            raise ValueError(f'PolarizationHook: no argument {unknown} with update={update!r}, which takes {known}')
        super().__init__(exclude)
        self.schedule = Schedule(target_macs, begin, end, settle, tuple(eps))
        self.limits = Limits(floor, divisor, self.exclude)
        self.update, self.gate_lr, self.options = update, gate_lr, options
        self.phase = 0

    def make_pruner(self, runner) -> Controller:
        """The controller; gates that it alone moves leave the optimiser, others get a group of their own."""
        pruner = UPDATES[self.update](self.gates, self.schedule, self.limits, **self.options)
        optimizer = runner.optim_wrapper.optimizer
        if pruner.straight_through:
            take_out(optimizer, self.gates)
        else:
            own_param_group(optimizer, self.gates, self.gate_lr)
        return pruner

    def before_train(self, runner) -> None:
        """Find the place in the schedule."""
        super().before_train(runner)
        self.phase = self.phase_at(runner.iter / runner.max_iters) if runner.iter else 0

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set the gates' own learning rate, which no scheduler knows."""
        super().before_train_iter(runner, batch_idx, data_batch)
        if not self.pruner.straight_through:
            gates_group(runner.optim_wrapper.optimizer)['lr'] = 0.0 if self.pruner.settled else self.gate_lr

    def altered(self, name: str, grad: Tensor) -> Tensor:
        """None once the gates have settled."""
        return torch.zeros_like(grad) if self.pruner.settled else grad

    def phase_at(self, progress: float) -> int:
        """0 while scores gather, 1 while gates move, 2 when they settle."""
        return sum(progress >= edge for edge in (self.schedule.begin, self.schedule.settle))

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """One step of the controller; publish its figures. Gates move, and settle, only if they have acted."""
        if grads := self.taken_grads():
            grad = flat_grads(self.gates, grads)
            all_reduce(grad, 'mean')
            self.pruner.observe(grad)
        if self.pruner.straight_through:
            forget_grads(self.gates)
        progress, before = (runner.iter + 1) / runner.max_iters, self.phase
        self.phase = self.phase_at(progress)
        if self.phase != before:
            self.prove(runner)
        was_settled = self.pruner.settled
        self.pruner.step(progress)
        if self.pruner.settled and not was_settled:
            self.pruner.check()
            runner.logger.info(f'Gates settled: {self.pruner.summary()}')
        for name, value in self.pruner.scalars().items():
            runner.message_hub.update_scalar(f'train/{name}', value)
