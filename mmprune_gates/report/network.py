"""Width and cost of every layer before and after a run, from the channel graph and the channels kept."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmprune_gates.channels import ChannelGraph
from mmprune_gates.channels.index import at
from mmprune_gates.engine.coverage import model_of_config
from mmprune_gates.engine.slim_report import kept_in
from mmprune_gates.report.run import TO_RECORD, Absent, Run


@dataclass(frozen=True)
class Width:
    """Output channels of a layer, before and after."""

    name: str
    stage: str
    before: int
    after: int


@dataclass(frozen=True)
class Network:
    """A model before and after.

    Attributes:
        widths: Widths of every convolution and linear layer that inference uses, in order of execution.
        costs: Stage -> MACs before and after, in order of execution.
        blocks: Names of the residual blocks that can go.
        gone: Names of those that are gone.
        input_shape: (C, H, W) that MACs are stated for.
        source: Where the kept channels are read from.
    """

    widths: list[Width]
    costs: dict[str, tuple[float, float]]
    blocks: list[str]
    gone: list[str]
    input_shape: tuple[int, ...]
    source: str


def network_of(run: Run) -> Network:
    """Trace the model of a run and compare it with what the run has kept of it.

    Raises:
        Absent: There is no config, no record of the kept channels, or only a record of another model.
    """
    config = run.need_config()
    if run.slim is None and not run.history:
        raise Absent(f'neither a slim model ({run.slim_error}) nor gates.jsonl: {TO_RECORD}')
    try:
        _, graph, shape = model_of_config(config)
    except Exception as error:  # models can be anybody's code
        raise Absent(f'the model of {run.config_path} cannot be built here: {first_line(error)}') from error
    if run.slim is not None:
        value = from_slim(graph, run.slim)
        source = 'slim.json'
    else:
        last = run.history[-1]
        value = from_history(graph, last['open'])
        source = f'gates at iteration {last["iter"]}'
    kept = graph.keeping(value != 0)
    gone = [block.name for block in graph.blocks if block in kept.closed or block in kept.emptied]
    return Network(
        widths=widths_of(graph, value, gone),
        costs=costs_of(graph, value),
        blocks=blocks_of(graph, run),
        gone=gone,
        input_shape=shape,
        source=source,
    )


def first_line(error: BaseException) -> str:
    """Type and first line of an error."""
    text = f'{type(error).__name__}: {str(error).strip()}'
    return text.split('\n')[0]


def from_slim(graph: ChannelGraph, slim: Mapping) -> Tensor:
    """(num_channels,) 1 for kept channels and 0 for others, from ``slim.json``.

    Raises:
        Absent: It belongs to another model.
    """
    try:
        return kept_in(graph, slim).vector.double()
    except ValueError as error:
        raise Absent(str(error)) from error


def from_history(graph: ChannelGraph, opened: Mapping[str, int]) -> Tensor:
    """(num_channels,) for each channel the open share of its group, from a line of ``gates.jsonl``.

    Raises:
        Absent: It belongs to another model.
    """
    free = {group.name: group for group in graph.free}
    value = torch.ones(graph.num_channels, dtype=torch.double)
    for name, count in opened.items():
        group = free.get(name)
        if group is None or count > group.size:
            raise Absent(f'gates.jsonl is of another model: it has {count} open channels of a group {name!r}')
        value[group.span] = count / group.size
    staying = graph.without_inner(graph.keeping(value != 0)).vector
    return torch.where(staying, value, 0.0)


def blocks_of(graph: ChannelGraph, run: Run) -> list[str]:
    """Names of the residual blocks that this run could remove: those with a gate, or that can be emptied."""
    units = run.need_config().model.get('units', 'channels')
    if units == 'channels':
        return [block.name for block in graph.blocks if block.last]
    return [block.name for block in graph.blocks]


def widths_of(graph: ChannelGraph, value: Tensor, gone: Container[str]) -> list[Width]:
    """Output channels of every layer that inference uses, where they are known.

    Args:
        graph: The graph.
        value: (num_channels,) 1 for kept channels, 0 for others, or a share.
        gone: Names of the blocks whose layers are gone.
    """
    removed = [block for block in graph.blocks if block.name in gone]
    widths = []
    for layer in graph.layers:
        index = graph.slots.get(layer.weight, {}).get(layer.out_dim)
        if index is None or not layer.macs:
            continue
        is_gone = any(block.holds(layer.name) for block in removed)
        kept = at(value, index).sum()
        after = 0 if is_gone else round(float(kept))
        widths.append(Width(layer.name, stage_of(layer.name), len(index), after))
    return widths


def costs_of(graph: ChannelGraph, value: Tensor) -> dict[str, tuple[float, float]]:
    """Stage -> MACs before and after."""
    before = graph.cost.per_layer(torch.ones_like(value))
    after = graph.cost.per_layer(value)
    costs: dict[str, tuple[float, float]] = {}
    for path, whole in before.items():
        stage = stage_of(path)
        old, new = costs.get(stage, (0, 0))
        costs[stage] = (old + whole, new + after[path])
    return costs


def stage_of(path: str) -> str:
    """The part of a model that a module path belongs to: a stage of the backbone, a neck or a head."""
    first, *rest = path.split('.')
    if first == 'backbone' and len(rest) > 1:
        return f'{first}.{rest[0]}'
    return first
