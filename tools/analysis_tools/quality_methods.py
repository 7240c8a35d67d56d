"""The methods that the quality benchmark compares."""

from __future__ import annotations

import math
from typing import Any

import torch
from quality_dcfp import DCFP
from quality_decorator import PASSES, Decorator
from quality_l1 import PlainL1
from quality_peers import Iterative, SparseNorms, TorchPruning
from quality_scratch import Scratch
from quality_training import Method, Training
from torch import Tensor

from mmprune_gates import GDP
from mmprune_gates.channels.kept import Kept
from mmprune_gates.gates import GateSet

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
            'params': report['params'],
            'kept': report['kept'],
            'least_kept': min(shares),
        }


def widths(report: dict[str, Any], pruner: GDP) -> list[tuple[list[int], int]]:
    """(channels kept, channels) of every group that may shrink."""
    whole = pruner.gates.whole
    return [(report['kept'][group.name], group.size) for group in whole.free if group.name in report['kept']]


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


METHODS: dict[str, type[Method]] = {
    'dense': Method,
    'gdp': GatesGDP,
    'decorator': Decorator,
    'torch_pruning': TorchPruning,
    'torch_pruning_iterative': Iterative,
    'torch_pruning_sparse': SparseNorms,
    'dcfp': DCFP,
    'scratch': Scratch,
    'l1': PlainL1,
}
