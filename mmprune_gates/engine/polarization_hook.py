"""GDP as an mmengine hook; the method itself is :class:`~mmprune_gates.pruning.GDP`."""

from __future__ import annotations

from typing import Any

from mmprune_gates.checks import checked, one_of, refuse_unknown
from mmprune_gates.engine.pruning_hook import PruningHook
from mmprune_gates.engine.registry import HOOKS
from mmprune_gates.engine.running import unwrapped
from mmprune_gates.pruning import GDP, GDPSettings
from mmprune_gates.pruning.gdp import UPDATES


@HOOKS.register_module()
class PolarizationHook(PruningHook):
    """Anneals and closes the gates of a ``GatedModel`` until a MACs target is met, then lets the model settle.

    Args:
        target_macs: Kept MACs / original MACs, in (0, 1]. Instead, the settings may hold ``target``, a share of any
            ``cost``, or ``target_ms``, see :class:`~mmprune_gates.budget.Goal`.
        update: ``waterline`` (this project's) or ``gradient`` (the paper's form).
        criterion, cost: Configs, types in ``mmprune_gates.CRITERIA`` and ``mmprune_gates.COSTS``.
        shrink: Whether closed channels leave the model when the gates have settled, so that the rest of the run costs
            what the slim model costs. A number: also earlier, whenever that share of the MACs can go; a gate that is
            closed then cannot open again.
        export: Whether ``WORK_DIR/slim`` is written when training ends.
        **settings: Further fields of :class:`~mmprune_gates.pruning.GDPSettings`, and arguments of the update.

    Raises:
        ValueError: A value is out of range, the model has no gates, or the limits put the target out of reach.
    """

    pruner: GDP
    priority = 'ABOVE_NORMAL'  # channels leave a loaded model before EMAHook loads its averages

    def __init__(
        self,
        target_macs: float | None = None,
        update: str = 'waterline',
        criterion: Any = None,
        cost: Any = None,
        shrink: bool | float = True,
        export: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(criterion, cost, shrink, export)
        known = GDPSettings.names() - {'options'}
        options = {name: settings.pop(name) for name in list(settings) if name not in known}
        self.settings |= dict(target_macs=target_macs, update=update, options=options, **settings)
        with self.own_errors():
            rules = UPDATES[checked('update', update, one_of(UPDATES))].rules
            refuse_unknown(options, {*known, *rules, 'shrink', 'export'})
            GDPSettings(**self.settings)  # refuses bad values before anything is built

    def make_pruner(self, runner) -> GDP:
        """GDP on the model and optimiser of a run."""
        optimizer = runner.optim_wrapper.optimizer
        return GDP(unwrapped(runner), None, optimizer, total_steps=runner.max_iters, **self.settings)

    def advance(self, runner) -> None:
        """One step of the pruner; say when the gates settle."""
        was_settled = self.pruner.controller.settled
        super().advance(runner)
        if self.pruner.controller.settled and not was_settled:
            runner.logger.info(f'Gates settled: {self.pruner.controller.summary()}')
