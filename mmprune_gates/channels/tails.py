"""Tails: what a residual branch computes from its last inner channels, and what is left when all of those are zero.

Behind a layer that reads nothing but zeros, norms and activations make one constant per channel: the layer's bias, or
the shift of a batch norm. A branch whose last inner group is empty is that constant, and its modules need not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mmprune_gates.channels.labels import Axis
from mmprune_gates.channels.op import op_name, shapes
from mmprune_gates.channels.rules import Trait, has_trait


@dataclass(frozen=True)
class Named:
    """A parameter or buffer among the arguments of a step."""

    name: str


@dataclass(frozen=True)
class Before:
    """The result of the step before, among the arguments of a step."""


@dataclass(frozen=True)
class Tail:
    """How to compute the constant that a branch becomes.

    Attributes:
        module: Path of the module whose result it is: the last of the branch.
        weight: Name of the weight that reads the last inner channels.
        bias: Name of the bias beside it, or None.
        shape: Shape of the layer's output, with size 1 along all dimensions without channels.
        steps: (op, arguments) of what follows.
        axis: Channels of the constant.
    """

    module: str
    weight: str
    bias: str | None
    shape: tuple[int, ...]
    steps: tuple[tuple[Any, tuple], ...]
    axis: Axis

    def constant(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The constant, with size 1 along all dimensions without channels.

        Args:
            tensors: Parameters and buffers of the model by name.
        """
        weight = tensors[self.weight]
        value = torch.zeros(self.shape, dtype=weight.dtype, device=weight.device)
        if self.bias is not None:
            value = value + tensors[self.bias].reshape(self.shape)
        for op, args in self.steps:
            value = op(*fx.node.map_aggregate(args, lambda arg, last=value: resolve(arg, last, tensors)))
        return value


def resolve(arg: Any, last: Tensor, tensors: Mapping[str, Tensor]) -> Any:
    """What an argument of a step stands for."""
    return last if isinstance(arg, Before) else tensors[arg.name] if isinstance(arg, Named) else arg


def find_tail(end: fx.Node, modules: tuple[str, ...], values, names: Mapping[fx.Node, str], paths) -> Tail | None:
    """The tail of a branch; None if its end is not computed step by step from what one layer makes.

    Args:
        end: Result of the branch.
        modules: Paths of its modules.
        values: Labels of all tensors.
        names: Names of parameters and buffers.
        paths: Paths of the modules that each call is made in, of calls that depend on the input.
    """
    node, outside, steps = end, True, []
    module = None
    while not has_trait(node, Trait.BIAS):
        outside = outside and not any(path in modules for path in paths.get(node, ()))
        sources = [source for source in node.all_input_nodes if source in paths]
        computed = [source for source in node.all_input_nodes if source not in paths and source not in names]
        if len(sources) != 1 or (computed and not outside) or node.kwargs or not has_trait(node, Trait.CONSTANT):
            return None
        if not outside:
            module = module or enclosing(node, modules, paths)
            steps.append(node)
        node = sources[0]
    module = module or enclosing(node, modules, paths)
    last = steps[0] if steps else node
    value = values[last]
    bias = node.args[2] if len(node.args) > 2 else None
    if module is None or len(value.axes) != 1 or any(x and x not in names for x in (node.args[1], bias)):
        return None
    dim = len(shapes(node)[0]) - 1 if op_name(node) == 'linear' else 1
    shape = tuple(size if d == dim else 1 for d, size in enumerate(shapes(node)[0]))
    written = tuple((step.target, written_args(step, names)) for step in reversed(steps))
    return Tail(module, names[node.args[1]], bias and names[bias], shape, written, value.axes[0])


def enclosing(node: fx.Node, modules: tuple[str, ...], paths) -> str | None:
    """The module of the branch that a call is made in."""
    return next((path for path in paths.get(node, ()) if path in modules), None)


def written_args(node: fx.Node, names: Mapping[fx.Node, str]) -> tuple:
    """Arguments of a call, tensors by name."""
    return fx.node.map_arg(node.args, lambda source: Named(names[source]) if source in names else Before())
