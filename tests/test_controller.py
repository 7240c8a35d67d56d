"""What both updates share: the phases, the settled state, the figures; a small run with each."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import example, randomize_
from toy_nets import Residual

from mmprune_gates import slim_model, trace_channels
from mmprune_gates.budget import Gradient, Limits, Parameters, Polarizer, Schedule, Waterline
from mmprune_gates.gates import PolarizationGate, attach_gates, fold_gates

UPDATES = {'waterline': Waterline, 'gradient': Gradient}
STEPS = 60
both = pytest.mark.parametrize('update', UPDATES)


class Run:
    """A training run in small: an optimiser, gates, a controller. What the hook does, without a Runner."""

    def __init__(self, update, target=0.4, **limits):
        self.model = randomize_(Residual()).train()
        graph = trace_channels(self.model, (torch.zeros(2, 3, 8, 8),))
        self.gates = attach_gates(self.model, graph, PolarizationGate)
        options = {'waterline': {'steps': 4, 'momentum': 0.8}, 'gradient': {'momentum': 0.8, 'rate': 0.1}}[update]
        schedule = Schedule(target, end=0.5, settle=0.55)
        self.controller = UPDATES[update](self.gates, schedule, Limits(**limits), **options)
        own = [p for name, p in self.model.named_parameters() if not name.startswith('gates.')]
        self.optimizer = torch.optim.SGD(own, lr=0.01, momentum=0.9)

    def step(self, i, steps=STEPS):
        x = example((3, 8, 8), 4, torch.float32, seed=i)
        self.model.zero_grad()
        F.mse_loss(self.model(x), x.mean(1, keepdim=True).expand(-1, 4, -1, -1)).backward()
        grad = torch.cat([self.grad(group) for group in self.gates.graph.groups])
        self.optimizer.step()
        self.controller.observe(grad)
        self.controller.step((i + 1) / steps)

    def grad(self, group):
        return self.gates[group.name].theta.grad if group.frozen is None else torch.zeros(group.size)

    def share(self):
        graph = self.gates.graph
        return graph.macs(self.gates.kept()) / graph.macs()


@both
@pytest.mark.parametrize('target', [0.25, 0.4, 0.8])
def test_a_run_ends_at_the_budget(update, target):
    run = Run(update, target)
    for i in range(STEPS):
        run.step(i)
    graph, kept = run.gates.graph, run.gates.kept()
    assert run.controller.settled
    assert run.share() <= target
    for name, mask in kept.items():  # from below, and as near as whole channels allow
        if not mask.all():
            more = {**kept, name: mask | (torch.arange(len(mask)) == int((~mask).nonzero()[0]))}
            assert graph.macs(more) > target * graph.macs()
    values = torch.cat([gate() for gate in run.gates.by_group.values()])
    assert set(values.tolist()) == {0.0, 1.0}
    slim_model(run.model, *fold_gates(run.model))
    assert run.model(example((3, 8, 8), dtype=torch.float32)).isfinite().all()


@both
def test_limits_hold_at_every_step(update):
    run = Run(update, 0.5, floor=0.4, exclude=('b1.1',))
    for i in range(STEPS):
        run.step(i)
        kept = run.gates.kept()
        for group in run.gates.graph.free:
            assert int(kept[group.name].sum()) >= run.controller.candidates.limits.least(group), (i, group.name)
        assert bool((run.gates['b1.0']() == 1).all()), i


@both
def test_without_a_floor_blocks_are_emptied_and_every_step_can_be_slimmed(update):
    run = Run(update, 0.04, floor=0.0)
    x = example((3, 8, 8), dtype=torch.float32)
    for i in range(STEPS):
        run.step(i)
        gated, slim = (copy.deepcopy(run.model).eval() for _ in range(2))
        slim_model(slim, *fold_gates(slim))
        assert torch.allclose(slim(x), gated(x), rtol=1e-4, atol=1e-5), i
    assert run.share() <= 0.04 and run.gates.kept().emptied


@both
def test_gates_fall_before_they_settle(update):
    run = Run(update, 0.3)
    for i in range(int(0.5 * STEPS)):
        run.step(i)
    assert not run.controller.settled and run.controller.scalars()['macs_ratio'] < 0.9


@both
def test_nothing_moves_before_the_begin_or_after_the_end(update):
    run = Run(update)
    for i in range(int(0.05 * STEPS) - 1):
        run.step(i)
    assert torch.equal(run.gates.theta(), torch.ones(run.gates.graph.num_channels))
    run.controller.settle()
    before = run.gates.theta().clone()
    run.controller.step(0.3)
    assert torch.equal(run.gates.theta(), before)


@both
def test_a_restored_run_goes_on_in_the_same_way(update):
    whole, first, second = Run(update), Run(update), Run(update)
    for i in range(25):
        whole.step(i)
        first.step(i)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.controller.load_state_dict(first.controller.state_dict())
    for i in range(25, STEPS):
        whole.step(i)
        second.step(i)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    )
    assert whole.controller.settled and second.controller.settled


@both
def test_a_target_of_one_closes_nothing(update):
    run = Run(update, 1.0)
    for i in range(STEPS):
        run.step(i)
    assert run.share() == 1 and run.controller.settled


@both
def test_everything_excluded_and_nothing_to_do(update):
    run = Run(update, 1.0, exclude=('*',))
    for i in range(STEPS):
        run.step(i)
    assert run.share() == 1


@both
def test_settling_fills_the_budget(update):
    filled = 0
    for seed in range(5):
        run = Run(update, 0.5)
        score = torch.rand(run.gates.graph.num_channels, generator=torch.Generator().manual_seed(seed))
        run.gates.set_theta(score) if update == 'gradient' else run.controller.criterion.mean.copy_(score)
        candidates, ranking = run.controller.candidates, run.controller.ranking()
        least = candidates.select(ranking, 0.5)
        most = candidates.fill(least, ranking, 0.5)
        run.controller.settle()
        assert torch.equal(run.gates.theta() > 0.5, most.vector)
        filled += int((most.vector & ~least.vector).sum())
    assert filled > 0


@both
def test_figures_and_words(update):
    run = Run(update, 0.5)
    assert run.controller.scalars() == {'macs_ratio': 1.0, 'gates_closed': 0.0, 'gate_eps': pytest.approx(0.1)}
    run.controller.settle()
    figures = run.controller.scalars()
    assert figures['macs_ratio'] == pytest.approx(run.share()) and 0 < figures['gates_closed'] < 1
    closed = round(figures['gates_closed'] * 19)
    assert f'{19 - closed} of 19 channels open' in run.controller.summary()
    assert 'of the MACs, target 0.5)' in run.controller.summary()


def test_the_target_of_another_cost_stands_beside_the_share_of_that_cost():
    run = Run('waterline', 0.5)
    cost = Parameters().bind(run.gates.graph, run.model)
    controller = Waterline(run.gates, Schedule(0.5, end=0.5, settle=0.55), Limits(), cost)
    controller.criterion.mean.copy_(torch.rand(run.gates.graph.num_channels))
    controller.settle()
    share = controller.candidates.share(run.gates.kept())
    assert 0.4 < share <= 0.5 and share != pytest.approx(run.share(), abs=1e-3)
    assert f'({share:.4f} of the Parameters, target 0.5)' in controller.summary()


@both
def test_a_budget_out_of_reach_is_refused_at_once(update):
    with pytest.raises(ValueError, match=r'a budget of 0\.0100 of the MACs cannot be met'):
        Run(update, 0.01)


def test_the_base_moves_nothing_itself():
    gates = Run('waterline').gates
    with pytest.raises(NotImplementedError):
        Polarizer(gates, Schedule(0.5), Limits()).step(0.3)


def test_the_phases_in_numbers():
    schedule = Schedule(0.25, begin=0.1, end=0.5, settle=0.6, eps=(0.1, 1e-3))
    assert [schedule.target_at(p) for p in (0, 0.1, 0.3, 0.5, 1)] == pytest.approx([1, 1, 0.5, 0.25, 0.25])
    assert [schedule.eps_at(p) for p in (0, 0.1, 0.35, 0.6, 1)] == pytest.approx([0.1, 0.1, 0.01, 1e-3, 1e-3])


@pytest.mark.parametrize('target', [0, -0.5, 1.01, 40])
def test_targets_out_of_range(target):
    with pytest.raises(ValueError, match=rf'target must be a share in \(0, 1\], got {target}'):
        Schedule(target)


@pytest.mark.parametrize(
    'phases',
    [
        {'begin': -0.1},
        {'begin': 0.5, 'end': 0.5},
        {'end': 0.6, 'settle': 0.55},
        {'settle': 1.2},
    ],
)
def test_phases_out_of_order(phases):
    with pytest.raises(ValueError, match='phases must satisfy 0 <= begin < end <= settle <= 1, got begin='):
        Schedule(0.5, **phases)


@pytest.mark.parametrize('eps', [(1e-4, 0.1), (0.1, 0)])
def test_eps_must_fall_and_stay_positive(eps):
    with pytest.raises(ValueError, match='eps must be two positive numbers'):
        Schedule(0.5, eps=eps)


@both
@pytest.mark.parametrize('factor', [0.8, 1.2])
def test_a_corrected_target_is_met(update, factor):
    run = Run(update)
    for i in range(STEPS):
        run.step(i)
        if i == STEPS // 2:
            run.controller.correct(factor)
    assert run.controller.target == 0.4 and run.controller.aim == pytest.approx(0.4 * factor)
    assert 0.4 * factor - 0.05 < run.share() <= 0.4 * factor


@both
def test_a_correction_goes_no_further_than_the_limits(update):
    run = Run(update, floor=0.5)
    run.controller.correct(0.01)
    for i in range(STEPS):
        run.step(i)
    assert run.share() == pytest.approx(run.controller.candidates.least_share())
    run.controller.correct(100)
    assert run.controller.aim == 1


@both
def test_a_correction_belongs_to_a_cost(update):
    first, second = Run(update), Run(update)
    first.controller.correct(0.8)
    state = first.controller.state_dict()
    second.controller.load_state_dict(state)
    assert second.controller.aim == pytest.approx(0.32)
    second = Run(update)
    second.controller.load_state_dict({**state, 'whole_cost': 1.1 * state['whole_cost']})
    assert second.controller.aim == 0.4
    old = {name: value for name, value in state.items() if name not in ('correction', 'whole_cost')}
    second.controller.load_state_dict(old)
    assert second.controller.aim == 0.4


@both
def test_the_candidate_is_what_would_settle(update):
    run = Run(update)
    for i in range(STEPS // 2):
        run.step(i)
    candidate = run.controller.candidate()
    assert not candidate.vector.all() and not run.controller.settled
    run.controller.settle()
    assert run.controller.kept == candidate == run.controller.candidate()
