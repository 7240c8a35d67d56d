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

from mmprune_gates.channels.labels import Axis, Shape
from mmprune_gates.channels.op import op_name, shapes
from mmprune_gates.channels.rules import Trait, has_trait
from mmprune_gates.channels.walked import Walked


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
    shape: Shape
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
            value = op(*fx.node.map_aggregate(args, lambda arg, last=value: _resolve(arg, last, tensors)))
        return value


def _resolve(arg: Any, last: Tensor, tensors: Mapping[str, Tensor]) -> Any:
    """What an argument of a step stands for."""
    if isinstance(arg, Named):
        return tensors[arg.name]
    return last if isinstance(arg, Before) else arg


def find_tail(graph: Walked, end: fx.Node, modules: tuple[str, ...]) -> Tail | None:
    """The tail of a branch; None if its end is not computed step by step from what one layer makes.

    Calls after the last module of the branch stay in the model and are not part of the tail.

    Args:
        graph: The graph.
        end: Result of the branch.
        modules: Paths of its modules.
    """
    node, steps = end, []
    module = graph.enclosing(node, modules)
    while not has_trait(node, Trait.BIAS):
        source = _source(graph, node, inside=module is not None)
        if source is None:
            return None
        if module is not None:
            steps.append(node)
        node = source
        module = module or graph.enclosing(node, modules)
    layer = node
    weight, bias = layer.args[1], layer.args[2] if len(layer.args) > 2 else None
    axes = graph.values[steps[0] if steps else layer].axes
    if module is None or len(axes) != 1 or weight not in graph.names or (bias and bias not in graph.names):
        return None
    written = [(step.target, _written_args(graph, step)) for step in reversed(steps)]
    return Tail(module, graph.names[weight], graph.names.get(bias), _bias_shape(layer), tuple(written), axes[0])


def _source(graph: Walked, node: fx.Node, inside: bool) -> fx.Node | None:
    """The single operand of a call that depends on the input, if the call maps constants to constants.

    Args:
        graph: The graph.
        node: The call.
        inside: Whether the call is part of the tail; if so, all other operands must be parameters or buffers.
    """
    variable = [source for source in node.all_input_nodes if source in graph.paths]
    computed = [source for source in node.all_input_nodes if source not in graph.paths and source not in graph.names]
    if node.kwargs or (inside and computed) or not has_trait(node, Trait.CONSTANT):
        return None
    return variable[0] if len(variable) == 1 else None


def _bias_shape(layer: fx.Node) -> Shape:
    """Shape of a layer's output, with size 1 along all dimensions without channels."""
    sizes = shapes(layer)[0]
    channels = len(sizes) - 1 if op_name(layer) == 'linear' else 1
    return tuple(size if dim == channels else 1 for dim, size in enumerate(sizes))


def _written_args(graph: Walked, node: fx.Node) -> tuple:
    """The arguments of a call, with tensors replaced by their names."""

    def written(source: fx.Node) -> Named | Before:
        return Named(graph.names[source]) if source in graph.names else Before()

    return fx.node.map_arg(node.args, written)
