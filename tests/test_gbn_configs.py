"""Gate Decorator's own configs: a run without batch norm from start to slim model, and lengths that suffice."""

import importlib.util
import json

import pytest
import slim
import torch
import train
from conftest import CONFIGS, opened
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmprune_gates.engine.model_config import without_pretrained
from mmprune_gates.gates import gates_of

pytestmark = pytest.mark.models
FCN = CONFIGS / 'gbn_fcn_voc.py'
GBN = [path for path in sorted(CONFIGS.rglob('gbn_*.py')) if path.parent.name != 'demo']


def load_test_tool():
    """tools/test.py, whose name the standard library has, too."""
    spec = importlib.util.spec_from_file_location('tool_test', CONFIGS.parent / 'tools' / 'test.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small_fcn(sbd):
    """``--cfg-options`` for a run of seconds: small crops and head, a cycle of 2 + 1 + 1 iterations, fine-tune."""
    crop, loaders = '(32,48)', ('train_dataloader', 'val_dataloader', 'test_dataloader')
    options = {f'{loader}.dataset.data_root': sbd for loader in loaders}
    options |= {f'{loader}.num_workers': 0 for loader in loaders}
    options |= {f'{loader}.persistent_workers': False for loader in loaders}
    options |= {f'{loader}.dataset.pipeline.1.scale': '(48,32)' for loader in loaders[1:]}
    options |= {
        'train_dataloader.batch_size': 2,
        'train_dataloader.dataset.pipeline.3.crop_size': crop,
        'model.data_preprocessor.size': crop,
        'model.decode_head.channels': 32,
        'load_from': 'None',
        'train_cfg.max_iters': 6,
        'default_hooks.checkpoint.interval': 6,
    }
    cycle = dict(tick=1, tock=2, ticks=2, fraction=0.2, target_macs=0.5, shrink=False)  # closed gates are counted
    return [f'{key}={value}' for key, value in (options | {f'custom_hooks.0.{k}': v for k, v in cycle.items()}).items()]


@pytest.mark.slow
def test_fcn_without_batch_norm_trains_slims_and_tests(small_fcn, tmp_path):
    work, options = tmp_path / 'work', ['--cfg-options', *small_fcn]
    assert train.main([str(FCN), '--work-dir', str(work), *options]) == 0
    path = work / 'iter_6.pth'
    state = torch.load(path, weights_only=True)
    assert state['mmprune_gates']['phase'] == 'finetune'
    gates = torch.cat([value.flatten() for key, value in state['state_dict'].items() if key.endswith('.theta')])
    assert 0.1 < float((gates == 0).float().mean()) < 0.5
    assert slim.main([str(FCN), str(path), str(tmp_path / 'slim'), *options]) == 0
    report = json.loads((tmp_path / 'slim' / 'slim.json').read_text())
    assert report['macs']['after'] <= 0.5 * report['macs']['before'] and report['parity_error'] <= 1e-5
    pair = [str(tmp_path / 'slim' / name) for name in ('slim.py', 'slim.pth')]
    scores = tmp_path / 'scores.json'
    assert load_test_tool().main([*pair, '--work-dir', str(work), '--out-json', str(scores)]) == 0
    assert 0 <= json.loads(scores.read_text())['mIoU'] <= 100


def test_fcn_has_gated_convolutions_and_only_these():
    config = Config.fromfile(FCN)
    init_default_scope(config.default_scope)
    gates = gates_of(MODELS.build(without_pretrained(config.model.to_dict())))
    assert {placement.kind for placement in gates.placements} <= {'affine', 'output'}
    assert len(gates.placements) == 15  # 13 of VGG-16, 2 of the head; all but the classes
    assert all(placement.module.endswith('.conv') for placement in gates.placements)
    assert gates.graph.prunable_macs() >= 0.99 * gates.graph.macs()


def run_lengths(hook, config):
    """(iterations or epochs that Ticks and Tocks take by the hook's estimate, those of the run)."""
    ticks = round((1 - hook.target_macs**0.5) / hook.fraction)
    tocks = 1 + ticks // hook.ticks
    run = config.train_cfg.get('max_epochs') or config.train_cfg.max_iters
    return ticks * hook.tick + tocks * hook.tock, run


@pytest.mark.parametrize('path', GBN, ids=lambda path: path.stem)
def test_the_run_is_long_enough_for_its_cycle_and_a_fine_tune(path):
    config = opened(path)
    hook = config.custom_hooks[0]
    cycle, run = run_lengths(hook, config)
    assert run - cycle >= 4 * hook.tock  # 40 epochs where a Tock has 10
    assert run % config.default_hooks.checkpoint.interval == 0
    if '_macs' not in path.stem:  # a variant says what differs, and no more
        assert f'{"epoch" if hook.get("by_epoch", True) else "iter"}_{run}.pth' in path.read_text()
