"""Channel rules of the ops that hold weights: convolutions, linear layers, norms.

All of them have the input as first operand, then weight and bias. A weight has channels along its first two dimensions:
one makes the channels of the output, the other one reads those of the input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod

import numpy as np
import torch

from mmprune_gates.channels.flow import Read, Site, Term, Use
from mmprune_gates.channels.labels import GATED, LOST, ZERO, Axis, Value
from mmprune_gates.channels.op import Op

FIXED_INPUT = 'reads an input without removable channels'
FOREIGN = 'read by a weight that is not the `weight` of the module that uses it: no gate can stand there'
INPUT, WEIGHT, BIAS = 0, 1, 2  # operands


def linear(op: Op) -> Value:
    """``aten.linear``: x (..., I), weight (O, I) -> (..., O)."""
    x, weight = op.arg(INPUT), op.arg(WEIGHT)
    last = len(x.shape) - 1
    register(op, Use(holder(op), 'linear', out_dim=0, in_dim=1))
    count(op, x.shape[:-1])
    consume(op, x.along(last), weight.along(1))
    out = produce(op, weight.along(0), last)
    return layer_result(op, x.without(last), out)


def convolution(op: Op) -> Value:
    """``aten.conv1d/2d/3d``: x (N, I, *), weight (O, I/groups, *) -> (N, O, *)."""
    return convolve(op, transposed=False)


def transposed_convolution(op: Op) -> Value:
    """``aten.conv_transpose1d/2d/3d``: x (N, I, *), weight (I, O/groups, *) -> (N, O, *)."""
    return convolve(op, transposed=True)


def convolve(op: Op, transposed: bool) -> Value:
    """A regular, grouped or depthwise convolution."""
    x, weight, conv_groups = op.arg(INPUT), op.arg(WEIGHT), op.arg(6, 1)
    op.freeze([axis for axis in x.axes if axis.dim > 1], 'convolves over a dimension that holds channels')
    op.freeze([axis for axis in weight.axes if axis.dim > 1], 'a kernel')
    places = x.shape if transposed else op.shape
    count(op, (x.shape[0], *places[2:]))
    if 1 < conv_groups == x.shape[1]:
        register(op, Use(holder(op), 'depthwise conv', out_dim=0, in_dim=None))
        out = depthwise_output(op, transposed)
    else:
        use = Use(holder(op), 'conv', out_dim=int(transposed), in_dim=int(not transposed))
        register(op, use)
        consume(op, x.along(1), weight.along(use.in_dim))
        out = grouped_output(op, transposed, conv_groups)
    return layer_result(op, [axis for axis in x.axes if axis.dim == 0], out)


def layer_result(op: Op, others: Iterable[Axis], out: Axis | None) -> Value:
    """Labels of a layer's result: the channels it makes; along other dimensions a bias adds to what is zero."""
    at_most = GATED if op.arg(BIAS) is None else LOST
    axes = [op.flow.weaken(axis, at_most) for axis in others]
    return op.result(axes if out is None else [*axes, out])


def register(op: Op, use: Use) -> None:
    """Remember which layer uses a weight, for groups and the coverage report."""
    weight = op.parameter(WEIGHT)
    if weight is not None:
        op.flow.layers.setdefault(weight, use)


def holder(op: Op) -> str:
    """Path of the module that holds the weight; the one that makes the call where it is computed."""
    weight = op.parameter(WEIGHT)
    return op.layer if weight is None else weight.rpartition('.')[0]


def count(op: Op, positions: Sequence[int]) -> None:
    """Count the multiply-accumulates of a layer that applies its weight at so many positions."""
    if not op.counted:
        return
    weight = op.arg(WEIGHT)
    extents = [*positions, *weight.shape[2:]]
    factors = []
    for dim, size in enumerate(weight.shape[:2]):
        axis = weight.along(dim)
        if axis is None:
            extents.append(size)
        else:
            factors.append(axis.ids)
    op.flow.terms.append(Term(op.node, holder(op), op.per_sample(extents), tuple(factors)))


def consume(op: Op, channels: Axis | None, reader: Axis | None) -> None:
    """Tie channels of the input to the axis of the weight that reads them."""
    if channels is None:
        op.freeze([reader], FIXED_INPUT)
    elif reader is None:
        op.freeze([channels], 'read by a weight of one channel')
    else:
        op.flow.unite(channels.ids.reshape(-1, len(reader.ids)), reader.ids)
        if is_own(op, WEIGHT, 'weight'):
            op.flow.reads.append(describe_read(op, channels, reader.dim))
        else:
            op.freeze([channels], FOREIGN)


