"""The ops of inference: what they say of the shapes in a slim model is what its own trace finds there."""

import copy

import pytest
import torch
from helpers import random_kept, traced
from toy_nets import NETS, Depthwise, MultiHead, OtherNorms, Plain, Residual

from mmprune_gates import slim_model, trace_channels
from mmprune_gates.channels.narrowed import narrowed


def shapes(workload, value):
    """Op and shapes of its results, of all ops, when channel i counts by ``value[i]``."""
    counts = workload.vectors.counts(value)
    found = []
    for work in workload.works:
        results = []
        for operand in work.results:
            sizes = list(operand.shape)
            for dim, number in operand.factors.items():
                sizes[dim] = int(counts[number])
            results.append(tuple(sizes))
        found.append((work.name, results))
    return found


def everything(graph):
    return torch.ones(graph.num_channels).double()


# Modules of OtherNorms keep their full width; that of MultiHead has another forward once heads have gone.
SAME_OPS = [net for net in NETS.values() if net not in (OtherNorms, MultiHead)]


@pytest.mark.parametrize('net', SAME_OPS, ids=lambda net: net.__name__)
def test_shapes_are_those_of_the_slim_model(net):
    model, graph, inputs = traced(net)
    kept = graph.kept(random_kept(graph))
    slim = copy.deepcopy(model)
    slim_model(slim, graph, kept)
    own = trace_channels(slim, (inputs,))
    assert shapes(graph.workload, kept.vector.double()) == shapes(own.workload, everything(own))


def test_what_a_module_of_full_width_does_it_does_on_all_channels():
    _, graph, _ = traced(OtherNorms)
    inside = [work for work in graph.workload.works if work.layer in graph.full_width]
    assert inside
    for work in inside:
        assert not any(operand.factors for operand in (*work.operands, *work.results))


def test_the_batch_is_taken_out():
    _, graph, inputs = traced(Plain)
    assert inputs.shape[0] > 1
    assert graph.workload.works[0].operands[0].shape == (1, *inputs.shape[1:])


def test_each_op_knows_what_makes_its_operands():
    _, graph, _ = traced(Plain)
    names = [work.name for work in graph.workload.works]
    assert names == ['conv2d', 'batch_norm', 'relu', 'conv2d', 'batch_norm', 'relu', 'conv2d']
    assert [work.operands[0].maker for work in graph.workload.works] == [None, 0, 1, 2, 3, 4, 5]
    assert [operand.constant for operand in graph.workload.works[0].operands] == [False, True]


def test_equal_vectors_of_channels_are_one():
    _, graph, _ = traced(Depthwise)
    vectors = {tuple(vector.tolist()) for vector in graph.workload.vectors.each}
    assert len(vectors) == len(graph.workload.vectors.each)


def test_what_is_left_once_channels_have_gone():
    _, graph, _ = traced(Residual)
    kept = graph.kept(random_kept(graph))
    left = narrowed(graph, kept, [])
    assert shapes(left.workload, everything(left)) == shapes(graph.workload, kept.vector.double())
