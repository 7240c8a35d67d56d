"""What our methods share in the loop of the quality benchmark: a pruner; closed channels leave when it has settled."""

from __future__ import annotations

from typing import Any

from quality_tasks import PASSES
from quality_training import Method, Training

from mmprune_gates.pruning import Pruner


class Pruned(Method):
    """Base of our methods.

    Attributes:
        kind: What prunes.
        pruner: The pruner of a training.
        figures: What to keep of it.
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
            trace=PASSES,
            target_macs=self.share,
            **self.settings(),
        )
        self.figures: dict[str, Any] = {}

    def settings(self) -> dict[str, Any]:
        """Further arguments of the pruner: any widths unless a run says otherwise, as those of the peers."""
        return {'divisor': 1, **self.options}

    def let_channels_leave(self) -> None:
        """Remove what is closed, once the pruner has settled."""
        if not self.pruner.controller.kept.vector.all():
            self.pruner.shrink()

    def finish(self) -> dict[str, Any]:
        """Slim, and say what was kept."""
        report = self.pruner.finish()
        return {**self.figures, 'params': report['params'], 'kept': report['kept']}