def describe_read(op: Op, channels: Axis, in_dim: int) -> Read:
    """How a layer reads channels of its input."""
    return Read(
        layer=op.layer,
        weight=op.parameter(WEIGHT),
        in_dim=in_dim,
        dim=channel_dim(op, channels),
        index=channels.ids,
        gated=torch.from_numpy(channels.state == GATED),
        sites=channels.sites,
        input_size=op.per_sample(op.arg(INPUT).shape),
        weight_size=prod(op.arg(WEIGHT).shape),
        direct=op.flow.is_direct(op.layer),
    )


def is_own(op: Op, position: int, attribute: str) -> bool:
    """Whether an operand is that attribute of the very module whose forward makes the call."""
    return op.parameter(position) == f'{op.layer}.{attribute}'.lstrip('.')


def channel_dim(op: Op, axis: Axis) -> int:
    """The channel dimension of a layer's input or output: the last, -1, of a linear layer."""
    return -1 if op.name == 'aten.linear' else axis.dim


def produce(op: Op, made: Axis | None, dim: int) -> Axis | None:
    """The output axis of a layer: the channels its weight makes, laid along ``dim``."""
    if made is None:
        return None
    bias = op.arg(BIAS)
    if bias is not None:
        op.flow.unite(made.ids, bias.along(0).ids)
    return gated(op, replace(made, dim=dim), made.dim)


def gated(op: Op, axis: Axis, weight_dim: int) -> Axis:
    """The output axis of a norm or layer, scaled by a gate there if weight and bias are the module's own."""
    own_bias = op.arg(BIAS) is None or is_own(op, BIAS, 'bias')
    if not (own_bias and is_own(op, WEIGHT, 'weight')):
        return op.flow.weaken(axis, ZERO)
    weight = op.arg(WEIGHT)
    channels = weight.along(weight_dim)
    if channels is not None:
        op.flow.sites[op.layer] = Site(
            module=op.layer,
            weight_dim=weight_dim,
            out_dim=channel_dim(op, axis),
            index=channels.ids,
            output_size=op.per_sample(op.shape),
            weight_size=prod(weight.shape),
            direct=op.flow.is_direct(op.layer),
        )
    return replace(axis, state=np.full_like(axis.state, GATED), sites=frozenset({op.layer}))


def grouped_output(op: Op, transposed: bool, conv_groups: int) -> Axis | None:
    """Output axis of a convolution whose groups (one or many) shrink evenly."""
    weight = op.arg(WEIGHT)
    made = weight.along(int(transposed))
    if conv_groups == 1:
        return produce(op, made, 1)
    # The weight's first dimension spans all groups: channels at the same place of each group are tied.
    first = weight.along(0)
    if first is not None:
        rows = first.ids.reshape(conv_groups, -1)
        op.flow.unite(rows[:1], rows)
    if not transposed:
        return produce(op, made, 1)
    if made is None:
        made = op.rigid(1, conv_groups, 'a single channel in each group')
    repeated = np.resize(np.arange(len(made.ids)), op.shape[1])
    out = produce(op, made.take(repeated), 1)
    return op.flow.weaken(out, ZERO)  # weight and bias hold its channels in different numbers: no gate there


def depthwise_output(op: Op, transposed: bool) -> Axis | None:
    """A depthwise convolution passes the channels of its input on, each to ``multiplier`` outputs."""
    x, weight = op.arg(INPUT), op.arg(WEIGHT)
    channels, own = x.along(1), own_axes(op, WEIGHT, BIAS)
    multiplier = op.shape[1] // x.shape[1]
    if transposed and multiplier > 1:
        op.freeze([*own, weight.along(1), channels], 'transposed depthwise with a multiplier')
        return None
    op.freeze([weight.along(1)], 'multiplier')
    if channels is None:
        op.freeze(own, FIXED_INPUT)
        return None
    out = channels.take(np.repeat(np.arange(x.shape[1]), multiplier))
    for axis in own:
        op.flow.unite(out.ids, axis.ids)
    return out if op.arg(BIAS) is None else op.flow.weaken(out, ZERO)


def own_axes(op: Op, *positions: int) -> list[Axis]:
    """The channels of weight, bias and the like, one vector each."""
    values = [op.arg(position) for position in positions]
    axes = [value.along(0) for value in values if value is not None]
    return [axis for axis in axes if axis is not None]


def batch_norm(op: Op) -> Value:
    """``aten.batch_norm`` and ``aten.instance_norm``: channels pass; a gate may stand on the affine."""
    x, own = op.arg(INPUT), own_axes(op, 1, 2, 3, 4)
    channels = x.along(1)
    op.freeze([axis for axis in x.axes if axis.dim > 1], 'normalised over a dimension that holds channels')
    others = [op.flow.weaken(axis, LOST) for axis in x.without(1)]
    if channels is None:
        op.freeze(own, FIXED_INPUT)
        return op.result(others)
    for axis in own:
        op.flow.unite(channels.ids, axis.ids)
    return op.result([*others, gated(op, channels, 0)])
