"""Build the channel graph from the findings of the walks over the exported graphs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmprune_gates.channels.blocks import Branch
from mmprune_gates.channels.cost import Cost
from mmprune_gates.channels.flow import Flow, FullWidth, Read, Site
from mmprune_gates.channels.graph import ChannelGraph, Layer
from mmprune_gates.channels.groups import Block
from mmprune_gates.channels.heads import Seen
from mmprune_gates.channels.index import channels_in
from mmprune_gates.channels.numbering import Numbering, number_channels
from mmprune_gates.channels.walked import Walked
from mmprune_gates.channels.workload import workload_of

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


def build_graph(inference: Walked, branches: Sequence[Branch], batch: int, prune_channels: bool = True) -> ChannelGraph:
    """The channel graph of a model whose exported graphs have been walked.

    Args:
        inference: The walk over the inference pass; its flow holds what all walks found.
        branches: Its residual blocks, all with a gate or all without.
        batch: Batch size of the traced input.
        prune_channels: Whether channels may go, or only whole blocks.
    """
    flow = inference.flow
    if not prune_channels:
        for value in flow.tensors.values():
            flow.freeze(value.axes, BLOCKS_ONLY)
    numbering = number_channels(flow, branches)
    slots = _find_slots(flow, numbering)
    reads = _find_reads(flow, numbering)
    blocks = _describe_blocks(flow, branches, numbering, slots, reads)
    terms = []
    for term in flow.terms:
        factors = [numbering.channels(ids) for ids in term.factors]
        terms.append((term.layer, term.positions, factors))
    cost = Cost.of(terms)
    shared = [name for name, users in flow.users.items() if len(users) > 1]
    return ChannelGraph(
        groups=(*numbering.groups, *numbering.gates),
        slots=slots,
        layers=_coverage(flow, numbering, cost),
        reads=reads,
        sites=_find_sites(flow, numbering),
        blocks=blocks,
        filters=_count_filters(flow, numbering, blocks),
        tainted=_find_tainted(flow, numbering),
        shared=frozenset(shared),
        unreached=_unreached_modules(flow),
        cost=cost,
        workload=workload_of(inference, numbering, blocks, batch),
        seen=_find_seen(flow, numbering),
        guessed=tuple(numbering.channels(ids) for ids in flow.guessed),
    )


def _resolved(found: Any, numbering: Numbering) -> Any:
    """A read or site with channel numbers in place of ids."""
    return replace(found, index=numbering.channels(found.index))


def _find_slots(flow: Flow, numbering: Numbering) -> Slots:
    """Parameter or buffer name -> dimension -> channel at each position; only dimensions that hold channels."""
    slots: Slots = defaultdict(dict)
    for name, value in flow.tensors.items():
        for axis in value.axes:
            index = numbering.channels(axis.ids)
            if (index >= 0).any():
                slots[name][axis.dim] = index
    return dict(slots)


def _find_reads(flow: Flow, numbering: Numbering) -> tuple[Read[Tensor], ...]:
    """Where channels are read: by layers and products, then by modules that keep their full width."""
    reads = list(flow.reads)
    for calls in flow.full_width.values():
        reads += calls
    return tuple(_resolved(read, numbering) for read in reads)


def _find_sites(flow: Flow, numbering: Numbering) -> tuple[Site[Tensor], ...]:
    """Norms and layers whose output a gate can scale."""
    found = []
    for site in flow.sites.values():
        resolved = _resolved(site, numbering)
        if (resolved.index >= 0).any():
            found.append(resolved)
    return tuple(found)


def _find_tainted(flow: Flow, numbering: Numbering) -> dict[str, Tensor]:
    """Module path of a site -> channels in its output that are also used where they do not scale with a gate."""
    found = {}
    for site, parts in flow.tainted.items():
        ids = np.concatenate(parts)
        found[site] = numbering.channels(ids)
    return found


def _find_seen(flow: Flow, numbering: Numbering) -> tuple[Seen, ...]:
    """Channels, some of them heads, that modules view in another shape, each vector once per module."""
    if not flow.cuts:
        return ()
    cut = np.concatenate([cut.ids for cut in flow.cuts])
    heads = channels_in(numbering.channels(cut))
    found: dict[tuple, Seen] = {}
    for module, ids in flow.seen:
        index = numbering.channels(ids)
        channels = channels_in(index)
        if torch.isin(channels, heads).any():
            key = (module, tuple(index.tolist()))
            found.setdefault(key, Seen(module, index))
    return tuple(found.values())


def _describe_blocks(
    flow: Flow,
    branches: Sequence[Branch],
    numbering: Numbering,
    slots: Slots,
    reads: Sequence[Read[Tensor]],
) -> tuple[Block, ...]:
    """All residual blocks, with inner and last groups where they can be emptied."""
    full_width = [read for read in reads if isinstance(read, FullWidth)]
    holders = {read.layer: set(numbering.groups_in(read.index)) for read in full_width}
    for name, dims in slots.items():
        holders[name] = set(numbering.groups_in(torch.cat([*dims.values()])))
    blocks = []
    for branch in branches:
        block = branch.block
        if branch.gate is not None:
            block = replace(block, gate=int(numbering.channels(branch.gate)))
        last = _last_group(flow, block, numbering)
        inner = _inner_groups(block, numbering, holders)
        if block.tail is not None and last in inner and _costs_nothing_without(flow, branch, numbering, inner):
            names = [numbering.groups[number].name for number in sorted(inner)]
            index = numbering.channels(block.tail.axis.ids)
            block = replace(block, inner=tuple(names), last=numbering.groups[last].name, index=index)
        blocks.append(block)
    return tuple(blocks)


def _inner_groups(block: Block, numbering: Numbering, holders: Mapping[str, set[int]]) -> set[int]:
    """Numbers of the free groups that occur only inside a block.

    Args:
        block: The block.
        numbering: Channels and groups.
        holders: Name -> numbers of the groups that occur in each parameter, buffer and full-width module.
    """
    inner = {number for number, group in enumerate(numbering.groups) if group.frozen is None}
    for name, groups in holders.items():
        if not block.holds(name):
            inner -= groups
    return inner


def _last_group(flow: Flow, block: Block, numbering: Numbering) -> int | None:
    """Number of the one group that a block's last layer reads; None if it reads anything besides."""
    if block.tail is None:
        return None
    weight = block.tail.weight
    dim = flow.layers[weight].in_dim
    read = None if dim is None else flow.tensors[weight].along(dim)
    if read is None:
        return None
    index = numbering.channels(read.ids)
    found = numbering.groups_in(index)
    return found[0] if len(found) == 1 and (index >= 0).all() else None


