"""The channel graph, from what walks over the exported graphs have found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmprune_gates.channels.blocks import Branch
from mmprune_gates.channels.cost import Cost
from mmprune_gates.channels.flow import Flow, Read, Site
from mmprune_gates.channels.graph import Block, ChannelGraph, Group, Layer, within
from mmprune_gates.channels.labels import Axis
from mmprune_gates.channels.numbering import Numbering, block_names, number_channels

WEIGHTED = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)

Slots = dict[str, dict[int, Tensor]]
BLOCKS_ONLY = 'only whole blocks are pruned'
DEPTHWISE = 'depthwise: reads and makes the same channels'
SINGLE = 'a single channel'
UNREACHED = 'not reached by the traced forward'


def build_graph(flow: Flow, branches: Sequence[Branch], prune_channels: bool = True) -> ChannelGraph:
    """The channel graph of a model whose exported graphs have been walked.

    Args:
        flow: What the walks found.
        branches: Its residual blocks, all with a gate or all without.
        prune_channels: Whether channels may go, or only blocks.
    """
    if not prune_channels:
        for value in flow.tensors.values():
            flow.freeze(value.axes, BLOCKS_ONLY)
    numbering = number_channels(flow, branches)
    slots = _find_slots(flow, numbering)
    reads = [*flow.reads, *(call for calls in flow.full_width.values() for call in calls)]
    full_width = {path: _resolved(calls[0], numbering) for path, calls in flow.full_width.items()}
    blocks = _describe_blocks(flow, branches, numbering, {**slots, **{p: {0: w.index} for p, w in full_width.items()}})
    terms = [(term.layer, term.positions, [*map(numbering.channels, term.factors)]) for term in flow.terms]
    cost = Cost.of(terms)
    return ChannelGraph(
        groups=_with_blocks(numbering, blocks),
        slots=slots,
        layers=_coverage(flow, numbering, cost),
        reads=tuple(_resolved(read, numbering) for read in reads),
        sites=_find_sites(flow, numbering),
        full_width=full_width,
        blocks=blocks,
        filters=_count_filters(flow, numbering, blocks),
        tainted=frozenset(flow.tainted),
        unreached=_unreached_modules(flow),
        cost=cost,
    )


def _resolved(found: Read | Site, numbering: Numbering) -> Read | Site:
    """What a walk has found, with numbers of channels instead of ids."""
    return replace(found, index=numbering.channels(found.index))


def _find_slots(flow: Flow, numbering: Numbering) -> Slots:
    """The channels of each parameter and buffer, by dimension, where there are any."""
    slots: Slots = defaultdict(dict)
    for name, value in flow.tensors.items():
        for axis in value.axes:
            index = numbering.channels(axis.ids)
            if bool((index >= 0).any()):
                slots[name][axis.dim] = index
    return dict(slots)


def _find_sites(flow: Flow, numbering: Numbering) -> tuple[Site, ...]:
    """Where a gate can stand behind what makes channels."""
    sites = [_resolved(site, numbering) for site in flow.sites.values()]
    return tuple(site for site in sites if bool((site.index >= 0).any()))


def _describe_blocks(flow: Flow, branches: Sequence[Branch], numbering: Numbering, slots: Slots) -> tuple[Block, ...]:
    """All residual blocks, each with the groups that go with it and the one that makes it constant if it is empty.

    Args:
        flow: What the walks found.
        branches: The blocks.
        numbering: Channels and groups.
        slots: Channels of all parameters and buffers, and of all modules that keep their full width.
    """
    groups = numbering.groups
    free = {number for number, group in enumerate(groups) if group.frozen is None}
    holders = {name: set(numbering.groups_in(torch.cat([*dims.values()]))) for name, dims in slots.items()}
    blocks = []
    for name, branch in zip(block_names(branches), branches, strict=True):
        outside = [held for holder, held in holders.items() if not within(holder, branch.modules)]
        inner = free.difference(*outside)
        last = _last_group(flow, branch, numbering)
        if last not in inner or not _costs_nothing_without(flow, branch, numbering, inner):
            inner, last = set(), None
        blocks.append(
            Block(
                name=name,
                modules=branch.modules,
                sites=branch.sites,
                inner=tuple(groups[number].name for number in sorted(inner)),
                last=None if last is None else groups[last].name,
                tail=branch.tail,
                index=numbering.channels(branch.tail.axis.ids) if branch.tail else torch.zeros(0, dtype=torch.long),
            )
        )
    return tuple(blocks)


def _last_group(flow: Flow, branch: Branch, numbering: Numbering) -> int | None:
    """Number of the group that is all that the last layer of a branch reads; None if there is no such group."""
    if branch.tail is None:
        return None
    weight = branch.tail.weight
    read = _axis_along(flow, weight, flow.layers[weight].in_dim)
    if read is None:
        return None
    index = numbering.channels(read.ids)
    found = numbering.groups_in(index)
    return found[0] if len(found) == 1 and bool((index >= 0).all()) else None


def _costs_nothing_without(flow: Flow, branch: Branch, numbering: Numbering, inner: set[int]) -> bool:
    """Whether all that a branch costs goes with its inner groups."""
    for number in branch.terms:
        factors = [numbering.groups_in(numbering.channels(ids)) for ids in flow.terms[number].factors]
        if inner.isdisjoint(sum(factors, [])):
            return False
    return True


def _axis_along(flow: Flow, weight: str, dim: int | None) -> Axis | None:
    """The channels of a weight along a dimension; None where there are none."""
    return None if dim is None else flow.tensors[weight].along(dim)


def _with_blocks(numbering: Numbering, blocks: Sequence[Block]) -> tuple[Group, ...]:
    """All groups, which now know of the residual blocks that they stand for or can empty."""
    lasts = {block.last for block in blocks}
    groups = [replace(group, empties=group.name in lasts) for group in numbering.groups]
    gates = [replace(gate, block=block) for gate, block in zip(numbering.gates, blocks, strict=False)]
    return (*groups, *gates)


def _count_filters(flow: Flow, numbering: Numbering, blocks: Sequence[Block]) -> Tensor:
    """(num_channels,) rows of weights that make each channel or pass it on; of a block, all that it holds."""
    filters = torch.zeros(numbering.num_channels, dtype=torch.long)
    rows = {}
    for weight, use in flow.layers.items():
        value = flow.tensors[weight]
        rows[weight] = value.shape[use.out_dim]
        made = value.along(use.out_dim)
        if made is not None:
            index = numbering.channels(made.ids)
            filters += torch.bincount(index[index >= 0], minlength=len(filters))
    for gate, block in zip(numbering.gates, blocks, strict=False):
        filters[gate.start] = sum(size for weight, size in rows.items() if block.holds(weight))
    return filters


def _coverage(flow: Flow, numbering: Numbering, cost: Cost) -> tuple[Layer, ...]:
    """Every convolution and linear layer: what it costs, its groups, and why a side of it is frozen."""
    macs: dict[str, float] = defaultdict(float)
    costs = cost.per_op(torch.ones(numbering.num_channels, dtype=torch.double))
    for layer, value in zip(cost.layers, costs.tolist(), strict=True):
        macs[layer] += value
    layers = []
    for weight, use in flow.layers.items():
        out_groups, out_frozen = _coverage_of_side(flow, numbering, weight, use.out_dim)
        in_groups, in_frozen = _coverage_of_side(flow, numbering, weight, use.in_dim)
        total = round(macs[use.layer])
        layers.append(Layer(use.layer, use.kind, total, out_groups, in_groups, out_frozen, in_frozen))
    used = {layer.name for layer in layers}
    for name, module in flow.model.named_modules():
        if isinstance(module, WEIGHTED) and name not in used:
            layers.append(Layer(name, 'unused', 0, (), (), UNREACHED, UNREACHED))
    return tuple(layers)


def _coverage_of_side(
    flow: Flow, numbering: Numbering, weight: str, dim: int | None
) -> tuple[tuple[str, ...], str | None]:
    """The groups along one dimension of a weight, and why none of their channels can be removed."""
    axis = _axis_along(flow, weight, dim)
    if axis is None:
        return (), DEPTHWISE if dim is None else SINGLE
    numbers = numbering.groups_in(numbering.channels(axis.ids))
    return tuple(numbering.groups[number].name for number in numbers), numbering.why_frozen(axis.ids)


def _unreached_modules(flow: Flow) -> tuple[str, ...]:
    """Paths of the modules that hold parameters which no walk has met."""
    unused = [name for name, _ in flow.model.named_parameters() if name not in flow.tensors]
    return tuple(dict.fromkeys(name.rpartition('.')[0] for name in unused))
