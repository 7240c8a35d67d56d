"""Modules that compute across channels and can keep their full width where all around them becomes narrower.

Removing a channel changes the statistics of a layer norm, a group norm or a global response norm. But behind closed
gates such a module reads exact zeros, and what it makes of them is dropped; it can do the same in a slim model. No rule
for single ops can say so: what counts is that a module without submodules turns one tensor into one of the same shape.
"""

from __future__ import annotations

from collections import ChainMap, defaultdict
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from torch import fx

from mmprune_gates.channels.labels import LOST, Axis, Flow, FullWidth, Value
from mmprune_gates.channels.op import is_inplace, module_path, shapes
from mmprune_gates.channels.pointwise import DIVIDES, NO_RULE

Apply = Callable[[Flow, fx.Node, Mapping[fx.Node, Any]], Any]
INFINITE = {NO_RULE, DIVIDES}  # what may be of a channel that is zero
UNLIKE = 'called in different ways by a module that computes across channels'


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
        flow: Counts the calls of all modules without submodules.
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
        flow.calls[flow.canonical(module_path(nodes[-1]))] += 1
        inside = set(nodes)
        entries = {source for node in nodes for source in node.all_input_nodes if source not in constants} - inside
        ends = [node for node in nodes if set(node.users) - inside]
        if len(entries) == 1 and ends == nodes[-1:] and not any(map(is_inplace, nodes)):
            entry = entries.pop()
            if shapes(entry)[0] == shapes(ends[0])[0]:
                calls.append(Call(tuple(nodes), entry))
    return calls


def keep_whole(flow: Flow, call: Call, values: Mapping[fx.Node, Any], apply: Apply, batch: int) -> Axis | None:
    """The output axis of a module that keeps its full width; None if the rules for its single ops do as well.

    Args:
        flow: What the walk has found so far; the call is noted in it.
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
    reasons = {reason.partition(' (')[0] for ids, reason in draft.frozen if np.isin(ids, axes[0].ids).any()}
    if draft.layers or not reasons or reasons & INFINITE:
        return None
    module = flow.canonical(module_path(call.nodes[-1]))
    dim = -1 if axes[0].dim == len(entry.shape) - 1 else axes[0].dim
    flow.full_width[module].append(FullWidth(dim, axes[0], prod(entry.shape) / batch))
    flow.terms += draft.terms
    return replace(axes[0], state=np.full_like(axes[0].state, LOST), sites=frozenset())


def settle(flow: Flow) -> None:
    """Tie the channels of all calls of each module that keeps its full width; freeze them where the calls differ."""
    for module, calls in flow.full_width.items():
        axes = [call.axis for call in calls]
        if len(calls) == flow.calls[module] and len({(call.dim, len(call.axis.ids)) for call in calls}) == 1:
            for axis in axes[1:]:
                flow.unite(axes[0].ids, axis.ids)
        else:
            flow.freeze(axes, f'{UNLIKE} ({module})')
