"""Training from scratch, which pruning has to beat: a uniformly narrower network, and the pruned architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import mmprune_gates  # noqa: F401  (cures come before the imports below)

# isort: split
import torch
from baselines import choose_width, width_steps
from mmengine.registry import MODELS
from mmengine.runner import set_random_seed
from quality_tasks import Recipe, TaskData
from quality_training import Method, Training
from torch import Tensor, nn

from mmprune_gates import slim_model
from mmprune_gates.budget import Schedule
from mmprune_gates.channels import ChannelGraph
from mmprune_gates.engine.builders import uniform
from mmprune_gates.engine.model_config import slim_config

LONGEST = 12.0  # times as many iterations, at most


class Scratch(Method):
    """A narrow network trained from scratch by the recipe of the dense start, as long as start and further training.

    Options: ``kept``, group -> numbers of the channels of a pruned architecture; without it the widths are uniform.
    ``same_macs``: whether it trains for as many MACs as the dense start and a GDP run together, if that takes more
    iterations, but at most :data:`LONGEST` times as many. The GDP run costs what the whole model does until its gates
    settle, and then what is kept.
    """

    def begin(self, training: Training) -> None:
        """Replace the model and the recipe."""
        super().begin(training)
        data = training.data
        graph = data.graph(training.model)
        kept = masks(graph, self.options['kept']) if 'kept' in self.options else self.uniform(graph)
        training.model = narrow_from_scratch(data, training.seed, graph, kept)
        training.recipe = self.recipe(data, graph.macs(kept) / graph.macs())
        training.renew_optimizer()

    def uniform(self, graph: ChannelGraph) -> dict[str, Tensor]:
        """The widest uniform network within the budget.

        If rounding leaves some of the budget unused, the first groups that fit get the next larger width.
        """
        target = int(self.share * graph.macs())
        width, _ = choose_width(graph, target)
        kept, steps = uniform(graph, width), width_steps({group.size for group in graph.free})
        wider = uniform(graph, min((step for step in steps if step > width), default=1.0))
        for name, mask in wider.items():
            more = {**kept, name: mask}
            if graph.macs(more) <= target:
                kept = more
        return kept

    def recipe(self, data: TaskData, share: float) -> Recipe:
        """The recipe of the dense start over more iterations.

        Args:
            data: The task.
            share: MACs of the narrow network / MACs of the whole one.
        """
        start, further = data.task.start, data.task.further
        steps = start.steps + further.steps
        if self.options.get('same_macs'):
            settle = Schedule.settle
            cost = start.steps + further.steps * (settle + (1 - settle) * share)
            steps = round(min(max(steps, cost / share), LONGEST * steps))
        return replace(start, steps=steps)


def masks(graph: ChannelGraph, kept: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Masks from the numbers of the kept channels, as a run's file has them.

    Raises:
        ValueError: The graph does not have one of the groups.
    """
    free = {group.name: group.size for group in graph.free}
    if unknown := sorted(kept.keys() - free):
        raise ValueError(f'kept names {unknown}, which are no groups of this model: is the file of another task?')
    result = {}
    for name, channels in kept.items():
        result[name] = torch.zeros(free[name], dtype=torch.bool)
        result[name][list(channels)] = True
    return result


def narrow_from_scratch(data: TaskData, seed: int, graph: ChannelGraph, kept: Mapping[str, Tensor]) -> nn.Module:
    """The stock model with the widths of the kept channels, newly initialised."""
    spec = slim_model(data.model(seed), graph, kept)
    config = slim_config(data.config.model.to_dict(), **spec)
    set_random_seed(seed)
    model = MODELS.build(config)
    model.init_weights()
    return model
