"""The methods in a plain loop, without OpenMMLab: equal to the hooks' runs, resumed, finished, refused where wrong."""

import copy

import pytest
import torch
import torchvision
from helpers import example, randomize_, removal_errors
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from toy_nets import Residual, conv, conv_bn

from mmprune_gates import GDP, GateDecorator, slim_model, trace_channels
from mmprune_gates.budget import MACs, Magnitude, NormScale, Parameters, Random
from mmprune_gates.budget.criteria import MeanGradient
from mmprune_gates.channels.narrowed import narrowed
from mmprune_gates.gates import DecoratorGate, PolarizationGate, attach_gates

STEPS = 16
SETTINGS = {
    GDP: dict(target_macs=0.4, options=dict(steps=2)),
    GateDecorator: dict(target_macs=0.75, tick=2, tock=2, ticks=2, fraction=0.1),
}
HOOK = {GDP: 'PolarizationHook', GateDecorator: 'GateDecoratorHook'}
BOTH = pytest.mark.parametrize('method', [GDP, GateDecorator])


class DictOutputs(nn.Module):
    """A residual net whose outputs are a dict."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.head = conv_bn(3, 8), conv_bn(8, 12), conv(12, 8), conv(8, 4)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.b(self.a(x)))
        return {'logits': self.head(x).mean((2, 3))}


def logits(outputs):
    return outputs['logits'] if isinstance(outputs, dict) else outputs


def models():
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18(num_classes=4)
    narrow = torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4)
    del resnet
    return {'torchvision': randomize_(narrow), 'dict outputs': randomize_(DictOutputs())}


def batch(number):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(4, 3, 32, 32, generator=generator), torch.randint(4, (4,), generator=generator)


def loss_of(model, x, y):
    return nn.functional.cross_entropy(logits(model(x)), y)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def pruner_on(method, model, optimizer, **more):
    settings = {**SETTINGS[method], **more}
    return method(model, torch.zeros(1, 3, 32, 32), optimizer, total_steps=STEPS, **settings)


def train(model, optimizer, pruner, steps=range(STEPS)):
    """The loop of README."""
    model.train()
    for step in steps:
        loss_of(model, *batch(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()


class Wrapped(BaseModel):
    """A plain model as mmengine's runner takes it, with gates."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, y, mode='loss'):
        return {'loss': loss_of(self.model, x, y)}


def hooked(method, model, folder):
    """Kept channels of a runner's run with the method's hook, on the same data."""
    gate = {GDP: PolarizationGate, GateDecorator: DecoratorGate}[method]
    wrapped = Wrapped(model)
    graph = trace_channels(wrapped, torch.zeros(1, 3, 32, 32), forward=lambda m, x: m.model(x))
    attach_gates(wrapped, graph, gate)
    settings = dict(SETTINGS[method])
    settings |= settings.pop('options', {})
    if method is GateDecorator:
        settings['by_epoch'] = False
    samples = [sample for step in range(STEPS) for sample in zip(*batch(step), strict=True)]
    runner = Runner(
        wrapped,
        str(folder),
        train_dataloader=torch.utils.data.DataLoader(samples, batch_size=4),
        train_cfg=dict(by_epoch=False, max_iters=STEPS, val_interval=10**6),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        custom_hooks=[dict(type=f'mmprune_gates.{HOOK[method]}', shrink=False, **settings)],
        experiment_name=folder.name,
        default_scope='mmengine',
    )
    runner.train()
    return next(hook.pruner.controller.kept for hook in runner.hooks if hasattr(hook, 'pruner'))


@BOTH
@pytest.mark.parametrize('name', ['torchvision', 'dict outputs'])
def test_a_plain_loop_keeps_what_a_hook_keeps_and_ends_in_a_slim_model(method, name, tmp_path):
    model = models()[name]
    expected = hooked(method, copy.deepcopy(model), tmp_path)
    optimizer = sgd(model)
    pruner = pruner_on(method, model, optimizer)
    train(model, optimizer, pruner)
    assert pruner.controller.kept == expected != pruner.gates.graph.kept()
    gated = copy.deepcopy(model).eval()
    report = pruner.finish()
    assert report['parity_error'] < 1e-6 and report['macs']['after'] < report['macs']['before']
    assert report['params']['after'] == sum(parameter.numel() for parameter in model.parameters())
    assert not hasattr(model, 'gates') and report['widths']
    x = batch(99)[0]
    with torch.no_grad():
        assert torch.allclose(logits(model.eval()(x)), logits(gated(x)), atol=1e-4)


