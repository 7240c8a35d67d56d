"""One call of an ATen op, as a rule sees it."""

from __future__ import annotations

import copyreg
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import map_arg

from mmprune_gates.channels.flow import Flow, Term
from mmprune_gates.channels.labels import GATED, LOST, Axis, Ids, Shape, Value

NO_RULE = 'no rule for this op'
PIECES = frozenset('chunk split split_with_sizes'.split())  # ops with the dimension as third argument
UNKNOWN = -1  # a size that depends on data
Result = Value | list[Value]  # labels of the result, or of several results


def op_named(name: str) -> OpOverload:
    """The op of torch with a name such as ``aten.conv2d.default``."""
    found: Any = torch.ops
    for part in name.split('.'):
        found = getattr(found, part)
    return found


copyreg.pickle(OpOverload, lambda op: (op_named, (str(op),)))  # so that models with gates can be pickled


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
    node: Node
    values: dict[Node, Any]
    names: dict[Node, str]
    batch: int
    counted: bool

    @property
    def name(self) -> str:
        """Op name without its overload, for example ``aten.conv2d``."""
        return _without_overload(self.node.target)

    @property
    def layer(self) -> str:
        """Canonical path of the module that makes the call."""
        return self.flow.canonical(module_path(self.node))

    def arg(self, position: int, default: Any = None) -> Any:
        """Operand at ``position``: labels of a tensor, otherwise the constant itself."""
        args = self.node.args
        value = args[position] if position < len(args) else default
        return map_arg(value, self.values.__getitem__)

    def parameter(self, position: int) -> str | None:
        """Name of the parameter or buffer at ``position``; None for any other operand."""
        args = self.node.args
        source = args[position] if position < len(args) else None
        return self.names.get(source) if isinstance(source, Node) else None

    def source(self, position: int) -> str | None:
        """Like :meth:`parameter`, but also accepts a piece of a parameter along its first dimension."""
        node = self.node.args[position] if position < len(self.node.args) else None
        while isinstance(node, Node) and node not in self.names and node.op == 'call_function':
            is_piece = node.target is getitem or op_name(node) in PIECES and not any(node.args[2:])
            if not is_piece:
                return None
            node = node.args[0]
        return self.names.get(node) if isinstance(node, Node) else None

    @property
    def tensors(self) -> list[Value]:
        """Labels of all tensor operands in order, lists flattened, repetitions kept."""
        found: list[Value] = []
        for node in operands(self.node):
            found += as_list(self.values[node])
        return found

    @property
    def x(self) -> Value:
        """Labels of the first tensor operand."""
        return self.tensors[0]

    @property
    def weight(self) -> Value:
        """Labels of the weight of a layer or norm, its second operand."""
        return self.arg(1)

    @property
    def bias(self) -> Value | None:
        """Labels of the bias of a layer or norm, its third operand."""
        return self.arg(2)

    @property
    def shape(self) -> Shape:
        """Shape of the (first) result."""
        return shapes(self.node)[0]

    @property
    def rank(self) -> int:
        """Number of dimensions of the (first) result."""
        return len(self.shape)

    def result(self, axes: Iterable[Axis | None] = ()) -> Result:
        """Labels of the result; if the op returns several, all carry the same axes."""
        known = tuple(axis for axis in axes if axis is not None)
        value = self.node.meta.get('val')
        if isinstance(value, (list, tuple)):
            return [Value(sizes(part), known) for part in value]
        return Value(sizes(value), known)

    def moved(self, origins: Sequence[int | None], reason: str = '', at_most: int = GATED) -> Result:
        """Labels of a result whose dimension ``d`` is dimension ``origins[d]`` of the first operand.

        Args:
            origins: For each dimension of the result, the dimension of the operand it comes from, or None.
            reason: Why channels along the remaining dimensions of the operand are frozen.
            at_most: Upper bound on the state of the channels.
        """
        known = []
        for axis in self.x.axes:
            if axis.dim not in origins:
                self.freeze([axis], reason)
                continue
            moved = replace(axis, dim=origins.index(axis.dim))
            if at_most < GATED:
                moved = self.flow.weaken(moved, at_most)
            known.append(moved)
        return self.result(known)

    def spoilt(self, dims: Iterable[int], reason: str, at_most: int = GATED) -> Result:
        """Labels of a result with the dimensions of the first operand; channels along ``dims`` are frozen."""
        origins: list[int | None] = list(range(self.x.rank))
        for dim in dims:
            origins[dim] = None
        return self.moved(origins, reason, at_most)

    def dropped(self, dims: Iterable[int], reason: str, at_most: int = GATED) -> Result:
        """Labels of a result without dimensions ``dims`` of the first operand; channels along them are frozen."""
        rank = self.x.rank
        dropped = {dim % rank for dim in dims}
        origins = [dim for dim in range(rank) if dim not in dropped]
        return self.moved(origins, reason, at_most)

    def freeze(self, axes, reason: str) -> None:
        """Freeze ``axes``; the recorded reason names the op and the module."""
        module = self.layer or 'the model itself'
        self.flow.freeze(axes, f'{reason} ({self.name} in {module})')

    def give_up(self, reason: str) -> Result:
        """Freeze all channels the op touches; the result carries none."""
        for value in self.tensors:
            self.freeze(value.axes, reason)
        return self.result()

    def rigid(self, dim: int, size: int, reason: str) -> Axis:
        """A new, frozen axis for a tensor without labels along ``dim``."""
        axis = self.flow.fresh(dim, size).known(LOST)
        self.freeze([axis], reason)
        return axis

    def per_sample(self, extents) -> float:
        """Product of ``extents`` divided by the batch size.

        Raises:
            ValueError: An extent depends on data.
        """
        if UNKNOWN in extents:
            raise ValueError('a size depends on data')
        return prod(extents) / self.batch

    def count(self, layer: str, extents: Iterable[int], factors: Iterable[Ids] = ()) -> None:
        """Record the op's multiply-accumulates if it belongs to the inference graph.

        Args:
            layer: Path of the module they are attributed to.
            extents: Sizes of the dimensions without channels.
            factors: Channel ids along each of the other dimensions.
        """
        if self.counted:
            positions = self.per_sample(extents)
            self.flow.terms.append(Term(self.node, layer, positions, tuple(factors)))


