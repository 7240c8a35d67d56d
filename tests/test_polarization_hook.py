"""The hook decides when: phases, its own optimiser group, logging, resume."""

import json
from pathlib import Path

import pytest
import torch
from helpers import repeatable, slow_but, train
from mmengine.runner import Runner

from mmprune_gates.gates import gates_of


def scalars(folder):
    """What the training iterations of a run have logged, in order."""
    lines = next(folder.glob('*/vis_data/scalars.json')).read_text().splitlines()
    return [line for line in map(json.loads, lines) if 'loss' in line]


def hook_options(config, **options):
    config.custom_hooks[0].update(options)
    return config


@pytest.mark.parametrize('update', ['waterline', 'gradient'])
def test_ends_with_gates_exactly_open_or_closed_and_the_target_met(tiny_config, tmp_path, update):
    options = {'steps': 2} if update == 'waterline' else {}
    runner = train(hook_options(tiny_config(tmp_path, iterations=10), update=update, target_macs=0.4, **options))
    gates = gates_of(runner.model)
    values = torch.cat(list(gates.values().values()))
    assert set(values.unique().tolist()) == {0.0, 1.0}
    ratio = gates.graph.macs(gates.kept()) / gates.graph.macs()
    assert 0.38 <= ratio <= 0.4


@pytest.mark.parametrize('update', ['waterline', 'gradient'])
def test_gates_are_in_no_optimiser(tiny_config, tmp_path, update):
    runner = train(hook_options(tiny_config(tmp_path, iterations=4), update=update))
    gates = {id(parameter) for parameter in gates_of(runner.model).parameters()}
    for group in runner.optim_wrapper.optimizer.param_groups:
        assert not any(id(parameter) in gates for parameter in group['params'])
        assert group['lr'] < group['initial_lr']  # the schedule moves the weights' rate


def test_scalars_are_logged_like_any_other(tiny_config, tmp_path):
    train(hook_options(tiny_config(tmp_path, iterations=6), steps=2))
    lines = scalars(tmp_path)
    assert all({'macs_ratio', 'gates_closed', 'gate_eps'} <= line.keys() for line in lines)
    ratios = [line['macs_ratio'] for line in lines]
    assert ratios == sorted(ratios, reverse=True) and ratios[-1] <= 0.24 < ratios[0]
    assert lines[-1]['gate_eps'] == pytest.approx(1e-4)


@pytest.mark.parametrize('update', slow_but(('waterline',), ('waterline', 'gradient')))
@pytest.mark.parametrize('stop', slow_but((9,), (3, 9)))  # while the target falls, and after the gates have settled
def test_a_resumed_run_equals_an_uninterrupted_one(tiny_config, tmp_path, update, stop):
    def config(folder, **more):
        made = tiny_config(tmp_path / folder, iterations=12, **{'default_hooks.checkpoint.interval': 3, **more})
        made.default_hooks.checkpoint.save_optimizer = True
        repeatable(made)
        options = {'steps': 2} if update == 'waterline' else {}
        return hook_options(made, update=update, target_macs=0.4, **options)

    whole = train(config('whole'))
    first = config('halves')
    first.custom_hooks.append(dict(type='mmengine.EarlyEnd', at=stop, priority='LOWEST'))
    train(first)
    # An InfiniteSampler starts again on resume; the data of the second half must be that of the whole run.
    second = config('halves', resume=True)
    resumed = Runner.from_cfg(second)
    resumed.train()
    assert resumed.iter == whole.iter == 12
    a, b = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a), [key for key in a if not torch.equal(a[key], b[key])][:5]


def test_loading_weights_of_a_gated_run_starts_its_schedule_anew(gated_run, tiny_config, tmp_path):
    config = tiny_config(tmp_path, iterations=4, load_from=str(gated_run[1]))
    runner = Runner.from_cfg(hook_options(config, begin=0.9, end=0.95, settle=1.0))
    runner.train()
    assert runner.iter == 4
    hook = next(hook for hook in runner.hooks if type(hook).__name__ == 'PolarizationHook')
    assert hook.pruner.controller.settled
    lines = scalars(tmp_path)
    assert [line['step'] for line in lines] == [1, 2, 3, 4]
    assert lines[0]['gate_eps'] > lines[-1]['gate_eps']  # not settled from the start


def test_history_has_one_line_per_interval_and_the_last(tiny_config, tmp_path):
    config = tiny_config(tmp_path, iterations=7)
    config.custom_hooks[1].interval = 3
    runner = train(hook_options(config, steps=2))
    lines = [json.loads(line) for line in (Path(tmp_path) / 'gates.jsonl').read_text().splitlines()]
    assert [line['iter'] for line in lines] == [3, 6, 7]
    gates = gates_of(runner.model)
    total = sum(group.size for group in gates.graph.free)
    assert all(line['closed'] + sum(line['histogram']) == total for line in lines)
    assert lines[-1]['open'] == {name: int(mask.sum()) for name, mask in gates.kept().items()}
