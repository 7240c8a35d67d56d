"""Channel rules of ops that work element by element, or within a channel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from mmprune_gates.channels.labels import GATED, LOST, ZERO, Axis, Value
from mmprune_gates.channels.op import NO_RULE, Op, Result

Combine = Callable[[list[np.ndarray]], np.ndarray]  # states of channels that meet -> state of the result

MIXED = 'combined with a tensor that has no removable channels there'
weakest = np.minimum.reduce


def passing(at_most: int) -> Callable[[Op], Result]:
    """The rule of functions of one element that leave at most so much known of its value."""

    def rule(op: Op) -> Result:
        return _passed(op, at_most)

    return rule


def _passed(op: Op, at_most: int) -> Result:
    """The first operand's channels, with at most so much known of their values."""
    return op.result([op.flow.weaken(axis, at_most) for axis in op.x.axes])


def nothing(op: Op) -> Result:
    """A check that computes nothing."""
    return op.result()


def clamp(op: Op) -> Result:
    """Clamping keeps zero where its interval contains zero; ReLU is ``clamp(min=0)``."""
    low = op.arg(1, op.node.kwargs.get('min'))
    high = op.arg(2, op.node.kwargs.get('max'))
    if isinstance(low, Value) or isinstance(high, Value):
        return op.give_up(NO_RULE)
    if low == 0 and high is None:
        return _passed(op, GATED)
    holds_zero = (low is None or low <= 0) and (high is None or high >= 0)
    return _passed(op, ZERO if holds_zero else LOST)


def power(op: Op) -> Result:
    """pow with a constant exponent: keeps zero where it is positive."""
    exponent = op.arg(1)
    if isinstance(exponent, (int, float)) and exponent > 0:
        return _passed(op, ZERO)
    return op.give_up(NO_RULE)


def prelu(op: Op) -> Result:
    """``aten.prelu``: x (N, C, *), weight (C,) or (1,). Homogeneous; one slope per channel."""
    x, weight = op.arg(0), op.arg(1)
    channels, slopes = x.along(1), weight.along(0)
    if slopes is not None and channels is None:
        op.freeze([slopes], MIXED)
    elif slopes is not None:
        op.flow.unite(channels.ids, slopes.ids)
    return op.result(x.axes)


def additive(op: Op) -> Result:
    """add, sub, maximum: zero and homogeneous only if every operand is."""
    shifts = any(isinstance(arg, (int, float)) and arg != 0 for arg in op.node.args[:2])
    return _elementwise(op, _lost if shifts else weakest, broadcast=LOST)


def multiplicative(op: Op) -> Result:
    """mul: zero if any factor is, homogeneous if exactly one factor is."""
    return _elementwise(op, _scaled_once, broadcast=GATED)


def quotient(op: Op) -> Result:
    """div: homogeneous in the numerator; a channel in the denominator must not become zero."""
    denominator = op.arg(1)
    if isinstance(denominator, Value):
        op.freeze(denominator.axes, 'divides')
    return _elementwise(op, weakest, broadcast=GATED)


def comparison(op: Op) -> Result:
    """eq, lt, ...: channels pass, values are lost."""
    return _elementwise(op, _lost, broadcast=LOST)


def _lost(states: list[np.ndarray]) -> np.ndarray:
    """Nothing is known of the result."""
    return np.full_like(states[0], LOST)


def _scaled_once(states: list[np.ndarray]) -> np.ndarray:
    """A product scales with a gate if exactly one factor does, and is zero if any factor is."""
    scaled = [state == GATED for state in states]
    strongest = np.maximum.reduce(states)
    return np.where(np.sum(scaled, axis=0) == 1, GATED, np.minimum(strongest, ZERO))


