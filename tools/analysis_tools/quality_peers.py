"""The peers from the package Torch-Pruning (Fang et al., DepGraph, CVPR 2023), by its public classes.

As in its own reproduction script: small steps of the pruning ratio until the target is met, on the model in eval mode,
with the layers that make outputs ignored. This benchmark's counter decides whether a target is met. Since one step of
one ratio for all layers may remove a tenth of a small network, the last steps are taken group by group: a group that
would end below the target is left out. So a peer may keep a little more than the target, which ours never do. No layer
may lose more than ours may (the package's default: all but its last channel). The optimiser keeps its state for the
remaining weights, as ours does; the package itself would leave a fresh one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from importance import as_in_a_tick
from quality_tasks import loss_of
from quality_training import Method, Training, own_draws, places_in
from torch import nn

from mmprune_gates.budget import Limits, Schedule
from mmprune_gates.budget.criteria import NORMS
from mmprune_gates.channels import ChannelGraph
from mmprune_gates.engine.forwards import training_forward

RATIO_STEPS = 100  # from nothing to all of each layer
TAYLOR_BATCHES = 10  # whose gradients are summed, as in the package's own example
CUTS = 10  # of peers that cut in steps
SPARSE = 0.5  # share of the run with sparse scales
LAST_STEPS = 5  # of the ratio that follow the first group left out
NEAR = 0.01  # relative distance from the target: above it no further group is tried, below it none is removed
FAR = 0.02  # of the whole model's MACs: largest distance above the target, but at most a third of the target
CRITERIA: dict[str, tuple[str, dict[str, Any]]] = {
    'magnitude': ('GroupMagnitudeImportance', {'p': 2}),  # of all weights of a group
    'taylor': ('GroupTaylorImportance', {}),  # weights times gradients (Molchanov et al., CVPR 2019)
    'norm_scale': ('BNScaleImportance', {}),  # (Liu et al., ICCV 2017)
    'random': ('RandomImportance', {}),
}
# Sum of learning rate times regularisation: with one ratio for all layers that of the package's own recipe for this
# method (1e-5), with one threshold 50 times that (5e-4, its script's default); 1, 10 and 50 were tried on the digits.
SHRINKAGE = {False: 0.0024, True: 0.12}
MOMENTUM = 0.9  # of the package's SGD: each gradient acts 1 / (1 - MOMENTUM) times in all


class Counter:
    """Counts the MACs of a model whose layers get narrower, without tracing it again.

    Args:
        model: The whole model.
        graph: Its graph. A convolution or linear layer costs in proportion to the size of its weight.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        sizes = {layer.name: model.get_submodule(layer.name).weight.numel() for layer in graph.layers}
        self.per_weight = {layer.name: layer.macs / sizes[layer.name] for layer in graph.layers}
        self.whole = graph.macs()

    def share(self, model: nn.Module) -> float:
        """MACs of a narrower copy / MACs of the whole model."""
        return self.share_without(model, {})

    def share_without(self, model: nn.Module, left: Mapping[nn.Module, float]) -> float:
        """The same, if only a part of the weights of some layers is left."""
        total = 0.0
        for name, cost in self.per_weight.items():
            layer = model.get_submodule(name)
            total += cost * layer.weight.numel() * left.get(layer, 1.0)
        return total / self.whole


class TorchPruning(Method):
    """One cut before training, by a criterion of the package.

    Options: ``criterion``, a key of :data:`CRITERIA`; ``global_pruning``, whether one threshold holds for all layers,
    where the package's default is one ratio for all.
    """

    def begin(self, training: Training) -> None:
        """Cut to the target."""
        super().begin(training)
        self.prepare()
        self.cut(self.share)

    def prepare(self) -> None:
        """Set up the counter, the layers that make outputs, and the package's pruner."""
        graph = self.training.data.graph(self.training.model)
        self.outputs, self.counter = graph.classifiers, Counter(self.training.model, graph)
        self.data_order = self.training.data.batches(self.training.seed + 1)
        self.cutter = self.pruner(self.training.model)

    def cut(self, share: float) -> None:
        """Remove channels until the model costs a share of the whole one; the optimiser follows."""
        model, places = self.training.model, places_in(self.training.model)
        known = len(self.cutter.pruning_history())
        with own_draws():
            model.eval()
            if self.options['criterion'] == 'taylor':
                self.sum_gradients()
            self.prune_to(share)
        model.zero_grad()
        model.train()
        self.pruner(places).load_pruning_history(self.cutter.pruning_history()[known:])
        self.training.renew_optimizer(places)

    def prune_to(self, share: float) -> None:
        """Remove channels until the model costs about a share of the whole one; a further call continues from there.

        Raises:
            ValueError: The package does not come near enough to the final target; earlier ones have no such limit.
        """
        model, cutter = self.training.model, self.cutter
        now, last = self.counter.share(model), RATIO_STEPS
        for group, left in self.groups():
            if now <= share * (1 + NEAR) or cutter.current_step > last + LAST_STEPS:
                break
            then = self.counter.share_without(model, left)
            if then >= self.share * (1 - NEAR):  # so an auxiliary head, which costs nothing, shrinks with the rest
                group.prune()
                now = self.counter.share(model)
            else:
                last = min(last, cutter.current_step)
        cutter.current_step = min(last, cutter.current_step) - 1  # groups left out of this step come first
        if share <= self.share * (1 + NEAR) and abs(now - share) > min(FAR, share / 3):
            raise ValueError(
                f'Torch-Pruning ({self.options}) ends with {now:.4f} of the MACs; {share:.4f} were asked for'
            )

    def groups(self) -> Iterator[tuple[Any, dict[nn.Module, float]]]:
        """The groups that the package would remove, in its order; each is pruned or left out before the next.

        Yields:
            Group of channels, and the share of each layer's weight that pruning it would leave.
        """
        torch.manual_seed(self.training.seed)  # for random importance
        while self.cutter.current_step < RATIO_STEPS:
            for group in self.cutter.step(interactive=True):
                if len(group[0].idxs):  # with one threshold for all it also yields groups that lose nothing
                    yield group, left_by(group, self.cutter.DG)

    def pruner(self, model: nn.Module) -> Any:
        """The package's pruner of a model."""
        return package().pruner.BasePruner(model, **self.settings(model))

    def settings(self, model: nn.Module) -> dict[str, Any]:
        """Arguments of its pruners."""
        return {
            'example_inputs': self.training.data.example,
            'importance': importance(self.options['criterion']),
            'global_pruning': self.options['global_pruning'],
            'pruning_ratio': 1.0,
            'max_pruning_ratio': 1 - Limits.floor,
            'iterative_steps': RATIO_STEPS,
            'ignored_layers': [model.get_submodule(path) for path in self.outputs],
            'forward_fn': training_forward,
        }

    def sum_gradients(self) -> None:
        """Sum the gradients of some mini-batches in the model; statistics of norms do not change."""
        self.training.model.zero_grad()
        for _ in range(TAYLOR_BATCHES):
            loss_of(self.training.model, next(self.data_order)).backward()


