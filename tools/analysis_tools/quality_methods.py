"""The methods that the quality benchmark compares."""

from __future__ import annotations

from typing import Any

import torch
from quality_dcfp import DCFP
from quality_decorator import Decorator
from quality_l1 import PlainL1
from quality_peers import Iterative, SparseNorms, TorchPruning
from quality_pruner import Pruned
from quality_scratch import Scratch
from quality_training import Method
from torch import Tensor

from mmprune_gates import GDP
from mmprune_gates.channels.kept import Kept
from mmprune_gates.gates import GateSet

UNDECIDED = (0.01, 0.5)  # gates between are neither closed nor open


class GatesGDP(Pruned):
    """GDP; closed channels leave when the gates have settled."""

    kind = GDP
    pruner: GDP
    at_target: Tensor | None = None  # (num_channels,) gates when the target reached its end

    def after_step(self, step: int) -> None:
        """Move gates; once they have settled, remove the closed channels."""
        controller, gates = self.pruner.controller, self.pruner.gates
        progress = step / self.training.recipe.steps
        if controller.settled or progress < controller.schedule.settle:
            self.pruner.step()
            if self.at_target is None and progress >= controller.schedule.end:
                self.at_target = gates.vector().detach().clone()
            return
        before, score = gates.vector().detach().clone(), self.training.score_aside()
        self.pruner.step()
        late = {} if self.at_target is None else {'late': other_side(gates, self.at_target, controller.kept)}
        self.figures = {
            'score_before_cut': score,
            **late,
            **settling(gates, before, controller.kept),
            'step': step,
            'score_settled': self.training.score_aside(),
        }
        self.let_channels_leave()

    def finish(self) -> dict[str, Any]:
        """Adds the least kept share of any group."""
        figures, whole = super().finish(), self.pruner.gates.whole
        shares = [len(figures['kept'][group.name]) / group.size for group in whole.free]
        return {**figures, 'least_kept': min(shares)}


def settling(gates: GateSet, before: Tensor, kept: Kept) -> dict[str, float]:
    """What the last step has decided, over all gates.

    Args:
        gates: The gates.
        before: (num_channels,) their values before it.
        kept: The channels that it kept.

    Returns:
        Shares of the gates that were neither closed nor open, that ended on the other side, and that were closed among
        the latter: the others were opened again to fill up the budget. The soft share of the MACs before.
    """
    low, high = UNDECIDED
    between = (before > low) & (before < high)
    closed = (before >= high) & ~kept.vector.to(before.device)
    return {
        'undecided': share_of_free(gates, between),
        'decided_last': other_side(gates, before, kept),
        'closed_last': share_of_free(gates, closed),
        'soft_share': float(gates.graph.cost(before.clamp(0, 1).double())) / gates.graph.macs(),
    }


def other_side(gates: GateSet, values: Tensor, kept: Kept) -> float:
    """Share of the gates that were on one side of 0.5 and were set to the other.

    Args:
        gates: The gates.
        values: (num_channels,) their earlier values.
        kept: The channels kept in the end.
    """
    return share_of_free(gates, (values >= UNDECIDED[1]) != kept.vector.to(values.device))


def share_of_free(gates: GateSet, which: Tensor) -> float:
    """Share of the gates of free groups for which ``which`` is true.

    Args:
        gates: The gates.
        which: (num_channels,) bool.
    """
    free = torch.cat([torch.arange(group.start, group.span.stop) for group in gates.graph.free])
    return float(which[free].float().mean())


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
