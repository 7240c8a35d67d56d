"""Removal is exact: the slim net computes what the full one does with exact zeros; nothing else changes."""

import copy

import pytest
import torch
from helpers import call, random_kept, relative_error, removal_errors, toy, traced
from toy_nets import Plain, TiedWeights, TwoNames, nets, pruned

from mmprune_gates import masked_copy, slim_model
from mmprune_gates.slimming.surgery import cut, slot_masks


@pruned
@pytest.mark.parametrize('seed', [1, 2, 3])
def test_the_slim_net_equals_the_masked_one(net, seed):
    model, graph, inputs = traced(net)
    error, distance, *_ = removal_errors(model, graph, inputs, random_kept(graph, seed, share=seed / 4))
    assert error < 1e-12
    assert distance > 1e-3, 'the masks change nothing, so nothing was tested'


@pruned
def test_one_channel_is_enough(net):
    model, graph, inputs = traced(net)
    kept = {group.name: torch.arange(group.size) == group.size - 1 for group in graph.free}
    assert removal_errors(model, graph, inputs, kept)[0] < 1e-12


@pruned
def test_each_group_alone(net):
    model, graph, inputs = traced(net)
    for name, mask in random_kept(graph).items():
        error, distance, *_ = removal_errors(model, graph, inputs, {name: mask})
        assert error < 1e-12 and distance > 1e-6


@nets
def test_nothing_removed_is_nothing_changed(net):
    model, graph, inputs = traced(net)
    slim = copy.deepcopy(model)
    kept = {group.name: torch.ones(group.size) for group in graph.groups}
    assert slim_model(slim, graph, kept) == {'widths': {}, 'removed': {}}
    assert relative_error(call(slim, inputs), call(model, inputs)) == 0


@nets
def test_the_original_stays_as_it_is(net):
    model, graph, _ = traced(net)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    masked_copy(model, graph, random_kept(graph))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pruned
def test_masked_channels_are_zero_in_every_slot(net):
    model, graph, _ = traced(net)
    kept = random_kept(graph)
    masked = masked_copy(model, graph, kept)
    tensors = {**dict(masked.named_parameters()), **dict(masked.named_buffers())}
    for name, dims in slot_masks(graph, graph.kept(kept)).items():
        for dim, mask in dims.items():
            assert not tensors[name].detach().movedim(dim, 0)[~mask].any()


@pruned
def test_the_slim_net_trains(net):
    model, graph, inputs = toy(net)
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    slim_model(model, graph, random_kept(graph))
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    model.train()
    outputs = model(inputs)
    outputs = outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, tuple) else [outputs]
    sum(output.square().sum() for output in outputs).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None and 'unused' not in n]
    assert not missing


def test_a_module_of_two_names_stays_one():
    model, graph, _ = toy(TwoNames)
    slim_model(model, graph, random_kept(graph))
    assert model.first is model.second and model.first[0].weight is model.second[0].weight


def test_a_parameter_of_two_modules_stays_one():
    model, graph, _ = toy(TiedWeights)
    free = copy.deepcopy(graph)
    object.__setattr__(free, 'groups', tuple(copy.copy(g) for g in graph.groups))
    for group in free.groups:
        object.__setattr__(group, 'frozen', None)  # as if gates could stand there
    slim_model(model, free, {'a.0': torch.arange(6) < 4})
    assert model.b.weight is model.c.weight and model.b.weight.shape[0] == 4
    assert len(model.state_dict()) == len(TiedWeights().state_dict())


@pytest.mark.parametrize('removal', [masked_copy, slim_model])
@pytest.mark.parametrize(
    ('kept', 'message'),
    [
        ({'x': torch.ones(2)}, "unknown channel group 'x'"),
        ({'head': torch.tensor([1, 0, 1, 1])}, "group 'head' is frozen"),
        ({'a.0': torch.ones(3)}, r'shape \(3,\), expected \(8,\)'),
        ({'a.0': torch.zeros(8)}, 'removes all of its 8 channels'),
    ],
)
def test_masks_that_are_not_allowed_change_nothing(removal, kept, message):
    model, graph, _ = toy(Plain)
    with pytest.raises(ValueError, match=message):
        removal(model, graph, kept)
    assert model.a[0].weight.shape[0] == 8


def test_another_model_is_refused_and_does_not_change():
    _, graph, _ = traced(Plain)
    kept = random_kept(graph)
    model = Plain()
    model.b = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"tensor 'b\.0\.weight', which the model does not have"):
        slim_model(model, graph, kept)
    assert model.a[0].weight.shape[0] == 8


def test_a_model_that_is_slim_already_is_refused():
    model, graph, _ = toy(Plain)
    kept = random_kept(graph)
    slim_model(model, graph, kept)
    shapes = [tensor.shape for tensor in model.parameters()]
    with pytest.raises(ValueError, match=r'a\.0\.weight has shape \(4, 3, 3, 3\); traced with 8 at dimension 0'):
        slim_model(model, graph, kept)
    assert [tensor.shape for tensor in model.parameters()] == shapes


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_what_is_cut_keeps_its_layout_in_memory(layout):
    weight = torch.arange(8 * 6 * 3 * 3.0).view(8, 6, 3, 3)
    masks = {0: torch.arange(8) % 3 > 0, 1: torch.arange(6) != 2}
    found = cut(weight.to(memory_format=layout), masks)
    assert torch.equal(found, weight[masks[0]][:, masks[1]])
    assert found.is_contiguous(memory_format=layout)
