"""Turn classes of ids into consecutively numbered channels, and channels that own the same slots into groups."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from mmprune_gates.channels.blocks import Branch
from mmprune_gates.channels.flow import Flow
from mmprune_gates.channels.groups import Group
from mmprune_gates.channels.index import channels_in, paired
from mmprune_gates.channels.labels import Ids

ALONE = 'all channels go together, so none can go'

Parts = Callable[[Ids], dict[int, int]]


@dataclass(frozen=True)
class Numbering:
    """Maps ids to channel numbers.

    Attributes:
        groups: Groups of channels in order of execution.
        gates: Groups of one channel each, which stand for the residual blocks.
        classes: (num_ids,) class of each id.
        number_of: Entry of an index for each class: channel number, or pair of them; -1 if no layer makes it and it
            stands for no block.
        reasons: Class -> why it is frozen.
    """

    groups: tuple[Group, ...]
    gates: tuple[Group, ...]
    classes: Ids
    number_of: Ids
    reasons: dict[int, str]

    @property
    def num_channels(self) -> int:
        """Number of channels in all groups."""
        return len(self.group_of)

    def channels(self, ids: Ids) -> Tensor:
        """Entry of an index for each id."""
        classes = self.classes[ids]
        return torch.from_numpy(self.number_of[classes])

    @cached_property
    def group_of(self) -> Ids:
        """(num_channels,) group number of each channel."""
        sizes = [group.size for group in (*self.groups, *self.gates)]
        numbers = np.arange(len(sizes))
        return np.repeat(numbers, sizes)

    def groups_in(self, index: Tensor) -> list[int]:
        """Numbers of the groups that have channels in an index, ascending."""
        present = channels_in(index).numpy()
        return np.unique(self.group_of[present]).tolist()

    def why_frozen(self, ids: Ids) -> str | None:
        """Why none of these channels can be removed; None if at least one can."""
        classes = self.classes[ids].tolist()
        reasons = [self.reasons.get(number) for number in classes]
        if None in reasons:
            return None
        return reasons[0]


def number_channels(flow: Flow, branches: Sequence[Branch]) -> Numbering:
    """Number the channels in order of execution, group after group, then the gates of residual blocks."""
    classes = flow.classes()
    pairs = flow.pairs(classes)
    parts = partial(_parts, classes, pairs)
    reasons = _freeze_reasons(flow, parts)
    makers = _makers(flow, parts)
    members = _with_same_slots(flow, parts, makers, reasons)
    number_of = np.full(flow.num_ids + 1, -1)
    names = _numbered(makers[numbers[0]] for numbers in members)
    groups = []
    start = 0
    for name, numbers in zip(names, members, strict=True):
        first = numbers[0]
        if len(numbers) == 1:
            reasons.setdefault(first, ALONE)  # at least one must stay
        group = Group(name, len(numbers), reasons.get(first), start)
        groups.append(group)
        number_of[numbers] = np.arange(start, start + group.size)
        start += group.size
    _number_pairs(number_of, pairs, reasons)
    gates = []
    for branch in branches:
        if branch.gate is not None:
            number_of[classes[branch.gate]] = start
            gates.append(Group(branch.block.name, 1, None, start, is_block=True))
            start += 1
    return Numbering(tuple(groups), tuple(gates), classes, number_of, reasons)


def with_own_names(branches: Sequence[Branch]) -> list[Branch]:
    """The branches with unique block names."""
    names = _numbered(branch.block.name for branch in branches)
    found = []
    for branch, name in zip(branches, names, strict=True):
        block = replace(branch.block, name=name)
        found.append(replace(branch, block=block))
    return found


def _numbered(names: Iterable[str]) -> list[str]:
    """The names, made unique: repetitions get ``#2``, ``#3`` and so on."""
    counts: Counter[str] = Counter()
    found = []
    for name in names:
        counts[name] += 1
        if counts[name] > 1:
            name = f'{name}#{counts[name]}'
        found.append(name)
    return found


def _parts(classes: Ids, pairs: Mapping[int, tuple[int, int]], ids: Ids) -> dict[int, int]:
    """The classes of ids -> 0; for one that stands for a pair, the first class -> 0, the second -> 1."""
    numbers = dict.fromkeys(classes[ids].tolist(), 0)
    if pairs.keys().isdisjoint(numbers):
        return numbers
    found: dict[int, int] = {}
    for number in numbers:
        parts = pairs.get(number, (number,))
        for place, part in enumerate(parts):
            found.setdefault(part, place)
    return found


def _number_pairs(number_of: Ids, pairs: Mapping[int, tuple[int, int]], reasons: dict[int, str]) -> None:
    """Set the entries of classes that stand for pairs, and why they stay if neither channel can go."""
    own = list(pairs)
    both = list(pairs.values())
    parts = np.array(both, dtype=np.int64).reshape(-1, 2)
    numbers = torch.from_numpy(number_of[parts])
    first_of, second_of = numbers.unbind(1)
    number_of[own] = paired(first_of, second_of)
    for number, (first, second) in pairs.items():
        if first in reasons and second in reasons:
            reasons[number] = reasons[first]


def _freeze_reasons(flow: Flow, parts: Parts) -> dict[int, str]:
    """Class -> why it is frozen; the first reason found stands."""
    reasons: dict[int, str] = {}
    for ids, reason in flow.frozen:
        for number in parts(ids):
            reasons.setdefault(number, reason)
    return reasons


def _with_same_slots(flow: Flow, parts: Parts, numbers: Iterable[int], reasons: dict[int, str]) -> list[list[int]]:
    """Classes grouped by the slots they own and the reason they are frozen, if any."""
    alike = np.zeros(flow.num_ids + 1, dtype=np.int64)  # class -> number of the classes with the same slots so far
    for value in flow.tensors.values():
        for axis in value.axes:
            place_of = parts(axis.ids)
            owners = np.fromiter(place_of, np.int64)
            places = np.fromiter(place_of.values(), np.int64)
            _, own = np.unique(2 * alike[owners] + places, return_inverse=True)
            alike[owners] = own + alike.max() + 1
    members = defaultdict(list)
    for number in numbers:
        key = alike[number], reasons.get(number)
        members[key].append(number)
    return list(members.values())


def _makers(flow: Flow, parts: Parts) -> dict[int, str]:
    """Class -> the first layer that makes it, in order of execution."""
    makers: dict[int, str] = {}
    for weight, use in flow.layers.items():
        made = flow.tensors[weight].along(use.out_dim)
        if made is None or use.in_dim is None:  # a depthwise convolution makes no channels of its own
            continue
        for number in parts(made.ids):
            makers.setdefault(number, use.layer or weight)  # a weight of the model itself has no layer
    return makers
