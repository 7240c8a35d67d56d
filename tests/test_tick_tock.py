"""The cycle: which phase follows which, what a Tick closes, where it stops, what is saved."""

from io import BytesIO

import pytest
import torch
from helpers import toy, traced
from toy_nets import Plain, Residual

from mmprune_gates.budget import Cycle, Limits, TickTock
from mmprune_gates.budget.tick_tock import FINETUNE, TICK, TOCK
from mmprune_gates.gates import DecoratorGate, attach_gates


def cycle_of(net=Residual, target=0.5, cycle=None, limits=None, **options):
    model, graph, _ = toy(net)
    gates = attach_gates(model, graph, DecoratorGate)
    cycle = cycle or Cycle(tick=2, tock=3, ticks=2, fraction=0.1)
    return TickTock(gates, target, limits or Limits(), cycle, **options)


def random_grads(run, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        group.name: torch.randn(run.gates[group.name].theta.shape, generator=generator, dtype=torch.double)
        for group in run.gates.graph.free
    }


def go(run, steps=200, remaining=7):
    """Phases as they pass, with their lengths."""
    passed = []
    for i in range(steps):
        if run.phase == TICK:
            run.observe(random_grads(run, i))
        before = run.phase, run.length
        if run.step(remaining):
            passed.append(before)
        if run.phase == FINETUNE:
            break
    return passed


def test_one_tock_first_then_ticks_and_a_tock_in_turn_until_the_target_is_met():
    run = cycle_of(target=0.3, cycle=Cycle(tick=2, tock=3, ticks=2, fraction=0.04))
    passed = go(run)
    ticks = sum(phase == TICK for phase, _ in passed)
    assert ticks == run.ticks > 2
    expected = [(TOCK, 3)]
    while sum(phase == TICK for phase, _ in expected) < ticks:
        expected += [(TICK, 2), (TICK, 2), (TOCK, 3)]
    while expected[-1][0] == TOCK or sum(phase == TICK for phase, _ in expected) > ticks:
        expected.pop()
    assert passed == expected
    assert (run.phase, run.length) == (FINETUNE, 7)
    assert not any(run.step(0) for _ in range(20))


@pytest.mark.parametrize('factor', [0.8, 1.2])
def test_a_corrected_target_is_met(factor):
    run = cycle_of(target=0.5)
    run.correct(factor)
    go(run)
    assert run.target == 0.5 and run.aim == pytest.approx(0.5 * factor)
    assert 0.5 * factor - 0.08 < run.share <= run.aim


@pytest.mark.parametrize('target', [0.3, 0.5, 0.9])
def test_the_target_is_met_from_below_and_closely(target):
    run = cycle_of(target=target)
    go(run)
    graph = run.gates.graph
    assert run.share <= target
    assert graph.macs(run.gates.kept()) / graph.macs() == pytest.approx(run.share)
    for group in graph.free:  # only what an earlier Tick closed may still fit
        for channel in range(group.start, group.start + group.size):
            if not run.kept.vector[channel]:
                assert not bool(run.gates[group.name].theta[:, channel - group.start].any())
    assert target - run.share < 0.1


def test_the_score_is_the_sum_over_mini_batches_and_members():
    run = cycle_of()
    go(run, steps=3)
    assert run.phase == TICK
    take = [random_grads(run, seed) for seed in (1, 2)]
    for grads in take:
        run.observe(grads)
    for group in run.gates.graph.free:
        theta = run.gates[group.name].theta.detach()
        expected = sum((theta * grads[group.name]).abs().sum(0) for grads in take)
        assert torch.allclose(run.criterion.sum[group.span], expected)
    run.step(0), run.step(0)
    assert not run.criterion.sum.any()  # gathered anew


def test_scores_are_those_of_all_ranks():
    def other_rank(score):
        score[:-1] += torch.arange(len(score) - 1)

    run, alone = cycle_of(Plain), cycle_of(Plain)
    run.criterion.reduce = other_rank
    for one in (run, alone):
        go(one, steps=3)
        one.observe(random_grads(one, 5))
    expected = run.criterion.sum.clone()
    assert torch.equal(expected, alone.criterion.sum + torch.arange(len(expected)))
    for one in (run, alone):
        one.step(0), one.step(0)
    closed = (~run.kept.vector).nonzero().flatten()
    open_ = run.kept.vector & (run.candidates.ranks(expected) < len(expected))
    assert expected[closed].max() < expected[open_].min()
    assert run.kept != alone.kept


