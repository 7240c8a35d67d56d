"""Scores to kept channels under a budget; floors, divisor and exclusions live here, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from math import ceil

import torch
from torch import Tensor

from mmprune_gates.budget.costs import Cost, MACs
from mmprune_gates.channels.graph import ChannelGraph, Group
from mmprune_gates.gates import listed


@dataclass(frozen=True)
class Limits:
    """What selection must leave alone.

    Attributes:
        floor: Least share of each group that stays. With 0, residual blocks can be emptied; of all other groups at
            least one channel stays. This project's choice.
        divisor: Groups shrink to multiples of this (a group smaller than it stays whole).
        exclude: Shell patterns of module paths; a group that owns a parameter of a matching module stays whole.
    """

    floor: float = 0.05
    divisor: int = 1
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise ValueError(f'floor must be a share in [0, 1], got {self.floor}')
        if not isinstance(self.divisor, int) or self.divisor < 1:
            raise ValueError(f'divisor must be a positive whole number, got {self.divisor!r}')

    def least(self, group: Group) -> int:
        """Channels of a group that stay at least: none of a residual block's; one where it cannot be emptied."""
        if group.block is not None:
            return 0
        least = max(int(not group.empties), ceil(self.floor * group.size))
        return min(group.size, ceil(least / self.divisor) * self.divisor)


