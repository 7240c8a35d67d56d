"""Gate Decorator in the loop of the quality benchmark."""

from __future__ import annotations

from typing import Any

from quality_training import Method, Training

from mmprune_gates import GateDecorator
from mmprune_gates.budget import Cycle
from mmprune_gates.engine.forwards import inference_forward, training_forward

PASSES = {'forward': inference_forward, 'train_forward': training_forward}
TICKS = 20  # that the target takes, if all groups shrink alike
TICKS_PER_TOCK = 5


class Decorator(Method):
    """Gate Decorator; rates and lengths of its phases follow from the recipe and the target.

    A Tick's rate is a tenth of the recipe's, a Tock's rises from that to the recipe's and falls again, as the paper's
    do (1e-3, and 1e-3 to 1e-2 to 1e-3). All groups shrinking alike, the target is met after ``until`` of the run, an
    option; where cheaper filters close first, later.
    """

    def begin(self, training: Training) -> None:
        """Attach gates."""
        super().begin(training)
        rate = training.rate
        options = {'tick_lr': 0.1 * rate, 'tock_lr': (0.1 * rate, rate), **self.options}
        until = options.pop('until', 0.35)
        self.pruner = GateDecorator(
            training.model,
            (training.data.example,),
            training.optimizer,
            total_steps=training.recipe.steps,
            trace=PASSES,
            target_macs=self.share,
            cycle=cycle_of(self.share, until * training.recipe.steps),
            **options,
        )
        self.figures: dict[str, Any] = {}

    def before_step(self, step: int) -> None:
        """The pruner sets the learning rate."""

    def after_step(self, step: int) -> None:
        """Go on in the cycle; once the target is met, let channels leave."""
        self.pruner.step()
        controller = self.pruner.controller
        if controller.settled and not self.figures:
            self.figures = {'step': step, 'ticks': controller.ticks}
            if not controller.kept.vector.all():
                self.pruner.shrink()

    def finish(self) -> dict[str, Any]:
        """Slim, and say what was kept."""
        report = self.pruner.finish()
        return {**self.figures, 'params': report['params'], 'kept': report['kept']}


def cycle_of(share: float, steps: float) -> Cycle:
    """The cycle whose Ticks and Tocks fill a number of steps, half each, if all groups shrink alike.

    Args:
        share: MACs to keep / MACs of the whole model; they go with the square of the widths.
        steps: Iterations until the target is met.
    """
    tocks = TICKS // TICKS_PER_TOCK
    tick, tock = max(1, round(0.5 * steps / TICKS)), max(1, round(0.5 * steps / tocks))
    return Cycle(tick, tock, TICKS_PER_TOCK, fraction=(1 - share**0.5) / TICKS)
