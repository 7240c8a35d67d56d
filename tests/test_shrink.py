"""Channels leave a model in the middle of its training, and nothing else changes."""

import copy
import pickle

import pytest
import torch
from helpers import call, example, flat, relative_error, slow_but, traced
from model_checks import randomize_
from torch import nn
from toy_nets import Residual, SiluNet, conv_bn, pruned

from mmprune_gates import GDP, GateDecorator
from mmprune_gates.budget import Random
from mmprune_gates.slimming import apply_widths
from mmprune_gates.slimming.removal import Removed
from mmprune_gates.slimming.surgery import cut, slot_masks

OPTIMIZERS = {
    'sgd': lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4, nesterov=True),
    'adamw': lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    'adafactor': lambda parameters: torch.optim.Adafactor(parameters, lr=1e-3),
    'adam with amsgrad': lambda parameters: torch.optim.Adam(parameters, lr=1e-3, amsgrad=True),
}
METHODS = {
    'gdp': (GDP, dict(total_steps=12, target_macs=0.5, options=dict(steps=2))),
    'gradient': (GDP, dict(total_steps=12, target_macs=0.6, update='gradient')),
    'gate decorator': (
        GateDecorator,
        dict(
            total_steps=200, target_macs=0.5, fraction=0.2, tick=1, tock=1, ticks=3, tick_lr=1e-4, tock_lr=(1e-4, 1e-3)
        ),
    ),
}
EITHER = pytest.mark.parametrize('method', slow_but(('gdp',), ('gdp', 'gate decorator')))
UPDATES = pytest.mark.parametrize('update', slow_but(('waterline',), ('waterline', 'gradient')))
AFTER = 100


def batch(step, net, dtype):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(4, *net.shape, generator=generator, dtype=dtype)


