"""No run is silently wrong: what replaces, hides or bypasses gates is cured, or stops the run with its cause."""

import copy
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch
from helpers import repeatable, slow_but, train
from mmengine.hooks import Hook
from mmengine.model import convert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from mmseg.models import EncoderDecoder
from torch import nn

from mmprune_gates.engine.export import export_slim
from mmprune_gates.gates import GatesDoNotAct, gates_of
from mmprune_gates.pruning.divergence import Diverged

GDP, GBN = 'demo/gdp_deeplabv3plus_scenes.py', 'demo/gbn_deeplabv3plus_scenes.py'
SHORT = {
    GDP: dict(steps=2, target_macs=0.4),
    GBN: dict(tick=2, tock=2, ticks=2, fraction=0.1, target_macs=0.4, by_epoch=False, subset=1.0),
}
BOTH = pytest.mark.parametrize('method', [GDP, GBN], ids=['gdp', 'gbn'])
EITHER = pytest.mark.parametrize('method', slow_but((GDP,), (GDP, GBN)), ids=['gdp', 'gbn'])


@pytest.fixture
def short(tiny_config, tmp_path):
    """A function: tiny config of one of the methods, every run alike."""

    def make(method, folder='run', iterations=14, hook=None, **overrides):
        config = tiny_config(tmp_path / folder, method, iterations, **overrides)
        repeatable(config)
        config.custom_hooks = [config.custom_hooks[0]]
        config.custom_hooks[0].update({**SHORT[method], **(hook or {})})
        return config

    return make


def built(config):
    torch.manual_seed(0)
    return Runner.from_cfg(config)


def slims(runner):
    """Whether the run's last checkpoint slims exactly; an export checks that, and raises if not."""
    last = Path(runner.work_dir, 'last_checkpoint').read_text()
    report = export_slim(runner.cfg, last, Path(runner.work_dir, 'slim'))
    return (
        report['macs']['after'] < report['macs']['before'] and report['parity_error'] < 1e-6
    )  # phi is folded in float32


def pruner_of(runner):
    return next(hook.pruner.controller for hook in runner.hooks if hasattr(hook, 'pruner'))


KEPT = {}
IS_FORK = not any(d.name == 'mmengine' for d in distributions())  # onedl-mmengine: compiled steps differ by rounding


@pytest.fixture
def usual(short):
    """A function: which channels a run of the method keeps when nothing is unusual; run once."""

    def kept(method):
        if method not in KEPT:
            KEPT[method] = pruner_of(train(short(method, 'usual'))).kept
        return KEPT[method]

    return kept


@EITHER
def test_norms_converted_after_the_model_was_built(short, usual, method):
    expected = usual(method)
    runner = built(short(method))
    runner.model = convert_sync_batchnorm(runner.model)  # as the runner does for sync_bn='torch' on several ranks
    assert any(isinstance(module, nn.SyncBatchNorm) for module in runner.model.modules())
    runner.train()
    assert pruner_of(runner).kept == expected and not expected.vector.all() and slims(runner)


def test_gates_follow_mmcvs_norms_as_well(short, one_rank):
    runner = built(short(GDP))
    runner.model = convert_sync_batchnorm(runner.model, 'mmcv')  # its compiled operator cannot run here
    gates = gates_of(runner.model)
    gates.follow(runner.model)
    assert {type(scale.module).__module__ for scale in gates.scales} >= {'mmcv.ops.sync_bn'}
    assert all(runner.model.get_submodule(scale.placement.module) is scale.module for scale in gates.scales)


