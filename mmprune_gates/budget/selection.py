"""Scores to kept channels under a budget: floors, divisor and exclusions live here, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from math import ceil

import torch
from torch import Tensor

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
    """Channels that may close, in blocks, as the limits allow.

    Attributes:
        graph: Their graph.
        groups: (G,) groups that may shrink.
        limits: The limits.
    """

    graph: ChannelGraph
    groups: tuple[Group, ...]
    limits: Limits

    @classmethod
    def of(cls, graph: ChannelGraph, limits: Limits) -> Candidates:
        """The candidates of a graph.

        Raises:
            ValueError: A pattern that matches no module with channels.
        """
        kept_whole: set[int] = set()
        for pattern in limits.exclude:
            owners = [name for name in graph.slots if fnmatch(name.rpartition('.')[0], pattern)]
            if not owners and not any(fnmatch(path, pattern) for path in graph.unreached):
                raise ValueError(f'exclude pattern {pattern!r} matches no module with channels')
            kept_whole.update(i for name in owners for index in graph.slots[name].values() for i in index.tolist())
            kept_whole.update(g.start for g in graph.free if g.block and any(map(g.block.holds, owners)))
        groups = [g for g in graph.free if not kept_whole & set(range(g.start, g.start + g.size))]
        return cls(graph, tuple(groups), limits)

    def ranks(self, score: Tensor) -> Tensor:
        """(num_channels,) place of each channel's block in the order of closing; ``num_channels`` where never.

        Args:
            score: (num_channels,) higher = keep. A block has the mean of its channels.

        Raises:
            ValueError: A score of a channel that may close is not a number.
        """
        score = score.detach().cpu().double()
        if unknown := [group.name for group in self.groups if score[group.span].isnan().any()]:
            raise ValueError(f'the scores of {listed(unknown)} are not numbers (NaN): nothing can be chosen by them')
        numbers, counts = self.blocks(score)
        closes, count = numbers >= 0, sum(counts)
        mean = torch.zeros(count, dtype=score.dtype).index_add(0, numbers[closes], score[closes])
        mean /= torch.bincount(numbers[closes], minlength=count)
        # Blocks of a group close in order, even if rounding says otherwise: its width stays a multiple.
        mean = torch.cat([mean[:0], *(own.cummax(0).values for own in mean.split(counts))])
        place = torch.empty(count, dtype=torch.long)
        place[mean.argsort(stable=True)] = torch.arange(count)
        ranks = torch.full((len(score),), len(score))
        ranks[closes] = place[numbers[closes]]
        return ranks

    def blocks(self, score: Tensor) -> tuple[Tensor, list[int]]:
        """(num_channels,) number of each channel's block, -1 where it never closes; blocks of each group.

        The blocks of a group are numbered from its lowest scores up, so that equal blocks close in that order.
        """
        numbers, counts = torch.full((len(score),), -1), []
        for group in self.groups:
            closing = score[group.span].argsort(stable=True)[: group.size - self.limits.least(group)]
            short = -len(closing) % self.limits.divisor  # the first block brings the group to a multiple
            own = (torch.arange(len(closing)) + short) // self.limits.divisor
            numbers[group.start + closing] = own + sum(counts)
            counts.append(-(-len(closing) // self.limits.divisor))
        return numbers, counts

    def select(self, score: Tensor, ratio: float) -> Tensor:
        """Which channels stay when the lowest scores close until the budget is met.

        Args:
            score: (num_channels,) higher = keep.
            ratio: Kept MACs / original MACs, at most.

        Returns:
            (num_channels,) bool, True = keep: as few closed as needed, in order of their scores.

        Raises:
            ValueError: The budget cannot be met under the limits.
        """
        ranks, total = self.ranks(score), self.graph.macs()
        low, high = 0, len(ranks)
        if self.share(ranks >= high, total) > ratio:
            raise ValueError(
                f'a budget of {ratio:.4f} of the MACs cannot be met: with all that may close closed, '
                f'{self.share(ranks >= high, total):.4f} are left (floor {self.limits.floor}, divisor '
                f'{self.limits.divisor}, excluded {list(self.limits.exclude)}, frozen groups aside)'
            )
        while low < high:
            middle = (low + high) // 2
            if self.share(ranks >= middle, total) <= ratio:
                high = middle
            else:
                low = middle + 1
        return self.graph.without_idle(ranks >= low)

    def close(self, score: Tensor, kept: Tensor, filters: float, ratio: float) -> Tensor:
        """Which channels stay when a number of filters with the lowest scores close, or fewer if the budget is met.

        Args:
            score: (num_channels,) higher = keep.
            kept: (num_channels,) bool, what is open now; what is closed stays closed and does not count again.
            filters: Filters to close; the last block may exceed it by what is tied to it.
            ratio: Kept MACs / original MACs below which nothing more closes.

        Returns:
            (num_channels,) bool, True = keep.
        """
        ranks, total = self.ranks(below(score, kept)), self.graph.macs()
        alive = kept & (marginal_macs(self.graph, kept) > 0)  # what is in a closed block does not count again either
        closed = 0
        for rank in ranks[alive & (ranks < len(ranks))].unique().tolist():
            if closed >= filters or self.share(kept, total) <= ratio:
                break
            block = ranks == rank
            before, kept = kept, self.graph.without_idle(kept & ~block)
            closed += int(self.graph.filters[before & ~kept].sum())
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
            own, least = kept[group.span], self.limits.least(group) if group.name in may_shrink else group.size
            open_ = int(own.sum())
            uneven = open_ % self.limits.divisor if group.block is None and open_ < group.size else 0
            if group.name not in idle and (open_ < least or uneven):
                raise RuntimeError(
                    f'{open_} of {group.size} channels of {group.name} are open, which the limits do not allow: at '
                    f'least {least}, in multiples of {self.limits.divisor}'
                )

    def share(self, kept: Tensor, total: int) -> float:
        """Kept MACs / original MACs."""
        return float(self.graph.cost(self.graph.without_idle(kept).double())) / total


def below(score: Tensor, among: Tensor) -> Tensor:
    """(num_channels,) scores, those not ``among`` below all others: what is closed comes first in every order."""
    return score.detach().cpu().double().masked_fill(~among, -torch.inf)


def per_mac(score: Tensor, graph: ChannelGraph, kept: Tensor, exponent: float) -> Tensor:
    """(num_channels,) scores divided by a power of what each channel alone would save, all others held fixed.

    Args:
        score: (num_channels,) higher = keep.
        graph: Its graph.
        kept: (num_channels,) bool, what is open.
        exponent: Power of the marginal MACs; 0 leaves the scores as they are.
    """
    return score.cpu() / marginal_macs(graph, kept).clamp_min(1).pow(exponent)


def marginal_macs(graph: ChannelGraph, kept: Tensor) -> Tensor:
    """(num_channels,) MACs that each channel alone would save; 0 for those of blocks that are closed."""
    with torch.enable_grad():
        value = kept.double().requires_grad_()
        return torch.autograd.grad(graph.cost(value), value)[0]


def fill(candidates: Candidates, kept: Tensor, score: Tensor, ratio: float, among: Tensor | None = None) -> Tensor:
    """Open again, best score first, what still fits the budget; comes closest to it from below.

    Blocks that are emptied stay so.

    Args:
        candidates: What may close.
        kept: (num_channels,) bool, a selection that meets the budget.
        score: (num_channels,) the scores it was made from.
        ratio: Kept MACs / original MACs, at most.
        among: (num_channels,) bool, which channels may be open; by default all.
    """
    among = torch.ones_like(kept) if among is None else among.clone()
    for group in candidates.graph.idle(kept):
        among[group.span] = False
    ranks, total = candidates.ranks(below(score, among)), candidates.graph.macs()
    kept = kept.clone()
    blocked: set[int] = set()
    owner = torch.full((len(kept),), -1)
    for number, group in enumerate(candidates.groups):
        owner[group.span] = number
    for rank in ranks[~kept & among].unique().flip(0).tolist():
        block = ranks == rank
        group = int(owner[block][0])
        if group in blocked:
            continue
        if candidates.share(kept | block, total) <= ratio:
            kept |= block
        else:
            blocked.add(group)  # blocks of a group open in order
            if len(blocked) == len(candidates.groups):
                break
    return kept
