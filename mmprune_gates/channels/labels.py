"""Channel labels: which channels a tensor carries, and along which of its dimensions.

A channel is an integer id. An :class:`Axis` is a vector of ids along one dimension of a tensor. A tensor may
carry several (a convolution's weight has one for its outputs and one for its inputs); a dimension without an
axis is rigid: its size stays what it is.

:class:`Flow` collects what walks over the graph learn: ids that go together, ids that must stay and why, where
channels are read, and what each op costs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

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

    def pieces(self, number: int) -> list[Axis]:
        """The axis cut into ``number`` equal pieces."""
        places = np.arange(len(self.ids)).reshape(number, -1)
        return [self.take(row) for row in places]


@dataclass(frozen=True)
class Value:
    """A tensor in the graph: its shape and the axes it carries, at most one per dimension."""

    shape: tuple[int, ...]
    axes: tuple[Axis, ...] = ()

    def along(self, dim: int) -> Axis | None:
        """The axis along ``dim``, or None where the dimension is rigid."""
        dim %= max(len(self.shape), 1)
        return next((axis for axis in self.axes if axis.dim == dim), None)

    def without(self, dim: int) -> tuple[Axis, ...]:
        """All axes but the one along ``dim``."""
        dim %= max(len(self.shape), 1)
        return tuple(axis for axis in self.axes if axis.dim != dim)

    def expanded(self, rank: int) -> Value:
        """The tensor seen with ``rank`` dimensions: new ones of size 1 come first."""
        new = rank - len(self.shape)
        axes = [replace(axis, dim=axis.dim + new) for axis in self.axes]
        return Value((1,) * new + self.shape, tuple(axes))


@dataclass(frozen=True)
class Read:
    """A layer that reads channels: where a gate can stand if it cannot stand at the producer.

    Attributes:
        layer: Module path of the convolution or linear layer.
        weight: Name of its weight.
        axis: What it reads; ``axis.dim`` is the channel dimension of the layer's input.
        input_size: Elements of the layer's input per sample.
    """

    layer: str
    weight: str
    axis: Axis
    input_size: float


@dataclass(frozen=True)
class Site:
    """A norm, or a layer without one behind it, whose output a gate can scale.

    Attributes:
        weight: Name of its weight; its bias, if any, has the same channels along dimension 0.
        weight_dim: Dimension of the weight that holds the channels of its output.
        out_dim: Channel dimension of its output; -1, the last, for a linear layer.
        output_size: Elements of its output per sample.
    """

    weight: str
    weight_dim: int
    out_dim: int
    output_size: float


@dataclass(frozen=True)
class FullWidth:
    """A call of a module that computes across channels and keeps its full width.

    Attributes:
        dim: Channel dimension of its input and output; -1 if it is the last.
        axis: The channels of its input and, at the same places, of its output.
        shape: Shape of its input.
        input_size: Elements of its input per sample.
    """

    dim: int
    axis: Axis
    shape: tuple[int, ...]
    input_size: float


@dataclass(frozen=True)
class Use:
    """A convolution or linear layer as the graph uses it.

    Attributes:
        layer: Module path.
        kind: ``conv``, ``depthwise conv`` or ``linear``.
        out_dim: Dimension of the weight that makes channels.
        in_dim: Dimension that reads them; None for a depthwise convolution, which passes them on.
    """

    layer: str
    kind: str
    out_dim: int
    in_dim: int | None


@dataclass(frozen=True)
class Term:
    """Multiply-accumulates of one op: ``positions`` times the kept channels of each factor.

    Attributes:
        layer: Module path of the op.
        positions: Product of all extents that hold no channel, per sample.
        factors: One id vector per extent that holds channels.
    """

    layer: str
    positions: float
    factors: tuple[np.ndarray, ...]


@dataclass
class Flow:
    """What one or more walks over exported graphs of one model have found; its names are canonical."""

    edges: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    frozen: list[tuple[np.ndarray, str]] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    terms: list[Term] = field(default_factory=list)
    tainted: set[str] = field(default_factory=set)
    tensors: dict[str, Value] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)  # by module path
    plain: dict[str, Any] = field(default_factory=dict)  # options by path of modules that take and return one tensor
    odd: set[str] = field(default_factory=set)  # paths of modules that are called in other ways
    calls: Counter[str] = field(default_factory=Counter)  # of modules without submodules, by path
    full_width: dict[str, list[FullWidth]] = field(default_factory=lambda: defaultdict(list))  # by module path
    branches: list[Any] = field(default_factory=list)  # residual ones, in order of execution
    block_ids: list[np.ndarray] = field(default_factory=list)  # the id that stands for each branch, if it has a gate
    layers: dict[str, Use] = field(default_factory=dict)  # by name of the weight, in order of execution
    num_ids: int = 0
    aliases: dict[str, str] = field(default_factory=dict)

    def canonical(self, name: str) -> str:
        """The first of all names of a module or tensor."""
        return self.aliases.get(name, name)

    def fresh(self, dim: int, size: int) -> Axis:
        """An axis of ``size`` new channels."""
        ids = np.arange(self.num_ids, self.num_ids + size)
        self.num_ids += size
        return Axis(dim, ids, np.full(size, ZERO, np.int8))

    def tensor(self, name: str, shape: tuple[int, ...]) -> Value:
        """The labels of a parameter or buffer: channels of its own along every dimension longer than one."""
        if name not in self.tensors:
            axes = tuple(self.fresh(dim, size) for dim, size in enumerate(shape) if size > 1)
            self.tensors[name] = Value(shape, axes)
        return self.tensors[name]

    def draft(self) -> Flow:
        """A flow to try rules on, with the same tensors and nothing found."""
        return Flow(tensors=dict(self.tensors), num_ids=self.num_ids, aliases=self.aliases)

    def unite(self, a: np.ndarray, b: np.ndarray) -> None:
        """Keep or remove the channels of ``a`` and ``b`` together, element by element (broadcasting)."""
        a, b = np.broadcast_arrays(a, b)
        self.edges.append((a.ravel(), b.ravel()))

    def freeze(self, axes: Iterable[Axis | None], reason: str) -> None:
        """Never remove the channels of ``axes``."""
        self.frozen.extend((axis.ids, reason) for axis in axes if axis is not None)

    def weaken(self, axis: Axis, at_most) -> Axis:
        """``axis`` with its states lowered; sites whose gate no longer scales the result are tainted."""
        state = np.minimum(axis.state, at_most).astype(np.int8)
        if np.any((axis.state == GATED) & (state < GATED)):
            self.tainted.update(axis.sites)
        return replace(axis, state=state, sites=axis.sites if np.any(state == GATED) else frozenset())

    def classes(self) -> np.ndarray:
        """(num_ids,) class of every id: ids that are kept or removed together share one."""
        if not self.edges:
            return np.arange(self.num_ids)
        rows, cols = (np.concatenate(side) for side in zip(*self.edges, strict=True))
        links = coo_array((np.ones(len(rows), bool), (rows, cols)), (self.num_ids, self.num_ids))
        return connected_components(links, directed=False)[1]