@HOOKS.register_module()
class ConvertLate(Hook):
    """Converts norms when a run has begun."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        """Before the second iteration."""
        if runner.iter == 1:
            convert_sync_batchnorm(runner.model)


@BOTH
def test_norms_converted_during_a_run_stop_it(short, method):
    config = short(method, hook=None)
    config.custom_hooks.append(dict(type='mmengine.ConvertLate'))
    config.sync_bn = 'torch'
    with pytest.raises(GatesDoNotAct, match=r"Hook: .* is a SyncBatchNorm that no gate acts on.*sync_bn='torch' conv"):
        train(config)


@BOTH
def test_fused_norms_are_refused_by_name(short, method):
    config = short(method)
    config.efficient_conv_bn_eval = ['backbone']
    with pytest.raises(
        ValueError, match=r"Hook: efficient_conv_bn_eval=\['backbone'\] computes conv.*take the key out"
    ):
        train(config)


@EITHER
@pytest.mark.parametrize(
    'key', slow_but(('activation_checkpointing',), ('model.backbone.with_cp', 'activation_checkpointing'))
)
def test_checkpointing_changes_nothing(short, usual, method, key):
    expected = usual(method)
    config = short(method)
    config.merge_from_dict({key: True if key.startswith('model') else ['backbone.layer1', 'backbone.layer2']})
    runner = train(config)
    assert pruner_of(runner).kept == expected and not expected.vector.all() and slims(runner)


@pytest.mark.slow
@BOTH
def test_compiled_runs_close_the_same_gates_but_for_rounding(short, method):
    torch._dynamo.reset()  # noqa: SLF001
    kept = []
    for folder in ('eager', 'compiled'):
        config = short(method, folder, iterations=12)
        config.optim_wrapper.optimizer = dict(type='AdamW', lr=0.002)
        config.param_scheduler = None  # each new rate would be compiled anew
        if method == GBN:
            config.custom_hooks[0].update(tick_lr=0.002, tock_lr=(0.002, 0.002))
        if folder == 'compiled':
            config.compile = dict(backend='eager')  # the same kernels; on the onedl packages not all the same bits
        runner = train(config)
        kept.append(pruner_of(runner).kept)
        assert all(value.isfinite().all() for value in runner.model.state_dict().values()) and slims(runner)
    equal = float((kept[0].vector == kept[1].vector).float().mean())
    assert equal >= (0.95 if IS_FORK else 1) and not kept[0].vector.all()


@pytest.mark.slow
@pytest.mark.parametrize(('method', 'backend'), [(GDP, 'inductor'), (GBN, 'eager')], ids=['gdp', 'gbn'])
def test_channels_leave_a_compiled_run(short, method, backend):
    torch._dynamo.reset()  # noqa: SLF001
    config = short(method, iterations=16, hook=dict(shrink=True))
    config.compile = dict(backend=backend)
    runner = train(config)
    assert gates_of(runner.model).shrunk and slims(runner)


def test_gates_that_a_controller_moves_are_not_in_the_optimiser(short):
    runner = train(short(GDP))
    gates = {id(parameter) for parameter in gates_of(runner.model).parameters()}
    groups = runner.optim_wrapper.optimizer.param_groups
    assert not any(id(parameter) in gates for group in groups for parameter in group['params'])
    assert all(parameter.grad is None for parameter in gates_of(runner.model).parameters())


def test_settled_gates_that_something_else_moves_are_found(short):
    config = short(GDP, hook=dict(update='gradient'))
    del config.custom_hooks[0].steps
    pruner = pruner_of(train(config))
    with torch.no_grad():
        for gate in pruner.gates.by_group.values():
            gate.theta.fill_(torch.nan)
    with pytest.raises(RuntimeError, match='are not those that were chosen: something else moves them'):
        pruner.check()


@OPTIM_WRAPPERS.register_module()
class ScaledOptimWrapper(OptimWrapper):
    """mmengine's AmpOptimWrapper without its autocast, which needs a GPU: the scaler is the real one."""

    def __init__(self, init_scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=init_scale, growth_interval=10**6)

    def backward(self, loss, **kwargs):
        """Of the scaled loss."""
        self.loss_scaler.scale(loss).backward(**kwargs)

    def step(self, **kwargs):
        """Skipped by the scaler if a gradient is not finite."""
        self.loss_scaler.step(self.optimizer)
        self.loss_scaler.update()


@HOOKS.register_module()
class Overflow(Hook):
    """Lets the loss scale overflow in one iteration."""

    priority = 'HIGHEST'

    def __init__(self, at, until=None):
        self.at, self.until = at, until or at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        """A scale that no gradient survives; the scaler halves it, so it is set back afterwards."""
        if runner.iter in range(self.at, self.until + 2):
            overflow = runner.iter <= self.until
            runner.optim_wrapper.loss_scaler.update(torch.tensor(torch.inf if overflow else 2.0**10))


