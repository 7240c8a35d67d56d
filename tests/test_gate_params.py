"""The gates' own group in an optimiser, whatever the groups that are there look like."""

import pytest
import torch
from helpers import toy
from toy_nets import Plain

from mmprune_gates.gates import PolarizationGate, attach_gates
from mmprune_gates.pruning.gate_params import own_param_group


@pytest.fixture
def gated():
    model, graph, _ = toy(Plain)
    return model, attach_gates(model, graph, PolarizationGate)


def test_gates_move_to_a_last_group_without_weight_decay(gated):
    model, gates = gated
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    own_param_group(optimizer, gates, 0.5)
    first, last = optimizer.param_groups
    assert [id(p) for p in last['params']] == [id(p) for p in gates.parameters()]
    assert (last['lr'], last['initial_lr'], last['weight_decay'], last['momentum']) == (0.5, 0.5, 0.0, 0.9)
    assert len(first['params']) + len(last['params']) == len(list(model.parameters()))


def test_named_groups_stay_named(gated):
    model, gates = gated
    names, parameters = zip(*model.named_parameters(), strict=True)
    groups = [{'params': list(parameters), 'param_names': list(names), 'lr': 0.1}]
    optimizer = torch.optim.AdamW(groups)
    own_param_group(optimizer, gates, 0.5)
    named = dict(model.named_parameters())
    for group in optimizer.param_groups:
        assert [id(named[name]) for name in group['param_names']] == [id(p) for p in group['params']]
    assert all(name.startswith('gates.') for name in optimizer.param_groups[-1]['param_names'])


def test_a_group_that_held_only_gates_stays_for_the_schedulers(gated):
    model, gates = gated
    own = {id(parameter) for parameter in gates.parameters()}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in own]
    optimizer = torch.optim.SGD([{'params': list(gates.parameters())}, {'params': rest}], lr=0.1)
    own_param_group(optimizer, gates, 0.5)
    assert [len(group['params']) for group in optimizer.param_groups] == [0, len(rest), len(own)]
