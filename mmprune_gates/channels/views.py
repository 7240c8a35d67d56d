"""Channel rule of views: channels follow their elements, and one part of a dimension that is split can shrink."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mmprune_gates.channels.flow import DIMS, HEADS, Cut, Piece
from mmprune_gates.channels.labels import Axis, Ids
from mmprune_gates.channels.op import UNKNOWN, Op, Result
from mmprune_gates.channels.reshape import grid, lines, runs, spread


def view(op: Op) -> Result:
    """view, reshape, flatten, squeeze, ...: channels follow their elements.

    If a dimension is split, only one part can shrink, or the result would not be rectangular: the part along which
    heads or their channels go, else the one that the code gives as -1, else the last. Channels at the same place of
    that part are tied.
    """
    x = op.x
    if UNKNOWN in (*x.shape, *op.shape):
        return op.give_up('viewed in a shape that depends on data')
    axes = []
    for before, after in runs(x.shape, op.shape):
        own = [axis for axis in x.axes if axis.dim in before]
        if len(own) > 1:
            own = [axis for axis in own if not op.flow.is_frozen(axis)] or own  # what stays has a fixed size
        if len(own) == 1:
            axes += _relaid(op, own[0], before, after)
        elif crossed := op.flow.crossed_axes(own):
            heads, dims = crossed
            axes += _joined(op, heads, dims, before, after)
        else:
            op.freeze(own, 'two channel dimensions viewed as one')
    op.flow.seen += [(op.layer, axis.ids) for axis in (*x.axes, *axes)]
    return op.result(axes)


def _relaid(op: Op, axis: Axis, before: range, after: range) -> list[Axis]:
    """The axis of a run of dimensions after the view; none if all positions hold one channel, as after shuffles.

    A scout gets an axis along every dimension over which the channels vary.

    Args:
        op: The view.
        axis: Channels along one dimension of the run.
        before: The run, dimensions of the operand.
        after: The same run, dimensions of the result.
    """
    positions = _positions(op, axis, before, after)
    reduced = spread(axis.ids, positions)
    varying = [dim for dim, size in zip(after, reduced.shape, strict=True) if size > 1]
    if not varying:
        op.freeze([axis], 'all of them tied to each other, and viewed in another shape')
        return []
    if op.flow.scout is not None and len(varying) > 1:
        return [_piece(op, axis, lines(reduced, dim - after.start), dim) for dim in varying]
    known = op.flow.heads.get(op.node, {})
    heads = {kind: dim for kind, dim in known.items() if dim in varying}
    if len(set(heads.values())) > 1:
        return _crossed(op, axis, reduced, heads, after.start)
    shrinks = _shrinking_dim(op, varying, heads)
    along = shrinks - after.start
    op.flow.tie(axis.ids[lines(reduced, along)])
    relaid = line(axis, lines(positions, along), shrinks)
    for kind in known:
        cut = Cut(op.layer, kind, relaid.ids)
        op.flow.cuts.append(cut)
    if not known and len(varying) > 1:
        op.flow.guessed.append(relaid.ids)
    return [relaid]


def _positions(op: Op, axis: Axis, before: range, after: range) -> Ids:
    """Position in an axis at each place of a run of dimensions after the view."""
    old = tuple(op.x.shape[dim] for dim in before)
    new = tuple(op.shape[dim] for dim in after)
    places = np.arange(len(axis.ids))
    return grid(places, axis.dim - before.start, old, new)


def line(axis: Axis, rows: Ids, dim: int) -> Axis:
    """The axis along ``dim`` of a result whose lines hold the channels at ``rows``, tied to each other."""
    ids = axis.ids[rows]
    state = axis.state[rows]
    return replace(axis, dim=dim, ids=ids[0], state=state.min(axis=0))


def _crossed(op: Op, axis: Axis, positions: Ids, heads: Mapping[str, int], start: int) -> list[Axis]:
    """The axes of a run whose channels are cut into heads and their channels, both of which can shrink.

    Args:
        op: The view.
        axis: The channels.
        positions: Position in the axis at each place of the run.
        heads: What can shrink -> the dimension of the result.
        start: First dimension of the run.
    """
    axes = []
    for kind in (HEADS, DIMS):
        dim = heads[kind]
        rows = lines(positions, dim - start)
        piece = _piece(op, axis, rows, dim)
        whole = line(axis, rows, dim)
        axes.append(replace(whole, ids=piece.ids))
        cut = Cut(op.layer, kind, piece.ids)
        op.flow.cuts.append(cut)
    first, second = axes
    places = [first.dim - start, second.dim - start]
    last = np.moveaxis(positions, places, [-2, -1])
    tables = last.reshape(-1, *last.shape[-2:])
    tied = axis.ids[tables]
    op.flow.tie(tied)
    op.flow.cross(tied[0], first.ids[:, None], second.ids)
    return axes


def _joined(op: Op, first: Axis, second: Axis, before: range, after: range) -> list[Axis]:
    """The axis of a run in which a view joins heads and their channels.

    Args:
        op: The view.
        first: The heads.
        second: Their channels.
        before: The run, dimensions of the operand.
        after: The same run, dimensions of the result.
    """
    laid = [spread(axis.ids, _positions(op, axis, before, after)) for axis in (first, second)]
    at_first, at_second = np.broadcast_arrays(*laid)
    varying = [dim for dim, size in zip(after, at_first.shape, strict=True) if size > 1]
    if len(varying) != 1:
        op.freeze([first, second], 'two channel dimensions viewed as several others')
        return []
    one = first.take(at_first.ravel())
    other = second.take(at_second.ravel())
    state = np.minimum(one.state, other.state)
    one = op.flow.weaken(one, state)
    other = op.flow.weaken(other, state)
    joined = op.flow.fresh(varying[0], len(one.ids))
    op.flow.cross(joined.ids, one.ids, other.ids)
    sites = one.sites | other.sites
    return [replace(joined, state=one.state, sites=sites)]


def _piece(op: Op, axis: Axis, rows: Ids, dim: int) -> Axis:
    """An axis of new ids along one of several dimensions; positions that hold the same channels share an id."""
    _, units = np.unique(axis.ids[rows], axis=1, return_inverse=True)
    units = units.reshape(-1)
    fresh = op.flow.fresh(dim, int(units.max()) + 1)
    piece = fresh.take(units)
    if op.flow.scout is not None:
        op.flow.scout.pieces.append(Piece(op.node, dim, piece.ids, axis.ids))
    return piece


def _shrinking_dim(op: Op, varying: list[int], heads: Mapping[str, int]) -> int:
    """The dimension that can shrink, among those over which the channels vary."""
    for dim in (*heads.values(), _inferred_dim(op)):
        if dim in varying:
            return dim
    return varying[-1]


def _inferred_dim(op: Op) -> int | None:
    """The dimension of the result whose size the code gives as -1, if any."""
    first = 0
    if op.name.endswith('unflatten'):
        first = op.arg(1) % op.x.rank
    for sizes in op.node.args[1:]:
        if isinstance(sizes, (list, tuple)) and -1 in sizes:
            return first + sizes.index(-1)
    return None
