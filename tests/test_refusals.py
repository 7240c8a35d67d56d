"""What a pruner refuses: optimisers that hide parameters or state, models that channels have left."""

import pytest
import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from toy_nets import conv_bn

from mmprune_gates import GDP, trace_channels
from mmprune_gates.gates import PolarizationGate, attach_gates, has_gates
from mmprune_gates.pruning.refusals import refuse_unknown_state

INPUTS = (torch.zeros(2, 3, 8, 8),)


class Pairs(torch.optim.SGD):
    """Keeps two tensors of a parameter in a list, as SOAP does."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group['params']:
                self.state[parameter]['pair'] = [torch.zeros_like(parameter), torch.zeros_like(parameter)]


class Outer(torch.optim.Optimizer):
    """Shares the groups of another optimiser, as Lookahead does."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, {})
        self.inner, self.param_groups = inner, inner.param_groups


@pytest.fixture
def net():
    return nn.Sequential(conv_bn(3, 8), nn.Conv2d(8, 4, 1))


def stepped(optimizer, net):
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    return optimizer


def test_an_optimiser_that_leaves_its_parameters_to_another_is_refused(net, one_rank):
    optimizer = ZeroRedundancyOptimizer(net.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match='ZeroRedundancyOptimizer keeps parameters in an optimiser of its own.*SGD'):
        GDP(net, INPUTS, optimizer, total_steps=10, target_macs=0.5)
    assert not has_gates(net)


def test_an_optimiser_that_shares_the_groups_of_another_prunes_and_does_not_shrink(net):
    optimizer = Outer(torch.optim.SGD(net.parameters(), lr=0.1))
    GDP(net, INPUTS, optimizer, total_steps=10, target_macs=0.5)
    with pytest.raises(ValueError, match='Outer keeps state in SGD'):
        refuse_unknown_state(optimizer, net)


def test_state_inside_a_container_is_refused(net):
    with pytest.raises(ValueError, match=r"Pairs keeps 'pair' of shape \(8, 3, 3, 3\) for 0.0.weight"):
        refuse_unknown_state(stepped(Pairs(net.parameters(), lr=0.1), net), net)


def test_a_model_that_channels_have_left_is_refused(net):
    pruner = GDP(net, INPUTS, torch.optim.SGD(net.parameters(), lr=0.1), total_steps=4, target_macs=0.5)
    while not pruner.controller.settled:
        net(torch.randn(2, 3, 8, 8)).square().sum().backward()
        pruner.step()
    pruner.shrink()
    pruner.gates.owner = None
    assert has_gates(net)
    with pytest.raises(ValueError, match='channels have left this model'):
        GDP(net, INPUTS, torch.optim.SGD(net.parameters(), lr=0.1), total_steps=4, target_macs=0.5)


def test_gates_that_were_frozen_with_the_model_are_refused(net):
    gates = attach_gates(net, trace_channels(net, INPUTS), PolarizationGate)
    net.requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match='the gates of 0.0 do not require a gradient'):
        GDP(net, INPUTS, optimizer, total_steps=10, target_macs=0.5)
    assert gates.owner is None
