"""Channel rule of products of two activations: attention and its relatives."""

from __future__ import annotations

from mmprune_gates.channels.labels import Term, Value
from mmprune_gates.channels.op import Op


def product(op: Op) -> Value:
    """Matrix products: nothing they touch can be removed, but their multiply-accumulates count.

    Channels that are summed over have no weight in front of which a gate could stand, and the others are
    nearly always laid out by sizes fixed in the code (heads).
    """
    op.freeze([axis for value in op.tensors for axis in value.axes], 'multiplied as a matrix with other activations')
    if op.counted:
        op.flow.terms += [Term(op.layer, op.per_sample(extents), ()) for extents in count(op)]
    return op.result()


def count(op: Op) -> list[list[int]]:
    """Extents whose product is the number of multiply-accumulates, for each of the products an op makes."""
    if op.name.endswith('einsum'):
        operands = op.node.args[0].replace(' ', '').split('->')[0].split(',')
        if '...' in op.node.args[0] or len(operands) != 2:
            return []
        sizes = {}
        for letters, x in zip(operands, op.tensors, strict=True):
            sizes.update(zip(letters, x.shape, strict=True))
        return [list(sizes.values())]
    first, second = op.tensors[:2]
    if op.name.endswith('attention'):
        scores = [*first.shape, second.shape[-2]]
        return [scores, [*scores[:-2], second.shape[-2], op.tensors[2].shape[-1]]]
    return [[*op.shape, first.shape[-1]]]
