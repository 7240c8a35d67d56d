"""The kept channels of a model: one object from selection to slimming and its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mmprune_gates.channels.groups import Block, Group
from mmprune_gates.channels.index import at


@dataclass(frozen=True, eq=False)
class Kept(Mapping):
    """Which channels stay; a mapping from the names of the free groups to (size,) bool masks, True = keep.

    Attributes:
        groups: All groups of the graph.
        blocks: Its residual blocks.
        vector: (num_channels,) bool over all groups. Idle groups of emptied blocks count as removed, whatever the
            vector passed in says.
    """

    groups: tuple[Group, ...]
    blocks: tuple[Block, ...]
    vector: Tensor

    def __post_init__(self) -> None:
        vector = self.vector.clone()
        for group in self.idle:
            vector[group.span] = False
        object.__setattr__(self, 'vector', vector)

    def __getitem__(self, name: str) -> Tensor:
        """(size,) bool mask of a group."""
        return self.vector[self._by_name[name].span]

    def __iter__(self) -> Iterator[str]:
        return (group.name for group in self.groups if group.frozen is None)

    def __len__(self) -> int:
        return sum(group.frozen is None for group in self.groups)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Kept) and torch.equal(self.vector, other.vector)

    def at(self, index: Tensor) -> Tensor:
        """Bool of the shape of ``index``: which positions stay; positions of no channel (-1) always do."""
        return at(self.vector, index)

    @cached_property
    def emptied(self) -> tuple[Block, ...]:
        """The blocks that become constants, since no channel of their last group is kept."""
        found = []
        for block in self.blocks:
            if block.last is not None and not self[block.last].any():
                found.append(block)
        return tuple(found)

    @cached_property
    def idle(self) -> tuple[Group, ...]:
        """The groups inside emptied blocks."""
        return tuple(self._by_name[name] for block in self.emptied for name in block.inner)

    @property
    def closed(self) -> tuple[Block, ...]:
        """The blocks whose own gate is not kept."""
        gated = [block for block in self.blocks if block.gate is not None]
        return tuple(block for block in gated if not self.vector[block.gate])

    @property
    def staying(self) -> Tensor:
        """(num_channels,) bool: the channels of the model that is left, in which emptied blocks have no gate."""
        vector = self.vector.clone()
        for block in self.emptied:
            if block.gate is not None:
                vector[block.gate] = False
        return vector

    def indices(self) -> dict[str, list[int]]:
        """Free group -> indices of its kept channels, as a plain list."""
        return {name: mask.nonzero().flatten().tolist() for name, mask in self.items()}

    @cached_property
    def _by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}


def kept_of(groups: tuple[Group, ...], blocks: tuple[Block, ...], masks: Mapping[str, Tensor]) -> Kept:
    """Check masks and return them as a :class:`Kept`; groups not named are kept whole.

    Args:
        groups: All groups of a graph.
        blocks: Its residual blocks.
        masks: Group name -> (size,) bool, True = keep.

    Raises:
        ValueError: An unknown or frozen group, a mask of the wrong size, or one that keeps nothing where something must
            stay.
    """
    known = {group.name: group for group in groups}
    channels = sum(group.size for group in groups)
    vector = torch.ones(channels, dtype=torch.bool)
    for name, mask in masks.items():
        if name not in known:
            raise ValueError(f'kept names an unknown channel group {name!r}; groups: {", ".join(known)}')
        group = known[name]
        vector[group.span] = _checked(group, mask)
    kept = Kept(groups, blocks, vector)
    for name in masks:
        group = known[name]
        may_be_empty = group.is_block or group in kept.idle
        if not may_be_empty and not vector[group.span].any():
            raise ValueError(f'kept of group {name!r} removes all of its {group.size} channels; keep at least one')
    return kept


def _checked(group: Group, mask: Tensor) -> Tensor:
    """``mask`` as a bool vector on the CPU.

    Raises:
        ValueError: The mask has other values or the wrong size, or removes channels of a frozen group.
    """
    mask = torch.as_tensor(mask).cpu()
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f'kept of group {group.name!r} must be a mask, True or 1 where a channel stays: it has others')
    mask = mask.bool()
    if mask.shape != (group.size,):
        raise ValueError(f'kept of group {group.name!r} has shape {tuple(mask.shape)}, expected ({group.size},)')
    if group.frozen is not None and not mask.all():
        raise ValueError(f'group {group.name!r} is frozen: {group.frozen}; it must be kept whole')
    return mask
