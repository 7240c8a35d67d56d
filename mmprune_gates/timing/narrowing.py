"""Ops at narrower widths: which widths to measure, and the shapes of their tensors there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from torch.utils._pytree import tree_map

from mmprune_gates.budget.latency import channel_dim, is_layer, largest_of
from mmprune_gates.channels.labels import Shape
from mmprune_gates.channels.workload import Operand, Work

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)  # of the full width, at which an op is measured
GROUPS = 6  # place of the number of groups among a convolution's arguments


@dataclass(frozen=True)
class Narrowed:
    """An op at a width.

    Attributes:
        work: The op.
        reads: Channels that a layer reads; 1 for other ops.
        makes: Channels that a layer makes; elements of the largest tensor of other ops.
        shapes: Of its tensor arguments, in order.
    """

    work: Work
    reads: int
    makes: int
    shapes: tuple[Shape, ...]

    def arguments(self, tensors: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """What the op is called with.

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
    """Whether a convolution has a group for each channel that it reads."""
    groups = conv_groups(work)
    return groups > 1 and groups == work.operands[0].shape[1]


def at_widths(work: Work, step: int, batch: int = 1) -> list[list[Narrowed]]:
    """An op at the widths to be measured: rows of rising width read, columns of rising width made.

    Args:
        work: The op.
        step: Widths of layers are multiples of it.
        batch: Samples at a time.
    """
    if not is_layer(work):
        shares = SHARES if largest_of(work).factors else SHARES[-1:]
        once = {op.makes: op for op in (_shrunk(work, share, step, batch) for share in shares)}
        return [[*once.values()]]
    x, made = work.operands[0], work.results[0]
    dim, groups = channel_dim(work), conv_groups(work)
    rows = _widths(x, dim, step, groups)
    columns = _widths(made, dim, step, groups)
    return [[_layer(work, reads, makes, batch) for makes in columns] for reads in rows]


def _widths(operand: Operand, dim: int, step: int, groups: int) -> list[int]:
    """Widths of a tensor to be measured: multiples of a step, and the full one."""
    size = operand.shape[dim]
    if dim not in operand.factors:
        return [size]
    unit = step if groups == 1 else step * groups
    found = {min(size, ceil(share * size / unit) * unit) for share in SHARES}
    return sorted({*found, min(size, unit)})


def _layer(work: Work, reads: int, makes: int, batch: int) -> Narrowed:
    """A layer at a width."""
    x, weight, *_ = work.operands
    dim, groups = channel_dim(work), conv_groups(work)
    narrow_input = (*x.shape[:dim], reads, *x.shape[dim + 1 :])
    sides = (reads, makes // groups) if work.name.startswith('conv_transpose') else (makes, reads // groups)
    narrow_weight = (*sides, *weight.shape[2:])
    biases = [(makes,)] * (len(work.operands) - 2)
    return Narrowed(work, reads, makes, (_batched(narrow_input, batch), narrow_weight, *biases))


def _shrunk(work: Work, share: float, step: int, batch: int) -> Narrowed:
    """Another op, with a share of the channels of each of its tensors, in steps where there are several."""

    def width(size: int) -> int:
        unit = step if size >= 2 * step else 1
        return min(size, ceil(share * size / unit) * unit)

    def shape(operand: Operand) -> Shape:
        return tuple(width(size) if dim in operand.factors else size for dim, size in enumerate(operand.shape))

    shapes = [shape(operand) if operand.constant else _batched(shape(operand), batch) for operand in work.operands]
    return Narrowed(work, 1, prod(shape(largest_of(work))), tuple(shapes))


def _batched(shape: Shape, batch: int) -> Shape:
    """The shape of so many samples."""
    return (shape[0] * batch, *shape[1:]) if shape else shape
