"""Runs on two ranks, started as users start them: torchrun and tools/train.py."""

import copy
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import latency_table
import pytest
import rank_parts  # noqa: F401  (registers what configs name)
import torch
from helpers import WIDER, assert_same, environment_with, repeatable, slow_but
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel, MMFullyShardedDataParallel
from mmengine.runner import Runner
from torch import nn

from mmprune_gates.engine.export import export_slim
from mmprune_gates.gates import gates_of
from mmprune_gates.pruning.ranks import RanksDiffer, check_ranks, count_ranks, fingerprint

ROOT = Path(__file__).parents[1]
GDP, GBN = 'demo/gdp_deeplabv3plus_scenes.py', 'demo/gbn_deeplabv3plus_scenes.py'
SHORT = {
    GDP: dict(steps=2, target_macs=0.4),
    GBN: dict(tick=4, tock=2, ticks=2, fraction=0.1, target_macs=0.4, by_epoch=False, subset=1.0),
}
BOTH = pytest.mark.parametrize('method', [GDP, GBN], ids=['gdp', 'gbn'])
EITHER = pytest.mark.parametrize('method', slow_but((GDP,), (GDP, GBN)), ids=['gdp', 'gbn'])


@pytest.fixture
def config(tiny_config, tmp_path):
    """A function: tiny config of one of the methods for several ranks."""

    def make(method, iterations=14, **overrides):
        config = tiny_config(tmp_path, method, iterations, **overrides)
        config.custom_imports = dict(imports=['mmprune_gates', 'rank_parts'], allow_failed_imports=False)
        config.custom_hooks = [config.custom_hooks[0], dict(type='mmengine.SaveRank')]
        config.custom_hooks[0].update(SHORT[method])
        config.find_unused_parameters = method == GBN
        config.randomness = dict(seed=0)
        config.train_dataloader.batch_size = 2
        config.train_dataloader.num_workers = 0
        config.train_dataloader.persistent_workers = False
        repeatable(config)
        return config

    return make


def written(config):
    """File of a config, and the environment of ranks that train it."""
    path = Path(config.work_dir) / 'config.py'
    path.parent.mkdir(parents=True, exist_ok=True)
    config.dump(path)
    environment = environment_with(ROOT / 'tests', OMP_NUM_THREADS='1')
    environment.pop('LOCAL_RANK', None)  # a tool that a test before has called may have set it for its own process
    return path, environment


def start(config, *arguments):
    """Two ranks of tools/train.py; the finished process."""
    path, environment = written(config)
    launch = ['torch.distributed.run', '--standalone', '--nproc_per_node=2']
    command = [sys.executable, '-W', 'ignore', '-m', *launch, ROOT / 'tools/train.py', path, '--launcher', 'pytorch']
    return subprocess.run(
        [str(part) for part in (*command, *arguments)], env=environment, capture_output=True, text=True, timeout=300
    )


