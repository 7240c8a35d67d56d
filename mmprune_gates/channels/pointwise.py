"""Channel rules of ops that work element by element, or within a channel."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from mmprune_gates.channels.labels import GATED, LOST, ZERO, Axis, State, Value
from mmprune_gates.channels.op import NO_RULE, Op, Result
from mmprune_gates.channels.signs import is_positive

Side = tuple[Axis | None, int]  # what a tensor has along a dimension: its channels, if any, and its size
Combine = Callable[[list[State]], State]  # states of channels that meet -> state of the result

MIXED = 'combined with a tensor that has no removable channels there'
weakest = np.minimum.reduce


def passing(at_most: int) -> Callable[[Op], Result]:
    """The rule of functions of one element whose results have the state ``at_most`` at best."""
    return partial(_passed, at_most=at_most)


def _passed(op: Op, at_most: int) -> Result:
    """The first operand's channels, with their states capped at ``at_most``."""
    axes = [op.flow.weaken(axis, at_most) for axis in op.x.axes]
    return op.result(axes)


def nothing(op: Op) -> Result:
    """Rule of ops whose result has nothing of the operand's channels: checks, new tensors of its type."""
    return op.result()


def clamp(op: Op) -> Result:
    """Clamping keeps zero where its interval contains zero; ReLU is ``clamp(min=0)``."""
    low = op.arg(1, op.node.kwargs.get('min'))
    high = op.arg(2, op.node.kwargs.get('max'))
    if isinstance(low, Value) or isinstance(high, Value):
        return op.give_up(NO_RULE)
    if low == 0 and high is None:
        return _passed(op, GATED)
    above_zero = low is not None and low > 0
    below_zero = high is not None and high < 0
    if above_zero or below_zero:
        return _passed(op, LOST)
    return _passed(op, ZERO)


def power(op: Op) -> Result:
    """pow: keeps zero if the exponent is a positive constant; with another, its base must stay positive."""
    exponent = op.arg(1)
    if isinstance(exponent, (int, float)) and exponent > 0:
        return _passed(op, ZERO)
    if isinstance(exponent, Value) and is_positive(op.node.args[0]):
        return _elementwise(op, _lost, broadcast=LOST)
    return of_positive(op)


def of_positive(op: Op) -> Result:
    """log, rsqrt and the like: channels pass if they stay positive where closed ones are zero."""
    return _passed(op, LOST) if is_positive(op.node.args[0]) else op.give_up(NO_RULE)


def prelu(op: Op) -> Result:
    """``aten.prelu``: x (N, C, *), weight (C,) or (1,). Homogeneous; one slope per channel."""
    channels = op.x.along(1)
    slopes = op.weight.along(0)
    if channels is None:
        op.freeze([slopes], MIXED)
    elif slopes is not None:
        op.flow.unite(channels.ids, slopes.ids)
    return op.result(op.x.axes)


def additive(op: Op) -> Result:
    """add, sub, maximum: zero and homogeneous only if every operand is."""
    for arg in op.node.args[:2]:
        if isinstance(arg, (int, float)) and arg != 0:
            return _elementwise(op, _lost, broadcast=LOST)
    return _elementwise(op, weakest, broadcast=LOST)


def multiplicative(op: Op) -> Result:
    """mul: zero if any factor is, homogeneous if exactly one factor is."""
    return _elementwise(op, scaled_once, broadcast=GATED)


def quotient(op: Op) -> Result:
    """div: homogeneous in the numerator; a channel in the denominator must not become zero."""
    denominator = op.arg(1)
    if not isinstance(denominator, Value) or not denominator.axes:
        return _elementwise(op, weakest, broadcast=GATED)
    if is_positive(op.node.args[1]):
        return _elementwise(op, _lost, broadcast=LOST)
    op.freeze(denominator.axes, 'divides')
    return _elementwise(op, weakest, broadcast=GATED)


def comparison(op: Op) -> Result:
    """eq, lt, masked_fill, where, ...: channels pass, values are lost."""
    return _elementwise(op, _lost, broadcast=LOST)


def _lost(states: list[State]) -> State:
    """Nothing is known of the result."""
    return np.full_like(states[0], LOST)


def scaled_once(states: list[State]) -> State:
    """A product scales with a gate if exactly one factor does, and is zero if any factor is."""
    stacked = np.stack(states)
    scaled = stacked == GATED
    strongest = stacked.max(axis=0)
    unscaled = np.minimum(strongest, ZERO)
    return np.where(scaled.sum(axis=0) == 1, GATED, unscaled)


def _elementwise(op: Op, combine: Combine, broadcast: int) -> Result:
    """Labels of operands that are broadcast to one shape; channels that meet are united.

    Args:
        op: The call.
        combine: Maps the states of the axes that meet to the state of the result.
        broadcast: Upper bound on the state of channels along which an operand is broadcast: ``GATED`` if that
            operand scales them (mul), ``LOST`` if it may shift them (add).
    """
    values = [value.expanded(op.rank) for value in op.tensors]
    axes = aligned(op, values, range(op.rank), MIXED, combine, broadcast)
    return op.result(axes)


