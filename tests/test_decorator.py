"""Gate Decorator's gates: conversion and merging back change nothing, each module has its own, importance by hand."""

import copy

import pytest
import torch
from helpers import call, example, flat, random_kept, randomize_, relative_error, same, toy
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from toy_nets import NoNorm, Plain, Residual, SiluNet, TwiceTheSame, pruned

from mmprune_gates import masked_copy, slim_model
from mmprune_gates.engine.builders import trace
from mmprune_gates.engine.forwards import training_forward
from mmprune_gates.engine.model_config import without_pretrained
from mmprune_gates.gates import (
    DecoratorGate,
    attach_gates,
    detach_gates,
    fold_gates,
    gated_norms,
    take_over_affine,
)


def awkward_affine_(model):
    """Norms whose gamma is zero, tiny, negative and ordinary, with and without a shift."""
    gammas = torch.tensor([0.0, 1e-30, -1e-8, -1.5, 0.7])
    betas = torch.tensor([0.3, 0.0, -2.0, 1e-20])
    for module in model.modules():
        if getattr(module, 'running_mean', None) is not None and module.weight is not None:
            places = torch.arange(module.num_features)
            module.weight.data.copy_(gammas[places % 5])
            module.bias.data.copy_(betas[places % 4])
    return model


@pruned
def test_attaching_changes_no_output_in_either_mode(net):
    model, graph, inputs = toy(net)
    plain = copy.deepcopy(model)
    attach_gates(model, graph, DecoratorGate)
    assert same(call(model, inputs), call(plain, inputs))
    torch.manual_seed(0)
    expected = flat(plain.train()(inputs))
    torch.manual_seed(0)
    assert same(flat(model.train()(inputs)), expected)


@pruned
@pytest.mark.parametrize('prepare', [lambda model: model, awkward_affine_], ids=['random', 'awkward'])
def test_taking_over_and_merging_back_keep_the_function(net, prepare):
    model, graph, inputs = toy(net)
    prepare(model)
    plain = copy.deepcopy(model)
    gates = attach_gates(model, graph, DecoratorGate)
    take_over_affine(gates)
    gated = call(model, inputs)
    scale = max(float(value.abs().max()) for value in call(plain, inputs))
    for found, expected in zip(gated, call(plain, inputs), strict=True):
        assert float((found - expected).abs().max()) <= 1e-12 * max(scale, 1e-300)
    affine = [scale for scale in gated_norms(gates)]
    for one in affine:  # what the gates took over is of unit size, or was zero
        size = torch.hypot(one.module.weight, one.module.bias)[one.placement.index >= 0]
        assert bool(((size < 1 + 1e-9) & (size > 0)).any()) or not bool(size.any())
    fold_gates(model)
    assert same(call(model, inputs), gated)  # merged back: plain norms again, the same to the bit
    assert model.state_dict().keys() == plain.state_dict().keys()
    for key, value in plain.state_dict().items():
        assert torch.allclose(model.state_dict()[key], value, rtol=1e-12, atol=0), key


def test_taking_over_is_finite_where_gamma_is_zero_or_tiny():
    model, graph, inputs = toy(Plain)
    awkward_affine_(model)
    gates = attach_gates(model, graph, DecoratorGate)
    take_over_affine(gates)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    sum(output.sum() for output in flat(model.train()(inputs))).backward()
    assert all(bool(gate.theta.grad.isfinite().all()) for gate in gates.by_group.values())


@pruned
def test_closed_and_slim_equal_the_masked_copy(net):
    model, graph, inputs = toy(net)
    kept = random_kept(graph)
    expected = call(masked_copy(model, graph, kept), inputs)
    gates = attach_gates(model, graph, DecoratorGate)
    take_over_affine(gates)
    gates.close(graph.kept(kept))
    assert relative_error(call(model, inputs), expected) < 1e-12
    assert all(torch.equal(mask, kept[name]) for name, mask in gates.kept().items())
    slim_model(model, *fold_gates(model))
    assert relative_error(call(model, inputs), expected) < 1e-12


