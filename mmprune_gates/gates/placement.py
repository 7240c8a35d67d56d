"""Where the gate of each group goes: the cheapest of the places that are exactly equivalent.

GDP puts a gate before every regular convolution, Gate Decorator after every norm, or after the convolution if there is
no norm. All compute the same function if everything between is positively homogeneous; then a gate on the affine of the
last norm costs O(channels). Otherwise the gate stands before the readers, on weights or activations, whichever are
smaller.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmprune_gates.channels.flow import Read, Site, Summed
from mmprune_gates.channels.graph import ChannelGraph
from mmprune_gates.channels.groups import Group
from mmprune_gates.channels.index import inside, only, touches

AFFINE, OUTPUT, INPUT, WEIGHT = 'affine', 'output', 'input', 'weight'
BATCH = 8  # images per step for which the smaller of input and weight is found; this project's choice
BEHIND = (AFFINE, OUTPUT)  # behind what makes the channels; the others stand before what reads them


@dataclass(frozen=True)
class Placement:
    """One module that a gate acts on.

    Attributes:
        module: Its path.
        kind: ``affine`` (weight and bias) or ``output`` of a norm or layer; ``input`` or ``weight`` of a reader.
        dim: Dimension of the scaled tensor that holds the channels; for ``affine``, of the weight.
        weight_dim: Dimension of the module's weight that holds them; None for a module that keeps its full width.
        index: (C,) channel of the graph at each position, -1 where no gate acts.
        parameter: Name of the weight relative to the module, which may take it from a submodule.
    """

    module: str
    kind: str
    dim: int
    weight_dim: int | None
    index: Tensor
    parameter: str = 'weight'


def place_gates(graph: ChannelGraph) -> tuple[Placement, ...]:
    """Placements for all free groups of a graph.

    Returns:
        First, for channels, at most one placement per module and side. Together they act once on every reader of every
        free group; twice, at a site and again before the reader, if another reader of the channels needs the site.
        Then those of residual blocks, behind the modules that end their branches.
    """
    behind = {group.name for group in graph.free_channels if sites_suffice(graph, group)}
    readers = {group.name for group in graph.free_channels} - behind
    summed = {group.name for group in graph.free_channels if graph.products(group)} - behind  # gates at both
    at_sites = channels_of(graph, behind | summed)
    at_readers, at_both = channels_of(graph, readers), channels_of(graph, summed)
    placements = []
    for site in graph.sites:
        own = only(site.index, at_sites & relying(graph, site))
        placements.append(after(site, own))
    for read in readers_of(graph):
        not_gated = only(read.index, at_readers & ~at_both)
        own = torch.where(read.gated, not_gated, only(read.index, at_readers))
        placements.append(before(read, own, graph))
    gates = [(block.gate, block.sites) for block in graph.blocks if block.gate is not None]
    for gate, sites in gates:
        for site in graph.sites:
            if site.module in sites:
                whole = torch.full_like(site.index, gate)
                placements.append(after(site, whole))
    return tuple(placement for placement in placements if bool((placement.index >= 0).any()))


def unread(graph: ChannelGraph) -> dict[str, str]:
    """Groups that nothing reads, so that no gate could act on them, and why they stay."""
    is_read = graph.holding(read.index for read in graph.reads)
    reasons = {}
    for group in graph.free_channels:
        if not is_read[group.span].any():
            reasons[group.name] = 'read by nothing in the traced passes'
    return reasons


def read_in_several_ways(graph: ChannelGraph) -> dict[str, str]:
    """Groups that need a gate before a weight used by several modules or along several dimensions, and why they stay.

    The modules may use it in other ways than as a weight, as an embedding does.

    Gates scale a weight once, in one module and along one dimension. A gate on what comes before helps with the
    former only: a weight used along several dimensions makes channels in one call that it reads in another.
    """
    ways: dict[str | None, set] = defaultdict(set)
    for read in graph.reads:
        way = (read.layer, read.in_dim)
        ways[read.weight].add(way)
    reasons: dict[str, str] = {}
    for read in graph.reads:
        if read.weight is None or len(ways[read.weight]) == 1 and read.weight not in graph.shared:
            continue
        reason = f'{read.weight} reads them in several ways'
        along_several = len({in_dim for _, in_dim in ways[read.weight]}) > 1
        for group in graph.free_channels:
            if touches(read.index, group) and (along_several or not sites_suffice(graph, group)):
                reasons[group.name] = reason
    for group in graph.free_channels:
        needed = {site for product in graph.products(group) for site in product.sites}
        for weight in graph.shared.intersection(weights_of(graph, needed)):
            reasons[group.name] = f'{weight} makes them, and is used in several ways'
    return reasons


def weights_of(graph: ChannelGraph, sites: Container[str]) -> list[str]:
    """Names of the weights of sites."""
    return [f'{site.module}.{site.parameter}' for site in graph.sites if site.module in sites]


def relying(graph: ChannelGraph, site: Site) -> Tensor:
    """(num_channels,) bool: channels with a reader that relies on a gate at a site."""
    return graph.holding(read.index for read in graph.reads if site.module in read.sites)


def sites_suffice(graph: ChannelGraph, group: Group) -> bool:
    """Whether gates at sites gate every read of a group, and nothing else."""
    named: set[str] = set()
    is_read = False
    for read in graph.reads:
        own = inside(read.index, group)
        if not own.any():
            continue
        if not read.gated[own].all():
            return False
        named |= read.sites
        is_read = True
    used_otherwise = [graph.tainted[site] for site in named if site in graph.tainted]
    if any(touches(index, group) for index in used_otherwise):
        return False
    return is_read and graph.shared.isdisjoint(weights_of(graph, named))


def readers_of(graph: ChannelGraph) -> list[Read]:
    """Every layer and module before which a gate can stand, once; a position is gated if it is gated in all calls."""
    found: dict[tuple, Read] = {}
    for read in graph.reads:
        if not isinstance(read, Summed):
            place = (read.weight or read.layer, read.in_dim)
            earlier = found.setdefault(place, read)
            found[place] = replace(read, gated=read.gated & earlier.gated)
    return list(found.values())


def channels_of(graph: ChannelGraph, names: set[str]) -> Tensor:
    """(num_channels,) bool: the channels of the groups of those names."""
    found = torch.zeros(graph.num_channels, dtype=torch.bool)
    for group in graph.groups:
        found[group.span] = group.name in names
    return found


def after(site: Site, index: Tensor) -> Placement:
    """A gate behind a norm or layer: on a mini-batch of output if direct and smaller than the weight, else affine."""
    if site.weight_size <= BATCH * site.output_size or not site.direct:
        return Placement(site.module, AFFINE, site.weight_dim, site.weight_dim, index, site.parameter)
    return Placement(site.module, OUTPUT, site.out_dim, site.weight_dim, index)


def before(read: Read, index: Tensor, graph: ChannelGraph) -> Placement:
    """A gate before a reader: on its weight or the input of a mini-batch, whichever is smaller.

    Only the weight will do if it does not read the input directly; only the input, if the weight has no such channels.
    """
    dim = read.in_dim
    on_input = Placement(read.layer, INPUT, read.dim, dim, index)
    if dim is None or read.weight is None:
        return on_input
    of_weight = graph.slots.get(read.weight, {}).get(dim)
    is_smaller = BATCH * read.input_size <= read.weight_size
    if of_weight is None or (is_smaller and read.direct):
        return on_input
    gated = graph.holding([index])
    own = only(of_weight, gated)
    return Placement(read.layer, WEIGHT, dim, dim, own, read.parameter)