class Run:
    """A model that trains in a plain loop."""

    def __init__(self, net, method, optimizer, dtype=torch.double, clip=None, every=1, **more):
        torch.manual_seed(0)
        self.net, self.dtype, self.clip, self.every = net, dtype, clip, every
        self.model = randomize_(net()).to(dtype).train()
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0  # a mask of another shape would be drawn from other numbers
        self.model.training = False  # of the net itself, which may call a dropout; its modules train
        if hasattr(self.model, 'unused'):
            self.model.unused.requires_grad_(False)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        kind, options = METHODS[method]
        self.pruner = kind(self.model, (example(net.shape, dtype=dtype),), self.optimizer, **{**options, **more})
        self.step_number, self.losses = 0, []

    def go(self, steps):
        for _ in range(steps):
            for part in range(self.every):
                outputs = self.model(batch(self.step_number * self.every + part, self.net, self.dtype))
                loss = sum(output.square().mean() for output in flat(outputs)) / self.every
                loss.backward()
            if self.clip:
                own = [p for group in self.optimizer.param_groups for p in group['params']]
                nn.utils.clip_grad_norm_(own, self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.pruner.step()
            self.step_number += 1
            self.losses.append(float(loss))

    def until_settled(self):
        while not self.pruner.controller.settled:
            assert self.step_number < 60
            self.go(1)
        return self


def pair(*options, **more):
    """The same settled run twice; channels have left the second."""
    whole = Run(*options, **more).until_settled()
    narrow = Run(*options, **more).until_settled()
    report = narrow.pruner.shrink()
    assert report['macs']['after'] < report['macs']['before'] and report['params']['after'] < report['params']['before']
    return whole, narrow


@pytest.mark.parametrize('optimizer', slow_but(('adamw',), ('sgd', 'adamw', 'adam with amsgrad')))
@pytest.mark.parametrize('method', METHODS)
def test_training_goes_on_as_if_nothing_had_gone(method, optimizer):
    whole, narrow = pair(Residual, method, optimizer)
    whole.go(AFTER), narrow.go(AFTER)
    worst = max(abs(a - b) / abs(a) for a, b in zip(whole.losses, narrow.losses, strict=True))
    assert worst < 1e-10
    reports = [run.pruner.finish() for run in (whole, narrow)]
    assert reports[0]['kept'] == reports[1]['kept']
    for key in ('macs', 'widths', 'removed'):
        assert reports[0][key] == reports[1][key]


@EITHER
@pytest.mark.parametrize('more', [dict(clip=0.05), dict(every=3), dict(dtype=torch.float32)], ids=repr)
def test_clipping_accumulation_and_float32(method, more):
    whole, narrow = pair(Residual, method, 'sgd', **more)
    whole.go(AFTER), narrow.go(AFTER)
    tolerance = 1e-4 if 'dtype' in more else 1e-10
    assert all(abs(a - b) < tolerance * abs(a) for a, b in zip(whole.losses, narrow.losses, strict=True))


def least_share(graph):
    return graph.macs({group.name: torch.arange(group.size) < 1 for group in graph.free}) / graph.macs()


def test_closed_gates_of_gate_decorator_have_no_gradient_that_would_count_in_a_norm_of_all():
    run = Run(SiluNet, 'gate decorator', 'sgd').until_settled()
    sum(output.square().mean() for output in flat(run.model(batch(0, SiluNet, torch.double)))).backward()
    gates, kept = run.pruner.gates, run.pruner.controller.kept
    assert not kept.vector.all()
    for name, mask in kept.items():
        grad = gates[name].theta.grad
        assert grad[:, mask].all() and not grad[:, ~mask].any()


@pytest.mark.parametrize('method', slow_but(('gdp', 'gate decorator'), METHODS))
def test_gates_that_are_one_for_good_cost_nothing(method):
    _, narrow = pair(Residual, method, 'sgd')
    gates, moves = narrow.pruner.gates, method == 'gate decorator'
    before = [output.detach() for output in flat(narrow.model(batch(0, Residual, torch.double)))]
    narrow.go(1)
    assert all(parameter.requires_grad == moves for parameter in gates.parameters())
    assert all(scale.acted for scale in gates.scales)
    narrow.pruner.check()
    if not moves:
        assert all(bool((values == 1).all()) for values in gates.values().values())
        again = Run(Residual, method, 'sgd')
        again.pruner.load_state_dict(narrow.pruner.state_dict())
        assert all(scale.rests for scale in again.pruner.gates.scales)
        again.model.load_state_dict(narrow.model.state_dict())
        for scale in again.pruner.gates.scales:
            scale.rests = False  # to multiply by one changes no bit
        outputs = [run.model(batch(0, Residual, torch.double)) for run in (narrow, again)]
        assert all(map(torch.equal, *map(flat, outputs)))
        assert not all(map(torch.equal, flat(outputs[0]), before))


def compiled():
    """A net of which a part is compiled."""
    model = Residual()
    model.a1 = torch.compile(model.a1, backend='eager')
    return model


compiled.shape = Residual.shape


@EITHER
def test_compiled_parts_and_activations_held_by_the_model_do_not_hinder(method):
    run = Run(compiled, method, 'sgd')
    run.model.register_forward_hook(lambda module, args, output: vars(module).update(held=[output]))
    run.until_settled()
    assert run.pruner.shrink()['parity_error'] < 1e-12
    run.go(2)
    assert run.pruner.finish()['parity_error'] < 1e-12


def test_a_second_optimiser_is_warned_of():
    run = Run(Residual, 'gdp', 'sgd')
    other = run.model.a1[0].weight
    (group,) = run.optimizer.param_groups
    group['params'] = [parameter for parameter in group['params'] if parameter is not other]
    run.until_settled()
    with pytest.warns(UserWarning, match='^1 parameters .* are not in the SGD that the pruner knows'):
        run.pruner.shrink()
    assert run.model.a1[0].weight is not other


def test_a_run_can_be_pickled():
    run = Run(Residual, 'gdp', 'sgd').until_settled()
    again = pickle.loads(pickle.dumps(run.model))
    assert all(map(torch.equal, *(call(model, example(Residual.shape)) for model in (run.model, again))))
    works = [model.gates.graph.workload.works for model in (run.model, again)]
    assert works[0] == works[1]


@pruned
def test_every_kind_of_net_goes_on_and_ends_as_the_whole_one(net):
    target = 0.5 if least_share(traced(net)[1]) < 0.5 else 0.96
    whole, narrow = pair(net, 'gdp', 'sgd', clip=1.0, target_macs=target)
    whole.go(10), narrow.go(10)
    assert all(abs(a - b) <= 1e-9 * abs(a) for a, b in zip(whole.losses, narrow.losses, strict=True))
    x = example(net.shape)
    reports = [run.pruner.finish() for run in (whole, narrow)]
    outputs = [call(run.model, x) for run in (whole, narrow)]
    assert relative_error(*outputs) < 1e-9
    for key in ('macs', 'kept', 'widths', 'removed'):
        assert reports[0][key] == reports[1][key]


def test_parameters_that_lose_nothing_stay_the_same_objects_and_gradients_follow():
    run = Run(Residual, 'gdp', 'sgd').until_settled()
    before, kept = dict(run.model.named_parameters()), run.pruner.controller.kept
    run.model(batch(0, Residual, torch.double)).sum().backward()
    grads = {name: parameter.grad for name, parameter in before.items() if parameter.grad is not None}
    masks = slot_masks(run.pruner.gates.graph, kept)
    run.pruner.shrink()
    after = dict(run.model.named_parameters())
    assert masks.keys() & after.keys() and after.keys() - masks.keys()
    for name, parameter in after.items():
        if name in masks:
            assert torch.equal(parameter, cut(before[name], masks[name]))
            assert torch.equal(parameter.grad, cut(grads[name], masks[name]))
        elif not name.startswith('gates.'):
            assert parameter is before[name]
    own = {id(parameter) for group in run.optimizer.param_groups for parameter in group['params']}
    assert own == {id(parameter) for name, parameter in after.items() if not name.startswith('gates.')}
    assert {id(parameter) for parameter in run.optimizer.state} <= own


def test_the_optimisers_names_of_parameters_follow():
    run = Run(Blocks, 'gdp', 'sgd', units='blocks')
    (group,) = run.optimizer.param_groups
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    group['param_names'] = [names[id(parameter)] for parameter in group['params']]
    before = len(group['params'])
    run.until_settled().pruner.shrink()
    after = dict(run.model.named_parameters())
    assert [id(after[name]) for name in group['param_names']] == [id(parameter) for parameter in group['params']]
    assert len(group['params']) < before


def test_an_optimiser_with_other_state_is_refused_before_anything_changes():
    run = Run(Residual, 'gdp', 'adafactor').until_settled()
    before = {name: parameter for name, parameter in run.model.named_parameters()}
    with pytest.raises(
        ValueError, match=r"Adafactor keeps '\w+_var' of shape .* becomes narrower. Use an optimiser such"
    ):
        run.pruner.shrink()
    assert all(parameter is before[name] for name, parameter in run.model.named_parameters())


def test_nothing_leaves_where_nothing_is_closed():
    with pytest.raises(RuntimeError, match='no gate is closed'):
        Run(Residual, 'gdp', 'sgd').pruner.shrink()


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('stop', ['before', 'after'])
def test_a_run_resumes_from_before_and_after_the_channels_have_left(method, stop):
    whole = Run(Residual, method, 'adamw').until_settled()
    states = {}

    def save(when):
        parts = (whole.pruner, whole.model, whole.optimizer)
        states[when] = copy.deepcopy([part.state_dict() for part in parts]), whole.step_number

    save('before')
    whole.pruner.shrink()
    save('after')
    whole.go(20)
    again = Run(Residual, method, 'adamw')
    saved, again.step_number = states[stop]
    for part, state in zip((again.pruner, again.model, again.optimizer), saved, strict=True):
        part.load_state_dict(state)
    if stop == 'before':
        again.pruner.shrink()
    again.go(20)
    assert again.losses == whole.losses[-20:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_gate_decorator_learns_the_same_where_channels_leave_in_every_tock():
    whole, narrow = (Run(Residual, 'gate decorator', 'sgd', fraction=0.1, ticks=1, target_macs=0.3) for _ in range(2))
    times = 0
    while not narrow.pruner.controller.settled:
        whole.go(1), narrow.go(1)
        if narrow.pruner.leaving():
            assert narrow.pruner.phase != 'tick'
            narrow.pruner.shrink()
            times += 1
    assert times > 1
    whole.go(AFTER), narrow.go(AFTER)
    assert all(abs(a - b) < 1e-10 * abs(a) for a, b in zip(whole.losses, narrow.losses, strict=True))
    reports = [run.pruner.finish() for run in (whole, narrow)]
    for key in ('macs', 'params', 'kept', 'widths', 'removed'):
        assert reports[0][key] == reports[1][key]


def ramp(update, net=Residual, **limits):
    """A run of GDP whose channels leave whenever a tenth of the MACs can go."""
    options = {'waterline': dict(steps=2), 'gradient': dict(rate=0.2)}[update]
    return Run(net, 'gdp', 'adamw', total_steps=60, update=update, options=options, **limits)


def go_and_leave(run, steps):
    """Train on; returns how often channels left."""
    times = 0
    for _ in range(steps):
        run.go(1)
        if run.pruner.leaving() >= 0.1:
            run.pruner.shrink()
            times += 1
    return times


def test_a_run_resumes_where_some_channels_have_left_and_others_are_closed():
    run = ramp('waterline', target_macs=0.3)
    while not run.pruner.gates.shrunk:
        run.go(1)
        if run.pruner.leaving() >= 0.1:
            run.pruner.shrink()
    run.until_settled()
    assert not run.pruner.controller.kept.vector.all()  # what closed since then has not left
    parts = [run.pruner, run.model, run.optimizer]
    states = copy.deepcopy([part.state_dict() for part in parts])
    resumed = ramp('waterline', target_macs=0.3)
    for part, state in zip([resumed.pruner, resumed.model, resumed.optimizer], states, strict=True):
        part.load_state_dict(state)
    x = example(Residual.shape)
    assert relative_error(call(resumed.model.eval(), x), call(run.model.eval(), x)) == 0
    resumed.pruner.finish()


@UPDATES
@pytest.mark.parametrize('limits', [dict(floor=0.3, target_macs=0.4), dict(divisor=2, target_macs=0.3)], ids=str)
def test_channels_leave_while_the_target_falls_and_limits_are_those_of_the_whole_model(update, limits):
    run = ramp(update, **limits)
    times = go_and_leave(run, 60)
    assert times > 1 and run.pruner.controller.settled
    report = run.pruner.finish()
    assert report['macs']['after'] <= limits['target_macs'] * report['macs']['before']
    for group in run.pruner.gates.whole.free:
        kept = len(report['kept'][group.name])
        assert kept >= limits.get('floor', 0.05) * group.size
        assert kept == group.size or kept % limits.get('divisor', 1) == 0


@UPDATES
def test_a_run_resumes_between_two_times_that_channels_leave(update):
    whole = ramp(update, target_macs=0.3)
    while not whole.pruner.gates.shrunk:
        go_and_leave(whole, 1)
    saved = copy.deepcopy([part.state_dict() for part in (whole.pruner, whole.model, whole.optimizer)])
    again = ramp(update, target_macs=0.3)
    again.step_number = whole.step_number
    for part, state in zip((again.pruner, again.model, again.optimizer), saved, strict=True):
        part.load_state_dict(state)
    steps = 60 - whole.step_number
    assert go_and_leave(whole, steps) == go_and_leave(again, steps) > 0
    assert again.losses == whole.losses[-steps:]
    assert again.pruner.finish()['kept'] == whole.pruner.finish()['kept']


@pytest.mark.parametrize('units', ['blocks', 'both'])
@EITHER
def test_blocks_leave_as_well_with_all_that_is_only_in_them(method, units):
    more = {} if units == 'blocks' else dict(criterion=Random(seed=0))  # blocks and channels alike
    whole, narrow = pair(Blocks, method, 'sgd', units=units, **more)
    removed = narrow.pruner.gates.spec['removed']
    assert removed and not any(group.name.startswith(tuple(removed)) for group in narrow.pruner.gates.graph.free)
    whole.go(AFTER), narrow.go(AFTER)
    assert all(abs(a - b) < 1e-9 * abs(a) for a, b in zip(whole.losses, narrow.losses, strict=True))
    reports = [run.pruner.finish() for run in (whole, narrow)]
    for key in ('macs', 'kept', 'removed'):
        assert reports[0][key] == reports[1][key]


@EITHER
def test_a_run_goes_on_once_all_its_gates_have_left_with_their_blocks(method):
    whole, narrow = pair(Blocks, method, 'sgd', units='blocks', target_macs=0.15)
    assert not narrow.pruner.gates.graph.free
    whole.go(3), narrow.go(3)
    assert whole.losses == pytest.approx(narrow.losses, rel=1e-9)
    scalars = [run.pruner.controller.scalars() for run in (whole, narrow)]
    assert scalars[0]['gates_closed'] == scalars[1]['gates_closed'] == 1
    assert scalars[0]['macs_ratio'] == pytest.approx(scalars[1]['macs_ratio'])
    assert whole.pruner.finish()['kept'] == narrow.pruner.finish()['kept']


@pytest.mark.parametrize('units', ['channels', 'both'])
def test_nothing_leaves_while_a_block_is_emptied_and_more_may_close(units):
    run = ramp('waterline', floor=0, target_macs=0.3, net=Blocks, units=units)
    run.go(3)
    gates = run.pruner.gates
    theta = gates.theta()
    theta[gates.graph.group('stem.0').span][:4] = 0
    gates.set_theta(theta)
    assert run.pruner.leaving() > 0.1
    for name in gates.graph.blocks[0].inner:
        theta[gates.graph.group(name).span] = 0
    gates.set_theta(theta)
    assert run.pruner.controller.open().emptied and run.pruner.leaving() == 0
    run.until_settled()
    assert run.pruner.leaving() > 0.1
    run.pruner.shrink()
    gates = run.pruner.gates
    whole = gates.kept_of_whole(gates.kept())
    emptied = [block for block in whole.emptied if block not in whole.closed]
    assert emptied and not any(block.gate is not None for block in gates.graph.blocks if block in emptied)
    left = [module.constant for module in run.model.modules() if isinstance(module, Removed)]
    constants = [constant for constant in left if constant is not None]
    assert constants and not any(constant.requires_grad for constant in constants)  # no optimiser knows them
    run.pruner.finish()
    assert all(constant.requires_grad for constant in constants)


@UPDATES
def test_the_widths_of_all_times_that_channels_left_rebuild_the_model(update):
    run = ramp(update, target_macs=0.3)
    assert go_and_leave(run, 60) > 1
    report, fresh = run.pruner.finish(), Residual().double()
    apply_widths(fresh, report['widths'])
    fresh.load_state_dict(run.model.state_dict(), strict=True)
    x = example(Residual.shape)
    assert relative_error(call(fresh, x), call(run.model, x)) == 0


class Blocks(nn.Module):
    """Three residual blocks."""

    shape = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.stem, self.head = conv_bn(3, 8), nn.Conv2d(8, 4, 1)
        self.a, self.b, self.c = (nn.Sequential(conv_bn(8, 8), nn.ReLU(), conv_bn(8, 8)) for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for block in (self.a, self.b, self.c):
            x = x + block(x)
        return self.head(torch.relu(x))
