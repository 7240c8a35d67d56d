"""Channels leave stock models of both zoos in mid-run: training goes on as it would have, and the product is exact."""

import copy

import pytest
import torch
from model_checks import example, randomize_, relative_error
from torch import nn
from zoo_measure import Probe
from zoo_models import SELECTED
from zoo_steps import default_dtype, outputs, total_loss, without_drops

from mmprune_gates import GDP, GateDecorator
from mmprune_gates.engine.builders import trace
from mmprune_gates.engine.forwards import training_forward
from mmprune_gates.gates import attach_gates

pytestmark = [pytest.mark.slow, pytest.mark.models]

BOTH = dict(units='both')  # channels and whole residual blocks
RAMP = dict(total_steps=20)  # ten steps in which the target falls
UNUSED = 'backbone.layers.*.ln2'  # stock DeiT-3 has norms that it does not call

# Family -> side of its input, how it is pruned, and of which kinds it is. Channels leave once the gates have settled.
GDP_ONCE = {
    'mmseg/cgnet': (64, {}, 'depthwise'),
    'mmseg/fastscnn': (64, {}, 'depthwise'),
    'mmpretrain/shufflenet_v2': (64, {}, 'depthwise, shuffled'),
    'mmpretrain/shufflenet_v1': (64, {}, 'grouped, shuffled'),
    'mmpretrain/regnet': (64, BOTH, 'grouped, blocks removed'),
    'mmseg/pidnet': (64, {}, 'several branches and heads'),
    'mmpretrain/densenet': (64, {}, 'concatenated'),
    'mmseg/erfnet': (32, {}, 'transposed convolutions'),
    'mmseg/segformer': (64, {}, 'full-width norms, attention'),
    'mmpretrain/deit': (64, BOTH, 'full-width norms, attention, blocks removed'),
    'mmpretrain/convnext_v2': (64, BOTH, 'depthwise, full-width norms, blocks removed'),
    'mmseg/segnext': (64, {}, 'depthwise, full-width norms, random numbers in evaluation'),
    'mmpretrain/efficientnet': (64, BOTH, 'depthwise, squeeze and excitation, blocks removed'),
    'mmpretrain/mobileone': (64, BOTH, 'depthwise, parallel branches, blocks removed'),
    'mmpretrain/deit3': (64, dict(exclude=UNUSED), 'full-width norms, attention, shared layers'),
    'mmseg/ann': (32, {}, 'attention, shared layers'),
    'mmseg/ccnet': (32, {}, 'attention, shared layers'),
    'mmseg/stdc': (64, {}, 'frozen parts, several heads'),
    'mmseg/poolformer': (64, {}, 'frozen parts, full-width norms'),
    'mmseg/emanet': (32, {}, 'frozen parts, moving averages'),
}
DECORATOR_ONCE = {
    'mmpretrain/mobilenet_v3': (64, {}, 'depthwise, squeeze and excitation'),
    'mmseg/ddrnet': (64, {}, 'several branches and heads'),
    'mmpretrain/shufflenet_v2': (64, {}, 'depthwise, shuffled'),
    'mmseg/erfnet': (32, {}, 'transposed convolutions'),
}
# Channels leave whenever a tenth of the MACs can go.
GDP_IN_STEPS = {
    'mmpretrain/mobilenet_v2': (64, dict(target_macs=0.4), 'depthwise'),
    'mmpretrain/shufflenet_v1': (64, {}, 'grouped, shuffled'),
    'mmpretrain/mobilenet_v3': (64, dict(target_macs=0.3, **BOTH), 'depthwise, blocks removed'),
    'mmpretrain/convnext_v2': (64, dict(target_macs=0.3, **BOTH), 'depthwise, full-width norms, blocks removed'),
    'mmseg/pidnet': (64, dict(target_macs=0.4, divisor=4), 'several branches and heads'),
}
SHALLOW = {'mmseg/ann', 'mmseg/ccnet', 'mmseg/emanet'}  # the head is what they are there for: on ResNet-18
NEEDED = {'depthwise', 'grouped', 'full-width norms', 'blocks removed', 'shared layers', 'frozen parts'}
METHODS = {
    'gdp': (GDP, dict(total_steps=8, target_macs=0.5, options=dict(steps=2))),
    'gate decorator': (
        GateDecorator,
        dict(
            total_steps=50, target_macs=0.5, fraction=0.3, tick=1, tock=1, ticks=3, tick_lr=1e-4, tock_lr=(1e-4, 1e-3)
        ),
    ),
}
AFTER = 3  # steps once channels have left
MOST = 20  # steps until the gates have settled
TOLERANCE = 1e-8