def test_every_module_of_a_tied_group_has_its_own_row():
    model, graph, inputs = toy(Residual)
    gates = attach_gates(model, graph, DecoratorGate)
    group = next(group for group in graph.free if len(gates.members(group)) > 1)
    members = gates.members(group)
    assert gates[group.name].theta.shape == (len(members), group.size)
    whole = model.get_submodule(members[1].module)(torch.ones(2, group.size, 4, 4, dtype=torch.double))
    gates[group.name].theta.data[1] *= 3
    assert torch.allclose(
        model.get_submodule(members[1].module)(torch.ones(2, group.size, 4, 4, dtype=torch.double)), 3 * whole
    )
    gates[group.name].theta.data[0] = 0
    assert gates.kept()[group.name].all()  # open as long as one member is
    gates[group.name].theta.data[:, 2] = 0
    assert gates.kept()[group.name].tolist() == [i != 2 for i in range(group.size)]
    detach_gates(model)


def test_a_channel_at_two_places_of_a_norm_has_one_gate():
    model, graph, inputs = toy(TwiceTheSame)
    gates = attach_gates(model, graph, DecoratorGate)
    before = call(model, inputs)
    take_over_affine(gates)
    assert gates['a.0'].theta.shape[1] == 4
    assert relative_error(call(model, inputs), before) < 1e-12


@pytest.mark.parametrize('net', [NoNorm, SiluNet])
def test_layers_without_a_norm_are_gated_as_well(net):
    model, graph, inputs = toy(net)
    gates = attach_gates(model, graph, DecoratorGate)
    take_over_affine(gates)
    if net is NoNorm:  # a gated convolution: phi scales the convolution's output, and starts at one
        assert all(bool((gate.theta == 1).all()) for gate in gates.by_group.values())
        seen = []
        model.get_submodule('a').register_forward_hook(lambda module, args, output: seen.append(output))
        call(model, inputs)
        gates['a'].theta.data[0, 1] = 0.25
        call(model, inputs)
        assert torch.allclose(seen[1][:, 1], 0.25 * seen[0][:, 1]) and torch.equal(seen[1][:, 0], seen[0][:, 0])
    sum(output.square().sum() for output in flat(model.train()(inputs))).backward()
    assert all(bool((gate.theta.grad != 0).any()) for gate in gates.by_group.values())


def test_importance_equals_a_hand_computation():
    model, graph, inputs = toy(Residual)
    gates = attach_gates(model, graph, DecoratorGate)
    take_over_affine(gates)
    for scale in gates.scales:  # phi * dL/dphi of a norm is what arrives times what leaves it, summed
        scale.module.register_forward_hook(keep_output)
    loss = sum(output.square().sum() for output in flat(model.train()(inputs)))
    loss.backward()
    for group in graph.free:
        expected = torch.zeros(group.size, dtype=torch.double)
        for member in gates.members(group):
            output = model.get_submodule(member.module).kept_output
            position = torch.tensor([int((member.index == group.start + i).nonzero()) for i in range(group.size)])
            expected += (output * output.grad).sum((0, 2, 3))[position].abs()
        gate = gates[group.name]
        assert torch.allclose(gate.importance(gate.theta.grad), expected)


def keep_output(module, args, output):
    output = output + 0  # what an in-place ReLU may change later
    output.retain_grad()
    module.kept_output = output
    return output


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'shape'),
    [
        ('mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-20k_voc12aug-512x512.py', (3, 64, 64)),
        ('mmpretrain::vgg/vgg11_8xb32_in1k.py', (3, 224, 224)),
    ],
)
def test_conversion_of_stock_models_keeps_their_function(name, shape):
    config = get_config(name)
    init_default_scope(config.default_scope)
    model = revert_sync_batchnorm(MODELS.build(without_pretrained(config.model.to_dict())))
    graph = trace(model, shape)
    randomize_(model.double())
    inputs = example(shape, batch=1)
    plain = call(model, inputs, training_forward)
    gates = attach_gates(model, graph, DecoratorGate)
    take_over_affine(gates)
    gated = call(model, inputs, training_forward)
    assert relative_error(gated, plain) <= 1e-6
    fold_gates(model)
    assert same(call(model, inputs, training_forward), gated)
