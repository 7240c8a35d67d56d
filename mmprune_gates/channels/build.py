"""From what the walk found to the channel graph: classes of ids become channels, equal slots become groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from mmprune_gates.channels.cost import Cost
from mmprune_gates.channels.graph import Block, ChannelGraph, FullWidth, Group, Layer, Read, Site
from mmprune_gates.channels.labels import GATED, Flow, Use

WEIGHTED = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)

Channels = Callable[[np.ndarray], Tensor]  # ids to numbers of channels
BLOCK = '@block'  # behind the name of a group that stands for a residual block
BLOCKS_ONLY = 'only whole blocks are pruned'
ALONE = 'all channels go together, so none can go'


def build_graph(flow: Flow, model: nn.Module, prune_channels: bool = True) -> ChannelGraph:
    """The channel graph of a model whose exported graphs have been walked.

    Args:
        flow: What the walks found.
        model: The model.
        prune_channels: Whether channels may go, or only blocks.
    """
    if not prune_channels:
        flow.freeze([axis for value in flow.tensors.values() for axis in value.axes], BLOCKS_ONLY)
    classes = flow.classes()
    reasons = freeze_reasons(flow, classes)
    groups, channel_of = number_channels(flow, classes, reasons)
    with_gates = number_blocks(flow, classes, channel_of, int(starts(groups)[-1]))

    def channels(ids: np.ndarray) -> Tensor:
        return torch.from_numpy(channel_of[classes[ids]])

    slots = {
        name: found
        for name, value in flow.tensors.items()
        if (found := {a.dim: c for a in value.axes if bool(((c := channels(a.ids)) >= 0).any())})
    }
    full_width = {name: FullWidth(calls[0].dim, channels(calls[0].axis.ids)) for name, calls in flow.full_width.items()}
    blocks = describe_blocks(flow, groups, slots, full_width, channels)
    lasts = {block.last for block in blocks}
    groups = tuple(replace(group, empties=group.name in lasts) for group in groups)
    groups += tuple(replace(group, block=block) for group, block in zip(with_gates, blocks, strict=False))
    cost = Cost.of([(t.layer, t.positions, [channels(f) for f in t.factors]) for t in flow.terms])
    return ChannelGraph(
        groups=groups,
        slots=slots,
        layers=coverage(flow, model, groups, slots, reasons, classes, cost),
        reads=describe_reads(flow, model, channels),
        sites=describe_sites(flow, model, slots),
        full_width=full_width,
        blocks=blocks,
        filters=count_filters(flow, groups, channels),
        tainted=frozenset(flow.tainted),
        unreached=unreached_modules(flow, model),
        cost=cost,
    )


def describe_reads(flow: Flow, model: nn.Module, channels: Channels) -> tuple[Read, ...]:
    """Where channels are read: by layers, and by modules that keep their full width."""
    by_layers = (
        Read(
            layer=read.layer,
            weight=read.weight,
            in_dim=flow.layers[read.weight].in_dim,
            dim=-1 if flow.layers[read.weight].kind == 'linear' else read.axis.dim,
            index=channels(read.axis.ids),
            gated=torch.from_numpy(read.axis.state == GATED),
            sites=read.axis.sites,
            input_size=read.input_size,
            weight_size=prod(flow.tensors[read.weight].shape),
            direct=is_direct(model, read.layer),
        )
        for read in flow.reads
    )
    by_others = (
        Read(
            layer=module,
            weight=None,
            in_dim=None,
            dim=call.dim,
            index=channels(call.axis.ids),
            gated=torch.from_numpy(call.axis.state == GATED),
            sites=call.axis.sites,
            input_size=call.input_size,
            weight_size=0,
            direct=True,
        )
        for module, calls in flow.full_width.items()
        for call in calls
    )
    return (*by_layers, *by_others)


def describe_sites(flow: Flow, model: nn.Module, slots) -> tuple[Site, ...]:
    """Where a gate can stand behind what makes channels."""
    return tuple(
        Site(
            module=module,
            weight_dim=site.weight_dim,
            out_dim=site.out_dim,
            index=slots[site.weight][site.weight_dim],
            output_size=site.output_size,
            weight_size=prod(flow.tensors[site.weight].shape),
            direct=is_direct(model, module),
        )
        for module, site in flow.sites.items()
        if site.weight_dim in slots.get(site.weight, {})
    )


def count_filters(flow: Flow, groups: tuple[Group, ...], channels: Channels) -> Tensor:
    """(num_channels,) rows of weights that make each channel or pass it on; of a block, all that it holds."""
    made = [channels(a.ids) for name, use in flow.layers.items() if (a := flow.tensors[name].along(use.out_dim))]
    made = torch.cat([torch.zeros(0, dtype=torch.long), *made])
    filters = torch.bincount(made[made >= 0], minlength=int(starts(groups)[-1]))
    for group in filter(lambda group: group.block, groups):
        within = [name for name in flow.layers if group.block.holds(name)]
        filters[group.start] = sum(flow.tensors[name].shape[flow.layers[name].out_dim] for name in within)
    return filters


def is_direct(model: nn.Module, path: str) -> bool:
    """Whether a module's input and output are those of its weight: a layer of torch, not a derived one."""
    return type(model.get_submodule(path)).forward.__module__.startswith('torch.nn.')


