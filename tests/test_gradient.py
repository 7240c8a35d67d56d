"""The gradient update: one preconditioned gradient of loss and cost, its price, and what it never closes."""

import math

import pytest
import torch
from helpers import toy
from toy_nets import Residual

from mmprune_gates.budget import Gradient, Limits, Schedule
from mmprune_gates.gates import PolarizationGate, attach_gates
from mmprune_gates.pruning.shrink import shrink

RAMP = Schedule(0.3, begin=0.0, end=0.5, settle=1.0)


def controller(limits=None, schedule=RAMP, grads=1, **options):
    model, graph, _ = toy(Residual)
    gates = attach_gates(model, graph, PolarizationGate)
    update = Gradient(gates, schedule, limits or Limits(), **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(grads):
        update.observe(torch.randn(graph.num_channels, generator=generator))
    return update, gates


def groups_of(update):
    return {group.name: group for group in update.candidates.groups}


def test_the_price_follows_the_target_of_the_moment():
    update, gates = controller(price_step=0.5, rate=1e-9)
    update.move(0.5)  # everything open, the target 0.3: at full pace
    first = update.price
    update.move(0.5)
    assert update.price == pytest.approx(first * math.exp(0.5))
    gates.set_theta(torch.full((gates.graph.num_channels,), 0.05))
    update.move(0.5)
    assert update.price == pytest.approx(first)
    gates.set_theta(torch.ones(gates.graph.num_channels))
    update.move(0.01)  # a target of 0.976: nearly met, so at half the pace
    assert first < update.price < first * math.exp(0.25)


def test_loss_and_price_meet_in_one_gradient():
    update, gates = controller(exponent=0.0)
    groups = groups_of(update)
    update.mean = torch.zeros(gates.graph.num_channels)
    update.square = torch.ones(gates.graph.num_channels)
    update.price = 0.25
    start = groups['a1.0'].start
    theta = torch.ones(gates.graph.num_channels)
    theta[start + 1 :] = 0.9
    gates.set_theta(theta)
    update.mean[start + 1] = -0.75  # the loss falls where this gate grows, by more than its price
    update.mean[start + 2] = -0.25
    own = update.direction()[groups['a1.0'].span]
    assert own[0] == -1  # the one that must stay
    assert own[1:4].tolist() == pytest.approx([-0.6, -0.1, 0.15])  # 0.1 of it is the resistance


def test_a_gate_of_little_worth_falls_sooner_than_one_of_much():
    update, gates = controller(exponent=0.0)
    group = groups_of(update)['a1.0']
    update.mean = torch.zeros(gates.graph.num_channels)
    update.square = torch.ones(gates.graph.num_channels)
    update.square[group.start + 1] = 100.0
    update.price = 0.5
    direction = update.direction()[group.span]
    assert direction[1] == pytest.approx(direction[2] / 10)


def test_the_slope_of_the_gate_cancels():
    update, _ = controller(grads=20)
    update.price = 0.1
    slope = 0.01
    steep, _ = controller(grads=0)
    steep.mean, steep.square, steep.price = update.mean * slope, update.square * slope**2, update.price * slope
    assert torch.allclose(steep.direction(), update.direction(), atol=1e-5)


def test_no_theta_moves_faster_than_the_rate():
    update, gates = controller(price_step=10.0, rate=0.03)
    for _ in range(3):
        before = gates.theta()
        update.move(0.5)
        assert float((gates.theta() - before).abs().max()) <= 0.03 + 1e-6
    assert float(gates.theta().min()) == pytest.approx(0.91)


def test_what_must_stay_opens():
    update, gates = controller(Limits(floor=0.5, exclude=('a1.0',)), Schedule(0.9, 0.0, 0.5, 1.0), price_step=10.0)
    with torch.no_grad():
        for gate in gates.by_group.values():
            gate.theta.fill_(0.6)
    for _ in range(60):
        update.move(0.5)
    assert gates['a1.0'].theta.tolist() == pytest.approx([0.6] * 6)  # excluded: nothing moves it
    for group in update.candidates.groups:
        least = update.candidates.leasts[group.name]
        assert int((gates[group.name].theta == 1).sum()) >= least


def test_costly_groups_pay_more():
    costs = {}
    for exponent in (0.0, 0.5):
        update, gates = controller(Limits(floor=0.0), exponent=exponent)
        update.mean = torch.zeros(gates.graph.num_channels)
        update.square = torch.ones(gates.graph.num_channels)
        update.price = 1e-3
        direction = update.direction()
        costs[exponent] = [float(direction[group.span].max()) for group in update.candidates.groups]
    marginal = update.candidates.cost.marginal(torch.ones(gates.graph.num_channels).double())
    means = torch.stack([marginal[group.span].mean() for group in update.candidates.groups])
    assert costs[0.0] == pytest.approx([1e-3] * len(means))
    assert costs[0.5] == pytest.approx((1e-3 * (means / means.mean()).sqrt()).tolist(), rel=1e-4)


def test_an_overflow_changes_nothing():
    update, gates = controller()
    mean, square = update.mean.clone(), update.square.clone()
    update.observe(torch.full((gates.graph.num_channels,), torch.inf))
    assert torch.equal(update.mean, mean) and torch.equal(update.square, square)


def test_the_state_is_plain_and_restores():
    update, gates = controller(grads=3)
    update.move(0.5)
    state = update.state_dict()
    other, _ = controller()
    other.load_state_dict(state)
    update.observe(torch.ones(gates.graph.num_channels))  # the saved state does not follow
    assert (other.price, other.settled) == (update.price, False)
    assert torch.equal(other.mean, state['mean']) and not torch.equal(other.mean, update.mean)
    assert torch.equal(other.square, state['square'])
    assert set(state) == {
        'target',
        'correction',
        'whole_cost',
        'settled',
        'kept',
        'criterion',
        'price',
        'mean',
        'square',
    }


def test_the_means_follow_channels_that_leave():
    model, graph, _ = toy(Residual)
    gates = attach_gates(model, graph, PolarizationGate)
    update = Gradient(gates, RAMP, Limits())
    update.observe(torch.rand(graph.num_channels))
    mean, stays = update.mean, torch.ones(graph.num_channels, dtype=torch.bool)
    stays[groups_of(update)['a1.0'].start] = False
    kept = graph.keeping(stays)
    gates.close(kept)
    update.narrow(shrink(model, kept), kept)
    assert torch.equal(update.mean, mean[stays]) and len(update.square) == int(stays.sum())


def test_it_runs_where_tensors_are_float64_by_default():
    torch.set_default_dtype(torch.double)
    try:
        update, gates = controller()
        update.observe(torch.ones(gates.graph.num_channels, dtype=torch.float32))
    finally:
        torch.set_default_dtype(torch.float32)
    assert update.mean.dtype == torch.double and update.mean.any()
