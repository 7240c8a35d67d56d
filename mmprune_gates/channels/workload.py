"""The ops that inference executes, in order, with the sizes of their tensors.

Multiply-accumulates say nothing about memory traffic, ops without any, or widths that a kernel handles badly. A cost
that prices those, such as a latency table, needs the ops themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import getitem
from typing import Any, cast

import torch
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from mmprune_gates.channels.groups import Block
from mmprune_gates.channels.index import Distinct, Vectors
from mmprune_gates.channels.labels import Shape, Value
from mmprune_gates.channels.numbering import Numbering
from mmprune_gates.channels.op import base_name
from mmprune_gates.channels.walked import Walked

Target = Callable[..., Any]


@dataclass(frozen=True)
class Operand:
    """A tensor that an op reads or makes.

    Attributes:
        shape: Its shape in the whole model, for one sample if its first dimension holds the batch.
        factors: Dimension -> number of the channel vector along it, for each dimension that holds channels.
        maker: Position of the work that makes it; None for inputs and constants.
        constant: Whether it is a parameter or buffer, or computed from those only.
    """

    shape: Shape
    factors: Mapping[int, int] = field(default_factory=dict)
    maker: int | None = None
    constant: bool = False


@dataclass(frozen=True)
class Work:
    """One op of inference.

    Attributes:
        layer: Module path of the call.
        target: The op.
        args, kwargs: Its arguments, with an :class:`Operand` in place of each tensor.
        results: The tensors it makes.
        gates: Numbers of the vectors that stand for the residual blocks that hold it; a closed one skips the op.
    """

    layer: str
    target: Target
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: tuple[Operand, ...]
    gates: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Op name without its overload, for example ``conv2d``."""
        return base_name(self.target)

    @property
    def operands(self) -> list[Operand]:
        """All tensors among the arguments, in order."""
        arguments = (self.args, dict(self.kwargs))
        return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Operand)]


@dataclass(frozen=True)
class Workload:
    """All ops of inference, in order, and the channels along their tensors.

    Attributes:
        works: The ops.
        vectors: The channels along their tensors; equal vectors occur once.
    """

    works: tuple[Work, ...]
    vectors: Vectors


def workload_of(walked: Walked, numbering: Numbering, blocks: Sequence[Block], batch: int) -> Workload:
    """The workload of an inference pass.

    Args:
        walked: The pass, with labels.
        numbering: Maps its ids to channels.
        blocks: Residual blocks; ops in a block whose gate is closed are not executed.
        batch: Batch size of the traced input.
    """
    reader = _Reader(walked, numbering, batch)
    for node in walked.paths:
        if node.target is getitem:
            reader.pass_on(node)
        else:
            reader.read(node, blocks)
    return Workload(tuple(reader.works), Vectors(tuple(reader.vectors.each)))


class _Reader:
    """Turns the calls of a pass into works.

    Args:
        walked: The pass, with labels.
        numbering: Maps its ids to channels.
        batch: Batch size of the traced input.
    """

    def __init__(self, walked: Walked, numbering: Numbering, batch: int) -> None:
        self.walked, self.numbering, self.batch = walked, numbering, batch
        self.works: list[Work] = []
        self.vectors = Distinct()
        self.makers: dict[Node, int] = {}

    def pass_on(self, node: Node) -> None:
        """Give one of several results of an op the maker of all of them."""
        (source,) = node.all_input_nodes
        self.makers[node] = self.makers[source]

    def read(self, node: Node, blocks: Sequence[Block]) -> None:
        """Add a call to the works."""
        layer = next(reversed(self.walked.paths[node]), '')
        gates = []
        for block in blocks:
            if _closes(block, layer):
                gate = torch.tensor([block.gate])
                gates.append(self.vectors.number(gate))
        argument = partial(self.argument, is_whole=node in self.walked.whole)
        results = tree_leaves(argument(node))
        kwargs = map_arg(dict(node.kwargs), argument)
        work = Work(
            layer, cast(Target, node.target), map_arg(node.args, argument), kwargs, tuple(results), tuple(gates)
        )
        self.makers[node] = len(self.works)
        self.works.append(work)

    def argument(self, node: Node, is_whole: bool) -> Any:
        """The operand that stands for a tensor; a list of operands for a list of tensors."""
        value = self.walked.values[node]
        if isinstance(value, list):
            return [self.operand(node, part, is_whole) for part in value]
        return self.operand(node, value, is_whole)

    def operand(self, node: Node, value: Value, is_whole: bool) -> Operand:
        """The operand for a tensor; with ``is_whole``, in a module that keeps its full width, it loses no channels."""
        factors = {}
        for axis in () if is_whole else value.axes:
            index = self.numbering.channels(axis.ids)
            if (index >= 0).any():
                factors[axis.dim] = self.vectors.number(index)
        constant = node in self.walked.names or (node.op != 'placeholder' and node not in self.walked.paths)
        shape = value.shape if constant else one_sample(value.shape, self.batch)
        return Operand(shape, factors, self.makers.get(node), constant)


def one_sample(shape: Shape, batch: int) -> Shape:
    """A shape for a batch of one, if the first dimension is a multiple of the batch; otherwise the shape itself."""
    if not shape or shape[0] % batch:
        return shape
    return (shape[0] // batch, *shape[1:])


def _closes(block: Block, layer: str) -> bool:
    """Whether a block has a gate and holds a layer."""
    return block.gate is not None and block.holds(layer)
