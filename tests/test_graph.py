"""Groups, reasons, MACs and coverage of the toy nets, against numbers by hand and two other counters."""

import re
from dataclasses import replace

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from helpers import random_kept, toy, traced
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from toy_nets import Plain, Residual, SharedLayer, Split, UnusedLayer, nets

from mmprune_gates import slim_model, trace_channels
from mmprune_gates.channels.build import WEIGHTED


@pytest.fixture
def slow_attention():
    """Switch off the one op into which torch fuses attention: no counter knows it."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@nets
def test_groups_and_reasons_are_those_by_hand(net):
    _, graph, _ = traced(net)
    assert {group.name: group.size for group in graph.free} == net.free
    frozen = {group.name: group.frozen for group in graph.groups if group.frozen is not None}
    assert frozen.keys() == net.frozen.keys()
    assert all(reason in frozen[name] for name, reason in net.frozen.items())


@nets
def test_groups_partition_the_channels(net):
    _, graph, _ = traced(net)
    covered = [i for group in graph.groups for i in range(group.start, group.start + group.size)]
    assert covered == list(range(graph.num_channels))
    assert len({group.name for group in graph.groups}) == len(graph.groups)


@nets
def test_slots_have_the_shapes_of_the_parameters(net):
    model, graph, _ = traced(net)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, dims in graph.slots.items():
        assert {dim: len(index) for dim, index in dims.items()} == {dim: tensors[name].shape[dim] for dim in dims}


@nets
def test_macs_are_those_by_hand(net):
    assert traced(net)[1].macs() == net.macs


@nets
def test_macs_of_a_removal_are_those_that_others_count_on_the_slim_net(net, slow_attention):
    model, graph, inputs = toy(net)
    kept = random_kept(graph)
    slim_model(model, graph, kept)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # fused ones it does not know
        model(inputs[:1])
    assert counter.get_total_flops() == 2 * graph.macs(kept)
    if net.__name__ != 'MultiHead':  # nor does fvcore
        found = FlopCountAnalysis(model, inputs[:1]).unsupported_ops_warnings(False).by_operator()
        assert sum(found[op] for op in ('conv', 'linear', 'matmul', 'einsum')) == graph.macs(kept)


@nets
def test_coverage_names_every_layer(net):
    model, graph, _ = traced(net)
    layers = {layer.name for layer in graph.layers}
    assert {name for name, module in model.named_modules() if isinstance(module, WEIGHTED)} <= layers
    assert len(layers) == len(graph.layers)
    for layer in graph.layers:
        free = [graph.group(name).frozen is None for name in (*layer.out_groups, *layer.in_groups)]
        assert layer.prunable is (any(free) or layer.kind == 'depthwise conv' and layer.out_frozen is None)
        assert layer.kind == 'unused' or layer.macs > 0 or not layer.name


@nets
def test_prunable_macs_are_what_the_free_groups_carry(net):
    _, graph, _ = traced(net)
    value = torch.ones(graph.num_channels, dtype=torch.double)
    for group in graph.free:
        value[group.span] = 0
    assert graph.prunable_macs() == net.macs - round(float(graph.cost(value)))


def test_the_example_of_the_docstring():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    graph = trace_channels(model, (torch.zeros(1, 3, 8, 8),))
    assert [(g.name, g.size, g.frozen is None) for g in graph.groups] == [('0', 8, True), ('3', 4, False)]
    owned = {(name, dim) for name, dims in graph.slots.items() for dim, i in dims.items() if bool((i < 8).any())}
    zero = {(f'{name}', 0) for name in ('0.weight', '0.bias', '1.weight', '1.bias', '1.running_mean', '1.running_var')}
    assert owned == zero | {('3.weight', 1)}


def test_a_layer_of_several_groups_numbers_them():
    class Partly(nn.Module):
        """Half of a layer's channels meet another layer in a sum."""

        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 1)
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.head(self.c(x) + torch.cat([self.a(x), self.b(x)], 1))

    graph = trace_channels(Partly(), (torch.zeros(1, 3, 4, 4),))
    assert {group.name: group.size for group in graph.free} == {'c': 4, 'c#2': 4}
    assert {layer.name: layer.out_groups for layer in graph.layers if layer.name in 'abc'} == {
        'a': ('c',),
        'b': ('c#2',),
        'c': ('c', 'c#2'),
    }