@BOTH
def test_a_resumed_loop_equals_an_uninterrupted_one(method):
    def fresh():
        model = models()['dict outputs']
        optimizer = sgd(model)
        return model, optimizer, pruner_on(method, model, optimizer)

    whole, first, second = fresh(), fresh(), fresh()
    train(*whole)
    train(*first, steps=range(5))
    for before, after in zip(first, second, strict=True):
        after.load_state_dict(before.state_dict())
    train(*second, steps=range(5, STEPS))
    assert whole[2].controller.kept == second[2].controller.kept
    for a, b in zip(whole[0].state_dict().values(), second[0].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_papers_update_in_a_plain_loop():
    model = models()['dict outputs']
    optimizer = sgd(model)
    pruner = pruner_on(GDP, model, optimizer, update='gradient', options={})
    train(model, optimizer, pruner)
    assert pruner.finish()['macs']['after'] <= 0.4 * MACs().bind(pruner.gates.graph).graph.macs()


@BOTH
def test_a_loss_scale_does_not_matter(method):
    kept = []
    for scale in (1.0, 1024.0):
        model = models()['dict outputs']
        optimizer = sgd(model)
        pruner = pruner_on(method, model, optimizer)
        pruner.loss_scale = scale
        for step in range(STEPS):
            (loss_of(model.train(), *batch(step)) * scale).backward()
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad /= scale
            optimizer.step()
            optimizer.zero_grad()
            pruner.step()
        kept.append(pruner.controller.kept)
    assert kept[0] == kept[1]


@pytest.mark.parametrize('criterion', [Magnitude(), NormScale(), Random(seed=3)])
@BOTH
def test_other_criteria_choose_other_channels(method, criterion):
    kept = []
    for own in (None, criterion):
        model = models()['dict outputs']
        optimizer = sgd(model)
        pruner = pruner_on(method, model, optimizer, criterion=own)
        train(model, optimizer, pruner)
        kept.append(pruner.controller.kept)
    assert kept[0] != kept[1]


@BOTH
def test_a_target_in_parameters(method):
    model = models()['dict outputs']
    before = sum(parameter.numel() for parameter in model.parameters())
    optimizer = sgd(model)
    pruner = pruner_on(method, model, optimizer, cost=Parameters(), target_macs=0.6)
    assert pruner.controller.candidates.total == before
    train(model, optimizer, pruner)
    report = pruner.finish()
    assert report['params']['before'] == before
    assert 0.45 * before < report['params']['after'] <= 0.6 * before
    assert set(pruner.controller.scalars()) >= {'macs_ratio', 'cost_ratio'}


def test_finishing_too_early_changes_nothing():
    model = models()['dict outputs']
    optimizer = sgd(model)
    pruner = pruner_on(GDP, model, optimizer)
    train(model, optimizer, pruner, steps=range(2))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match='GDP: the gates have not settled'):
        pruner.finish()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_model_without_gates_needs_inputs():
    model = models()['dict outputs']
    with pytest.raises(ValueError, match='GDP: give example_inputs, or attach gates'):
        GDP(model, None, sgd(model), total_steps=4, target_macs=0.5)


def test_finishing_needs_inputs():
    model = randomize_(Residual())
    attach_gates(model, trace_channels(model, example((3, 8, 8), dtype=torch.float32)), PolarizationGate)
    with pytest.raises(ValueError, match='give example_inputs'):
        GDP(model, None, sgd(model), total_steps=4, target_macs=0.5).finish()


def test_what_was_not_given_is_asked_for():
    model = models()['dict outputs']
    pruner = GateDecorator(model, torch.zeros(1, 3, 32, 32), sgd(model), target_macs=0.5)
    with pytest.raises(TypeError, match='GateDecorator: give total_steps, or tell each step what remains'):
        pruner.step()
    with pytest.raises(ValueError, match='Parameters needs the model'):
        Parameters().bind(pruner.gates.graph)
    with pytest.raises(ValueError, match='NormScale needs the model'):
        NormScale().bind(pruner.gates).scores()
    with pytest.raises(NotImplementedError, match='PolarizationGate has no Taylor importance'):
        PolarizationGate(4).importance(torch.ones(4))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(update='fast'), "update must be one of \\['gradient', 'waterline'\\], got 'fast'"),
        (dict(options=dict(speed=1)), r"no argument 'speed'; it takes \['exponent'"),
        (dict(update='gradient', options={}, criterion=Random()), "update='gradient' ranks by the gates themselves"),
        (dict(target_macs=0), 'target_macs'),
    ],
)
def test_settings_that_cannot_be(settings, message):
    model = models()['dict outputs']
    with pytest.raises(ValueError, match=message):
        pruner_on(GDP, model, sgd(model), **{**SETTINGS[GDP], **settings})
    assert not hasattr(model, 'gates')


