"""The methods that the quality benchmark compares."""

from __future__ import annotations

import math
from typing import Any

import torch
from quality_training import Method, Training
from torch import Tensor

from mmprune_gates import GDP, slim_model, trace_channels
from mmprune_gates.budget import Candidates, Limits, NormScale
from mmprune_gates.budget.criteria import NORMS
from mmprune_gates.channels.kept import Kept
from mmprune_gates.engine.forwards import inference_forward, training_forward
from mmprune_gates.gates import GateSet, PolarizationGate, attach_gates
from mmprune_gates.gates.attach import detach_gates

PASSES = {'forward': inference_forward, 'train_forward': training_forward}
UNDECIDED = (0.01, 0.5)  # gates between are neither closed nor open


class GatesGDP(Method):
    """GDP; closed channels leave when the gates have settled."""

    def begin(self, training: Training) -> None:
        """Attach gates."""
        super().begin(training)
        self.pruner = GDP(
            training.model,
            (training.data.example,),
            training.optimizer,
            total_steps=training.recipe.steps,
            trace=PASSES,
            target_macs=self.share,
            **self.options,
        )
        self.figures: dict[str, Any] = {}

    def after_step(self, step: int) -> None:
        """Move gates; once they have settled, let channels leave."""
        controller = self.pruner.controller
        gates, was_settled = self.pruner.gates, controller.settled
        before = gates.vector().detach().clone()
        last = step == math.ceil(controller.schedule.settle * self.training.recipe.steps)
        if last and not was_settled:
            self.figures['score_before_cut'] = self.training.score_aside()
        self.pruner.step()
        if controller.settled and not was_settled:
            self.figures |= settling(gates, before, controller.kept) | {'step': step}
            self.figures['score_settled'] = self.training.score_aside()
            if not controller.kept.vector.all():
                self.pruner.shrink()

    def finish(self) -> dict[str, Any]:
        """Slim, and say what was kept."""
        report = self.pruner.finish()
        shares = [len(channels) / size for channels, size in widths(report, self.pruner)]
        return {
            **self.figures,
            'macs': report['macs'],
            'params': report['params'],
            'least_kept': min(shares),
        }


def widths(report: dict[str, Any], pruner: GDP) -> list[tuple[list[int], int]]:
    """(channels kept, channels) of every group that may shrink."""
    whole = pruner.gates.whole
    return [(report['kept'][group.name], group.size) for group in whole.free if group.name in report['kept']]


class PlainL1(Method):
    """An L1 penalty on the scale of every norm until ``settle``, and then a cut by that scale: no polarization.

    Options: ``penalty``, its weight; ``settle``, when the channels go, as a share of the run.
    """

    def begin(self, training: Training) -> None:
        """Trace the model."""
        super().begin(training)
        self.graph = trace_channels(training.model, (training.data.example,), **PASSES)
        self.scales = [module.weight for module in training.model.modules() if isinstance(module, NORMS)]
        self.cut_at = round(self.options['settle'] * training.recipe.steps)
        self.figures: dict[str, Any] = {}

    def after_backward(self) -> None:
        """Add the penalty's gradient."""
        if not self.figures:
            for scale in self.scales:
                scale.grad.add_(scale.detach().sign(), alpha=self.options['penalty'])

    def after_step(self, step: int) -> None:
        """At its time, cut, and go on with a new optimiser."""
        if step != self.cut_at:
            return
        training, model = self.training, self.training.model
        before = training.score_aside()
        gates = attach_gates(model, self.graph, PolarizationGate)
        scores = NormScale().bind(gates, model).scores()
        detach_gates(model)
        candidates = Candidates.of(self.graph, Limits())
        kept = candidates.fill(candidates.select(scores, self.share), scores, self.share)
        slim_model(model, self.graph, kept)
        training.optimizer = training.data.optimizer(model, training.recipe.rate)
        self.figures = {
            'macs': {'before': self.graph.macs(), 'after': self.graph.macs(kept)},
            'score_before_cut': before,
            'score_settled': training.score_aside(),
        }

    def finish(self) -> dict[str, Any]:
        """What the cut has done."""
        return self.figures


def settling(gates: GateSet, before: Tensor, kept: Kept) -> dict[str, float]:
    """What the last step decided, of all gates.

    Args:
        gates: The gates.
        before: (num_channels,) their values before it.
        kept: What it has kept.

    Returns:
        Shares of the gates that were neither closed nor open, and that ended on the other side; the soft share of the
        MACs before.
    """
    low, high = UNDECIDED
    between = (before > low) & (before < high)
    other = (before >= high) != kept.vector.to(before.device)
    free = torch.cat([torch.arange(group.start, group.span.stop) for group in gates.graph.free])
    return {
        'undecided': float(between[free].float().mean()),
        'decided_last': float(other[free].float().mean()),
        'soft_share': float(gates.graph.cost(before.clamp(0, 1).double())) / gates.graph.macs(),
    }


METHODS: dict[str, type[Method]] = {'dense': Method, 'gdp': GatesGDP, 'l1': PlainL1}
