"""What inference executes, op after op, as hardware meets it: which op, on tensors of which sizes.

Multiply-accumulates say nothing of memory traffic, of ops without any, or of widths that a kernel dislikes. Whoever
prices those (a table of latencies, for instance) needs the ops themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from operator import getitem
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from mmprune_gates.channels.groups import Block, at
from mmprune_gates.channels.labels import Shape, Value
from mmprune_gates.channels.numbering import Numbering
from mmprune_gates.channels.op import base_name
from mmprune_gates.channels.walked import Walked

Target = Callable[..., Any]


@dataclass(frozen=True)
class Operand:
    """A tensor that an op reads or makes.

    Attributes:
        shape: Its shape in the whole model, for one sample where its first dimension holds samples.
        factors: Number of the vector of channels along each dimension that holds some.
        maker: Position of the work that makes it; None for inputs, and for constants.
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
        args, kwargs: What it is called with; an :class:`Operand` in place of each tensor.
        results: What it makes.
        gates: Numbers of the vectors without which it is not executed: those of residual blocks that hold it.
    """

    layer: str
    target: Target
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: tuple[Operand, ...]
    gates: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The op without overload, for example ``conv2d``."""
        return base_name(self.target)

    @property
    def operands(self) -> list[Operand]:
        """All tensors among the arguments, in order."""
        return [leaf for leaf in tree_leaves((self.args, dict(self.kwargs))) if isinstance(leaf, Operand)]


@dataclass(frozen=True)
class Workload:
    """All ops of inference, in order, and the channels along their tensors.

    Attributes:
        works: The ops.
        vectors: (C,) channel at each position, -1 for one that always stays; equal vectors occur once.
    """

    works: tuple[Work, ...]
    vectors: tuple[Tensor, ...]

    @cached_property
    def flat(self) -> tuple[Tensor, Tensor]:
        """(C,) all vectors in a row, and (C,) the number of the vector at each position."""
        index = torch.cat([torch.zeros(0, dtype=torch.long), *self.vectors])
        sizes = torch.tensor([len(vector) for vector in self.vectors], dtype=torch.long)
        return index, torch.repeat_interleave(torch.arange(len(sizes)), sizes)

    def counts(self, value: Tensor) -> Tensor:
        """(#vectors,) how many channels of each vector are kept, when channel i counts by ``value[i]``.

        Differentiable; what belongs to no channel counts by 1.
        """
        index, owner = self.flat
        return value.new_zeros(len(self.vectors)).index_add(0, owner, at(value, index, 1))

    def narrowed(self, index: Callable[[Tensor], Tensor]) -> Workload:
        """The same ops on fewer channels; those that have gone with their modules have no channels left.

        Args:
            index: From the channels of a vector to the new numbers of those that stay.
        """
        return replace(self, vectors=tuple(map(index, self.vectors)))


def workload_of(walked: Walked, numbering: Numbering, blocks: Sequence[Block], batch: int) -> Workload:
    """The ops of an inference pass through which labels have flowed.

    Args:
        walked: The pass.
        numbering: Which channels its ids have become.
        blocks: Residual blocks; what is in one that is closed by its gate is not executed.
        batch: Batch size of the traced input.
    """
    reader = _Reader(walked, numbering, batch)
    for node in walked.paths:
        if node.target is getitem:
            reader.pass_on(node)
        else:
            reader.read(node, blocks)
    return Workload(tuple(reader.works), tuple(reader.vectors))


class _Reader:
    """Turns the calls of a pass into works.

    Args:
        walked: The pass.
        numbering: Which channels its ids have become.
        batch: Batch size of the traced input.
    """

    def __init__(self, walked: Walked, numbering: Numbering, batch: int) -> None:
        self.walked, self.numbering, self.batch = walked, numbering, batch
        self.works: list[Work] = []
        self.vectors: list[Tensor] = []
        self.numbers: dict[bytes, int] = {}
        self.makers: dict[Node, int] = {}

    def pass_on(self, node: Node) -> None:
        """Note that one of several results is made where all are."""
        (source,) = node.all_input_nodes
        self.makers[node] = self.makers[source]

    def read(self, node: Node, blocks: Sequence[Block]) -> None:
        """Add a call."""
        layer = next(reversed(self.walked.paths[node]), '')
        gates = [self.number(torch.tensor([block.gate])) for block in blocks if _closes(block, layer)]
        argument = partial(self.argument, is_whole=node in self.walked.whole)
        results = tree_leaves(argument(node))
        kwargs = map_arg(dict(node.kwargs), argument)
        work = Work(
            layer, cast(Target, node.target), map_arg(node.args, argument), kwargs, tuple(results), tuple(gates)
        )
        self.makers[node] = len(self.works)
        self.works.append(work)

    def argument(self, node: Node, is_whole: bool) -> Any:
        """What stands for a tensor, or for a list of them."""
        value = self.walked.values[node]
        if isinstance(value, list):
            return [self.operand(node, part, is_whole) for part in value]
        return self.operand(node, value, is_whole)

    def operand(self, node: Node, value: Value, is_whole: bool) -> Operand:
        """What stands for a tensor; it has all its channels where the op is in a module that keeps its full width."""
        factors = {}
        for axis in () if is_whole else value.axes:
            index = self.numbering.channels(axis.ids)
            if (index >= 0).any():
                factors[axis.dim] = self.number(index)
        constant = node in self.walked.names or (node.op != 'placeholder' and node not in self.walked.paths)
        shape = value.shape if constant else one_sample(value.shape, self.batch)
        return Operand(shape, factors, self.makers.get(node), constant)

    def number(self, index: Tensor) -> int:
        """Number of a vector of channels; equal ones have the same."""
        key = index.numpy().tobytes()
        if key not in self.numbers:
            self.numbers[key] = len(self.vectors)
            self.vectors.append(index)
        return self.numbers[key]


def one_sample(shape: Shape, batch: int) -> Shape:
    """A shape for a batch of one, where the first dimension is a multiple of the batch."""
    if not shape or shape[0] % batch:
        return shape
    return (shape[0] // batch, *shape[1:])


def _closes(block: Block, layer: str) -> bool:
    """Whether what a module computes goes with a block that has a gate."""
    return block.gate is not None and block.holds(layer)
