"""Gates on a model: nothing changes when they come, closed is exactly zero, nothing is left when they go."""

import copy
from operator import attrgetter

import pytest
import torch
from helpers import call, example, flat, random_kept, randomize_, relative_error, same, toy, traced
from torch import nn
from toy_nets import Plain, SiluNet, UnknownOp, pruned

from mmprune_gates import masked_copy, slim_model, trace_channels
from mmprune_gates.channels.flow import Summed
from mmprune_gates.gates import (
    DecoratorGate,
    Gate,
    PolarizationGate,
    attach_gates,
    detach_gates,
    fold_gates,
    gates_of,
    has_gates,
)
from mmprune_gates.gates.placement import BEHIND, INPUT


def train_outputs(model, inputs):
    """Outputs in training mode, dropout repeatable."""
    torch.manual_seed(0)
    return [output.detach() for output in flat(model.train()(inputs))]


def close(gates, kept):
    """Set the gates of the masks to exactly 0 or 1."""
    for name, mask in kept.items():
        gates[name].theta.data.copy_(mask)


@pruned
def test_insertion_changes_no_output_in_either_mode(net):
    model, graph, inputs = toy(net)
    plain = copy.deepcopy(model)
    attach_gates(model, graph, PolarizationGate)
    assert same(call(model, inputs), call(plain, inputs))
    assert same(train_outputs(model, inputs), train_outputs(plain, inputs))


@pruned
def test_closed_equals_the_masked_copy(net):
    model, graph, inputs = toy(net)
    kept = random_kept(graph)
    expected = call(masked_copy(model, graph, kept), inputs)
    close(attach_gates(model, graph, PolarizationGate), kept)
    assert relative_error(call(model, inputs), expected) < 1e-12


@pruned
def test_a_closed_channel_is_exactly_zero_where_it_is_read(net):
    model, graph, inputs = toy(net)
    kept = random_kept(graph)
    gates = attach_gates(model, graph, PolarizationGate)
    close(gates, kept)
    vector = torch.cat([graph.kept(kept).vector, torch.ones(1, dtype=torch.bool)])
    before = [scale for scale in gates.scales if scale.placement.kind not in BEHIND]
    scaled = {(scale.module, scale.placement.parameter): scale.placement for scale in before}
    seen = []

    def look(read, module):
        gone = ~vector[read.index]

        def check(module, args):
            own = scaled.get((module, read.parameter))
            tensor, dim, closed = args[0], read.dim, gone
            if own is not None and own.kind != INPUT:  # the weight is scaled, not the input
                tensor = attrgetter(own.parameter)(module)
                dim, closed = read.in_dim, ~vector[graph.slots[read.weight][read.in_dim]]
            seen.append(tensor.detach().movedim(dim, 0)[closed])

        module.register_forward_pre_hook(check)  # after the gate's own hook

    for read in {read.weight: read for read in graph.reads if not isinstance(read, Summed)}.values():
        look(read, model.get_submodule(read.layer))
    call(model, inputs)
    assert sum(values.numel() for values in seen) > 0
    assert all(torch.equal(values, torch.zeros_like(values)) for values in seen)


@pruned
def test_folding_changes_no_output(net):
    model, graph, inputs = toy(net)
    gates = attach_gates(model, graph, PolarizationGate)
    gates.set_eps(0.3)
    gates.set_theta(torch.linspace(0.2, 1, graph.num_channels))
    expected = call(model, inputs)
    found, kept = fold_gates(model)
    assert found is graph and all(mask.all() for mask in kept.values())
    assert not has_gates(model)
    assert relative_error(call(model, inputs), expected) < 1e-12


@pruned
def test_slim_after_folding_equals_the_gated_net(net):
    model, graph, inputs = toy(net)
    gates = attach_gates(model, graph, PolarizationGate)
    for name, mask in random_kept(graph).items():
        gates[name].theta.data.copy_(mask * torch.linspace(0.5, 1, len(mask)))
    expected = call(model, inputs)
    slim_model(model, *fold_gates(model))
    assert relative_error(call(model, inputs), expected) < 1e-12


@pruned
def test_every_gate_has_a_gradient_even_a_closed_one(net):
    model, graph, inputs = toy(net)
    gates = attach_gates(model, graph, PolarizationGate)
    for gate in gates.by_group.values():
        gate.straight_through = True
        gate.theta.data[0] = 0
    sum(output.square().sum() for output in flat(model(inputs))).backward()
    assert all(bool((gate.theta.grad != 0).any()) for gate in gates.by_group.values())


@pruned
def test_attach_and_detach_leave_no_trace(net):
    model, graph, inputs = toy(net)
    before = copy.deepcopy(model)
    attach_gates(model, graph, PolarizationGate)
    call(model, inputs)
    assert detach_gates(model) is graph
    assert list(model.state_dict()) == list(before.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    )
    assert same(call(model, inputs), call(before, inputs))
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks  # noqa: SLF001
        assert 'weight' not in vars(module) and 'bias' not in vars(module)


@pruned
def test_a_copy_has_gates_of_its_own(net):
    model, graph, inputs = toy(net)
    attach_gates(model, graph, PolarizationGate)
    before = call(model, inputs)
    other = copy.deepcopy(model)
    close(gates_of(other), random_kept(graph))
    assert same(call(model, inputs), before)
    assert relative_error(call(other, inputs), before) > 1e-3
    detach_gates(other)
    assert same(call(other, inputs), before) and has_gates(model)
    close(gates_of(model), random_kept(graph))
    assert relative_error(call(model, inputs), before) > 1e-3