@dataclass(frozen=True)
class Candidates:
    """Channels that may close, in chunks, as the limits allow, and what they cost.

    Attributes:
        graph: Their graph.
        groups: (G,) groups that may shrink.
        limits: The limits.
        cost: Prices what is kept.
        total: Cost of the whole model.
    """

    graph: ChannelGraph
    groups: tuple[Group, ...]
    limits: Limits
    cost: Cost
    total: float

    @classmethod
    def of(cls, graph: ChannelGraph, limits: Limits, cost: Cost | None = None) -> Candidates:
        """The candidates of a graph.

        Args:
            graph: The graph.
            limits: What must stay.
            cost: Bound to the graph; multiply-accumulates by default.

        Raises:
            ValueError: A pattern that matches no module with channels.
        """
        cost = cost or MACs().bind(graph)
        excluded: set[int] = set()
        for pattern in limits.exclude:
            excluded |= excluded_channels(graph, pattern)
        groups = tuple(group for group in graph.free if excluded.isdisjoint(range(group.start, group.span.stop)))
        total = float(cost.price(torch.ones(graph.num_channels, dtype=torch.double)))
        return cls(graph, groups, limits, cost, total)

    def ranks(self, score: Tensor) -> Tensor:
        """(num_channels,) place of each channel's chunk in the order of closing; ``num_channels`` where never.

        Args:
            score: (num_channels,) higher = keep. A chunk has the mean of its channels.

        Raises:
            ValueError: A score of a channel that may close is not a number.
        """
        score = score.detach().cpu().double()
        if unknown := [group.name for group in self.groups if score[group.span].isnan().any()]:
            raise ValueError(f'the scores of {listed(unknown)} are not numbers (NaN): nothing can be chosen by them')
        numbers, counts = self.chunks(score)
        closes, count = numbers >= 0, sum(counts)
        mean = torch.zeros(count, dtype=score.dtype).index_add(0, numbers[closes], score[closes])
        mean /= torch.bincount(numbers[closes], minlength=count)
        # Chunks of a group close in order, even if rounding says otherwise: its width stays a multiple.
        rising = [own.cummax(0).values for own in mean.split(counts)]
        mean = torch.cat([mean[:0], *rising])
        place = torch.empty(count, dtype=torch.long)
        place[mean.argsort(stable=True)] = torch.arange(count)
        ranks = torch.full((len(score),), len(score))
        ranks[closes] = place[numbers[closes]]
        return ranks

    def chunks(self, score: Tensor) -> tuple[Tensor, list[int]]:
        """(num_channels,) number of each channel's chunk, -1 where it never closes; chunks of each group.

        The chunks of a group are numbered from its lowest scores up, so that equal chunks close in that order.
        """
        numbers, counts = torch.full((len(score),), -1), []
        for group in self.groups:
            closing = score[group.span].argsort(stable=True)[: group.size - self.limits.least(group)]
            short = -len(closing) % self.limits.divisor  # the first chunk brings the group to a multiple
            own = (torch.arange(len(closing)) + short) // self.limits.divisor
            numbers[group.start + closing] = own + sum(counts)
            counts.append(-(-len(closing) // self.limits.divisor))
        return numbers, counts

    def select(self, score: Tensor, ratio: float) -> Tensor:
        """Which channels stay when the lowest scores close until the budget is met.

        Args:
            score: (num_channels,) higher = keep.
            ratio: Cost of what is kept / cost of the whole model, at most.

        Returns:
            (num_channels,) bool, True = keep: as few closed as needed, in order of their scores.

        Raises:
            ValueError: The budget cannot be met under the limits.
        """
        ranks = self.ranks(score)
        low, high = 0, len(ranks)
        least = self.share(ranks >= high)
        if least > ratio:
            raise ValueError(
                f'a budget of {ratio:.4f} of the {type(self.cost).__name__} cannot be met: with all that may close '
                f'closed, {least:.4f} are left (floor {self.limits.floor}, divisor {self.limits.divisor}, excluded '
                f'{list(self.limits.exclude)}, frozen groups aside)'
            )
        while low < high:
            middle = (low + high) // 2
            if self.share(ranks >= middle) <= ratio:
                high = middle
            else:
                low = middle + 1
        return self.graph.without_idle(ranks >= low)

    def close(self, score: Tensor, kept: Tensor, filters: float, ratio: float) -> Tensor:
        """Which channels stay when a number of filters with the lowest scores close, or fewer if the budget is met.

        Args:
            score: (num_channels,) higher = keep.
            kept: (num_channels,) bool, what is open now; what is closed stays closed and does not count again.
            filters: Filters to close; the last chunk may exceed it by what is tied to it.
            ratio: Cost of what is kept / cost of the whole model, below which nothing more closes.

        Returns:
            (num_channels,) bool, True = keep.
        """
        ranks = self.ranks(below(score, kept))
        alive = kept & (self.marginal(kept) > 0)  # what is in a closed block does not count again either
        closed = 0
        for rank in ranks[alive & (ranks < len(ranks))].unique().tolist():
            if closed >= filters or self.share(kept) <= ratio:
                break
            before, kept = kept, self.graph.without_idle(kept & (ranks != rank))
            closed += int(self.graph.filters[before & ~kept].sum())
        return kept

    def fill(self, kept: Tensor, score: Tensor, ratio: float, among: Tensor | None = None) -> Tensor:
        """Open again, best score first, what still fits the budget; comes closest to it from below.

        Blocks that are emptied stay so.

        Args:
            kept: (num_channels,) bool, a selection that meets the budget.
            score: (num_channels,) the scores it was made from.
            ratio: Cost of what is kept / cost of the whole model, at most.
            among: (num_channels,) bool, which channels may be open; by default all.
        """
        kept = kept.clone()
        among = torch.ones_like(kept) if among is None else among.clone()
        for group in self.graph.idle(kept):
            among[group.span] = False
        ranks = self.ranks(below(score, among))
        group_of = torch.full((len(kept),), -1)
        for number, group in enumerate(self.groups):
            group_of[group.span] = number
        full: set[int] = set()  # groups of which the next chunk does not fit: chunks of a group open in order
        for rank in ranks[~kept & among].unique().flip(0).tolist():
            chunk = ranks == rank
            group = int(group_of[chunk][0])
            if group in full:
                continue
            if self.share(kept | chunk) <= ratio:
                kept |= chunk
            else:
                full.add(group)
                if len(full) == len(self.groups):
                    break
        return kept

    def check(self, kept: Tensor) -> None:
        """Ask whether a selection respects the limits.

        Args:
            kept: (num_channels,) bool, True = keep.

        Raises:
            RuntimeError: It does not.
        """
        idle = {group.name for group in self.graph.idle(kept)}
        may_shrink = {group.name for group in self.groups}
        for group in self.graph.groups:
            if group.name in idle:
                continue
            open_ = int(kept[group.span].sum())
            least = self.limits.least(group) if group.name in may_shrink else group.size
            uneven = group.block is None and open_ < group.size and open_ % self.limits.divisor
            if open_ < least or uneven:
                raise RuntimeError(
                    f'{open_} of {group.size} channels of {group.name} are open, which the limits do not allow: at '
                    f'least {least}, in multiples of {self.limits.divisor}'
                )

    def share(self, kept: Tensor) -> float:
        """Cost of what is kept / cost of the whole model."""
        return float(self.cost.price(self.graph.without_idle(kept).double())) / self.total

    def marginal(self, kept: Tensor) -> Tensor:
        """(num_channels,) what each channel alone would save; 0 for those of blocks that are closed."""
        return self.cost.marginal(kept.double())

    def per_cost(self, score: Tensor, kept: Tensor, exponent: float) -> Tensor:
        """(num_channels,) scores divided by a power of what each channel alone would save, all others held fixed.

        Args:
            score: (num_channels,) higher = keep.
            kept: (num_channels,) bool, what is open.
            exponent: Power of the marginal cost; 0 leaves the scores as they are.
        """
        return score.cpu() / self.marginal(kept).clamp_min(self.cost.unit).pow(exponent)


def excluded_channels(graph: ChannelGraph, pattern: str) -> set[int]:
    """Channels, and blocks, with a parameter in a module whose path matches a shell pattern.

    Raises:
        ValueError: The pattern matches no module that the trace knows.
    """
    owned = [name for name in graph.slots if fnmatch(name.rpartition('.')[0], pattern)]
    if not owned and not any(fnmatch(path, pattern) for path in graph.unreached):
        raise ValueError(f'exclude pattern {pattern!r} matches no module with channels')
    found = {channel for name in owned for index in graph.slots[name].values() for channel in index.tolist()}
    return found | {group.start for group in graph.free if group.block and any(map(group.block.holds, owned))}


def below(score: Tensor, among: Tensor) -> Tensor:
    """(num_channels,) scores, those not ``among`` below all others: what is closed comes first in every order."""
    return score.detach().cpu().double().masked_fill(~among, -torch.inf)
