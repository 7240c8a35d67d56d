"""The base of our methods in the quality benchmark: a pruner whose closed channels leave once it has settled."""

from __future__ import annotations

from typing import Any

from quality_tasks import PASSES
from quality_training import Method, Training

from mmprune_gates.pruning import Pruner


class Pruned(Method):
    """Base of our methods.

    Attributes:
        kind: Class of the pruner.
        pruner: The pruner of a training.
        figures: Figures to record.
    """

    kind: type[Pruner]

    def begin(self, training: Training) -> None:
        """Attach gates."""
        super().begin(training)
        self.pruner = self.kind(
            training.model,
            (training.data.example,),
            training.optimizer,
            total_steps=training.recipe.steps,
            **PASSES,
            target_macs=self.share,
            **self.settings(),
        )
        self.figures: dict[str, Any] = {}

    def settings(self) -> dict[str, Any]:
        """Further arguments of the pruner; like the peers it may choose any widths, unless a run says otherwise."""
        return {'divisor': 1, **self.options}

    def let_channels_leave(self) -> None:
        """Remove closed channels, once the pruner has settled."""
        if not self.pruner.controller.kept.vector.all():
            self.pruner.shrink()

    def finish(self) -> dict[str, Any]:
        """Slim the model; returns the figures and the channels kept."""
        report = self.pruner.finish()
        return {**self.figures, 'params': report['params'], 'kept': report['kept']}
