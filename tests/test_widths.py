"""The table of widths rebuilds the slim net: same shapes, same keys, same outputs with its weights."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from helpers import call, example, flat, random_kept, randomize_, relative_error, toy
from torch import nn
from toy_nets import Plain, TiedWeights, Transposed, conv, pruned

from mmprune_gates import masked_copy, slim_model, trace_channels
from mmprune_gates.slimming import apply_widths


@pruned
def test_a_fresh_net_with_the_widths_takes_the_slim_weights(net):
    slim, graph, inputs = toy(net)
    widths = slim_model(slim, graph, random_kept(graph))['widths']
    fresh = net().double()
    apply_widths(fresh, json.loads(json.dumps(widths)))  # plain values: what a config can hold
    fresh.load_state_dict(slim.state_dict(), strict=True)
    assert relative_error(call(fresh, inputs), call(slim, inputs)) == 0
    assert [str(m) for m in fresh.modules()] == [str(m) for m in slim.modules()]  # attributes, not only shapes
    assert {p.dtype for p in fresh.parameters()} == {torch.float64}


@pruned
def test_a_fresh_net_is_initialised_and_trains(net):
    slim, graph, inputs = toy(net)
    fresh = net().double()
    apply_widths(fresh, slim_model(slim, graph, random_kept(graph))['widths'])
    assert [n for n, _ in fresh.named_parameters()] == [n for n, _ in net().named_parameters()]
    assert all(tensor.isfinite().all() for tensor in call(fresh, inputs))
    fresh.train()
    sum(output.square().sum() for output in flat(fresh(inputs))).backward()
    grads = [parameter.grad for parameter in fresh.parameters() if parameter.grad is not None]
    assert grads and all(grad.isfinite().all() for grad in grads)


def test_widths_name_the_attributes_that_changed_and_only_those():
    model, graph, _ = toy(Plain)
    widths = slim_model(model, graph, {'a.0': torch.arange(8) < 5})['widths']
    assert widths == {'a.0': {'out_channels': 5}, 'a.1': {'num_features': 5}, 'b.0': {'in_channels': 5}}


def test_widths_of_grouped_and_depthwise_transposed_convolutions():
    model, graph, _ = toy(Transposed)
    kept = {'a.0': torch.arange(4) < 2, 'up': torch.arange(3) < 2, 'b.0': torch.arange(4) < 3}
    widths = slim_model(model, graph, kept)['widths']
    assert widths['up'] == {'in_channels': 4, 'out_channels': 4}
    assert widths['dw'] == {'in_channels': 3, 'out_channels': 3, 'groups': 3}


def test_tied_parameters_stay_tied():
    model = TiedWeights()
    apply_widths(model, {'b': {'in_channels': 4, 'out_channels': 4}, 'c': {'in_channels': 4, 'out_channels': 4}})
    assert model.b.weight is model.c.weight and model.b.weight.shape[:2] == (4, 4)


class Leftovers(nn.Module):
    """Its code uses the weight of a layer without its bias, and the statistics of a norm without its affine."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = F.conv2d(x, self.a.weight, padding=1)
        return self.head(F.batch_norm(x, self.b.running_mean, self.b.running_var))


def test_tensors_that_the_code_does_not_use_stay_as_they_are():
    model, x = randomize_(Leftovers().double()).eval(), example((3, 8, 8))
    graph = trace_channels(model, x)
    kept = {'a': torch.arange(6) < 4}
    expected = call(masked_copy(model, graph, kept), x)
    widths = slim_model(model, graph, kept)['widths']
    assert widths['a'] == {'out_channels': 4, 'bias': [6]}
    assert widths['b'] == {'num_features': 4, 'weight': [6], 'bias': [6]}
    fresh = Leftovers().double().eval()
    apply_widths(fresh, json.loads(json.dumps(widths)))
    fresh.load_state_dict(model.state_dict())
    assert relative_error(call(fresh, x), expected) < 1e-12


def test_a_single_depthwise_channel():
    model = nn.Sequential(conv(3, 4), conv(4, 4, groups=4))
    apply_widths(model, {'0': {'out_channels': 1}, '1': {'in_channels': 1, 'out_channels': 1, 'groups': 1}})
    assert model(torch.zeros(1, 3, 4, 4)).shape == (1, 1, 4, 4)


@pytest.mark.parametrize(
    ('widths', 'message'),
    [
        ({'nobody': {'out_channels': 3}}, "module 'nobody', which Plain does not have: the slim config belongs to"),
        ({'a.0': {'num_features': 3}}, r"widths of 'a\.0': Conv2d has no attribute 'num_features'"),
        ({'a.2': {'gamma': [3]}}, r"widths of 'a\.2': ReLU has no attribute 'gamma'"),
    ],
)
def test_widths_of_another_net(widths, message):
    with pytest.raises(ValueError, match=message):
        apply_widths(Plain(), widths)


def test_a_copy_keeps_its_width():
    model, graph, inputs = toy(Plain)
    slim_model(model, graph, random_kept(graph))
    assert relative_error(call(copy.deepcopy(model), inputs), call(model, inputs)) == 0
