"""Residual blocks: branches added to a residual stream that can be cut off as a whole.

GDP gates every layer block in addition to the channels (Guo et al., ICCV 2021). In the graph a block is one operand of
a sum, the branch, that is computed from a single tensor of the sum's shape and read by nothing but the sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import chain

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
    uses = Counter(chain.from_iterable(needed.values()))
    found = []
    for total in graph.paths:
        if op_name(total) != 'add' or len(total.all_input_nodes) != 2:
            continue
        first, second = total.all_input_nodes
        for skip, end in ((first, second), (second, first)):
            nodes = _behind(graph, end, skip)
            entry = _only_entry(graph, nodes, total, end)
            if entry is None:
                continue
            own = Counter(chain.from_iterable(needed.get(node, ()) for node in nodes))
            elsewhere = {path for path, number in own.items() if uses[path] > number}
            branch = _branch(graph, nodes, elsewhere | graph.flow.odd, entry, end)
            if branch is not None:
                found.append(branch)
                break
    return found


def _branch(
    graph: Walked, nodes: Sequence[fx.Node], elsewhere: Container[str], entry: fx.Node, end: fx.Node
) -> Branch | None:
    """The branch that ends in one operand of a sum, if cutting it off leaves the other unchanged.

    A branch consists of whole modules that no other call depends on, joined by calls that accept any width.

    Args:
        graph: The graph.
        nodes: The calls that only this operand depends on.
        elsewhere: Modules that are needed elsewhere, too.
        entry: The tensor that they read.
        end: The operand.
    """
    modules = _largest_modules(graph, nodes, elsewhere)
    between = [node for node in nodes if node in graph.paths and graph.enclosing(node, modules) is None]
    sites = _sites_of(graph.values[end])
    is_inside = bool(sites) and all(within(site, modules) for site in sites)
    takes_any_width = all(has_trait(op_name(node), Trait.ANY_WIDTH) for node in between)
    if not is_inside or not takes_any_width:
        return None
    name = (common_path(modules) or modules[-1]) + BLOCK
    tail = find_tail(graph, end, modules)
    calls = set(nodes)
    terms = [number for number, term in enumerate(graph.flow.terms) if term.call in calls]
    return Branch(
        block=Block(name, modules, sites, tail),
        entry=graph.values[entry],
        end=graph.values[end],
        terms=tuple(terms),
    )


def _behind(graph: Walked, end: fx.Node, skip: fx.Node) -> list[fx.Node]:
    """The calls that ``end`` depends on and ``skip`` does not, in order of execution.

    Followed back from both, latest call first, until ``skip`` depends on all that is left.
    """
    pending, of_skip = {end, skip}, {skip}
    found = []
    while not pending <= of_skip:
        latest = max(pending, key=graph.places.__getitem__)
        pending.remove(latest)
        sources = [source for source in latest.all_input_nodes if source.op == 'call_function']
        pending.update(sources)
        if latest in of_skip:
            of_skip.update(sources)
        else:
            found.append(latest)
    return found[::-1]


def _only_entry(graph: Walked, nodes: Sequence[fx.Node], total: fx.Node, end: fx.Node) -> fx.Node | None:
    """The single tensor that a branch reads, if it has the shape of the sum and only the sum reads the branch."""
    readers = {user for node in nodes for user in node.users}.difference(nodes)
    entries = graph.entries(nodes)
    if readers != {total} or len(entries) != 1:
        return None
    (entry,) = entries
    shape = shapes(total)[0]
    alike = shapes(entry)[0] == shapes(end)[0] == shape
    return entry if alike and UNKNOWN not in shape else None


def _largest_modules(graph: Walked, nodes: Sequence[fx.Node], elsewhere: Container[str]) -> tuple[str, ...]:
    """The outermost modules that enclose these calls and are not needed elsewhere, in order of execution."""
    found = []
    for node in nodes:
        whole = [path for path in graph.paths.get(node, ()) if path and path not in elsewhere]
        found += whole[:1]
    return tuple(dict.fromkeys(found))


def _sites_of(value: Value) -> frozenset[str]:
    """The sites whose gates scale every channel of a tensor; empty if there are none."""
    found = []
    for axis in value.axes:
        if axis.sites and (axis.state == GATED).all():
            found.append(axis.sites)
    return found[0] if len(found) == 1 else frozenset()