class Family:
    """The stock model that stands for a family, with random weights and statistics, and its channel graph."""

    def __init__(self, name, side, units='channels'):
        scope, family = name.split('/')
        self.probe = Probe(scope, SELECTED[scope][family])
        self.probe.build()
        if name in SHALLOW:
            make_shallow(self.probe.config)
            self.probe.model = randomize_(Probe.fresh(self.probe.config))
        self.shape = self.probe.record['shape'] = (3, side, side)
        self.graph = trace(self.probe.model, self.shape, units)

    def loss(self, model, number):
        """The stock loss of a mini-batch with that number."""
        torch.manual_seed(number)
        return total_loss(model, self.probe.config, example(self.shape, seed=number))

    def rebuilt_error(self, slim, report):
        """How far the model that is built from the stock config and a report is from the slim one."""
        self.probe.slimmed, self.probe.spec = slim, {key: report[key] for key in ('widths', 'removed')}
        self.probe.expected = outputs(slim, self.probe.inputs())
        self.probe.rebuild()
        return self.probe.record['rebuilt_error']


def make_shallow(config):
    """Put ResNet-18, whose stages are a quarter as wide, in the place of ResNet-50."""
    config.backbone.depth = 18
    for head in (config.decode_head, config.auxiliary_head):
        wide = head.in_channels
        head.in_channels = wide // 4 if isinstance(wide, int) else [width // 4 for width in wide]


class Run:
    """It trains in a plain loop, in float64, by its own losses on random labels."""

    def __init__(self, family, method, **options):
        kind, defaults = METHODS[method]
        self.family, self.losses = family, []
        self.model = copy.deepcopy(family.probe.model).double()
        attach_gates(self.model, family.graph, kind.gate)
        without_drops(self.model.train())
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
        forward = dict(train_forward=training_forward)
        self.pruner = kind(self.model, example(family.shape), self.optimizer, **{**forward, **defaults, **options})

    def go(self, steps):
        for _ in range(steps):
            loss = self.family.loss(self.model, len(self.losses))
            loss.backward()
            own = [parameter for group in self.optimizer.param_groups for parameter in group['params']]
            nn.utils.clip_grad_norm_(own, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.pruner.step()
            self.losses.append(float(loss))

    def until_settled(self):
        while not self.pruner.controller.settled:
            assert len(self.losses) < MOST
            self.go(1)


def split(options):
    """What is traced, and the other settings."""
    settings = dict(options)
    return settings.pop('units', 'channels'), settings


def families(table):
    return pytest.mark.parametrize(('name', 'side', 'options', 'kinds'), [(k, *row) for k, row in table.items()])


def assert_goes_on_and_ends_as_the_whole_one(name, side, options, kinds, method):
    units, settings = split(options)
    family = Family(name, side, units)
    with default_dtype(torch.double):
        whole, narrow = (Run(family, method, **settings) for _ in range(2))
        whole.until_settled(), narrow.until_settled()
        left = narrow.pruner.shrink()
        assert left['macs']['after'] < left['macs']['before']
        whole.go(AFTER), narrow.go(AFTER)
        assert all(abs(a - b) <= TOLERANCE * abs(a) for a, b in zip(whole.losses, narrow.losses, strict=True))
        reports = [run.pruner.finish() for run in (whole, narrow)]
        for key in ('macs', 'params', 'kept', 'widths', 'removed'):
            assert reports[0][key] == reports[1][key], key
        results = [outputs(run.model, example(family.shape)) for run in (narrow, whole)]
        assert relative_error(*results) < TOLERANCE
        assert family.rebuilt_error(narrow.model, reports[1]) == 0
    assert bool(reports[1]['removed']) == ('blocks removed' in kinds)
    frozen = [parameter for parameter in family.probe.model.parameters() if not parameter.requires_grad]
    assert bool(frozen) == ('frozen parts' in kinds)


@families(GDP_ONCE)
def test_gdp(name, side, options, kinds):
    assert_goes_on_and_ends_as_the_whole_one(name, side, options, kinds, 'gdp')


@families(DECORATOR_ONCE)
def test_gate_decorator(name, side, options, kinds):
    assert_goes_on_and_ends_as_the_whole_one(name, side, options, kinds, 'gate decorator')


@families(GDP_IN_STEPS)
def test_gdp_in_steps(name, side, options, kinds):
    units, settings = split(options)
    family, times = Family(name, side, units), 0
    with default_dtype(torch.double):
        run = Run(family, 'gdp', **RAMP, **settings)
        while not run.pruner.controller.settled:
            run.go(1)
            if run.pruner.leaving() >= 0.1:
                run.pruner.shrink()
                times += 1
        run.go(AFTER)
        report = run.pruner.finish()
        assert family.rebuilt_error(run.model, report) == 0
    assert times > 1
    assert report['macs']['after'] <= run.pruner.settings.target_macs * report['macs']['before']
    assert bool(report['removed']) == ('blocks removed' in kinds)


def test_every_kind_is_there():
    known = {kind for _, _, kinds in GDP_ONCE.values() for kind in kinds.split(', ')}
    assert NEEDED <= known and len(GDP_ONCE) >= 20
