"""Channel rules of ops that move elements: permutations, repetitions, concatenations, pieces; views in ``views.py``.

Most rules only state where each dimension of the result comes from, see :meth:`Op.moved`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch.fx import Node

from mmprune_gates.channels.labels import LOST, Axis, Value
from mmprune_gates.channels.op import NO_RULE, Op, Result, shapes
from mmprune_gates.channels.pointwise import aligned
from mmprune_gates.channels.views import line


def permute(op: Op) -> Result:
    """``aten.permute``."""
    return op.moved([dim % op.rank for dim in op.arg(1)])


def transpose(op: Op) -> Result:
    """``aten.transpose`` and ``aten.t``."""
    order = list(range(op.rank))
    if order:
        first = op.arg(1, 0) % op.rank
        second = op.arg(2, 1) % op.rank
        order[first] = second
        order[second] = first
    return op.moved(order)


def matrix_transpose(op: Op) -> Result:
    """``aten.mT``."""
    order = list(range(op.rank))
    order[-2:] = order[-1], order[-2]
    return op.moved(order)


def repeat(op: Op) -> Result:
    """``aten.repeat``: a tensor several times in a row, along each dimension."""
    times = op.arg(1)
    axes = []
    for axis in op.x.expanded(op.rank).axes:
        once = np.arange(len(axis.ids))
        places = np.tile(once, times[axis.dim])
        axes.append(axis.take(places))
    return op.result(axes)


def repeat_interleave(op: Op) -> Result:
    """``aten.repeat_interleave``: each position of a dimension equally many times in a row."""
    times = op.arg(1)
    dim = op.arg(2)
    if not isinstance(times, int) or dim is None:
        return op.give_up(NO_RULE)
    result = repeated(op.x, dim, times)
    return op.result(result.axes)


def repeated(value: Value, dim: int, times: int) -> Value:
    """A tensor whose positions along a dimension are each repeated."""
    shape = list(value.shape)
    shape[dim] *= times
    axes = list(value.without(dim))
    axis = value.along(dim)
    if axis is not None:
        once = np.arange(len(axis.ids))
        places = np.repeat(once, times)
        axes.append(axis.take(places))
    return Value(tuple(shape), tuple(axes))


def embedding(op: Op) -> Result:
    """``aten.embedding``: rows of a table, picked by integers; its columns may be channels."""
    sources: list[int | None] = [None] * op.rank
    sources[-1] = 1
    return op.moved(sources, 'looked up along channels')


def expand(op: Op) -> Result:
    """``aten.expand``: broadcast dimensions hold no channel."""
    expanded = op.x.expanded(op.rank)
    return op.result(expanded.axes)


def take_slice(op: Op) -> Result:
    """``aten.slice``: whole dimensions pass; a part of a channel dimension is a size fixed in the code."""
    dim = op.arg(1, 0)
    if op.shape[dim] == op.x.shape[dim]:
        return op.result(op.x.axes)
    return op.spoilt([dim], 'sliced at a size fixed in the code')


def select(op: Op) -> Result:
    """``aten.select``: one position of a dimension."""
    return op.dropped([op.arg(1)], 'a single channel selected')


def unbind(op: Op) -> Result:
    """``aten.unbind``: every position of a dimension."""
    return op.dropped([op.arg(1, 0)], 'taken apart along channels')


def split(op: Op) -> Result:
    """split: consecutive pieces along ``args[2]`` of given sizes, which the code may fix.

    Pieces of a parameter pass: only a rehearsal tells whether the code computes their sizes.
    """
    axis = op.x.along(op.arg(2, 0))
    if op.parameter(0) is not None and axis is not None:
        return _pieces(op, axis)
    return op.spoilt([op.arg(2, 0)], 'split at sizes that the code may fix')


def index(op: Op) -> Result:
    """``aten.index`` with one tensor of integers: picks positions of one dimension, which must hold no channel."""
    given = cast(Sequence[Node | None], op.node.args[1])
    places = [(dim, node) for dim, node in enumerate(given) if node is not None]
    if len(places) != 1:
        return op.give_up(NO_RULE)
    ((dim, node),) = places
    chosen = op.values.get(node)
    computed = chosen is not None and chosen.axes and node not in op.names
    if node.meta['val'].dtype == torch.bool or chosen is None or computed:
        return op.give_up(NO_RULE)
    op.freeze(chosen.axes, 'indices')  # of a buffer
    picked = len(shapes(node)[0])
    sources: list[int | None] = list(range(op.x.rank))
    sources[dim : dim + 1] = [None] * picked
    return op.moved(sources, 'indexed along channels')


def _pieces(op: Op, axis: Axis) -> list[Value]:
    """Labels of consecutive pieces along an axis; their sizes are those of the results."""
    rest = op.x.without(axis.dim)
    pieces = []
    start = 0
    for shape in shapes(op.node):
        stop = start + shape[axis.dim]
        piece = axis.take(np.arange(start, stop))
        pieces.append(Value(shape, (*rest, piece)))
        start = stop
    return pieces


def roll(op: Op) -> Result:
    """``aten.roll`` over dimensions that hold no channel."""
    dims = op.arg(2) or range(op.rank)
    return op.spoilt(dims, 'rolled along channels')


def pad(op: Op) -> Result:
    """``aten.pad`` with a constant: exact over dimensions that hold no channel."""
    fill = op.arg(3)
    if op.name == 'aten.constant_pad_nd':
        fill = op.arg(2)
    reason = 'padded along channels'
    padded = []
    for number, width in enumerate(op.arg(1)):
        if width:
            padded.append(-1 - number // 2)  # widths are given in pairs, from the last dimension on
    if fill:
        return op.spoilt(padded, reason, LOST)
    return op.spoilt(padded, reason)


def getitem(op: Op) -> Value:
    """``operator.getitem`` of a list of results."""
    values = op.arg(0)
    return values[op.arg(1)]


def chunk(op: Op) -> Result:
    """``aten.chunk``, ``tensor_split``: as many consecutive pieces along ``args[2]``. Equal pieces shrink alike."""
    dim = op.arg(2, 0)
    axis = op.x.along(dim)
    if axis is None:
        return op.result(op.x.axes)
    parts = shapes(op.node)
    sizes = {shape[dim] for shape in parts}
    if len(sizes) > 1 or sizes == {1}:
        return op.spoilt([dim], 'split into pieces of different sizes, or of one channel')
    op.flow.tie(axis.ids.reshape(len(parts), -1))
    return _pieces(op, axis)


def unfold(op: Op) -> Result:
    """``aten.im2col``: (N, C, H, W) -> (N, C k, L); each channel is repeated for the k places of a window."""
    moved = cast(Value, op.moved([*range(op.x.rank - 2), None], 'unfolded along channels'))
    axis = moved.along(-2)
    if axis is None:
        return moved
    places = op.shape[-2] // len(axis.ids)
    return op.result(repeated(moved, -2, places).axes)


def pixel_shuffle(op: Op) -> Result:
    """``aten.pixel_shuffle``: (*, C r^2, H, W) -> (*, C, H r, W r); the r^2 channels that make one go together."""
    dim = op.rank - 3
    axis = op.x.along(dim)
    channels = op.shape[dim]
    if axis is None or channels == 1:
        return op.spoilt([dim], 'shuffled into a single channel')
    behind_each = np.arange(len(axis.ids)).reshape(channels, -1)
    op.flow.tie(axis.ids[behind_each.T])
    shuffled = line(axis, behind_each.T, dim)
    return op.result([*op.x.without(dim), shuffled])


def stack(op: Op) -> Result:
    """``aten.stack``: a new dimension; channels along the others are united."""
    new = op.arg(1, 0) % op.rank
    values = [_unsqueezed(value, new) for value in op.tensors]
    axes = aligned(op, values, range(op.rank), 'stacked with a tensor without removable channels')
    return op.result(axes)


def _unsqueezed(value: Value, dim: int) -> Value:
    """A tensor with a new dimension of size one."""
    before, behind = value.shape[:dim], value.shape[dim:]
    axes = []
    for axis in value.axes:
        new = axis.dim + 1 if axis.dim >= dim else axis.dim
        axes.append(replace(axis, dim=new))
    return Value((*before, 1, *behind), tuple(axes))


def cat(op: Op) -> Result:
    """``aten.cat``: channels side by side along the dimension, united along all others."""
    joined = op.arg(1, 0) % op.rank
    others = [dim for dim in range(op.rank) if dim != joined]
    axes = aligned(op, op.tensors, others, 'concatenated with a tensor without removable channels')
    if any(part.along(joined) for part in op.tensors):
        axes.append(_join(op, joined))
    return op.result(axes)


def _join(op: Op, dim: int) -> Axis:
    """The axis along the concatenated dimension; pieces without labels are frozen."""
    ids = []
    state = []
    sites: set[str] = set()
    for part in op.tensors:
        piece = part.along(dim)
        if piece is None:
            piece = op.rigid(dim, part.shape[dim], 'a piece without removable channels')
        ids.append(piece.ids)
        state.append(piece.state)
        sites |= piece.sites
    return Axis(dim, np.concatenate(ids), np.concatenate(state), frozenset(sites))
