"""Classes of ids become channels with consecutive numbers; channels that own the same slots become groups."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mmprune_gates.channels.blocks import Branch
from mmprune_gates.channels.flow import Flow
from mmprune_gates.channels.groups import Group

ALONE = 'all channels go together, so none can go'


@dataclass(frozen=True)
class Numbering:
    """Which channel each id has become.

    Attributes:
        groups: Groups of channels in order of execution.
        gates: Groups of one channel each, which stand for the residual blocks.
        classes: (num_ids,) class of each id.
        number_of: Number of the channel that each class has become, -1 if no layer makes it.
        reasons: Class -> why it is frozen.
    """

    groups: tuple[Group, ...]
    gates: tuple[Group, ...]
    classes: np.ndarray
    number_of: np.ndarray
    reasons: dict[int, str]

    @property
    def num_channels(self) -> int:
        """Channels in all groups."""
        return sum(group.size for group in (*self.groups, *self.gates))

    def channels(self, ids: np.ndarray) -> Tensor:
        """Numbers of the channels that ids have become, -1 for none."""
        return torch.from_numpy(self.number_of[self.classes[ids]])

    @cached_property
    def group_of(self) -> np.ndarray:
        """(num_channels,) number of the group of each channel."""
        sizes = [group.size for group in (*self.groups, *self.gates)]
        return np.repeat(np.arange(len(sizes)), sizes)

    def groups_in(self, index: Tensor) -> list[int]:
        """Which groups have channels in a vector of channel numbers, in order."""
        present = index[index >= 0].numpy()
        return np.unique(self.group_of[present]).tolist()

    def why_frozen(self, ids: np.ndarray) -> str | None:
        """Why none of these channels can be removed; None if at least one can."""
        reasons = [self.reasons.get(number) for number in self.classes[ids].tolist()]
        return None if None in reasons else reasons[0]


def number_channels(flow: Flow, branches: Sequence[Branch]) -> Numbering:
    """Channels in order of execution, group after group; after them the gates of residual blocks."""
    classes = flow.classes()
    reasons = _freeze_reasons(flow, classes)
    makers = _makers(flow, classes)
    members = _with_same_slots(flow, classes, makers, reasons)
    number_of = np.full(flow.num_ids + 1, -1)
    groups: list[Group] = []
    start = 0
    for name, numbers in zip(_numbered(makers[first] for first, *_ in members), members, strict=True):
        size = len(numbers)
        if size == 1:
            reasons.setdefault(numbers[0], ALONE)  # at least one must stay
        groups.append(Group(name, size, reasons.get(numbers[0]), start))
        number_of[numbers] = np.arange(start, start + size)
        start += size
    gates: list[Group] = []
    for branch in branches:
        if branch.gate is not None:
            number_of[classes[branch.gate]] = start
            gates.append(Group(branch.block.name, 1, None, start, is_block=True))
            start += 1
    return Numbering(tuple(groups), tuple(gates), classes, number_of, reasons)


def named(branches: Sequence[Branch]) -> list[Branch]:
    """The branches, each with a name of its own for its block."""
    names = _numbered(branch.block.name for branch in branches)
    pairs = zip(branches, names, strict=True)
    return [replace(branch, block=replace(branch.block, name=name)) for branch, name in pairs]


def _numbered(names: Iterable[str]) -> list[str]:
    """The names, made unique: repetitions get ``#2``, ``#3`` and so on."""
    counts: Counter[str] = Counter()
    found = []
    for name in names:
        counts[name] += 1
        found.append(name if counts[name] == 1 else f'{name}#{counts[name]}')
    return found


def _freeze_reasons(flow: Flow, classes: np.ndarray) -> dict[int, str]:
    """Class -> why it is frozen; the first reason found stands."""
    reasons: dict[int, str] = {}
    for ids, reason in flow.frozen:
        for number in np.unique(classes[ids]).tolist():
            reasons.setdefault(number, reason)
    return reasons


def _with_same_slots(
    flow: Flow, classes: np.ndarray, numbers: Iterable[int], reasons: dict[int, str]
) -> list[list[int]]:
    """Classes grouped by the slots they own and the reason they are frozen for."""
    slots = defaultdict(list)
    for name, value in flow.tensors.items():
        for axis in value.axes:
            for number in set(classes[axis.ids].tolist()):
                slots[number].append((name, axis.dim))
    alike = defaultdict(list)
    for number in numbers:
        key = (*slots[number], reasons.get(number))
        alike[key].append(number)
    return list(alike.values())


def _makers(flow: Flow, classes: np.ndarray) -> dict[int, str]:
    """Class -> the first layer that makes it, in order of execution."""
    makers: dict[int, str] = {}
    for weight, use in flow.layers.items():
        made = flow.tensors[weight].along(use.out_dim)
        if made is None or use.in_dim is None:  # a depthwise convolution makes no channels of its own
            continue
        for number in classes[made.ids].tolist():
            makers.setdefault(number, use.layer or weight)  # a weight of the model itself has no layer
    return makers