def test_a_misspelt_argument_is_told_from_those_of_the_trace():
    model = models()['dict outputs']
    with pytest.raises(
        ValueError, match=r"no argument 'unit' \(did you mean 'units'\?\); it takes \['attention', 'begin'"
    ):
        pruner_on(GDP, model, sgd(model), **SETTINGS[GDP], unit='both')
    assert pruner_on(GDP, model, sgd(model), **SETTINGS[GDP], units='both').gates.graph.blocks


@BOTH
def test_an_optimiser_or_a_model_that_cannot_be_is_refused_before_gates_are_attached(method):
    model = models()['dict outputs']
    with pytest.raises(ValueError, match=r'optimizer must be a torch.optim.Optimizer, got None'):
        pruner_on(method, model, None, **SETTINGS[method])
    with pytest.raises(ValueError, match=r'in a OptimizedModule: give the pruner the \w+ itself'):
        pruner_on(method, torch.compile(model), sgd(model), **SETTINGS[method])
    assert not hasattr(model, 'gates')


def test_rates_in_proportion_to_nothing_are_refused():
    model = models()['dict outputs']
    with pytest.raises(ValueError, match='the learning rate of SGD is 0; the rates of the phases'):
        pruner_on(GateDecorator, model, torch.optim.SGD(model.parameters(), lr=0), **SETTINGS[GateDecorator])
    assert not hasattr(model, 'gates')
    pruner_on(GateDecorator, model, sgd(model), **SETTINGS[GateDecorator])


def test_a_state_of_another_method_is_refused_before_anything_changes():
    states = {}
    for update in ('waterline', 'gradient'):
        model = models()['dict outputs']
        pruner = pruner_on(GDP, model, sgd(model), **{**SETTINGS[GDP], 'options': {}}, update=update)
        states[update] = pruner.state_dict()
    with pytest.raises(ValueError, match="one of GDP with update='waterline', not of GDP with update='gradient'"):
        pruner.load_state_dict({**states['waterline'], 'step': 9})
    assert pruner.done == 0


def test_gates_of_a_copy_have_no_owner():
    model = models()['dict outputs']
    pruner = pruner_on(GDP, model, sgd(model), **SETTINGS[GDP])
    copied = copy.deepcopy(model)
    assert pruner.gates.owner == 'GDP' and copied.gates.owner is None
    pruner_on(GDP, copied, sgd(copied), **SETTINGS[GDP])


def test_gates_of_gdp_have_no_part_in_the_gradient_norm():
    model = models()['dict outputs']
    pruner = pruner_on(GDP, model, sgd(model))
    loss_of(model, *batch(0)).backward()
    assert all((gate.theta.grad == 0).all() for gate in pruner.gates.by_group.values())
    pruner.step()
    assert pruner.controller.criterion.scores().any()


@BOTH
def test_a_model_that_is_refused_has_no_gates(method):
    model = randomize_(Residual())
    model.aux = nn.Conv2d(3, 4, 1)
    keys, inputs = model.state_dict().keys(), (example((3, 8, 8), dtype=torch.float32),)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match='do not reach aux'):
        method(model, inputs, optimizer, total_steps=STEPS, **SETTINGS[method])
    assert model.state_dict().keys() == keys
    method(model, inputs, optimizer, total_steps=STEPS, exclude='aux', **SETTINGS[method])


def test_random_scores_stay_as_channels_leave():
    model = randomize_(Residual()).eval()
    graph = trace_channels(model, (example((3, 8, 8), dtype=torch.float32),))
    gates = attach_gates(model, graph, PolarizationGate)
    criterion = Random(seed=3).bind(gates, model)
    before = criterion.scores()
    stays = torch.arange(graph.num_channels) % 3 != 0
    kept = graph.keeping(stays | ~torch.isin(torch.arange(graph.num_channels), torch.arange(graph.free[0].size)))
    criterion.narrow(gates, kept)
    assert torch.equal(criterion.scores(), before[kept.staying])
    criterion.forget()  # as each Tick begins
    assert torch.equal(criterion.scores(), before[kept.staying])
    again = Random(seed=4).bind(gates, model)
    again.load_state_dict(criterion.state_dict())
    assert torch.equal(again.scores(), criterion.scores())


