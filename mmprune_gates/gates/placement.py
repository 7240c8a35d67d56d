"""Where the gate of each group goes: the place that costs least among those that are exactly equal.

GDP puts a gate before every regular convolution, Gate Decorator after every norm. Both are one function where
everything between is positively homogeneous, and then the affine of the last norm costs O(channels). Elsewhere
the gate stands before the readers, on their input or on their weight, whichever is smaller.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmprune_gates.channels.graph import ChannelGraph, Group, Read

AFFINE, INPUT, WEIGHT = 'affine', 'input', 'weight'


@dataclass(frozen=True)
class Placement:
    """One module that a gate acts on.

    Attributes:
        module: Its path.
        kind: ``affine`` (a norm's weight and bias), ``input`` or ``weight`` (of a layer that reads channels).
        dim: Dimension of the input or weight that holds the channels.
        index: (C,) channel of the graph at each position, -1 where no gate acts.
    """

    module: str
    kind: str
    dim: int
    index: Tensor


def place_gates(graph: ChannelGraph) -> tuple[Placement, ...]:
    """Placements for all free groups of a graph.

    Returns:
        At most one placement per module and kind; together they act on every reader of every free group, once.
    """
    at_norms = {group.name for group in graph.free if norms_suffice(graph, group)}
    norms = dict.fromkeys(norm for read in graph.reads for norm in sorted(read.norms))
    placements = []
    for norm in norms:
        slots = graph.slots.get(f'{norm}.weight', {})
        if 0 in slots and any(norm in read.norms and meets(slots[0], read.index) for read in graph.reads):
            placements.append(Placement(norm, AFFINE, 0, restrict(graph, slots[0], at_norms)))
    readers = {group.name for group in graph.free} - at_norms
    for read in {read.weight: read for read in graph.reads}.values():
        placements.append(before(read, restrict(graph, read.index, readers), graph))
    return tuple(placement for placement in placements if bool((placement.index >= 0).any()))


def norms_suffice(graph: ChannelGraph, group: Group) -> bool:
    """Whether gating norms gates every read of a group, and nothing else."""
    reads = [(read, inside(read.index, group)) for read in graph.reads]
    reads = [(read, mask) for read, mask in reads if bool(mask.any())]
    gated = all(bool(read.gated[mask].all()) for read, mask in reads)
    own = {norm for read, _ in reads for norm in read.norms if owns(graph, norm, group)}
    return bool(reads) and gated and not own & graph.tainted


def owns(graph: ChannelGraph, norm: str, group: Group) -> bool:
    """Whether a norm holds channels of a group."""
    index = graph.slots.get(f'{norm}.weight', {}).get(0)
    return index is not None and bool(inside(index, group).any())


def inside(index: Tensor, group: Group) -> Tensor:
    """Which positions hold channels of a group."""
    return (index >= group.start) & (index < group.start + group.size)


def meets(a: Tensor, b: Tensor) -> bool:
    """Whether two vectors of channels have one in common."""
    return bool(torch.isin(a[a >= 0], b).any())


def restrict(graph: ChannelGraph, index: Tensor, names: set[str]) -> Tensor:
    """``index`` with -1 at the channels of all groups not in ``names``."""
    inside_any = torch.zeros_like(index, dtype=torch.bool)
    for group in graph.groups:
        if group.name in names:
            inside_any |= inside(index, group)
    return torch.where(inside_any, index, -1)


def before(read: Read, index: Tensor, graph: ChannelGraph) -> Placement:
    """A gate in front of a reader: on its weight or, if that has more elements, on its input where it can be."""
    own = graph.slots.get(read.weight, {}).get(read.in_dim)
    if own is not None and (read.weight_size < read.input_size or not read.direct):
        return Placement(read.layer, WEIGHT, read.in_dim, torch.where(torch.isin(own, index[index >= 0]), own, -1))
    return Placement(read.layer, INPUT, read.dim, index)