def _costs_nothing_without(flow: Flow, branch: Branch, numbering: Numbering, inner: set[int]) -> bool:
    """Whether a branch costs nothing once its inner groups are empty."""
    for number in branch.terms:
        factors = [numbering.channels(ids) for ids in flow.terms[number].factors]
        if not any(inner.intersection(numbering.groups_in(index)) for index in factors):
            return False
    return True


def _count_filters(flow: Flow, numbering: Numbering, blocks: Sequence[Block]) -> Tensor:
    """(num_channels,) rows of weights that make each channel or pass it on; for a block's gate, all rows it holds."""
    filters = torch.zeros(numbering.num_channels, dtype=torch.long)
    rows = {}
    for weight, use in flow.layers.items():
        value = flow.tensors[weight]
        rows[weight] = value.shape[use.out_dim]
        made = value.along(use.out_dim)
        if made is not None:
            index = numbering.channels(made.ids)
            filters += torch.bincount(channels_in(index), minlength=len(filters))
    for block in blocks:
        if block.gate is not None:
            held = [size for weight, size in rows.items() if block.holds(weight)]
            filters[block.gate] = sum(held)
    return filters


def _coverage(flow: Flow, numbering: Numbering, cost: Cost) -> tuple[Layer, ...]:
    """Coverage of every convolution and linear layer: its cost, its groups, and why a side of it is frozen."""
    whole = torch.ones(numbering.num_channels, dtype=torch.double)
    macs = cost.per_layer(whole)
    layers = []
    for weight, use in flow.layers.items():
        out_groups, out_frozen = _coverage_of_side(flow, numbering, weight, use.out_dim)
        in_groups, in_frozen = _coverage_of_side(flow, numbering, weight, use.in_dim)
        layer = Layer(
            name=use.layer,
            kind=use.kind,
            weight=weight,
            out_dim=use.out_dim,
            macs=round(macs.get(use.layer, 0)),
            out_groups=out_groups,
            in_groups=in_groups,
            out_frozen=out_frozen,
            in_frozen=in_frozen,
        )
        layers.append(layer)
    used = {layer.name for layer in layers}
    for name, module in flow.model.named_modules():
        if isinstance(module, WEIGHTED) and name not in used:
            layers.append(Layer(name, 'unused', f'{name}.weight', 0, 0, (), (), UNREACHED, UNREACHED))
    return tuple(layers)


def _coverage_of_side(
    flow: Flow, numbering: Numbering, weight: str, dim: int | None
) -> tuple[tuple[str, ...], str | None]:
    """The groups along one dimension of a weight, and why none of its channels can be removed, if so."""
    if dim is None:
        return (), DEPTHWISE
    axis = flow.tensors[weight].along(dim)
    if axis is None:
        return (), SINGLE
    index = numbering.channels(axis.ids)
    names = [numbering.groups[number].name for number in numbering.groups_in(index)]
    return tuple(names), numbering.why_frozen(axis.ids)


def _unreached_modules(flow: Flow) -> tuple[str, ...]:
    """Paths of the modules with parameters of their own that no walk has met."""
    holders: dict[str, None] = {}
    for name, _ in flow.model.named_parameters():
        if name not in flow.tensors:
            holder = name.rpartition('.')[0]
            holders[holder] = None
    return tuple(holders)
