"""Residual blocks: branches that end in a sum with what they began with, and that can be cut off as a whole.

GDP puts a gate on every layer block besides those on channels (Guo et al., ICCV 2021). In the graph a block is a sum of
which one operand, the branch, is computed from a single tensor of the sum's own shape and read by nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any

import numpy as np
from torch import fx

from mmprune_gates.channels.graph import within
from mmprune_gates.channels.labels import GATED, Flow, Value
from mmprune_gates.channels.op import UNKNOWN, module_paths, op_name, shapes
from mmprune_gates.channels.rules import Trait, has_trait
from mmprune_gates.channels.tails import Tail, find_tail


@dataclass(frozen=True)
class Branch:
    """A branch that can be cut off: the sum it enters stays exact if it is zero.

    Attributes:
        modules: Paths of the modules that make it up, in order of execution: as few and as large as possible.
        sites: Modules whose output a gate scales so that the branch's result is scaled.
        entry: Labels of the tensor it is computed from.
        end: Labels of its result.
        tail: How its result follows from what its last layer reads, or None.
        terms: Numbers of its terms of the cost; none outside the inference graph.
    """

    modules: tuple[str, ...]
    sites: frozenset[str]
    entry: Value
    end: Value
    tail: Tail | None
    terms: tuple[int, ...] = ()

    def keeps_channels(self, classes: np.ndarray) -> bool:
        """Whether it ends in the channels that it begins with, so that they go together."""
        channels = [{axis.dim: classes[axis.ids].tolist() for axis in value.axes} for value in (self.entry, self.end)]
        return channels[0] == channels[1]

    @property
    def name(self) -> str:
        """What all its modules have in common, or else the module it ends in."""
        parts = [path.split('.') for path in self.modules]
        return '.'.join(commonprefix(parts)) or self.modules[-1]


def find_branches(
    values: Mapping[fx.Node, Any], names: Mapping[fx.Node, str], terms: Mapping[fx.Node, range], flow: Flow
) -> list[Branch]:
    """The branches of an exported graph, in order of execution.

    Args:
        values: Labels of its tensors, in order of execution.
        names: Names of the parameters and buffers among them.
        terms: Where the cost of each call stands in ``flow.terms``.
        flow: For the canonical names of modules.
    """
    paths: dict[fx.Node, list[str]] = {}  # of the calls that depend on the input: norms also count their batches
    for node in values:
        if node.op == 'call_function' and any(s in paths or is_input(s, names) for s in node.all_input_nodes):
            paths[node] = [flow.canonical(path) for path in module_paths(node)]
    needs = {node: needed(node, paths[node], names) for node in paths}
    found = []
    for node in paths:
        if op_name(node) == 'add' and len(node.all_input_nodes) == 2:
            first, second = node.all_input_nodes
            for skip, end in ((first, second), (second, first)):
                nodes = branch_nodes(node, skip, end, names)
                outside = flow.odd.union(*(needs[other] for other in needs if other not in nodes)) if nodes else set()
                if branch := nodes and branch_of(nodes, end, values, names, paths, outside):
                    cost = [number for one in nodes for number in terms.get(one, ())]
                    found.append(replace(branch, terms=tuple(sorted(cost))))
                    break
    return found


def branch_nodes(total: fx.Node, skip: fx.Node, end: fx.Node, names) -> set[fx.Node]:
    """The calls that only ``end``, an operand of ``total``, needs; empty if they are no branch of a single tensor."""
    nodes = above(end) - above(skip)
    entries = entries_of(nodes, names)
    readers = {user for node in nodes for user in node.users} - nodes
    if readers != {total} or len(entries) != 1:
        return set()
    shape = shapes(entries.pop())[0]
    return nodes if shape == shapes(end)[0] == shapes(total)[0] and UNKNOWN not in shape else set()


def entries_of(nodes: set[fx.Node], names: Mapping[fx.Node, str]) -> set[fx.Node]:
    """What calls read besides each other and parameters."""
    return {source for node in nodes for source in node.all_input_nodes} - nodes - names.keys()


def branch_of(nodes: set[fx.Node], end: fx.Node, values, names, paths, outside: set[str]) -> Branch | None:
    """The branch that calls make up, if whole modules that nothing ``outside`` needs are all there is to cut off."""
    modules, sites = largest_modules(nodes, paths, outside), sites_of(values[end])
    between = [node for node in nodes & paths.keys() if not any(path in modules for path in paths[node])]
    if not sites or not all(within(site, modules) for site in sites) or not all(map(takes_any_width, between)):
        return None
    (entry,) = entries_of(nodes, names)
    tail = find_tail(end, modules, values, names, paths)
    return Branch(modules, sites, values[entry], values[end], tail)


def is_input(node: fx.Node, names: Mapping[fx.Node, str]) -> bool:
    """Whether a node is an input of the model, not one of its parameters or buffers."""
    return node.op == 'placeholder' and node not in names


def above(node: fx.Node) -> set[fx.Node]:
    """A call and all calls that it is computed from."""
    seen: set[fx.Node] = set()
    pending = [node]
    while pending:
        one = pending.pop()
        if one.op == 'call_function' and one not in seen:
            seen.add(one)
            pending.extend(one.all_input_nodes)
    return seen


def needed(node: fx.Node, paths: list[str], names: Mapping[fx.Node, str]) -> set[str]:
    """Paths of all modules that a call needs: that it is made in, that hold its parameters, and those around these."""
    held = [names[source].rpartition('.')[0] for source in node.all_input_nodes if source in names]
    return {path[:end] for path in (*paths, *held) for end in ends(path)}


def ends(path: str) -> list[int]:
    """Where the path of a module and of each module around it ends."""
    return [place for place, letter in enumerate(path) if letter == '.'] + [len(path)]


def largest_modules(nodes: set[fx.Node], paths: Mapping[fx.Node, list[str]], outside: set[str]) -> tuple[str, ...]:
    """The outermost modules around ``nodes`` that are not ``outside``, in order of execution."""
    ordered = [node for node in paths if node in nodes]
    outermost = (next((path for path in paths[node] if path and path not in outside), None) for node in ordered)
    return tuple(dict.fromkeys(path for path in outermost if path))


def sites_of(value: Value) -> frozenset[str]:
    """Where gates scale all of a tensor; empty if they cannot."""
    found = [axis for axis in value.axes if axis.sites and bool((axis.state == GATED).all())]
    return found[0].sites if len(found) == 1 else frozenset()


def takes_any_width(node: fx.Node) -> bool:
    """Whether a call between modules says nothing of the width of its tensors."""
    return has_trait(node, Trait.ANY_WIDTH)