def test_channels_that_all_go_together_stay():
    class Tied(nn.Module):
        """A factor for all channels of a group of convolutions, each of one channel."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2)
            self.head = nn.Conv2d(4, 2, 1, groups=2)

        def forward(self, x):
            x = self.a(x)
            return self.head(self.b(x) + self.b(x.view(len(x), 2, -1, *x.shape[2:]).transpose(1, 2).reshape(x.shape)))

    graph = trace_channels(Tied(), (torch.zeros(1, 3, 4, 4),))
    assert {group.name: group.size for group in graph.free} == {'b': 2}
    assert (graph.group('a').size, graph.group('a').frozen) == (1, 'all channels go together, so none can go')
    assert [layer.out_frozen for layer in graph.layers if layer.name == 'a'] == [graph.group('a').frozen]


def test_unused_layers_are_reported():
    _, graph, _ = traced(UnusedLayer)
    (unused,) = [layer for layer in graph.layers if layer.kind == 'unused']
    assert (unused.name, unused.macs, unused.prunable) == ('unused.0', 0, False)
    assert 'not reached' in unused.out_frozen


def test_a_layer_called_twice_is_one_line_with_the_cost_of_both():
    _, graph, _ = traced(SharedLayer)
    (layer,) = [layer for layer in graph.layers if layer.name == 'shared']
    assert layer.macs == 2 * 64 * 9 * 6 * 6


def test_coverage_says_why():
    _, graph, _ = traced(Split)
    layer = next(layer for layer in graph.layers if layer.name == 'a.0')
    assert not layer.prunable
    assert layer.in_frozen == 'reads an input without removable channels (aten.conv2d in a.0)'
    assert re.fullmatch(r'toy_nets\.py:\d+ computes with its number of channels', layer.out_frozen)


@pytest.mark.parametrize(
    ('kept', 'message'),
    [
        ({'nobody': torch.ones(8)}, r"unknown channel group 'nobody'; groups: a\.0, b\.0, head"),
        ({'a.0': torch.ones(7)}, r"'a\.0' has shape \(7,\), expected \(8,\)"),
        ({'a.0': torch.arange(8)}, r"'a\.0' must be a mask, True or 1 where a channel stays"),
        ({'a.0': torch.zeros(8)}, r"'a\.0' removes all of its 8 channels; keep at least one"),
        (
            {'head': torch.tensor([1, 1, 1, 0])},
            r"group 'head' is frozen: an output of the model; it must be kept whole",
        ),
    ],
)
def test_masks_that_are_not_allowed(kept, message):
    _, graph, _ = traced(Plain)
    with pytest.raises(ValueError, match=message):
        graph.macs(kept)


def test_no_group_of_that_name():
    with pytest.raises(KeyError, match=r"no channel group 'x'; groups: a\.0, b\.0, head"):
        traced(Plain)[1].group('x')


def test_kept_is_a_mapping_of_the_masks_it_was_made_of():
    _, graph, _ = traced(Plain)
    masks = random_kept(graph)
    kept = graph.kept(masks)
    assert kept.keys() == masks.keys() and len(kept) == len(masks)
    assert all(torch.equal(kept[name], masks[name]) for name in masks)
    assert graph.kept(kept) is kept and graph.kept(dict(kept)) == kept != graph.kept()
    assert graph.keeping(kept.vector) == kept
    assert kept.indices() == {name: mask.nonzero().flatten().tolist() for name, mask in masks.items()}
    assert kept.at(torch.tensor([-1, 0])).tolist() == [True, bool(kept.vector[0])]


def test_further_groups_can_be_frozen():
    _, graph, _ = traced(Residual)
    first, *others = graph.free
    frozen = graph.with_frozen({first.name: 'said so'})
    assert frozen.group(first.name).frozen == 'said so' and {g.name for g in frozen.free} == {g.name for g in others}
    for before, after in zip(graph.layers, frozen.layers, strict=True):
        for groups, old, new in (
            (before.out_groups, before.out_frozen, after.out_frozen),
            (before.in_groups, before.in_frozen, after.in_frozen),
        ):
            assert new == ('said so' if old is None and groups == (first.name,) else old)
    assert frozen.macs() == graph.macs() and frozen.prunable_macs() < graph.prunable_macs()
    bare = replace(graph, layers=tuple(replace(layer, out_groups=(), out_frozen=None) for layer in graph.layers))
    assert bare.with_frozen({}).layers == bare.layers  # a layer may hold no channel of any group
