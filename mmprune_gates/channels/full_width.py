"""Full-width modules: they compute across channels, and can keep their width when the model around them gets narrower.

Removing a channel changes the statistics of a layer norm, a group norm or a global response norm. But behind closed
gates such a module reads exact zeros, and what it makes of them is dropped; it can do the same in a slim model. Rules
for single ops cannot express this: the module must have no submodules and turn one tensor into one of the same shape.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch.fx import Graph, Node

from mmprune_gates.channels.flow import Flow, FullWidth
from mmprune_gates.channels.labels import GATED, LOST, Axis, Ids, Value
from mmprune_gates.channels.op import UNKNOWN, is_inplace, module_path, shapes

UNLIKE = 'called in different ways by a module that computes across channels'
INFINITE = 'not finite where channels are zero, by a module that computes across channels'
ROWS = 'rows of a parameter, behind which a module computes across channels'
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
    nodes: tuple[Node, ...]
    entry: Node
    constants: frozenset[Node]


def find_calls(flow: Flow, graph: Graph, constants: Collection[Node]) -> list[Call]:
    """Calls of modules without submodules that turn one tensor into one of the same shape, in order of execution.

    Args:
        flow: Counts the calls of each module without submodules; knows which modules do not map tensor to tensor.
        graph: The graph.
        constants: Its parameters and buffers.
    """
    found = []
    for nodes in _innermost_calls(graph):
        module = flow.canonical(module_path(nodes[-1]))
        flow.calls[module] += 1
        call = _same_shape_call(module, nodes, constants)
        if call is not None and module not in flow.odd:
            found.append(call)
    return found


def _innermost_calls(graph: Graph) -> list[list[Node]]:
    """The ops of each module call that contains no call of another module."""
    ops = defaultdict(list)
    outer = set()
    for node in graph.nodes:
        around = list(node.meta.get('nn_module_stack') or ())
        if node.op == 'call_function' and around:
            innermost = around.pop()
            ops[innermost].append(node)
            outer.update(around)
    for call in outer:
        ops.pop(call, None)
    return list(ops.values())


def _same_shape_call(module: str, nodes: list[Node], constants: Collection[Node]) -> Call | None:
    """These ops as a call; None unless they turn one tensor into one of the same shape."""
    own = set(nodes)
    read = set()
    results = []
    for node in nodes:
        read.update(node.all_input_nodes)
        if not own.issuperset(node.users):
            results.append(node)
    entries = read.difference(own, constants)
    last = nodes[-1]
    if len(entries) != 1 or results != [last] or any(map(is_inplace, nodes)):
        return None
    (entry,) = entries
    shape = shapes(entry)[0]
    if shape != shapes(last)[0] or UNKNOWN in shape:
        return None
    return Call(
        module=module,
        nodes=tuple(nodes),
        entry=entry,
        constants=frozenset(read.intersection(constants)),
    )


def computed_across(flow: Flow, draft: Flow, entry: Value | list[Value]) -> Value | None:
    """The tensor that a module reads, with the one axis that the rules for its ops freeze; None if there is none.

    Other axes must stay anyway, or be rows of a parameter, such as learned queries, which then stay.

    Args:
        flow: What is known so far.
        draft: What the rules recorded for a call of the module.
        entry: Labels of the tensor that the call reads.
    """
    if isinstance(entry, list) or draft.layers:
        return None
    across: list[Axis] = []
    others: list[Axis] = []
    for axis in entry.axes:
        if _freezes(draft, axis):
            across.append(axis)
        elif _are_rows(flow, axis):
            others.append(axis)
        else:
            return None
    if len(across) != 1:
        return None
    flow.freeze(others, ROWS)
    return Value(entry.shape, tuple(across))


def _freezes(draft: Flow, axis: Axis) -> bool:
    """Whether a draft freezes channels of an axis."""
    for ids, _ in draft.frozen:
        if np.isin(ids, axis.ids).any():
            return True
    return False


def _are_rows(flow: Flow, axis: Axis) -> bool:
    """Whether all channels of an axis stay anyway, or are rows of a parameter that is no layer's weight."""
    known = [ids for ids, _ in flow.frozen]
    for name, value in flow.tensors.items():
        if name not in flow.layers:
            known += [own.ids for own in value.axes]
    return axis.is_among(known)


def keep_whole(flow: Flow, call: Call, values: dict[Node, Value], batch: int) -> None:
    """Let a module keep its full width: its output carries the channels of its input, at the same positions.

    Args:
        flow: Records the call.
        call: The call.
        values: Labels of all tensors so far; those of the call's ops are replaced.
        batch: Batch size of the traced input.
    """
    entry = values[call.entry]
    (axis,) = entry.axes
    dim = axis.dim
    if dim == entry.rank - 1:
        dim = -1
    read = FullWidth(
        layer=call.module,
        dim=dim,
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
    """Unite the channels of all calls of each full-width module; freeze them if the module cannot keep its width."""
    for calls in flow.full_width.values():
        first, *others = calls
        if not _all_alike(flow, calls):
            _freeze_calls(flow, calls, UNLIKE)
        elif not _is_finite(flow, first):
            _freeze_calls(flow, calls, INFINITE)
        else:
            for call in others:
                flow.unite(first.index, call.index)


def _all_alike(flow: Flow, calls: list[FullWidth[Ids]]) -> bool:
    """Whether these are all calls of a module, with equally many channels along the same dimension."""
    path = calls[0].layer
    if path in flow.odd or len(calls) != flow.calls[path]:
        return False
    layouts = {(call.dim, len(call.index)) for call in calls}
    return len(layouts) == 1


def _freeze_calls(flow: Flow, calls: list[FullWidth[Ids]], reason: str) -> None:
    """Freeze the channels that a module reads, in all its calls."""
    for call in calls:
        flow.frozen.append((call.index, f'{reason} ({call.layer})'))


@torch.no_grad()
def _is_finite(flow: Flow, call: FullWidth[Ids]) -> bool:
    """Whether a module's output stays finite when all channels, or every other one, are zero."""
    original = flow.model.get_submodule(call.layer)
    module = copy.deepcopy(original).eval()
    tensors = (*module.parameters(), *module.buffers())
    floating = filter(torch.is_floating_point, tensors)
    like = next(floating, torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(call.shape, generator=generator)
    x = noise.to(like)
    every_other = torch.arange(0, x.shape[call.dim], 2, device=x.device)
    half = x.index_fill(call.dim, every_other, 0)
    nothing = torch.zeros_like(x)
    args, kwargs = flow.plain[call.layer]
    outputs = [module(value, *args, **kwargs) for value in (half, nothing)]
    return bool(torch.stack(outputs).isfinite().all())