def test_mini_batches_that_overflow_are_skipped():
    run, clean = cycle_of(), cycle_of()
    for one in (run, clean):
        go(one, steps=3)
    one = random_grads(clean, 5)
    overflow = {name: grad * torch.inf for name, grad in random_grads(clean, 6).items()}
    partly = {
        name: grad.clone().fill_(torch.nan) if number == 0 else grad for number, (name, grad) in enumerate(one.items())
    }
    clean.observe(one)
    for grads in (overflow, one, partly):
        run.observe(grads)
    assert torch.equal(run.criterion.sum, clean.criterion.sum) and run.criterion.sum.any()
    run.close(), clean.close()
    assert run.kept == clean.kept != clean.gates.graph.kept() and run.wasted == 0


def test_a_tick_without_a_finite_mini_batch_closes_nothing():
    run = cycle_of()
    go(run, steps=3)
    run.observe({name: grad * torch.nan for name, grad in random_grads(run, 5).items()})
    run.close()
    assert run.kept.vector.all() and run.wasted == 1


def test_what_is_closed_stays_exactly_zero():
    run = cycle_of()
    go(run, steps=9)
    for gate in run.gates.by_group.values():
        gate.theta.data += 0.1  # an optimiser's momentum
    run.hold()
    assert run.gates.kept() == run.kept and not run.kept.vector.all()


def test_importance_per_mac_prefers_costly_channels():
    cycle = Cycle(tick=2, tock=3, fraction=0.2)
    plain, costly = cycle_of(Plain, 0.1, cycle), cycle_of(Plain, 0.1, cycle, exponent=1.0)
    graph = plain.gates.graph
    cheap, dear = sorted(graph.free, key=lambda group: graph.macs() - graph.macs({group.name: first_only(group)}))
    for run in (plain, costly):
        run.criterion.sum[cheap.span], run.criterion.sum[dear.span], run.criterion.usable = 1.0, 1.01, torch.ones(())
        run.close()
    assert not plain.kept[cheap.name].all() and plain.kept[dear.name].all()
    assert not costly.kept[dear.name].all() and costly.kept[cheap.name].all()


def first_only(group):
    return torch.arange(group.size) != 0


def test_limits_hold():
    run = cycle_of(limits=Limits(floor=0.5, divisor=2), target=0.4)
    go(run)
    for group in run.gates.graph.free:
        width = int(run.kept[group.name].sum())
        assert width >= run.candidates.limits.least(group) and (width % 2 == 0 or width == group.size)


def test_state_is_restored():
    cycle = Cycle(tick=2, tock=3, ticks=2, fraction=0.04)
    whole, first, second = (cycle_of(target=0.3, cycle=cycle) for _ in range(3))
    go(first, steps=4)  # in the middle of a Tick
    assert first.phase == TICK and first.done == 1
    state = torch.load(saved(first.state_dict()), weights_only=True)
    second.load_state_dict(state)
    second.hold()
    go(whole, steps=4)
    for i in range(4, 20):
        for run in (whole, second):
            if run.phase == TICK:
                run.observe(random_grads(run, i))
            run.step(5)
    assert whole.kept == second.kept
    first_state, second_state = ({**run.state_dict(), **run.criterion.state_dict(), 'criterion': None}
                                 for run in (whole, second))  # fmt: skip
    assert first_state.keys() == second_state.keys() and 'sum' in first_state
    for name, value in second_state.items():
        expected = first_state[name]
        assert torch.equal(value, expected) if isinstance(value, torch.Tensor) else value == expected, name


def saved(state):
    file = BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_a_target_met_from_the_start_leaves_nothing_to_do():
    run = cycle_of(target=1.0)
    assert go(run) == [(TOCK, 3)] and run.kept.vector.all()


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'tick': 0, 'tock': 1}, 'tick must be a whole number'),
        ({'tick': 1, 'tock': 1, 'fraction': 0.0}, 'fraction must be a share'),
        ({'tick': 1, 'tock': 1, 'fraction': 1.5}, 'fraction must be a share'),
    ],
)
def test_lengths_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Cycle(**options)


def test_a_target_out_of_reach_is_refused():
    with pytest.raises(ValueError, match='cannot be met'):
        cycle_of(target=0.01, limits=Limits(floor=0.9))


def test_filters_of_a_graph_are_the_rows_of_its_weights():
    model, graph, _ = traced(Residual)
    rows = sum(weight.shape[0] for name, weight in model.named_parameters() if weight.dim() == 4)
    assert int(graph.filters.sum()) == rows