def operands(node: Node) -> list[Node]:
    """All tensor operands of a call in order, repetitions kept."""
    found: list[Node] = []
    map_arg((node.args, dict(node.kwargs)), found.append)
    return found


def as_list(value: Result) -> list[Value]:
    """Wrap a single value in a list; return a list unchanged."""
    if isinstance(value, list):
        return value
    return [value]


def op_name(node: Node) -> str:
    """Name of the op a node calls, see :func:`base_name`."""
    return base_name(node.target)


def base_name(target: Any) -> str:
    """Op name without ``aten.``, overload and in-place underscore: ``conv2d``; other namespaces keep their prefix."""
    return _without_overload(target).removeprefix('aten.').rstrip('_')


def _without_overload(target: Any) -> str:
    """Op name without its overload: ``aten.conv2d`` for ``aten.conv2d.default``."""
    name = str(target)
    return name.rsplit('.', 1)[0]


def is_inplace(node: Node) -> bool:
    """Whether a call changes its first operand in place."""
    return _without_overload(node.target).endswith('_')


def module_path(node: Node) -> str:
    """Dotted path of the module whose forward made the call, relative to the traced model."""
    return next(reversed(module_paths(node)), '')


def module_paths(node: Node) -> list[str]:
    """Dotted paths of all modules whose forward encloses the call, outermost first."""
    stack = node.meta.get('nn_module_stack') or {}
    return [path.removeprefix('model').removeprefix('.') for path, _ in stack.values()]


def shapes(node: Node) -> list[Shape]:
    """Shapes of the results of a call."""
    values = node.meta.get('val')
    if not isinstance(values, (list, tuple)):
        return [sizes(values)]
    return [sizes(value) for value in values if isinstance(value, Tensor)] or [()]


def sizes(value: Any) -> Shape:
    """Shape of a tensor, empty for anything else; :data:`UNKNOWN` where a size depends on data."""
    shape = getattr(value, 'shape', ())
    return tuple(size if isinstance(size, int) else UNKNOWN for size in shape)
