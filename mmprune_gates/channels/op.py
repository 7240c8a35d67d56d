"""One call of an ATen op, as a rule sees it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from operator import getitem
from typing import Any

import torch
from torch import fx

from mmprune_gates.channels.labels import LOST, Axis, Flow, Value

NO_RULE = 'no rule for this op'
UNKNOWN = -1  # a size that depends on data


@dataclass(frozen=True)
class Op:
    """An op with its labelled operands.

    Attributes:
        flow: Where a rule records what it learns.
        node: The call in the exported graph.
        values: Labels of every tensor computed so far, by node.
        names: Parameter or buffer name, by placeholder node.
        batch: Batch size of the traced input; multiply-accumulates are stated per sample.
        counted: Whether the op belongs to the inference graph, whose cost counts.
    """

    flow: Flow
    node: fx.Node
    values: dict[fx.Node, Any]
    names: dict[fx.Node, str]
    batch: int
    counted: bool

    @property
    def name(self) -> str:
        """The op without overload, for example ``aten.conv2d``."""
        return str(self.node.target).rsplit('.', 1)[0]

    @property
    def layer(self) -> str:
        """Module path of the call."""
        return self.flow.canonical(module_path(self.node))

    def arg(self, position: int, default: Any = None) -> Any:
        """The operand at ``position``: labels where it is a tensor, the constant itself otherwise."""
        value = self.node.args[position] if position < len(self.node.args) else default
        return fx.node.map_arg(value, self.values.__getitem__)

    def parameter(self, position: int) -> str | None:
        """Name of the parameter or buffer that is the operand at ``position``, or None."""
        return self.names.get(self.node.args[position]) if position < len(self.node.args) else None

    @property
    def tensors(self) -> list[Value]:
        """Labels of all tensor operands in order, lists flattened, repetitions kept."""
        nodes: list[fx.Node] = []
        fx.node.map_arg((self.node.args, dict(self.node.kwargs)), nodes.append)
        values = [self.values[node] for node in nodes]
        return [v for value in values for v in (value if isinstance(value, list) else [value])]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the (first) result."""
        return shapes(self.node)[0]

    def result(self, axes: tuple[Axis, ...] | list[Axis] = ()) -> Value:
        """Labels of the result."""
        return Value(self.shape, tuple(axes))

    def freeze(self, axes, reason: str) -> None:
        """Freeze ``axes``, naming the op and the module."""
        self.flow.freeze(axes, f'{reason} ({self.name} in {self.layer or "the model itself"})')

    def give_up(self, reason: str) -> Value | list[Value]:
        """Labels of a result in which no channel is known: nothing that the op touches can be removed."""
        self.freeze([axis for value in self.tensors for axis in value.axes], reason)
        result = self.node.meta.get('val')
        if isinstance(result, (list, tuple)):
            return [Value(sizes(part)) for part in result]
        return Value(self.shape)

    def rigid(self, dim: int, size: int, reason: str) -> Axis:
        """An axis of channels that must stay, for a piece of a tensor without labels."""
        axis = self.flow.fresh(dim, size)
        self.freeze([axis], reason)
        return Axis(dim, axis.ids, axis.state * LOST)

    def per_sample(self, extents) -> float:
        """Product of ``extents`` per sample of the batch.

        Raises:
            ValueError: One of them depends on data.
        """
        if UNKNOWN in extents:
            raise ValueError('a size depends on data')
        return prod(extents) / self.batch


def op_name(node: fx.Node) -> str:
    """The op that a node calls, see :func:`base_name`."""
    return base_name(node.target)


def base_name(target: Any) -> str:
    """An op without overload and the mark of its in-place form, for example ``conv2d``; others than ATen's in full."""
    return str(target).rsplit('.', 1)[0].removeprefix('aten.').rstrip('_')


def is_inplace(node: fx.Node) -> bool:
    """Whether a call changes its first operand."""
    return node.target is not getitem and str(node.target).rpartition('.')[0].endswith('_')


def module_path(node: fx.Node) -> str:
    """Dotted path of the module whose forward made the call, relative to the traced model."""
    return next(reversed(module_paths(node)), '')


def module_paths(node: fx.Node) -> list[str]:
    """Dotted paths of all modules inside whose forward the call was made, outermost first."""
    stack = node.meta.get('nn_module_stack') or {}
    return [path.removeprefix('model').removeprefix('.') for path, _ in stack.values()]


def shapes(node: fx.Node) -> list[tuple[int, ...]]:
    """Shapes of the results of a call."""
    value = node.meta.get('val')
    values = value if isinstance(value, (list, tuple)) else [value]
    return [sizes(v) for v in values if isinstance(v, torch.Tensor)] or [()]


def sizes(value: Any) -> tuple[int, ...]:
    """Shape of a tensor, empty for anything else; :data:`UNKNOWN` where a size depends on data."""
    return tuple(size if isinstance(size, int) else UNKNOWN for size in getattr(value, 'shape', ()))
