"""Runs on the meta device are faster, with the results that torch has on the CPU."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmprune_gates.slimming import without_data
from mmprune_gates.slimming.without_data import RESULTS, WithoutData

MAY_BE_IN_PLACE = [F.elu, F.hardsigmoid, F.hardswish, F.hardtanh, F.leaky_relu, F.mish, F.relu]
CALLS = {
    'batch norm': nn.BatchNorm2d(6),
    'batch norm in evaluation': nn.BatchNorm2d(6).eval(),
    'layer norm': nn.LayerNorm(7),
    'layer norm over two': partial(F.layer_norm, normalized_shape=(5, 7)),
    'bilinear': partial(F.interpolate, size=(9, 4), mode='bilinear'),
    'bilinear by a factor': partial(F.interpolate, scale_factor=2.5, mode='bilinear', align_corners=True),
    'bicubic': partial(F.interpolate, size=(9, 4), mode='bicubic'),
    'gelu': F.gelu,
    'softplus': F.softplus,
    **{op.__name__: op for op in MAY_BE_IN_PLACE},
    **{f'{op.__name__} in place': partial(op, inplace=True) for op in MAY_BE_IN_PLACE},
}


@pytest.fixture
def used(monkeypatch):
    """The ops whose results were looked up and found."""
    found = []

    class Noted(dict):
        def get(self, op):
            if op in self:
                found.append(op)
            return super().get(op)

    monkeypatch.setattr(without_data, 'RESULTS', Noted(RESULTS))
    return found


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('name', CALLS)
def test_results_have_the_shape_type_and_memory_format_of_those_with_data(name, memory_format, used):
    call = CALLS[name]
    images = torch.randn(2, 6, 5, 7).contiguous(memory_format=memory_format)
    expected = call(images.clone())
    if isinstance(call, nn.Module):
        call = copy.deepcopy(call).to('meta')
    inputs = images.to('meta')
    with WithoutData():
        result = call(inputs)
    assert len(used) == 1
    assert (result.shape, result.dtype, result.stride()) == (expected.shape, expected.dtype, expected.stride())
    assert result.is_meta and (result is inputs) == name.endswith('in place')


def test_every_result_is_tried(used):
    for call in CALLS.values():
        if not isinstance(call, nn.Module):
            with WithoutData():
                call(torch.empty(2, 6, 5, 7, device='meta'))
    norms = {'aten.native_batch_norm.default'}
    seldom = {'aten.gelu_.default'}  # no function of torch calls it
    assert set(used) | norms | seldom == RESULTS.keys()


def test_a_slice_is_resized_in_the_memory_format_of_the_whole():
    images = torch.randn(2, 6, 5, 7).contiguous(memory_format=torch.channels_last)[:, :3]
    for mode in ('bilinear', 'bicubic'):
        resize = partial(F.interpolate, size=(9, 4), mode=mode)
        with WithoutData():
            result = resize(images.to('meta'))
        assert result.stride() == resize(images).stride()


def test_an_empty_result_is_refused_as_by_torch():
    with WithoutData(), pytest.raises((RuntimeError, ZeroDivisionError)):
        F.interpolate(torch.empty(2, 6, 5, 7, device='meta'), size=(0, 4), mode='bilinear')


@pytest.mark.parametrize('shape', [(8,), (5, 8)])
def test_a_norm_of_another_size_is_refused_as_by_torch(shape):
    with WithoutData(), pytest.raises(RuntimeError, match='normalized_shape'):
        F.layer_norm(torch.empty(2, 6, 5, 7, device='meta'), shape)


def test_tensors_with_data_are_computed():
    numbers = torch.randn(2, 3)
    with WithoutData():
        assert torch.equal(F.relu(numbers), numbers.clamp(min=0))
