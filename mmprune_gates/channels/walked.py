"""An exported graph through which channel labels have flowed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch.fx import Node

from mmprune_gates.channels.flow import Flow
from mmprune_gates.channels.op import module_paths


@dataclass(frozen=True)
class Walked:
    """An exported graph after a walk.

    Attributes:
        flow: Findings of this walk and those before it.
        values: Labels of all tensors, in order of execution.
        names: Names of the parameters and buffers among them.
        whole: Calls in modules that keep their full width.
    """

    flow: Flow
    values: Mapping[Node, Any]
    names: Mapping[Node, str]
    whole: frozenset[Node] = frozenset()

    @cached_property
    def paths(self) -> dict[Node, list[str]]:
        """Enclosing modules of each call that depends on the input, outermost first.

        Other calls compute with parameters only, or count the batches that a norm has seen.
        """
        inputs = {node for node in self.values if node.op == 'placeholder'}
        reached = inputs.difference(self.names)
        paths = {}
        for node in self.values:
            if not reached.isdisjoint(node.all_input_nodes):
                reached.add(node)
                paths[node] = [self.flow.canonical(path) for path in module_paths(node)]
        return paths

    @cached_property
    def places(self) -> dict[Node, int]:
        """Place of each tensor in the order of execution."""
        return {node: place for place, node in enumerate(self.values)}

    def needed_modules(self, node: Node) -> set[str]:
        """Modules this call depends on: enclosing modules, parameter owners, and their ancestors."""
        used = list(self.paths[node])
        for source in node.all_input_nodes:
            if source in self.names:
                holder = self.names[source].rpartition('.')[0]
                used.append(holder)
        needed = set()
        for path in used:
            while path not in needed:
                needed.add(path)
                path = path.rpartition('.')[0] or path
        return needed

    def entries(self, nodes: Iterable[Node]) -> set[Node]:
        """Tensors that these calls read, other than parameters and each other's results."""
        read = {source for node in nodes for source in node.all_input_nodes}
        return read.difference(nodes, self.names)

    def enclosing(self, node: Node, modules: Iterable[str]) -> str | None:
        """The outermost of ``modules`` that encloses a call."""
        for path in self.paths.get(node, ()):
            if path in modules:
                return path
        return None
