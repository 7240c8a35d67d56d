"""The channel graph of a model after channels have gone, derived without tracing it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from mmprune_gates.channels.cost import Cost
from mmprune_gates.channels.flow import Read, Site
from mmprune_gates.channels.graph import ChannelGraph, Layer
from mmprune_gates.channels.groups import Block, Group, within
from mmprune_gates.channels.heads import Follow
from mmprune_gates.channels.index import renumbered
from mmprune_gates.channels.kept import Kept
from mmprune_gates.channels.workload import Workload

Reader = TypeVar('Reader', bound=Read[Tensor])
Counted = TypeVar('Counted', Cost, Workload)
Entry = TypeVar('Entry', Site[Tensor], Follow)


def narrowed(graph: ChannelGraph, kept: Kept, removed: Sequence[str]) -> ChannelGraph:
    """The graph without the channels that are not kept.

    Sizes that decide where gates stand stay as traced, so that no gate moves. Blocks can no longer be emptied: their
    constants were found at full width.

    Args:
        graph: The graph of the whole model.
        kept: What stays.
        removed: Paths of the modules that have gone with blocks.
    """
    left = _Left(kept, tuple(removed))
    groups = left.groups(graph.groups)
    names = {group.name for group in groups}
    slots = {}
    for name, dims in graph.slots.items():
        if left.stays(name):
            slots[name] = {dim: left.index(index) for dim, index in dims.items()}
    cost = left.counted(graph.cost)
    return replace(
        graph,
        groups=groups,
        slots=slots,
        layers=left.layers(graph.layers, names, cost),
        reads=tuple(left.read(read) for read in graph.reads if left.stays(read.layer)),
        sites=tuple(left.entry(site) for site in graph.sites if left.stays(site.module)),
        blocks=tuple(left.block(block) for block in graph.blocks if left.stays(block.modules[-1])),
        filters=graph.filters[kept.staying],
        tainted={path: left.index(index) for path, index in graph.tainted.items() if left.stays(path)},
        unreached=tuple(path for path in graph.unreached if left.stays(path)),
        cost=cost,
        workload=left.counted(graph.workload),
        seen=(),
        guessed=(),
        follows=tuple(left.entry(follow) for follow in graph.follows if left.stays(follow.module)),
    )


class _Left:
    """What is left of each part of a graph.

    Args:
        kept: What stays.
        removed: Paths of the modules that have gone.
    """

    def __init__(self, kept: Kept, removed: tuple[str, ...]) -> None:
        self.kept, self.removed = kept, removed
        self.staying = kept.staying
        order = self.staying.cumsum(0) - 1
        self.number_of = torch.where(self.staying, order, -1)

    def stays(self, path: str) -> bool:
        """Whether a module, parameter or buffer is still there."""
        return not within(path, self.removed)

    def index(self, index: Tensor) -> Tensor:
        """New numbers of the channels that stay, in their order."""
        stays = self.kept.at(index)
        return renumbered(index[stays], self.number_of)

    def groups(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        """The groups that keep at least one channel, with new sizes and positions."""
        found, start = [], 0
        for group in groups:
            size = int(self.staying[group.span].sum())
            if size:
                found.append(replace(group, size=size, start=start))
                start += size
        return tuple(found)

    def read(self, read: Reader) -> Reader:
        """A read of fewer channels."""
        stays = self.kept.at(read.index)
        return replace(read, index=self.index(read.index), gated=read.gated[stays])

    def entry(self, entry: Entry) -> Entry:
        """A site or an attribute that follows, with fewer channels."""
        return replace(entry, index=self.index(entry.index))

    def block(self, block: Block) -> Block:
        """A block that can be closed, but not emptied."""
        gate = None if block.gate is None else int(self.number_of[block.gate])
        return replace(block, gate=gate, inner=(), last=None, index=None)

    def counted(self, counted: Counted) -> Counted:
        """A cost or workload with fewer channels; ops that have gone with their modules have no channels left."""
        return replace(counted, vectors=counted.vectors.narrowed(self.index))

    def layers(self, layers: Sequence[Layer], names: set[str], cost: Cost) -> tuple[Layer, ...]:
        """Coverage of the layers that are still there."""
        everything = torch.ones(int(self.staying.sum()), dtype=torch.double)
        macs = cost.per_layer(everything)
        found = []
        for layer in layers:
            if self.stays(layer.name):
                out_groups = tuple(name for name in layer.out_groups if name in names)
                in_groups = tuple(name for name in layer.in_groups if name in names)
                total = round(macs.get(layer.name, 0))
                found.append(replace(layer, macs=total, out_groups=out_groups, in_groups=in_groups))
        return tuple(found)
