"""The channel graph: groups of channels, the parameter slots they own, what they cost, who reads them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from mmprune_gates.channels.cost import Cost
from mmprune_gates.channels.flow import FullWidth, Read, Site, Summed
from mmprune_gates.channels.groups import Block, Group
from mmprune_gates.channels.heads import Follow, Seen
from mmprune_gates.channels.index import channels_in, inside, touches, unpaired
from mmprune_gates.channels.kept import Kept, kept_of
from mmprune_gates.channels.workload import Workload

OUTPUT = 'an output of the model'  # why the channels of the model's outputs are frozen


@dataclass(frozen=True)
class Layer:
    """Coverage of one convolution or linear layer.

    Attributes:
        name: Module path.
        kind: ``conv``, ``depthwise conv``, ``linear``, or ``unused``.
        weight: Name of its weight.
        out_dim: Dimension of the weight that makes channels.
        macs: Multiply-accumulates of the whole layer, batch 1; 0 outside the inference graph.
        out_groups: Groups its output channels belong to.
        in_groups: Groups its input channels belong to.
        out_frozen: None, or why no output channel can be removed.
        in_frozen: None, or why no input channel can be removed.
    """

    name: str
    kind: str
    weight: str
    out_dim: int
    macs: int
    out_groups: tuple[str, ...]
    in_groups: tuple[str, ...]
    out_frozen: str | None
    in_frozen: str | None

    @property
    def prunable(self) -> bool:
        """Whether the layer can lose outputs or inputs."""
        return self.out_frozen is None or self.in_frozen is None


@dataclass(frozen=True)
class ChannelGraph:
    """All channels of a model, numbered group after group.

    For ``Sequential(Conv2d(3, 8, 3), BatchNorm2d(8), ReLU(), Conv2d(8, 4, 1))`` there are two groups: ``'0'``
    with 8 channels, whose slots are dimension 0 of ``0.weight``, ``0.bias``, ``1.weight``, ``1.bias``,
    ``1.running_mean``, ``1.running_var`` and dimension 1 of ``3.weight``; and ``'3'`` with 4, frozen: an output.

    Attributes:
        groups: Groups in order of execution, frozen ones included.
        slots: Parameter or buffer name -> dimension -> (size of that dimension,) channel at each position, -1
            where a position belongs to no group.
        layers: Coverage of every convolution and linear layer, in order of execution, then the unused ones.
        reads: Where channels are read: by layers and products in order of execution, then by full-width modules.
        sites: Norms and layers whose output a gate can scale, in order of execution.
        blocks: Residual blocks in order of execution, with or without gates of their own.
        filters: (num_channels,) filters that go with each channel: rows of weights that make it or pass it on.
        tainted: Module path of a site -> channels in its output that are also used where they do not scale with a gate.
        shared: Names of parameters and buffers that the code of several modules uses.
        unreached: Paths of modules with parameters of their own that no traced pass uses.
        cost: Multiply-accumulates of inference as a function of the kept channels.
        workload: The ops of inference, for other kinds of cost.
        seen: Channels, some of them heads, that modules view in another shape.
        guessed: Channels along the dimension taken to shrink where a view cuts them and does not say which does.
        follows: Module attributes that hold a number of channels, and follow when some go.
    """

    groups: tuple[Group, ...]
    slots: Mapping[str, Mapping[int, Tensor]]
    layers: tuple[Layer, ...]
    reads: tuple[Read[Tensor], ...]
    sites: tuple[Site[Tensor], ...]
    blocks: tuple[Block, ...]
    filters: Tensor
    tainted: Mapping[str, Tensor]
    shared: frozenset[str]
    unreached: tuple[str, ...]
    cost: Cost
    workload: Workload
    seen: tuple[Seen, ...] = ()
    guessed: tuple[Tensor, ...] = ()
    follows: tuple[Follow, ...] = ()

    @cached_property
    def full_width(self) -> dict[str, FullWidth[Tensor]]:
        """Module path -> its read, for each module that computes across channels and keeps its full width."""
        return {read.layer: read for read in self.reads if isinstance(read, FullWidth)}

    @property
    def num_channels(self) -> int:
        """Number of channels in all groups."""
        return sum(group.size for group in self.groups)

    @property
    def free(self) -> tuple[Group, ...]:
        """Groups whose channels can be removed."""
        return tuple(group for group in self.groups if group.frozen is None)

    @property
    def channel_groups(self) -> tuple[Group, ...]:
        """Groups that do not stand for residual blocks."""
        return tuple(group for group in self.groups if not group.is_block)

    @property
    def free_channels(self) -> tuple[Group, ...]:
        """Free groups that do not stand for residual blocks."""
        return tuple(group for group in self.channel_groups if group.frozen is None)

    @property
    def gated_blocks(self) -> tuple[Block, ...]:
        """Residual blocks that can be closed by a gate of their own."""
        return tuple(block for block in self.blocks if block.gate is not None)

    @property
    def lasts(self) -> frozenset[str]:
        """Names of the groups whose channels may all go, each the last of a residual block."""
        return frozenset(block.last for block in self.blocks if block.last is not None)

    @property
    def classifiers(self) -> tuple[str, ...]:
        """Module paths of the layers whose output is an output of the model."""
        return tuple(layer.name for layer in self.layers if layer.out_frozen == OUTPUT)

    def holding(self, indices: Iterable[Tensor]) -> Tensor:
        """(num_channels,) bool: the channels in any of several indices."""
        found = torch.zeros(self.num_channels, dtype=torch.bool)
        for index in indices:
            found[channels_in(index)] = True
        return found

    def group(self, name: str) -> Group:
        """The group of that name.

        Raises:
            KeyError: There is none.
        """
        found = next((group for group in self.groups if group.name == name), None)
        if found is None:
            raise KeyError(f'no channel group {name!r}; groups: {", ".join(g.name for g in self.groups)}')
        return found

    def reads_of(self, group: Group) -> list[Read[Tensor]]:
        """Where channels of a group are read."""
        return [read for read in self.reads if touches(read.index, group)]

    def products(self, group: Group) -> list[Summed]:
        """Products of activations that sum over channels of a group."""
        found = []
        for read in self.reads:
            if isinstance(read, Summed) and touches(read.index, group):  # in this order: most reads are no products
                found.append(read)
        return found

    def rows(self, group: Group) -> int:
        """Smallest number of weight rows or columns that one channel of a group takes up in any layer.

        Usually 1; if each channel is a whole head, the rows of the head.
        """
        found = []
        for layer in self.layers:
            for index in self.slots.get(layer.weight, {}).values():
                channels = channels_in(index)
                own = channels[inside(channels, group)]
                found += own.unique(return_counts=True)[1].tolist()
        return min(found, default=1)

    def dims(self) -> frozenset[str]:
        """Names of the groups of channels of heads whose heads can go as well."""
        found: set[int] = set()
        for dims in self.slots.values():
            for index in dims.values():
                _, second = unpaired(index)
                found.update(second.tolist())
        return frozenset(group.name for group in self.groups if group.start in found)

    def with_frozen(self, reasons: Mapping[str, str]) -> ChannelGraph:
        """The graph with further groups frozen.

        Args:
            reasons: Group name -> why none of its channels can be removed.
        """
        groups = tuple(replace(group, frozen=group.frozen or reasons.get(group.name)) for group in self.groups)
        frozen = {group.name: group.frozen for group in groups}

        def side(names: tuple[str, ...], reason: str | None) -> str | None:
            own = [frozen.get(name) for name in names]
            if reason or not own or None in own:
                return reason
            return own[0]

        layers = tuple(
            replace(
                layer,
                out_frozen=side(layer.out_groups, layer.out_frozen),
                in_frozen=side(layer.in_groups, layer.in_frozen),
            )
            for layer in self.layers
        )
        blocks = []
        whole = []
        for block in self.blocks:
            stays = reasons.get(block.name)
            blocks.append(replace(block, gate=None) if stays else block)
            if block.last and any(map(reasons.get, block.inner)):
                whole.append(block.last)
        graph = replace(self, groups=groups, layers=layers, blocks=tuple(blocks))
        return graph.without_emptying(whole)

    def without_emptying(self, names: Container[str]) -> ChannelGraph:
        """The graph in which each of the named groups must keep at least one channel."""
        blocks = []
        for block in self.blocks:
            last = None if block.last in names else block.last
            blocks.append(replace(block, last=last))
        return replace(self, blocks=tuple(blocks))

    def kept(self, masks: Mapping[str, Tensor] | None = None) -> Kept:
        """Check masks and return them as a :class:`Kept`; a :class:`Kept` of this graph is returned unchanged.

        Args:
            masks: Group name -> (size,) bool, True = keep; groups not named are kept whole.

        Raises:
            ValueError: An unknown or frozen group, a mask of the wrong size, or one that keeps nothing where something
                must stay.
        """
        if isinstance(masks, Kept) and masks.groups is self.groups:
            return masks
        return kept_of(self.groups, self.blocks, masks or {})

    def keeping(self, vector: Tensor) -> Kept:
        """A :class:`Kept` from a (num_channels,) bool vector, without any check."""
        return Kept(self.groups, self.blocks, vector)

    def without_inner(self, kept: Kept) -> Kept:
        """``kept`` less everything that occurs only inside closed or emptied blocks."""
        gone = {*kept.closed, *kept.emptied}
        within = torch.zeros(self.num_channels, dtype=torch.bool)
        outside = within.clone()
        for name, dims in self.slots.items():
            held = within if any(block.holds(name) for block in gone) else outside
            for index in dims.values():
                held[channels_in(index)] = True
        leaves = within & ~outside
        for group in self.groups:
            leaves[group.span] &= group.frozen is None
        for block in self.gated_blocks:
            leaves[block.gate] = any(block.is_inside(other) for other in gone if other is not block)
        return self.keeping(kept.vector & ~leaves)

    def macs(self, kept: Mapping[str, Tensor] | None = None) -> int:
        """Multiply-accumulates of inference at batch 1 and the traced input size (multiply-add = 1).

        Args:
            kept: Group name -> (size,) bool, True = keep; groups not named are kept whole.
        """
        vector = self.kept(kept).vector
        return round(float(self.cost(vector.double())))

    def prunable_macs(self) -> int:
        """MACs that go if every free channel goes, not counting those that only go with whole blocks."""
        value = torch.ones(self.num_channels, dtype=torch.double)
        for group in self.free_channels:
            value[group.span] = 0
        return self.macs() - round(float(self.cost(value)))