@pruned
def test_an_ungated_checkpoint_loads(net):
    model, graph, _ = toy(net)
    keys = list(model.state_dict())
    attach_gates(model, graph, PolarizationGate)
    assert type(model) is net
    assert [key for key in model.state_dict() if not key.startswith('gates.')] == keys
    missing, unexpected = model.load_state_dict(net().double().state_dict(), strict=False)
    assert missing and all(key.startswith('gates.') for key in missing) and not unexpected


def test_parameters_show_again_after_a_forward_that_fails():
    model, graph, inputs = toy(SiluNet)
    attach_gates(model, graph, PolarizationGate)
    with pytest.raises(RuntimeError):
        model.b[0](inputs)  # fails inside the forward of a gated convolution
    assert isinstance(model.b[0].weight, nn.Parameter)
    model.b[0].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(inputs)
    assert all(isinstance(m.weight, nn.Parameter) for m in model.modules() if hasattr(m, 'weight'))


def test_gates_work_in_half_precision():
    model, graph, inputs = toy(SiluNet)
    attach_gates(model.float(), graph, PolarizationGate)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        outputs = flat(model(inputs.float()))
    assert all(output.dtype == torch.bfloat16 and output.isfinite().all() for output in outputs)


def test_what_the_set_of_gates_knows():
    model, graph, _ = toy(Plain)
    gates = attach_gates(model, graph, lambda size: PolarizationGate(size, 0.25))
    assert gates is gates_of(model) and has_gates(model)
    assert gates.eps() == 0.25
    assert torch.equal(gates.vector(), torch.ones(graph.num_channels))
    theta = torch.linspace(0, 1, graph.num_channels, dtype=torch.double)
    gates.set_theta(theta)
    head = graph.group('head')
    assert torch.equal(gates.theta()[: head.start], theta[: head.start]) and gates.theta()[head.span].all()
    assert gates.kept()['a.0'].tolist() == [False] + [True] * 7
    gates.set_eps(0.5)
    assert {float(gate.eps) for gate in gates.by_group.values()} == {0.5}
    expected = 1.5 * 2 * 0.5 * theta / (theta**2 + 0.5) ** 2
    gates.vector().sum().backward()
    slope = gates.flat({group.name: gates[group.name].theta.grad for group in graph.free})
    assert torch.allclose(slope[: head.start], expected[: head.start])


def test_gates_without_eps():
    model, graph, _ = toy(Plain)
    gates = attach_gates(model, graph, Gate)
    gates.set_eps(0.5)
    assert gates.eps() == 0


def test_twice_is_refused():
    model, graph, _ = toy(Plain)
    attach_gates(model, graph, PolarizationGate)
    with pytest.raises(ValueError, match="Plain already has an attribute 'gates'"):
        attach_gates(model, graph, PolarizationGate)


def test_nothing_to_prune_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    graph = trace_channels(model, (torch.zeros(1, 3, 4, 4),))
    with pytest.raises(ValueError, match='Sequential has no prunable channel: an output of the model'):
        attach_gates(model, graph, PolarizationGate)
    assert not has_gates(model)


@pytest.mark.parametrize('ask', [gates_of, detach_gates, fold_gates])
def test_a_model_without_gates(ask):
    with pytest.raises(ValueError, match="UnknownOp has no gates: build it from a config with model.type='mmprune"):
        ask(UnknownOp())


def test_another_model_is_refused_and_gets_no_hooks():
    _, graph, _ = traced(Plain)
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(AttributeError):
        attach_gates(model, graph, PolarizationGate)
    assert not has_gates(model)


class Children(nn.Module):
    """Calls whatever children it has, in turn."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 3)

    def forward(self, x):
        for child in self.children():
            x = child(x)
        return x


def wrapped_vgg():
    """A stock VGG as the only child of a container."""
    from torchvision.models import vgg11_bn

    vgg = vgg11_bn()
    vgg.classifier = nn.Linear(512 * 7 * 7, 7)  # the stock one has 120 million weights
    return nn.Sequential(vgg)


CONTAINERS = {
    'sequential': (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 3)), 9),
    'wrapped twice': (lambda: nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3))), 9),
    'children': (Children, 9),
    'vgg': (wrapped_vgg, 32),
}


@pytest.mark.parametrize('name', CONTAINERS)
def test_gates_of_a_container_that_calls_its_children(name):
    make, size = CONTAINERS[name]
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.randn(2, 3, size, size, dtype=torch.double)
    keys, before = list(model.state_dict()), call(model, x)
    graph = trace_channels(model, x)
    gates = attach_gates(model, graph, PolarizationGate)
    assert relative_error(call(model, x), before) == 0
    kept = random_kept(graph)
    gates.close(graph.kept(kept))
    expected = call(model, x)
    assert relative_error(expected, before) > 1e-6
    fold_gates(model)
    slim_model(model, graph, kept)
    assert list(model.state_dict()) == keys and relative_error(call(model, x), expected) < 1e-9


class Named(nn.Module):
    """Calls a layer with its input by keyword."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 32), nn.Linear(32, 5)

    def forward(self, x):
        x = torch.nn.functional.silu(self.a(x))
        return self.c(torch.nn.functional.silu(self.b(input=x)))


@pytest.mark.parametrize('gate', [PolarizationGate, DecoratorGate])
def test_a_layer_that_is_called_by_keyword(gate):
    model, x = randomize_(Named().double()), example((6,))
    graph = trace_channels(model, x)
    whole = model(x)
    attach_gates(model, graph, gate)
    assert relative_error([model(x)], [whole]) < 1e-14
    kept = random_kept(graph)
    model.gates.close(graph.kept(kept))
    assert relative_error([model(x)], [masked_copy(detached(model), graph, kept)(x)]) < 1e-12


def detached(model):
    """A copy without gates."""
    copied = copy.deepcopy(model)
    detach_gates(copied)
    return copied
