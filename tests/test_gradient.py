"""The gradient update: a price that follows the target, one side at a time, and what it never touches."""

import pytest
import torch
from helpers import toy
from toy_nets import Residual

from mmprune_gates.budget import Gradient, Limits, Schedule
from mmprune_gates.budget.gradient import snapped
from mmprune_gates.gates import PolarizationGate, attach_gates


def controller(limits=None, target=0.3, **options):
    model, graph, _ = toy(Residual)
    gates = attach_gates(model, graph, PolarizationGate)
    return Gradient(gates, Schedule(target), limits or Limits(), **options), gates


def test_the_price_rises_above_the_target_and_falls_below_it_but_not_under_zero():
    update, gates = controller(price_step=0.5, rate=0.0)
    for expected in (0.5, 1.0):
        update.move(0.5)
        assert update.price == expected
    gates.set_theta(torch.full((gates.graph.num_channels,), 0.05))
    for expected in (0.5, 0.0, 0.0):
        update.move(0.5)
        assert update.price == expected


def test_one_side_moves_while_the_other_is_held():
    update, gates = controller(price_step=0.1)
    groups = [group.name for group in gates.graph.free]
    moved = []
    for _ in range(2):
        before = gates.theta()
        update.move(0.5)
        after = gates.theta()
        moved.append(
            {name for name in groups if not torch.equal(*(t[gates.graph.group(name).span] for t in (before, after)))}
        )
    assert moved == [set(groups[0::2]), set(groups[1::2])]


def test_no_theta_falls_faster_than_the_rate():
    update, gates = controller(price_step=1e3, rate=0.03)
    update.move(0.5)
    update.move(0.5)
    theta = gates.theta()[: gates.graph.group('head').start]
    assert float(theta.min()) == pytest.approx(0.97)


def test_the_largest_of_a_group_are_not_priced():
    update, gates = controller(Limits(floor=0.5), 0.5, price_step=1e3, rate=0.5)
    for _ in range(20):
        update.move(0.5)
    for group in gates.graph.free:
        assert int((gates[group.name].theta == 1).sum()) == update.candidates.limits.least(group)
        assert int((gates[group.name].theta == 0).sum()) == group.size - update.candidates.limits.least(group)


def test_costly_groups_pay_more():
    update, gates = controller(exponent=1.0)
    theta = torch.ones(gates.graph.num_channels)
    marginal = torch.ones(gates.graph.num_channels)
    groups = gates.graph.free
    marginal[groups[0].span] = 5.0
    price = update.priced(theta, marginal) + update.priced(theta, marginal)
    update.turn += 1
    price += update.priced(theta, marginal)
    ratio = price[groups[0].span].max() / 2 / price[groups[1].span].max()
    assert float(ratio) == pytest.approx(5.0)


def test_what_must_stay_is_put_back_where_the_optimiser_moved_it():
    update, gates = controller(Limits(floor=0.5, exclude=('a1.0',)), 0.9)
    with torch.no_grad():
        for gate in gates.by_group.values():
            gate.theta.fill_(-0.2)
    update.move(0.5)
    assert torch.equal(gates['a1.0'].theta, torch.ones(6))  # excluded
    assert torch.equal(gates['stem.0'].theta, torch.ones(8))  # what it reads
    b1 = gates['b1.0'].theta
    assert int((b1 > 0).sum()) == 3  # half of five, rounded up, and never closed before the end


def test_snapped_closes_what_is_too_small_to_matter():
    assert snapped(torch.tensor([0.0, 0.009, 0.02, 1.0])).tolist() == pytest.approx([0, 0, 0.02, 1])


def test_the_state_is_plain_and_restores():
    update, _ = controller()
    update.move(0.5)
    other, _ = controller()
    other.load_state_dict(update.state_dict())
    assert (other.price, other.turn, other.settled) == (update.price, update.turn, False)
    assert set(update.state_dict()) == {'target', 'settled', 'kept', 'criterion', 'price', 'turn'}
