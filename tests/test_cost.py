"""The cost as a function: what it is for nothing, its linearity in each factor, its gradient."""

import torch
from helpers import random_kept, traced
from toy_nets import Plain, SharedLayer, TwiceTheSame

from mmprune_gates.channels.cost import Cost


def test_nothing_costs_nothing():
    empty = Cost.of([])
    assert float(empty(torch.ones(3))) == 0
    assert empty.layers == ()


def test_positions_without_a_channel_count_always():
    cost = Cost.of([('layer', 10.0, [torch.tensor([0, 1, -1])])])
    assert float(cost(torch.tensor([1.0, 0.0]))) == 20
    assert float(cost(torch.zeros(2))) == 10


def test_ops_with_fewer_factors():
    terms = [('a', 2.0, [torch.tensor([0, 1]), torch.tensor([2, 2])]), ('b', 3.0, []), ('c', 5.0, [torch.tensor([0])])]
    assert Cost.of(terms).per_op(torch.tensor([1.0, 1.0, 0.5])).tolist() == [4.0, 3.0, 5.0]


def test_the_gradient_is_what_a_channel_alone_would_save():
    _, graph, _ = traced(Plain)
    kept = random_kept(graph)
    value = graph.kept(kept).vector.double().requires_grad_()
    (marginal,) = torch.autograd.grad(graph.cost(value), value)
    for i in range(graph.num_channels):
        less = value.detach().clone()
        less[i] -= 1
        assert float(graph.cost(value) - graph.cost(less)) == float(marginal[i])


def test_a_channel_on_both_sides_of_a_layer_counts_squared():
    _, graph, _ = traced(SharedLayer)
    kept = {'a.0': torch.arange(6) < 3}
    assert graph.macs(kept) == 64 * 9 * (3 * 3 + 2 * 3 * 3) + 64 * 4 * 3


def test_a_channel_at_two_positions_counts_twice():
    _, graph, _ = traced(TwiceTheSame)
    assert graph.macs({'a.0': torch.arange(4) < 3}) == 64 * 9 * 3 * 3 + 64 * 5 * 6


def test_float32_gate_values_keep_their_type():
    _, graph, _ = traced(Plain)
    assert graph.cost(torch.ones(graph.num_channels)).dtype == torch.float32
