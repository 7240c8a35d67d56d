"""From scores to kept channels under a budget; floors, divisor and exclusions live here, and nowhere else."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cached_property
from math import ceil, gcd, lcm

import torch
from torch import Tensor

from mmprune_gates.budget.costs import Cost, MACs
from mmprune_gates.channels.graph import ChannelGraph
from mmprune_gates.channels.groups import Group
from mmprune_gates.channels.kept import Kept
from mmprune_gates.checks import COUNT, PART, Rule, checked, listed, one_of, patterns

AUTO = 'auto'
PARTS = 8  # least number of divisors that make up a width, with ``divisor='auto'``
NAMED = one_of((AUTO,))
DIVISOR = Rule(f'{AUTO!r} or {COUNT.words}', lambda value: NAMED.holds(value) or COUNT.holds(value))


@dataclass(frozen=True)
class Limits:
    """Limits on what selection may close.

    Attributes:
        floor: Least share of each group that is kept. With 0, residual blocks can be emptied; all other groups keep at
            least one channel. This project's choice.
        divisor: Layer widths shrink to multiples of this; a narrower group is kept whole. A channel that spans several
            rows of each layer, such as an attention head, counts as that many. ``'auto'``, the default: the largest of
            8, 4, 2 and 1 that is at most an eighth of the width (this project's choice: docs/benchmarks/divisor.md).
        exclude: Shell patterns of module paths, or one; a group that owns a parameter of a matching module is kept
            whole, and so is what a matching norm across channels reads.
    """

    floor: float = 0.05
    divisor: int | str = AUTO
    exclude: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        checked('floor', self.floor, PART)
        checked('divisor', self.divisor, DIVISOR)
        object.__setattr__(self, 'exclude', patterns('exclude', self.exclude))

    def divisor_of(self, width: int) -> int:
        """The divisor for layers of ``width`` channels."""
        if self.divisor != AUTO:
            return int(self.divisor)
        return next((divisor for divisor in (8, 4, 2) if PARTS * divisor <= width), 1)

    def least(self, group: Group, empties: bool = False) -> int:
        """Least number of channels that a group keeps: 0 for a residual block, at least 1 unless it ``empties``."""
        return 0 if group.is_block else max(int(not empties), ceil(self.floor * group.size))


@dataclass(frozen=True)
class Candidates:
    """Channels that may close within the limits, in chunks, and their cost.

    Attributes:
        graph: Their graph.
        groups: (G,) groups that may shrink.
        limits: The limits.
        cost: Prices a selection.
        total: Cost of the whole model.
        whole: Group name -> its size before any channel left the model, which floor and divisor refer to.
        rows: Group name -> rows of weights that one of its channels spans.
        dims: Names of the groups of channels of heads whose heads can go as well.
    """

    graph: ChannelGraph
    groups: tuple[Group, ...]
    limits: Limits
    cost: Cost
    total: float
    whole: Mapping[str, int]
    rows: Mapping[str, int]
    dims: frozenset[str]

    @classmethod
    def of(cls, graph: ChannelGraph, limits: Limits, cost: Cost | None = None) -> Candidates:
        """The candidates of a graph.

        Args:
            graph: The graph.
            limits: Limits on what may close.
            cost: The cost, bound to the graph; multiply-accumulates by default.

        Raises:
            ValueError: A pattern matches no module with channels.
        """
        cost = cost or MACs().bind(graph)
        excluded = torch.zeros(graph.num_channels, dtype=torch.bool)
        for pattern in limits.exclude:
            excluded |= excluded_channels(graph, pattern)
        groups = []
        for group in graph.free:
            if not excluded[group.span].any():
                groups.append(group)
        everything = graph.kept().vector.double()
        total = float(cost.price(everything))
        whole = {group.name: group.size for group in graph.groups}
        rows = {group.name: graph.rows(group) for group in graph.groups}
        return cls(graph, tuple(groups), limits, cost, total, whole, rows, graph.dims())

    def narrowed(self, graph: ChannelGraph) -> Candidates:
        """The candidates among the channels that remain after others were removed, whose graph this is."""
        self.cost.narrow(graph)
        may_shrink = {group.name for group in self.groups}
        groups = [group for group in graph.free if group.name in may_shrink]
        return replace(self, graph=graph, groups=tuple(groups))

    @cached_property
    def multiples(self) -> dict[str, int]:
        """Group name -> channels that it loses at a time: layer widths stay multiples of divisor and cost step."""
        found = {}
        for name, rows in self.rows.items():
            divisor = lcm(self.limits.divisor_of(rows * self.whole[name]), self.cost.step)
            is_enough = name in self.dims  # with any number of heads
            found[name] = divisor if is_enough else divisor // gcd(divisor, rows)
        return found

    @cached_property
    def leasts(self) -> dict[str, int]:
        """Group name -> least number of channels that it keeps, rounded up."""
        lasts = self.graph.lasts
        found = {}
        for group in self.graph.groups:
            once = replace(group, size=self.whole[group.name])
            found[group.name] = self.rounded(group, self.limits.least(once, group.name in lasts))
        return found

    def rounded(self, group: Group, channels: int) -> int:
        """A number of channels of a group, rounded up to one that the limits allow."""
        multiple = self.multiples[group.name]
        return min(group.size, ceil(channels / multiple) * multiple)

    def allowed(self, kept: Kept) -> Kept:
        """The channels that stay if closed channels go only as far as the limits allow."""
        stays = kept.vector.clone()
        for group in self.groups:
            own = kept.vector[group.span]
            open_ = int(own.sum())
            if not group.is_block:
                open_ = max(self.leasts[group.name], self.rounded(group, open_))
            closed = (~own).nonzero().flatten()
            stays[group.start + closed[: open_ - int(own.sum())]] = True
        return self.graph.keeping(stays)

    def ranks(self, score: Tensor) -> Tensor:
        """(num_channels,) rank of each channel's chunk in the order of closing; ``num_channels`` if it never closes.

        Args:
            score: (num_channels,) scores, higher = keep. The score of a chunk is the mean of its channels.

        Raises:
            ValueError: The score of a channel that may close is NaN.
        """
        score = score.detach().cpu().double()
        unknown = [group.name for group in self.groups if score[group.span].isnan().any()]
        if unknown:
            raise ValueError(f'the scores of {listed(unknown)} are not numbers (NaN): nothing can be chosen by them')
        chunks, counts = self.chunks(score)
        closing = (chunks >= 0).nonzero().flatten()
        chunk_of = chunks[closing]
        count = sum(counts)
        nothing = torch.zeros(count, dtype=score.dtype)
        total = nothing.index_add(0, chunk_of, score[closing])
        mean = total / torch.bincount(chunk_of, minlength=count)
        # Chunks of a group close in order, even if rounding says otherwise: its width stays a multiple.
        rising = [own.cummax(0).values for own in mean.split(counts)]
        order = torch.cat([nothing[:0], *rising]).argsort(stable=True)
        place = torch.empty(count, dtype=torch.long)
        place[order] = torch.arange(count)
        never = len(score)
        ranks = torch.full((never,), never)
        ranks[closing] = place[chunk_of]
        return ranks

    def chunks(self, score: Tensor) -> tuple[Tensor, list[int]]:
        """(num_channels,) number of each channel's chunk, -1 if it never closes; and how many chunks each group has.

        The chunks of a group are numbered from its lowest scores up, so that chunks of equal score close in that order.
        """
        numbers = torch.full((len(score),), -1)
        counts: list[int] = []
        for group in self.groups:
            multiple = self.multiples[group.name]
            size = group.size - self.leasts[group.name]  # channels that may close
            closing = score[group.span].argsort(stable=True)[:size]
            short = -size % multiple  # the first chunk brings the group to a multiple
            own = (torch.arange(size) + short) // multiple
            numbers[group.start + closing] = own + sum(counts)
            counts.append(ceil(size / multiple))
        return numbers, counts

    def least_share(self) -> float:
        """Cost of what never closes / cost of the whole model."""
        ranks = self.ranks(torch.zeros(self.graph.num_channels))
        return self.share_of(ranks >= len(ranks))

    def select(self, score: Tensor, ratio: float) -> Kept:
        """The channels kept when chunks close from the lowest score up, no more than needed to meet the budget.

        Args:
            score: (num_channels,) scores, higher = keep.
            ratio: Cost of the kept channels / cost of the whole model, at most.

        Raises:
            ValueError: The budget cannot be met under the limits.
        """
        ranks = self.ranks(score)

        def share_from(rank: int) -> float:
            return self.share_of(ranks >= rank)

        least = share_from(len(ranks))
        if least > ratio:
            raise ValueError(
                f'a budget of {ratio:.4f} of the {type(self.cost).__name__} cannot be met: with all that may close '
                f'closed, {least:.4f} are left (floor {self.limits.floor}, divisor {self.limits.divisor}, steps of '
                f'{self.cost.step}, excluded {list(self.limits.exclude)}, frozen groups aside)'
            )
        closing = ranks[ranks < len(ranks)]
        count = int(closing.max()) + 1 if len(closing) else 0
        first = bisect_left(range(count), True, key=lambda rank: share_from(rank) <= ratio)
        return self.graph.keeping(ranks >= first)

    def choose(self, score: Tensor, ratio: float) -> Kept:
        """The channels kept when the budget is met as closely as the limits allow.

        Args:
            score: (num_channels,) scores, higher = keep.
            ratio: Cost of the kept channels / cost of the whole model, at most.

        Raises:
            ValueError: The budget cannot be met under the limits.
        """
        return self.fill(self.select(score, ratio), score, ratio)

    def close(self, score: Tensor, kept: Kept, filters: float, ratio: float) -> Kept:
        """The channels kept after a number of filters with the lowest scores close, or fewer if the budget is met.

        Args:
            score: (num_channels,) scores, higher = keep.
            kept: The open channels; closed channels stay closed and do not count again.
            filters: Number of filters to close; the last chunk may exceed it by the filters tied to it.
            ratio: Cost of the kept channels / cost of the whole model, at which closing stops.
        """
        ranks = self.ranks(below(score, kept.vector))
        counts = MACs().bind(self.graph).marginal(kept.vector.double()) > 0  # channels in closed blocks do not
        closing = kept.vector & counts & (ranks < len(ranks))
        closed = 0
        for rank in ranks[closing].unique().tolist():
            if closed >= filters or self.share(kept) <= ratio:
                break
            fewer = self.graph.keeping(kept.vector & (ranks != rank))
            lost = kept.vector & ~fewer.vector
            closed += int(self.graph.filters[lost].sum())
            kept = fewer
        return kept

    def fill(self, kept: Kept, score: Tensor, ratio: float, among: Tensor | None = None) -> Kept:
        """Reopen the chunks that still fit the budget, best score first; approaches the budget from below.

        Emptied blocks stay empty.

        Args:
            kept: A selection that meets the budget.
            score: (num_channels,) the scores it was made from.
            ratio: Cost of the kept channels / cost of the whole model, at most.
            among: (num_channels,) bool, the channels that may be open; all by default.
        """
        among = torch.ones_like(kept.vector) if among is None else among.clone()
        for group in kept.idle:
            among[group.span] = False
        ranks = self.ranks(below(score, among))
        group_of = torch.full((len(among),), -1)
        for number, group in enumerate(self.groups):
            group_of[group.span] = number
        full: set[int] = set()  # groups whose next chunk does not fit: the chunks of a group open in order
        closed = ranks[~kept.vector & among].unique()
        for rank in closed.flip(0).tolist():
            chunk = ranks == rank
            owner = int(group_of[chunk][0])
            if owner in full:
                continue
            more = self.graph.keeping(kept.vector | chunk)
            if self.share(more) <= ratio:
                kept = more
                continue
            full.add(owner)
            if len(full) == len(self.groups):
                break
        return kept

    def check(self, kept: Kept) -> None:
        """Check that a selection respects the limits.

        Raises:
            RuntimeError: It does not.
        """
        may_shrink = {group.name for group in self.groups}
        for group in self.graph.groups:
            if group in kept.idle:
                continue
            open_ = int(kept.vector[group.span].sum())
            least = self.leasts[group.name] if group.name in may_shrink else group.size
            multiple = self.multiples[group.name]
            uneven = open_ < group.size and open_ % multiple
            if open_ < least or uneven:
                raise RuntimeError(
                    f'{open_} of {group.size} channels of {group.name} are open, which the limits do not allow: at '
                    f'least {least}, in multiples of {multiple}'
                )

    @cached_property
    def empties(self) -> bool:
        """Whether the limits allow residual blocks to be emptied."""
        return any(self.leasts[name] == 0 for name in self.graph.lasts)

    def share_of(self, stays: Tensor) -> float:
        """Cost of the channels that stay, (num_channels,) bool within the limits / cost of the whole model."""
        if self.empties:
            stays = self.graph.keeping(stays).vector
        price = self.cost.price(stays.double())
        return float(price) / self.total

    def share(self, kept: Kept) -> float:
        """Cost of the kept channels / cost of the whole model."""
        return self.share_of(kept.vector)

    def per_cost(self, score: Tensor, kept: Tensor, exponent: float) -> Tensor:
        """(num_channels,) scores divided by a power of the cost that closing each channel alone would save.

        Args:
            score: (num_channels,) scores, higher = keep.
            kept: (num_channels,) bool, the open channels.
            exponent: Power of the marginal cost; 0 leaves the scores as they are.
        """
        saved = self.cost.marginal(kept.double()).clamp_min(self.cost.unit)
        return score.cpu() / saved.pow(exponent)


def excluded_channels(graph: ChannelGraph, pattern: str) -> Tensor:
    """(num_channels,) bool: channels of the modules whose path matches a shell pattern, block gates included.

    Those of a norm across channels, which has no parameters of single channels, are what it reads.

    Raises:
        ValueError: The pattern matches no module that the trace knows.
    """
    owned = [name for name in graph.slots if fnmatch(name.rpartition('.')[0], pattern)]
    indices = [module.index for path, module in graph.full_width.items() if fnmatch(path, pattern)]
    if not owned and not indices and not any(fnmatch(path, pattern) for path in graph.unreached):
        inner = f'{pattern}.'
        has_parts = any(name.startswith(inner) for name in (*graph.slots, *graph.full_width))
        meant = f": it has none of its own; '{inner}*' matches the modules in it" if has_parts else ''
        raise ValueError(f'exclude pattern {pattern!r} matches no module with channels{meant}')
    for name in owned:
        indices += graph.slots[name].values()
    found = graph.holding(indices)
    for block in graph.gated_blocks:
        if any(map(block.holds, owned)):
            found[block.gate] = True
    return found


def below(score: Tensor, among: Tensor) -> Tensor:
    """(num_channels,) scores, those not ``among`` below all others: closed channels come first in every order."""
    return score.detach().cpu().double().masked_fill(~among, -torch.inf)
