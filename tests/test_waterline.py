"""The waterline: what a gate is worth, which ones sink, how fast."""

import pytest
import torch
from helpers import toy
from toy_nets import Residual

from mmprune_gates.budget import Limits, Schedule, Waterline
from mmprune_gates.gates import PolarizationGate, attach_gates

SCHEDULE = Schedule(0.5, begin=0.0, end=0.5, settle=0.5)


def controller(**options):
    model, graph, _ = toy(Residual)
    gates = attach_gates(model, graph, PolarizationGate)
    return Waterline(gates, SCHEDULE, Limits(), **options), gates


def test_the_benefit_is_a_running_mean_of_magnitudes():
    update, gates = controller(momentum=0.75)
    grad = torch.linspace(-1, 1, gates.graph.num_channels)
    update.observe(grad)
    assert torch.allclose(update.criterion.mean, 0.25 * grad.abs())
    update.observe(-grad)
    assert torch.allclose(update.criterion.mean, 0.4375 * grad.abs())


def test_an_iteration_with_overflow_is_left_out():
    update, gates = controller()
    for bad in (float('inf'), float('nan')):
        update.observe(torch.full((gates.graph.num_channels,), bad))
    assert not update.criterion.mean.any()


def test_the_ranking_divides_by_what_a_gate_alone_would_save():
    update, gates = controller(exponent=1.0)
    update.observe(torch.ones(gates.graph.num_channels))
    graph, ranking = gates.graph, update.ranking()
    for group in graph.free:
        mask = torch.ones(group.size, dtype=torch.bool)
        mask[0] = False
        saved = graph.macs() - graph.macs({group.name: mask})
        if group.name != 'stem.0':  # on both sides of no layer
            assert float(ranking[group.start] * saved) == pytest.approx(float(update.criterion.mean[0]), rel=1e-5)
    flat, _ = controller(exponent=0.0)
    flat.observe(torch.ones(graph.num_channels))
    assert torch.equal(flat.ranking(), flat.criterion.mean.double())


def test_gates_below_the_line_sink_to_zero_and_rise_again():
    update, gates = controller(steps=4)
    group = gates.graph.group('a1.0')
    grad = torch.ones(gates.graph.num_channels)
    grad[group.span][:3] = 0
    update.observe(grad)
    for _ in range(4):
        update.move(0.05)
    theta = gates['a1.0'].theta.detach()
    assert (theta[:3] == 0).any() and (theta[3:] == 1).all()
    closed = theta == 0
    update.move(0.0)  # the target of the moment is 1: nothing is below the line
    assert torch.allclose(gates['a1.0'].theta.detach()[closed], torch.tensor(0.25, dtype=torch.double))
    for _ in range(4):
        update.move(0.0)
    assert torch.equal(gates['a1.0'].theta.detach(), torch.ones(6, dtype=torch.double))


def test_it_sees_the_gradient_of_the_gate_itself():
    update, gates = controller()
    assert all(gate.straight_through for gate in gates.by_group.values())


def test_the_state_is_plain_and_restores():
    update, gates = controller()
    update.observe(torch.rand(gates.graph.num_channels))
    state = update.state_dict()
    other, _ = controller()
    other.load_state_dict(state)
    update.observe(torch.rand(gates.graph.num_channels))  # the saved state does not follow
    assert torch.equal(other.criterion.mean, state['criterion']['mean']) and not torch.equal(
        other.criterion.mean, update.criterion.mean
    )
    assert (
        set(state) == {'target', 'correction', 'whole_cost', 'settled', 'kept', 'criterion'}
        and state['settled'] is False
    )


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'momentum': 1.0}, r'momentum must be a share in \[0, 1\), got 1\.0'),
        ({'momentum': -0.1}, r'momentum must be a share in \[0, 1\), got -0\.1'),
        ({'steps': 0}, 'steps must be a whole number of at least 1, got 0'),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        controller(**options)
