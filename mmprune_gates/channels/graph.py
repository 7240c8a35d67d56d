"""The channel graph: groups of channels, the parameter slots they own, what they cost, who reads them."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmprune_gates.channels.cost import Cost
from mmprune_gates.channels.flow import FullWidth, Read, Site
from mmprune_gates.channels.tails import Tail

Kept = Mapping[str, Tensor]
OUTPUT = 'an output of the model'  # why the channels of its outputs are frozen


@dataclass(frozen=True)
class Block:
    """A residual block: its branch can go as a whole, since the sum that it enters is exact without it.

    Attributes:
        name: ``PATH@block``, the path that its modules have in common.
        modules: Paths of the modules that go, in order of execution.
        sites: Paths of the modules whose output a gate on the block scales.
        inner: Names of the free groups that go with it.
        last: Name of the one among them that its last layer reads: where that is empty, the branch is a constant; None
            if it cannot be emptied.
        tail: How the constant follows.
        index: (C,) channels of the constant, -1 for none.
    """

    name: str
    modules: tuple[str, ...]
    sites: frozenset[str]
    inner: tuple[str, ...]
    last: str | None
    tail: Tail | None
    index: Tensor

    def holds(self, path: str) -> bool:
        """Whether a module, parameter or buffer goes with the block."""
        return within(path, self.modules)


@dataclass(frozen=True)
class Group:
    """Channels that own the same parameter slots; each is kept or removed on its own.

    Attributes:
        name: Module path of the first layer that makes them; ``#2`` and so on where a layer makes several groups.
        size: Number of channels.
        frozen: None, or why none of them can be removed.
        start: Position of the first one among all channels of the graph.
        block: None, or the residual block that the group's only channel stands for.
        empties: Whether none of its channels need stay: it is the last group of a residual block.
    """

    name: str
    size: int
    frozen: str | None
    start: int
    block: Block | None = None
    empties: bool = False

    @property
    def span(self) -> slice:
        """Where the group lies in a vector over all channels."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True)
