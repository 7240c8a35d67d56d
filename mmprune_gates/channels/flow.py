"""Findings about a model's channels, recorded by walks over its exported graphs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
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

# An array of channel ids while the model is walked; afterwards a tensor of channel numbers.
Index = TypeVar('Index', Ids, Tensor)
HEADS, DIMS = 'heads', 'dims'  # what attention loses: heads, or the same channels of every head
AMONG, BEHIND, NONE = 'among', 'behind', 'none'  # where a full-width module has the zeros for removed channels


@dataclass(frozen=True, kw_only=True)
class Read(Generic[Index]):
    """A layer that reads channels, and whether gates at earlier sites scale what it reads.

    Attributes:
        layer: Module path of the reader.
        weight: Name of its weight; None for a module that keeps its full width, and for a product.
        parameter: Name of the weight relative to the layer.
        in_dim: Dimension of the weight that reads the channels, or None.
        dim: Channel dimension of its input; -1, the last, for a linear layer.
        index: (C,) channel at each input position, -1 for none.
        gated: (C,) bool, whether a gate at ``sites`` scales that position.
        sites: Module paths of the norms and layers whose gates scale the input.
        input_size: Elements of its input per sample.
        weight_size: Elements of its weight, or 0.
        direct: Whether the module's input is what its weight reads (a layer of torch, not a derived one).
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
    """A product of activations that sums over channels; no gate can stand before it, so it relies on those at sites.

    Attributes:
        operands: If the sums are divided by the square root of the number of channels: the sites whose gates scale
            each operand.
    """

    dim: int = -1
    input_size: float = 0
    operands: tuple[frozenset[str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class FullWidth(Read[Index]):
    """A module that computes across channels: in a slim model it still sees all of them, removed ones as zeros.

    Its input and output have the same channels at the same positions.

    Attributes:
        shape: Shape of its input.
        zeros: Where the zeros stand: ``AMONG`` the other channels, which works for every module, ``BEHIND`` them, or
            nowhere (``NONE``); None if not decided yet.
    """

    shape: Shape
    zeros: str | None = None


@dataclass(frozen=True)
class Site(Generic[Index]):
    """A norm or layer whose output a gate can scale.

    Attributes:
        module: Its path.
        weight_dim: Dimension of its weight that holds the channels of its output; those of its bias are the same.
        out_dim: Channel dimension of its output; -1, the last, for a linear layer.
        index: (C,) channel at each position, -1 for none.
        output_size: Elements of its output per sample.
        weight_size: Elements of its weight.
        direct: Whether the module's output is what its weight makes (a layer of torch, not a derived one).
        parameter: Name of its weight.
    """

    module: str
    weight_dim: int
    out_dim: int
    index: Index
    output_size: float
    weight_size: int
    direct: bool
    parameter: str = 'weight'


@dataclass(frozen=True)
class Use:
    """A convolution or linear layer as the graph uses it.

    Attributes:
        layer: Module path.
        kind: ``conv``, ``depthwise conv`` or ``linear``.
        out_dim: Dimension of the weight that makes channels.
        in_dim: Dimension of the weight that reads them; None for a depthwise convolution, which passes them on.
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
class Cut:
    """Channels along a dimension that can shrink, of a view that cuts channels into heads.

    Attributes:
        layer: Module path of the view.
        kind: What they are: heads, or channels of a head.
        ids: (C,) their ids.
    """

    layer: str
    kind: str
    ids: Ids


@dataclass(frozen=True)
class Piece:
    """One of the dimensions that a view cuts channels into.

    Attributes:
        view: The view.
        dim: The dimension of its result.
        ids: (C,) new ids along that dimension.
        source: Ids of the channels that are cut.
    """

    view: Node
    dim: int
    ids: Ids
    source: Ids


@dataclass
class Scout:
    """Findings about views that cut channels, used to decide which dimension of each can shrink.

    Attributes:
        pieces: All dimensions of all views that cut channels, in order of execution.
        batches: Ids along the batch dimensions of products, such as heads.
        summed: Ids that products sum over.
    """

    pieces: list[Piece] = field(default_factory=list)
    batches: list[Ids] = field(default_factory=list)
    summed: list[Ids] = field(default_factory=list)


@dataclass
class Flow:
    """Findings of one or more walks over the exported graphs of one model; names are canonical.

    Attributes:
        model: The model.
        aliases: Module path or tensor name -> the first name of the same object.
        tensors: Labels of parameters and buffers by name.
        num_ids: Number of channel ids.
        edges: Pairs of id vectors whose ids are kept or removed together, element by element.
        frozen: Ids that must stay, and why.
        reads: Where layers and products read channels.
        sites: Where gates can stand, by module path.
        tainted: Module path of a site -> ids in its output that are also used where they do not scale with a gate.
        layers: Convolutions and linear layers by name of the weight, in order of execution.
        terms: Multiply-accumulates of each op.
        full_width: Calls of modules that keep their full width, by module path.
        calls: How often each module without submodules is called, by path.
        plain: Module path -> other arguments, for modules that take and return one tensor.
        odd: Paths of modules that are called in other ways.
        crossed: (ids, ids of heads, ids of their channels): each id stands for a pair and is kept if both are.
        heads: Views that cut channels into heads -> what a dimension of their result holds -> that dimension, for those
            that can shrink.
        cuts: The channels along those dimensions.
        seen: (module path, ids) of each channel dimension of the operand and the result of every view.
        guessed: Ids along the dimension taken to shrink where a view cuts channels and does not say which does.
        scout: Collects views that cut channels; None in a walk that makes use of its findings.
        users: Name of a parameter or buffer -> paths of the modules whose code uses it.
    """

    model: nn.Module
    aliases: dict[str, str]
    tensors: dict[str, Value] = field(default_factory=dict)
    num_ids: int = 0
    edges: list[tuple[Ids, Ids]] = field(default_factory=list)
    frozen: list[tuple[Ids, str]] = field(default_factory=list)
    reads: list[Read[Ids]] = field(default_factory=list)
    sites: dict[str, Site[Ids]] = field(default_factory=dict)
    tainted: dict[str, list[Ids]] = field(default_factory=lambda: defaultdict(list))
    layers: dict[str, Use] = field(default_factory=dict)
    terms: list[Term] = field(default_factory=list)
    full_width: dict[str, list[FullWidth[Ids]]] = field(default_factory=lambda: defaultdict(list))
    calls: Counter[str] = field(default_factory=Counter)
    plain: dict[str, Options] = field(default_factory=dict)
    odd: set[str] = field(default_factory=set)
    crossed: list[tuple[Ids, Ids, Ids]] = field(default_factory=list)
    heads: Mapping[Node, Mapping[str, int]] = field(default_factory=dict)
    cuts: list[Cut] = field(default_factory=list)
    seen: list[tuple[str, Ids]] = field(default_factory=list)
    guessed: list[Ids] = field(default_factory=list)
    scout: Scout | None = None
    users: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def canonical(self, name: str) -> str:
        """The first name of a module or tensor."""
        return self.aliases.get(name, name)

    def is_direct(self, path: str) -> bool:
        """Whether a module has torch's own forward, so that its input and output are those of its weight."""
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
        """Labels of a parameter or buffer: channels of its own along every dimension longer than one."""
        if name not in self.tensors:
            axes = [self.fresh(dim, size) for dim, size in enumerate(shape) if size > 1]
            self.tensors[name] = Value(shape, tuple(axes))
        return self.tensors[name]

    def draft(self) -> Flow:
        """An empty flow for rules to record in until it is clear whether their findings hold."""
        return Flow(self.model, self.aliases, self.tensors, self.num_ids, heads=self.heads)

    def absorb(self, draft: Flow) -> None:
        """Take over everything that rules have recorded in a draft."""
        self.absorb_cost(draft)
        self.edges += draft.edges
        self.crossed += draft.crossed
        self.frozen += draft.frozen
        self.reads += draft.reads
        self.sites |= draft.sites
        for site, ids in draft.tainted.items():
            self.tainted[site] += ids
        self.cuts += draft.cuts
        self.seen += draft.seen
        self.guessed += draft.guessed
        for weight, use in draft.layers.items():
            self.layers.setdefault(weight, use)

    def absorb_cost(self, draft: Flow) -> None:
        """Take over the cost of the ops in a draft, and the ids it refers to."""
        self.terms += draft.terms
        self.num_ids = draft.num_ids

    def absorb_whole_cost(self, draft: Flow) -> None:
        """Take over the cost of ops that see all channels, whatever is kept: as constant terms."""
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

    def cross(self, ids: Ids, first: Ids, second: Ids) -> None:
        """Keep the channels of ``ids`` if those of ``first`` and ``second`` are kept (broadcasting)."""
        ids, first, second = map(np.ravel, np.broadcast_arrays(ids, first, second))
        self.crossed.append((ids, first, second))

    def freeze(self, axes: Iterable[Axis | None], reason: str) -> None:
        """Never remove the channels of ``axes``."""
        self.frozen.extend((axis.ids, reason) for axis in axes if axis is not None)

    def crossed_axes(self, axes: Sequence[Axis]) -> list[Axis]:
        """The axes of heads and of their channels, in this order; none if the axes are not these two."""
        if len(axes) != 2 or not self.crossed:
            return []
        _, first, second = map(np.concatenate, zip(*self.crossed, strict=True))
        for heads, dims in (axes, axes[::-1]):
            if heads.is_among([first]) and dims.is_among([second]):
                return [heads, dims]
        return []

    def are_heads(self, axis: Axis) -> bool:
        """Whether the channels of an axis are heads, which are tried one module at a time."""
        return any(axis.is_among([cut.ids]) for cut in self.cuts if cut.kind == HEADS)

    def is_frozen(self, axis: Axis) -> bool:
        """Whether all channels of an axis are frozen so far."""
        return axis.is_among(ids for ids, _ in self.frozen)

    def weaken(self, axis: Axis, at_most: int | np.ndarray) -> Axis:
        """``axis`` with its states capped at ``at_most``; sites whose gate no longer scales the result are tainted."""
        state = np.minimum(axis.state, at_most).astype(np.int8)
        scaled = state == GATED
        lost = axis.ids[(axis.state == GATED) & ~scaled]
        if len(lost):
            for site in axis.sites:
                self.tainted[site].append(lost)
        sites = axis.sites if scaled.any() else frozenset()
        return replace(axis, state=state, sites=sites)

    def classes(self) -> Ids:
        """(num_ids,) class of every id: ids that are kept or removed together share one."""
        classes = self._connected()
        while implied := self._implied(classes):
            self.edges += implied
            classes = self._connected()
        return classes

    def pairs(self, classes: Ids) -> dict[int, tuple[int, int]]:
        """Class that stands for a pair of channels -> the classes of the two."""
        found = {}
        for vectors in self.crossed:
            triples = classes[np.stack(vectors, axis=1)]
            for own, first, second in triples.tolist():
                if first != own:
                    found[own] = (first, second)
        return found

    def _implied(self, classes: Ids) -> list[tuple[Ids, Ids]]:
        """Edges that follow from pairs: what is one class has one pair. Pairs of pairs go together as a whole."""
        if not self.crossed:
            return []
        ids, first, second = map(np.concatenate, zip(*self.crossed, strict=True))
        own = classes[ids]
        nested = np.isin(classes[first], own) | np.isin(classes[second], own)
        _, earliest, number = np.unique(own, return_index=True, return_inverse=True)
        same = earliest[number]  # for each id, where the first of its class stands
        edges = []
        for part in (first, second):
            edges.append((part, part[same]))
            edges.append((ids[nested], part[nested]))
        new = []
        for a, b in edges:
            if (classes[a] != classes[b]).any():
                new.append((a, b))
        return new

    def _connected(self) -> Ids:
        """(num_ids,) component of every id in the graph of all edges."""
        if not self.edges:
            return np.arange(self.num_ids)
        rows = np.concatenate([first for first, _ in self.edges])
        cols = np.concatenate([second for _, second in self.edges])
        ones = np.ones(len(rows), bool)
        links = coo_array((ones, (rows, cols)), (self.num_ids, self.num_ids))
        _, labels = connected_components(links, directed=False)
        return labels
