"""Baselines of a comparison: the configs derived for them, and the whole command with a handful of iterations."""

import json
import subprocess
import threading
from fractions import Fraction
from pathlib import Path

import baselines
import compare_baselines
import pytest
import torch
from comparison_report import choose_metric, markdown
from mmengine.config import Config
from PIL import Image
from torch import nn

from mmprune_gates import trace_channels
from mmprune_gates.cli.jobs import STEP, Jobs, progress_of
from mmprune_gates.engine.builders import uniform
from mmprune_gates.engine.coverage import model_of_config

DEMO = Path(__file__).parents[1] / 'configs' / 'demo'
NAMES = ('deeplabv3plus_scenes', 'resnet20_digits')
pytestmark = pytest.mark.models


def demo(kind, name):
    return Config.fromfile(DEMO / f'{kind}_{name}.py')


@pytest.fixture(scope='module')
def narrow():
    """Channel graph of three convolutions with groups of different sizes, and all MACs of its uniform widths."""
    net = nn.Sequential(
        *(nn.Conv2d(*sizes, 3, padding=1) for sizes in ((3, 10), (10, 7), (7, 16))), nn.Conv2d(16, 2, 1)
    )
    graph = trace_channels(net, (torch.zeros(2, 3, 8, 8),))
    steps = sorted({graph.macs(uniform(graph, share / 5000)) for share in range(1, 5001)})
    return graph, steps


# ---- derived configs


@pytest.mark.parametrize('name', NAMES)
def test_the_dense_reference_is_the_gated_config_without_gates(name):
    assert baselines.dense_config(demo('gdp', name)).to_dict() == baselines.plain(demo('dense_continued', name))


def test_other_hooks_stay_in_the_dense_reference():
    config = demo('gdp', NAMES[0])
    config.custom_hooks.append(dict(type='EMAHook'))
    assert baselines.dense_config(config).custom_hooks == [dict(type='EMAHook')]


def test_a_schedule_of_iterations_is_stretched():
    config = demo('dense', NAMES[0])
    config.param_scheduler.append(dict(type='MultiStepLR', milestones=(500, 1001), by_epoch=False, end=10**9))
    found = baselines.stretched(config, Fraction(5, 2))
    assert found.train_cfg.max_iters == found.max_iters == 5000
    assert [(s.get('begin'), s.end) for s in found.param_scheduler] == [(0, 250), (250, 5000), (None, 10**9)]
    assert tuple(found.param_scheduler[2].milestones) == (1250, 2502)
    assert found.param_scheduler[1].eta_min == config.param_scheduler[1].eta_min
    assert config.train_cfg.max_iters == 2000
    for key in ('model', 'train_dataloader', 'optim_wrapper', 'default_hooks'):
        assert found[key] == config[key]


def test_a_schedule_of_epochs_is_stretched():
    config = demo('dense', NAMES[1])
    config.param_scheduler = [config.param_scheduler, dict(type='CosineAnnealingLR', T_max=7, begin=3)]
    found = baselines.stretched(config, Fraction(3))
    assert found.train_cfg.max_epochs == 3 * config.train_cfg.max_epochs
    assert found.train_cfg.val_interval == config.train_cfg.val_interval
    first, second = found.param_scheduler
    assert first == {**config.param_scheduler[0], 'end': 3 * config.param_scheduler[0].end}
    assert (second.T_max, second.begin) == (21, 9)


def test_a_model_from_scratch_loads_nothing():
    start = demo('dense', NAMES[0])
    start.load_from = 'somewhere.pth'
    start.custom_imports = dict(imports='mine', allow_failed_imports=False)
    start.model.pretrained = 'open-mmlab://resnet18_v1c'
    model = baselines.shrunk_model(start.model.to_dict(), 0.5, (3, 64, 96))
    found = baselines.from_scratch(start, model, Fraction(2))
    assert found.load_from is None and found.model.pretrained is None
    assert found.custom_imports == dict(imports=['mmprune_gates', 'mine'], allow_failed_imports=False)
    assert (found.model.type, found.model.architecture, found.model.widths) == (
        *('mmprune_gates.SlimModel', 'EncoderDecoder', 0.5),
    )


def test_a_seeded_config_keeps_the_rest():
    config = demo('dense_continued', NAMES[0])
    config.randomness = dict(seed=0, deterministic=True)
    found = baselines.seeded(config, 7, 'here.pth')
    assert found.randomness == dict(seed=7, deterministic=True) and found.load_from == 'here.pth'
    assert found.default_hooks.checkpoint.save_last
    assert baselines.seeded(config, 7).load_from == config.load_from