def trained(config, *arguments):
    """What both ranks have in the end."""
    done = start(config, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return saved(config)


def saved(config):
    """What both ranks have saved."""
    return [torch.load(f'{config.work_dir}/rank_{rank}.pth', weights_only=True) for rank in (0, 1)]


def without_statistics(state):
    """Less what each rank has of its own: statistics of norms."""
    return {name: value for name, value in state.items() if 'running_' not in name}


@EITHER
def test_two_ranks_end_with_the_same_gates_and_the_share_of_one_process(config, method):
    two = config(method)
    first, second = trained(two)
    assert_same(first['pruner'], second['pruner'])
    assert_same(without_statistics(first['model']), without_statistics(second['model']))
    report = export_slim(
        Config.fromfile(f'{two.work_dir}/config.py'), f'{two.work_dir}/iter_14.pth', f'{two.work_dir}/s'
    )
    assert report['warnings'] == [] and report['parity_error'] < 1e-6
    one = copy.deepcopy(two)
    one.work_dir, one.train_dataloader.batch_size = f'{two.work_dir}/one', 4
    one.custom_hooks.pop()
    torch.manual_seed(0)
    runner = Runner.from_cfg(one)
    runner.train()
    gates = runner.model.gates
    alone = gates.graph.macs(gates.kept()) / gates.graph.macs()
    assert 1 - report['macs']['removed'] == pytest.approx(alone, abs=0.02) and alone <= 0.4


@pytest.mark.slow
def test_two_ranks_agree_with_the_papers_update(config):
    two = config(GDP)
    two.custom_hooks[0].pop('steps')
    two.custom_hooks[0].update(update='gradient')
    first, second = trained(two)
    assert_same(first['pruner'], second['pruner'])
    assert_same(without_statistics(first['model']), without_statistics(second['model']))
    assert {'price'} <= first['pruner'].keys()


@pytest.mark.slow
def test_ranks_aim_at_what_the_main_one_has_measured(config, tmp_path):
    two, table = config(GDP, **WIDER), str(tmp_path / 'table.json')
    path, _ = written(two)
    assert latency_table.main([str(path), '--table', table]) == 0
    two.custom_hooks[0].update(end=0.5, settle=0.8, target_macs=0.9, cost=dict(type='Latency', table=table))
    two.custom_hooks.append(dict(type='mmprune_gates.MeasuredLatencyHook'))
    first, second = trained(two)
    assert_same(first['pruner'], second['pruner'])
    assert first['pruner']['settled'] and first['pruner']['correction'] != 1


def slurm(rank, folder):
    """What srun sets for a rank; ``scontrol`` there knows one host, this one."""
    program = folder / 'scontrol'
    program.write_text('#!/bin/sh\n[ "$*" = "show hostname this-host" ] && echo 127.0.0.1\n')
    program.chmod(0o755)
    return {
        'SLURM_PROCID': str(rank),
        'SLURM_LOCALID': str(rank),
        'SLURM_NTASKS': '2',
        'SLURM_NODELIST': 'this-host',
        'PATH': f'{folder}{os.pathsep}{os.environ["PATH"]}',
    }


def mpi(rank, folder):
    """What Open MPI's mpirun sets for a rank, and the user for all."""
    return {
        'OMPI_COMM_WORLD_RANK': str(rank),
        'OMPI_COMM_WORLD_LOCAL_RANK': str(rank),
        'OMPI_COMM_WORLD_SIZE': '2',
        'MASTER_ADDR': '127.0.0.1',
    }


def start_each(path, launcher, environments):
    """A process of tools/train.py in each environment, as a launcher of another kind than torchrun starts them."""
    command = [sys.executable, '-W', 'ignore', ROOT / 'tools/train.py', path, '--launcher', launcher]
    command = [str(part) for part in command]
    ranks = [subprocess.Popen(command, env=own, stderr=subprocess.PIPE, text=True) for own in environments]
    try:
        for rank in ranks:
            told = rank.communicate(timeout=200)[1]
            assert rank.returncode == 0, told[-3000:]
    finally:
        for rank in ranks:
            rank.kill()


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as place:
        place.bind(('127.0.0.1', 0))
        return str(place.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize('launcher', [slurm, mpi], ids=['slurm', 'mpi'])
def test_ranks_of_other_launchers_train_on_the_cpu(config, launcher, tmp_path):
    two = config(GDP, 6)
    path, environment = written(two)
    environment['MASTER_PORT'] = free_port()
    start_each(path, launcher.__name__, [environment | launcher(rank, tmp_path) for rank in (0, 1)])
    first, second = saved(two)
    assert (first['local_rank'], second['local_rank']) == (0, 1)
    assert_same(first['pruner'], second['pruner'])
    assert_same(without_statistics(first['model']), without_statistics(second['model']))
    assert not torch.equal(*(rank['model']['backbone.layer1.0.bn1.running_mean'] for rank in (first, second)))


@pytest.mark.gpu
@BOTH
@pytest.mark.parametrize('backend', ['gloo', 'nccl'])
def test_ranks_on_gpus_with_synchronised_norms_and_a_loss_scale(config, backend, method):
    """By gloo two ranks share the first GPU; by nccl each of at most two has its own."""
    count = 2 if backend == 'gloo' else min(2, torch.cuda.device_count())
    run = config(method)
    run.env_cfg = dict(dist_cfg=dict(backend=backend))
    run.sync_bn = 'torch'
    run.optim_wrapper.update(type='AmpOptimWrapper', loss_scale=dict(init_scale=2.0**8))
    path, environment = written(run)
    environment |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': free_port(), 'WORLD_SIZE': str(count)}
    own = [{'RANK': str(rank), 'LOCAL_RANK': str(rank if backend == 'nccl' else 0)} for rank in range(count)]
    start_each(path, 'pytorch', [environment | rank for rank in own])
    first, *others = (torch.load(f'{run.work_dir}/rank_{rank}.pth', weights_only=True) for rank in range(count))
    for other in others:
        assert_same(first['pruner'], other['pruner'])
        assert_same(first['model'], other['model'])  # statistics of norms as well: they are synchronised
    report = export_slim(Config.fromfile(path), f'{run.work_dir}/iter_14.pth', f'{run.work_dir}/s')
    assert report['warnings'] == [] and report['parity_error'] < 1e-5


ALL_AT_ONCE = {
    'optim_wrapper.type': 'mmengine.BFloat16Wrapper',
    'optim_wrapper.accumulative_counts': 2,
}


@pytest.mark.slow
@BOTH
def test_a_resumed_run_of_two_ranks_with_everything_on_equals_an_uninterrupted_one(config, method, tmp_path):
    whole = config(method, 16, **ALL_AT_ONCE)
    whole.optim_wrapper.clip_grad = dict(max_norm=1.0)
    whole.default_hooks.checkpoint.interval = 6 if method == GDP else 4  # in the middle of the ramp, and of a Tick
    whole.custom_hooks.append(dict(type='EMAHook', ema_type='ExponentialMovingAverage', begin_iter=3))
    whole.custom_hooks[0].shrink = True
    expected = trained(whole)
    again = copy.deepcopy(whole)
    again.work_dir, again.experiment_name = str(tmp_path / 'again'), 'again'
    middle = Path(whole.work_dir) / f'iter_{whole.default_hooks.checkpoint.interval}.pth'
    found = trained(again, '--resume', middle)
    for one, other in zip(expected, found, strict=True):
        assert_same(one['pruner'], other['pruner'])
        assert_same(without_statistics(one['model']), without_statistics(other['model']))
    saved_by = (torch.load(f'{run.work_dir}/iter_16.pth', weights_only=True) for run in (whole, again))
    one, other = (checkpoint['ema_state_dict'] for checkpoint in saved_by)
    assert one and one.keys() == other.keys()
    assert_same(without_statistics(one), without_statistics(other))
    report = export_slim(
        Config.fromfile(f'{again.work_dir}/config.py'), f'{again.work_dir}/iter_16.pth', tmp_path / 's'
    )
    assert report['parity_error'] < 1e-6 and report['macs']['removed'] >= 0.6


@pytest.mark.slow
@BOTH
def test_channels_leave_both_ranks_at_the_same_step(config, method):
    two = config(method, 16)
    two.custom_hooks[0].update(shrink=True, export=True)
    if method == GDP:
        two.custom_hooks[0].update(begin=0.05, end=0.3, settle=0.4)
    two.default_hooks.checkpoint.interval = 14
    first, second = trained(two)
    assert len(first['pruner']['shrunk']) == 1
    assert_same(first['pruner'], second['pruner'])
    assert_same(without_statistics(first['model']), without_statistics(second['model']))
    assert (Path(two.work_dir) / 'slim' / 'slim.json').is_file()
    after = Path(two.work_dir) / 'iter_14.pth'
    assert torch.load(after, weights_only=True)['mmprune_gates']['shrunk']
    again = copy.deepcopy(two)
    again.work_dir, again.experiment_name = f'{two.work_dir}/again', 'again'
    for one, other in zip((first, second), trained(again, '--resume', after), strict=True):
        assert_same(one['pruner'], other['pruner'])
        assert_same(without_statistics(one['model']), without_statistics(other['model']))


@pytest.mark.slow
def test_a_static_graph_changes_nothing_for_gdp(config):
    plain = config(GDP, 16)
    plain.custom_hooks[0].update(shrink=True, begin=0.05, end=0.3, settle=0.4)
    static = copy.deepcopy(plain)
    static.work_dir, static.experiment_name = f'{plain.work_dir}/static', 'static'
    static.model_wrapper_cfg = dict(type='MMDistributedDataParallel', static_graph=True, broadcast_buffers=False)
    for one, other in zip(trained(plain), trained(static), strict=True):
        assert len(one['pruner']['shrunk']) == 1
        assert_same(one['pruner'], other['pruner'])
        assert_same(one['model'], other['model'])


@pytest.mark.slow
def test_what_is_wrapped_and_compiled_stays_so_when_channels_leave(config, one_rank, monkeypatch):
    run = config(GDP, 16, compile=dict(backend='eager'))
    run.custom_hooks[0].update(shrink=True, begin=0.05, end=0.3, settle=0.4)
    monkeypatch.setenv('LOCAL_RANK', '0')
    runner = Runner.from_cfg(run)
    runner.model, runner._distributed = MMDistributedDataParallel(runner.model), True  # noqa: SLF001
    before = runner.model
    runner.train()
    assert len(gates_of(runner.model.module).shrunk) == 1 and runner.model is not before
    assert 'train_step' in vars(runner.model)


@pytest.mark.parametrize(
    ('method', 'counts', 'words'),
    [
        (GDP, 2, 'PolarizationHook: torch has no static graph .* with accumulated gradients'),
        (GBN, 1, 'GateDecoratorHook: Ticks and Tocks have different graphs: take static_graph=True out'),
        (GBN, 2, 'GateDecoratorHook: torch has no static graph'),
    ],
)
def test_static_graphs_that_cannot_be_are_refused_before_training(config, one_rank, method, counts, words):
    static = config(method)
    static.optim_wrapper.accumulative_counts = counts
    static.model_wrapper_cfg = dict(static_graph=True, find_unused_parameters=True)
    runner = Runner.from_cfg(static)
    runner.model = MMDistributedDataParallel(runner.model, **static.model_wrapper_cfg)
    with pytest.raises(ValueError, match=words):
        runner.train()


@pytest.mark.slow
@BOTH
def test_ranks_that_drift_apart_stop_the_run(config, method):
    drifting = config(method, 8)
    drifting.default_hooks.checkpoint.interval = 4
    if method == GDP:
        drifting.custom_hooks[0].update(begin=0.0, end=0.8, settle=0.9)
    drifting.custom_hooks.append(dict(type='mmengine.DriftApart'))
    done = start(drifting)
    assert done.returncode != 0
    assert 'ranks [1] differ from rank 0 in gates.by_group.' in done.stderr
    assert not list(Path(drifting.work_dir).glob('iter_*.pth'))


@pytest.mark.slow
def test_gate_decorator_names_the_line_that_is_missing_before_training(config):
    wrong = config(GBN)
    wrong.find_unused_parameters = False
    done = start(wrong)
    assert done.returncode != 0 and 'set find_unused_parameters=True in the config' in done.stderr
    assert 'Traceback' not in done.stderr.split('set find_unused')[0]


@pytest.mark.parametrize('wrap', [nn.DataParallel, partial(MMFullyShardedDataParallel, device_id='cpu')])
@BOTH
def test_other_wrappers_are_refused(config, one_rank, method, wrap):
    runner = Runner.from_cfg(config(method))
    runner.model = wrap(runner.model)
    name = type(runner.model).__name__
    with pytest.raises(ValueError, match=f'wrapped in {name}, and gates act through DistributedDataParallel only'):
        runner.train()


def test_one_process_is_one_rank_and_agrees():
    assert count_ranks() == 1
    check_ranks({'anything': torch.ones(3)})
    assert issubclass(RanksDiffer, RuntimeError)


def test_fingerprints_tell_bits_apart():
    a = {'x': torch.ones(3), 'y': [1, 2.0, None]}
    same = {'x': torch.ones(3), 'y': [1, 2.0, None]}
    assert fingerprint(a) == fingerprint(same)
    for other in ({**a, 'x': torch.ones(3).nextafter(torch.full((3,), 2.0))}, {**a, 'y': [1, 2.0, 0]}, {'x': a['x']}):
        assert fingerprint(other) != fingerprint(a)
    assert fingerprint(torch.ones(2, dtype=torch.bool)) != fingerprint(torch.zeros(2, dtype=torch.bool))
    assert fingerprint(torch.ones((), dtype=torch.bfloat16)) == fingerprint(torch.ones((), dtype=torch.bfloat16))