def aligned(
    op: Op,
    values: Sequence[Value],
    dims: Iterable[int],
    reason: str,
    combine: Combine = weakest,
    broadcast: int = GATED,
) -> list[Axis]:
    """The axes, along ``dims``, of a result that is computed place by place from all values.

    Args:
        op: The call.
        values: Labels of tensors with as many dimensions as the result.
        dims: The dimensions for which this holds.
        reason: Why channels that meet a tensor without channels are frozen.
        combine: See :func:`_elementwise`.
        broadcast: See :func:`_elementwise`.
    """
    axes = []
    for dim in dims:
        sides = [(value.along(dim), value.shape[dim]) for value in values]
        axis = meet(op, sides, reason, combine, broadcast)
        if axis is not None:
            axes.append(axis)
    return axes


def meet(op: Op, sides: Sequence[Side], reason: str, combine: Combine = weakest, broadcast: int = GATED) -> Axis | None:
    """The axis along a dimension at which several tensors meet: their channels, united; None if they have none there.

    Channels that meet a longer dimension without channels are frozen. Sites that no longer scale the result are
    tainted.
    """
    axes = [axis for axis, _ in sides if axis is not None]
    rigid = [size for axis, size in sides if axis is None]
    if max(rigid, default=1) > 1:
        op.freeze(axes, reason)
        return None
    if not axes:
        return None
    at_most = broadcast if rigid else GATED
    first, *others = axes
    for other in others:
        op.flow.unite(first.ids, other.ids)
    combined = combine([axis.state for axis in axes])
    state = np.minimum(combined, at_most).astype(np.int8)
    weakened = [op.flow.weaken(axis, state) for axis in axes]
    sites = frozenset().union(*(axis.sites for axis in weakened))
    return replace(first, state=state, sites=sites)


def resampling(op: Op) -> Result:
    """Pooling and interpolation over the trailing ``1d``, ``2d`` or ``3d`` dimensions: homogeneous per channel."""
    *_, window = re.findall(r'\d(?=d)', op.name)
    return _without_places(op, op.spoilt(range(-int(window), 0), 'resampled along a dimension that holds channels'))


def _without_places(op: Op, result: Result) -> Result:
    """Labels of the first of several results; channels are frozen if the others, places in the operand, are used."""
    if isinstance(result, Value):
        return result
    first, *others = result
    if any(_place_is_read(op, number) for number in range(1, len(result))):
        op.freeze(first.axes, 'the places that it is taken from are used')
    places = [Value(value.shape) for value in others]
    return [first, *places]


def _place_is_read(op: Op, number: int) -> bool:
    """Whether one of several results of an op is used."""
    for user in op.node.users:
        if user.args[1:] == (number,) and user.users:
            return True
    return False


def sampling(op: Op) -> Result:
    """``aten.grid_sampler``: x (N, C, *) at the points of a grid (N, *, 2 or 3); homogeneous per channel."""
    reason = 'sampled at or along channels'
    points = op.arg(1)
    op.freeze(points.axes, reason)
    return op.spoilt(range(2, op.rank), reason)


def reduction(op: Op, at_most: int = GATED) -> Result:
    """sum, mean, amax, std, vector norm over dimensions: exact only over dimensions that hold no channel.

    Args:
        op: The call.
        at_most: Upper bound on the state of the channels.
    """
    dims = op.arg(2 if op.name == 'aten.linalg_vector_norm' else 1)
    if isinstance(dims, int) and not isinstance(dims, bool):  # the bool of std(unbiased)
        dims = [dims]
    gone = dims or range(op.x.rank)  # all if none are given
    reduce = op.spoilt if op.rank == op.x.rank else op.dropped
    return reduce(gone, 'reduced over channels', at_most)


def extreme(op: Op) -> Result:
    """max, min: of two tensors, or over a dimension."""
    if isinstance(op.arg(1), Value):
        return additive(op)
    return _without_places(op, reduction(op))


def softmax(op: Op) -> Result:
    """softmax and the like over ``args[1]``: channels along other dimensions pass."""
    return op.spoilt([op.arg(1)], 'normalised over channels', LOST)


def layer_norm(op: Op) -> Result:
    """``aten.layer_norm``, ``rms_norm``: statistics over trailing dimensions; removing a channel would change them."""
    trailing = len(op.arg(1))
    return _statistics(op, range(-trailing, 0), 'normalised over channels')


def group_norm(op: Op) -> Result:
    """``aten.group_norm``: statistics over groups of channels; removing one would change them."""
    return _statistics(op, range(1, op.rank), 'normalised over groups of channels')


def _statistics(op: Op, dims: Iterable[int], reason: str) -> Result:
    """A norm over ``dims``; ``args[2]`` and ``args[3]`` are its weight and bias, as far as it has them."""
    for own in (op.arg(2), op.arg(3)):
        if isinstance(own, Value):
            op.freeze(own.axes, reason)
    return op.spoilt(dims, reason, LOST)