class Iterative(TorchPruning):
    """Several cuts during training, on the ramp of GDP's target.

    One pruner makes all cuts, as the package intends: its ratios refer to the original widths of the layers. Between
    two cuts there are too few steps for the running statistics of norms to follow the weights, so Taylor's gradients
    are taken with those of each mini-batch.
    """

    def begin(self, training: Training) -> None:
        """Set the steps after which it cuts, and their targets."""
        Method.begin(self, training)
        self.prepare()
        schedule = Schedule(self.share)
        ramp = schedule.end - schedule.begin
        self.targets = {}
        for number in range(1, CUTS + 1):
            progress = schedule.begin + ramp * number / CUTS
            step = max(1, round(progress * training.recipe.steps))
            self.targets[step] = schedule.target_at(progress)

    def after_step(self, step: int) -> None:
        """Cut to the current target."""
        if step in self.targets:
            self.cut(self.targets[step])

    def sum_gradients(self) -> None:
        """Sum gradients in training mode; running statistics of norms do not change."""
        with as_in_a_tick(self.training.model):
            super().sum_gradients()


class SparseNorms(TorchPruning):
    """One cut by BN scales that the package's regularisation made sparse for a part of the run (:data:`SPARSE`).

    The regularisation is so strong that its sum over the sparse steps is :data:`SHRINKAGE`; the package's recipe has
    many more steps. It is applied to the scales themselves: the package adds it to their gradients, which comes to the
    same with its SGD, but not with an optimiser that divides gradients by their size. As in its recipe there is no
    weight decay during the sparse steps.
    """

    def begin(self, training: Training) -> None:
        """Start with regularisation."""
        Method.begin(self, training)
        self.prepare()
        self.sparse_steps = max(1, round(SPARSE * training.recipe.steps))
        rates = sum(training.rate_at(step) for step in range(self.sparse_steps))
        self.reg = SHRINKAGE[self.options['global_pruning']] / rates / (1 - MOMENTUM)
        self.decays = [group['weight_decay'] for group in training.optimizer.param_groups]
        self.set_decays([0.0] * len(self.decays))

    def after_step(self, step: int) -> None:
        """Shrink the scales of norms; cut after the last sparse step."""
        if step <= self.sparse_steps:
            pull = self.training.rate_at(step - 1) * self.reg
            for module in self.training.model.modules():
                if isinstance(module, NORMS):
                    gamma = module.weight.detach()
                    gamma.sub_(pull * gamma.sign())
        if step == self.sparse_steps:
            self.set_decays(self.decays)
            self.cut(self.share)

    def set_decays(self, decays: Sequence[float]) -> None:
        """Set the weight decay of each group of the optimiser."""
        for group, decay in zip(self.training.optimizer.param_groups, decays, strict=True):
            group['weight_decay'] = decay


def left_by(group: Any, graph: Any) -> dict[nn.Module, float]:
    """Layer -> the share of its weight that is left once a group of the package is pruned."""
    left: dict[nn.Module, float] = {}
    for dependency, channels in group:
        layer = dependency.target.module
        if isinstance(layer, nn.Conv2d | nn.Linear):
            outputs = graph.is_out_channel_pruning_fn(dependency.handler)
            size = graph.get_out_channels(layer) if outputs else graph.get_in_channels(layer)
            left[layer] = left.get(layer, 1.0) * (1 - len(channels) / size)
    return left


def package() -> Any:
    """The package Torch-Pruning.

    Raises:
        ImportError: It is not installed; says how to.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise ImportError("these peers need torch-pruning: pip install -e '.[benchmark]'") from error
    return torch_pruning


def importance(criterion: str) -> Any:
    """The package's importance for a name in :data:`CRITERIA`."""
    name, options = CRITERIA[criterion]
    return getattr(package().importance, name)(**options)
