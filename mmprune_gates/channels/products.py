"""Channel rules of products of two activations: attention and its relatives.

Each is a sum of products as in an einsum: dimensions have names, and those that the result lacks are summed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from mmprune_gates.channels.flow import Summed
from mmprune_gates.channels.labels import GATED, LOST, Axis, Value
from mmprune_gates.channels.moving import repeated
from mmprune_gates.channels.op import Op, Result
from mmprune_gates.channels.pointwise import MIXED, meet, scaled_once

Names = tuple[str, ...]  # of the dimensions of a tensor

SUMMED = 'multiplied as a matrix with other activations'
ATTENDED = 'attended over channels'


@dataclass(frozen=True)
class Operand:
    """A tensor with named dimensions."""

    value: Value
    names: Names

    def along(self, name: str) -> Axis | None:
        """Its channels along a dimension; None if it has none there."""
        return self.value.along(self.names.index(name)) if name in self.names else None

    def size(self, name: str) -> int:
        """Its size along a dimension; 1 if it lacks the dimension."""
        return self.value.shape[self.names.index(name)] if name in self.names else 1


@dataclass(frozen=True)
class Product:
    """Two tensors multiplied where their dimensions have the same names, and summed over what the result lacks.

    Attributes:
        op: The op that multiplies them.
        operands: The tensors.
        result: Names of the dimensions of the result.
        scaled: Whether the result is divided by the square root of the number of channels that are summed over.
    """

    op: Op
    operands: tuple[Operand, Operand]
    result: Names
    scaled: bool = False

    def labels(self) -> list[Axis]:
        """The axes of the result.

        Dimensions that both operands and the result have are batch dimensions, such as heads: products along them are
        independent. Dimensions of one operand pass. Channels that are summed over go together, such as those of
        queries and keys.
        """
        axes = []
        for dim, name in enumerate(self.result):
            axis = self._passing(name)
            if axis is not None:
                axes.append(replace(axis, dim=dim))
        for name in self._summed():
            self._sum(self._axes(name))
        return axes

    def count(self) -> None:
        """Record its multiply-accumulates."""
        extents = []
        factors = []
        for name in (*self.result, *self._summed()):
            axes = self._axes(name)
            if axes:
                factors.append(axes[0].ids)
            else:
                extents.append(max(operand.size(name) for operand in self.operands))
        self.op.count(self.op.layer, extents, factors)

    def _sum(self, axes: list[Axis]) -> None:
        """Sum over channels: exact if both operands have them and gates at sites can close one's; else frozen."""
        flow = self.op.flow
        if flow.scout is not None:
            flow.scout.summed.extend(axis.ids for axis in axes)
        gated = [axis for axis in axes if axis.sites and (axis.state == GATED).all()]
        if len(axes) < 2 or not gated:
            self.op.freeze(axes, SUMMED)
            return
        first, second = axes
        flow.unite(first.ids, second.ids)
        everything = torch.ones(len(first.ids), dtype=torch.bool)
        operands: tuple[frozenset[str], ...] = ()
        if self.scaled:
            operands = (first.sites, second.sites)
        read = Summed(layer=self.op.layer, index=first.ids, gated=everything, sites=gated[0].sites, operands=operands)
        flow.reads.append(read)

    def _summed(self) -> list[str]:
        """Names of the dimensions that the result lacks, each once."""
        first, second = self.operands
        names = dict.fromkeys((*first.names, *second.names))
        return [name for name in names if name not in self.result]

    def _axes(self, name: str) -> list[Axis]:
        """The channels of both operands along a dimension."""
        found = [operand.along(name) for operand in self.operands]
        return [axis for axis in found if axis is not None]

    def _passing(self, name: str) -> Axis | None:
        """The channels along a dimension of the result; None if there are none, or they are frozen."""
        holders = [operand for operand in self.operands if name in operand.names]
        sides = [(holder.along(name), holder.size(name)) for holder in holders]
        scout = self.op.flow.scout
        if len(holders) > 1 and scout is not None:
            for axis in self._axes(name):
                scout.batches.append(axis.ids)
        return meet(self.op, sides, MIXED, scaled_once)


def matrix_product(op: Op) -> Result:
    """matmul, mm, bmm: (..., n, k) and (..., k, m) -> (..., n, m)."""
    first, second = op.tensors
    if min(first.rank, second.rank) < 2:
        return op.give_up(SUMMED)
    left = Operand(first, (*_batch(first.rank), 'n', 'k'))
    right = Operand(second, (*_batch(second.rank), 'k', 'm'))
    product = Product(op, (left, right), (*_batch(op.rank), 'n', 'm'))
    product.count()
    return op.result(product.labels())


