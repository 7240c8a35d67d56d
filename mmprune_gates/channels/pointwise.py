"""Channel rules of ops that work element by element, or within a channel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mmprune_gates.channels.labels import GATED, LOST, ZERO, Axis, Value
from mmprune_gates.channels.op import NO_RULE, Op, shapes

MIXED = 'combined with a tensor that has no removable channels there'


def same(op: Op) -> Value:
    """Positively homogeneous per element: ReLU, dropout, casts."""
    return passed(op, GATED)


def resampling(op: Op) -> Value | list[Value]:
    """Pooling and interpolation over the trailing ``1d``, ``2d`` or ``3d`` dimensions: homogeneous per channel."""
    x = op.arg(0)
    first = len(x.shape) - int(op.name.removesuffix('d')[-1])
    op.freeze([axis for axis in x.axes if axis.dim >= first], 'resampled along a dimension that holds channels')
    result, *indices = shapes(op.node)
    value = Value(result, tuple(axis for axis in x.axes if axis.dim < first))
    return [value, *map(Value, indices)] if indices else value


def sampling(op: Op) -> Value:
    """``aten.grid_sampler``: x (N, C, *) at the points of a grid (N, *, 2 or 3); homogeneous per channel."""
    x, grid = op.arg(0), op.arg(1)
    op.freeze([*grid.axes, *(axis for axis in x.axes if axis.dim > 1)], 'sampled at or along channels')
    return op.result([axis for axis in x.axes if axis.dim <= 1])


def roll(op: Op) -> Value:
    """``aten.roll`` over dimensions that hold no channel."""
    x, dims = op.arg(0), op.arg(2, ())
    rolled = {d % len(x.shape) for d in dims} if dims else set(range(len(x.shape)))
    op.freeze([axis for axis in x.axes if axis.dim in rolled], 'rolled along channels')
    return op.result([axis for axis in x.axes if axis.dim not in rolled])


def nothing(op: Op) -> Value:
    """A check that computes nothing."""
    return op.result()


def zero_preserving(op: Op) -> Value:
    """f(0) = 0 but not homogeneous: SiLU, GELU, ReLU6, tanh, ..."""
    return passed(op, ZERO)


def any_function(op: Op) -> Value:
    """f(0) may differ from 0: sigmoid, exp, ..."""
    return passed(op, LOST)


def passed(op: Op, at_most: int) -> Value:
    """The first operand's axes; states at most ``at_most``."""
    return op.result([op.flow.weaken(axis, at_most) for axis in op.tensors[0].axes])


def clamp(op: Op) -> Value:
    """Clamping keeps zero where its interval contains zero; ReLU is ``clamp(min=0)``."""
    low, high = op.arg(1, op.node.kwargs.get('min')), op.arg(2, op.node.kwargs.get('max'))
    if isinstance(low, Value) or isinstance(high, Value):
        return op.give_up(NO_RULE)
    if low == 0 and high is None:
        return same(op)
    return passed(op, ZERO if (low is None or low <= 0) and (high is None or high >= 0) else LOST)


def power(op: Op) -> Value:
    """pow with a constant exponent: keeps zero where it is positive."""
    exponent = op.arg(1)
    if isinstance(exponent, (int, float)) and exponent > 0:
        return passed(op, ZERO)
    return op.give_up(NO_RULE)


def prelu(op: Op) -> Value:
    """``aten.prelu``: x (N, C, *), weight (C,) or (1,). Homogeneous; one slope per channel."""
    x, weight = op.arg(0), op.arg(1)
    if (slopes := weight.along(0)) is not None:
        if (axis := x.along(1)) is None:
            op.freeze([slopes], MIXED)
        else:
            op.flow.unite(axis.ids, slopes.ids)
    return op.result(x.axes)


def additive(op: Op) -> Value:
    """add, sub, maximum, where: zero and homogeneous only if every operand is."""
    constant = any(isinstance(a, (int, float)) and a != 0 for a in op.node.args[:2])
    return elementwise(op, lambda states: np.minimum.reduce(states) * (not constant), broadcast=LOST)


def multiplicative(op: Op) -> Value:
    """mul: zero if any factor is, homogeneous if exactly one factor is."""

    def combine(states):
        once = np.sum([state == GATED for state in states], axis=0) == 1
        return np.where(once, GATED, np.minimum(np.maximum.reduce(states), ZERO))

    return elementwise(op, combine, broadcast=GATED)


