"""Tails: what a residual branch computes from its last inner channels, and what is left when all of those are zero.

Behind a layer that reads only zeros, norms and activations make one constant per channel, such as the layer's bias or
the shift of a batch norm. A branch whose last inner group is empty is that constant, and its modules need not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_aggregate, map_arg

from mmprune_gates.channels.labels import Axis, Shape
from mmprune_gates.channels.op import op_name, operands, shapes
from mmprune_gates.channels.rules import Trait, has_trait
from mmprune_gates.channels.walked import Walked


@dataclass(frozen=True)
class Operand:
    """A tensor argument of a step: the name of a parameter or buffer, or None for the result of the step before."""

    name: str | None


@dataclass(frozen=True)
class Tail:
    """How to compute the constant that a branch becomes.

    Attributes:
        module: Path of the last module of the branch, whose result the constant is.
        weight: Name of the weight that reads the last inner channels.
        bias: Name of the same layer's bias, or None.
        shape: Shape of the layer's output, with size 1 along all dimensions without channels.
        steps: (op, arguments) of each call after the layer.
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
            resolve = partial(_resolve, before=value, tensors=tensors)
            value = op(*map_aggregate(args, resolve))
        return value


def _resolve(arg: Any, before: Tensor, tensors: Mapping[str, Tensor]) -> Any:
    """The value of a step's argument."""
    if not isinstance(arg, Operand):
        return arg
    if arg.name is None:
        return before
    return tensors[arg.name]


def find_tail(graph: Walked, end: Node, modules: tuple[str, ...]) -> Tail | None:
    """The tail of a branch; None unless a chain of single steps leads from one layer to the branch's end.

    Calls after the last module of the branch stay in the model and are not part of the tail.

    Args:
        graph: The graph.
        end: Result of the branch.
        modules: Paths of its modules.
    """
    node = end
    steps = []
    module = graph.enclosing(node, modules)
    while not has_trait(op_name(node), Trait.BIAS):
        source = _source(graph, node, inside=module is not None)
        if source is None:
            return None
        if module is not None:
            steps.append(node)
        node = source
        module = module or graph.enclosing(node, modules)
    chain = [*steps, node]
    axes = graph.values[chain[0]].axes
    _, *parameters = operands(node)
    names = [graph.names[parameter] for parameter in parameters if parameter in graph.names]
    if module is None or len(axes) != 1 or len(names) != len(parameters):
        return None
    weight, *others = names
    bias = others[0] if others else None
    return Tail(
        module=module,
        weight=weight,
        bias=bias,
        shape=_bias_shape(node),
        steps=tuple(_written(graph, step) for step in reversed(steps)),
        axis=axes[0],
    )


def _source(graph: Walked, node: Node, inside: bool) -> Node | None:
    """The single operand of a call that depends on the input, if the call maps constants to constants.

    Args:
        graph: The graph.
        node: The call.
        inside: Whether the call is part of the tail; if so, all other operands must be parameters or buffers.
    """
    if node.kwargs or not has_trait(op_name(node), Trait.CONSTANT):
        return None
    variable = []
    for source in node.all_input_nodes:
        if source in graph.paths:
            variable.append(source)
        elif inside and source not in graph.names:
            return None
    if len(variable) != 1:
        return None
    return variable[0]


def _bias_shape(layer: Node) -> Shape:
    """Shape of a layer's output, with size 1 along all dimensions without channels."""
    sizes = shapes(layer)[0]
    channels = 1
    if op_name(layer) == 'linear':
        channels = len(sizes) - 1
    shape = [1] * len(sizes)
    shape[channels] = sizes[channels]
    return tuple(shape)


def _written(graph: Walked, node: Node) -> tuple[Any, tuple]:
    """A call as a step: its op, and its arguments with an :class:`Operand` in place of each tensor."""

    def written(source: Node) -> Any:
        return Operand(graph.names.get(source))

    return node.target, map_arg(node.args, written)
