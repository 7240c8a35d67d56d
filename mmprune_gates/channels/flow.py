"""What walks over the exported graphs of a model find out about its channels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Generic, TypeVar

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.fx import Node

from mmprune_gates.channels.calls import Options
from mmprune_gates.channels.labels import GATED, ZERO, Axis, Ids, Shape, Value

# Ids of channels, an array, as long as models are walked; then their numbers, a tensor.
Index = TypeVar('Index', Ids, Tensor)
AMONG, BEHIND, NONE = 'among', 'behind', 'none'  # where a module of full width finds zeros for channels that have gone


@dataclass(frozen=True, kw_only=True)
class Read(Generic[Index]):
    """A layer that reads channels, and whether gates at sites before it reach it unchanged.

    Attributes:
        layer: Module path of the reader.
        weight: Name of its weight; None for a module that keeps its full width, and for a product.
        parameter: That name, seen from the layer.
        in_dim: Dimension of the weight that reads them, or None.
        dim: Channel dimension of its input; -1, the last, for a linear layer.
        index: (C,) channel at each input position, -1 for none.
        gated: (C,) bool, whether a gate at ``sites`` scales that input.
        sites: Module paths of norms and layers.
        input_size: Elements of its input per sample.
        weight_size: Elements of its weight, or 0.
        direct: Whether the reader's own input is what its weight reads (a layer of torch, not a derived one).
    """

    layer: str
    weight: str | None = None
    parameter: str = 'weight'
    in_dim: int | None = None
    dim: int
    index: Index
    gated: Tensor
    sites: frozenset[str]
    input_size: float
    weight_size: int = 0
    direct: bool = True


@dataclass(frozen=True, kw_only=True)
class Summed(Read[Index]):
    """A product of activations that sums over channels: no gate can stand before it, so that it relies on sites."""

    dim: int = -1
    input_size: float = 0


@dataclass(frozen=True, kw_only=True)
class FullWidth(Read[Index]):
    """A module that computes across channels: in a slim model it still sees all of them, those gone as zeros.

    Its input and its output have the same channels at the same places.

    Attributes:
        shape: Shape of its input.
        zeros: Where those that have gone stand: ``AMONG`` the others, as every module can do, or ``BEHIND`` them, or
            nowhere (``NONE``); None where it is not known yet.
    """

    shape: Shape
    zeros: str | None = None


@dataclass(frozen=True)
class Site(Generic[Index]):
    """A norm, or a layer without one behind it, whose output a gate can scale.

    Attributes:
        module: Its path.
        weight_dim: Dimension of its weight that holds the channels of its output; those of its bias are the same.
        out_dim: Channel dimension of its output; -1, the last, for a linear layer.
        index: (C,) channel at each position, -1 for none.
        output_size: Elements of its output per sample.
        weight_size: Elements of its weight.
        direct: Whether the module's output is the layer's own (a layer of torch, not a derived one).
    """

    module: str
    weight_dim: int
    out_dim: int
    index: Index
    output_size: float
    weight_size: int
    direct: bool


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
        call: The op.
        layer: Module path of the op.
        positions: Product of all extents that hold no channel, per sample.
        factors: One id vector per extent that holds channels.
    """

    call: Node
    layer: str
    positions: float
    factors: tuple[Ids, ...]


@dataclass(frozen=True)
class Piece:
    """Channels cut into several dimensions, as they lie along one of them.

    Attributes:
        view: What cuts them.
        dim: The dimension of its result.
        ids: (C,) ids that stand for the pieces along it.
        source: Ids of the channels that are cut.
    """

    view: Node
    dim: int
    ids: Ids
    source: Ids


@dataclass
class Scout:
    """What is found out about views before it is decided along which dimension the channels that they cut can shrink.

    Attributes:
        pieces: All dimensions of all views that cut channels, in order of execution.
        batches: Ids along which products stand each for itself.
        summed: Ids that products sum over.
    """

    pieces: list[Piece] = field(default_factory=list)
    batches: list[Ids] = field(default_factory=list)
    summed: list[Ids] = field(default_factory=list)


