"""DCFP's criterion and schedule on this project's graph, following its authors' code (Wang et al., DCFP, TCSVT 2024).

Theirs: while the dense model trains for a tenth of the run (4k of 40k iterations), each norm's channels are scored by a
running mean (0.999) of abs(dL/dgamma), in which gradients that would make gamma grow do not count. Then one cut removes
the same percentage of the backbone's channels and of all others, each part ranked by itself; channels that depend on
each other stay if one of them does; at least 2 % of each layer stay, and all of an auxiliary head. The rest of the run
trains the remaining network.

Ours: the percentage is the least that meets the target (theirs grows in steps of 2), and channels that still fit then
reopen, as after every selection of this project; the contribution of removed channels to the means of later norms is
left to the further training; the optimiser keeps its state for the remaining weights, where theirs starts afresh; the
learning rate has no second warm-up; and the further training has the task's own loss, theirs another one and resampled
classes.
"""

from __future__ import annotations

from typing import Any

import torch
from quality_training import Method, Training, places_in
from torch import Tensor, nn

from mmprune_gates import slim_model
from mmprune_gates.budget import Candidates, Limits
from mmprune_gates.budget.criteria import NORMS

MOMENTUM = 0.999
DENSE = 0.1  # share of the run before the cut
FLOOR = 0.02
BACKBONE = 'backbone.'
AUXILIARY = 'auxiliary_head.'


class DCFP(Method):
    """Dense training for a part of the run, one cut, and further training."""

    def begin(self, training: Training) -> None:
        """Start to score."""
        super().begin(training)
        self.graph = training.data.graph(training.model)
        self.cut_after = max(1, round(DENSE * training.recipe.steps))
        self.scores: dict[str, Tensor] = {}
        for name, norm in scored_norms(training.model).items():
            index = self.graph.slots.get(f'{name}.weight', {}).get(0)
            if index is not None:
                self.scores[name] = torch.zeros_like(norm.weight)

    @torch.no_grad()
    def after_backward(self) -> None:
        """Update the scores."""
        for name, mean in self.scores.items():
            gamma = self.training.model.get_submodule(name).weight
            if gamma.grad is not None:
                new = torch.where(gamma.grad * gamma > 0, gamma.grad.abs(), mean)
                mean.lerp_(new, 1 - MOMENTUM)

    def after_step(self, step: int) -> None:
        """Cut once."""
        if step != self.cut_after:
            return
        candidates, score = Candidates.of(self.graph, Limits(FLOOR, divisor=1)), self.channel_scores()
        kept = candidates.choose(score, self.share)
        places = places_in(self.training.model)
        for model in (self.training.model, places):
            slim_model(model, self.graph, kept)
        self.training.renew_optimizer(places)
        self.scores = {}
        self.kept = kept.indices()

    def channel_scores(self) -> Tensor:
        """(num_channels,) the best percentile, within its part, among a channel's norms.

        0 without a norm, 1 for those of an auxiliary head.
        """
        total = torch.zeros(self.graph.num_channels, dtype=torch.double)
        ranked = [name for name in self.scores if not name.startswith(AUXILIARY)]
        for name in self.scores.keys() - ranked:
            index = self.graph.slots[f'{name}.weight'][0]
            total[index[index >= 0]] = 1
        for in_backbone in (True, False):
            names = [name for name in ranked if name.startswith(BACKBONE) == in_backbone]
            if not names:
                continue
            index = torch.cat([self.graph.slots[f'{name}.weight'][0] for name in names])
            order = torch.cat([self.scores[name] for name in names]).argsort(stable=True)
            percentile = torch.empty(len(order), dtype=torch.double)
            percentile[order] = torch.arange(1, len(order) + 1, dtype=torch.double) / len(order)
            known = index >= 0
            total.scatter_reduce_(0, index[known], percentile[known], 'amax')
        return total

    def finish(self) -> dict[str, Any]:
        """The channels kept."""
        return {'kept': self.kept}


def scored_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Module path -> batch norm with an affine."""
    return {name: module for name, module in model.named_modules() if isinstance(module, NORMS) and module.affine}
