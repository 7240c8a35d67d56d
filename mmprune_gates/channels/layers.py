"""Channel rules of the ops that hold weights: convolutions, linear layers, norms.

Their operands are input, weight and bias, in this order. The weight of a layer has channels along its first two
dimensions: one makes the channels of the output, the other reads those of the input.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod

import numpy as np
import torch

from mmprune_gates.channels.flow import Read, Site, Use
from mmprune_gates.channels.labels import GATED, LOST, ZERO, Axis
from mmprune_gates.channels.op import Op, Result

FIXED_INPUT = 'reads an input without removable channels'
FOREIGN = 'read by a weight that is no parameter of the module that uses it: no gate can stand there'
WEIGHTS = ('weight', 'in_proj_weight')  # names of those behind which a gate can stand; the latter of torch's attention


def bias_of(weight: str) -> str:
    """Name of the bias that goes with a weight."""
    return weight.replace('weight', 'bias')


def linear(op: Op) -> Result:
    """``aten.linear``: x (..., I), weight (O, I) -> (..., O)."""
    x = op.x
    last = x.rank - 1
    _register(op, 'linear', out_dim=0, in_dim=1)
    _count(op, x.shape[:-1])
    _consume(op, x.along(last), op.weight.along(1))
    out = _produce(op, op.weight.along(0), last)
    return op.result([*_shifted(op, x.without(last)), out])


def convolution(op: Op, transposed: bool) -> Result:
    """``aten.conv1d/2d/3d``, ``aten.conv_transpose1d/2d/3d``, grouped and depthwise: x (N, I, *) -> (N, O, *).

    The weight is (O, I/groups, *), that of a transposed one (I, O/groups, *).
    """
    x = op.x
    conv_groups = op.arg(6, 1)
    applied_at = x.shape if transposed else op.shape
    if x.rank < op.weight.rank:
        _count(op, applied_at[1:])
        _register(op, 'conv', out_dim=int(transposed), in_dim=int(not transposed))
        return op.give_up('convolved without a batch dimension')
    op.freeze(x.behind(1), 'convolves over a dimension that holds channels')
    op.freeze(op.weight.behind(1), 'a kernel')
    batch, _, *places = applied_at
    _count(op, [batch, *places])
    if 1 < conv_groups == x.shape[1]:
        _register(op, 'depthwise conv', out_dim=0, in_dim=None)
        out = _depthwise_output(op, transposed)
    else:
        out_dim = int(transposed)
        in_dim = 1 - out_dim
        _register(op, 'conv', out_dim, in_dim)
        _consume(op, x.along(1), op.weight.along(in_dim))
        out = _grouped_output(op, transposed, conv_groups)
    others = [axis for axis in x.axes if axis.dim == 0]
    return op.result([*_shifted(op, others), out])


def _shifted(op: Op, axes: Iterable[Axis]) -> list[Axis]:
    """Axes along which a layer works independently, weakened if it has a bias, which shifts the values."""
    at_most = GATED if op.bias is None else LOST
    return [op.flow.weaken(axis, at_most) for axis in axes]


def _register(op: Op, kind: str, out_dim: int, in_dim: int | None) -> None:
    """Record which layer uses a weight, for groups and the coverage report."""
    weight = op.source(1)
    if weight is not None:
        use = Use(_holder(op), kind, out_dim, in_dim)
        op.flow.layers.setdefault(weight, use)


def _holder(op: Op) -> str:
    """Path of the module that holds the weight; of the calling module if the weight is computed."""
    weight = op.source(1)
    if weight is None:
        return op.layer
    return weight.rpartition('.')[0]


def _count(op: Op, positions: Iterable[int]) -> None:
    """Record the multiply-accumulates of a layer whose weight is applied at ``positions`` (their extents)."""
    extents = list(positions)
    factors = []
    for dim, size in enumerate(op.weight.shape):
        axis = op.weight.along(dim)
        if axis is None or dim > 1:
            extents.append(size)
        else:
            factors.append(axis.ids)
    op.count(_holder(op), extents, factors)


def _consume(op: Op, channels: Axis | None, reader: Axis | None) -> None:
    """Unite channels of the input with the axis of the weight that reads them."""
    if channels is None:
        op.freeze([reader], FIXED_INPUT)
    elif reader is None:
        op.freeze([channels], 'read by a weight of one channel')
    else:
        rows = channels.ids.reshape(-1, len(reader.ids))
        op.flow.unite(rows, reader.ids)
        _read(op, channels, reader.dim)


def _read(op: Op, channels: Axis, in_dim: int) -> None:
    """Record that a layer reads channels of its input along a dimension of its weight."""
    weight = op.source(1)
    parameter = None if weight is None else _seen_from(op, weight)
    if parameter is None:
        op.freeze([channels], FOREIGN)
        return
    read = Read(
        layer=op.layer,
        weight=weight,
        parameter=parameter,
        in_dim=in_dim,
        dim=_channel_dim(op, channels),
        index=channels.ids,
        gated=torch.from_numpy(channels.state == GATED),
        sites=channels.sites,
        input_size=op.per_sample(op.x.shape),
        weight_size=prod(op.weight.shape),
        direct=parameter == 'weight' and op.flow.is_direct(op.layer) and op.layer not in op.flow.odd,
    )
    op.flow.reads.append(read)


def _seen_from(op: Op, weight: str) -> str | None:
    """Name of a weight relative to the calling module; None if it is not inside that module.

    For the model itself only ``weight`` counts: a custom forward may call its submodules without calling the model.
    """
    if not op.layer:
        return weight if weight == 'weight' else None
    prefix = f'{op.layer}.'
    return weight.removeprefix(prefix) if weight.startswith(prefix) else None


def _is_own(op: Op, position: int, attribute: str) -> bool:
    """Whether an operand is the named attribute of the calling module itself."""
    own = f'{op.layer}.{attribute}'
    return op.parameter(position) == own.lstrip('.')


def _channel_dim(op: Op, axis: Axis) -> int:
    """Channel dimension of a layer's input or output; -1, the last, for a linear layer."""
    if op.name == 'aten.linear':
        return -1
    return axis.dim