def quotient(op: Op) -> Value:
    """div: homogeneous in the numerator; a channel in the denominator must not become zero."""
    if isinstance(denominator := op.arg(1), Value):
        op.freeze(denominator.axes, 'divides')
    return elementwise(op, np.minimum.reduce, broadcast=GATED)


def comparison(op: Op) -> Value:
    """eq, lt, ...: channels pass, values are lost."""
    return elementwise(op, lambda states: np.minimum.reduce(states) * LOST, broadcast=LOST)


def elementwise(op: Op, combine, broadcast: int) -> Value:
    """Operands of one broadcast shape: channels that meet are united.

    Args:
        op: The call.
        combine: From the states of the axes that meet to that of the result.
        broadcast: What an operand that is broadcast along the channels leaves of their state at most:
            ``GATED`` where it scales them (mul), ``LOST`` where it may shift them (add).
    """
    axes, rank = [], len(op.shape)
    for dim in range(rank):
        found, rigid, shifted = [], False, False
        for value in op.tensors:
            own = dim - (rank - len(value.shape))
            axis = value.along(own) if own >= 0 else None
            if axis is not None:
                found.append(axis)
            elif own >= 0 and value.shape[own] > 1:
                rigid = True
            else:
                shifted = True
        if rigid or op.shape[dim] == 1:
            op.freeze(found, MIXED)
        elif found:
            axes.append(meet(op, dim, found, combine, broadcast if shifted else GATED))
    return op.result(axes)


def meet(op: Op, dim: int, found: list[Axis], combine=np.minimum.reduce, at_most: int = GATED) -> Axis:
    """One axis from all that meet along ``dim``; sites that stop to scale the result are tainted."""
    for other in found[1:]:
        op.flow.unite(found[0].ids, other.ids)
    state = np.minimum(combine([axis.state for axis in found]), at_most).astype(np.int8)
    found = [op.flow.weaken(axis, np.where(state < axis.state, state, axis.state)) for axis in found]
    sites = frozenset().union(*(axis.sites for axis in found))
    return replace(found[0], dim=dim, state=state, sites=sites)


def reduction(op: Op) -> Value:
    """sum, mean, amax over dimensions: exact only over dimensions that hold no channel."""
    return reduced(op, op.arg(1), op.arg(2, False))


def vector_norm(op: Op) -> Value:
    """``aten.linalg_vector_norm``: homogeneous; exact only over dimensions that hold no channel."""
    return reduced(op, op.arg(2), op.arg(3, False))


def reduced(op: Op, dims: int | list[int] | None, keep: bool) -> Value:
    """What is left of the first operand's axes once ``dims`` (all, if there are none) are gone, or of size 1."""
    x = op.arg(0)
    dims = range(len(x.shape)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    dims = {d % len(x.shape) for d in dims}
    op.freeze([axis for axis in x.axes if axis.dim in dims], 'reduced over channels')
    axes = []
    for axis in x.axes:
        if axis.dim not in dims:
            gone = 0 if keep else sum(d < axis.dim for d in dims)
            axes.append(replace(axis, dim=axis.dim - gone))
    return op.result(axes)


def normalised(op: Op) -> Value:
    """softmax and the like over ``args[1]``: channels along other dimensions pass."""
    x, dim = op.arg(0), op.arg(1)
    op.freeze([x.along(dim)], 'normalised over channels')
    return op.result([op.flow.weaken(axis, LOST) for axis in x.without(dim)])


def layer_norm(op: Op) -> Value:
    """``aten.layer_norm``: statistics over the trailing dimensions; removing a channel would change them."""
    x, first = op.arg(0), len(op.arg(0).shape) - len(op.arg(1))
    inside = [axis for axis in x.axes if axis.dim >= first]
    own = [axis for i in (2, 3) if (value := op.arg(i)) is not None for axis in value.axes]
    op.freeze([*inside, *own], 'normalised over channels')
    return op.result([op.flow.weaken(axis, LOST) for axis in x.axes if axis.dim < first])


def group_norm(op: Op) -> Value:
    """``aten.group_norm``: statistics over groups of channels; removing one would change them."""
    x = op.arg(0)
    own = [axis for i in (2, 3) if (value := op.arg(i)) is not None for axis in value.axes]
    op.freeze([*(axis for axis in x.axes if axis.dim > 0), *own], 'normalised over groups of channels')
    return op.result([op.flow.weaken(axis, LOST) for axis in x.axes if axis.dim == 0])
