"""Runs whose channels leave the model: logs, checkpoints, resume, averaged weights, the product at the end."""

import json
import re
from pathlib import Path

import pytest
import torch
from helpers import assert_same, relative_error, repeatable, slow_but
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS, OPTIMIZERS
from mmengine.runner import Runner
from tiny_run import load_tool

from mmprune_gates.engine import pruning_hook
from mmprune_gates.engine.checkpoint import STATE
from mmprune_gates.engine.export import export_slim
from mmprune_gates.engine.forwards import inference_forward
from mmprune_gates.gates import gates_of

train_tool, test_tool = load_tool('train'), load_tool('test')
GDP, GBN = 'demo/gdp_deeplabv3plus_scenes.py', 'demo/gbn_deeplabv3plus_scenes.py'
SHORT = {
    GDP: dict(steps=2, target_macs=0.4, begin=0.05, end=0.3, settle=0.4),
    GBN: dict(tick=2, tock=2, ticks=2, fraction=0.3, target_macs=0.4, by_epoch=False, subset=1.0),
}
ITERATIONS = 20
BOTH = pytest.mark.parametrize('method', [GDP, GBN], ids=['gdp', 'gbn'])
EITHER = pytest.mark.parametrize('method', slow_but((GDP,), (GDP, GBN)), ids=['gdp', 'gbn'])


@HOOKS.register_module()
class Losses(Hook):
    """Keeps the losses of a run."""

    seen: dict[str, list] = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """The loss of this iteration."""
        self.seen.setdefault(runner.work_dir, []).append(float(outputs['loss']))


@pytest.fixture
def run(tiny_config, tmp_path):
    """A function: config of a tiny run of one of the methods."""

    def make(method, folder, **hook):
        config = tiny_config(tmp_path / folder, method, ITERATIONS)
        config.randomness = dict(seed=0)
        config.default_hooks.checkpoint.update(interval=2, save_optimizer=True)
        config.train_dataloader.update(num_workers=0, persistent_workers=False)
        repeatable(config)
        own = {**config.custom_hooks[0], **SHORT[method]}
        del own['shrink']  # the default
        config.custom_hooks = [{**own, **hook}, dict(type='mmengine.Losses')]
        config.custom_hooks.append(dict(type='mmprune_gates.GateRecordHook', interval=5))
        return config

    return make


def train(config, **options):
    """A finished run; ``options`` are those of ``Module.to``."""
    path = Path(config.work_dir) / 'config.py'
    path.parent.mkdir(parents=True, exist_ok=True)
    config.dump(path)
    runner = Runner.from_cfg(Config.fromfile(path))
    runner.model.to(**options)
    runner.train()
    return runner


@EITHER
def test_a_run_that_shrinks_learns_what_one_that_does_not_learns(run, method, tmp_path):
    whole, narrow = train(run(method, 'whole', shrink=False)), train(run(method, 'narrow', export=True))
    losses = [Losses.seen[runner.work_dir] for runner in (whole, narrow)]
    assert len(losses[0]) == ITERATIONS
    apart = [abs(a - b) / abs(a) for a, b in zip(*losses, strict=True)]
    assert max(apart[:-5]) < 1e-4 and max(apart) < 1e-2  # in single precision rounding grows from step to step
    a, b = (gates_of(runner.model) for runner in (whole, narrow))
    assert len(b.shrunk) == 1 and b.graph.macs() < 0.4 * a.graph.macs()
    assert b.kept_of_whole(b.kept()) == a.kept()
    histories = [(tmp_path / folder / 'gates.jsonl').read_text().splitlines() for folder in ('whole', 'narrow')]
    for one, other in zip(*(map(json.loads, lines) for lines in histories), strict=True):
        assert one['closed'] == other['closed'] and one['open'] == other['open']
    log = next((tmp_path / 'narrow').rglob('*.log')).read_text()
    assert 'closed channels have left the model' in log and 'GMACs' in log
    report = json.loads((tmp_path / 'narrow' / 'slim' / 'slim.json').read_text())
    expected = export_slim(
        Config.fromfile(tmp_path / 'whole' / 'config.py'), tmp_path / 'whole' / 'iter_20.pth', tmp_path / 'slim'
    )
    assert report['warnings'] == [] and report['parity_error'] < 1e-6
    for key in ('macs', 'params', 'channels', 'groups', 'frozen'):
        assert report[key] == expected[key]
    texts = [(folder / 'slim' / 'slim.py').read_text() for folder in (tmp_path / 'narrow', tmp_path)]
    models = [Config.fromfile(folder / 'slim' / 'slim.py').model for folder in (tmp_path / 'narrow', tmp_path)]
    assert models[0] == models[1] and all('widths' in text for text in texts)


