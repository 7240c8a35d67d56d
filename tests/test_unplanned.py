"""Models that nobody planned for: stock configs, gated by a few lines of inheritance, trained, slimmed, tested."""

import json

import pytest
import slim
import test as test_tool
import train
from helpers import slow_but
from mmengine.config import Config

pytestmark = pytest.mark.models

# A UNet with strided convolutions for pooling and leaky ReLU; HRNet with OCR, a cascade of two heads; ConvNeXt, whose
# residual streams pass through layer norms, with the optimizer of its config but for mixed precision.
UNET = """
_base_ = 'mmseg::unet/unet-s5-d16_fcn_4xb4-40k_chase-db1-128x128.py'
custom_imports = dict(imports=['mmprune_gates'])
model = dict(
    type='mmprune_gates.GatedModel', architecture='EncoderDecoder', data_preprocessor=dict(size=(32, 48)),
    backbone=dict(
        base_channels=8, norm_cfg=dict(type='BN'), act_cfg=dict(type='LeakyReLU'),
        downsamples=(True, False, True, False), strides=(1, 1, 2, 1, 2)),
    decode_head=dict(in_channels=8, channels=8, num_classes=7),
    auxiliary_head=dict(in_channels=16, channels=8, num_classes=7), test_cfg=dict(_delete_=True, mode='whole'))
"""
OCR = """
_base_ = 'mmseg::ocrnet/ocrnet_hr18s_4xb2-40k_cityscapes-512x1024.py'
custom_imports = dict(imports=['mmprune_gates'])
model = dict(
    type='mmprune_gates.GatedModel', architecture='CascadeEncoderDecoder', pretrained=None,
    data_preprocessor=dict(size=(32, 48)))
"""
CONVNEXT = """
_base_ = 'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmpretrain.models', 'mmprune_gates'])
model = dict(
    type='mmprune_gates.GatedModel', architecture='EncoderDecoder', data_preprocessor=dict(size=(64, 96)),
    backbone=dict(arch=dict(_delete_=True, depths=[1, 1, 2, 1], channels=[16, 24, 32, 48]), init_cfg=None),
    decode_head=dict(in_channels=[16, 24, 32, 48], channels=16, num_classes=7),
    auxiliary_head=dict(in_channels=32, channels=8, num_classes=7), test_cfg=dict(_delete_=True, mode='whole'))
optim_wrapper = dict(
    _delete_=True, type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    constructor='LearningRateDecayOptimizerConstructor',
    paramwise_cfg=dict(decay_rate=0.9, decay_type='stage_wise', num_layers=12))
"""
HOOK = "custom_hooks = [dict(type='mmprune_gates.PolarizationHook', target_macs=0.4, steps=2)]\n"


@pytest.mark.parametrize('text', slow_but((UNET,), (UNET, OCR, CONVNEXT)), ids=['unet', 'ocr', 'convnext'])
def test_a_stock_config_is_gated_by_inheritance_and_nothing_else(text, tiny_config, tmp_path):
    path = tmp_path / 'gated.py'
    path.write_text(text + HOOK)
    config, data = Config.fromfile(path), tiny_config(tmp_path / 'unused')
    for part in ('train', 'val', 'test'):  # the data of the demo in place of the config's own
        config[f'{part}_dataloader'] = data[f'{part}_dataloader']
    few = dict(max_iters=8, val_interval=8)
    config.merge_from_dict({'train_cfg': few, 'default_hooks.checkpoint.interval': 8})
    config.dump(path)
    work = tmp_path / 'run'
    assert train.main([str(path), '--work-dir', str(work)]) == 0
    assert slim.main([str(path), str(work / 'iter_8.pth'), str(tmp_path / 'slim')]) == 0
    report = json.loads((tmp_path / 'slim' / 'slim.json').read_text())
    assert 0.38 <= report['macs']['after'] / report['macs']['before'] <= 0.4
    assert report['parity_error'] <= 1e-5
    pair = [str(tmp_path / 'slim' / name) for name in ('slim.py', 'slim.pth')]
    assert test_tool.main([*pair, '--work-dir', str(tmp_path / 'test'), '--out-json', str(tmp_path / 'out.json')]) == 0
    assert 0 <= json.loads((tmp_path / 'out.json').read_text())['aAcc'] <= 100
