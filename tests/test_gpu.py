"""What only a GPU can show: ``make test-gpu``. ``make test`` leaves these out."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import latency_table
import pytest
import slim
import torch
from helpers import (
    assert_same,
    environment_with,
    example,
    random_kept,
    randomize_,
    removal_errors,
    repeatable,
    train,
)
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from tiny_run import DECORATOR, ROOT, draw_images, write_config
from toy_nets import Concat, Residual

from mmprune_gates import masked_copy, trace_channels
from mmprune_gates.engine.builders import trace
from mmprune_gates.engine.export import export_slim
from mmprune_gates.engine.forwards import inference_forward
from mmprune_gates.engine.model_config import stock_model
from mmprune_gates.gates import PolarizationGate, attach_gates, gates_of
from mmprune_gates.pruning.divergence import Diverged

pytestmark = pytest.mark.gpu
GDP, GBN = 'demo/gdp_deeplabv3plus_scenes.py', 'demo/gbn_deeplabv3plus_scenes.py'
METHODS = {
    'gdp': (GDP, dict(steps=2, target_macs=0.4)),
    'gdp-gradient': (GDP, dict(update='gradient', target_macs=0.4)),
    'gbn': (GBN, dict(tick=2, tock=2, ticks=2, fraction=0.3, target_macs=0.4, by_epoch=False, subset=1.0)),
}
FP16 = dict(type='AmpOptimWrapper', loss_scale=dict(init_scale=2.0**8))  # low, so that few of the few steps overflow
OPTIM = {
    'fp32': dict(type='OptimWrapper'),
    'fp16': FP16,
    'bf16': dict(type='AmpOptimWrapper', dtype='bfloat16'),
    'fp16-accumulated-clipped': dict(**FP16, accumulative_counts=2, clip_grad=dict(max_norm=1.0)),
}


@pytest.fixture
def short(tiny_config, tmp_path):
    """A function: tiny config of a run on the GPU, where every run is alike."""

    def make(method, optim='fp32', iterations=20, **hook):
        name, own = METHODS[method]
        config = repeatable(tiny_config(tmp_path / 'run', name, iterations))
        config.optim_wrapper.update(OPTIM[optim])
        config.custom_hooks = [{**config.custom_hooks[0], **own, **hook}]
        return config

    return make


def slims(runner, target=0.4):
    """Whether the last checkpoint slims exactly, on the CPU, to the target and without a warning."""
    assert all(parameter.is_cuda for parameter in runner.model.parameters())
    last = Path(runner.work_dir, 'last_checkpoint').read_text()
    report = export_slim(runner.cfg, last, Path(runner.work_dir, 'slim'))
    share = report['macs']['after'] / report['macs']['before']
    return report['parity_error'] < 1e-5 and share <= target and not report['warnings']


@pytest.mark.parametrize('optim', OPTIM)
@pytest.mark.parametrize('method', METHODS)
def test_runs_reach_their_target_and_slim_exactly_in_any_precision(short, method, optim):
    runner = train(short(method, optim, shrink=False))
    scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
    assert scaler is None or scaler.get_scale() >= 1
    assert slims(runner)


@pytest.mark.parametrize('optim', ['fp32', 'fp16', 'bf16'])
@pytest.mark.parametrize('method', METHODS)
def test_channels_leave_the_gpu(short, method, optim):
    early = {} if method == 'gbn' else dict(begin=0.05, end=0.3, settle=0.4)
    config = short(method, optim, shrink=True, **early)
    config.custom_hooks.append(dict(type='EMAHook'))
    runner = train(config)
    assert len(gates_of(runner.model).shrunk) == 1 and slims(runner)


@pytest.mark.parametrize('method', METHODS)
def test_channels_last_on_the_gpu(short, method):
    runner = Runner.from_cfg(short(method, 'fp16', shrink=True))
    runner.model.to(memory_format=torch.channels_last)
    runner.train()
    assert slims(runner)


@pytest.mark.parametrize('method', METHODS)
def test_activation_checkpointing_on_the_gpu(short, method):
    config = short(method, 'fp16')
    config.model.backbone.with_cp = True
    assert slims(train(config))


@pytest.mark.parametrize('method', ['gdp', 'gbn'])
def test_divergence_on_the_gpu_stops_the_run(short, method):
    config = short(method)
    config.optim_wrapper.optimizer = dict(type='SGD', lr=1e20)
    if method == 'gbn':
        config.custom_hooks[0].tock_lr = (1e20, 1e20)
    with pytest.raises(Diverged, match='diverged'):
        train(config)


def test_a_stock_segmentor_slims_exactly_on_the_gpu(tiny_config, tmp_path):
    config = tiny_config(tmp_path)
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = randomize_(MODELS.build(stock_model(config.model.to_dict()))).cuda().eval()
    shape = (3, 32, 48)
    graph = trace(model, shape)
    kept = random_kept(graph, 0)
    error, distance, slim_one, _ = removal_errors(model.double(), graph, example(shape).cuda(), kept, inference_forward)
    assert error < 1e-9 < distance and all(parameter.is_cuda for parameter in slim_one.parameters())


@pytest.mark.parametrize('net', [Residual, Concat])
def test_gates_change_nothing_and_close_exactly_on_the_gpu(net):
    torch.manual_seed(0)
    model = randomize_(net().double()).cuda().eval()
    inputs = example(net.shape).cuda()
    graph = trace_channels(model, (inputs,))
    gated = copy.deepcopy(model)
    gates = attach_gates(gated, graph, PolarizationGate)
    with torch.no_grad():
        assert torch.equal(gated(inputs), model(inputs))
        kept = graph.kept(random_kept(graph, 1))
        gates.close(kept)
        expected = masked_copy(model, graph, kept)(inputs)
        assert torch.allclose(gated(inputs), expected, atol=1e-12)
    assert gates.kept() == kept


RUN = """
train_cfg['max_iters'] = 12
optim_wrapper.update(type='AmpOptimWrapper', loss_scale=dict(init_scale=2.0**8))
default_hooks['checkpoint'].update(interval=5, save_last=True)
randomness = dict(seed=0, deterministic=True)
"""


def trained_alone(config, *arguments):
    """A run of tools/train.py as a process of its own: cuBLAS reads its setting when it starts."""
    environment = environment_with(ROOT / 'tests', CUBLAS_WORKSPACE_CONFIG=':4096:8')
    command = [sys.executable, '-W', 'ignore', ROOT / 'tools' / 'train.py', config, *arguments]
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize('changes', ['', DECORATOR + "custom_hooks[0].update(tick=2, tock=2, ticks=2, subset=1.0)\n"],
                         ids=['gdp', 'gbn'])  # fmt: skip
def test_a_resumed_run_equals_an_uninterrupted_one_with_a_loss_scale(tmp_path, changes):
    images = draw_images(tmp_path / 'images')
    whole, again = (tmp_path / name for name in ('whole', 'again'))
    config = write_config(tmp_path / 'run.py', images, changes, RUN)
    trained_alone(config, '--work-dir', whole)
    trained_alone(config, '--work-dir', again, '--resume', whole / 'iter_5.pth')
    one, other = (torch.load(folder / 'iter_12.pth', weights_only=True) for folder in (whole, again))
    for key in ('state_dict', 'optimizer', 'mmprune_gates'):
        assert_same(one[key], other[key], key)


def test_memory_of_a_step_falls_when_channels_leave(short):
    def peak(shrink):
        torch.cuda.empty_cache()
        config = short('gdp', iterations=20, shrink=shrink, begin=0.05, end=0.3, settle=0.4)
        config.model.backbone.update(base_channels=64, stem_channels=64)
        config.model.decode_head.update(in_channels=512, c1_in_channels=64)
        config.model.auxiliary_head.update(in_channels=256)
        runner = Runner.from_cfg(config)
        runner.train()
        batch = next(iter(runner.train_dataloader))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        runner.model.train_step(batch, runner.optim_wrapper)
        return torch.cuda.max_memory_allocated() - before, before

    (whole, held), (narrow, held_later) = peak(False), peak(True)
    assert narrow < whole and held_later < held


def test_a_run_prunes_for_the_latency_of_the_gpu(short, tmp_path):
    config = short('gdp', shrink=False)
    table = str(tmp_path / 'table.json')
    config.custom_hooks[0].cost = dict(type='Latency', backend='torch', device='cuda', table=table)
    config.custom_hooks[0].target_macs = 0.99
    path = tmp_path / 'config.py'
    config.dump(path)
    assert latency_table.main([str(path), '--backend', 'torch', '--device', 'cuda', '--table', table]) == 0
    runner = train(Config.fromfile(path))
    assert slim.main([str(path), f'{runner.work_dir}/iter_20.pth', str(tmp_path / 'slim')]) == 0
    latency = json.loads((tmp_path / 'slim' / 'slim.json').read_text())['latency']
    assert latency['predicted_ms']['kept'] <= 0.99 and latency['measured_ms']['after'] > 0
