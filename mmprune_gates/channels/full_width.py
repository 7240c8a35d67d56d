"""Modules that compute across channels and can keep their full width where all around them becomes narrower.

Removing a channel changes the statistics of a layer norm, a group norm or a global response norm. But behind closed
gates such a module reads exact zeros, and what it makes of them is dropped; it can do the same in a slim model. No rule
for single ops can say so: what counts is that a module without submodules turns one tensor into one of the same shape.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import fx

from mmprune_gates.channels.flow import Flow, FullWidth
from mmprune_gates.channels.labels import GATED, LOST, Value
from mmprune_gates.channels.op import UNKNOWN, is_inplace, module_path, shapes

UNLIKE = 'called in different ways by a module that computes across channels'
INFINITE = 'not finite where channels are zero, by a module that computes across channels'
OWN = 'held by a module that keeps its full width'


@dataclass(frozen=True)
class Call:
    """One call of a module without submodules, which turns one tensor into one of the same shape.

    Attributes:
        module: Path of the module.
        nodes: Its ops in order of execution; the last one makes its result.
        entry: The tensor it reads.
        constants: Parameters and buffers that it reads.
    """

    module: str
    nodes: tuple[fx.Node, ...]
    entry: fx.Node
    constants: frozenset[fx.Node]


def find_calls(flow: Flow, graph: fx.Graph, constants: Collection[fx.Node]) -> list[Call]:
    """Calls of modules without submodules that turn one tensor into one of the same shape, in order of execution.

    Args:
        flow: Counts the calls of all modules without submodules, and knows which modules take and return one tensor.
        graph: The graph.
        constants: Its parameters and buffers.
    """
    found = []
    for nodes in _innermost_calls(graph):
        module = flow.canonical(module_path(nodes[-1]))
        flow.calls[module] += 1
        if module not in flow.odd:
            found += _same_shape_call(module, nodes, constants)
    return found


def _innermost_calls(graph: fx.Graph) -> list[list[fx.Node]]:
    """The ops of each module call that calls no other module."""
    ops, outer = defaultdict(list), set()
    for node in graph.nodes:
        around = list(node.meta.get('nn_module_stack') or ())
        if node.op == 'call_function' and around:
            ops[around[-1]].append(node)
            outer.update(around[:-1])
    return [nodes for call, nodes in ops.items() if call not in outer]


def _same_shape_call(module: str, nodes: list[fx.Node], constants: Collection[fx.Node]) -> list[Call]:
    """These ops as a call, or nothing unless they turn one tensor into one of the same shape."""
    own = set(nodes)
    sources = {source for node in nodes for source in node.all_input_nodes} - own
    read = sources.intersection(constants)
    entries = sources - read
    results = [node for node in nodes if not own.issuperset(node.users)]
    if len(entries) != 1 or results != nodes[-1:] or any(map(is_inplace, nodes)):
        return []
    (entry,) = entries
    shape = shapes(entry)[0]
    if shape != shapes(nodes[-1])[0] or UNKNOWN in shape:
        return []
    return [Call(module, tuple(nodes), entry, frozenset(read))]


def computes_across(draft: Flow, entry: Value | list[Value]) -> bool:
    """Whether the rules for its ops freeze the channels that a module reads.

    Args:
        draft: What the rules recorded for a call of the module.
        entry: Labels of the tensor that the call reads.
    """
    if isinstance(entry, list) or len(entry.axes) != 1 or draft.layers:
        return False
    (axis,) = entry.axes
    return any(np.isin(ids, axis.ids).any() for ids, _ in draft.frozen)


def keep_whole(flow: Flow, call: Call, values: dict[fx.Node, Value], batch: int) -> None:
    """Let a module keep its full width: its output carries the channels of its input, at the same places.

    Args:
        flow: Records the call.
        call: The call.
        values: Labels of all tensors so far; those of the call's ops are replaced.
        batch: Batch size of the traced input.
    """
    entry = values[call.entry]
    (axis,) = entry.axes
    read = FullWidth(
        layer=call.module,
        dim=-1 if axis.dim == len(entry.shape) - 1 else axis.dim,
        index=axis.ids,
        gated=torch.from_numpy(axis.state == GATED),
        sites=axis.sites,
        input_size=prod(entry.shape) / batch,
        shape=entry.shape,
    )
    flow.full_width[call.module].append(read)
    for constant in call.constants:
        flow.freeze(values[constant].axes, f'{OWN} ({call.module})')
    for node in call.nodes:
        values[node] = Value(shapes(node)[0])
    values[call.nodes[-1]] = Value(entry.shape, (axis.known(LOST),))


def settle(flow: Flow) -> None:
    """Tie the channels of all calls of each module that keeps its full width; freeze those for which it cannot."""
    for path, calls in flow.full_width.items():
        first, *others = calls
        alike = all(call.dim == first.dim and len(call.index) == len(first.index) for call in others)
        if path in flow.odd or len(calls) != flow.calls[path] or not alike:
            _freeze_calls(flow, calls, f'{UNLIKE} ({path})')
        elif not _is_finite(flow, first):
            _freeze_calls(flow, calls, f'{INFINITE} ({path})')
        else:
            for call in others:
                flow.unite(first.index, call.index)


def _freeze_calls(flow: Flow, calls: list[FullWidth], reason: str) -> None:
    """Freeze the channels that a module reads, in all its calls."""
    flow.frozen.extend((call.index, reason) for call in calls)


@torch.no_grad()
def _is_finite(flow: Flow, call: FullWidth) -> bool:
    """Whether a module's output stays finite when all channels, or every other one, are zero."""
    module = copy.deepcopy(flow.model.get_submodule(call.layer)).eval()
    args, kwargs = flow.plain[call.layer]
    tensors = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
    like = tensors[0] if tensors else torch.zeros(())
    x = torch.randn(call.shape, generator=torch.Generator().manual_seed(0)).to(like)
    every_other = torch.arange(0, x.shape[call.dim], 2, device=x.device)
    inputs = (x.index_fill(call.dim, every_other, 0), torch.zeros_like(x))
    return all(bool(module(value, *args, **kwargs).isfinite().all()) for value in inputs)
