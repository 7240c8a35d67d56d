"""The quality benchmark: every method meets its share in a handful of steps, and tables hold what runs have found."""

import json
from dataclasses import asdict, replace
from itertools import product

import mmprune_gates  # noqa: F401  (cures come before the imports below)

# isort: split
import pytest
import quality
import quality_tasks
import torch
from helpers import slow_but
from matplotlib.figure import Figure
from PIL import Image
from quality_cells import cells_of, title_of
from quality_dcfp import DCFP
from quality_peers import Iterative, SparseNorms, TorchPruning
from quality_picture import draw, draw_line, draw_panel, limits
from quality_plans import ARMS, FRESH, GDP, OURS, PLANS, Run, peers, quick
from quality_scratch import LONGEST, Scratch, masks
from quality_table import figures_of, main, markdown
from quality_tasks import TASKS, Recipe
from quality_training import Method, further_training, places_in, train
from torch import nn

from mmprune_gates import slim_model, trace_channels
from mmprune_gates.engine.builders import uniform

pytestmark = pytest.mark.models
TINY = replace(
    TASKS['digits'],
    name='tiny',
    start=Recipe(2, 0.1, 1),
    further=Recipe(12, 0.02, 1),
    options={**TASKS['digits'].options, 'val_dataloader.dataset.indices': list(range(0, 450, 9))},
)
SHARE = 0.3
RUNS = [
    run
    for arm in ARMS
    for run in replace(arm, rates=(1.0,), shares=(1.0 if arm.method == 'dense' else SHARE,)).runs('tiny', (), (0,))
]
FAST = [run for run in RUNS if run.label in ('waterline', 'uniform_macs')]


@pytest.fixture(scope='module', autouse=True)
def tiny():
    """The tiny task is one of the tasks; its graph, always the same, is traced once."""
    patch, graphs, trace = pytest.MonkeyPatch(), [], quality_tasks.TaskData.graph

    def traced(data, model):
        return graphs[0] if graphs else graphs.append(trace(data, model)) or graphs[0]

    patch.setitem(TASKS, 'tiny', TINY)
    patch.setattr(quality_tasks.TaskData, 'graph', traced)
    yield
    patch.undo()


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory):
    """Folder of the data, the start and all runs."""
    folder = tmp_path_factory.mktemp('quality')
    quality.prepare('tiny', 0, folder)
    return folder


@pytest.fixture(scope='module')
def found(work_dir):
    """A function: what a run has found; it is carried out once, and before it the one that it follows."""

    def carry_out(run):
        before = [other for other in RUNS if other.name == run.after]
        for one in [*before, run]:
            quality.carry_out(one, work_dir)
        return json.loads((work_dir / 'runs' / f'{run.name}.json').read_text())

    return carry_out


@pytest.fixture
def training(work_dir):
    """A training that begins."""
    return further_training(TINY.on(work_dir / 'data'), 0, work_dir / 'starts')


def share_of(figures):
    return figures['macs']['after'] / figures['macs']['before']


# ---- methods


@pytest.mark.parametrize('run', slow_but(FAST, RUNS), ids=lambda run: f'{run.method}-{run.label}')
def test_a_method_meets_its_share_in_as_many_steps_as_all(found, run):
    figures = found(run)
    assert share_of(figures) == pytest.approx(run.share, abs=0.02)
    assert 0 <= figures['score'] <= 100 and figures['metric'] == 'accuracy/top1'
    cost = 2 + 12 * (0.25 + 0.75 * share_of(figures))
    scratch = round(cost / share_of(figures)) if 'macs' in run.label else 14
    assert figures['steps'] == len(figures['losses']) == (scratch if run.method == 'scratch' else 12)


