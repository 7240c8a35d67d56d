"""Removable units: groups of channels, and residual blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from os.path import commonprefix

from torch import Tensor

from mmprune_gates.channels.tails import Tail


@dataclass(frozen=True)
class Group:
    """Channels that own the same parameter slots; each is kept or removed on its own.

    Attributes:
        name: Module path of the first layer that makes them, with ``#2`` and so on where a layer makes several groups.
            A group that stands for a residual block has the block's name.
        size: Number of channels.
        frozen: None, or why none of them can be removed.
        start: Position of the group's first channel among all channels of the graph.
        is_block: Whether its only channel stands for a residual block.
    """

    name: str
    size: int
    frozen: str | None
    start: int
    is_block: bool = False

    @property
    def span(self) -> slice:
        """The group's slice of a vector over all channels."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True, eq=False)
class Block:
    """A residual block: its branch can go as a whole, since the sum it enters stays exact without it.

    Attributes:
        name: ``PATH@block``, where ``PATH`` is the common path of its modules.
        modules: Paths of the modules that go with it, in order of execution: as few and as large as possible.
        sites: Paths of the modules whose output a gate on the block scales.
        tail: Computes the constant result of its branch when its last layer reads only zeros, or None.
        gate: The channel that stands for it; None if it cannot be closed.
        inner: Names of the free groups that go when it is emptied; none if it cannot be.
        last: Name of the inner group that its last layer reads: if that is empty, the branch is a constant. None if
            the block cannot be emptied.
        index: (C,) channel at each position of the constant, -1 for none; None if it cannot be emptied.
    """

    name: str
    modules: tuple[str, ...]
    sites: frozenset[str]
    tail: Tail | None
    gate: int | None = None
    inner: tuple[str, ...] = ()
    last: str | None = None
    index: Tensor | None = None

    def holds(self, path: str) -> bool:
        """Whether a module, parameter or buffer goes with the block."""
        return within(path, self.modules)

    def is_inside(self, other: Block) -> bool:
        """Whether the whole block goes with another one."""
        return all(other.holds(path) for path in self.modules)


def outermost(blocks: Sequence[Block]) -> list[Block]:
    """The blocks that are inside no other."""
    found = []
    for one in blocks:
        others = [other for other in blocks if other is not one]
        if not any(map(one.is_inside, others)):
            found.append(one)
    return found


def within(path: str, modules: tuple[str, ...]) -> bool:
    """Whether a module, parameter or buffer is one of ``modules`` or below one."""
    return f'{path}.'.startswith(_starts(modules))


@lru_cache
def _starts(modules: tuple[str, ...]) -> tuple[str, ...]:
    """What the paths of modules, and of all below them, begin with, if they end in a dot."""
    return tuple(f'{module}.' for module in modules)


def common_path(paths: Iterable[str]) -> str:
    """The longest path that all of several module paths begin with; '' if there is none."""
    parts = [path.split('.') for path in paths]
    return '.'.join(commonprefix(parts))