class Layer:
    """Coverage of one convolution or linear layer.

    Attributes:
        name: Module path.
        kind: ``conv``, ``depthwise conv``, ``linear``, or ``unused``.
        macs: Multiply-accumulates of the whole layer, batch 1; 0 outside the inference graph.
        out_groups: Groups its output channels belong to.
        in_groups: Groups its input channels belong to.
        out_frozen: None, or why no output channel can be removed.
        in_frozen: None, or why no input channel can be removed.
    """

    name: str
    kind: str
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
        reads: Where channels are read, in order of execution.
        sites: Where a gate can stand behind what makes channels, in order of execution.
        full_width: Module path -> what it keeps, for each module that computes across channels.
        blocks: Residual blocks in order of execution, with gates of their own or without.
        filters: (num_channels,) filters that go with each channel: rows of weights that make it or pass it on.
        tainted: Module paths of sites whose output is also used where a gate would not pass unchanged.
        unreached: Module paths whose own parameters no traced pass uses.
        cost: Multiply-accumulates of inference as a function of what is kept.
    """

    groups: tuple[Group, ...]
    slots: Mapping[str, Mapping[int, Tensor]]
    layers: tuple[Layer, ...]
    reads: tuple[Read, ...]
    sites: tuple[Site, ...]
    full_width: Mapping[str, FullWidth]
    blocks: tuple[Block, ...]
    filters: Tensor
    tainted: frozenset[str]
    unreached: tuple[str, ...]
    cost: Cost

    @property
    def num_channels(self) -> int:
        """Channels in all groups."""
        return sum(group.size for group in self.groups)

    @property
    def free(self) -> tuple[Group, ...]:
        """Groups whose channels can be removed."""
        return tuple(group for group in self.groups if group.frozen is None)

    @property
    def classifiers(self) -> tuple[str, ...]:
        """Module paths of the layers whose output is an output of the model."""
        return tuple(layer.name for layer in self.layers if layer.out_frozen == OUTPUT)

    def group(self, name: str) -> Group:
        """The group of that name.

        Raises:
            KeyError: There is none.
        """
        found = next((group for group in self.groups if group.name == name), None)
        if found is None:
            raise KeyError(f'no channel group {name!r}; groups: {", ".join(g.name for g in self.groups)}')
        return found

    def with_frozen(self, reasons: Mapping[str, str]) -> ChannelGraph:
        """The graph with further groups frozen.

        Args:
            reasons: Group name -> why none of its channels can be removed.
        """
        groups = tuple(replace(group, frozen=group.frozen or reasons.get(group.name)) for group in self.groups)
        frozen = {group.name: group.frozen for group in groups}

        def side(names: tuple[str, ...], reason: str | None) -> str | None:
            return reason if reason or not names or None in map(frozen.get, names) else frozen[names[0]]

        layers = tuple(
            replace(
                layer,
                out_frozen=side(layer.out_groups, layer.out_frozen),
                in_frozen=side(layer.in_groups, layer.in_frozen),
            )
            for layer in self.layers
        )
        whole = [block.last for block in self.blocks if any(map(reasons.get, block.inner))]
        return replace(self, groups=groups, layers=layers).without_emptying(whole)

    def without_emptying(self, names: Container[str]) -> ChannelGraph:
        """The graph with at least one channel to stay in groups of these names."""
        groups = tuple(replace(group, empties=group.empties and group.name not in names) for group in self.groups)
        blocks = tuple(replace(block, last=None) if block.last in names else block for block in self.blocks)
        return replace(self, groups=groups, blocks=blocks)

    def flat(self, kept: Kept | None) -> Tensor:
        """(num_channels,) bool over all channels from masks per group; groups not named are kept whole.

        What stands idle in emptied blocks counts as removed, whatever its mask.

        Raises:
            ValueError: An unknown or frozen group, a mask of the wrong size, or one that keeps nothing.
        """
        known = {group.name: group for group in self.groups}
        vector = torch.ones(self.num_channels, dtype=torch.bool)
        for name, mask in (kept or {}).items():
            if name not in known:
                raise ValueError(f'kept names an unknown channel group {name!r}; groups: {", ".join(known)}')
            vector[known[name].span] = checked(known[name], mask)
        idle = self.idle(vector)
        for group in map(known.get, kept or {}):
            if not vector[group.span].any() and group.block is None and group not in idle:
                raise ValueError(
                    f'kept of group {group.name!r} removes all of its {group.size} channels; keep at least one'
                )
        return self.without_idle(vector)

    def emptied(self, vector: Tensor) -> list[Block]:
        """The blocks that are constant, as nothing of their last group is in a (num_channels,) bool vector."""
        return [block for block in self.blocks if block.last and not vector[self.group(block.last).span].any()]

    def idle(self, vector: Tensor) -> list[Group]:
        """The groups inside blocks that are emptied."""
        return [self.group(name) for block in self.emptied(vector) for name in block.inner]

    def without_idle(self, vector: Tensor) -> Tensor:
        """A (num_channels,) bool vector without the channels inside blocks that are emptied."""
        vector = vector.clone()
        for group in self.idle(vector):
            vector[group.span] = False
        return vector

    def by_group(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector over all channels, cut into one piece per free group."""
        return {group.name: vector[group.span] for group in self.free}

    def macs(self, kept: Kept | None = None) -> int:
        """Multiply-accumulates of inference at batch 1 and the traced input size (multiply-add = 1).

        Args:
            kept: Group name -> (size,) bool, True = keep; groups not named are kept whole.
        """
        return round(float(self.cost(self.flat(kept).double())))

    def prunable_macs(self) -> int:
        """MACs that would go if every free channel went; what only goes with whole blocks does not count."""
        value = torch.ones(self.num_channels, dtype=torch.double)
        for group in self.free:
            if group.block is None:
                value[group.span] = 0
        return self.macs() - round(float(self.cost(value)))


def within(path: str, modules: tuple[str, ...]) -> bool:
    """Whether a module, parameter or buffer is one of ``modules`` or below one."""
    return any(path == module or path.startswith(f'{module}.') for module in modules)


def inside(index: Tensor, group: Group) -> Tensor:
    """Which positions hold channels of a group."""
    return (index >= group.start) & (index < group.start + group.size)


def checked(group: Group, mask: Tensor) -> Tensor:
    """``mask`` as a bool vector on the CPU, if it is one the group allows.

    Raises:
        ValueError: It is not.
    """
    mask = torch.as_tensor(mask).bool().cpu()
    if mask.shape != (group.size,):
        raise ValueError(f'kept of group {group.name!r} has shape {tuple(mask.shape)}, expected ({group.size},)')
    if group.frozen is not None and not mask.all():
        raise ValueError(f'group {group.name!r} is frozen: {group.frozen}; it must be kept whole')
    return mask
