"""Gate Decorator as an mmengine hook: lengths in epochs, and the data of each phase."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop

from mmprune_gates.budget import Cycle
from mmprune_gates.budget.tick_tock import TICK
from mmprune_gates.checks import SHARE, SWITCH, checked, refuse_unknown
from mmprune_gates.engine.pruning_hook import PruningHook
from mmprune_gates.engine.registry import HOOKS
from mmprune_gates.engine.running import has_static_graph, unwrapped
from mmprune_gates.engine.tick_data import Alternating, endless, epoch_length, subset_loader
from mmprune_gates.pruning import GateDecorator, GateDecoratorSettings


@HOOKS.register_module()
class GateDecoratorHook(PruningHook):
    """Tick-Tock pruning of a ``GatedModel`` with ``gates=dict(type='DecoratorGate')``.

    A Tock first, then ``ticks`` Ticks and a Tock in turn until the MACs target is met; the rest of the run is the
    fine-tune. The hook sets the learning rates itself: the config's ``param_scheduler`` is ignored, and the log
    says so.

    Args:
        target_macs: Kept MACs / original MACs, in (0, 1]. Instead, the settings may hold ``target``, a share of any
            ``cost``, or ``target_ms``, see :class:`~mmprune_gates.budget.Goal`.
        by_epoch: Whether ``tick`` and ``tock`` are in epochs; if not, in iterations (iteration-based loops only).
        subset: Share of the training data that Ticks see.
        criterion, cost: Configs, types in ``mmprune_gates.CRITERIA`` and ``mmprune_gates.COSTS``.
        shrink: Whether closed channels leave the model when the target is met, so that the fine-tune costs what the
            slim model costs. A number: also earlier, whenever that share of the MACs can go.
        export: Whether ``WORK_DIR/slim`` is written when training ends.
        **settings: Further fields of :class:`~mmprune_gates.pruning.GateDecoratorSettings`.

    Raises:
        ValueError: A value is out of range, the model has no such gates, or the limits put the target out of reach.
    """

    pruner: GateDecorator
    priority = 'ABOVE_NORMAL'  # before the hook that seeds the sampler of an epoch's data
    too_short = 'Train longer, or close a larger fraction in each Tick'

    def __init__(
        self,
        target_macs: float | None = None,
        by_epoch: bool = True,
        subset: float = 1.0,
        criterion: Any = None,
        cost: Any = None,
        shrink: bool | float = True,
        export: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(criterion, cost, shrink, export)
        self.by_epoch = checked('GateDecoratorHook: by_epoch', by_epoch, SWITCH)
        self.subset = checked('GateDecoratorHook: subset', subset, SHARE)
        self.settings |= dict(target_macs=target_macs, **settings)
        with self.own_errors():
            refuse_unknown(settings, {*GateDecoratorSettings.names(), 'by_epoch', 'subset', 'shrink', 'export'})
            self.cycle = GateDecoratorSettings(**self.settings).cycle  # refuses bad values before anything is built

    def make_pruner(self, runner) -> GateDecorator:
        """Gate Decorator on the model and optimiser of a run.

        Raises:
            ValueError: A distributed run has a static graph, or does not look for unused parameters.
        """
        if has_static_graph(runner):
            raise ValueError('Ticks and Tocks have different graphs: take static_graph=True out of model_wrapper_cfg')
        if is_model_wrapper(runner.model) and not getattr(runner.model, 'find_unused_parameters', True):
            raise ValueError('weights are frozen in Ticks: set find_unused_parameters=True in the config')
        cycle = self.set_up_data(runner)
        optimizer = runner.optim_wrapper.optimizer
        pruner = GateDecorator(unwrapped(runner), None, optimizer, cycle=cycle, begin=False, **self.settings)
        if runner.param_schedulers:
            names = ', '.join(type(scheduler).__name__ for scheduler in runner.param_schedulers)
            (low, high), tick = pruner.settings.tock_lr, pruner.settings.tick_lr
            self.warn(
                f"it sets the learning rate (Tick {tick}, Tock and fine-tune {low} to {high} and back): the config's "
                f'param_scheduler ({names}) is not used'
            )
        runner.param_schedulers = []
        return pruner

    def set_up_data(self, runner) -> Cycle:
        """Set up the data of Ticks and of Tocks; returns the lengths of the phases in iterations.

        Raises:
            ValueError: Lengths are in iterations, but the loop is epoch-based.
        """
        loop = runner.train_loop
        self.epochs = isinstance(loop, EpochBasedTrainLoop)
        if self.epochs and not self.by_epoch:
            raise ValueError('an EpochBasedTrainLoop needs by_epoch=True, with lengths in epochs')
        self.full, self.part = loop.dataloader, loop.dataloader
        if self.subset < 1:
            self.part = subset_loader(runner, self.full.dataset, self.subset)
        if not self.by_epoch:
            return self.cycle
        tick, tock = self.cycle.tick * epoch_length(self.part), self.cycle.tock * epoch_length(self.full)
        return replace(self.cycle, tick=tick, tock=tock)

    def begin(self, runner) -> None:
        """Let the gates take over; log the phases to expect."""
        self.pruner.begin()
        self.log_plan(runner)

    def restore(self, runner, state: dict[str, Any]) -> None:
        """Continue from a saved state; a fine-tune has the rest of the run, whose length may have changed."""
        super().restore(runner, state)
        self.pruner.fit_finetune(self.remaining(runner, done=0))

    def before_train(self, runner) -> None:
        """Continue a resumed run where it was, or begin; prepare the data of both phases."""
        super().before_train(runner)
        if self.subset < 1 and not self.epochs:
            full, part = runner.train_loop.dataloader_iterator, endless(self.part)
            given, scored = runner.iter, self.pruner.controller.scored
            runner.train_loop.dataloader_iterator = Alternating(full, part, self.in_tick, given, scored)

    def in_tick(self) -> bool:
        """Whether the next iteration belongs to a Tick."""
        return self.pruner.phase == TICK

    def before_train_epoch(self, runner) -> None:
        """In an epoch-based loop, switch to the data of the phase."""
        if self.epochs:
            runner.train_loop.dataloader = self.part if self.in_tick() else self.full

    def advance(self, runner) -> None:
        """One step of the pruner."""
        cycle, wasted = self.pruner.controller, self.pruner.controller.wasted
        with self.explained(runner):
            ended = self.pruner.step(self.remaining(runner))
        if ended:
            runner.logger.info(f'{ended} ended, {cycle.phase} begins: {cycle.summary()}')
        if cycle.wasted > wasted:
            self.warn('no mini-batch of this Tick had finite gradients; nothing closed')

    def remaining(self, runner, done: int = 1) -> int:
        """Iterations left of the run, all on the full data.

        Args:
            runner: The run.
            done: How many iterations, or epochs in an epoch-based loop, are done that the runner does not count yet.
        """
        if self.epochs:
            return (runner.max_epochs - runner.epoch - done) * len(self.full)
        return runner.max_iters - runner.iter - done

    def log_plan(self, runner) -> None:
        """Log the phases to expect, as far as they can be known."""
        controller, cycle = self.pruner.controller, self.pruner.controller.cycle
        ticks = controller.expected_ticks()
        tocks = 1 + ticks // cycle.ticks
        runner.logger.info(
            f'Gate Decorator: {controller.filters} filters, {cycle.fraction * controller.filters:.1f} of them closed '
            f'in each Tick; about {ticks} Ticks of {cycle.tick} and {tocks} Tocks of {cycle.tock} iterations, '
            f'{ticks * cycle.tick + tocks * cycle.tock} in all, before the fine-tune'
        )
