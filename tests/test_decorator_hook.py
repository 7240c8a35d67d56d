"""Tick-Tock in real runs: what learns when, on which data, at what rate; resume in the middle; both loops."""

import json
import math

import pytest
import torch
import torch.multiprocessing
from digits_data import write_digits
from helpers import repeatable, slow_but, train
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmprune_gates.engine.tick_data import Alternating, endless, epoch_length
from mmprune_gates.gates import gates_of

SCENES, DIGITS = 'demo/gbn_deeplabv3plus_scenes.py', 'demo/gbn_resnet20_digits.py'


@HOOKS.register_module()
class Look(Hook):
    """Keeps what a run does: phases, rates, images, and the state around every iteration."""

    priority = 'LOWEST'

    def __init__(self, kept):
        self.kept = kept

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        """State before, phase and rates."""
        hook = hook_of(runner)
        groups = runner.optim_wrapper.optimizer.param_groups
        samples = data_batch['data_samples']
        self.kept.append(
            {
                'phase': hook.pruner.controller.phase,
                'lr': [group['lr'] for group in groups],
                'images': [sample.img_path for sample in samples],
                'before': copied(runner.model),
            }
        )

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """State after, what has been closed."""
        self.kept[-1]['after'] = copied(runner.model)
        self.kept[-1]['kept'] = hook_of(runner).pruner.controller.kept.vector


def copied(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def hook_of(runner):
    return next(hook for hook in runner.hooks if type(hook).__name__ == 'GateDecoratorHook')


@pytest.fixture
def tiny_gbn(tiny_config, tmp_path):
    """A function: tiny config of the segmentor, a cycle of a few iterations, every run alike."""

    def make(folder='run', **options):
        overrides = {key: options.pop(key) for key in list(options) if '.' in key or key == 'resume'}
        config = tiny_config(tmp_path / folder, SCENES, iterations=options.pop('iterations', 20), **overrides)
        repeatable(config)
        short = dict(tick=2, tock=3, ticks=2, fraction=0.06, subset=0.4, target_macs=0.4)
        config.custom_hooks[0].update({**short, **options})
        return config

    return make


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """Folder of the digits."""
    root = tmp_path_factory.mktemp('digits')
    write_digits(root / 'digits')
    return root / 'digits'


def tiny_digits(digits, work_dir, epochs, **overrides):
    config = Config.fromfile(f'{__file__.rpartition("tests")[0]}configs/{DIGITS}')
    roots = {f'{part}_dataloader.dataset.data_root': str(digits) for part in ('train', 'val', 'test')}
    config.merge_from_dict(
        {
            **roots,
            'work_dir': str(work_dir),
            'load_from': None,
            'experiment_name': str(work_dir).replace('/', '-'),
            'visualizer.name': str(work_dir).replace('/', '-'),
            'train_dataloader.collate_fn': dict(type='default_collate'),
            'val_dataloader.collate_fn': dict(type='default_collate'),
            'train_dataloader.dataset.indices': 200,
            'train_cfg.max_epochs': epochs,
            'train_cfg.val_interval': epochs,
            'default_hooks.checkpoint.interval': 1,
            **overrides,
        }
    )
    return config


def looked(config):
    """A run and what was seen of it."""
    kept = []
    hook = Look(kept)
    torch.manual_seed(0)
    runner = Runner.from_cfg(config)
    runner.register_hook(hook)
    runner.train()
    return runner, kept


def test_a_tick_changes_gates_classifier_and_norm_statistics_and_nothing_else(tiny_gbn):
    runner, seen = looked(tiny_gbn())
    ticks = [line for line in seen if line['phase'] == 'tick']
    assert len(ticks) >= 4
    free = ('gates.', 'decode_head.conv_seg.', 'auxiliary_head.conv_seg.')
    for line in ticks:
        changed = {k for k, value in line['after'].items() if not torch.equal(value, line['before'][k])}
        statistics = ('running_mean', 'running_var', 'num_batches_tracked')
        assert all(name.startswith(free) or name.endswith(statistics) for name in changed), changed
        assert {'decode_head.conv_seg.weight', 'auxiliary_head.conv_seg.weight'} <= changed
        assert any(name.startswith('gates.') for name in changed)
        assert any(name.endswith('running_mean') for name in changed)


def test_a_tock_trains_everything_but_what_the_gates_took_over(tiny_gbn):
    runner, seen = looked(tiny_gbn())
    line = next(line for line in seen if line['phase'] == 'tock')
    same = {k for k, value in line['after'].items() if torch.equal(value, line['before'][k])}
    gated = {scale.placement.module for scale in gates_of(runner.model).scales}
    assert {name for name in same if name.endswith('weight')} == {f'{module}.weight' for module in gated}


def test_phases_rates_and_data(tiny_gbn):
    runner, seen = looked(tiny_gbn(tick_lr=0.007, tock_lr=(0.001, 0.01)))
    phases = [line['phase'] for line in seen]
    assert phases[:10] == ['tock'] * 3 + ['tick'] * 4 + ['tock'] * 3
    assert phases[-1] == 'finetune' and len(phases) == 20
    assert {rate for line in seen if line['phase'] == 'tick' for rate in line['lr']} == {0.007}
    assert [line['lr'][0] for line in seen[:3]] == pytest.approx([0.001, 0.007, 0.007])
    tune = [line['lr'][0] for line in seen if line['phase'] == 'finetune']
    assert tune[0] == 0.001 and max(tune) == pytest.approx(0.01) and tune[-1] < max(tune)
    tick_images = {path for line in seen if line['phase'] == 'tick' for path in line['images']}
    images = {path for line in seen for path in line['images']}
    assert len(tick_images) == 5 and len(images) == 12  # 0.4 of 12
    assert not runner.param_schedulers


def test_what_is_closed_stays_closed_and_the_target_is_met(tiny_gbn):
    runner, seen = looked(tiny_gbn(target_macs=0.5, iterations=30))
    for earlier, later in zip(seen, seen[1:], strict=False):
        assert not (later['kept'] & ~earlier['kept']).any()
    gates = gates_of(runner.model)
    assert torch.equal(gates.kept().vector, seen[-1]['kept'])
    share = gates.graph.macs(gates.kept()) / gates.graph.macs()
    assert 0.45 < share <= 0.5


def test_the_penalty_shrinks_the_gates_of_a_tock(tiny_gbn):
    def size(penalty):
        config = tiny_gbn(f'penalty{penalty}', penalty=penalty, tock=10, iterations=10)
        return sum(float(gate.theta.abs().sum()) for gate in gates_of(train(config).model).by_group.values())

    assert size(10.0) < 0.99 * size(0.0)


@pytest.mark.parametrize('stop', slow_but((4,), (4, 9)))  # the first Tick has one iteration to go, the second Tock too
def test_a_resumed_run_equals_an_uninterrupted_one(tiny_gbn, stop):
    every = {'default_hooks.checkpoint.interval': 1}
    whole = train(tiny_gbn('whole', **every))
    first = tiny_gbn('halves', **every)
    first.custom_hooks.append(dict(type='mmengine.EarlyEnd', at=stop, priority='LOWEST'))
    killed = train(first)
    assert (
        hook_of(killed).pruner.controller.phase == ('tick' if stop == 4 else 'tock')
        and hook_of(killed).pruner.controller.done
    )
    resumed = train(tiny_gbn('halves', resume=True, **every))
    assert resumed.iter == whole.iter == 20
    a, b = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a), [key for key in a if not torch.equal(a[key], b[key])][:5]
    states = [hook_of(runner).pruner.controller.state_dict() for runner in (whole, resumed)]
    assert torch.equal(states[0]['kept'], states[1]['kept'])
    assert torch.equal(states[0]['criterion']['sum'], states[1]['criterion']['sum'])
    assert {k: states[0][k] for k in ('phase', 'done', 'ticks')} == {
        k: states[1][k] for k in ('phase', 'done', 'ticks')
    }