def test_from_scratch_the_pruned_architecture_costs_what_it_did(found):
    pruned, follower = (
        next(run for run in RUNS if (run.method, run.label) == key)
        for key in ((GDP.method, GDP.label), ('scratch', 'pruned'))
    )
    assert follower.after == pruned.name
    assert found(follower)['macs'] == found(pruned)['macs']
    assert found(follower)['losses'] != found(pruned)['losses']


def test_kept_of_another_task_is_refused(training):
    graph = training.data.graph(training.model)
    with pytest.raises(ValueError, match=r"kept names \['decode_head'\], which are no groups"):
        masks(graph, {'decode_head': [0]})


def test_longer_training_from_scratch_has_a_cap(training):
    assert Scratch(0.01, same_macs=True).recipe(training.data, 0.01).steps == LONGEST * 14
    assert Scratch(0.1, same_macs=True).recipe(training.data, 0.5).steps == round((2 + 12 * 0.625) / 0.5)


@pytest.mark.parametrize('one_threshold', [False, True])
@pytest.mark.parametrize('share', [0.5, 0.05])
def test_torch_pruning_is_driven_by_our_counter(training, share, one_threshold):
    whole = training.data.macs(training.model)
    method = TorchPruning(share, criterion='magnitude', global_pruning=one_threshold)
    method.begin(training)
    macs = training.data.macs(training.model)
    assert macs / whole == pytest.approx(share, abs=0.02)
    assert method.counter.share(training.model) == pytest.approx(macs / whole, abs=1e-9)
    assert training.model.head.fc.out_features == 10


def test_many_cuts_with_one_ratio_leave_the_widths_of_one_cut(work_dir):
    widths = []
    for shares in ((0.2,), (0.85, 0.72, 0.6, 0.5, 0.42, 0.35, 0.3, 0.25, 0.2)):
        training = further_training(TINY.on(work_dir / 'data'), 0, work_dir / 'starts')
        method = TorchPruning(0.2, criterion='magnitude', global_pruning=False)
        Method.begin(method, training)
        method.prepare()
        for share in shares:
            method.cut(share)
        widths.append(torch.tensor([norm.num_features for norm in batch_norms(training.model)]))
    assert (widths[0] - widths[1]).abs().max() <= 1 and widths[0].min() > 1


@pytest.mark.parametrize('criterion', ['taylor', 'random'])
def test_a_cut_changes_no_statistics_and_none_of_the_later_draws(training, criterion):
    share, options = 0.9, {'criterion': criterion, 'global_pruning': True}
    norm = training.model.backbone.bn1
    norm.running_mean.add_(1)
    before = norm.running_mean.clone()
    method = Iterative(share, **options)
    method.begin(training)
    torch.manual_seed(1)
    expected, _ = torch.rand(1), torch.manual_seed(1)
    method.cut(share)
    assert torch.rand(1) == expected and training.model.training
    left = norm.running_mean
    assert len(left) <= len(before) and torch.isin(left, before).all()


