"""The examples of docs/extending.md, run as they stand in the page."""

import re
from pathlib import Path

import pytest
import torch
from helpers import slow_but
from mmengine.runner import Runner
from test_any_module import Net, halve  # noqa: F401  (registers an op)
from test_pruning import batch, loss_of, models, sgd

from mmprune_gates import COSTS, CRITERIA, HOOKS, MODELS, trace_channels
from mmprune_gates.channels import pointwise
from mmprune_gates.channels.labels import GATED
from mmprune_gates.channels.rules import FUNCTION, TABLE, Rule
from mmprune_gates.engine.export import export_slim

PAGE = Path(__file__).parents[1] / 'docs' / 'extending.md'
EXAMPLES = dict(re.findall(r'## (.+?)\n.*?```python\n(.*?)```', PAGE.read_text(), flags=re.S))


def run(*names):
    """What the examples define, in one file."""
    found = {}
    for name in names:
        exec(compile(EXAMPLES[name], name, 'exec'), found)
    return found


@pytest.fixture(autouse=True)
def forget():
    """Take out of the registries what an example has put in."""
    yield
    for registry, name in ((MODELS, 'SquareGate'), (CRITERIA, 'L1'), (COSTS, 'Slots'), (HOOKS, 'OneShotHook')):
        registry.module_dict.pop(name, None)
    TABLE.pop('my_library.halve', None)
    TABLE.pop('my_library.divided', None)


def test_each_is_short():
    assert set(EXAMPLES) == {'An op', 'A gate', 'A criterion', 'A cost', 'A method', "A method's hook"}
    assert all(len(text.splitlines()) <= 15 for text in EXAMPLES.values())


@torch.library.custom_op('my_library::halve', mutates_args=())
def halved(x: torch.Tensor) -> torch.Tensor:
    return x / 2


halved.register_fake(torch.empty_like)


class Halving(Net):
    def between(self, x):
        return halved(x)


def test_an_op():
    assert 'no rule for this op' in trace_channels(Halving(), torch.zeros(1, 3, 8, 8)).group('b.0').frozen
    run('An op')
    assert trace_channels(Halving(), torch.zeros(1, 3, 8, 8)).group('b.0').frozen is None


@pytest.fixture
def trained(tiny_config, tmp_path):
    """A function: the pruner of a tiny run, with overrides."""

    def train(**overrides):
        config = tiny_config(tmp_path / 'run', iterations=10)
        config.custom_hooks[0].update(steps=2, target_macs=0.5)
        config.merge_from_dict(overrides)
        runner = Runner.from_cfg(config)
        runner.train()
        return next(hook.pruner for hook in runner.hooks if hasattr(hook, 'pruner'))

    return train


def test_a_gate(trained):
    run('A gate')
    pruner = trained(**{'model.gates.type': 'SquareGate'})
    assert {type(gate).__name__ for gate in pruner.gates.by_group.values()} == {'SquareGate'}
    assert pruner.controller.settled and not pruner.controller.kept.vector.all()


def test_a_criterion_and_a_cost(trained):
    run('A criterion'), run('A cost')
    pruner = trained(**{'custom_hooks.0.criterion': dict(type='L1'), 'custom_hooks.0.cost': dict(type='Slots')})
    controller = pruner.controller
    assert type(controller.criterion).__name__ == 'L1' and type(controller.candidates.cost).__name__ == 'Slots'
    assert 0.45 < controller.candidates.share(controller.kept) <= 0.5


@pytest.mark.parametrize('criterion', slow_but(('Magnitude',), ('Magnitude', 'NormScale', 'Random')))
def test_built_in_criteria_and_costs_by_config(trained, criterion):
    pruner = trained(
        **{'custom_hooks.0.criterion': dict(type=criterion), 'custom_hooks.0.cost': dict(type='Parameters')}
    )
    assert type(pruner.controller.criterion).__name__ == criterion
    assert 0.4 < pruner.controller.candidates.share(pruner.controller.kept) <= 0.5


def test_a_method():
    method = run('A method')['OneShot']
    model = models()['dict outputs']
    optimizer = sgd(model)
    pruner = method(model, torch.zeros(1, 3, 32, 32), optimizer)
    for step in range(4):
        loss_of(model.train(), *batch(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    report = pruner.finish()
    assert report['parity_error'] < 1e-12 and report['macs']['after'] <= 0.5 * report['macs']['before']


def test_a_method_by_config(tiny_config, tmp_path):
    run('A method', "A method's hook")
    config = tiny_config(tmp_path / 'run', iterations=4, **{'default_hooks.checkpoint.interval': 2})
    config.custom_hooks = [dict(type='mmprune_gates.OneShotHook', target=0.4)]
    Runner.from_cfg(config).train()
    config.resume, config.train_cfg.max_iters = True, 6
    Runner.from_cfg(config).train()
    report = export_slim(config, tmp_path / 'run' / 'iter_6.pth', tmp_path / 'slim')
    assert report['macs']['after'] <= 0.4 * report['macs']['before'] and report['warnings'] == []


@torch.library.custom_op('my_library::divided', mutates_args=())
def divided(x: torch.Tensor, by: int) -> torch.Tensor:
    return x / by


divided.register_fake(lambda x, by: torch.empty_like(x))


class ByWidth(Net):
    def between(self, x):
        return divided(x, x.shape[1])


def test_an_op_that_was_added_may_not_compute_with_a_width_either():
    TABLE['my_library.divided'] = Rule(pointwise.passing(GATED), FUNCTION)
    graph = trace_channels(ByWidth(), torch.zeros(1, 3, 8, 8))
    assert 'computes with its number of channels' in graph.group('b.0').frozen
