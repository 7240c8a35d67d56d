"""The part of a channel graph that belongs to one module, with names relative to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from mmprune_gates.channels.flow import Read, Site, Summed
from mmprune_gates.channels.graph import ChannelGraph, Layer
from mmprune_gates.channels.heads import Follow

Entry = TypeVar('Entry')
Holder = TypeVar('Holder', Site[Tensor], Follow)


def part_of(graph: ChannelGraph, path: str, follows: Sequence[Follow]) -> ChannelGraph:
    """The graph as slimming needs it for one module alone.

    Args:
        graph: The graph of a model.
        path: Path of the module.
        follows: Attributes that follow, in place of those of the graph.
    """
    part = _Part(f'{path}.' if path else '')
    return replace(
        graph,
        slots=part.tensors(graph.slots),
        full_width=part.tensors(graph.full_width),
        layers=tuple(part.layer(layer) for layer in graph.layers if part.holds(layer.name)),
        reads=tuple(part.read(read) for read in graph.reads if part.holds(read.layer)),
        sites=tuple(part.holder(site) for site in graph.sites if part.holds(site.module)),
        tainted={part.name(site): index for site, index in graph.tainted.items() if part.holds(site)},
        follows=tuple(map(part.holder, follows)),
        blocks=(),
    )


@dataclass(frozen=True)
class _Part:
    """Names relative to a module.

    Attributes:
        prefix: What the names of its tensors begin with.
    """

    prefix: str

    def holds(self, module: str) -> bool:
        """Whether it is the module at that path, or encloses it."""
        return f'{module}.'.startswith(self.prefix)

    def name(self, module: str) -> str:
        """The path of a module relative to it."""
        return f'{module}.'.removeprefix(self.prefix).removesuffix('.')

    def names(self, modules: frozenset[str]) -> frozenset[str]:
        """The paths of several modules."""
        return frozenset(map(self.name, modules))

    def tensors(self, entries: Mapping[str, Entry]) -> dict[str, Entry]:
        """The entries of tensors, or of modules, in it."""
        inside = [name for name in entries if name.startswith(self.prefix)]
        return {name.removeprefix(self.prefix): entries[name] for name in inside}

    def holder(self, found: Holder) -> Holder:
        """A site, or an attribute that follows."""
        return replace(found, module=self.name(found.module))

    def layer(self, layer: Layer) -> Layer:
        """Coverage of a layer."""
        weight = layer.weight.removeprefix(self.prefix)
        return replace(layer, name=self.name(layer.name), weight=weight)

    def read(self, read: Read[Tensor]) -> Read[Tensor]:
        """A read."""
        weight = None if read.weight is None else read.weight.removeprefix(self.prefix)
        own = replace(read, layer=self.name(read.layer), weight=weight, sites=self.names(read.sites))
        if isinstance(own, Summed):
            operands = tuple(map(self.names, own.operands))
            return replace(own, operands=operands)
        return own
