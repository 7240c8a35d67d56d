"""How much is to be left: one of three ways to say it, and milliseconds as a share of the cost."""

import pytest
import torch
from test_latency import saved, table_of, wide

from mmprune_gates import GDP, GateDecorator
from mmprune_gates.budget import MACs
from mmprune_gates.budget.goal import Goal
from mmprune_gates.budget.latency import Latency


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({}, 'give one of target_macs, target, target_ms, got none'),
        ({'target': 0.5, 'target_ms': 3}, 'give one of'),
        ({'target': 0.5, 'target_macs': 0.5}, 'give one of'),
        ({'target': 1.5}, 'target must be a share'),
        ({'target_macs': 0}, 'target_macs must be a share'),
        ({'target_ms': 0}, 'target_ms must be a positive number'),
        ({'target_ms': 'a'}, 'target_ms must be a positive number'),
        ({'target_ms': float('nan')}, 'target_ms must be a positive number'),
    ],
)
def test_wrong_goals(options, words):
    with pytest.raises(ValueError, match=words):
        Goal.of(options)


@pytest.mark.parametrize('name', ['target', 'target_macs'])
def test_a_share_is_one_of_any_cost(name):
    _, graph = wide()
    assert Goal.of({name: 0.3, 'floor': 0.1}).share(MACs().bind(graph)) == 0.3


@pytest.mark.parametrize('method', [GDP, GateDecorator])
def test_milliseconds_need_a_latency(method):
    model, _ = wide()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with pytest.raises(ValueError, match="target_ms is a latency: give cost=dict\\(type='Latency'"):
        method(model, torch.randn(2, 3, 8, 8), optimizer, total_steps=9, target_ms=1.0)


@pytest.mark.parametrize('method', [GDP, GateDecorator])
def test_milliseconds_are_a_share_of_what_the_whole_model_takes(tmp_path, method):
    model, graph = wide()
    cost = Latency(saved(tmp_path, table_of(graph)))
    whole = float(cost.bind(graph).price(torch.ones(graph.num_channels).double()))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    pruner = method(model, torch.randn(2, 3, 8, 8), optimizer, total_steps=9, target_ms=whole / 2, cost=cost)
    assert pruner.controller.target == pytest.approx(0.5)


def test_a_model_that_is_as_fast_already(tmp_path):
    _, graph = wide()
    cost = Latency(saved(tmp_path, table_of(graph))).bind(graph)
    with pytest.raises(ValueError, match='target_ms is 1000, but the whole model takes only'):
        Goal.of({'target_ms': 1000}).share(cost)
