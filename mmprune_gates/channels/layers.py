"""Channel rules of the ops that hold weights: convolutions, linear layers, norms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mmprune_gates.channels.labels import GATED, LOST, ZERO, Axis, Read, Site, Term, Use, Value
from mmprune_gates.channels.op import Op

FIXED_INPUT = 'reads an input without removable channels'
FOREIGN = 'read by a weight that is not the `weight` of the module that uses it: no gate can stand there'


def consume(op: Op, x: Value, dim: int, read_by: Axis | None, weight: str | None) -> None:
    """Tie the channels of ``x`` along ``dim`` to the weight axis that reads them."""
    axis = x.along(dim)
    if axis is None or read_by is None:
        op.freeze([axis, read_by], FIXED_INPUT if axis is None else 'read by a weight of one channel')
        return
    op.flow.unite(axis.ids.reshape(-1, len(read_by.ids)), read_by.ids)
    if is_own(op, weight):
        op.flow.reads.append(Read(op.layer, weight, axis, op.per_sample(x.shape)))
    else:
        op.freeze([axis], FOREIGN)


def is_own(op: Op, tensor: str | None, attribute: str = 'weight') -> bool:
    """Whether a tensor is that attribute of the very module whose forward makes the call."""
    return tensor == f'{op.layer}.{attribute}'.lstrip('.')


def produce(op: Op, made: Axis | None, bias: Value | None, dim: int) -> Axis | None:
    """The output axis of a layer: the channels its weight makes, laid along ``dim``."""
    if made is None:
        return None
    if bias is not None:
        op.flow.unite(made.ids, bias.along(0).ids)
    return gated(op, replace(made, dim=dim), made.dim)


def gated(op: Op, axis: Axis, weight_dim: int) -> Axis:
    """The output axis of a norm or layer, scaled by a gate there if weight and bias are the module's own."""
    own_bias = op.arg(2) is None or is_own(op, op.parameter(2), 'bias')
    if not (is_own(op, op.parameter(1)) and own_bias):
        return op.flow.weaken(axis, ZERO)
    out_dim = -1 if op.name == 'aten.linear' else axis.dim
    op.flow.sites[op.layer] = Site(op.parameter(1), weight_dim, out_dim, op.per_sample(op.shape))
    return replace(axis, state=np.full_like(axis.state, GATED), sites=frozenset({op.layer}))


def cost(op: Op, positions, *axes: Axis | None) -> None:
    """Count the op's multiply-accumulates where it belongs to the inference graph."""
    if op.counted:
        factors = tuple(axis.ids for axis in axes if axis is not None)
        weight = op.parameter(1)
        layer = op.layer if weight is None else weight.rpartition('.')[0]
        op.flow.terms.append(Term(layer, op.per_sample(positions), factors))


def linear(op: Op) -> Value:
    """``aten.linear``: x (..., I), weight (O, I) -> (..., O)."""
    x, weight, bias = op.arg(0), op.arg(1), op.arg(2)
    last = len(x.shape) - 1
    register(op, 'linear')
    consume(op, x, last, weight.along(1), op.parameter(1))
    out = produce(op, weight.along(0), bias, last)
    rigid = [weight.shape[d] for d in (0, 1) if weight.along(d) is None]
    cost(op, [*x.shape[:-1], *rigid], weight.along(0), weight.along(1))
    rest = [op.flow.weaken(a, GATED if bias is None else LOST) for a in x.without(last)]
    return op.result([*rest, *([out] if out else [])])


def convolution(op: Op) -> Value:
    """``aten.conv1d/2d/3d``: x (N, I, *), weight (O, I/groups, *) -> (N, O, *)."""
    return convolve(op, transposed=False, conv_groups=op.arg(6, 1))


def transposed_convolution(op: Op) -> Value:
    """``aten.conv_transpose1d/2d/3d``: x (N, I, *), weight (I, O/groups, *) -> (N, O, *)."""
    return convolve(op, transposed=True, conv_groups=op.arg(6, 1))


