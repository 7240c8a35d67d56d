"""A latency target that is corrected by measuring: both methods, resumed, and what is refused."""

from dataclasses import replace
from pathlib import Path

import latency_table
import pytest
import torch
from helpers import WIDER, repeatable, slow_but
from mmengine.config import Config
from mmengine.runner import Runner
from test_latency import saved, table_of, wide
from torch.optim import SGD

from mmprune_gates import GDP, slim_model
from mmprune_gates.budget.goal import Goal
from mmprune_gates.budget.latency import Latency
from mmprune_gates.budget.latency_table import Table, Target
from mmprune_gates.engine.checkpoint import STATE
from mmprune_gates.engine.coverage import model_of_config
from mmprune_gates.pruning.pruner import count_parameters
from mmprune_gates.timing import feedback
from mmprune_gates.timing.feedback import MOST, ROUNDS, MeasuredLatencyHook, measured

METHODS = {
    'PolarizationHook': dict(end=0.5, settle=0.8, steps=1),
    'GateDecoratorHook': dict(by_epoch=False, tick=1, tock=1, ticks=5, fraction=0.02, target=0.7),  # a step is 5 %
}
ITERATIONS = {'PolarizationHook': 20, 'GateDecoratorHook': 60}  # steps near the target may be small
EITHER = pytest.mark.parametrize('method', slow_but(('PolarizationHook',), METHODS))
SAID = 'the run aims at'


@pytest.fixture(scope='module')
def table(tmp_path_factory, tiny_config):
    """A table of the tiny model, measured here."""
    folder = tmp_path_factory.mktemp('table')
    repeatable(tiny_config(folder, **WIDER)).dump(folder / 'config.py')
    assert latency_table.main([str(folder / 'config.py'), '--table', str(folder / 'table.json')]) == 0
    return folder / 'table.json'


@pytest.fixture
def config(tmp_path, tiny_config, table):
    """A function: config of a run to a latency that is corrected by measuring."""

    def make(method='PolarizationHook', folder='run', **changes):
        found = repeatable(tiny_config(tmp_path / folder, iterations=ITERATIONS[method], **WIDER))
        if method == 'GateDecoratorHook':
            found.model.gates = dict(type='DecoratorGate')
        cost = dict(type='Latency', table=str(table))
        pruning = {'type': f'mmprune_gates.{method}', 'target': 0.8, 'cost': cost, 'shrink': False, **METHODS[method]}
        found.custom_hooks = [{**pruning, **changes}, dict(type='mmprune_gates.MeasuredLatencyHook')]
        found.default_hooks.checkpoint.interval = 10
        found.train_dataloader.num_workers = 0
        found.train_dataloader.persistent_workers = False
        found.randomness = dict(seed=0)
        return found

    return make


def trained(config, resume=''):
    """The controller of a finished run, and the log."""
    config.load_from, config.resume = resume or None, bool(resume)
    runner = Runner.from_cfg(config)
    runner.train()
    pruner = next(hook.pruner for hook in runner.hooks if hasattr(hook, 'pruner'))
    (log,) = Path(runner.log_dir).glob('*.log')
    return pruner.controller, log.read_text()


def first_corrected(work_dir):
    """The first checkpoint of a run whose target is corrected."""
    for iteration in range(1, max(ITERATIONS.values()) + 1):
        path = Path(work_dir, f'iter_{iteration}.pth')
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
        if checkpoint[STATE]['correction'] != 1:
            return str(path)
    raise AssertionError('no checkpoint has a corrected target')


@EITHER
def test_a_run_aims_at_what_was_measured_and_a_resumed_one_does_not_measure_again(config, method):
    given = config(method)
    given.default_hooks.checkpoint.interval = 1  # when it is measured depends on the table
    whole, text = trained(given)
    assert 1 <= text.count(SAID) <= ROUNDS
    assert whole.settled and whole.correction != 1 and whole.aim == pytest.approx(whole.target * whole.correction)
    assert whole.candidates.share(whole.kept) <= whole.aim
    resumed, text = trained(config(method, 'resumed'), first_corrected(given.work_dir))
    assert SAID not in text
    assert (resumed.correction, resumed.kept) == (whole.correction, whole.kept)


