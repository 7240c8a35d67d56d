"""Scores to kept channels: the budget from below, the limits always, lowest scores first."""

import pytest
import torch
from helpers import example, traced
from hypothesis import example as with_example
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from toy_nets import Chunk, Decoder, Plain, Residual, TwoHeads, conv_bn

from mmprune_gates import trace_channels
from mmprune_gates.budget import Candidates, Limits, MACs
from mmprune_gates.channels.narrowed import narrowed

NETS = {'Residual': Residual, 'Decoder': Decoder, 'Chunk': Chunk, 'TwoHeads': TwoHeads}


class Wide(nn.Module):
    """Two groups of ten and twelve channels of the same cost each, and one of four."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 10, 1), conv_bn(3, 12, 1), conv_bn(22, 4, 1)
        self.head = nn.Conv2d(4, 5, 1)

    def forward(self, x):
        return self.head(self.c(torch.cat([self.a(x), self.b(x)], 1)))


WIDE = trace_channels(Wide(), (example((3, 4, 4), dtype=torch.float32),))


def scores(graph, seed=0):
    return torch.rand(graph.num_channels, generator=torch.Generator().manual_seed(seed))


def counts(graph, kept):
    return {group.name: int(kept.vector[group.span].sum()) for group in graph.groups}


@pytest.mark.parametrize('net', NETS.values(), ids=NETS)
@pytest.mark.parametrize('ratio', [0.3, 0.5, 0.77, 0.99, 1.0])
def test_the_budget_is_met_from_below_with_as_few_closed_as_needed(net, ratio):
    graph = traced(net)[1]
    candidates, score = Candidates.of(graph, Limits()), scores(graph)
    kept = candidates.select(score, ratio)
    assert graph.macs(kept) <= ratio * graph.macs()
    ranks = candidates.ranks(score)
    if not kept.vector.all():
        last = ranks[~kept.vector].max()
        assert candidates.share(graph.keeping(kept.vector | (ranks == last))) > ratio
        assert (ranks[kept.vector] > last).all()


@pytest.mark.parametrize('net', NETS.values(), ids=NETS)
@pytest.mark.parametrize('ratio', [0.3, 0.5, 0.77])
def test_filling_comes_closer_from_below_and_keeps_the_order_within_groups(net, ratio):
    graph = traced(net)[1]
    candidates = Candidates.of(graph, Limits())
    for seed in range(5):
        score = scores(graph, seed)
        kept = candidates.select(score, ratio)
        filled = candidates.fill(kept, score, ratio)
        before, after = (candidates.share(k) for k in (kept, filled))
        assert before <= after <= ratio and bool((filled.vector | ~kept.vector).all())
        for group in candidates.groups:
            own, stays = score[group.span], filled[group.name]
            assert stays.all() or own[stays].min() >= own[~stays].max()
            if not stays.all():  # nothing more fits
                ranks = candidates.ranks(score)
                more = filled.vector | (ranks == ranks[group.span][~stays].max())
                assert candidates.share(graph.keeping(more)) > ratio


def test_filling_gains_where_a_costly_channel_closed_last():
    graph = traced(Residual)[1]
    candidates = Candidates.of(graph, Limits())
    gained = 0
    for seed in range(5):
        kept = candidates.select(scores(graph, seed), 0.5)
        gained += int(candidates.fill(kept, scores(graph, seed), 0.5).vector.sum() - kept.vector.sum())
    assert gained > 0


def test_frozen_groups_stay_and_low_scores_go_first():
    score = torch.arange(WIDE.num_channels).float()
    kept = Candidates.of(WIDE, Limits(floor=0)).select(score, 0.9)
    closed = (~kept.vector).nonzero().flatten().tolist()
    assert closed == list(range(len(closed))) and closed
    assert counts(WIDE, kept)['head'] == 5


def test_of_two_groups_all_removals_fall_on_the_one_with_small_scores():
    score = torch.rand(WIDE.num_channels) + 1
    for small, large in (('a', 'b'), ('b', 'a')):
        own = score.clone()
        own[WIDE.group(f'{large}.0').span] *= 10
        own[WIDE.group('c.0').span] *= 10
        left = counts(WIDE, Candidates.of(WIDE, Limits()).select(own, 0.8))
        assert left[f'{small}.0'] < WIDE.group(f'{small}.0').size
        assert left[f'{large}.0'] == WIDE.group(f'{large}.0').size and left['c.0'] == 4


def test_ties_close_in_order_of_execution():
    kept = Candidates.of(WIDE, Limits()).select(torch.ones(WIDE.num_channels), 0.8)
    left = counts(WIDE, kept)
    assert left['a.0'] < 10 and left['b.0'] == 12 and left['c.0'] == 4
    a = kept['a.0']
    assert a.tolist() == sorted(a.tolist())  # the first ones close


@pytest.mark.parametrize('floor', [0.0, 0.05, 0.3, 0.5])
def test_floors_hold_whatever_the_scores(floor):
    limits = Limits(floor=floor)
    candidates = Candidates.of(WIDE, limits)
    least = candidates.ranks(scores(WIDE)) == WIDE.num_channels  # what never closes
    expected = {
        'a.0': max(1, -(-10 * floor // 1)),
        'b.0': max(1, -(-12 * floor // 1)),
        'c.0': max(1, -(-4 * floor // 1)),
    }
    assert counts(WIDE, WIDE.keeping(least)) == {**expected, 'head': 5}
    assert {group.name: limits.least(group) for group in WIDE.free} == expected


@with_example(divisor=3, score=torch.full((WIDE.num_channels,), 0.8469336370254836, dtype=torch.double), ratio=0.5)
@given(
    divisor=st.integers(1, 9),
    score=st.one_of(
        st.floats(0, 1).map(lambda x: torch.full((WIDE.num_channels,), x, dtype=torch.double)),
        st.integers(0, 1000).map(lambda seed: scores(WIDE, seed)),
    ),
    ratio=st.floats(0.05, 1),
)
def test_groups_shrink_to_multiples_of_the_divisor(divisor, score, ratio):
    candidates = Candidates.of(WIDE, Limits(floor=0.05, divisor=divisor))
    try:
        kept = candidates.select(score, ratio)
    except ValueError:
        least = WIDE.keeping(candidates.ranks(score) == WIDE.num_channels)  # what never closes
        assert candidates.share(least) > ratio
        return
    for found in (kept, candidates.fill(kept, score, ratio)):
        for name, number in counts(WIDE, found).items():
            size = WIDE.group(name).size
            assert number == size or number % divisor == 0 and 0 < number < size


@pytest.mark.parametrize(('width', 'divisor'), [(15, 1), (16, 2), (24, 2), (32, 4), (63, 4), (64, 8), (200, 8)])
def test_a_divisor_that_follows_the_width(width, divisor):
    net = nn.Sequential(conv_bn(3, width, 1), nn.Conv2d(width, 5, 1))
    graph = trace_channels(net, (example((3, 4, 4), dtype=torch.float32),))
    candidates = Candidates.of(graph, Limits(divisor='auto'))
    free = graph.free[0]
    assert candidates.multiples[free.name] == divisor
    kept = counts(graph, candidates.select(scores(graph), 0.55))[free.name]
    assert kept % divisor == 0 and kept == max(divisor, int(0.55 * width) // divisor * divisor)


def test_a_cost_in_steps_and_a_divisor_that_follows_the_width_hold_together():
    graph = trace_channels(nn.Sequential(conv_bn(3, 48, 1), nn.Conv2d(48, 5, 1)), torch.zeros(1, 3, 4, 4))
    cost = MACs().bind(graph)
    cost.step = 6
    assert Candidates.of(graph, Limits(divisor='auto'), cost).multiples[graph.free[0].name] == 12


def test_excluded_modules_keep_their_groups_whole():
    candidates = Candidates.of(WIDE, Limits(exclude=('a.*',)))
    assert [group.name for group in candidates.groups] == ['b.0', 'c.0']
    assert counts(WIDE, candidates.select(scores(WIDE), 0.6))['a.0'] == 10
    assert [g.name for g in Candidates.of(WIDE, Limits(exclude=('[ab].1',))).groups] == ['c.0']
    # a reader's pattern holds what it reads
    assert [g.name for g in Candidates.of(WIDE, Limits(exclude=('head',))).groups] == ['a.0', 'b.0']


def test_everything_excluded():
    candidates = Candidates.of(WIDE, Limits(exclude=('*',)))
    assert candidates.groups == ()
    assert candidates.select(scores(WIDE), 1.0) == WIDE.kept()
    assert candidates.fill(WIDE.kept(), scores(WIDE), 1.0) == WIDE.kept()


def test_a_pattern_that_matches_nothing():
    with pytest.raises(ValueError, match=r"exclude pattern 'backbone\.\*' matches no module with channels"):
        Candidates.of(WIDE, Limits(exclude=('backbone.*',)))


def test_a_budget_out_of_reach():
    candidates = Candidates.of(traced(Plain)[1], Limits(floor=0.5, exclude=('a.0',)))
    with pytest.raises(ValueError, match=r"0\.1000 .* cannot be met: .* 0\.\d{4} are left \(floor 0\.5, .*\['a\.0'\]"):
        candidates.select(torch.zeros(candidates.graph.num_channels), 0.1)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'floor': -0.1}, r'floor must be a share in \[0, 1\], got -0\.1'),
        ({'floor': 1.1}, r'floor must be a share in \[0, 1\], got 1\.1'),
        ({'divisor': 0}, "divisor must be 'auto' or a whole number of at least 1, got 0"),
        ({'divisor': 2.0}, r"divisor must be 'auto' or a whole number of at least 1, got 2\.0"),
        ({'divisor': 'all'}, "divisor must be 'auto' or a whole number of at least 1, got 'all'"),
    ],
)
def test_limits_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Limits(**options)


class TestClose:
    """What one Tick closes."""

    @pytest.mark.parametrize('net', NETS.values(), ids=NETS)
    @pytest.mark.parametrize('divisor', [1, 2])
    @pytest.mark.parametrize('filters', [1, 3, 8])
    def test_as_many_filters_as_asked_and_at_most_one_block_more(self, net, filters, divisor):
        graph = traced(net)[1]
        candidates, score = Candidates.of(graph, Limits(divisor=divisor)), scores(graph)
        kept = graph.kept()
        while True:
            after = candidates.close(score, kept, filters, 0.0)
            assert not (after.vector & ~kept.vector).any()
            closed = kept.vector & ~after.vector
            if not closed.any():
                break
            ranks = candidates.ranks(score.masked_fill(~kept.vector, -torch.inf))
            last = closed & (ranks == ranks[closed].max())
            assert int(graph.filters[closed & ~last].sum()) < filters
            if int(graph.filters[closed].sum()) < filters:  # nothing is left
                assert (ranks[after.vector] == len(ranks)).all()
            kept = after
        least = {group.name: candidates.leasts[group.name] for group in candidates.groups}
        assert {name: count for name, count in counts(graph, kept).items() if name in least} == least

    def test_lowest_scores_first_and_closed_ones_never_again(self):
        candidates = Candidates.of(WIDE, Limits())
        score = torch.arange(WIDE.num_channels).float()
        kept = candidates.close(score, WIDE.kept(), 3, 0.0)
        assert (~kept.vector).nonzero().flatten().tolist() == [0, 1, 2]
        score[:3] = 100  # whatever is said of what is closed
        assert (~candidates.close(score, kept, 3, 0.0).vector).nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]

    def test_stops_at_the_budget(self):
        candidates, score = Candidates.of(WIDE, Limits()), scores(WIDE)
        kept = candidates.close(score, WIDE.kept(), 1000, 0.6)
        assert kept == candidates.select(score, 0.6)
        assert candidates.close(score, kept, 1000, 0.6) == kept

    def test_a_tie_counts_all_its_filters(self):
        graph = traced(Residual)[1]
        tied = max(graph.free, key=lambda group: int(graph.filters[group.start]))
        assert int(graph.filters[tied.start]) > 1
        score = torch.ones(graph.num_channels)
        score[tied.span] = torch.linspace(0, 0.5, tied.size)
        kept = Candidates.of(graph, Limits()).close(score, graph.kept(), 2, 0.0)
        assert int((~kept.vector).sum()) == -(-2 // int(graph.filters[tied.start]))


def test_filling_opens_only_what_may_be_open():
    candidates, score = Candidates.of(WIDE, Limits()), scores(WIDE)
    kept = candidates.select(score, 0.3)
    among = kept.vector | (torch.arange(WIDE.num_channels) % 2 == 0)
    filled = candidates.fill(kept, score, 0.5, among)
    assert (filled.vector & ~kept.vector).any() and not (filled.vector & ~among).any()
    assert candidates.share(filled) <= 0.5


def test_scores_per_mac():
    kept, score = torch.ones(WIDE.num_channels, dtype=torch.bool), scores(WIDE)
    candidates = Candidates.of(WIDE, Limits())
    assert torch.equal(candidates.per_cost(score, kept, 0.0), score)
    value = kept.double().requires_grad_()
    WIDE.cost(value).backward()
    assert torch.allclose(candidates.per_cost(score, kept, 0.5) * value.grad.sqrt(), score.double())


@given(
    divisor=st.integers(1, 5),
    floor=st.sampled_from([0.0, 0.05, 0.3]),
    closed=st.integers(0, 1000).map(lambda seed: scores(WIDE, seed) < 0.7),
)
def test_what_may_leave_is_closed_and_within_the_limits(divisor, floor, closed):
    candidates = Candidates.of(WIDE, Limits(floor=floor, divisor=divisor))
    kept = WIDE.keeping(~closed)
    allowed = candidates.allowed(kept)
    assert not (kept.vector & ~allowed.vector).any()
    for group in WIDE.free:
        open_, before = int(allowed[group.name].sum()), int(kept[group.name].sum())
        assert open_ >= min(group.size, candidates.limits.least(group))
        assert open_ == group.size or open_ % divisor == 0
        assert open_ < max(before, candidates.limits.least(group)) + divisor  # no more than it must


def test_shares_of_a_group_stay_those_of_the_whole_one():
    candidates = Candidates.of(WIDE, Limits(floor=0.5))
    stays = torch.ones(WIDE.num_channels, dtype=torch.bool)
    stays[WIDE.group('b.0').start] = False
    left = narrowed(WIDE, WIDE.keeping(stays), [])
    again = candidates.narrowed(left)
    assert again.total == candidates.total
    assert [again.leasts[name] for name in ('a.0', 'b.0', 'c.0')] == [5, 6, 2]


class Branch(nn.Module):
    """A residual block that ends in a norm."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.norm = conv_bn(3, 8), conv_bn(8, 6), nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.norm(self.b(self.a(x))))


def test_exclusions_hold_after_the_modules_they_name_have_gone():
    graph = trace_channels(Branch(), (example((3, 8, 8), dtype=torch.float32),))
    candidates = Candidates.of(graph, Limits(floor=0, exclude='norm'))
    (block,) = [block for block in graph.blocks if block.last]
    stays = torch.ones(graph.num_channels, dtype=torch.bool)
    stays[graph.group(block.last).span] = False
    left = narrowed(graph, graph.keeping(stays), block.modules)
    assert 'norm.weight' in graph.slots and 'norm.weight' not in left.slots
    again = candidates.narrowed(left)
    assert {group.name for group in candidates.groups} == {'a.0'} and not again.groups
