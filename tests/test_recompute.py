"""Products with gates are computed again in the backward: the same gradients, and no activation more."""

import copy
import gc

import pytest
import torch
from helpers import flat, randomize_, toy
from step_memory import Alive, saved_bytes
from torch import nn
from torch.utils.checkpoint import checkpoint
from toy_nets import pruned

from mmprune_gates import trace_channels
from mmprune_gates.gates import DecoratorGate, PolarizationGate, attach_gates
from mmprune_gates.gates.recompute import RUNNING, Recompute


def gated(model, example):
    """The model in training, with gates that are not all open."""
    attach_gates(model, trace_channels(model, example), PolarizationGate)
    randomize_(model.gates)
    return model.train()


def convs():
    """Gates on a weight, since SiLU is not homogeneous, if images are large."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 4, 3, padding=1))
    return randomize_(model), torch.randn(2, 3, 32, 32)


def mlp():
    """Gates on inputs: of a norm across channels, and of a layer with more weights than inputs."""
    model = nn.Sequential(nn.Linear(8, 64), nn.LayerNorm(64), nn.SiLU(), nn.Linear(64, 5))
    return randomize_(model), torch.randn(32, 8)


class Probabilities(nn.Linear):
    """A layer whose backward needs its output."""

    def forward(self, x):
        return super().forward(x).softmax(-1)


def classifier():
    """A gate before a layer that saves its own output."""
    model = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), Probabilities(64, 5))
    return randomize_(model), torch.randn(32, 8)


NETS = pytest.mark.parametrize('net', [convs, mlp])


def gradients(model, inputs):
    """Gradients of all parameters; the same random draws each time."""
    torch.manual_seed(0)
    model.zero_grad()
    sum(output.square().mean() for output in flat(model(inputs))).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize('gate', [PolarizationGate, DecoratorGate])
@pruned
def test_gradients_are_those_of_saved_products(net, gate, monkeypatch):
    model, graph, inputs = toy(net)
    attach_gates(model.train(), graph, gate)
    randomize_(model.gates)
    other = copy.deepcopy(model)  # running statistics change
    again = gradients(model, inputs)
    monkeypatch.setattr(Recompute, 'begin', lambda self: False)
    saved = gradients(other, inputs)
    assert len(again) == len(saved)
    assert all(map(torch.equal, again, saved))


@NETS
def test_gates_save_no_activation(net, monkeypatch):
    model, inputs = net()
    plain = copy.deepcopy(model).train()
    gated(model, inputs)
    channels = sum(gate.theta.numel() for gate in model.gates.by_group.values())
    vectors = 16 * 4 * channels  # what the gates' own backward keeps
    allowed = saved_bytes(lambda: plain(inputs).sum()) + vectors
    assert saved_bytes(lambda: model(inputs).sum()) <= allowed
    monkeypatch.setattr(Recompute, 'begin', lambda self: False)
    assert saved_bytes(lambda: model(inputs).sum()) > allowed


@NETS
def test_a_gradient_of_a_gradient(net, monkeypatch):
    model, inputs = net()
    gated(model.double(), inputs.double())

    def penalty():
        own = [model.gates[group.name].theta for group in model.gates.graph.free]
        loss = model(inputs.double()).square().sum()
        first = torch.autograd.grad(loss, own, create_graph=True)
        return torch.autograd.grad(sum(one.square().sum() for one in first), own)

    again = penalty()
    monkeypatch.setattr(Recompute, 'begin', lambda self: False)
    assert all(map(torch.equal, again, penalty()))


@NETS
def test_activation_checkpointing_decides_what_is_saved(net):
    model, inputs = net()
    gated(model, inputs)
    expected = gradients(model, inputs)
    x = inputs.clone().requires_grad_()
    model.zero_grad()
    output = checkpoint(model, x, use_reentrant=False)
    assert saved_bytes(lambda: checkpoint(model, x, use_reentrant=False)) < saved_bytes(lambda: model(x))
    output.square().mean().backward()
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(map(torch.equal, expected, found))


@pytest.mark.parametrize('straight', [False, True])
@NETS
def test_functional_transforms_work(net, straight):
    model, inputs = net()
    gated(model, inputs)
    for gate in model.gates.by_group.values():
        gate.straight_through = straight  # as GDP has it
    params = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(own, x):
        return torch.func.functional_call(model, own, x[None]).square().mean()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, inputs)
    gradients(model, inputs)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(each[name].mean(0), parameter.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('net', [convs, mlp, classifier])
def test_what_a_forward_saves_is_freed_with_its_result(net):
    model, inputs = net()
    gated(model, inputs)
    assert any(scale.module is model[-2] for scale in model.gates.scales)  # before the last layer; behind it, the gates
    gc.disable()
    try:
        with Alive() as alive:
            result = model(inputs)
            assert alive.now > 0
            del result
        assert alive.now == 0
    finally:
        gc.enable()


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
@NETS
def test_an_error_in_a_gated_module_leaves_nothing_behind(net, error, monkeypatch):
    model, inputs = net()
    gated(model, inputs)
    expected = gradients(model, inputs)

    def fail(*args):
        raise error

    for scale in model.gates.scales:
        with monkeypatch.context() as patch:
            patch.setattr(scale.module, 'forward', fail)
            with pytest.raises(error):
                model(inputs)
        if error is RuntimeError:  # torch calls no hooks after an interrupt: the next forward cleans up
            assert not RUNNING and 'weight' not in vars(scale.module)
        assert all(map(torch.equal, expected, gradients(model, inputs)))
        assert not RUNNING and 'weight' not in vars(scale.module)


@NETS
def test_a_change_in_place_after_a_gated_module_has_read_is_an_error(net):
    model, inputs = net()
    gated(model, inputs)
    read = {}
    reader = model.gates.scales[0].module
    reader.register_forward_pre_hook(lambda module, args: read.update(first=args[0]), prepend=True)
    loss = model(inputs).sum()
    with torch.no_grad():
        read['first'].add_(1)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        loss.backward()
