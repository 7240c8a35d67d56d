"""Attention divides scores by the square root of the number of channels: weights make up for it when channels go.

With fewer channels of q and k, the scores would be too large. So what makes these channels is scaled down, and layers
that read them elsewhere, such as the one behind v whose channels go with theirs, are scaled up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmprune_gates.channels.flow import Summed
from mmprune_gates.channels.graph import ChannelGraph
from mmprune_gates.channels.groups import Group
from mmprune_gates.channels.index import inside, touches
from mmprune_gates.channels.kept import Kept
from mmprune_gates.channels.layers import bias_of
from mmprune_gates.gates.gate import laid
from mmprune_gates.gates.placement import readers_of, sites_suffice

SCALED = 'divided by the square root of their number'


@dataclass(frozen=True, eq=False)
class Place:
    """A tensor that holds the channels of a group.

    Attributes:
        name: Name of the tensor, or path of its module.
        tensor: The tensor.
        dim: The dimension that holds them.
        index: Channel at each position, before any went.
        makes: Whether it makes the channels; otherwise it reads them.
    """

    name: str
    tensor: Tensor
    dim: int
    index: Tensor
    makes: bool


def cannot_be_rescaled(graph: ChannelGraph) -> dict[str, str]:
    """Groups in products that are divided by the square root of their number, where weights cannot make up for it."""
    reasons = {}
    for group in graph.free_channels:
        products = graph.products(group)
        if not any(product.operands for product in products):
            continue
        has_weights = all(isinstance(read, Summed) or read.weight is not None for read in graph.reads_of(group))
        times = {times_scaled(graph, group, product) for product in products}
        is_alone = all(sums_over(product, group) for product in products)
        if not has_weights or not is_alone or not sites_suffice(graph, group) or len(times) > 1:
            reasons[group.name] = SCALED
    return reasons


def sums_over(product: Summed, group: Group) -> bool:
    """Whether a product sums over the channels of a group, each equally often, and over nothing else."""
    if not inside(product.index, group).all():
        return False
    times = torch.bincount(product.index - group.start, minlength=group.size)
    return bool((times == times[0]).all())


def used_sites(graph: ChannelGraph, group: Group) -> set[str]:
    """Module paths of the sites whose gates scale the channels of a group for their readers."""
    named: set[str] = set()
    for read in graph.reads_of(group):
        named |= read.sites
    return {site.module for site in graph.sites if site.module in named and touches(site.index, group)}


def times_scaled(graph: ChannelGraph, group: Group, product: Summed) -> int:
    """How many operands of a product are scaled with the sites of a group; 0 if it is not divided."""
    if not product.operands:
        return 0
    sites = used_sites(graph, group)
    scaled = [operand for operand in product.operands if operand & sites]
    return len(scaled)


def rescale(model: nn.Module, graph: ChannelGraph, kept: Kept, stays: Callable[[str], bool]) -> None:
    """Let attention with fewer channels of q and k compute the same scores.

    Args:
        model: The model, from which the channels have gone.
        graph: Its channel graph before they went.
        kept: What was kept.
        stays: Whether a module or tensor of that name is in no block that goes.
    """
    narrower = [group for group in graph.free_channels if not kept[group.name].all()]
    for group in narrower:
        factor = factor_of(graph, group, kept)
        if factor == 1:
            continue
        known = set()
        for place in places_of(model, graph, group):
            key = (id(place.tensor), place.dim)
            if key not in known and stays(place.name):
                known.add(key)
                multiply(place, group, kept, factor if place.makes else 1 / factor)


def factor_of(graph: ChannelGraph, group: Group, kept: Kept) -> float:
    """What the channels of a group are multiplied by where they are made."""
    for product in graph.products(group):
        stays = kept.at(product.index)
        times = times_scaled(graph, group, product)
        if times and stays.any():
            left = stays.sum().item() / len(stays)
            return left ** (0.5 / times)
    return 1.0


def places_of(model: nn.Module, graph: ChannelGraph, group: Group) -> Iterator[Place]:
    """The tensors that make the channels of a group, and those that read them."""
    used = used_sites(graph, group)
    for site in graph.sites:
        if site.module in used:
            module = model.get_submodule(site.module)
            weight = getattr(module, site.parameter)
            bias = getattr(module, bias_of(site.parameter), None)
            yield Place(site.module, weight, site.weight_dim, site.index, makes=True)
            if bias is not None:
                yield Place(site.module, bias, 0, site.index, makes=True)
    for read in readers_of(graph):
        if read.weight is not None and read.in_dim is not None and touches(read.index, group):
            weight = model.get_submodule(read.layer).get_parameter(read.parameter)
            yield Place(read.weight, weight, read.in_dim, graph.slots[read.weight][read.in_dim], makes=False)


@torch.no_grad()
def multiply(place: Place, group: Group, kept: Kept, factor: float) -> None:
    """Multiply the channels of a group that were kept in a tensor by a factor."""
    tensor = place.tensor
    left = place.index[kept.at(place.index)]
    ones = torch.ones(len(left), dtype=torch.double)
    factors = ones.masked_fill(inside(left, group), factor)
    along = laid(factors, place.dim, tensor.dim())
    tensor.mul_(along.to(tensor))