def is_channels_last(tensor):
    """Whether a tensor of four dimensions is laid out so; told by its strides, which 1 x 1 weights leave open."""
    return tensor.is_contiguous(memory_format=torch.channels_last)


def outputs_of_convolutions(model, inputs):
    """What a model computes, and what each of its convolutions did on the way."""
    found = []
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    handles = [module.register_forward_hook(lambda *call: found.append(call[-1])) for module in convolutions]
    with torch.no_grad():
        output = inference_forward(model.eval(), inputs)
    for handle in handles:
        handle.remove()
    assert len(found) >= len(convolutions) - 2  # the auxiliary head has two, which do not infer
    return output, found


@EITHER
@pytest.mark.parametrize('shrink', slow_but((True,), (False, True)), ids=['whole', 'shrinks'])
def test_a_run_in_channels_last_stays_so_and_slims_exactly(run, method, shrink, tmp_path):
    runner = train(run(method, 'run', shrink=shrink, export=True), memory_format=torch.channels_last)
    assert len(gates_of(runner.model).shrunk) == shrink
    states = [list(state.values()) for state in runner.optim_wrapper.optimizer.state.values()]
    tensors = [*runner.model.parameters(), *(value for state in states for value in state)]
    images = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor) and tensor.dim() == 4]
    assert len(images) > 60 and all(map(is_channels_last, images))
    x = torch.randn(2, 3, 32, 48)
    assert all(map(is_channels_last, outputs_of_convolutions(runner.model, x)[1]))
    folder = tmp_path / 'run' / 'slim'
    report = json.loads((folder / 'slim.json').read_text())
    assert report['warnings'] == [] and report['parity_error'] < 1e-6 and report['macs']['removed'] >= 0.6
    slim = MODELS.build(Config.fromfile(folder / 'slim.py').model)
    slim.load_state_dict(torch.load(folder / 'slim.pth', weights_only=True)['state_dict'])
    expected, before = outputs_of_convolutions(slim, x)
    found, after = outputs_of_convolutions(slim.to(memory_format=torch.channels_last), x)
    assert not all(map(is_channels_last, before)) and all(map(is_channels_last, after))
    assert relative_error([found], [expected]) < 1e-5


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize('stop', [2, 14], ids=['before', 'after'])
def test_a_run_resumes_from_before_and_after_the_shrink(run, method, stop, tmp_path):
    train(run(method, 'whole', shrink=True))
    saved = torch.load(tmp_path / 'whole' / f'iter_{stop}.pth', weights_only=True)
    assert bool(saved[STATE]['shrunk']) is (stop == 14)
    again = tmp_path / 'again'
    arguments = [str(tmp_path / 'whole' / 'config.py'), '--work-dir', str(again)]
    assert train_tool.main([*arguments, '--resume', str(tmp_path / 'whole' / f'iter_{stop}.pth')]) == 0
    a, b = (torch.load(folder / 'iter_20.pth', weights_only=True) for folder in (tmp_path / 'whole', again))
    for part in ('state_dict', STATE):
        assert_same(a[part], b[part])


def test_a_run_resumes_while_its_target_falls_and_channels_have_left(run, tmp_path):
    falling = dict(shrink=0.1, end=0.7, settle=0.8, target_macs=0.3)
    train(run(GDP, 'whole', **falling))
    middle = tmp_path / 'whole' / 'iter_12.pth'
    state = torch.load(middle, weights_only=True)[STATE]
    assert state['shrunk'] and not state['settled']
    arguments = [str(tmp_path / 'whole' / 'config.py'), '--work-dir', str(tmp_path / 'again'), '--resume', str(middle)]
    assert train_tool.main(arguments) == 0
    a, b = (torch.load(tmp_path / name / 'iter_20.pth', weights_only=True) for name in ('whole', 'again'))
    for part in ('state_dict', STATE):
        assert_same(a[part], b[part])


@pytest.mark.slow
@BOTH
def test_every_tool_opens_a_checkpoint_of_a_shrunk_run_with_the_gated_config(run, method, tmp_path):
    config = run(method, 'run', shrink=True)
    train(config)
    path, checkpoint = str(tmp_path / 'run' / 'config.py'), str(tmp_path / 'run' / 'iter_20.pth')
    out = tmp_path / 'metrics.json'
    assert test_tool.main([path, checkpoint, '--work-dir', str(tmp_path / 't'), '--out-json', str(out)]) == 0
    export_slim(Config.fromfile(path), checkpoint, tmp_path / 'slim')
    slim = tmp_path / 'slim.json'
    arguments = [str(tmp_path / 'slim' / 'slim.py'), str(tmp_path / 'slim' / 'slim.pth')]
    assert test_tool.main([*arguments, '--work-dir', str(tmp_path / 't'), '--out-json', str(slim)]) == 0
    gated, product = (json.loads(file.read_text()) for file in (out, slim))
    assert gated == pytest.approx(product, rel=1e-3)
    stock = Runner.from_cfg(Config.fromfile(path))  # as a stock test.py does
    stock.load_checkpoint(checkpoint)
    fresh = run(method, 'fresh', shrink=True)
    fresh.load_from = checkpoint
    runner = Runner.from_cfg(fresh)
    runner.train()
    assert runner.iter == ITERATIONS