def test_loops_that_go_by_epochs(digits, tmp_path):
    config = tiny_digits(digits, tmp_path, 8)
    config.custom_hooks[0].update(tick=1, tock=1, ticks=2, fraction=0.06, subset=0.3, target_macs=0.5)
    runner, seen = looked(config)
    assert runner.epoch == 8
    phases = [line['phase'] for line in seen]
    full, part = math.ceil(200 / 32), math.ceil(60 / 32)
    assert phases[: full + 2 * part + full] == ['tock'] * full + ['tick'] * 2 * part + ['tock'] * full
    tick_images = {path for line in seen if line['phase'] == 'tick' for path in line['images']}
    assert len(tick_images) == 60
    first, second = seen[full]['images'], seen[full + part]['images']
    assert first != second  # shuffled anew in every epoch
    assert phases[-1] == 'finetune' and hook_of(runner).pruner.controller.share <= 0.5
    assert (
        hook_of(runner).pruner.controller.done == phases.count('finetune') == hook_of(runner).pruner.controller.length
    )


@pytest.mark.slow
def test_a_run_by_epochs_resumes(digits, tmp_path):
    def config(folder, **overrides):
        made = tiny_digits(digits, tmp_path / folder, 6, **overrides)
        made.train_dataloader.dataset.pipeline = made.test_pipeline
        made.custom_hooks[0].update(tick=2, tock=1, ticks=2, fraction=0.1, subset=0.3, target_macs=0.5)
        return made

    whole = train(config('whole'))
    train(config('halves', **{'train_cfg.max_epochs': 2, 'custom_hooks.0.target_macs': 0.5}))  # in mid-Tick
    resumed = train(config('halves', resume=True))
    assert resumed.epoch == whole.epoch == 6
    a, b = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a), [key for key in a if not torch.equal(a[key], b[key])][:5]


