"""tools/train.py and tools/test.py: real runs by config alone, and one clear message for bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train
from demo_data import generate_voc
from helpers import environment_with
from mmengine.config import Config
from PIL import Image
from test_bad_checkpoints import Crafted
from tiny_run import load_tool

from mmprune_gates import cli
from mmprune_gates.cli import reports_errors
from mmprune_gates.cli.arguments import work_folder

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'configs' / 'gdp_deeplabv3plus_voc.py'
pytestmark = pytest.mark.models


tester = load_tool('test')


@pytest.fixture
def voc(tmp_path):
    """Folder of a few images in VOC2012 format with the augmented set."""
    return generate_voc(tmp_path / 'voc', num_train=3, num_val=2, num_aug=3, size=(64, 64))


@pytest.fixture
def small(tiny_config, tmp_path):
    """A function: path of a small gated config in ``tmp_path``, with changes."""

    def write(name='small.py', text='', **overrides):
        config = tiny_config(tmp_path / 'unused', **overrides)
        config.work_dir = None
        config.custom_hooks = config.custom_hooks[:1]
        config.custom_hooks[0].steps = 2
        path = tmp_path / name
        config.dump(path)
        path.write_text(path.read_text() + text)
        return str(path)

    return write


def failed(capsys, code=1):
    """The message of a tool that failed: no stack trace, its last lines on stderr."""
    text = capsys.readouterr().err
    assert 'Traceback' not in text and 'error: ' in text
    return text[text.index('error: ') :]


# runs ------------------------------------------------------------------------------------------------------


def test_the_voc_config_trains(voc, tmp_path):
    data = {f'train_dataloader.dataset.datasets.{n}.data_root': voc for n in (0, 1)}
    crops = {
        f'train_dataloader.dataset.datasets.{n}.pipeline.{step}': '(64,64)'
        for n in (0, 1)
        for step in ('3.crop_size', '6.size')
    }
    options = {
        **data,
        **crops,
        'train_dataloader.batch_size': 2,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        **dict.fromkeys(('val_dataloader', 'val_cfg', 'val_evaluator')),
        'model.pretrained': None,
        'model.data_preprocessor.size': '(64,64)',
        'train_cfg.max_iters': 2,
        'default_hooks.checkpoint.save_optimizer': False,
    }
    options = [f'{key}={value}' for key, value in options.items()]
    assert train.main([str(CONFIG), '--work-dir', str(tmp_path / 'work'), '--cfg-options', *options]) == 0
    state = torch.load(tmp_path / 'work' / 'iter_2.pth', weights_only=True)['state_dict']
    gates = torch.cat([value for key, value in state.items() if key.endswith('.theta')])
    assert set(gates.unique().tolist()) == {1.0} and len(gates) < 15920  # what was closed has left


def test_resume_equals_an_uninterrupted_run(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = {
        'default_hooks.checkpoint.interval': 3,
        'default_hooks.checkpoint.save_optimizer': True,
        'model.decode_head.dropout_ratio': 0,  # its masks come from a generator that no checkpoint holds
        'model.auxiliary_head.dropout_ratio': 0,
    }
    # onedl-mmengine skips samples without loading them, so random augmentation would go on elsewhere.
    config = small(iterations=6, text="\ntrain_dataloader['dataset']['pipeline'] = test_pipeline\n", **plain)
    assert train.main([config]) == 0
    whole = tmp_path / 'work_dirs' / 'small'  # where a run goes unless told otherwise
    halves = tmp_path / 'halves'
    halves.mkdir()
    (halves / 'iter_3.pth').symlink_to(whole / 'iter_3.pth')
    (halves / 'last_checkpoint').write_text(str(halves / 'iter_3.pth'))
    assert train.main([config, '--work-dir', str(halves), '--resume']) == 0
    a, b = (torch.load(folder / 'iter_6.pth', weights_only=True) for folder in (whole, halves))
    a['optimizer'], b['optimizer'] = (end['optimizer']['state'] for end in (a, b))
    assert a['mmprune_gates'].pop('method') == b['mmprune_gates'].pop('method')
    for part in ('state_dict', 'optimizer', 'mmprune_gates'):
        torch.testing.assert_close(a[part], b[part], rtol=0, atol=0)
    start = torch.load(whole / 'iter_3.pth', weights_only=True)['state_dict']
    assert any(not torch.equal(value, start[key]) for key, value in a['state_dict'].items())


def test_a_run_of_a_slim_model_does_not_write_over_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert work_folder(None, 'anywhere/slim.py') == str(Path('work_dirs', 'slim'))
    cli.write_text(Path('work_dirs/slim/slim.json'), '{}')
    assert work_folder(None, 'work_dirs/slim/slim.py') == str(Path('work_dirs', 'slim_run'))
    assert work_folder('elsewhere', 'work_dirs/slim/slim.py') == 'elsewhere'
    with pytest.raises(ValueError, match='work_dirs/slim holds a slim model, which a run would overwrite'):
        work_folder('work_dirs/slim', 'work_dirs/slim/slim.py')


OWN_FILE = """
import torch
from mmengine.hooks import Hook

