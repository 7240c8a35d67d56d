"""Residual blocks: branches added to a residual stream that can be cut off as a whole.

GDP gates every layer block in addition to the channels (Guo et al., ICCV 2021). In the graph a block is one operand of
a sum, the branch, that is computed from a single tensor of the sum's shape and read by nothing but the sum.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np
from torch import fx

from mmprune_gates.channels.groups import Block, common_path, within
from mmprune_gates.channels.labels import GATED, Value
from mmprune_gates.channels.op import UNKNOWN, op_name, shapes
from mmprune_gates.channels.rules import Trait, has_trait
from mmprune_gates.channels.tails import find_tail
from mmprune_gates.channels.walked import Walked

BLOCK = '@block'  # suffix of the name of a residual block


@dataclass(frozen=True, eq=False)
class Branch:
    """A branch that can be cut off: the sum it enters stays exact if it is zero.

    Attributes:
        block: The residual block.
        entry: Labels of the tensor it is computed from.
        end: Labels of its result.
        terms: Positions of its cost terms in ``Flow.terms``; none outside the inference graph.
        gate: (1,) the id that stands for it; None if only channels are pruned.
    """

    block: Block
    entry: Value
    end: Value
    terms: tuple[int, ...]
    gate: np.ndarray | None = None

    def keeps_channels(self, classes: np.ndarray) -> bool:
        """Whether it begins and ends with the same channels, which are removed together."""
        if len(self.entry.axes) != len(self.end.axes):
            return False
        for first in self.entry.axes:
            last = self.end.along(first.dim)
            if last is None or not np.array_equal(classes[first.ids], classes[last.ids]):
                return False
        return True


def find_branches(graph: Walked) -> list[Branch]:
    """The branches of an exported graph, in order of execution."""
    needed = {node: graph.needed_modules(node) for node in graph.paths}
    found = []
    for total in graph.paths:
        if op_name(total) != 'add' or len(total.all_input_nodes) != 2:
            continue
        first, second = total.all_input_nodes
        branch = _branch(graph, needed, total, first, second) or _branch(graph, needed, total, second, first)
        if branch is not None:
            found.append(branch)
    return found


def _branch(
    graph: Walked, needed: dict[fx.Node, set[str]], total: fx.Node, skip: fx.Node, end: fx.Node
) -> Branch | None:
    """The branch that ends in one operand of a sum, ``end``, if cutting it off leaves the other, ``skip``, unchanged.

    A branch consists of whole modules that no other call depends on, joined by calls that accept any width.
    """
    nodes = _ancestors(end) - _ancestors(skip)
    entry = _only_entry(graph, nodes, total, end)
    if entry is None:
        return None
    elsewhere = graph.flow.odd.union(*(modules for node, modules in needed.items() if node not in nodes))
    modules = _largest_modules(graph, nodes, elsewhere)
    between = [node for node in nodes if node in graph.paths and graph.enclosing(node, modules) is None]
    sites = _sites_of(graph.values[end])
    is_inside = bool(sites) and all(within(site, modules) for site in sites)
    takes_any_width = all(has_trait(op_name(node), Trait.ANY_WIDTH) for node in between)
    if not is_inside or not takes_any_width:
        return None
    name = (common_path(modules) or modules[-1]) + BLOCK
    tail = find_tail(graph, end, modules)
    terms = [number for number, term in enumerate(graph.flow.terms) if term.call in nodes]
    return Branch(
        block=Block(name, modules, sites, tail),
        entry=graph.values[entry],
        end=graph.values[end],
        terms=tuple(terms),
    )


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """A call and all calls that it depends on."""
    seen: set[fx.Node] = set()
    pending = [node]
    while pending:
        one = pending.pop()
        if one.op == 'call_function' and one not in seen:
            seen.add(one)
            pending.extend(one.all_input_nodes)
    return seen


def _only_entry(graph: Walked, nodes: set[fx.Node], total: fx.Node, end: fx.Node) -> fx.Node | None:
    """The single tensor that a branch reads, if it has the shape of the sum and only the sum reads the branch."""
    readers = {user for node in nodes for user in node.users} - nodes
    entries = graph.entries(nodes)
    if readers != {total} or len(entries) != 1:
        return None
    (entry,) = entries
    shape = shapes(total)[0]
    alike = shapes(entry)[0] == shapes(end)[0] == shape
    return entry if alike and UNKNOWN not in shape else None


def _largest_modules(graph: Walked, nodes: set[fx.Node], elsewhere: Container[str]) -> tuple[str, ...]:
    """The outermost modules that enclose these calls and are not needed elsewhere, in order of execution."""
    found = []
    for node, paths in graph.paths.items():
        if node in nodes:
            whole = [path for path in paths if path and path not in elsewhere]
            found += whole[:1]
    return tuple(dict.fromkeys(found))


def _sites_of(value: Value) -> frozenset[str]:
    """The sites whose gates scale every channel of a tensor; empty if there are none."""
    found = []
    for axis in value.axes:
        if axis.sites and (axis.state == GATED).all():
            found.append(axis.sites)
    return found[0] if len(found) == 1 else frozenset()