def _elementwise(op: Op, combine: Combine, broadcast: int) -> Result:
    """Operands of one broadcast shape: channels that meet are united.

    Args:
        op: The call.
        combine: From the states of the axes that meet to that of the result.
        broadcast: What an operand that is broadcast along the channels leaves of their state at most:
            ``GATED`` where it scales them (mul), ``LOST`` where it may shift them (add).
    """
    rank = len(op.shape)
    values = [value.expanded(rank) for value in op.tensors]
    return op.result(aligned(op, values, range(rank), MIXED, combine, broadcast))


def aligned(
    op: Op,
    values: Sequence[Value],
    dims: Iterable[int],
    reason: str,
    combine: Combine = weakest,
    broadcast: int = GATED,
) -> list[Axis]:
    """The axes of a result whose every element comes from the elements at the same place of all values.

    Args:
        op: The call.
        values: Labels of tensors with as many dimensions as the result.
        dims: The dimensions along which they lie like this.
        reason: Why channels are frozen that meet a tensor without channels.
        combine: See :func:`elementwise`.
        broadcast: See :func:`elementwise`.
    """
    axes = []
    for dim in dims:
        found = [value.along(dim) for value in values]
        bare = [value.shape[dim] for value, axis in zip(values, found, strict=True) if axis is None]
        channels = [axis for axis in found if axis is not None]
        if any(size > 1 for size in bare):
            op.freeze(channels, reason)
        elif channels:
            axes.append(_meet(op, channels, combine, broadcast if bare else GATED))
    return axes


def _meet(op: Op, axes: list[Axis], combine: Combine, at_most: int) -> Axis:
    """One axis from all that meet along a dimension; sites that stop to scale the result are tainted."""
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
    window = int(op.name.removesuffix('d')[-1])
    result = op.spoilt(range(-window, 0), 'resampled along a dimension that holds channels')
    if isinstance(result, Value):
        return result
    pooled, *positions = result
    return [pooled, *(Value(value.shape) for value in positions)]


def sampling(op: Op) -> Result:
    """``aten.grid_sampler``: x (N, C, *) at the points of a grid (N, *, 2 or 3); homogeneous per channel."""
    reason = 'sampled at or along channels'
    op.freeze(op.arg(1).axes, reason)
    return op.spoilt(range(2, len(op.shape)), reason)


def reduction(op: Op) -> Result:
    """sum, mean, amax over dimensions: exact only over dimensions that hold no channel."""
    return _reduced(op, op.arg(1), op.arg(2, False))


def vector_norm(op: Op) -> Result:
    """``aten.linalg_vector_norm``: homogeneous; exact only over dimensions that hold no channel."""
    return _reduced(op, op.arg(2), op.arg(3, False))


def _reduced(op: Op, dims: int | list[int] | None, keep: bool) -> Result:
    """What is left of the first operand's axes once ``dims`` (all, if there are none) are gone, or of size 1."""
    if isinstance(dims, int):
        dims = [dims]
    elif not dims:
        dims = range(len(op.x.shape))
    reason = 'reduced over channels'
    return op.spoilt(dims, reason) if keep else op.dropped(dims, reason)


def softmax(op: Op) -> Result:
    """softmax and the like over ``args[1]``: channels along other dimensions pass."""
    return op.spoilt([op.arg(1)], 'normalised over channels', LOST)


def layer_norm(op: Op) -> Result:
    """``aten.layer_norm``: statistics over the trailing dimensions; removing a channel would change them."""
    return _statistics(op, range(-len(op.arg(1)), 0), 'normalised over channels')


def group_norm(op: Op) -> Result:
    """``aten.group_norm``: statistics over groups of channels; removing one would change them."""
    return _statistics(op, range(1, len(op.shape)), 'normalised over groups of channels')


def _statistics(op: Op, dims: Iterable[int], reason: str) -> Result:
    """A norm with a weight and a bias, ``args[2]`` and ``args[3]``, over ``dims``."""
    for own in (op.arg(2), op.arg(3)):
        if own is not None:
            op.freeze(own.axes, reason)
    return op.spoilt(dims, reason, LOST)