@EITHER
def test_averaged_weights_follow_and_slim_exactly(run, method, tmp_path):
    config = run(method, 'run', shrink=True)
    config.custom_hooks.append(dict(type='EMAHook', momentum=0.1))
    runner = train(config)
    averaged = next(hook.ema_model.module for hook in runner.hooks if hasattr(hook, 'ema_model'))
    shapes = {name: value.shape for name, value in runner.model.state_dict().items()}
    assert {name: value.shape for name, value in averaged.state_dict().items()} == shapes
    report = export_slim(
        Config.fromfile(tmp_path / 'run' / 'config.py'), tmp_path / 'run' / 'iter_20.pth', tmp_path / 'slim'
    )
    assert report['macs']['removed'] >= 0.6 and report['parity_error'] < 1e-6


def test_a_shrunk_run_is_resumed_where_averages_come_before_the_gates(run, tmp_path):
    config = run(GDP, 'run', shrink=True)
    config.custom_hooks.insert(0, dict(type='EMAHook', momentum=0.1))
    train(config)
    again = run(GDP, 'again', shrink=True)
    again.custom_hooks.insert(0, dict(type='EMAHook', momentum=0.1))
    again.load_from, again.resume = str(tmp_path / 'run' / 'iter_20.pth'), True
    again.train_cfg.max_iters = 22
    assert train(again).iter == 22


def test_a_run_without_a_timer_shrinks(run):
    config = run(GDP, 'run', shrink=True)
    config.default_hooks = dict(timer=None)
    assert gates_of(train(config).model).shrunk


def test_channels_leave_while_the_target_falls(run, tmp_path):
    runner = train(run(GDP, 'run', shrink=0.1, end=0.7, settle=0.8, target_macs=0.3, export=True))
    gates = gates_of(runner.model)
    assert len(gates.shrunk) == 2  # in iteration 10, and when the gates have settled
    assert gates.graph.macs() <= 0.3 * gates.whole.macs()
    log = next((tmp_path / 'run').rglob('*.log')).read_text()
    assert log.count('closed channels have left the model') == 2 and 's per iteration until now' in log
    report = json.loads((tmp_path / 'run' / 'slim' / 'slim.json').read_text())
    assert report['macs']['after'] == gates.graph.macs() and report['macs']['before'] == gates.whole.macs()


def test_what_the_shrink_gains_is_logged(run, tmp_path, monkeypatch):
    monkeypatch.setattr(pruning_hook, 'TIMED', 5)
    train(run(GDP, 'run', shrink=True))
    log = next((tmp_path / 'run').rglob('*.log')).read_text()
    assert re.search(r's per iteration until now\n(.*\n)*?.* s per iteration since channels left the model', log)


@pytest.mark.parametrize('settles', slow_but((True,), (True, False)))
def test_the_best_checkpoint_is_one_whose_gates_had_settled(run, settles, tmp_path):
    if settles:
        config = run(GDP, 'run', shrink=True, export=True)
    else:
        config = run(GBN, 'run', fraction=0.001, export=True)  # the run is too short for it
    config.train_cfg.val_interval = 4
    config.default_hooks.checkpoint.update(save_best='mIoU', rule='greater')
    runner = train(config)
    best = Path(next(hook.best_ckpt_path for hook in runner.hooks if hasattr(hook, 'best_ckpt_path')))
    log = next((tmp_path / 'run').rglob('*.log')).read_text()
    assert '4 iter is saved to best_mIoU_iter_4.pth' in log
    assert torch.load(best, weights_only=True)[STATE]['settled'] is settles
    assert (tmp_path / 'run' / f'slim_{best.stem}' / 'slim.pth').is_file() is settles
    assert ('was saved before the last gates had closed' in log) is not settles


def test_a_run_whose_optimiser_cannot_follow_goes_on_whole(run, tmp_path):
    config = run(GDP, 'run')
    OPTIMIZERS.register_module(name='TorchAdafactor', module=torch.optim.Adafactor, force=True)
    config.optim_wrapper.optimizer = dict(type='TorchAdafactor', lr=1e-3)
    runner = train(config)
    assert runner.iter == ITERATIONS and not gates_of(runner.model).shrunk
    log = next((tmp_path / 'run').rglob('*.log')).read_text()
    assert log.count('closed channels stay in the model until it is slimmed: Adafactor keeps') == 1