def test_it_says_what_it_does_with_schedulers_and_what_will_come(tiny_gbn, tmp_path):
    train(tiny_gbn())
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert "config's param_scheduler (LinearLR, CosineAnnealingLR) is not used" in log
    assert 'of them closed in each Tick; about' in log
    lines = next((tmp_path / 'run').glob('*/vis_data/scalars.json')).read_text().splitlines()
    lines = [line for line in map(json.loads, lines) if 'loss' in line]
    assert all({'macs_ratio', 'gates_closed', 'ticks'} <= line.keys() for line in lines)
    assert lines[0]['lr'] == pytest.approx(1e-5)


def test_a_run_that_is_too_short_says_so(tiny_gbn, tmp_path):
    train(tiny_gbn(iterations=6))
    assert 'ended before the target was met' in next((tmp_path / 'run').glob('*/*.log')).read_text()


def test_a_classifier_that_matches_no_module_is_refused(tiny_gbn):
    with pytest.raises(ValueError, match=r"'nowhere\.\*' matches no module"):
        train(tiny_gbn(classifier=['nowhere.*']))


def test_lengths_in_iterations_are_refused_where_the_loop_goes_by_epochs(digits, tmp_path):
    config = tiny_digits(digits, tmp_path, 2)
    config.custom_hooks[0].by_epoch = False
    with pytest.raises(ValueError, match='EpochBasedTrainLoop needs by_epoch=True'):
        train(config)


def test_a_resumed_loop_takes_from_both_as_many_batches_as_they_gave():
    wanted = [False]
    batches = Alternating(iter(range(100)), iter('abcdefgh'), lambda: wanted[0], given=5, given_part=2)
    assert [next(batches) for _ in range(5)] == ['a', 'b', 0, 1, 2]
    assert next(batches) == 3
    wanted[0] = True
    assert [next(batches), next(batches)] == ['c', 'd']


def test_a_part_is_shuffled_anew_in_every_epoch():
    class Sampler:
        def set_epoch(self, epoch):
            self.epoch = epoch

    class Loader:
        sampler = Sampler()

        def __iter__(self):
            return iter([(self.sampler.epoch, 0), (self.sampler.epoch, 1)])

    batches = endless(Loader())
    assert [next(batches) for _ in range(5)] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]


def test_an_epoch_of_an_endless_sampler(monkeypatch):
    data = list(range(10))
    endless_loader = DataLoader(data, batch_size=3, sampler=InfiniteSampler(data))
    assert epoch_length(endless_loader) == epoch_length(DataLoader(data, batch_size=3)) == 4
    monkeypatch.setattr('mmprune_gates.engine.tick_data.get_world_size', lambda: 2)
    assert epoch_length(endless_loader) == 2
    assert epoch_length(DataLoader(data, batch_size=3)) == 4  # a sampler that ends knows its share


def test_lengths_in_epochs_where_the_loop_goes_by_iterations(tiny_gbn):
    runner, seen = looked(tiny_gbn(by_epoch=True, tick=1, tock=1, ticks=1, subset=0.4, iterations=14))
    phases = [line['phase'] for line in seen]
    assert phases[:9] == ['tock'] * 6 + ['tick'] * 3  # 12 images and 5, two at a time


def rank_main(rank, address, folder):
    """One of two ranks: its own importance, the closing of one Tick."""
    from helpers import toy
    from toy_nets import Residual

    from mmprune_gates.budget import Cycle, Limits, Taylor, TickTock
    from mmprune_gates.gates import DecoratorGate, attach_gates
    from mmprune_gates.pruning.ranks import mean_over_ranks

    torch.distributed.init_process_group('gloo', init_method=address, rank=rank, world_size=2)
    model, graph, _ = toy(Residual)
    gates = attach_gates(model, graph, DecoratorGate)
    criterion = Taylor().bind(gates, reduce=mean_over_ranks)
    run = TickTock(gates, 0.5, Limits(), Cycle(1, 1, 1, 0.3), criterion=criterion)
    run.step(0)
    generator = torch.Generator().manual_seed(rank)
    own = {g.name: torch.randn(gates[g.name].theta.shape, generator=generator, dtype=torch.double) for g in graph.free}
    run.observe(own)
    alone = gates.flat({name: gates[name].importance(grad) for name, grad in own.items()})
    score = criterion.sum.clone()
    run.step(0)
    torch.save({'kept': run.kept.vector, 'score': score, 'alone': alone}, f'{folder}/{rank}.pth')


@pytest.mark.slow
def test_every_rank_closes_the_same(tmp_path):
    address = f'file://{tmp_path}/meet'
    torch.multiprocessing.spawn(rank_main, (address, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1))
    assert not torch.equal(first['alone'], second['alone'])
    assert torch.equal(first['score'], second['score'])
    assert torch.allclose(first['score'], (first['alone'] + second['alone']) / 2)
    assert torch.equal(first['kept'], second['kept']) and not first['kept'].all()