def test_measuring_leaves_random_numbers_and_threads_as_they_are(config):
    torch.set_num_threads(2)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    measured(config(), Target(), {})
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == 2
    torch.set_num_threads(1)


class Counting:
    """A backend in which a model takes as many milliseconds as it has parameters."""

    def __init__(self, target):
        self.seconds = 0.0

    def now(self):
        return self.seconds

    def call(self, model, images):
        def run():
            self.seconds += count_parameters(model) / 1000

        return run


def test_the_slim_model_is_what_is_measured(config, monkeypatch):
    monkeypatch.setattr(feedback, 'backend_of', Counting)
    given = config()
    model, graph, _ = model_of_config(given)
    quarter = {group.name: torch.arange(group.size) < max(1, group.size // 4) for group in graph.free_channels}
    whole = count_parameters(model)
    slim_model(model, graph, quarter)
    assert measured(given, Target(), quarter) == pytest.approx([whole, count_parameters(model)])


def test_a_block_that_has_left_is_not_measured(config, monkeypatch):
    monkeypatch.setattr(feedback, 'backend_of', Counting)
    given = config()
    model, graph, _ = model_of_config(given)
    block = next(block for block in graph.gated_blocks if block.inner)
    gone = {block.name: torch.zeros(1, dtype=torch.bool)}
    whole = count_parameters(model)
    inside = {name: torch.zeros_like(graph.kept()[name]) for name in block.inner}  # as it is after the block has left
    slim_model(model, graph, gone)
    assert measured(given, Target(), {**gone, **inside}) == pytest.approx([whole, count_parameters(model)])


@pytest.mark.slow
def test_a_run_whose_blocks_have_left_goes_on_to_be_measured(config, monkeypatch):
    seen = []

    def spy(config, target, kept):
        seen.append({name for name, mask in kept.items() if not mask.any()})
        return measured(config, target, kept)

    monkeypatch.setattr(feedback, 'measured', spy)
    given = config(shrink=0.02, end=0.7, settle=0.95)
    given.model.units = 'blocks'
    controller, text = trained(given)
    assert SAID in text and 'not measured' not in text and controller.settled
    gone = seen[0]
    assert any(not controller.gates.shrunk[0][name].any() for name in gone)  # before it was measured


def test_a_run_that_cannot_be_measured_goes_on_by_the_table(config, monkeypatch):
    def fail(*_):
        raise RuntimeError('no such op')

    monkeypatch.setattr(feedback, 'measured', fail)
    controller, text = trained(config())
    assert 'not measured, the target is by the table alone: RuntimeError: no such op' in text
    assert controller.settled and controller.correction == 1


@pytest.mark.slow
def test_a_table_that_was_measured_again_takes_the_correction_back(config, table, tmp_path):
    given = config()
    trained(given)
    again = Table.load(table)
    for digest, fit in again.fits.items():
        again.fits[digest] = replace(fit, scale=1.1 * fit.scale)
    (tmp_path / 'again.json').write_text(again.text())
    other = config(folder='other', cost=dict(type='Latency', table=str(tmp_path / 'again.json')))
    _, text = trained(other, f'{given.work_dir}/iter_10.pth')
    assert SAID in text


@pytest.mark.parametrize(
    ('goal', 'took', 'expected'),
    [
        (dict(target=0.5), (8.0, 4.8), lambda share, total: share / 0.6),
        (dict(target_ms=3.0), (8.0, 3.2), lambda share, total: share * total / 3.2),
        (dict(target=0.5), (8.0, 80.0), lambda share, total: 1 / MOST),
        (dict(target=0.5), (8.0, 0.8), lambda share, total: MOST),
    ],
)
def test_the_factor_is_what_the_table_says_over_what_was_measured(goal, took, expected, tmp_path, monkeypatch):
    model, graph = wide()
    cost = Latency(saved(tmp_path, table_of(graph)))
    pruner = GDP(model, torch.randn(2, 3, 8, 8), SGD(model.parameters(), 0.01), total_steps=9, cost=cost, **goal)
    hook = MeasuredLatencyHook()
    hook.cost, hook.goal = cost, Goal.of(goal)
    monkeypatch.setattr(feedback, 'measured', lambda *_: took)
    pruner.controller.criterion.observe({group.name: torch.rand(group.size) for group in graph.groups})
    candidates = pruner.controller.candidates
    share = candidates.share(pruner.controller.candidate())
    hook.correct_once(Config(), pruner, pruner.controller.candidate())
    assert pruner.controller.correction == pytest.approx(expected(share, candidates.total))


def test_it_is_measured_until_what_was_asked_for_is_met(tmp_path, monkeypatch):
    model, graph = wide()
    cost = Latency(saved(tmp_path, table_of(graph)))
    pruner = GDP(model, torch.randn(2, 3, 8, 8), SGD(model.parameters(), 0.01), total_steps=9, cost=cost, target=0.5)
    pruner.controller.criterion.observe({group.name: torch.rand(group.size) for group in graph.groups})
    candidates, shares = pruner.controller.candidates, []

    def crooked(config, target, kept):
        shares.append(candidates.share(graph.kept(kept)))
        return 1.0, 0.2 + 0.8 * shares[-1]  # a part that the table knows nothing of

    monkeypatch.setattr(feedback, 'measured', crooked)
    hook = MeasuredLatencyHook()
    hook.cost, hook.goal = cost, Goal.of(dict(target=0.5))
    hook.correct(Config(), pruner)
    assert 1 < len(shares) <= ROUNDS
    found = 0.2 + 0.8 * candidates.share(pruner.controller.candidate())
    assert abs(found - 0.5) < abs(0.2 + 0.8 * shares[0] - 0.5) / 3


@pytest.mark.parametrize('off', [0.019, -0.019])
def test_a_selection_that_is_close_to_what_was_asked_for_is_kept(off, tmp_path, monkeypatch):
    model, graph = wide()
    cost = Latency(saved(tmp_path, table_of(graph)))
    pruner = GDP(model, torch.randn(2, 3, 8, 8), SGD(model.parameters(), 0.01), total_steps=9, cost=cost, target=0.5)
    pruner.controller.criterion.observe({group.name: torch.rand(group.size) for group in graph.groups})
    monkeypatch.setattr(feedback, 'measured', lambda *_: (1.0, 0.5 * (1 + off)))
    hook = MeasuredLatencyHook()
    hook.cost, hook.goal = cost, Goal.of(dict(target=0.5))
    kept = pruner.controller.candidate()
    hook.correct(Config(), pruner)
    assert pruner.controller.candidate() == kept


def test_without_a_latency_there_is_nothing_to_correct(config):
    with pytest.raises(ValueError, match=r"needs a pruning hook with cost=dict\(type='Latency'"):
        trained(config(cost=None, target=0.6))


def test_a_table_of_another_machine_is_refused_before_training(config, table, tmp_path):
    other = Table.load(table)
    other.facts = {**other.facts, 'machine': 'another'}
    (tmp_path / 'other.json').write_text(other.text())
    with pytest.raises(ValueError, match="measures on this machine: .* was measured with machine 'another'"):
        trained(config(cost=dict(type='Latency', table=str(tmp_path / 'other.json'))))


def test_a_run_without_time_to_measure_says_so(config):
    controller, text = trained(config(end=0.5, settle=0.5))
    assert controller.correction == 1 and 'the gates settled before anything was measured' in text
