"""The CIFAR nets: layers, MACs against fvcore, what can be pruned, and slimming against a masked copy."""

import subprocess
import sys
from functools import cache

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from helpers import call, example, random_kept, randomize_, removal_errors
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import mmprune_gates  # noqa: F401  (registers)
from mmprune_gates.engine.builders import trace

pytestmark = pytest.mark.models
SHAPE = (3, 32, 32)
BACKBONES = {
    'resnet20': (dict(type='mmprune_gates.CifarResNet', depth=20), 64),
    'resnet56': (dict(type='mmprune_gates.CifarResNet', depth=56), 64),
    'vgg16': (dict(type='VGG', depth=16, norm_cfg=dict(type='BN'), num_classes=-1), 512),
}
nets = pytest.mark.parametrize('name', BACKBONES)


def classifier(name):
    backbone, channels = BACKBONES[name]
    init_default_scope('mmpretrain')
    head = dict(type='LinearClsHead', num_classes=10, in_channels=channels)
    return MODELS.build(
        dict(type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'), head=head)
    )


@cache
def traced(name):
    """A classifier with random values and its channel graph; not to be changed."""
    torch.manual_seed(0)
    model = randomize_(classifier(name)).eval()
    return model, trace(model, SHAPE)


def convolutions(model):
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize('depth', [20, 32, 44, 56, 110])
def test_depth_counts_the_layers_of_the_main_path(depth):
    init_default_scope('mmpretrain')
    backbone = MODELS.build(dict(type='mmprune_gates.CifarResNet', depth=depth))
    kernels = [module.kernel_size for module in convolutions(backbone)]
    assert (kernels.count((3, 3)), kernels.count((1, 1))) == (depth - 1, 2)
    (features,) = backbone(torch.zeros(2, *SHAPE))
    assert features.shape == (2, 64, 8, 8)


def test_arguments_of_the_stock_class_pass_through():
    backbone = MODELS.build(dict(type='mmprune_gates.CifarResNet', depth=20, base_channels=8, stem_channels=8))
    assert backbone(torch.zeros(2, *SHAPE))[0].shape == (2, 32, 8, 8)


def test_the_package_can_be_imported_without_mmpretrain():
    code = "import sys; sys.modules['mmpretrain'] = None; import mmprune_gates as m; assert 'CifarResNet' in m.MODELS"
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)


def test_another_depth_is_refused():
    with pytest.raises(ValueError, match=r'depth must be one of \(20, 32, 44, 56, 110\), got 18'):
        MODELS.build(dict(type='mmprune_gates.CifarResNet', depth=18))


def test_macs_by_hand():
    blocks = 9
    stem, first = 3 * 16 * 9 * 32**2, 2 * blocks * 16 * 16 * 9 * 32**2
    later = sum((c // 2 * c + (2 * blocks - 1) * c * c) * 9 * s**2 + c // 2 * c * s**2 for c, s in ((32, 16), (64, 8)))
    assert traced('resnet56')[1].macs() == stem + first + later + 64 * 10 == 125_747_840


@nets
def test_macs_equal_those_of_fvcore(name):
    model, graph = traced(name)
    count = FlopCountAnalysis(model, torch.zeros(1, *SHAPE)).unsupported_ops_warnings(False)
    count.uncalled_modules_warnings(False)
    counts = count.by_operator()
    assert graph.macs() == counts['conv'] + counts['linear']


@nets
def test_nearly_everything_can_go(name):
    _, graph = traced(name)
    assert graph.prunable_macs() >= 0.99 * graph.macs()


@nets
def test_the_slim_model_equals_the_masked_one(name):
    model, graph = traced(name)
    error, distance, slim, _ = removal_errors(model, graph, example(SHAPE, dtype=torch.float32), random_kept(graph))
    assert error < 1e-5 and distance > 0.1
    assert sum(p.numel() for p in slim.parameters()) < 0.5 * sum(p.numel() for p in model.parameters())
    assert call(slim, torch.zeros(2, *SHAPE))[0].shape == (2, 10)
