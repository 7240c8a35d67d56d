"""Capturing a model: what does not change, what is added by the training pass, what is said when it fails."""

import pytest
import torch
from helpers import call, example, random_kept, randomize_, relative_error, removal_errors, traced
from torch import nn
from toy_nets import NETS, Plain, TwoNames, conv, conv_bn

from mmprune_gates import trace_channels
from mmprune_gates.channels.trace import aliases


class WithAuxiliary(Plain):
    """An auxiliary head that only training reaches."""

    def __init__(self):
        super().__init__()
        self.auxiliary, self.out = conv_bn(8, 7), conv(7, 4, 1)

    def train_forward(self, x):
        x = self.a(x)
        return self.head(self.b(x)), self.out(self.auxiliary(x))


NETS.pop('WithAuxiliary')  # not one of those that the other tests go through


def test_the_training_pass_adds_groups_but_no_macs():
    model, inputs = randomize_(WithAuxiliary().double()), example(Plain.shape)
    graph = trace_channels(model, (inputs,), train_forward=WithAuxiliary.train_forward)
    assert {group.name: group.size for group in graph.free} == {**Plain.free, 'auxiliary.0': 7}
    assert graph.macs() == Plain.macs
    assert {layer.name: layer.macs for layer in graph.layers if layer.name.startswith(('aux', 'out'))} == {
        'auxiliary.0': 0,
        'out': 0,
    }
    error, distance, *_ = removal_errors(model, graph, inputs, random_kept(graph), WithAuxiliary.train_forward)
    assert error < 1e-12 and distance > 1e-3


def test_without_the_training_pass_its_layers_are_unused_and_their_channels_stay():
    model = WithAuxiliary().double()
    graph = trace_channels(model, (example(Plain.shape),))
    assert [layer.name for layer in graph.layers if layer.kind == 'unused'] == ['auxiliary.0', 'out']


def test_neither_modes_nor_tensors_nor_gradients_change():
    model = WithAuxiliary()
    model.train()
    model.b.eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace_channels(model, (torch.randn(2, 3, 8, 8),), train_forward=WithAuxiliary.train_forward)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_forward_of_ones_own():
    model, inputs = Plain(), torch.randn(2, 3, 8, 8)
    graph = trace_channels(model, (inputs,), forward=lambda net, x: net.b(net.a(x)))
    assert graph.group('b.0').frozen == 'an output of the model'
    assert graph.macs() == Plain.macs - 64 * 4 * 6


def test_macs_are_per_sample_and_of_the_given_size():
    model = Plain()
    graphs = [trace_channels(model, (torch.randn(n, 3, size, size),)) for n, size in ((1, 8), (3, 8), (2, 16))]
    assert [graph.macs() for graph in graphs] == [Plain.macs, Plain.macs, 4 * Plain.macs]


def test_several_inputs():
    class Two(nn.Module):
        """A sum of two branches with an input each."""

        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = conv(3, 6), conv(2, 6), conv(6, 4)

        def forward(self, x, y):
            return self.head(self.a(x) + self.b(y))

    graph = trace_channels(Two(), (torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 8, 8)))
    assert [(group.name, group.size) for group in graph.free] == [('a', 6)]


class Branching(Plain):
    """A branch on a value, which no exported graph can hold."""

    def forward(self, x):
        if x.sum() > 0:
            raise ValueError
        return super().forward(x)


NETS.pop('Branching')


def test_a_model_that_cannot_be_captured():
    model = Branching().train()
    with pytest.raises(
        RuntimeError, match=r'cannot capture Branching with inputs \[\(1, 3, 8, 8\)\](.|\n)*Give `forward`'
    ):
        trace_channels(model, (torch.zeros(1, 3, 8, 8),))
    assert all(module.training for module in model.modules())


def test_a_tensor_changed_in_place_after_a_view_was_taken():
    class Late(Plain):
        """The reader's view is older than the change it sees."""

        def forward(self, x):
            x = self.a(x)
            view = x.transpose(2, 3)
            x += 1
            return self.head(self.b(view))

    NETS.pop('Late')
    graph = trace_channels(Late(), (torch.zeros(1, 3, 8, 8),))
    assert 'changed in place through a view' in graph.group('a.0').frozen
    assert graph.group('b.0').frozen is None


def test_two_names_of_one_module_are_one():
    assert aliases(TwoNames())['second.0'] == 'first.0'
    assert aliases(TwoNames())['second.0.weight'] == 'first.0.weight'
    _, graph, _ = traced(TwoNames)
    assert not [name for name in graph.slots if name.startswith('second')]


def test_tracing_twice_gives_the_same():
    model, graph, inputs = traced(Plain)
    again = trace_channels(model, (inputs,))
    assert again.groups == graph.groups and again.layers == graph.layers


def test_the_model_computes_the_same_afterwards():
    model, inputs = randomize_(Plain().double()), example(Plain.shape)
    before = call(model, inputs)
    trace_channels(model, (inputs,))
    assert relative_error(call(model, inputs), before) == 0