@BOTH
def test_a_pruner_that_cannot_begin_gives_the_model_back(method):
    model = models()['dict outputs']
    names = set(model.state_dict())
    with pytest.raises(ValueError, match='cannot be met'):
        pruner_on(method, model, sgd(model), target_macs=0.001)
    assert set(model.state_dict()) == names
    pruner_on(method, model, sgd(model))


def test_the_rates_of_gate_decorator_are_relative_to_the_largest_where_no_group_has_the_optimisers_own():
    model = models()['dict outputs']
    stem, others = (
        list(model.stem.parameters()),
        [*model.a.parameters(), *model.b.parameters(), *model.head.parameters()],
    )
    for groups, rates in (
        ([{'params': stem, 'lr': 0.01}, {'params': others, 'lr': 0.1}], [0.1, 1.0]),
        ([{'params': stem}, {'params': others, 'lr': 0.1}], [1.0, 100.0]),  # the own one is 1e-3
    ):
        model = copy.deepcopy(models()['dict outputs'])
        parameters = dict(zip([*stem, *others], [*model.parameters()], strict=True))
        own = [{**group, 'params': [parameters[one] for one in group['params']]} for group in groups]
        pruner = pruner_on(GateDecorator, model, torch.optim.SGD(own, momentum=0.9))
        assert pruner.multipliers == pytest.approx([*rates, 1.0])


def test_all_that_was_trained_can_be_trained_after_gate_decorator():
    model = models()['dict outputs']
    model.head.bias.requires_grad_(False)
    pruner = pruner_on(GateDecorator, model, sgd(model), target_macs=1.0)
    train(model, pruner.optimizer, pruner)
    pruner.finish()
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ['head.bias']


class FreezesItself(DictOutputs):
    """Its stem is frozen when it enters training mode, as stages of stock backbones are."""

    def train(self, mode=True):
        super().train(mode)
        if mode:
            self.stem.requires_grad_(False)
        return self


def test_what_a_model_freezes_itself_stays_frozen_in_gate_decorator():
    model = randomize_(FreezesItself()).eval()
    pruner = pruner_on(GateDecorator, model, sgd(model))
    assert not model.training and not any(name.startswith('stem') for name in pruner.trained)


def test_modules_keep_their_modes_when_gate_decorator_begins():
    model = models()['dict outputs'].train()
    model.a.eval()
    modes = [module.training for module in model.modules()]
    pruner_on(GateDecorator, model, sgd(model))
    assert [module.training for name, module in model.named_modules() if not name.startswith('gates')] == modes


def test_criteria_that_do_not_belong_to_a_method_are_refused():
    model = models()['dict outputs']
    with pytest.raises(ValueError, match='MeanGradient is for gates that all modules of a group share'):
        pruner_on(GateDecorator, model, sgd(model), criterion=MeanGradient())
    with pytest.raises(ValueError, match='momentum is that of the default criterion'):
        pruner_on(GDP, model, sgd(model), criterion=Random(), options=dict(momentum=0.5))


def test_a_grouped_convolution_that_reads_one_channel_in_each_group_shrinks_again():
    torch.manual_seed(0)
    grouped = nn.Conv2d(8, 16, 3, padding=1, groups=4)
    model = randomize_(nn.Sequential(conv_bn(3, 8), grouped, nn.ReLU(), conv(16, 4)).double())
    x = example((3, 8, 8))
    graph = trace_channels(model.eval(), x)
    half = {'0.0': torch.tensor([True, False])}  # one channel of each group
    slim_model(model, graph, half)
    assert (model[1].in_channels, model[1].groups) == (4, 4)
    left = narrowed(graph, graph.kept(half), ())
    error, *_ = removal_errors(model, left, x, {'1': torch.arange(left.group('1').size) % 2 == 0})
    assert error < 1e-12


@BOTH
def test_scales_of_norms_count_whole_with_either_method(method):
    model = models()['dict outputs']
    expected = [
        module.weight.detach().abs().clone() for module in model.modules() if isinstance(module, nn.BatchNorm2d)
    ]
    pruner = pruner_on(method, model, sgd(model), criterion=NormScale())
    scores = pruner.controller.criterion.scores()
    graph = pruner.gates.graph
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    for name, own in zip(norms, expected, strict=True):
        index = graph.slots[f'{name}.weight'][0]
        assert torch.allclose(scores[index].float(), own, rtol=1e-5)