from mmprune_gates import HOOKS, MODELS
from mmprune_gates.gates import Gate, gates_of


@MODELS.register_module()
class ClampedGate(Gate):
    def value(self, theta):
        return theta.clamp(0, 1)


@HOOKS.register_module()
class CloseFirst(Hook):
    def __init__(self, count):
        self.count = count

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        for group in gates_of(runner.model).graph.free:
            with torch.no_grad():
                gates_of(runner.model)[group.name].theta[: self.count] = 0
"""


def test_a_gate_type_and_a_hook_of_ones_own_work_by_config_alone(small, tmp_path, monkeypatch):
    (tmp_path / 'own_pruning.py').write_text(OWN_FILE)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    config = small(
        iterations=2,
        text="\ncustom_imports = dict(imports=['mmprune_gates', 'own_pruning'])\n"
        "model['gates'] = dict(type='ClampedGate')\n"
        "custom_hooks = [dict(type='mmprune_gates.CloseFirst', count=2)]\n",
    )
    assert train.main([config, '--work-dir', str(tmp_path / 'own')]) == 0
    state = torch.load(tmp_path / 'own' / 'iter_2.pth', weights_only=True)['state_dict']
    thetas = [value for key, value in state.items() if key.endswith('.theta')]
    assert thetas and all((theta[:2] == 0).all() and (theta[2:] > 0).all() for theta in thetas)


def run_tool(name, *args, cwd):
    """A tool as a process of its own."""
    return subprocess.run(
        [sys.executable, '-W', 'ignore', ROOT / 'tools' / name, *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment_with(),
    )


def test_test_writes_its_metrics_and_pictures(gated_run, tmp_path):
    done = run_tool('test.py', *gated_run, '--out-json', 'out/metrics.json', '--show-dir', 'shown', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('| background |') == 1
    metrics = json.loads((tmp_path / 'out' / 'metrics.json').read_text())
    assert 0 <= metrics['mIoU'] <= 100 and f'mIoU: {metrics["mIoU"]:.4f}' in done.stdout
    assert len(list((tmp_path / 'shown').rglob('*.png'))) == 4  # one per image


CLASSIFIER = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmprune_gates'])
model = dict(
    type='mmprune_gates.GatedModel', architecture='ImageClassifier', input_shape=(3, 32, 32),
    backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=64, topk=(1,)),
    data_preprocessor=dict(num_classes=2))
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CustomDataset', data_prefix='{root}', pipeline=pipeline))
test_dataloader = val_dataloader = train_dataloader
test_evaluator = val_evaluator = dict(type='Accuracy')
train_cfg, val_cfg, test_cfg = dict(by_epoch=True, max_epochs=1), dict(), dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
default_hooks = dict(visualization=dict(type='VisualizationHook', enable=False))
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
custom_hooks = [dict(type='mmprune_gates.PolarizationHook', target_macs=0.5)]
"""


def test_a_classifier_trains_and_tests(tmp_path):
    for name in 'ab':
        (tmp_path / 'images' / name).mkdir(parents=True)
        for number in range(2):
            Image.new('RGB', (32, 32), (number * 90, 20, 60)).save(tmp_path / 'images' / name / f'{number}.png')
    config = tmp_path / 'classifier.py'
    config.write_text(CLASSIFIER.replace('{root}', str(tmp_path / 'images')))
    work = str(tmp_path / 'work')
    assert train.main([str(config), '--work-dir', work]) == 0
    shown = ['--show-dir', str(tmp_path / 'shown')]
    assert tester.main([str(config), f'{work}/epoch_1.pth', '--work-dir', work, *shown]) == 0
    assert list((tmp_path / 'shown').glob('*.png'))


