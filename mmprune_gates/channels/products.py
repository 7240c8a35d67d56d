"""Channel rule of products of two activations: attention and its relatives."""

from __future__ import annotations

from mmprune_gates.channels.op import Op, Result


def product(op: Op) -> Result:
    """Matrix products: nothing they touch can be removed, but their multiply-accumulates count.

    Channels that are summed over have no weight in front of which a gate could stand, and the others are
    nearly always laid out by sizes fixed in the code (heads).
    """
    result = op.give_up('multiplied as a matrix with other activations')
    for extents in _products_of(op):
        op.count(op.layer, extents)
    return result


def _products_of(op: Op) -> list[list[int]]:
    """Extents whose product is the number of multiply-accumulates, for each of the products an op makes."""
    if op.name.endswith('einsum'):
        return _einsum_extents(op)
    if op.name.endswith('attention'):
        query, key, value, *_ = op.tensors
        *rows, width = query.shape
        columns = key.shape[-2]
        scores = [*rows, width, columns]
        sums = [*rows, columns, value.shape[-1]]
        return [scores, sums]
    summed = op.x.shape[-1]
    return [[*op.shape, summed]]


def _einsum_extents(op: Op) -> list[list[int]]:
    """Extents of an einsum of two operands without an ellipsis; others are not counted."""
    equation = str(op.node.args[0]).replace(' ', '')
    inputs = equation.split('->')[0]
    operands = inputs.split(',')
    if '...' in equation or len(operands) != 2:
        return []
    sizes: dict[str, int] = {}
    for letters, value in zip(operands, op.tensors, strict=True):
        sizes.update(zip(letters, value.shape, strict=True))
    return [list(sizes.values())]
