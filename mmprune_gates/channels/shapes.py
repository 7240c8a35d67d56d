"""Channel rules of ops that move elements about: permutations, views, concatenations, pieces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mmprune_gates.channels.labels import Axis, Value
from mmprune_gates.channels.op import UNKNOWN, Op, shapes
from mmprune_gates.channels.pointwise import meet
from mmprune_gates.channels.reshape import grid, runs, spread


def view(op: Op) -> Value:
    """view, reshape, flatten, squeeze, ...: channels follow their elements.

    Where a dimension is split, only one of its parts can shrink in a rectangular way: the one given as -1 in the
    code, or else the last; channels at the same place of the other parts are tied (groups of a shuffle, heads).
    """
    x, axes = op.arg(0), []
    if UNKNOWN in (*x.shape, *op.shape):
        return op.give_up('viewed in a shape that depends on data')
    for before, after in runs(x.shape, op.shape):
        inside = [axis for axis in x.axes if axis.dim in before]
        if len(inside) == 1:
            axes += relaid(op, inside[0], x.shape, before, after)
        elif len(before) == len(after) == 1:
            axes += inside
        else:
            op.freeze(inside, 'two channel dimensions viewed as one')
    return op.result(axes)


def relaid(op: Op, axis: Axis, shape: tuple[int, ...], before: range, after: range) -> list[Axis]:
    """One axis within one run of dimensions; none where all its channels go together, as after many shuffles."""
    inner = tuple(shape[d] for d in before)
    outer, dim = tuple(op.shape[d] for d in after), axis.dim - before.start
    positions = spread(axis.ids, dim, inner, outer)
    varying = [d for d, size in enumerate(positions.shape) if size > 1]
    if not varying:
        op.freeze([axis], 'all of them tied to each other, and viewed in another shape')
        return []
    inferred = inferred_dim(op)
    shrinks = inferred - after.start if inferred is not None and inferred - after.start in varying else varying[-1]
    for d in varying:
        if d != shrinks:
            first = positions.take([0], axis=d)
            op.flow.unite(axis.ids[first], axis.ids[positions])
            positions = first
    others = tuple(d for d in range(len(outer)) if d != shrinks)
    state = grid(axis.state, dim, inner, outer).min(axis=others)
    return [replace(axis, dim=after.start + shrinks, ids=axis.ids[positions.ravel()], state=state)]


def inferred_dim(op: Op) -> int | None:
    """The dimension of the result whose size the code gives as -1, if any."""
    sizes = next((arg for arg in op.node.args[1:] if isinstance(arg, (list, tuple))), ())
    if -1 not in sizes:
        return None
    first = op.arg(1) % len(op.arg(0).shape) if op.name.endswith('unflatten') else 0
    return first + list(sizes).index(-1)


def permute(op: Op) -> Value:
    """``aten.permute``."""
    return moved(op, [d % len(op.shape) for d in op.arg(1)])


def transpose(op: Op) -> Value:
    """``aten.transpose`` and ``aten.t``."""
    rank = len(op.shape)
    order = list(range(rank))
    a, b = op.arg(1, 0) % max(rank, 1), op.arg(2, 1) % max(rank, 1)
    order[a], order[b] = order[b], order[a]
    return moved(op, order)


def moved(op: Op, order: list[int]) -> Value:
    """Axes of the operand when result dimension ``d`` is operand dimension ``order[d]``."""
    return op.result([replace(axis, dim=order.index(axis.dim)) for axis in op.arg(0).axes])


def expand(op: Op) -> Value:
    """``aten.expand``: broadcast dimensions hold no channel."""
    x = op.arg(0)
    offset = len(op.shape) - len(x.shape)
    return op.result([replace(axis, dim=axis.dim + offset) for axis in x.axes])


def cat(op: Op) -> Value:
    """``aten.cat``: channels side by side along the dimension, united along all others."""
    parts, dim = op.arg(0), op.arg(1, 0) % len(op.shape)
    axes = []
    for d in range(len(op.shape)):
        found = [part.along(d) for part in parts]
        if not any(found):
            continue
        if d == dim:
            axes.append(join(op, d, parts, found))
        elif all(found):
            axes.append(meet(op, d, found))
        else:
            op.freeze(found, 'concatenated with a tensor without removable channels')
    return op.result(axes)


def join(op: Op, dim: int, parts: list[Value], found: list[Axis | None]) -> Axis:
    """The axis along the dimension of concatenation; pieces without labels stay whole."""
    whole = [
        axis or op.rigid(dim, part.shape[dim], 'a piece without removable channels')
        for axis, part in zip(found, parts, strict=True)
    ]
    return Axis(
        dim,
        np.concatenate([axis.ids for axis in whole]),
        np.concatenate([axis.state for axis in whole]),
        frozenset().union(*(axis.sites for axis in whole)),
    )


def chunk(op: Op) -> list[Value]:
    """``aten.chunk``: consecutive pieces along ``args[2]``, by their number. Equal pieces shrink alike."""
    x, dim = op.arg(0), op.arg(2, 0) % len(op.arg(0).shape)
    axis, parts = x.along(dim), shapes(op.node)
    if axis is None:
        return [Value(shape, x.axes) for shape in parts]
    if len({shape[dim] for shape in parts}) > 1 or parts[0][dim] == 1:
        op.freeze([axis], 'split into pieces of different sizes, or of one channel')
        return [Value(shape, x.without(dim)) for shape in parts]
    rows = axis.ids.reshape(len(parts), -1)
    op.flow.unite(rows[:1], rows)
    size = rows.shape[1]
    return [
        Value(shape, (*x.without(dim), axis.take(slice(i * size, (i + 1) * size)))) for i, shape in enumerate(parts)
    ]


def split(op: Op) -> list[Value]:
    """split: consecutive pieces along ``args[2]``, by their sizes, which the code may fix."""
    x, dim = op.arg(0), op.arg(2, 0) % len(op.arg(0).shape)
    op.freeze([x.along(dim)], 'split at sizes that the code may fix')
    return [Value(shape, x.without(dim)) for shape in shapes(op.node)]


def pixel_shuffle(op: Op) -> Value:
    """``aten.pixel_shuffle``: (N, C r^2, H, W) -> (N, C, H r, W r); the r^2 channels behind one go together."""
    x, axis = op.arg(0), op.arg(0).along(1)
    if axis is None or op.shape[1] == 1:
        op.freeze([axis], 'shuffled into a single channel')
        return op.result(x.without(1))
    rows = axis.ids.reshape(op.shape[1], -1)
    op.flow.unite(rows[:, :1], rows)
    state = axis.state.reshape(rows.shape).min(axis=1)
    return op.result([*x.without(1), replace(axis, ids=rows[:, 0], state=state)])


def take_slice(op: Op) -> Value:
    """``aten.slice``: whole dimensions pass; a part of a channel dimension is a size fixed in the code."""
    x, dim = op.arg(0), op.arg(1, 0) % len(op.arg(0).shape)
    axis = x.along(dim)
    if axis is None or op.shape[dim] == x.shape[dim]:
        return op.result(x.axes)
    op.freeze([axis], 'sliced at a size fixed in the code')
    return op.result(x.without(dim))


def select(op: Op) -> Value:
    """``aten.select``: one position of a dimension."""
    x, dim = op.arg(0), op.arg(1) % len(op.arg(0).shape)
    op.freeze([x.along(dim)], 'a single channel selected')
    return op.result([replace(a, dim=a.dim - (a.dim > dim)) for a in x.without(dim)])


def unbind(op: Op) -> list[Value]:
    """``aten.unbind``: every position of a dimension."""
    x, dim = op.arg(0), op.arg(1, 0) % len(op.arg(0).shape)
    op.freeze([x.along(dim)], 'taken apart along channels')
    axes = tuple(replace(a, dim=a.dim - (a.dim > dim)) for a in x.without(dim))
    return [Value(shape, axes) for shape in shapes(op.node)]


def getitem(op: Op) -> Value:
    """``operator.getitem`` of a list of results."""
    return op.arg(0)[op.arg(1)]


def pad(op: Op) -> Value:
    """``aten.pad`` with a constant: exact over dimensions that hold no channel."""
    x, widths = op.arg(0), op.arg(1)
    padded = {len(x.shape) - 1 - i // 2 for i, width in enumerate(widths) if width}
    op.freeze([axis for axis in x.axes if axis.dim in padded], 'padded along channels')
    fill = op.arg(3, 0) or 0
    keep = [axis for axis in x.axes if axis.dim not in padded]
    return op.result(keep if fill == 0 else [op.flow.weaken(axis, 0) for axis in keep])


def stack(op: Op) -> Value:
    """``aten.stack``: a new dimension; channels along the others are united."""
    parts, dim = op.arg(0), op.arg(1, 0) % len(op.shape)
    axes = []
    for d in range(len(parts[0].shape)):
        found = [part.along(d) for part in parts]
        if all(found):
            axes.append(meet(op, d + (d >= dim), found))
        else:
            op.freeze(found, 'stacked with a tensor without removable channels')
    return op.result(axes)
