"""Where gates go: behind what makes channels where a gate passes to every reader, else before all readers; once."""

import pytest
import torch
from helpers import traced
from toy_nets import NETS, nets

from mmprune_gates.gates.placement import BATCH, BEHIND, INPUT, OUTPUT, WEIGHT, place_gates

told = pytest.mark.parametrize(
    'net', [n for n in NETS.values() if n.placements], ids=[n for n in NETS if NETS[n].placements]
)


@told
def test_placements_are_those_by_hand(net):
    _, graph, _ = traced(net)
    assert {(p.module, p.kind) for p in place_gates(graph)} == net.placements


@nets
def test_at_most_one_placement_per_side_of_a_module(net):
    _, graph, _ = traced(net)
    placed = place_gates(graph)
    assert len({(p.module, p.kind in BEHIND) for p in placed}) == len(placed)


@nets
def test_a_gate_acts_on_makers_or_on_readers_and_on_every_free_group(net):
    _, graph, _ = traced(net)
    kinds = {group.name: set() for group in graph.free}
    for placement in place_gates(graph):
        for group in graph.groups:
            if bool(((placement.index >= group.start) & (placement.index < group.start + group.size)).any()):
                kinds[group.name].add(placement.kind in BEHIND)  # a frozen group would raise KeyError
    assert all(len(found) == 1 for found in kinds.values())


@nets
def test_never_before_a_depthwise_convolution(net):
    _, graph, _ = traced(net)
    depthwise = {layer.name for layer in graph.layers if layer.kind == 'depthwise conv'}
    assert not depthwise & {p.module for p in place_gates(graph)}


@nets
def test_in_front_of_readers_every_one_of_a_group_has_it(net):
    _, graph, _ = traced(net)
    placed = place_gates(graph)
    for group in graph.free:
        own = [
            p
            for p in placed
            if p.kind not in BEHIND
            and bool(torch.isin(torch.arange(group.start, group.start + group.size), p.index).any())
        ]
        readers = {
            r.layer
            for r in graph.reads
            if bool(((r.index >= group.start) & (r.index < group.start + group.size)).any())
        }
        assert not own or {p.module for p in own} == readers


@nets
def test_the_smaller_of_a_weight_and_a_mini_batch_is_scaled(net):
    _, graph, _ = traced(net)
    reads = {read.layer: read for read in graph.reads}
    sites = {site.module: site for site in graph.sites}
    for placement in place_gates(graph):
        read, site = reads.get(placement.module), sites.get(placement.module)
        if placement.kind == WEIGHT:
            assert read.weight_size < BATCH * read.input_size or not read.direct
        elif placement.kind == INPUT:
            assert read.weight is None or (BATCH * read.input_size <= read.weight_size and read.direct)
        elif placement.kind == OUTPUT:
            assert BATCH * site.output_size < site.weight_size and site.direct
        else:
            assert site.weight_size <= BATCH * site.output_size or not site.direct
