"""Channel labels: which channels a tensor carries, and along which of its dimensions.

A channel is an integer id. An :class:`Axis` is a vector of ids along one dimension of a tensor. A tensor may
carry several (a convolution's weight has one for its outputs and one for its inputs); a dimension without an
axis is rigid: its size stays what it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

Shape = tuple[int, ...]

# What is known of a channel's values, from weakest to strongest.
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
    ids: np.ndarray
    state: np.ndarray
    sites: frozenset[str] = frozenset()

    def take(self, index) -> Axis:
        """The axis restricted to, or repeated at, the positions ``index``."""
        return replace(self, ids=self.ids[index], state=self.state[index])

    def known(self, state: int, *sites: str) -> Axis:
        """The axis with as much known of all its channels, which gates at ``sites`` scale."""
        return replace(self, state=np.full_like(self.state, state), sites=frozenset(sites))

    def pieces(self, number: int) -> list[Axis]:
        """The axis cut into ``number`` equal pieces."""
        places = np.arange(len(self.ids)).reshape(number, -1)
        return [self.take(row) for row in places]


@dataclass(frozen=True)
class Value:
    """A tensor in the graph: its shape and the axes it carries, at most one per dimension."""

    shape: Shape
    axes: tuple[Axis, ...] = ()

    def along(self, dim: int) -> Axis | None:
        """The axis along ``dim``, or None where the dimension is rigid."""
        dim %= max(len(self.shape), 1)
        return next((axis for axis in self.axes if axis.dim == dim), None)

    def without(self, dim: int) -> tuple[Axis, ...]:
        """All axes but the one along ``dim``."""
        dim %= max(len(self.shape), 1)
        return tuple(axis for axis in self.axes if axis.dim != dim)

    def behind(self, dim: int) -> list[Axis]:
        """The axes along all dimensions behind ``dim``."""
        return [axis for axis in self.axes if axis.dim > dim]

    def expanded(self, rank: int) -> Value:
        """The tensor seen with ``rank`` dimensions: new ones of size 1 come first."""
        new = rank - len(self.shape)
        axes = [replace(axis, dim=axis.dim + new) for axis in self.axes]
        return Value((1,) * new + self.shape, tuple(axes))
