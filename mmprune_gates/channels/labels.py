"""Channel labels: which channels a tensor carries, and along which of its dimensions.

A channel is an integer id. An :class:`Axis` is a vector of ids along one dimension of a tensor. A tensor may
carry several (a convolution's weight has one for its outputs and one for its inputs); a dimension without an
axis is rigid: its size never changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

Shape = tuple[int, ...]
Ids = np.ndarray  # int64: of channels, or of positions in a vector of them
State = np.ndarray  # int8: what is known about the values of each channel, one of the constants below

# From weakest to strongest.
LOST = 0  # may be non-zero although everything that makes it is zero (behind a sigmoid)
ZERO = 1  # zero once the parameters that make it are zero (behind a convolution, a SiLU)
GATED = 2  # scales with a gate at the modules in `Axis.sites` (behind a norm or a convolution, ReLU, pooling, ...)


@dataclass(frozen=True)
class Axis:
    """Channels along one dimension of a tensor.

    Attributes:
        dim: The dimension.
        ids: (C,) int64, the channel at each position; an id may occur more than once.
        state: (C,) int8, ``LOST``, ``ZERO`` or ``GATED``.
        sites: Module paths of the norms and layers whose output scales the ``GATED`` channels.
    """

    dim: int
    ids: Ids
    state: State
    sites: frozenset[str] = frozenset()

    def take(self, index) -> Axis:
        """The axis restricted to, or repeated at, the positions ``index``."""
        return replace(self, ids=self.ids[index], state=self.state[index])

    def is_among(self, vectors: Iterable[Ids]) -> bool:
        """Whether all its channels are in the given vectors of ids."""
        known = [*vectors]
        return bool(known) and bool(np.isin(self.ids, np.concatenate(known)).all())

    def known(self, state: int, *sites: str) -> Axis:
        """The axis with all its channels in ``state``, scaled by gates at ``sites``."""
        states = np.full_like(self.state, state)
        return replace(self, state=states, sites=frozenset(sites))


@dataclass(frozen=True)
class Value:
    """A tensor in the graph: its shape and the axes it carries, at most one per dimension."""

    shape: Shape
    axes: tuple[Axis, ...] = ()

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def along(self, dim: int) -> Axis | None:
        """The axis along ``dim``, or None where the dimension is rigid."""
        for axis in self.axes:
            if axis.dim == dim % self.rank:
                return axis
        return None

    def without(self, dim: int) -> tuple[Axis, ...]:
        """All axes but the one along ``dim``."""
        own = self.along(dim)
        return tuple(axis for axis in self.axes if axis is not own)

    def behind(self, dim: int) -> list[Axis]:
        """The axes along all dimensions after ``dim``."""
        return [axis for axis in self.axes if axis.dim > dim]

    def expanded(self, rank: int) -> Value:
        """The tensor with leading dimensions of size 1 added, up to ``rank`` dimensions."""
        value = self
        for _ in range(rank - self.rank):
            value = value.unsqueezed(0)
        return value

    def unsqueezed(self, dim: int) -> Value:
        """The tensor with a new dimension of size 1."""
        before, behind = self.shape[:dim], self.shape[dim:]
        axes = [replace(axis, dim=axis.dim + int(axis.dim >= dim)) for axis in self.axes]
        return Value((*before, 1, *behind), tuple(axes))