def batch_norms(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_torch_pruning_that_cannot_meet_a_share_says_so(training):
    with pytest.raises(ValueError, match=r'ends with 0\.0\d+ of the MACs; 0.0001 were asked for'):
        method = TorchPruning(1e-4, criterion='magnitude', global_pruning=False)
        method.begin(training)


def test_sparse_training_pulls_every_norm_towards_zero(training):
    method = SparseNorms(SHARE, criterion='norm_scale', global_pruning=False)
    [group] = training.optimizer.param_groups
    decay = group['weight_decay']
    method.begin(training)
    assert decay > 0 == group['weight_decay']
    gamma = training.model.backbone.bn1.weight
    before = gamma.detach().clone()
    for step in range(1, 6):  # the last sparse step also cuts
        method.after_step(step)
    rates = [training.rate_at(step) for step in range(6)]
    pull = 0.0024 / (1 - 0.9) * sum(rates[:5]) / sum(rates)
    torch.testing.assert_close(gamma.detach(), before - pull * before.sign())
    method.after_step(6)
    assert training.optimizer.param_groups[0]['weight_decay'] == decay
    assert method.counter.share(training.model) < 2 * SHARE


@pytest.mark.parametrize('momentum', [True, False])
def test_the_optimiser_follows_a_cut(training, momentum):
    graph = training.data.graph(training.model)
    for parameter in training.model.parameters():
        training.optimizer.state[parameter] = {'momentum_buffer': parameter.detach() + 1, 'step': torch.tensor(7.0)}
    places = places_in(training.model)
    for model in (training.model, places):
        slim_model(model, graph, uniform(graph, 0.5))
    training.renew_optimizer(places if momentum else None)
    for parameter in training.model.parameters():
        state = training.optimizer.state[parameter]
        assert set(state) == ({'momentum_buffer', 'step'} if momentum else set())
        if momentum:
            torch.testing.assert_close(state['momentum_buffer'], parameter.detach() + 1)
            assert state['step'] == 7


class TwoParts(nn.Module):
    """A backbone and a head, each with a norm."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))

    def forward(self, x):
        return self.head(self.backbone(x))


def test_dcfp_ranks_backbone_and_head_apart():
    method = DCFP(0.5)
    method.graph = trace_channels(TwoParts(), (torch.zeros(2, 3, 4, 4),))
    method.scores = {'backbone.1': torch.arange(8.0), 'head.1': 1000 * torch.arange(4.0)}
    scores, slots = method.channel_scores(), method.graph.slots
    torch.testing.assert_close(scores[slots['backbone.1.weight'][0]], torch.arange(1, 9).double() / 8)
    torch.testing.assert_close(scores[slots['head.1.weight'][0]], torch.arange(1, 5).double() / 4)


def test_dcfp_counts_only_gradients_that_shrink_a_scale(training):
    method = DCFP(SHARE)
    method.begin(training)
    gamma = training.model.backbone.bn1.weight
    gamma.grad = torch.ones_like(gamma)
    gamma.grad[0] = -1
    method.after_backward()
    mean = method.scores['backbone.bn1']
    assert mean[0] == 0 and mean[1:].allclose(torch.tensor(1e-3))


def test_the_rate_of_a_run_is_scaled_in_every_step(work_dir):
    data = TINY.on(work_dir / 'data')
    plain, fast = (further_training(data, 0, work_dir / 'starts', scale) for scale in (1.0, 3.0))
    assert [fast.rate_at(step) for step in range(12)] == pytest.approx([3 * plain.rate_at(step) for step in range(12)])
    losses = []
    for training in (plain, fast):
        train(training, Method(1.0))
        losses.append(training.losses)
    assert losses[0][0] == losses[1][0] and losses[0][2] != losses[1][2]


# ---- runs, plans


def test_a_finished_run_is_not_carried_out_again(found, work_dir, monkeypatch):
    run = RUNS[0]
    found(run)
    path = work_dir / 'runs' / f'{run.name}.json'
    done = {**asdict(run), 'score': 12.5}
    path.write_text(json.dumps(done))
    quality.carry_out(run, work_dir)
    assert json.loads(path.read_text()) == json.loads(json.dumps(done))
    path.write_text(json.dumps({**done, 'options': {'update': 'other'}}))
    with pytest.raises(ValueError, match='is of a run with other options: remove it'):
        quality.carry_out(run, work_dir)
    path.unlink()
    assert found(run)['steps'] == 12


@pytest.mark.parametrize('plan', PLANS)
def test_every_run_of_a_plan_has_a_file_of_its_own_and_a_method(plan):
    runs = PLANS[plan]()
    assert len({run.name for run in runs}) == len(runs)
    assert {run.method for run in runs} <= quality.METHODS.keys() and {run.task for run in runs} <= TASKS.keys()
    before = set()
    parts = quality.waves(runs)
    for part in parts:
        assert part and {run.after for run in part if run.after} <= before
        before |= {run.name for run in part}
    assert [run for part in parts for run in part] == runs


def test_the_plans_are_what_is_compared():
    runs = peers()
    assert {run.seed for run in runs} == set(FRESH) and {run.task for run in runs} == {'digits', 'scenes'}
    assert {title_of(run) for run in quick()} == {title_of(run) for run in runs} == {arm.title for arm in ARMS}
    per_cell = {(run.task, title_of(run), run.share, run.seed): [] for run in runs}
    for run in runs:
        per_cell[run.task, title_of(run), run.share, run.seed].append(run.rate_scale)
    numbers = {(task, len(rates)) for (task, *_), rates in per_cell.items()}
    assert numbers == {('digits', 1), ('digits', 2), ('digits', 3), ('scenes', 1)}
    assert all(rates[0] == 1 for rates in per_cell.values())
    cuts = {arm.title: {(run.task, run.share) for run in runs if title_of(run) == arm.title} for arm in ARMS}
    everywhere = {('digits', 0.15), ('digits', 0.05), ('scenes', 0.15)}
    assert cuts.pop('dense, trained on') == {('digits', 1.0), ('scenes', 1.0)}
    assert all(everywhere <= own <= everywhere | {('scenes', 0.3), ('scenes', 0.05)} for own in cuts.values())
    assert all(len(cuts[arm.title]) == 5 for arm in OURS)


def test_a_plan_without_what_its_runs_follow_is_refused():
    with pytest.raises(ValueError, match='follows gone, which the plan does not have before it'):
        quality.waves([Run('tiny', 'scratch', SHARE, 0, after='gone')])


def test_runs_keep_their_order_and_wait_for_those_that_they_follow():
    runs = [Run('tiny', 'dense', 1.0, seed) for seed in range(4)]
    runs[1:1] = [replace(runs[0], label='behind', after=runs[0].name)]
    runs.append(replace(runs[0], label='last', after=runs[0].name))
    assert quality.waves(runs) == [runs[:1], runs[1:]]


# ---- tables


@pytest.mark.slow
def test_the_table_holds_every_method(found, work_dir, monkeypatch, tmp_path):
    for run in RUNS:
        found(run)
    monkeypatch.setitem(PLANS, 'tiny', lambda: RUNS)
    assert main(['tiny', '--work-dir', str(work_dir), '--out', str(tmp_path)]) == 0
    figures = json.loads((tmp_path / 'tiny.json').read_text())
    assert figures['missing'] == [] and len(figures['cells']) == len(RUNS)
    made = figures['provenance']
    assert made['versions']['torch-pruning'] and made['seeds'] == [0] and made['runs'] == len(RUNS)
    text = (tmp_path / 'tiny.md').read_text()
    assert text == markdown(figures)
    assert all(f'| {arm.title} | **' in text for arm in ARMS if arm.method != 'dense')
    with Image.open(tmp_path / 'tiny_tiny.png') as picture:
        assert min(picture.size) > 500


def test_missing_runs_are_shown(found, work_dir):
    there = RUNS[1]
    found(there)
    lost = [replace(there, seed=5), replace(there, share=0.05), replace(RUNS[2], share=0.05)]
    figures = figures_of('tiny', [there, *lost], work_dir / 'runs')
    assert figures['missing'] == [run.name for run in lost]
    text = markdown(figures)
    assert '3 of 4 runs of the plan are missing' in text
    first, second = (next(line for line in text.splitlines() if title_of(run) in line) for run in RUNS[1:3])
    assert '; ×1, lacks 1) | not run |' in first and second.endswith('| – | not run |')
    with pytest.raises(ValueError, match='no run of the plan'):
        figures_of('tiny', lost, work_dir / 'runs')


def test_a_picture_leaves_out_what_was_not_run(found, work_dir, tmp_path):
    found(RUNS[1])
    runs = [replace(RUNS[1], share=0.05), RUNS[1], RUNS[4]]
    draw(tmp_path / 'one.png', 'tiny', {**figures_of('tiny', runs[:2], work_dir / 'runs')})
    with Image.open(tmp_path / 'one.png') as picture:
        assert min(picture.size) > 300
    found(RUNS[0])
    draw(tmp_path / 'none.png', 'tiny', figures_of('tiny', RUNS[:1], work_dir / 'runs'))
    assert not (tmp_path / 'none.png').exists()


def test_values_below_the_picture_are_written_into_it():
    axes = Figure().subplots()
    cells = [
        {'method': name, 'share': 0.05, 'macs_share': 0.05, 'mean': mean, 'spread': 0.5, 'lacks': 0}
        for name, mean in (('first', 90.0), ('low', 20.0), ('lower', 10.0), ('high', 92.0))
    ]
    axes.set_ylim(*limits(cells[:1], cells))
    draw_panel(axes, 'family', cells[:1], cells[1:], [])
    assert [text.get_text().strip() for text in axes.texts] == ['↓ 20.0', '↓ 10.0']
    assert len({text.get_position()[1] for text in axes.texts}) == 2
    assert axes.get_ylim()[0] == pytest.approx(92.5 - 7.5 - 0.04 * 7.5)


def test_the_legend_says_what_was_not_run():
    axes = Figure().subplots()
    cells = [{'method': 'absent', 'mean': None}, {'method': 'partly', 'mean': 90.0, 'spread': None, 'lacks': 1}]
    for cell in cells:
        draw_line(axes, [{**cell, 'macs_share': 0.05}], color='#000000')
    assert axes.get_legend_handles_labels()[1] == ['absent (not run)', 'partly (lacks seeds)']


def cells_with(**scores):
    """The cells of two-rate methods with these scores: for each rate one for each seed, None where it was not run."""
    runs, results = [], []
    for method, rates in scores.items():
        for (rate, values), seed in product(zip((1.0, 3.0), rates, strict=True), (0, 1)):
            runs.append(Run('tiny', method, 0.3, seed, rate_scale=rate))
            if values[seed] is not None:
                found = {'score': values[seed], 'macs': {'before': 100, 'after': 31}, 'steps': 6, 'seconds': 1.0}
                results.append((runs[-1], found))
    return cells_of(runs, results)


def test_the_better_rate_is_chosen_on_the_mean_of_the_seeds():
    [cell] = cells_with(gdp=((80.0, 90.0), (88.0, 86.0)))
    assert (cell['mean'], cell['rate_scale'], cell['scores']) == (87.0, 3.0, {'0': 88.0, '1': 86.0})
    assert cell['spread'] == pytest.approx(2**0.5) and cell['other_rates']['1']['mean'] == 85.0
    assert cell['macs_share'] == pytest.approx(0.31) and cell['missing'] == [] and cell['lacks'] == 0


@pytest.mark.parametrize('second', [(None, None), (99.0, None)])
def test_a_rate_counts_for_all_methods_or_for_none(second):
    complete, lacking, absent = cells_with(
        gdp=((80.0, 90.0), (88.0, 86.0)), dcfp=((70.0, 72.0), second), l1=((None, None), (None, None))
    )
    assert complete['rate_scale'] == lacking['rate_scale'] == 1.0 and complete['mean'] == 85.0
    assert complete['other_rates']['3']['mean'] == 87.0 and len(lacking['missing']) == 1 + (second[0] is None)
    assert absent['mean'] is None and complete['rates_compared'] == lacking['rates_compared'] == 1


def test_a_cell_that_lacks_a_seed_says_so():
    complete, lacking = cells_with(gdp=((80.0, 90.0), (88.0, 86.0)), dcfp=((70.0, None), (None, None)))
    assert complete['rates_compared'] == 2 and complete['mean'] == 87.0
    assert (lacking['mean'], lacking['spread'], lacking['lacks']) == (70.0, None, 1)
