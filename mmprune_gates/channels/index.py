"""Which channel stands at each position of a dimension.

An index holds an entry for each position: the number of a channel, -1 for none, or a pair of channels. A position with
a pair stays only if both channels do: an output of attention needs its head and its channel of the heads. Where
channels have values, such a position has the product of the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from mmprune_gates.channels.groups import Group

PAIR = 2**31  # more than there are channels; an entry is first + PAIR * (second + 1)


def paired(first: Tensor, second: Tensor) -> Tensor:
    """Entries for pairs of channels; if one of them is -1, for the other alone."""
    pair = first + PAIR * (second + 1)
    return torch.where(first < 0, second, pair)


def unpaired(index: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the second channel of each entry; -1 if there is none."""
    entry = index.clamp_min(0)
    first = torch.where(index < 0, -1, entry % PAIR)
    return first, entry // PAIR - 1


def has_pairs(index: Tensor) -> bool:
    """Whether an index holds pairs."""
    return bool((index >= PAIR).any())


def channels_in(index: Tensor) -> Tensor:
    """The channels of all entries; both channels of a pair."""
    both = torch.cat(unpaired(index.flatten()))
    return both[both >= 0]


def at(values: Tensor, index: Tensor) -> Tensor:
    """The value of each entry: of its channel, the product for a pair, 1 (or True) for no channel."""
    return product_at(values, *places(index))


def places(index: Tensor) -> tuple[Tensor, ...]:
    """The first channel of each entry and, if there are pairs, the second."""
    first, second = unpaired(index)
    return (first, second) if has_pairs(index) else (first,)


def product_at(values: Tensor, *channels: Tensor) -> Tensor:
    """The product of the values at each vector of channels; -1 counts as 1 (or True)."""
    one_or_true = values.new_ones(1)
    extended = torch.cat([values, one_or_true])
    first, *others = [extended[one.to(values.device)] for one in channels]
    for other in others:
        first = first * other
    return first


def renumbered(index: Tensor, numbers: Tensor) -> Tensor:
    """The index with ``numbers[i]`` in place of channel i; -1 takes a channel out of its entry."""
    extended = torch.cat([numbers, numbers.new_full((1,), -1)])
    first, second = unpaired(index)
    return paired(extended[first], extended[second])


def only(index: Tensor, stays: Tensor) -> Tensor:
    """The index without some channels.

    Args:
        index: The index.
        stays: (num_channels,) bool, False for channels to be taken out of their entries.
    """
    numbers = torch.arange(len(stays))
    return renumbered(index, numbers.masked_fill(~stays, -1))


def inside(index: Tensor, group: Group) -> Tensor:
    """Bool of the shape of ``index``: which entries hold a channel of a group."""
    stop = group.start + group.size
    found = torch.zeros_like(index, dtype=torch.bool)
    for channels in unpaired(index):
        found |= (channels >= group.start) & (channels < stop)
    return found


def touches(index: Tensor, group: Group) -> bool:
    """Whether an index holds channels of a group."""
    return bool(inside(index, group).any())


@dataclass
class Distinct:
    """Indices, equal ones once.

    Attributes:
        each: The indices.
        numbers: The bytes of each -> its place.
    """

    each: list[Tensor] = field(default_factory=list)
    numbers: dict[bytes, int] = field(default_factory=dict)

    def number(self, index: Tensor) -> int:
        """The place of an index, which is added unless there is an equal one."""
        number = self.numbers.setdefault(index.numpy().tobytes(), len(self.each))
        if number == len(self.each):
            self.each.append(index)
        return number


@dataclass(frozen=True)
class Vectors:
    """Several indices: how many of their channels are kept.

    Attributes:
        each: The indices.
    """

    each: tuple[Tensor, ...]

    @cached_property
    def flat(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """The :func:`places` of all indices, concatenated, and (C,) the number of the one each entry belongs to."""
        nothing = torch.zeros(0, dtype=torch.long)
        index = torch.cat([nothing, *self.each])
        lengths = [len(one) for one in self.each]
        times = torch.tensor(lengths, dtype=torch.long)
        numbers = torch.arange(len(times))
        owner = torch.repeat_interleave(numbers, times)
        return places(index), owner

    def counts(self, value: Tensor) -> Tensor:
        """(#indices,) number of entries kept in each when channel i counts by ``value[i]``; differentiable."""
        channels, owner = self.flat
        none = value.new_zeros(len(self.each))
        return none.index_add(0, owner.to(value.device), product_at(value, *channels))

    def narrowed(self, index: Callable[[Tensor], Tensor]) -> Vectors:
        """The indices with fewer channels; ``index`` maps one to that of the channels that stay."""
        return Vectors(tuple(map(index, self.each)))
