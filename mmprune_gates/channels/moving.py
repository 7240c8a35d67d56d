"""Channel rules of ops that move elements: permutations, repetitions, concatenations, pieces; views in ``views.py``.

Most rules only state where each dimension of the result comes from, see :meth:`Op.moved`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch.fx import Node

from mmprune_gates.channels.labels import GATED, LOST, ZERO, Axis, Ids, Value
from mmprune_gates.channels.op import NO_RULE, Op, Result, shapes
from mmprune_gates.channels.pointwise import aligned
from mmprune_gates.channels.views import line


def reordered(op: Op) -> Result:
    """``aten.permute``, ``transpose``, ``t`` and ``mT``: strides tell where each dimension of the result comes from."""
    rank = op.x.rank
    marks = list(range(1, rank + 1))
    sizes = [1] * rank
    marked = torch.empty_strided(sizes, marks, device='meta')
    call = cast(Callable[..., torch.Tensor], op.node.target)
    result = call(marked, *op.node.args[1:], **op.node.kwargs)
    sources = [marks.index(stride) for stride in result.stride()]
    return op.moved(sources)


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
    op.freeze(op.arg(1).axes, 'rows chosen by channels')
    sources: list[int | None] = [None] * op.rank
    sources[-1] = 1
    return op.moved(sources, 'looked up along channels')


def expand(op: Op) -> Result:
    """``aten.expand``: broadcast dimensions hold no channel."""
    expanded = op.x.expanded(op.rank)
    return op.result(expanded.axes)


def take_slice(op: Op) -> Result:
    """``aten.slice``: whole dimensions pass; a part of a channel dimension may be one of several equal pieces.

    Equal pieces shrink alike, if the code computes their sizes; only a rehearsal tells.
    """
    dim = op.arg(1, 0)
    size, taken = op.x.shape[dim], op.shape[dim]
    if taken == size:
        return op.result(op.x.axes)
    start = (op.arg(2) or 0) % size
    step = op.arg(4, 1)
    axis = op.x.along(dim)
    pieces = None if axis is None else _pieces_like(axis.ids, taken, start, step)
    if axis is None or pieces is None:
        return op.spoilt([dim], 'sliced at a size fixed in the code')
    op.flow.tie(pieces)
    places = np.arange(start, size, step)
    piece = axis.take(places[:taken])
    return op.result([*op.x.without(dim), piece])


def _pieces_like(ids: Ids, taken: int, start: int, step: int) -> Ids | None:
    """The rows of equal pieces, one after the other or interleaved, of which a slice is one; None if there are none."""
    pieces, rest = divmod(len(ids), taken)
    if rest or taken == 1:
        return None
    if step == 1 and start % taken == 0:
        return ids.reshape(pieces, taken)
    if step == pieces:
        return ids.reshape(taken, pieces).T
    return None


def select(op: Op) -> Result:
    """``aten.select``: one position of a dimension."""
    return op.dropped([op.arg(1)], 'a single channel selected')


def unbind(op: Op) -> Result:
    """``aten.unbind``: every position of a dimension."""
    return op.dropped([op.arg(1, 0)], 'taken apart along channels')


def split(op: Op) -> Result:
    """split: consecutive pieces along ``args[2]``. Equal ones shrink alike, and those of a parameter pass.

    Only a rehearsal tells whether the code computes their sizes.
    """
    axis = op.x.along(op.arg(2, 0))
    if axis is None:
        return op.result(op.x.axes)
    if op.parameter(0) is not None:
        return _pieces(op, axis)
    return _equal_pieces(op, axis, 'split at sizes that the code may fix')


def tensor_split(op: Op) -> Result:
    """``aten.tensor_split``: as many pieces as given, or pieces that begin at given places."""
    return chunk(op) if isinstance(op.arg(1), int) else split(op)


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


def _equal_pieces(op: Op, axis: Axis, reason: str) -> Result:
    """Labels of consecutive pieces that shrink alike; the channels are frozen if they differ, or have one channel."""
    sizes = {shape[axis.dim] for shape in shapes(op.node)}
    if len(sizes) > 1 or sizes == {1}:
        return op.spoilt([axis.dim], reason)
    op.flow.tie(axis.ids.reshape(-1, *sizes))
    return _pieces(op, axis)


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


def flip(op: Op) -> Result:
    """``aten.flip`` over dimensions that hold no channel."""
    return op.spoilt(op.arg(1), 'flipped along channels')


def pad(op: Op) -> Result:
    """``aten.pad`` and the like: exact over dimensions that hold no channel; zeros beside channels are more of them."""
    fill = op.arg(3)
    if op.name == 'aten.constant_pad_nd':
        fill = op.arg(2)
    is_constant = op.name == 'aten.constant_pad_nd' or op.name == 'aten.pad' and op.arg(2, 'constant') == 'constant'
    at_most = LOST if fill else GATED
    axes = []
    for axis in op.x.axes:
        place = 2 * (op.rank - 1 - axis.dim)  # widths are given in pairs, from the last dimension on
        widths = op.arg(1)[place : place + 2]
        if any(widths):
            if not is_constant or fill or min(widths) < 0:
                op.freeze([axis], 'padded along channels')
                continue
            before, after = (op.rigid(axis.dim, width, 'zeros beside channels') for width in widths)
            axis = _joined([before, axis, after])
        axes.append(op.flow.weaken(axis, at_most))
    return op.result(axes)


def getitem(op: Op) -> Value:
    """``operator.getitem`` of a list of results."""
    values = op.arg(0)
    return values[op.arg(1)]


def chunk(op: Op) -> Result:
    """``aten.chunk``: as many consecutive pieces along ``args[2]``. Equal pieces shrink alike."""
    axis = op.x.along(op.arg(2, 0))
    if axis is None:
        return op.result(op.x.axes)
    return _equal_pieces(op, axis, 'split into pieces of different sizes, or of one channel')


def unfold(op: Op, spatial: int) -> Result:
    """Each channel is repeated for the k places of a window that are moved into its dimension.

    ``aten.im2col``: (N, C, H, W) -> (N, C k, L); ``aten.pixel_unshuffle``: (*, C, H r, W r) -> (*, C r^2, H, W).

    Args:
        op: The call.
        spatial: Dimensions of the result after that of the channels.
    """
    dim = op.x.rank - 3
    sources = [*range(dim + 1), *[None] * spatial]
    moved = cast(Value, op.moved(sources, 'unfolded along channels'))
    places = op.shape[dim] // op.x.shape[dim]
    result = repeated(moved, dim, places)
    return op.result(result.axes)


def glu(op: Op) -> Result:
    """``aten.glu``: the first half of a dimension, times a function of the second."""
    dim = op.arg(1, -1)
    axes = [op.flow.weaken(axis, ZERO) for axis in op.x.without(dim)]
    axis = op.x.along(dim)
    if axis is not None:
        halves = axis.ids.reshape(2, -1)
        op.flow.tie(halves)
        places = np.arange(halves.shape[1])
        axes.append(op.flow.weaken(axis, ZERO).take(places))
    return op.result(axes)


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
    values = [value.unsqueezed(new) for value in op.tensors]
    axes = aligned(op, values, range(op.rank), 'stacked with a tensor without removable channels')
    return op.result(axes)


def cat(op: Op) -> Result:
    """``aten.cat``: channels side by side along the dimension, united along all others."""
    joined = op.arg(1, 0) % op.rank
    others = [dim for dim in range(op.rank) if dim != joined]
    axes = aligned(op, op.tensors, others, 'concatenated with a tensor without removable channels')
    if any(part.along(joined) for part in op.tensors):
        pieces = [_piece_along(op, part, joined) for part in op.tensors]
        axes.append(_joined(pieces))
    return op.result(axes)


def _joined(pieces: Sequence[Axis]) -> Axis:
    """The axis along which several are concatenated."""
    ids = [piece.ids for piece in pieces]
    state = [piece.state for piece in pieces]
    sites: set[str] = set()
    for piece in pieces:
        sites |= piece.sites
    return Axis(pieces[0].dim, np.concatenate(ids), np.concatenate(state), frozenset(sites))


def _piece_along(op: Op, part: Value, dim: int) -> Axis:
    """The axis of a tensor along a dimension; one without channels is frozen."""
    return part.along(dim) or op.rigid(dim, part.shape[dim], 'a piece without removable channels')
