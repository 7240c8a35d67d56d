"""Runs that do not go straight through: tested after training, validated before, begun from files of other runs."""

import re
from pathlib import Path

import pytest
import tiny_run
import torch
from helpers import train
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.apis import init_model

from mmprune_gates.gates import gates_of

VALIDATION = """
val_dataloader, val_evaluator, val_cfg = test_dataloader, test_evaluator, test_cfg
train_cfg.update(max_iters=20, val_interval=2)
default_hooks['checkpoint'].update(interval=2)
model['backbone']['width'] = model['head']['in_channels'] = 16
"""
GBN = f'{tiny_run.DECORATOR}custom_hooks[0].update(tick=1, tock=2, ticks=2, fraction=0.1)'
BOTH = pytest.mark.parametrize('method', ['', GBN], ids=['gdp', 'gbn'])
BEST = "default_hooks['checkpoint'].update(save_best='auto')"
AVERAGED = "custom_hooks.append(dict(type='EMAHook', momentum=0.1))"


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Folder of a few images."""
    return tiny_run.draw_images(tmp_path_factory.mktemp('data') / 'images')


@pytest.fixture
def config(images, tmp_path):
    """A function: the smallest config of a method, with validation and lines of Python at its end."""

    def make(*changes, folder='run', **keys):
        found = Config.fromfile(tiny_run.write_config(tmp_path / f'{folder}.py', images, VALIDATION, *changes))
        found.merge_from_dict({'work_dir': str(tmp_path / folder), **keys})
        return found

    return make


def pruner_of(runner):
    return next(hook.pruner for hook in runner.hooks if hasattr(hook, 'pruner'))


def log_of(runner):
    return next(Path(runner.log_dir).glob('*.log')).read_text()


@BOTH
def test_a_run_is_tested_and_validated_after_training(config, method):
    runner = train(config(method))
    pruner = pruner_of(runner)
    runner.test()
    runner.val()
    assert pruner_of(runner) is pruner and pruner.controller.settled


@BOTH
@pytest.mark.parametrize('shrink', [True, False])
def test_averages_are_validated_while_gates_are_closed(config, method, shrink):
    runner = train(config(method, BEST, AVERAGED, f"custom_hooks[0]['shrink'] = {shrink}"))
    assert pruner_of(runner).controller.settled
    assert list(Path(runner.work_dir).glob('best_*.pth'))


@BOTH
def test_a_model_that_channels_left_before_training_is_refused(config, method):
    first = train(config(method))
    again = Runner.from_cfg(config(method, folder='again', load_from=f'{first.work_dir}/iter_20.pth'))
    again.val()
    with pytest.raises(ValueError, match='Hook: a checkpoint was loaded before training, and channels have left'):
        again.train()


@pytest.mark.parametrize(('shrink', 'iteration'), [(False, 4), (False, 20), (True, 20)])
def test_gate_decorator_begins_from_weights_of_a_run_whose_channels_are_closed(config, shrink, iteration):
    unshrunk = f"custom_hooks[0]['shrink'] = {shrink}"
    first = train(config(GBN, unshrunk))
    checkpoint = f'{first.work_dir}/iter_{iteration}.pth'
    closed = sum(int((value == 0).sum()) for key, value in states(checkpoint).items() if key.endswith('theta'))
    assert bool(closed) is not shrink
    again = train(config(GBN, unshrunk, folder='again', load_from=checkpoint, **{'custom_hooks.0.target_macs': 0.4}))
    assert pruner_of(again).controller.settled
    gates = gates_of(again.model)
    assert gates.whole.macs(gates.kept_of_whole(gates.kept())) <= 0.4 * gates.whole.macs()


def states(checkpoint):
    return torch.load(checkpoint, weights_only=True, map_location='cpu')['state_dict']


@BOTH
def test_a_run_does_not_resume_from_one_without_pruning(config, method):
    dense = train(config(tiny_run.DENSE))
    with pytest.raises(ValueError, match='is of a run without pruning.*load_from'):
        train(config(method, folder='again', load_from=f'{dense.work_dir}/iter_10.pth', resume=True))


@BOTH
def test_a_run_that_ends_too_early_says_so(config, method):
    late = '' if method else 'custom_hooks[0].update(end=0.8, settle=0.9)'
    stop = "custom_hooks.append(dict(type='EarlyStoppingHook', monitor='accuracy/top1', patience=1))"
    runner = train(config(method, late, stop, "custom_hooks[0]['target_macs'] = 0.3"))
    assert not pruner_of(runner).controller.settled
    assert 'the run ended before the target was met' in log_of(runner)


def test_a_fine_tune_fills_a_run_that_has_become_longer(config):
    fast = 'custom_hooks[0].update(tock=1, fraction=0.2)'
    train(config(GBN, fast))
    longer = dict(resume=True, **{'train_cfg.max_iters': 60})
    runner = train(config(GBN, fast, **longer))
    cycle = pruner_of(runner).controller
    assert cycle.settled and cycle.done == cycle.length
    assert max(group['lr'] for group in runner.optim_wrapper.optimizer.param_groups) == pytest.approx(1e-3, rel=0.2)
    rates = re.findall(r'lr: (\S+)', log_of(runner))
    assert max(map(float, rates)) == pytest.approx(1e-2, rel=0.1)


def test_test_time_augmentation_scores_the_shrunk_model(config):
    runner = train(config(BEST))
    checkpoint = f'{runner.work_dir}/iter_20.pth'
    augmented = config(folder='augmented', load_from=checkpoint)
    augmented.model = dict(type='AverageClsScoreTTA', module=augmented.model)
    tester = Runner.from_cfg(augmented)
    tester.load_or_resume()
    loaded, kept = tester.model.module.state_dict(), states(checkpoint)
    assert all(torch.equal(loaded[key], value) for key, value in kept.items())


def test_weights_of_a_shrunk_model_are_not_skipped_where_no_hook_reshapes(config):
    runner = train(config())
    with pytest.raises(ValueError, match='channels have left it in training.*slim.py'):
        init_model(config(folder='other'), f'{runner.work_dir}/iter_20.pth', device='cpu')