def _produce(op: Op, made: Axis | None, dim: int) -> Axis | None:
    """The output axis of a layer: the channels its weight makes, laid along ``dim``."""
    if made is None:
        return None
    bias = None if op.bias is None else op.bias.along(0)
    if bias is not None:
        op.flow.unite(made.ids, bias.ids)
    out = replace(made, dim=dim)
    return _gated(op, out, made.dim)


def _gated(op: Op, axis: Axis, weight_dim: int) -> Axis:
    """The output axis of a norm or layer; a gate there can scale it if weight and bias are the module's own."""
    parameter = next((name for name in WEIGHTS if _is_own(op, 1, name)), None)
    if parameter is None or not (op.bias is None or _is_own(op, 2, bias_of(parameter))):
        return op.flow.weaken(axis, ZERO)
    channels = op.weight.along(weight_dim)
    if channels is not None:
        op.flow.sites[op.layer] = Site(
            module=op.layer,
            weight_dim=weight_dim,
            out_dim=_channel_dim(op, axis),
            index=channels.ids,
            output_size=op.per_sample(op.shape),
            weight_size=prod(op.weight.shape),
            direct=parameter == 'weight' and op.flow.is_direct(op.layer),
            parameter=parameter,
        )
    return axis.known(GATED, op.layer)


def _grouped_output(op: Op, transposed: bool, conv_groups: int) -> Axis | None:
    """Output axis of a convolution whose groups (one or many) shrink evenly."""
    made = op.weight.along(int(transposed))
    if conv_groups == 1:
        return _produce(op, made, 1)
    # The weight's first dimension spans all groups: channels at the same place of each group are tied.
    first = op.weight.along(0)
    if first is not None:
        rows = first.ids.reshape(conv_groups, -1)
        op.flow.tie(rows)
    if not transposed:
        return _produce(op, made, 1)
    if made is None:
        made = op.rigid(1, conv_groups, 'a single channel in each group')
    places = np.arange(op.shape[1]) % len(made.ids)
    out = _produce(op, made.take(places), 1)
    # Weight and bias hold its channels in different numbers: no gate there.
    return None if out is None else op.flow.weaken(out, ZERO)


def _depthwise_output(op: Op, transposed: bool) -> Axis | None:
    """Output axis of a depthwise convolution, which passes each input channel on to ``multiplier`` outputs."""
    channels = op.x.along(1)
    multiplier = op.shape[1] // op.x.shape[1]
    kernel = op.weight.along(1)
    if transposed and multiplier > 1:
        op.freeze([channels, kernel, *_own_axes(op, 1, 2)], 'transposed depthwise with a multiplier')
        return None
    op.freeze([kernel], 'multiplier')
    if channels is not None:
        places = np.arange(op.shape[1]) // multiplier
        channels = channels.take(places)
    _share(op, channels, 1, 2)
    if channels is None or op.bias is None:
        return channels
    return op.flow.weaken(channels, ZERO)


def _share(op: Op, channels: Axis | None, *positions: int) -> None:
    """Unite channels that pass through with those of the parameters and buffers at ``positions``."""
    for axis in _own_axes(op, *positions):
        if channels is None:
            op.freeze([axis], FIXED_INPUT)
        else:
            op.flow.unite(channels.ids, axis.ids)


def _own_axes(op: Op, *positions: int) -> list[Axis]:
    """The channels along the first dimension of parameters and buffers."""
    found = []
    for position in positions:
        value = op.arg(position)
        if value is not None:
            found += [axis for axis in value.axes if axis.dim == 0]
    return found


def batch_norm(op: Op) -> Result:
    """``aten.batch_norm`` and ``aten.instance_norm``: channels pass; a gate may stand on the affine."""
    op.freeze(op.x.behind(1), 'normalised over a dimension that holds channels')
    axes = [op.flow.weaken(axis, LOST) for axis in op.x.without(1)]
    channels = op.x.along(1)
    _share(op, channels, 1, 2, 3, 4)
    if channels is not None:
        axes.append(_gated(op, channels, 0))
    return op.result(axes)
