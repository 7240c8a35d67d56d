"""Where the gate of each group goes: the place that costs least among those that are exactly equal.

GDP puts a gate before every regular convolution, Gate Decorator after every norm, or after the convolution where
there is none. All are one function where everything between is positively homogeneous; then the affine of the last
norm costs O(channels). Elsewhere the gate stands before the readers. Weights or activations: whichever is smaller.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmprune_gates.channels.graph import ChannelGraph, Group, Read, Site, inside

AFFINE, OUTPUT, INPUT, WEIGHT = 'affine', 'output', 'input', 'weight'
BEHIND = (AFFINE, OUTPUT)  # what makes the channels; the others stand before what reads them


@dataclass(frozen=True)
class Placement:
    """One module that a gate acts on.

    Attributes:
        module: Its path.
        kind: ``affine`` (weight and bias) or ``output`` of a norm or layer; ``input`` or ``weight`` of a reader.
        dim: Dimension of the scaled tensor that holds the channels; for ``affine``, of the weight.
        weight_dim: Dimension of the module's weight that holds them; None for a module that keeps its full width.
        index: (C,) channel of the graph at each position, -1 where no gate acts.
    """

    module: str
    kind: str
    dim: int
    weight_dim: int | None
    index: Tensor


def place_gates(graph: ChannelGraph) -> tuple[Placement, ...]:
    """Placements for all free groups of a graph.

    Returns:
        At most one placement per module and side for the channels; together they act on every reader of every free
        group, once. Then those of residual blocks, behind what ends their branches.
    """
    channels = [group for group in graph.free if group.block is None]
    behind = {group.name for group in channels if sites_suffice(graph, group)}
    used = [read for read in graph.reads if read.sites]
    placements = []
    for site in graph.sites:
        if any(site.module in read.sites and meets(site.index, read.index) for read in used):
            placements.append(after(site, restrict(graph, site.index, behind)))
    readers = {group.name for group in channels} - behind
    for read in {read.weight or read.layer: read for read in graph.reads}.values():
        placements.append(before(read, restrict(graph, read.index, readers), graph))
    for group in filter(lambda group: group.block, graph.free):
        own = [site for site in graph.sites if site.module in group.block.sites]
        placements += [after(site, torch.full_like(site.index, group.start)) for site in own]
    return tuple(placement for placement in placements if bool((placement.index >= 0).any()))


def sites_suffice(graph: ChannelGraph, group: Group) -> bool:
    """Whether gates at sites gate every read of a group, and nothing else."""
    reads = [(read, inside(read.index, group)) for read in graph.reads]
    reads = [(read, mask) for read, mask in reads if bool(mask.any())]
    gated = all(bool(read.gated[mask].all()) for read, mask in reads)
    named = frozenset().union(*(read.sites for read, _ in reads))
    own = {site.module for site in graph.sites if site.module in named and bool(inside(site.index, group).any())}
    return bool(reads) and gated and not own & graph.tainted


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


def after(site: Site, index: Tensor) -> Placement:
    """A gate behind a norm or layer: on its weight and bias or, if those have more elements, on its output."""
    if site.weight_size <= site.output_size or not site.direct:
        return Placement(site.module, AFFINE, site.weight_dim, site.weight_dim, index)
    return Placement(site.module, OUTPUT, site.out_dim, site.weight_dim, index)


def before(read: Read, index: Tensor, graph: ChannelGraph) -> Placement:
    """A gate in front of a reader: on its weight or, if that has more elements, on its input where it can be."""
    own = graph.slots.get(read.weight, {}).get(read.in_dim)
    if own is not None and (read.weight_size < read.input_size or not read.direct):
        index = torch.where(torch.isin(own, index[index >= 0]), own, -1)
        return Placement(read.layer, WEIGHT, read.in_dim, read.in_dim, index)
    return Placement(read.layer, INPUT, read.dim, read.in_dim, index)