def convolve(op: Op, transposed: bool, conv_groups: int) -> Value:
    """A regular, grouped or depthwise convolution."""
    x, weight, bias = op.arg(0), op.arg(1), op.arg(2)
    op.freeze([axis for axis in x.axes if axis.dim > 1], 'convolves over a dimension that holds channels')
    op.freeze([axis for axis in weight.axes if axis.dim > 1], 'a kernel')
    depthwise = conv_groups > 1 and conv_groups == x.shape[1]
    if depthwise:
        register(op, 'depthwise conv', in_dim=None)
    else:
        register(op, 'conv', out_dim=int(transposed), in_dim=1 - transposed)
    positions = [x.shape[0], *(x.shape if transposed else op.shape)[2:], *weight.shape[2:]]
    rigid = [weight.shape[d] for d in (0, 1) if weight.along(d) is None]
    cost(op, [*positions, *rigid], weight.along(0), weight.along(1))
    if depthwise:
        out = depthwise_output(op, x, weight, bias, transposed)
    else:
        out = grouped_output(op, x, weight, bias, transposed, conv_groups)
    batch = [op.flow.weaken(axis, GATED if bias is None else LOST) for axis in x.axes if axis.dim == 0]
    return op.result([*batch, *([out] if out else [])])


def grouped_output(op: Op, x: Value, weight: Value, bias, transposed: bool, conv_groups: int) -> Axis | None:
    """Output axis of a convolution whose groups (one or many) shrink evenly."""
    reader, maker = weight.along(1 - transposed), weight.along(int(transposed))
    consume(op, x, 1, reader, op.parameter(1))
    if conv_groups == 1:
        return produce(op, maker, bias, 1)
    # The weight's first dimension spans all groups: channels at the same place of each group are tied.
    tie(op, weight.along(0), conv_groups)
    if not transposed:
        return produce(op, maker, bias, 1)
    size = weight.shape[1]
    if maker is None:
        maker, size = op.rigid(1, conv_groups, 'a single channel in each group'), conv_groups
    out = produce(op, maker.take(np.tile(np.arange(size), op.shape[1] // size)), bias, 1)
    return op.flow.weaken(out, ZERO)  # weight and bias hold its channels in different numbers: no gate there


def depthwise_output(op: Op, x: Value, weight: Value, bias: Value | None, transposed: bool) -> Axis | None:
    """A depthwise convolution passes the channels of its input on, each to ``multiplier`` outputs."""
    multiplier = op.shape[1] // x.shape[1]
    own = weight.along(0)
    if transposed and multiplier > 1:
        op.freeze(
            [own, weight.along(1), x.along(1), bias and bias.along(0)],
            'transposed depthwise with a multiplier',
        )
        return None
    op.freeze([weight.along(1)], 'multiplier')
    axis = x.along(1)
    if axis is None:
        op.freeze([own, bias and bias.along(0)], FIXED_INPUT)
        return None
    out = axis.take(np.repeat(np.arange(len(axis.ids)), multiplier))
    op.flow.unite(out.ids, own.ids)
    if bias is None:
        return out
    op.flow.unite(out.ids, bias.along(0).ids)
    return op.flow.weaken(out, ZERO)


def tie(op: Op, axis: Axis | None, parts: int) -> None:
    """Unite the channels at the same place of each of ``parts`` equal parts."""
    if axis is not None:
        rows = axis.ids.reshape(parts, -1)
        op.flow.unite(rows[:1], rows)


def register(op: Op, kind: str, out_dim: int = 0, in_dim: int | None = 1) -> None:
    """Remember which layer uses a weight, for groups and the coverage report."""
    if (weight := op.parameter(1)) is not None:
        op.flow.layers.setdefault(weight, Use(weight.rpartition('.')[0], kind, out_dim, in_dim))


def batch_norm(op: Op) -> Value:
    """``aten.batch_norm`` and ``aten.instance_norm``: channels pass; a gate may stand on the affine."""
    x, own = op.arg(0), [op.arg(i) for i in range(1, 5)]
    own_axes = [value.along(0) for value in own if value is not None]
    axis = x.along(1)
    op.freeze([a for a in x.axes if a.dim > 1], 'normalised over a dimension that holds channels')
    rest = [op.flow.weaken(a, LOST) for a in x.axes if a.dim != 1]
    if axis is None:
        op.freeze(own_axes, FIXED_INPUT)
        return op.result(rest)
    for other in own_axes:
        if other is not None:
            op.flow.unite(axis.ids, other.ids)
    return op.result([*rest, gated(op, axis, 0)])
