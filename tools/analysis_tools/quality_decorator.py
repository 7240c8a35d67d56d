"""Gate Decorator in the loop of the quality benchmark."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quality_pruner import Pruned
from quality_training import Training

from mmprune_gates import GateDecorator
from mmprune_gates.budget import Cycle

TICKS = 20
TOCKS = 4
LEAST = 1e-3  # least share of the filters that a Tick closes
UNTIL = 0.35  # share of the run after which the target should be met


class Decorator(Pruned):
    """Gate Decorator; rates and lengths of its phases follow from the recipe and the target.

    A Tick's rate is a tenth of the recipe's, a Tock's rises from that to the recipe's and falls again, as in the paper
    (1e-3, and 1e-3 to 1e-2 to 1e-3). The target should be met after a third of the run (:data:`UNTIL`). The paper
    closes the same number of filters in each Tick and trains until the target is met; here each Tick closes as many as
    would meet it in the remaining Ticks if all groups shrank alike.
    """

    kind = GateDecorator
    pruner: GateDecorator

    def begin(self, training: Training) -> None:
        """Attach gates."""
        super().begin(training)
        self.ticks = self.pruner.controller.cycle.ticks * TOCKS

    def settings(self) -> dict[str, Any]:
        """Rates of the phases, and their lengths."""
        rate = self.training.rate
        phases = {'tick_lr': 0.1 * rate, 'tock_lr': (0.1 * rate, rate)}
        return {**phases, **super().settings(), 'cycle': cycle_of(UNTIL * self.training.recipe.steps)}

    def before_step(self, step: int) -> None:
        """Nothing: the pruner sets the learning rate."""

    def after_step(self, step: int) -> None:
        """Advance the cycle; once the target is met, remove the closed channels."""
        controller = self.pruner.controller
        controller.cycle = replace(controller.cycle, fraction=self.fraction())
        self.pruner.step()
        if controller.settled and not self.figures:
            self.figures = {'step': step, 'ticks': controller.ticks}
            self.let_channels_leave()

    def fraction(self) -> float:
        """Share of all filters that the next Tick closes; MACs go with the square of the widths."""
        controller = self.pruner.controller
        still_open = float(controller.kept.vector.double().mean())
        too_many = still_open * (1 - min(1.0, self.share / controller.share) ** 0.5)
        left = max(1, self.ticks - controller.ticks)
        return min(1.0, max(LEAST, too_many / left))


def cycle_of(steps: float) -> Cycle:
    """The cycle whose Ticks and Tocks fill a number of iterations, half each.

    Args:
        steps: Iterations until the target is met.
    """
    ticks = max(1, min(TICKS, int(0.5 * steps)) // TOCKS)
    tick, tock = max(1, round(0.5 * steps / (ticks * TOCKS))), max(1, round(0.5 * steps / TOCKS))
    return Cycle(tick, tock, ticks, fraction=LEAST)
