"""Models built from configs: stock classes, stock outputs, stock keys; widths as a table or a number."""

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmprune_gates.engine.forwards import inference_forward, training_forward
from mmprune_gates.engine.model_config import without_pretrained
from mmprune_gates.gates import gates_of, has_gates

STOCK = 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-40k_voc12aug-512x512.py'


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')


@pytest.fixture
def small(tiny_config, tmp_path):
    """Model config of a small stock EncoderDecoder."""
    config = tiny_config(tmp_path).model
    for key in ('gates', 'architecture'):
        config.pop(key)
    config.type = 'EncoderDecoder'
    return config


def gated(config, **more):
    return MODELS.build(
        ConfigDict({**config, 'type': 'mmprune_gates.GatedModel', 'architecture': 'EncoderDecoder', **more})
    )


def slim(config, **more):
    return MODELS.build(
        ConfigDict({**config, 'type': 'mmprune_gates.SlimModel', 'architecture': 'EncoderDecoder', **more})
    )


def disturb(model):
    """Random, non-trivial norm statistics and affines."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)


def test_gated_model_is_the_stock_class_with_the_stock_output(small):
    plain = MODELS.build(small).eval()
    disturb(plain)
    model = gated(small).eval()
    assert type(model) is type(plain)
    missing = model.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert missing.missing_keys and all(key.startswith('gates.') for key in missing.missing_keys)
    image = torch.randn(2, 3, 32, 48)
    for a, b in zip(training_forward(plain, image), training_forward(model, image), strict=True):
        assert torch.equal(a, b)


def test_sync_norms_become_batch_norms_before_gates_go_in(small):
    for part in (small.backbone, small.decode_head, small.auxiliary_head):
        part.norm_cfg = dict(type='SyncBN', requires_grad=True)
    model = gated(small)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    name = gates_of(model).graph.free[0].name
    gates_of(model)[name].theta.data.zero_()
    with torch.no_grad():
        feature = model.eval().backbone.stem[2](
            model.backbone.stem[1](model.backbone.stem[0](torch.randn(1, 3, 32, 48)))
        )
    assert name == 'backbone.stem.0' and torch.equal(feature, torch.zeros_like(feature))


@pytest.mark.slow
def test_every_prunable_layer_of_the_stock_r50_has_gates():
    config = get_config(STOCK).model
    config.backbone.init_cfg = config.pretrained = None
    model = gated(config)
    graph = gates_of(model).graph
    frozen = {layer.name for layer in graph.layers if layer.out_frozen}
    assert frozen == {'decode_head.conv_seg', 'auxiliary_head.conv_seg'}
    assert {s.placement.kind for s in model.gates.scales} == {'affine'}
    assert graph.prunable_macs() >= 0.99 * graph.macs()


def test_widths_as_a_number_scale_every_free_group(small):
    graph = gates_of(gated(small)).graph
    model = slim(small, widths=0.5)
    full = gated(small)
    for group in graph.free:
        layer = model.get_submodule(group.name)
        assert layer.weight.shape[0] == max(1, round(0.5 * group.size)), group.name
    assert not has_gates(model)
    losses = sum(output.square().mean() for output in training_forward(model.train(), torch.randn(2, 3, 32, 48)))
    losses.backward()
    assert sum(p.numel() for p in model.parameters()) < 0.4 * sum(p.numel() for p in full.parameters())


@pytest.mark.parametrize('share', [0, -0.5, 1.5])
def test_widths_outside_their_range_are_refused(small, share):
    with pytest.raises(ValueError, match=r'in \(0, 1\]'):
        slim(small, widths=share)


def test_widths_of_another_architecture_name_the_module(small):
    with pytest.raises(ValueError, match="'backbone.layer9"):
        slim(small, widths={'backbone.layer9.0.conv1': {'out_channels': 3}})


def test_a_model_without_prunable_channels_is_refused(small):
    small.backbone = dict(type='mmengine.OnlyOutput')
    small.pop('auxiliary_head')

    @MODELS.register_module(force=True)
    class OnlyOutput(nn.Module):
        def forward(self, x):
            return [x]

    small.decode_head = dict(
        type='FCNHead', in_channels=3, in_index=0, channels=3, num_convs=0, concat_input=False, num_classes=5,
        norm_cfg=dict(type='BN'))  # fmt: skip
    with pytest.raises(ValueError, match='no prunable channel'):
        gated(small)


def test_an_unknown_input_size_is_asked_for(small):
    small.data_preprocessor.pop('size')
    with pytest.raises(ValueError, match='input_shape'):
        gated(small)
    assert has_gates(gated(small, input_shape=(3, 32, 48)))


def test_a_gate_that_is_no_gate_is_refused(small):
    @MODELS.register_module(force=True)
    class ModuleButNoGate(nn.Module):
        def __init__(self, size):
            super().__init__()

    with pytest.raises((TypeError, ValueError), match='not a mmprune_gates Gate'):
        gated(small, gates=dict(type='mmengine.ModuleButNoGate'))


def test_without_pretrained_reaches_every_level():
    config = dict(pretrained='x', backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='y'), depth=(1, 2)),
                  heads=[dict(init_cfg=dict(type='Normal'))])  # fmt: skip
    expected = dict(
        pretrained=None, backbone=dict(init_cfg=None, depth=(1, 2)), heads=[dict(init_cfg=dict(type='Normal'))]
    )
    assert without_pretrained(config) == expected


def test_inference_forward_is_one_tensor_of_logits(small):
    model = MODELS.build(small).eval()
    assert inference_forward(model, torch.randn(1, 3, 32, 48)).shape[:2] == (1, 7)


def test_a_removed_module_leaves_nothing_or_a_constant():
    config = dict(type='mmprune_gates.SlimModel', architecture='ImageClassifier', widths={})
    config |= dict(backbone=dict(type='ResNet_CIFAR', depth=18), head=dict(type='LinearClsHead', in_channels=512))
    config['head']['num_classes'] = 3
    init_default_scope('mmpretrain')
    path = 'backbone.layer1.0.conv1'
    for shape in (None, [1, 64, 1, 1]):
        model = MODELS.build(dict(copy.deepcopy(config), removed={path: shape}))
        constant = model.get_submodule(path).constant
        assert (None if constant is None else list(constant.shape)) == shape
