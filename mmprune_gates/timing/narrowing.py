"""Ops at narrower widths: which widths to measure, and the shapes of their tensors there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import torch
from torch.utils._pytree import tree_map

from mmprune_gates.budget.latency import channel_dim, is_layer, largest_of
from mmprune_gates.channels.labels import Shape
from mmprune_gates.channels.workload import Operand, Work

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)  # of the full width, at which an op is measured
GROUPS = 6  # position of the number of groups among a convolution's arguments


@dataclass(frozen=True, eq=False)
class Narrowed:
    """An op at a width.

    Attributes:
        work: The op.
        reads: Channels that a layer reads; 1 for other ops.
        makes: Channels that a layer makes; for other ops, the elements of their largest tensor.
        shapes: Shapes of its tensor arguments, in order.
    """

    work: Work
    reads: int
    makes: int
    shapes: tuple[Shape, ...]

    def arguments(self, tensors: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments of the op.

        Args:
            tensors: One for each of its shapes.
        """
        left = iter(tensors)

        def filled(leaf: Any) -> Any:
            return next(left) if isinstance(leaf, Operand) else leaf

        args, kwargs = tree_map(filled, (list(self.work.args), dict(self.work.kwargs)))
        if is_depthwise(self.work):
            args[GROUPS] = self.shapes[0][1]
        return args, kwargs


def conv_groups(work: Work) -> int:
    """Groups of a convolution; 1 for other ops."""
    is_grouped = work.name.startswith('conv') and len(work.args) > GROUPS
    return work.args[GROUPS] if is_grouped else 1


def is_depthwise(work: Work) -> bool:
    """Whether a convolution has a group for each channel that it reads, and more than one."""
    groups = conv_groups(work)
    return groups > 1 and groups == work.operands[0].shape[1]


def runs(op: Narrowed) -> bool:
    """Whether an op accepts tensors of its shapes."""
    args, kwargs = op.arguments([torch.empty(shape, device='meta') for shape in op.shapes])
    try:
        op.work.target(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return True


def at_widths(work: Work, step: int, batch: int = 1) -> list[list[Narrowed]]:
    """An op at the widths to be measured: rows of rising width read, columns of rising width made.

    Args:
        work: The op.
        step: Widths of layers are multiples of it.
        batch: Samples at a time.
    """
    if not is_layer(work):
        shares = SHARES if largest_of(work).factors else SHARES[-1:]
        once: dict[int, Narrowed] = {}
        for share in shares:
            op = _shrunk(work, share, step, batch)
            once[op.makes] = op
        return [list(once.values())]
    x, made = work.operands[0], work.results[0]
    dim, groups = channel_dim(work), conv_groups(work)
    columns = _widths(made, dim, step, groups)
    grid = []
    for reads in _widths(x, dim, step, groups):
        row = [_layer(work, reads, makes, batch) for makes in columns]
        grid.append(row)
    return grid


def _widths(operand: Operand, dim: int, step: int, groups: int) -> list[int]:
    """Widths of a tensor to be measured: multiples of a step, and the full one."""
    size = operand.shape[dim]
    if dim not in operand.factors:
        return [size]
    unit = step * groups
    found = {min(size, unit)}
    for share in SHARES:
        found.add(_in_steps(share * size, unit, size))
    return sorted(found)


def _in_steps(width: float, unit: int, most: int) -> int:
    """A width rounded up to a multiple of ``unit``, at most ``most``."""
    return min(most, ceil(width / unit) * unit)


def _layer(work: Work, reads: int, makes: int, batch: int) -> Narrowed:
    """A layer at a width read and a width made."""
    x, weight, *biases = work.operands
    dim, groups = channel_dim(work), conv_groups(work)
    before, behind = x.shape[:dim], x.shape[dim + 1 :]
    narrow_input = (*before, reads, *behind)
    sides = (makes, reads // groups)
    if work.name.startswith('conv_transpose'):
        sides = (reads, makes // groups)
    narrow_weight = (*sides, *weight.shape[2:])
    narrow_biases = [(makes,)] * len(biases)
    shapes = (_batched(narrow_input, batch), narrow_weight, *narrow_biases)
    return Narrowed(work, reads, makes, shapes)


def _shrunk(work: Work, share: float, step: int, batch: int) -> Narrowed:
    """An op other than a layer, with a share of the channels of each tensor, in steps where there are several."""

    def shape(operand: Operand) -> Shape:
        sizes = list(operand.shape)
        for dim in operand.factors:
            unit = step if sizes[dim] >= 2 * step else 1
            sizes[dim] = _in_steps(share * sizes[dim], unit, sizes[dim])
        return tuple(sizes)

    shapes = []
    for operand in work.operands:
        narrow = shape(operand)
        shapes.append(narrow if operand.constant else _batched(narrow, batch))
    makes = prod(shape(largest_of(work)))
    return Narrowed(work, 1, makes, tuple(shapes))


def _batched(shape: Shape, batch: int) -> Shape:
    """The shape for a number of samples."""
    return (shape[0] * batch, *shape[1:]) if shape else shape
