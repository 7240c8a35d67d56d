"""What the tests of several layers need: non-trivial weights, random removals, outputs side by side."""

from __future__ import annotations

import copy
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner
from model_checks import example, randomize_, relative_error
from model_checks import random_kept as random_kept
from torch import nn

from mmprune_gates import masked_copy, slim_model, trace_channels
from mmprune_gates.channels.calls import tensors_in as flat

ROOT = Path(__file__).parents[1]
WIDER = {  # than the tiny config: several steps of a machine
    'model.backbone.base_channels': 32,
    'model.backbone.stem_channels': 32,
    'model.decode_head.in_channels': 256,
    'model.decode_head.c1_in_channels': 32,
    'model.auxiliary_head.in_channels': 128,
}


def environment_with(*folders, **own):
    """The environment of a process that finds the package, and modules in some folders, whatever this one was given."""
    inherited = os.environ.get('PYTHONPATH')
    paths = [ROOT, *folders, *([inherited] if inherited else [])]
    return {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, paths)), **own}


def slow_but(fast, values):
    """Values of a parametrised test, those marked slow that are not among the fast ones."""
    assert fast and all(value in values for value in fast), f'{fast} are not all values of this test'
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]


def repeatable(config):
    """The config of a run on scenes, such that every run of it sees the same data and draws no mask; returns it."""
    config.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=False)
    config.train_dataloader.dataset.pipeline = config.test_pipeline
    config.model.decode_head.dropout_ratio = config.model.auxiliary_head.dropout_ratio = 0
    return config


def call(model: nn.Module, inputs, forward=None) -> list[torch.Tensor]:
    """All outputs of a model in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return flat(forward(model, inputs) if forward else model(inputs))


def removal_errors(model, graph, inputs, kept, forward=None) -> tuple[float, float, nn.Module, dict]:
    """What is left of a model after a removal, beside the reference.

    Returns:
        Error of the slim model, the reference's own distance from the whole model (0 would show nothing), the
        slim model and its specification.
    """
    whole = call(model, inputs, forward)
    expected = call(masked_copy(model, graph, kept), inputs, forward)
    slim = copy.deepcopy(model)
    spec = slim_model(slim, graph, kept)
    distance = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(expected, whole, strict=True))
    return relative_error(call(slim, inputs, forward), expected), distance, slim, spec


@cache
def traced(net) -> tuple[nn.Module, object, torch.Tensor]:
    """A toy net in float64 with random values, its channel graph, and an input; not to be changed."""
    torch.manual_seed(0)
    model = randomize_(net().double())
    inputs = example(net.shape)
    return model, trace_channels(model, (inputs,)), inputs


def toy(net) -> tuple[nn.Module, object, torch.Tensor]:
    """A toy net to change, its channel graph, and an input."""
    model, graph, inputs = traced(net)
    return copy.deepcopy(model).eval(), graph, inputs


def assert_same(a, b, place='') -> None:
    """Two states, nested, are the same bit by bit; says where they are not."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), f'{place}: {a.keys() ^ b.keys()}'
        for key in a:
            assert_same(a[key], b[key], f'{place}.{key}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), place
        for number, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_same(one, other, f'{place}[{number}]')
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, place


def same(found, expected):
    """Whether two lists of tensors are equal to the bit."""
    return len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def train(config):
    """The runner of a finished run."""
    torch.manual_seed(0)
    runner = Runner.from_cfg(config)
    runner.train()
    return runner
