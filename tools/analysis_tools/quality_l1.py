"""A baseline for polarization: an L1 penalty on the scale of every norm, and a cut by that scale."""

from __future__ import annotations

from typing import Any

from quality_training import Method, Training, places_in

from mmprune_gates import slim_model
from mmprune_gates.budget import Candidates, Limits, NormScale
from mmprune_gates.budget.criteria import NORMS
from mmprune_gates.gates import GateSet, PolarizationGate


class PlainL1(Method):
    """An L1 penalty on the scale of every norm until ``settle``, and then a cut by that scale: no polarization.

    Options: ``penalty``, its weight; ``settle``, when the channels go, as a share of the run.
    """

    def begin(self, training: Training) -> None:
        """Find the channels and the scales."""
        super().begin(training)
        self.graph = training.data.graph(training.model)
        self.scales = [module.weight for module in training.model.modules() if isinstance(module, NORMS)]
        self.cut_at = round(self.options['settle'] * training.recipe.steps)
        self.figures: dict[str, Any] = {}

    def after_backward(self) -> None:
        """Add the penalty's gradient."""
        if not self.figures:
            for scale in self.scales:
                scale.grad.add_(scale.detach().sign(), alpha=self.options['penalty'])

    def after_step(self, step: int) -> None:
        """When it is time, cut; the optimiser keeps its state for the remaining weights."""
        if step != self.cut_at:
            return
        training, model = self.training, self.training.model
        before = training.score_aside()
        scores = NormScale().bind(GateSet(self.graph, PolarizationGate), model).scores()
        kept = Candidates.of(self.graph, Limits(divisor=1)).choose(scores, self.share)
        places = places_in(model)
        for narrowed in (model, places):
            slim_model(narrowed, self.graph, kept)
        training.renew_optimizer(places)
        self.figures = {
            'score_before_cut': before,
            'score_settled': training.score_aside(),
        }

    def finish(self) -> dict[str, Any]:
        """The metric before and after the cut."""
        return self.figures