class Scores(Hook):
    """Keeps the scores before a Tick closes."""

    priority = 'HIGH'

    def __init__(self, kept):
        self.kept = kept

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Before the pruning hook."""
        self.kept.append(pruner_of(runner).criterion.sum.clone())


def scaled(config, at, until=None):
    config.optim_wrapper.update(type='ScaledOptimWrapper', init_scale=2.0**10)
    if at is not None:
        config.custom_hooks.append(dict(type='mmengine.Overflow', at=at, until=until))
    return config


@BOTH
def test_a_loss_scale_changes_no_choice(short, usual, method):
    runner = train(scaled(short(method), None))
    assert pruner_of(runner).kept == usual(method) and slims(runner)


def test_a_mini_batch_that_overflows_does_not_count_in_a_tick(short):
    scores = []
    runner = built(scaled(short(GBN), at=2))  # the first of the first Tick's two
    runner.register_hook(Scores(scores))
    runner.train()
    pruner = pruner_of(runner)
    assert all(score.isfinite().all() for score in scores)
    assert scores[3].sum() == 0  # after one of them
    assert pruner.wasted == 0 and not pruner.kept.vector.all()


def test_a_tick_of_nothing_but_overflows_closes_nothing_and_says_so(short):
    runner = train(scaled(short(GBN, iterations=6), at=2, until=3))
    assert pruner_of(runner).wasted == 1
    assert 'no mini-batch of this Tick had finite gradients; nothing closed' in log_of(runner)


@BOTH
def test_a_loss_that_is_never_finite_stops_the_run(short, method):
    config = short(method, **{'default_hooks.checkpoint.interval': 5})
    config.optim_wrapper.optimizer = dict(type='SGD', lr=1e20)
    if method == GBN:
        config.custom_hooks[0].tock_lr = (1e20, 1e20)
    with pytest.raises(
        Diverged, match=r'diverged: at step \d+ \d+ of \d+ parameters and buffers are not finite .* from step \d on'
    ):
        train(config)


@HOOKS.register_module()
class Spoil(Hook):
    """Puts a number that is not finite into a norm's statistics, or into a weight."""

    priority = 'VERY_HIGH'

    def __init__(self, at, name):
        self.at, self.name = at, name

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Before the pruning hook."""
        if runner.iter + 1 == self.at:
            runner.model.state_dict()[self.name].flatten()[0] = torch.inf


@pytest.mark.parametrize('name', ['backbone.stem.1.running_var', 'backbone.stem.0.weight'])
@BOTH
def test_divergence_keeps_the_checkpoint_before_it(short, method, name):
    config = short(method, **{'default_hooks.checkpoint.interval': 2, 'default_hooks.checkpoint.max_keep_ckpts': 1})
    config.custom_hooks.append(dict(type='mmengine.Spoil', at=4, name=name))
    with pytest.raises(Diverged, match=name.replace('.', r'\.')):
        train(config)
    kept = Path(config.work_dir, 'iter_2.pth')
    assert kept.is_file() and Path(config.work_dir, 'last_checkpoint').read_text() == str(kept)


@BOTH
def test_an_overflow_between_two_checkpoints_stops_nothing(short, method):
    config = scaled(short(method, **{'default_hooks.checkpoint.interval': 1}), at=1)
    train(config)
    assert Path(config.work_dir, 'iter_2.pth').is_file()


@BOTH
def test_a_preprocessor_beside_the_model_gives_the_input_size(short, method, tmp_path):
    config = short(method)
    config.model.pop('input_shape', None)
    config.data_preprocessor = config.model.pop('data_preprocessor')
    train(config)
    checkpoint = Path(config.work_dir, f'iter_{config.train_cfg.max_iters}.pth')
    macs = export_slim(config, checkpoint, tmp_path / 'slim')['macs']
    assert macs['input_shape'] == [3, *config.data_preprocessor.size]


@pytest.mark.parametrize(
    ('method', 'second', 'message'),
    [
        (GDP, 'PolarizationHook', 'PolarizationHook: GDP: the gates .* are moved by GDP already'),
        (
            GBN,
            'GateDecoratorHook',
            'GateDecoratorHook: GateDecorator: the gates .* are moved by GateDecorator already',
        ),
        (
            GDP,
            'GateDecoratorHook',
            r"Hook: GateDecorator needs model.gates=dict\(type='DecoratorGate'\).*has Polar",
        ),
        (
            GBN,
            'PolarizationHook',
            r"Hook: GDP needs model.gates=dict\(type='PolarizationGate'\).*has Decor",
        ),
    ],
)
def test_one_hook_owns_the_gates_and_they_are_of_its_kind(short, method, second, message):
    config = short(method)
    config.custom_hooks.append(dict(type=f'mmprune_gates.{second}', target_macs=0.5))
    with pytest.raises(ValueError, match=message):
        train(config)


@MODELS.register_module()
class WithSpareLayer(EncoderDecoder):
    """It holds a layer that it never uses."""

    def __init__(self, frozen=False, **config):
        super().__init__(**config)
        self.spare = nn.Conv2d(3, 4, 1).requires_grad_(not frozen)


@EITHER
def test_layers_that_the_trace_does_not_reach_stop_the_run(short, method):
    spare = {'model.architecture': 'mmengine.WithSpareLayer', 'model.frozen': False}
    with pytest.raises(ValueError, match=r"Hook: the traced passes do not reach spare, .* exclude=\['spare'\]"):
        train(short(method, **spare))
    train(short(method, 'named', hook=dict(exclude=['spare']), iterations=3, **spare))
    train(short(method, 'frozen', iterations=3, **{**spare, 'model.frozen': True}))


def log_of(runner):
    """What a run has logged."""
    return Path(runner.log_dir, f'{runner.timestamp}.log').read_text()


def test_a_gated_model_without_a_hook_is_warned_of(short):
    config = short(GDP, iterations=2)
    config.custom_hooks = []
    assert log_of(train(config)).count('trains with gates that no hook moves') == 1
    assert 'no hook moves' not in log_of(train(short(GDP, 'hooked', iterations=2)))


def test_averaged_weights_are_warned_of_at_once_and_when_they_are_slimmed(short):
    config = short(GDP)
    config.custom_hooks.append(dict(type='EMAHook'))
    assert 'averages never reach exactly 0' in log_of(train(config))
    report = export_slim(config, f'{config.work_dir}/iter_14.pth', f'{config.work_dir}/slim')
    assert any('averaged (EMAHook)' in warning for warning in report['warnings'])


@EITHER
def test_slimming_before_the_end_is_warned_of(short, method):
    config = short(method, iterations=4, hook=None if method == GBN else dict(end=0.8, settle=0.9, begin=0.5))
    config.default_hooks.checkpoint.interval = 1
    train(config)
    report = export_slim(config, f'{config.work_dir}/iter_1.pth', f'{config.work_dir}/slim')
    assert [warning.split(':')[0] for warning in report['warnings']] == [
        'no gate is closed',
        'its gates have not settled',
    ]


def test_slimming_a_settled_run_is_not_warned_of(gated_run, tmp_path):
    from mmengine.config import Config

    assert export_slim(Config.fromfile(gated_run[0]), gated_run[1], tmp_path / 'slim')['warnings'] == []


@EITHER
def test_a_target_changed_after_settling_is_warned_of(short, method):
    config = short(method, **{'default_hooks.checkpoint.interval': 12})
    if method == GBN:
        config.custom_hooks[0].update(tick=1, tock=1, fraction=0.3)
    config.custom_hooks.append(dict(type='mmengine.EarlyEnd', at=12, priority='LOWEST'))
    first = train(copy.deepcopy(config))
    assert pruner_of(first).settled
    again = short(method, resume=True, hook=dict(target_macs=0.7))
    assert 'the target is 0.7 now, but the gates have settled at 0.4' in log_of(train(again))