# bad input -------------------------------------------------------------------------------------------------


def test_the_command_itself_fails_with_the_message_and_the_code(tmp_path):
    done = run_tool('train.py', CONFIG, '--work-dir', tmp_path / 'work', cwd=tmp_path)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    for word in ('train.py: error: data set not found', 'datasets.1.data_prefix.seg_map_path', 'make demo'):
        assert word in done.stderr
    for place in ('JPEGImages', 'SegmentationClass', 'SegmentationClassAug', 'ImageSets/Segmentation/aug.txt'):
        assert f'data/VOCdevkit/VOC2012/{place}' in done.stderr
    assert not list(tmp_path.iterdir())  # and nothing was written


@pytest.mark.parametrize('args', [[], ['a.py', '--cfg-options', 'b'], ['a.py', '--cfg-options', 'b=(1']])
def test_wrong_usage_exits_with_2(args, capsys):
    with pytest.raises(SystemExit, match='2'):
        train.main(args)


def test_what_a_stock_class_refuses_is_told_with_its_place(small, tmp_path, capsys):
    config = small(text="\nmodel['backbone']['depth'] = [18]\n")
    assert train.main([config, '--work-dir', str(tmp_path / 'work')]) == 1
    text = failed(capsys)
    assert "could not be built from its config: TypeError: unhashable type: 'list'" in text
    assert 'ResNetV1c' in text and 'resnet.py, line' in text


def test_errors_that_are_not_about_the_input_have_their_trace_and_a_message(capsys):
    def main(argv):
        raise AssertionError('a mistake of ours')

    assert reports_errors(main)([]) == 1
    text = capsys.readouterr().err
    assert text.startswith('Traceback') and 'error: AssertionError: a mistake of ours' in text


def test_an_interrupt_is_no_error(capsys):
    def main(argv):
        raise KeyboardInterrupt

    assert reports_errors(main)([]) == 130
    assert capsys.readouterr().err.endswith(': interrupted\n')


def test_amp_without_a_gpu(small, capsys):
    if torch.cuda.is_available():
        return
    assert train.main([small(), '--amp']) == 1
    assert '--amp needs a GPU' in failed(capsys)


def test_weights_alone_are_no_run_to_resume(gated_run, tmp_path, capsys):
    path = tmp_path / 'weights.pth'
    torch.save(torch.load(gated_run[1], weights_only=True)['state_dict'], path)
    assert train.main([str(gated_run[0]), '--resume', str(path)]) == 1
    assert f'load_from={path}' in failed(capsys)


def test_reading_a_config_turns_unsafe_loading_off_in_every_loader(tmp_path, small, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')  # an earlier test may have set it
    cli.load_config(small())
    assert os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] == '1'
    torch.save(Crafted(), tmp_path / 'crafted.pth')
    with pytest.raises(Exception, match='[Ww]eights'):
        torch.load(tmp_path / 'crafted.pth', weights_only=False)


@pytest.mark.parametrize('by', ['option', 'config'])
def test_without_a_checkpoint_to_resume_a_run_starts_from_its_own(gated_run, tmp_path, by):
    config = Config.fromfile(gated_run[0])
    config.load_from, config.work_dir = str(gated_run[1]), str(tmp_path / 'empty')
    config.train_cfg.max_iters = 1
    if by == 'option':
        assert train.set_resume(config, 'auto') is None
        assert config.load_from == str(gated_run[1]) and config.resume is False
    else:
        config.resume = True  # as mmengine's Runner reads it
        checkpoint, path = train.set_resume(config, None)
        assert path == config.load_from == str(gated_run[1]) and 'state_dict' in checkpoint and config.resume is True


def test_a_metric_may_be_a_table():
    metrics = (0.5, [1.0, 2.0], torch.tensor([[1, 2], [3, 4]]))
    assert [tester.plain(value) for value in metrics] == [0.5, [1.0, 2.0], [[1, 2], [3, 4]]]
