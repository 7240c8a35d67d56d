"""Stock models, as their configs build them: half of every group away, all heads compared in float32."""

import copy
from functools import cache

import pytest
import torch
from helpers import call, example, random_kept, randomize_, relative_error, removal_errors, slow_but
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmprune_gates import masked_copy, trace_channels
from mmprune_gates.engine.builders import trace
from mmprune_gates.engine.forwards import training_forward
from mmprune_gates.gates import PolarizationGate, attach_gates
from mmprune_gates.slimming import apply_widths

pytestmark = pytest.mark.models

# name -> config, side of the input, least share of the MACs that can go
STOCK = {
    'deeplabv3plus-r50': ('deeplabv3plus/deeplabv3plus_r50-d8_4xb4-40k_voc12aug-512x512.py', 64, 0.99),
    'fcn-hrnet-w18s': ('hrnet/fcn_hr18s_4xb4-40k_voc12aug-512x512.py', 64, 0.99),
    'lraspp-mobilenetv3': ('mobilenet_v3/mobilenet-v3-d8_lraspp_4xb4-320k_cityscapes-512x1024.py', 400, 0.99),
    'unet': ('unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py', 64, 0.99),
    'bisenetv2': ('bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py', 64, 0.99),
    'pspnet-r18': ('pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py', 64, 0.99),
    'mobilenetv2': ('mobilenet_v2/mobilenet-v2-d8_fcn_4xb2-80k_cityscapes-512x1024.py', 64, 0.99),
    'nonlocal': ('nonlocal_net/nonlocal_r50-d8_4xb2-40k_cityscapes-512x1024.py', 64, 0.99),
    'pointrend-r50': ('point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py', 64, 0.99),
    'segformer-b0': ('segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', 64, 0.8),
}
SHALLOW = {'nonlocal'}  # the head is what it is there for: on ResNet-18

FAST = ('deeplabv3plus-r50',)
stock = pytest.mark.parametrize('name', slow_but(FAST, STOCK))

# torch's fused kernel of nn.MultiheadAttention rounds in its own way; it is not used where a gate acts on its weights.
FUSED = {'segformer-b0'}


@cache
def traced(name, with_cp=False):
    """A stock model with random values, its channel graph, an input; not to be changed."""
    path, side, _ = STOCK[name]
    init_default_scope('mmseg')
    config = ConfigDict(copy.deepcopy(get_config(f'mmseg::{path}').model))
    if name in SHALLOW:
        config.backbone.depth = 18
        config.decode_head.in_channels, config.decode_head.channels = 512, 128
        config.auxiliary_head.in_channels = 256
    if with_cp:
        config.backbone.with_cp = True
    torch.manual_seed(0)
    model = randomize_(revert_sync_batchnorm(MODELS.build(config)))
    shape = (3, side, side)
    return model, trace(model, shape), example(shape, dtype=torch.float32)


def covered(graph):
    """All that a person sees of a graph."""
    return graph.groups, graph.layers, graph.macs(), graph.prunable_macs(), graph.unreached


@pytest.mark.slow
@pytest.mark.parametrize('name', ['deeplabv3plus-r50', 'fcn-hrnet-w18s'])
def test_checkpointing_hides_nothing_of_a_segmentor(name):
    assert covered(traced(name, with_cp=True)[1]) == covered(traced(name)[1])


CONVNEXT, SWIN = {'type': 'ConvNeXt', 'arch': 'atto'}, {'type': 'SwinTransformer', 'arch': 'tiny'}


@pytest.mark.parametrize('config', slow_but((CONVNEXT,), (CONVNEXT, SWIN)), ids=lambda c: c['type'])
def test_checkpointing_hides_nothing_of_a_backbone(config):
    init_default_scope('mmpretrain')
    models = [MODELS.build({**config, 'with_cp': with_cp}) for with_cp in (False, True)]
    plain, checkpointed = (trace_channels(model, torch.zeros(1, 3, 224, 224)) for model in models)
    assert covered(checkpointed) == covered(plain) and plain.free


# A backbone of mmpretrain, and the least share of the MACs that can go.
BACKBONES = {
    'shufflenet-v2': ({'type': 'ShuffleNetV2'}, 0.75),  # its first stage slices at a fixed size
    'efficientnet-b0': ({'type': 'EfficientNet', 'arch': 'b0'}, 0.99),
    'poolformer-s12': ({'type': 'PoolFormer', 'arch': 's12'}, 0.99),  # group norms over all channels
    'convnext-v2': ({'type': 'ConvNeXt', 'arch': 'atto', 'use_grn': True, 'layer_scale_init_value': 0.0}, 0.99),
    'densenet-121': ({'type': 'DenseNet', 'arch': '121'}, 0.99),
    'res2net-50': ({'type': 'Res2Net', 'depth': 50, 'scales': 4, 'base_width': 26}, 0.8),  # splits at a fixed size
}


@pytest.mark.parametrize('name', slow_but(('shufflenet-v2', 'poolformer-s12', 'convnext-v2'), BACKBONES))
def test_backbones_of_mmpretrain(name):
    config, share = BACKBONES[name]
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    model, inputs = randomize_(MODELS.build(config)), example((3, 64, 64), dtype=torch.float32)
    graph = trace_channels(model, (inputs,))
    assert graph.prunable_macs() >= share * graph.macs()
    error, distance, *_ = removal_errors(model, graph, inputs, random_kept(graph))
    assert error < 1e-5 and distance > 0.1


def loss_of(model, inputs):
    """Sum of all losses for random labels."""
    classes = model.num_classes
    samples = [
        SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, classes, (1, *inputs.shape[2:]))))
        for _ in range(len(inputs))
    ]
    losses = model.train()(inputs, samples, mode='loss')
    return sum(value.mean() for key, value in losses.items() if 'loss' in key)


@stock
def test_nearly_everything_can_go(name):
    _, graph, _ = traced(name)
    assert graph.prunable_macs() >= STOCK[name][2] * graph.macs()


@stock
def test_the_slim_model_equals_the_masked_one_rebuilds_and_trains(name):
    model, graph, inputs = traced(name)
    error, distance, slim, spec = removal_errors(model, graph, inputs, random_kept(graph), training_forward)
    assert error < 1e-5 and distance > 0.1
    fresh = copy.deepcopy(model)
    apply_widths(fresh, spec['widths'])
    fresh.load_state_dict(slim.state_dict(), strict=True)
    assert relative_error(call(fresh, inputs, training_forward), call(slim, inputs, training_forward)) == 0
    loss_of(fresh, inputs[..., :64, :64] if STOCK[name][1] == 64 else inputs).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in fresh.parameters())
    assert sum(p.grad is not None for p in fresh.parameters()) > 0.9 * len(list(fresh.parameters()))


@stock
def test_gates_change_nothing_until_they_close_and_then_equal_the_masked_one(name):
    model, graph, inputs = traced(name)
    kept = random_kept(graph)
    gated = copy.deepcopy(model)
    gates = attach_gates(gated, graph, PolarizationGate)
    before = call(model, inputs, training_forward)
    if name in FUSED:
        whole, with_gates = copy.deepcopy(model).double(), copy.deepcopy(gated).double()
        exact = call(whole, inputs.double(), training_forward)
        assert relative_error(call(with_gates, inputs.double(), training_forward), exact) < 1e-12
    else:
        assert relative_error(call(gated, inputs, training_forward), before) == 0
    for group, mask in kept.items():
        gates[group].theta.data.copy_(mask)
    expected = call(masked_copy(model, graph, kept), inputs, training_forward)
    assert relative_error(call(gated, inputs, training_forward), expected) < 1e-5
