"""Modules that compute across channels and can keep their full width where all around them becomes narrower.

Removing a channel changes the statistics of a layer norm, a group norm or a global response norm. But behind closed
gates such a module reads exact zeros, and what it makes of them is dropped; it can do the same in a slim model. No rule
for single ops can say so: what counts is that a module without submodules turns one tensor into one of the same shape.
"""

from __future__ import annotations

import copy
from collections import ChainMap, defaultdict
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from mmprune_gates.channels.calls import Options
from mmprune_gates.channels.labels import LOST, Axis, Flow, FullWidth, Value
from mmprune_gates.channels.op import UNKNOWN, is_inplace, module_path, shapes

Apply = Callable[[Flow, fx.Node, Mapping[fx.Node, Any]], Any]
UNLIKE = 'called in different ways by a module that computes across channels'
INFINITE = 'not finite where channels are zero, by a module that computes across channels'
OWN = 'held by a module that keeps its full width'


@dataclass(frozen=True)
class Call:
    """One call of a module without submodules, which turns one tensor into one of the same shape.

    Attributes:
        nodes: Its ops in order of execution; the last one makes its result.
        entry: The tensor it reads.
    """

    nodes: tuple[fx.Node, ...]
    entry: fx.Node


def find_calls(flow: Flow, graph: fx.Graph, constants: Container[fx.Node]) -> list[Call]:
    """Such calls in an exported graph, in order of execution.

    Args:
        flow: Counts the calls of all modules without submodules, and knows which modules take and return one tensor.
        graph: The graph.
        constants: Its parameters and buffers.
    """
    runs, outer = defaultdict(list), set()
    for node in graph.nodes:
        if node.op == 'call_function' and (stack := list(node.meta.get('nn_module_stack') or ())):
            runs[stack[-1]].append(node)
            outer.update(stack[:-1])
    calls = []
    for nodes in (nodes for name, nodes in runs.items() if name not in outer):
        module = flow.canonical(module_path(nodes[-1]))
        flow.calls[module] += 1
        if module in flow.odd:
            continue
        inside = set(nodes)
        entries = {source for node in nodes for source in node.all_input_nodes if source not in constants} - inside
        ends = [node for node in nodes if set(node.users) - inside]
        if len(entries) == 1 and ends == nodes[-1:] and not any(map(is_inplace, nodes)):
            entry = entries.pop()
            if shapes(entry)[0] == shapes(ends[0])[0] and UNKNOWN not in shapes(entry)[0]:
                calls.append(Call(tuple(nodes), entry))
    return calls


def keep_whole(flow: Flow, call: Call, values: Mapping[fx.Node, Any], apply: Apply, batch: int) -> Axis | None:
    """The output axis of a module that keeps its full width; None if the rules for its single ops do as well.

    Args:
        flow: What the walk has found so far; the call is noted in it unless the result is None.
        call: The call.
        values: Labels of all tensors before it.
        apply: Labels of the result of one op.
        batch: Batch size of the traced input.
    """
    entry = values[call.entry]
    axes = entry.axes if isinstance(entry, Value) else ()
    if len(axes) != 1:
        return None
    draft, own = flow.draft(), {}
    for node in call.nodes:
        own[node] = apply(draft, node, ChainMap(own, values))
    if draft.layers or not any(np.isin(ids, axes[0].ids).any() for ids, _ in draft.frozen):
        return None
    module = flow.canonical(module_path(call.nodes[-1]))
    dim = -1 if axes[0].dim == len(entry.shape) - 1 else axes[0].dim
    flow.full_width[module].append(FullWidth(dim, axes[0], entry.shape, prod(entry.shape) / batch))
    flow.terms += draft.terms
    sources = {source for node in call.nodes for source in node.all_input_nodes} - own.keys() - {call.entry}
    flow.freeze([axis for source in sources for axis in values[source].axes], f'{OWN} ({module})')
    return replace(axes[0], state=np.full_like(axes[0].state, LOST), sites=frozenset())


def settle(flow: Flow, model: nn.Module) -> None:
    """Tie the channels of all calls of each module that keeps its full width; freeze those for which it cannot."""
    for path, calls in flow.full_width.items():
        axes = [call.axis for call in calls]
        alike = len({(call.dim, len(call.axis.ids)) for call in calls}) == 1
        if path in flow.odd or len(calls) != flow.calls[path] or not alike:
            flow.freeze(axes, f'{UNLIKE} ({path})')
        elif not is_finite(model.get_submodule(path), calls[0], flow.plain[path]):
            flow.freeze(axes, f'{INFINITE} ({path})')
        else:
            for axis in axes[1:]:
                flow.unite(axes[0].ids, axis.ids)


@torch.no_grad()
def is_finite(module: nn.Module, call: FullWidth, options: Options) -> bool:
    """Whether a module's result is finite if all channels, or every other one, are zero."""
    like = next((x for x in (*module.parameters(), *module.buffers()) if x.is_floating_point()), torch.zeros(()))
    x = torch.randn(call.shape, generator=torch.Generator().manual_seed(0)).to(like)
    x.index_fill_(call.dim, torch.arange(0, x.shape[call.dim], 2, device=x.device), 0)
    module = copy.deepcopy(module).eval()
    args, kwargs = options
    return all(bool(module(value, *args, **kwargs).isfinite().all()) for value in (x, torch.zeros_like(x)))