@dataclass
class Flow:
    """What one or more walks over exported graphs of one model have found; names are canonical.

    Attributes:
        model: The model.
        aliases: Module path or tensor name -> the first one of the same module or tensor.
        tensors: Labels of parameters and buffers by name.
        num_ids: Number of channel ids.
        edges: Pairs of id vectors that go together.
        frozen: Ids that must stay, and why.
        reads: Where layers read channels.
        sites: Where gates can stand, by module path.
        tainted: Module paths of sites whose output is also used where a gate would not pass unchanged.
        layers: Convolutions and linear layers by name of the weight, in order of execution.
        terms: What each op costs.
        full_width: Calls of modules that keep their full width, by module path.
        calls: How often each module without submodules is called, by path.
        plain: Options by path of the modules that take and return one tensor.
        odd: Paths of modules that are called in other ways.
        heads: Views that cut channels into heads -> the dimension of their result along which channels go.
        cuts: The channels along that dimension of those views, each with the path of its module.
        seen: Channels that a module's code views in another shape, and the path of the module.
        scout: Looks for such views; None in a walk that makes use of what it has found.
    """

    model: nn.Module
    aliases: dict[str, str]
    tensors: dict[str, Value] = field(default_factory=dict)
    num_ids: int = 0
    edges: list[tuple[Ids, Ids]] = field(default_factory=list)
    frozen: list[tuple[Ids, str]] = field(default_factory=list)
    reads: list[Read[Ids]] = field(default_factory=list)
    sites: dict[str, Site[Ids]] = field(default_factory=dict)
    tainted: set[str] = field(default_factory=set)
    layers: dict[str, Use] = field(default_factory=dict)
    terms: list[Term] = field(default_factory=list)
    full_width: dict[str, list[FullWidth[Ids]]] = field(default_factory=lambda: defaultdict(list))
    calls: Counter[str] = field(default_factory=Counter)
    plain: dict[str, Options] = field(default_factory=dict)
    odd: set[str] = field(default_factory=set)
    heads: Mapping[Node, int] = field(default_factory=dict)
    cuts: list[tuple[str, Ids]] = field(default_factory=list)
    seen: list[tuple[str, Ids]] = field(default_factory=list)
    scout: Scout | None = None

    def canonical(self, name: str) -> str:
        """The first of all names of a module or tensor."""
        return self.aliases.get(name, name)

    def is_direct(self, path: str) -> bool:
        """Whether a module's input and output are those of its weight: a layer of torch, not a derived one."""
        module = self.model.get_submodule(path)
        return type(module).forward.__module__.startswith('torch.nn.')

    def fresh(self, dim: int, size: int) -> Axis:
        """An axis of ``size`` new channels."""
        first = self.num_ids
        self.num_ids += size
        ids = np.arange(first, self.num_ids)
        state = np.full(size, ZERO, np.int8)
        return Axis(dim, ids, state)

    def tensor(self, name: str, shape: Shape) -> Value:
        """The labels of a parameter or buffer: channels of its own along every dimension longer than one."""
        if name not in self.tensors:
            axes = [self.fresh(dim, size) for dim, size in enumerate(shape) if size > 1]
            self.tensors[name] = Value(shape, tuple(axes))
        return self.tensors[name]

    def draft(self) -> Flow:
        """An empty flow for rules to record in, until it is clear whether what they find holds."""
        return Flow(self.model, self.aliases, self.tensors, self.num_ids, heads=self.heads)

    def absorb(self, draft: Flow) -> None:
        """Take over all that rules have recorded in a draft."""
        self.absorb_cost(draft)
        self.edges += draft.edges
        self.frozen += draft.frozen
        self.reads += draft.reads
        self.sites |= draft.sites
        self.tainted |= draft.tainted
        self.cuts += draft.cuts
        self.seen += draft.seen
        for weight, use in draft.layers.items():
            self.layers.setdefault(weight, use)

    def absorb_cost(self, draft: Flow) -> None:
        """Take over what ops cost, and the ids that this refers to."""
        self.terms += draft.terms
        self.num_ids = draft.num_ids

    def absorb_whole_cost(self, draft: Flow) -> None:
        """Take over what ops cost that go on to see all channels, whatever is kept."""
        for term in draft.terms:
            extents = [len(ids) for ids in term.factors]
            self.terms.append(replace(term, positions=term.positions * prod(extents), factors=()))
        self.num_ids = draft.num_ids

    def unite(self, a: Ids, b: Ids) -> None:
        """Keep or remove the channels of ``a`` and ``b`` together, element by element (broadcasting)."""
        a, b = np.broadcast_arrays(a, b)
        self.edges.append((a.ravel(), b.ravel()))

    def tie(self, rows: Ids) -> None:
        """Keep or remove the channels at the same place of all rows together."""
        self.unite(rows[:1], rows[1:])

    def freeze(self, axes: Iterable[Axis | None], reason: str) -> None:
        """Never remove the channels of ``axes``."""
        self.frozen.extend((axis.ids, reason) for axis in axes if axis is not None)

    def is_frozen(self, axis: Axis) -> bool:
        """Whether none of these channels can be removed for a reason that is known already."""
        frozen = [ids for ids, _ in self.frozen]
        return bool(frozen) and bool(np.isin(axis.ids, np.concatenate(frozen)).all())

    def weaken(self, axis: Axis, at_most: int | np.ndarray) -> Axis:
        """``axis`` with its states lowered; sites whose gate no longer scales the result are tainted."""
        state = np.minimum(axis.state, at_most).astype(np.int8)
        scaled = state == GATED
        if np.any((axis.state == GATED) & ~scaled):
            self.tainted.update(axis.sites)
        sites = axis.sites if scaled.any() else frozenset()
        return replace(axis, state=state, sites=sites)

    def classes(self) -> Ids:
        """(num_ids,) class of every id: ids that are kept or removed together share one."""
        if not self.edges:
            return np.arange(self.num_ids)
        rows = np.concatenate([first for first, _ in self.edges])
        cols = np.concatenate([second for _, second in self.edges])
        ones = np.ones(len(rows), bool)
        links = coo_array((ones, (rows, cols)), (self.num_ids, self.num_ids))
        _, labels = connected_components(links, directed=False)
        return labels