def test_configs_that_do_not_belong_together_are_refused():
    dense, gated = demo('dense', NAMES[0]), demo('gdp', NAMES[0])
    baselines.check_pair(dense, gated)
    with pytest.raises(ValueError, match=r"PRUNE_CONFIG .*model.type is 'EncoderDecoder'"):
        baselines.check_pair(dense, dense)
    with pytest.raises(ValueError, match=r"START_CONFIG .* trains a 'ImageClassifier'.*'EncoderDecoder'"):
        baselines.check_pair(demo('dense', NAMES[1]), gated)
    gated.train_cfg = dict(by_epoch=True, max_epochs=3)
    with pytest.raises(ValueError, match='START_CONFIG counts iterations, PRUNE_CONFIG epochs'):
        baselines.check_pair(dense, gated)
    with pytest.raises(ValueError, match=r'set train_cfg.max_iters or train_cfg.max_epochs'):
        baselines.run_length(Config(dict(train_cfg=None)))


# ---- the width of the shrunk model


def test_the_width_meets_the_macs_from_below(narrow):
    graph, steps = narrow
    for target in (steps[0], steps[3] + 1, steps[len(steps) // 2], graph.macs() - 1, graph.macs(), 2 * graph.macs()):
        share, macs = baselines.choose_width(graph, target)
        assert macs == graph.macs(uniform(graph, share)) == max(step for step in steps if step <= target)


def test_a_target_below_every_width_is_refused(narrow):
    graph, steps = narrow
    with pytest.raises(ValueError, match=rf'one channel per group still costs {steps[0]:,}'):
        baselines.choose_width(graph, steps[0] - 1)


@pytest.mark.slow
def test_the_shrunk_model_costs_what_was_chosen(tiny_config, tmp_path):
    config = tiny_config(tmp_path, 'demo/dense_deeplabv3plus_scenes.py')
    _, graph, shape = model_of_config(config)
    share, macs = baselines.choose_width(graph, graph.macs() // 3)
    model = baselines.shrunk_model(config.model.to_dict(), share, shape)
    _, found, _ = model_of_config(Config(dict(model=model, default_scope='mmseg')))
    assert found.macs() == macs <= graph.macs() // 3


# ---- jobs and report


@pytest.mark.parametrize(
    ('line', 'epochs', 'expected'),
    [
        ('Iter(train) [ 20/300]  lr: 1e-2  loss: 0.5000  macs_ratio: 0.2500', None, (20, 300, 'loss 0.5000, MACs 25%')),
        ('Epoch(train)   [3][10/45]  lr: 1e-2  loss: 1.2500', 4, (100, 180, 'loss 1.2500')),
    ],
)
def test_training_logs_of_both_loops_move_the_bar(line, epochs, expected):
    assert tuple(progress_of(STEP.search(line), epochs).values()) == expected


@pytest.mark.slow
def test_after_a_failure_nothing_further_begins(tmp_path):
    jobs, begun = Jobs(tmp_path, compare_baselines.TOOLS), []

    def fail(number):
        begun.append(number)
        jobs.run(f'failing_{number}', 'dataset_converters/demo_data.py')

    message = r'tools/dataset_converters/demo_data.py failed: .*arguments are required.* \(see .*failing_0.log\)'
    with pytest.raises(SystemExit, match=message):
        jobs.side_by_side([lambda number=number: fail(number) for number in range(5)], at_once=1)
    assert len(begun) <= 2  # the first, and perhaps one that had begun when it failed


def test_jobs_run_so_many_at_a_time():
    meeting, most, running, lock = threading.Barrier(2), 0, 0, threading.Lock()

    def task():
        nonlocal most, running
        with lock:
            running += 1
            most = max(most, running)
        meeting.wait(timeout=10)  # passes only where two run at a time
        with lock:
            running -= 1

    Jobs.side_by_side([task] * 6, at_once=2)
    assert most == 2


def test_the_metric_is_one_of_the_tests():
    results = {0: {'dense': {'metrics': {'accuracy/top1': 1.0, 'accuracy/top5': 2.0}}}}
    assert choose_metric(results, None) == 'accuracy/top1'
    assert choose_metric(results, 'accuracy/top5') == 'accuracy/top5'
    with pytest.raises(ValueError, match=r"no mIoU among the results of the tests; have \['accuracy/top1'"):
        choose_metric(results, 'mIoU')


# ---- the command


def compare(tiny_config, folder, **overrides):
    """(arguments, work directory) of a finished comparison."""
    paths = [str(folder / name) for name in ('start.py', 'prune.py')]
    start = tiny_config(folder, 'demo/dense_deeplabv3plus_scenes.py', iterations=4)
    start.param_scheduler[0].end = start.param_scheduler[1].begin = 2
    start.param_scheduler[1].end = 4
    start.dump(paths[0])
    prune = tiny_config(folder, iterations=12, **overrides)
    prune.custom_hooks[0].steps = 2
    prune.dump(paths[1])
    out = folder / 'out'
    arguments = [*paths, '--seeds', '3', '--jobs', '1', '--work-dir', str(out)]
    assert compare_baselines.main(arguments) == 0
    return arguments, out


@pytest.fixture(scope='module')
def compared(tiny_config, tmp_path_factory):
    """A finished comparison; not to be changed."""
    return compare(tiny_config, tmp_path_factory.mktemp('compared'))


@pytest.mark.slow
def test_a_run_with_gates_on_blocks_is_compared(tiny_config, tmp_path):
    _, out = compare(tiny_config, tmp_path, **{'model.units': 'blocks', 'custom_hooks.0.target_macs': 0.8})
    kinds = json.loads((out / 'comparison.json').read_text())['kinds']
    macs = {name: kind['macs_mean'] for name, kind in kinds.items()}
    assert macs['shrunk'] <= macs['pruned'] == macs['scratch'] < macs['dense']
    assert 'units' not in Config.fromfile(out / 'seed_3' / 'dense.py').model


@pytest.mark.slow
def test_four_models_are_compared(compared):
    _, out = compared
    found = json.loads((out / 'comparison.json').read_text())
    kinds = found['kinds']
    assert list(kinds) == ['dense', 'pruned', 'shrunk', 'scratch'] and found['metric'] == 'mIoU'
    assert all(kind['iterations'] == 16 and 0 <= kind['mean'] <= 100 for kind in kinds.values())
    macs = {name: kind['macs_mean'] for name, kind in kinds.items()}
    assert macs['shrunk'] <= macs['pruned'] == macs['scratch'] < macs['dense']
    assert macs['shrunk'] >= 0.8 * macs['pruned']
    assert kinds['pruned']['macs_share'] == pytest.approx(0.24, abs=0.02)
    for kind in kinds.values():
        assert Config.fromfile(out / kind['seeds']['3']['config']).randomness.seed == 3
    for kind in ('shrunk', 'scratch'):
        config = Config.fromfile(out / 'seed_3' / f'{kind}.py')
        assert config.train_cfg.max_iters == 16 and config.param_scheduler[1].end == 16 and config.load_from is None
    assert Path(Config.fromfile(out / 'seed_3' / 'dense.py').load_from) == out / 'seed_3' / 'start' / 'iter_4.pth'
    assert (out / 'comparison.md').read_text() == markdown(found)
    with Image.open(out / 'comparison.png') as picture:
        assert min(picture.size) > 500


@pytest.mark.slow
def test_a_second_call_runs_nothing_again(compared, monkeypatch):
    arguments, out = compared

    started = []

    def refuse(command, *_, **__):
        started.append(command)
        raise ValueError('a process was started')

    monkeypatch.setattr(subprocess, 'Popen', refuse)
    (out / 'comparison.json').unlink()
    assert compare_baselines.main(arguments) == 0
    assert (out / 'comparison.json').is_file() and not started
    assert compare_baselines.main([*arguments[:3], '4', *arguments[4:]]) == 1 and started


@pytest.mark.slow
def test_other_options_do_not_mix_with_finished_runs(compared, capsys):
    arguments, _ = compared
    assert compare_baselines.main([*arguments, '--cfg-options', 'train_dataloader.batch_size=1']) == 1
    assert 'choose another --work-dir' in capsys.readouterr().err


def test_bad_arguments_of_the_hook_end_before_anything_runs(tiny_config, tmp_path, capsys):
    paths = [str(tmp_path / name) for name in ('start.py', 'prune.py')]
    tiny_config(tmp_path, 'demo/dense_deeplabv3plus_scenes.py').dump(paths[0])
    prune = tiny_config(tmp_path)
    prune.custom_hooks[0].target_macs = 24
    prune.dump(paths[1])
    assert compare_baselines.main([*paths, '--work-dir', str(tmp_path / 'out')]) == 1
    assert 'target_macs' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
