"""Latency targets corrected by measuring, while gates can still move."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import isnan, nan
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import broadcast, broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from torch import Tensor

from mmprune_gates.budget.controller import MARGIN
from mmprune_gates.budget.goal import Goal
from mmprune_gates.budget.latency import Latency
from mmprune_gates.budget.latency_table import Table, Target
from mmprune_gates.channels.kept import Kept
from mmprune_gates.engine.coverage import model_of_config
from mmprune_gates.engine.pruning_hook import PruningHook
from mmprune_gates.engine.registry import HOOKS
from mmprune_gates.pruning import Pruner
from mmprune_gates.pruning.threads import one_thread
from mmprune_gates.timing.table import backend_of, latencies

ROUNDS = 3  # at most
CLOSE = 0.02  # relative distance from what was asked for that ends them
MOST = 1.25  # largest factor of a correction: a table that is off by more should be measured again


@HOOKS.register_module()
class MeasuredLatencyHook(Hook):
    """Corrects a latency target, at one point of the run, by what the table is off for the model at hand.

    When a run has nearly met its target by the table, and gates can still move, the model as it would be slimmed then
    is timed in turn with the whole one, by the main process. From then on the run aims at the share by the table at
    which the latency as measured is the one that was asked for; what would be slimmed for that is measured as well, up
    to three models in all. A run that resumes from a checkpoint after that does not measure again.
    """

    pruner: Pruner | None = None  # as long as nothing is measured
    cost: Latency
    goal: Goal

    def before_train(self, runner) -> None:
        """Find the pruner.

        Raises:
            ValueError: There is none with a latency, its table was not measured on this machine, or the run has no
                config of its model.
        """
        name = type(self).__name__
        pruning = next((hook for hook in runner.hooks if isinstance(hook, PruningHook)), None)
        if pruning is None or not isinstance(pruning.settings['cost'], Latency):
            raise ValueError(f"{name} needs a pruning hook with cost=dict(type='Latency', ...) in custom_hooks")
        if runner.cfg.get('model') is None:
            raise ValueError(f'{name} builds the model anew to measure it: make the runner from a config with a model')
        control = pruning.pruner.controller
        if control.settled or control.correction != 1:
            return
        self.pruner, self.cost, self.goal = pruning.pruner, pruning.settings['cost'], Goal.of(pruning.settings)
        found = [self.mistaken()]
        broadcast_object_list(found)  # what the main process has found
        if found[0]:
            raise ValueError(f'{name} measures on this machine: {found[0]}, or take the hook out of the config')

    def mistaken(self) -> str:
        """Why the table is not one that was measured on this machine; empty if it is."""
        path, machine = self.cost.path, self.cost.settings.facts()
        try:
            Table.load(path).check(path, machine)
        except ValueError as error:
            return str(error)
        return ''

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Correct the target when it is nearly met; warn if the gates have settled without that."""
        if self.pruner is None:
            return
        with one_thread():
            is_near = self.pruner.is_near_target()
        if is_near:
            self.correct(runner.cfg, self.pruner)
            self.pruner = None
        elif self.pruner.controller.settled:
            log('the gates settled before anything was measured: the target is by the table alone', logging.WARNING)
            self.pruner = None

    def correct(self, config: Config, pruner: Pruner) -> None:
        """Measure what would be slimmed now, and correct the target, until both agree; on all ranks alike."""
        for _ in range(ROUNDS):
            kept = pruner.controller.candidate()
            off = self.correct_once(config, pruner, kept)
            if abs(off) <= CLOSE or pruner.controller.candidate() == kept:
                return

    def correct_once(self, config: Config, pruner: Pruner, kept: Kept) -> float:
        """Measure a selection, and correct the target by it; returns how far it is off what was asked for."""
        control = pruner.controller
        share, whole_ms = control.candidates.share(kept), control.candidates.total
        took = torch.full((2,), nan, dtype=torch.double)
        if is_main_process():
            try:
                took[:] = torch.tensor(measured(config, self.cost.settings, pruner.gates.kept_of_whole(kept)))
            except Exception as error:  # the other ranks wait, and the target by the table can be met
                log(f'not measured, the target is by the table alone: {type(error).__name__}: {error}', logging.WARNING)
        broadcast(took)
        before, after = took.tolist()
        if isnan(after):
            return 0.0
        asked_of = whole_ms if self.goal.name == 'target_ms' else before  # what the goal is a share of
        off = after / (control.target * asked_of) - 1
        factor = share * asked_of / after
        if 0 < off <= CLOSE:
            factor = (1 + MARGIN) * share / control.target  # no less than what was measured, and is close enough
        limited = min(MOST, max(1 / MOST, factor))
        control.correct(limited)
        notes = ''
        if limited != factor:
            notes += f'; it is off by more than a factor of {MOST}: measure it again ({self.cost.command})'
        if control.correction != limited:
            notes += '; the limits leave no less'
        log(
            f'the model takes {after:.3f} ms now, {after / before:.1%} of the whole one, {before:.3f} ms; by the table '
            f'{share:.1%} of {whole_ms:.3f} ms. For {self.goal.name}={self.goal.value} the run aims at '
            f'{control.aim:.1%} by the table{notes}',
            logging.WARNING if notes else logging.INFO,
        )
        return off


def measured(config: Config, target: Target, kept: Mapping[str, Tensor]) -> list[float]:
    """Median milliseconds of the model of a config, whole and slim, measured in turn.

    Args:
        config: The config.
        target: The platform.
        kept: Group name -> (size,) bool mask of the slim model.
    """
    # The threads that the backend sets are reset afterwards, and so is the state of the random numbers.
    with one_thread(), torch.random.fork_rng(devices=[]):
        whole, graph, shape = model_of_config(config)
        images = torch.randn(target.batch, *shape)
        vector = graph.kept().vector.clone()
        for group in graph.free:
            vector[group.span] = kept.get(group.name, vector[group.span])
        slim = graph.without_inner(graph.keeping(vector))
        return latencies(whole, graph, [graph.kept(), slim], images, backend_of(target), show=lambda parts, _: parts)


def log(text: str, level: int) -> None:
    """Log a message under the hook's name."""
    print_log(f'{MeasuredLatencyHook.__name__}: {text}', 'current', level)
