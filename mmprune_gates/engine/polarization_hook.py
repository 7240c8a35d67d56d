"""GDP as an mmengine hook: when the gates move. How they move is the controllers' affair."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.optim import BaseOptimWrapper
from torch import Tensor

from mmprune_gates.budget import Controller, GradientController, Limits, Schedule, WaterlineController
from mmprune_gates.engine.gate_params import STATE, own_param_group, unwrapped
from mmprune_gates.engine.registry import HOOKS
from mmprune_gates.gates import GateSet, gates_of

UPDATES: dict[str, type[Controller]] = {'waterline': WaterlineController, 'gradient': GradientController}


@HOOKS.register_module()
class PolarizationHook(Hook):
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
        self.schedule = Schedule(target_macs, begin, end, settle, tuple(eps))
        self.limits = Limits(floor, divisor, tuple(exclude))
        self.update, self.gate_lr, self.options = update, gate_lr, options
        self.controller: Controller | None = None
        self.loaded: dict | None = None
        self.grads: dict[str, Tensor] = {}

    def before_run(self, runner) -> None:
        """Before training, build the controller and give the gates an optimiser group of their own."""
        if not isinstance(runner.optim_wrapper, BaseOptimWrapper):
            return  # validation and test leave the optimiser a config
        self.gates = gates_of(unwrapped(runner))
        self.controller = UPDATES[self.update](self.gates, self.schedule, self.limits, **self.options)
        own_param_group(runner.optim_wrapper.optimizer, self.gates, self.gate_lr)

    def before_train(self, runner) -> None:
        """Restore a resumed run's state; start to watch the gradients."""
        if self.loaded is not None and runner.iter > 0:
            self.controller.load_state_dict(self.loaded)
        for group in self.gates.graph.free:
            self.gates[group.name].theta.register_hook(self.watch(group.name))

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set the gates' own learning rate, which no scheduler knows; 0 where the controller alone moves them."""
        still = self.controller.straight_through or self.controller.settled
        runner.optim_wrapper.optimizer.param_groups[-1]['lr'] = 0.0 if still else self.gate_lr

    def watch(self, name: str):
        """A hook that keeps the gradient of a group's gate, and hides it from the optimiser if need be."""

        def keep(grad: Tensor) -> Tensor:
            self.grads[name] = self.grads.get(name, 0) + grad.detach()
            hide = self.controller.straight_through or self.controller.settled
            return torch.zeros_like(grad) if hide else grad

        return keep

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """One step of the controller; publish its figures."""
        if self.grads:
            self.controller.observe(gathered(self.gates, self.grads))
            self.grads = {}
        was_settled = self.controller.settled
        self.controller.step((runner.iter + 1) / runner.max_iters)
        if self.controller.settled and not was_settled:
            runner.logger.info(f'Gates settled: {self.controller.summary()}')
        for name, value in self.controller.scalars().items():
            runner.message_hub.update_scalar(f'train/{name}', value)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Save what a resumed run needs."""
        if self.controller is not None:
            checkpoint[STATE] = self.controller.state_dict()

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep the saved state until it is known whether the run resumes."""
        self.loaded = checkpoint.get(STATE)


def gathered(gates: GateSet, grads: dict[str, Tensor]) -> Tensor:
    """(num_channels,) gradients from one vector per group, averaged over the ranks of a distributed run."""
    grad = torch.cat(
        [grads.get(g.name, torch.zeros(g.size)).to(next(iter(grads.values()))) for g in gates.graph.groups]
    )
    all_reduce(grad, 'mean')
    return grad
