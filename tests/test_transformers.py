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
from transformer_configs import gated

pytestmark = [pytest.mark.slow, pytest.mark.models]
export_onnx = load_tool('export_onnx')
ROOT = Path(__file__).parents[1]
PARTS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
NAMES = ['segformer', 'swin dims', 'swin both', 'vit', 'deit both']  # with what attention loses besides heads
ITERATIONS = 12
HOOK = dict(target_macs=0.5, steps=2, floor=0.0)
# Sizes of the groups: numbers of heads, channels of a head.
SIZES = {'swin dims': {32}, 'swin both': {3, 6, 12, 24, 32}, 'deit both': {3, 64}}
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
        model, _, attention = name.partition(' ')
        made = gated(model, attention or 'heads', ITERATIONS, **HOOKS.get(name, HOOK))
        data = digits if model == 'deit' else tiny_config(tmp_path / 'unused')
        for part in PARTS:
            made[part] = data[part]
        path = tmp_path / 'gated.py'
        made.dump(path)
        return path

    return make


@pytest.mark.parametrize('name', NAMES)
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
    package = 'mmpretrain' if name.startswith('deit') else 'mmseg'
    command = [sys.executable, ROOT / 'tools' / 'stock.py', f'{package}:train.py', pair[0]]
    options = ['--work-dir', tmp_path / 'more', '--cfg-options', 'train_cfg.max_iters=2', f'load_from={pair[1]}']
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'Load checkpoint from' in done.stdout + done.stderr
    batch = ['--batch', '1'] if name.startswith('swin') else []  # its code takes the batch from the number of windows
    assert export_onnx.main([*pair, str(tmp_path / 'slim.onnx'), *batch]) == 0