def freeze_reasons(flow: Flow, classes: np.ndarray) -> dict[int, str]:
    """Class -> why it is frozen; the first reason found stands."""
    reasons: dict[int, str] = {}
    for ids, reason in flow.frozen:
        for number in np.unique(classes[ids]).tolist():
            reasons.setdefault(number, reason)
    return reasons


def number_channels(flow: Flow, classes, reasons) -> tuple[tuple[Group, ...], np.ndarray]:
    """Groups in order of execution, and the channel number of every class (-1: made by no layer).

    A group of one channel gets its reason here.
    """
    slots_of = defaultdict(list)
    for name, value in flow.tensors.items():
        for axis in value.axes:
            for number in dict.fromkeys(classes[axis.ids].tolist()):
                slots_of[number].append((name, axis.dim))
    members: dict[tuple, list[int]] = {}
    makers: dict[tuple, str] = {}
    seen: set[int] = set()
    for weight, use in flow.layers.items():
        made = flow.tensors[weight].along(use.out_dim)
        if made is None or use.in_dim is None:
            continue
        for number in dict.fromkeys(classes[made.ids].tolist()):
            if number not in seen:
                seen.add(number)
                key = (*slots_of[number], reasons.get(number))
                members.setdefault(key, []).append(number)
                makers.setdefault(key, use.layer or weight)  # a weight of the model itself has no layer
    channel_of, groups, start, uses = np.full(flow.num_ids + 1, -1), [], 0, defaultdict(int)
    for key, numbers in members.items():
        uses[makers[key]] += 1
        suffix = f'#{uses[makers[key]]}' if uses[makers[key]] > 1 else ''
        if len(numbers) == 1:
            reasons.setdefault(numbers[0], ALONE)  # at least one must stay
        groups.append(Group(makers[key] + suffix, len(numbers), reasons.get(numbers[0]), start))
        channel_of[numbers] = np.arange(start, start + len(numbers))
        start += len(numbers)
    return tuple(groups), channel_of