def added_product(op: Op) -> Result:
    """``aten.baddbmm``: an operand added to products of matrices, as a mask is to the scores of attention."""
    mask, first, second = op.tensors
    left = Operand(first, ('0', 'n', 'k'))
    right = Operand(second, ('0', 'k', 'm'))
    product = Product(op, (left, right), ('0', 'n', 'm'))
    product.count()
    axes = product.labels()
    _meet_mask(op, axes, mask.expanded(op.rank))
    return op.result(op.flow.weaken(axis, LOST) for axis in axes)


def einsum(op: Op) -> Result:
    """``aten.einsum`` of two operands, without diagonal; others freeze their channels, uncounted."""
    equation = str(op.node.args[0]).replace(' ', '')
    inputs, arrow, result = equation.partition('->')
    parts = inputs.split(',')
    if not arrow or len(parts) != 2:
        return op.give_up(SUMMED)
    operands = []
    for value, part in zip(op.tensors, parts, strict=True):
        names = _spelled(part, value.rank)
        operands.append(Operand(value, names))
    first, second = operands
    passing = _spelled(result, op.rank)
    spelled = (first.names, second.names, passing)
    has_diagonal = any(len(set(names)) < len(names) for names in spelled)
    if has_diagonal:
        return op.give_up(SUMMED)
    product = Product(op, (first, second), passing)
    product.count()
    return op.result(product.labels())


def _spelled(part: str, rank: int) -> Names:
    """Names of the dimensions in a part of an equation; those of an ellipsis are numbered from its end."""
    before, _, behind = part.partition('...')
    hidden = rank - len(before) - len(behind)  # none without an ellipsis
    passing = _batch(hidden + 2)
    return (*before, *passing, *behind)


def attention(op: Op) -> Result:
    """``aten.scaled_dot_product_attention``: q (..., n, k), k (..., s, k), v (..., s, m), mask (..., n, s).

    Unless a scale is given, it is 1/sqrt(k): if channels along k go, weights must make up for that. Torch's own module
    is replaced by one that keeps its scale.
    """
    query, key, value, *masks = [one.expanded(op.rank) for one in op.tensors]
    options = op.node.kwargs
    if options.get('enable_gqa'):  # several heads of q in a row read each head of k and v
        times = query.shape[-3] // key.shape[-3]
        key = repeated(key, -3, times)
        value = repeated(value, -3, times)
    batch = _batch(op.rank)
    pairs = (*batch, 'n', 's')
    queries = Operand(query, (*batch, 'n', 'k'))
    keys = Operand(key, (*batch, 's', 'k'))
    values = Operand(value, (*batch, 's', 'm'))
    keeps_scale = type(op.flow.model.get_submodule(op.layer)) is nn.MultiheadAttention
    scaled = options.get('scale') is None and not keeps_scale
    scores = Product(op, (queries, keys), pairs, scaled)
    scores.count()
    axes = scores.labels()
    for mask in masks:
        _meet_mask(op, axes, mask)
    over_tokens = [axis for axis in axes if axis.dim == op.rank - 1]
    op.freeze(over_tokens, ATTENDED)
    weights = tuple(op.flow.weaken(axis, LOST) for axis in axes)
    shape = (*query.shape[:-1], key.shape[-2])
    attended = Operand(Value(shape, weights), pairs)
    sums = Product(op, (attended, values), (*batch, 'n', 'm'))
    sums.count()
    return op.result(sums.labels())


def _meet_mask(op: Op, axes: Sequence[Axis], mask: Value) -> None:
    """Unite the axes of attention scores with those of an additive or bool mask.

    A mask without channels may have a size for each head because the code expands it. Whether it then adapts to fewer
    heads is found when they are tried.
    """
    for axis in axes:
        own = mask.along(axis.dim)
        if own is None and mask.shape[axis.dim] > 1 and not op.flow.are_heads(axis):
            op.freeze([axis], MIXED)
        elif own is not None:
            op.flow.unite(axis.ids, own.ids)
    known = {axis.dim for axis in axes}
    op.freeze([own for own in mask.axes if own.dim not in known], MIXED)


def _batch(rank: int) -> Names:
    """Names of all dimensions but the last two, counted from the end."""
    return tuple(str(number) for number in reversed(range(rank - 2)))
