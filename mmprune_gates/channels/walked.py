"""An exported graph through which channel labels have flowed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import fx

from mmprune_gates.channels.flow import Flow
from mmprune_gates.channels.op import module_paths


@dataclass(frozen=True)
class Walked:
    """An exported graph after a walk.

    Attributes:
        flow: What this walk and those before it have found.
        values: Labels of all tensors, in order of execution.
        names: Names of the parameters and buffers among them.
    """

    flow: Flow
    values: Mapping[fx.Node, Any]
    names: Mapping[fx.Node, str]

    @cached_property
    def paths(self) -> dict[fx.Node, list[str]]:
        """Enclosing modules of each call that depends on the input, outermost first.

        Other calls compute with parameters only, or count the batches that a norm has seen.
        """
        paths: dict[fx.Node, list[str]] = {}
        for node in self.values:
            sources = node.all_input_nodes if node.op == 'call_function' else []
            if any(source in paths or self._is_input(source) for source in sources):
                paths[node] = [self.flow.canonical(path) for path in module_paths(node)]
        return paths

    def _is_input(self, node: fx.Node) -> bool:
        return node.op == 'placeholder' and node not in self.names

    def needed_modules(self, node: fx.Node) -> set[str]:
        """Modules this call depends on: enclosing modules, parameter owners, and their ancestors."""
        needed = set()
        holders = [self.names[source].rpartition('.')[0] for source in node.all_input_nodes if source in self.names]
        for path in (*self.paths[node], *holders):
            while path not in needed:
                needed.add(path)
                path = path.rpartition('.')[0] or path
        return needed

    def entries(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """Tensors that these calls read, other than parameters and each other's results."""
        read = {source for node in nodes for source in node.all_input_nodes}
        return read.difference(nodes, self.names)

    def enclosing(self, node: fx.Node, modules: Iterable[str]) -> str | None:
        """The outermost of ``modules`` that encloses a call."""
        return next((path for path in self.paths.get(node, ()) if path in modules), None)