def describe_blocks(flow: Flow, groups: tuple[Group, ...], slots, full_width, channels) -> tuple[Block, ...]:
    """All residual blocks, each with the groups that go with it and the one that makes it constant if it is empty."""
    used = {name: set().union(*(owners(groups, index) for index in dims.values())) for name, dims in slots.items()}
    used |= {name: owners(groups, module.index) for name, module in full_width.items()}
    free = {number for number, group in enumerate(groups) if group.frozen is None}
    blocks = []
    for name, branch in zip(block_names(flow), flow.branches, strict=True):
        index = channels(branch.tail.axis.ids) if branch.tail else torch.zeros(0, dtype=torch.long)
        block = Block(name, branch.modules, branch.sites, (), None, branch.tail, index)
        inner = free.difference(*(numbers for tensor, numbers in used.items() if not block.holds(tensor)))
        factors = ([owners(groups, channels(ids)) for ids in flow.terms[number].factors] for number in branch.terms)
        read = branch.tail and slots.get(branch.tail.weight, {}).get(flow.layers[branch.tail.weight].in_dim)
        last = set() if read is None or bool((read < 0).any()) else owners(groups, read)
        if len(last) == 1 and last <= inner and all(inner & set().union(*numbers) for numbers in factors):
            names = [groups[number].name for number in sorted(inner)]
            block = replace(block, inner=tuple(names), last=groups[last.pop()].name)
        blocks.append(block)
    return tuple(blocks)


def owners(groups: tuple[Group, ...], index: Tensor) -> set[int]:
    """Numbers of the groups that have channels in a vector."""
    present = index[index >= 0].numpy()
    return set(np.unique(np.searchsorted(starts(groups), present, side='right') - 1).tolist())


def number_blocks(flow: Flow, classes: np.ndarray, channel_of: np.ndarray, start: int) -> list[Group]:
    """One group of one channel for each residual block that has a gate, numbered from ``start``."""
    groups: list[Group] = []
    for name, ids in zip(block_names(flow), flow.block_ids, strict=False):
        channel_of[classes[ids]] = start + len(groups)
        groups.append(Group(name, 1, None, start + len(groups)))
    return groups


def block_names(flow: Flow) -> list[str]:
    """A name for each residual block; ``#2`` and so on where several have the same path."""
    paths = [f'{branch.name}{BLOCK}' for branch in flow.branches]
    return [f'{path}#{n}' if (n := paths[: i + 1].count(path)) > 1 else path for i, path in enumerate(paths)]


def coverage(flow: Flow, model, groups, slots, reasons, classes, cost: Cost) -> tuple[Layer, ...]:
    """Every convolution and linear layer: what it costs, its groups, and why a side of it is frozen."""
    macs = defaultdict(float)
    for layer, value in zip(cost.layers, cost.per_op(torch.ones(starts(groups)[-1], dtype=torch.double)), strict=True):
        macs[layer] += float(value)

    def side(weight: str, dim: int | None) -> tuple[tuple[str, ...], str | None]:
        if dim is None:
            return (), 'depthwise: reads and makes the same channels'
        axis = flow.tensors[weight].along(dim)
        if axis is None:
            return (), 'a single channel'
        index = slots.get(weight, {}).get(dim, torch.zeros(0, dtype=torch.long))
        why = [reasons.get(number) for number in classes[axis.ids].tolist()]
        return tuple(groups[i].name for i in sorted(owners(groups, index))), None if None in why else why[0]

    def layer(weight: str, use: Use) -> Layer:
        (out_groups, out_frozen), (in_groups, in_frozen) = side(weight, use.out_dim), side(weight, use.in_dim)
        return Layer(use.layer, use.kind, round(macs[use.layer]), out_groups, in_groups, out_frozen, in_frozen)

    used = [layer(weight, use) for weight, use in flow.layers.items()]
    names = {found.name for found in used}
    reason = 'not reached by the traced forward'
    unused = [
        Layer(name, 'unused', 0, (), (), reason, reason)
        for name, module in model.named_modules()
        if isinstance(module, WEIGHTED) and name not in names
    ]
    return (*used, *unused)


def unreached_modules(flow: Flow, model: nn.Module) -> tuple[str, ...]:
    """Paths of the modules that hold parameters which no walk has met."""
    unused = (name for name, _ in model.named_parameters() if name not in flow.tensors)
    return tuple(dict.fromkeys(name.rpartition('.')[0] for name in unused))


def starts(groups: tuple[Group, ...]) -> np.ndarray:
    """First channel of each group, then the number of channels."""
    return np.cumsum([0, *(group.size for group in groups)])
