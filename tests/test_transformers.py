"""Transformers that people train, from stock configs: a run closes heads, and stock tools go on with the product."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import slim
import test as test_tool
import train
from digits_data import write_digits
from mmengine.config import Config
from tiny_run import load_tool

pytestmark = [pytest.mark.slow, pytest.mark.models]
export_onnx = load_tool('export_onnx')
ROOT = Path(__file__).parents[1]
PARTS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
SEGMENTOR = """
_base_ = 'mmseg::{base}'
custom_imports = dict(imports=['mmprune_gates'])
model = dict(
    type='mmprune_gates.GatedModel', architecture='EncoderDecoder', pretrained=None, backbone=dict({backbone}),
    decode_head=dict(num_classes=7), {aux} data_preprocessor=dict(size=(64, 96)),
    test_cfg=dict(_delete_=True, mode='whole'))
"""
AUX = 'auxiliary_head=dict(num_classes=7),'
SEGMENTORS = {
    'segformer': SEGMENTOR.format(
        base='segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', backbone='init_cfg=None', aux=''
    ),
    'swin': SEGMENTOR.format(
        base='swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
        backbone='init_cfg=None',
        aux=AUX,
    ),
    'vit': SEGMENTOR.format(
        base='vit/vit_deit-s16_upernet_8xb2-160k_ade20k-512x512.py', backbone='img_size=(64, 96)', aux=AUX
    ),
}
for attention in ('dims', 'both'):
    more = f'pretrained=None, attention={attention!r},'
    SEGMENTORS[f'swin {attention}'] = SEGMENTORS['swin'].replace('pretrained=None,', more)
DEIT = """
_base_ = 'mmpretrain::deit/deit-tiny_4xb256_in1k.py'
custom_imports = dict(imports=['mmprune_gates'])
model = dict(
    type='mmprune_gates.GatedModel', architecture='ImageClassifier', input_shape=(3, 8, 8),
    backbone=dict(img_size=8, patch_size=2), head=dict(num_classes=10), train_cfg=dict(_delete_=True))
data_preprocessor = dict(num_classes=10)
default_hooks = dict(_delete_=True, checkpoint=dict(type='CheckpointHook', by_epoch=False))
param_scheduler = []
"""
ITERATIONS = 12
HOOK = dict(type='mmprune_gates.PolarizationHook', target_macs=0.5, steps=2, floor=0.0)
SIZES = {'swin dims': {32}, 'swin both': {3, 6, 12, 24, 32}}  # of the groups: numbers of heads, channels of a head
HOOKS = {'vit': HOOK | dict(target_macs=0.7, exclude='decode_head.*')}  # that head has most of the MACs


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """The demo's config of a classifier, on the digits."""
    config = Config.fromfile(ROOT / 'configs' / 'demo' / 'dense_resnet20_digits.py')
    root = write_digits(tmp_path_factory.mktemp('data') / 'digits')
    for part in PARTS:
        config[part].dataset.data_root = str(root)
    return config


@pytest.fixture
def config(tiny_config, digits, tmp_path):
    """A function: the file of a gated stock config, on small data."""

    def make(name):
        path = tmp_path / 'gated.py'
        path.write_text(SEGMENTORS.get(name, DEIT))
        made = Config.fromfile(path)
        data = tiny_config(tmp_path / 'unused') if name in SEGMENTORS else digits
        for part in PARTS:
            made[part] = data[part]
        made.train_cfg = dict(type='IterBasedTrainLoop', max_iters=ITERATIONS, val_interval=100)
        made.default_hooks.checkpoint.interval = ITERATIONS
        made.custom_hooks = [HOOKS.get(name, HOOK)]
        made.dump(path)
        return path

    return make


@pytest.mark.parametrize('name', [*SEGMENTORS, 'deit'])
def test_a_run_closes_heads_and_stock_tools_go_on(config, tmp_path, name):
    path, work, product = config(name), tmp_path / 'run', tmp_path / 'slim'
    assert train.main([str(path), '--work-dir', str(work)]) == 0
    assert slim.main([str(path), str(work / f'iter_{ITERATIONS}.pth'), str(product)]) == 0
    report = json.loads((product / 'slim.json').read_text())
    assert report['parity_error'] <= 1e-5
    target = HOOKS.get(name, HOOK)['target_macs']
    assert target - 0.02 <= report['macs']['after'] / report['macs']['before'] <= target
    heads = [group for key, group in report['groups'].items() if '.attn' in key or '.w_msa' in key]
    assert any(len(group['kept']) < group['size'] for group in heads)
    assert name not in SIZES or {group['size'] for group in heads} == SIZES[name]
    pair = [str(product / 'slim.py'), str(product / 'slim.pth')]
    assert test_tool.main([*pair, '--work-dir', str(tmp_path / 'test')]) == 0
    package = 'mmseg' if name in SEGMENTORS else 'mmpretrain'
    command = [sys.executable, ROOT / 'tools' / 'stock.py', f'{package}:train.py', pair[0]]
    options = ['--work-dir', tmp_path / 'more', '--cfg-options', 'train_cfg.max_iters=2', f'load_from={pair[1]}']
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'Load checkpoint from' in done.stdout + done.stderr
    batch = ['--batch', '1'] if name.startswith('swin') else []  # its code takes the batch from the number of windows
    assert export_onnx.main([*pair, str(tmp_path / 'slim.onnx'), *batch]) == 0
