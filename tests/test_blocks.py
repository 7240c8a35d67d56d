"""Residual blocks: found where cutting off is exact, costed, gated, chosen, removed, rebuilt."""

import copy
import math

import pytest
import torch
from helpers import call, example, random_kept, randomize_, relative_error, removal_errors
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from toy_nets import conv, conv_bn

from mmprune_gates import masked_copy, slim_model, trace_channels
from mmprune_gates.budget import Candidates, Limits
from mmprune_gates.engine.builders import trace
from mmprune_gates.engine.forwards import training_forward
from mmprune_gates.engine.model_config import without_pretrained
from mmprune_gates.gates import DecoratorGate, PolarizationGate, attach_gates, fold_gates
from mmprune_gates.slimming import apply_widths, remove_modules


class Net(nn.Module):
    """A stem, one block with a given forward, a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.head = conv_bn(3, 6), conv_bn(6, 5), conv_bn(5, 6, act=nn.Identity), conv(6, 4)

    def forward(self, x):
        return self.head(torch.relu(self.block(self.stem(x))))

    def block(self, x):
        return x + self.b(self.a(x))


class Reversed(Net):
    """The branch is the first operand, in place."""

    def block(self, x):
        y = self.b(self.a(x))
        y += x
        return y


class Scaled(Net):
    """A factor per channel and dropout behind the branch."""

    def __init__(self):
        super().__init__()
        self.gamma, self.drop = nn.Parameter(torch.rand(6, 1, 1)), nn.Dropout(0.5)

    def block(self, x):
        return x + self.drop(self.b(self.a(x)) * self.gamma)


class Layered(Scaled):
    """The factor per channel is reached through an op, as in PoolFormer."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(6))

    def block(self, x):
        return x + self.b(self.a(x)) * self.gamma.unsqueeze(-1).unsqueeze(-1)


class Nested(Net):
    """A block inside a block."""

    def __init__(self):
        super().__init__()
        self.c, self.d = conv_bn(5, 5), conv_bn(5, 5, act=nn.Identity)

    def block(self, x):
        y = self.a(x)
        return x + self.b(y + self.d(self.c(y)))


class Permuted(Net):
    """Linear layers on the last dimension, as in ConvNeXt, and a factor per channel behind them."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.LayerNorm(6)
        self.b, self.c, self.gamma = nn.Linear(6, 5), nn.Linear(5, 6), nn.Parameter(torch.rand(6))

    def block(self, x):
        y = self.norm(self.a(x).permute(0, 2, 3, 1))
        return x + (self.c(torch.relu(self.b(y))) * self.gamma).permute(0, 3, 1, 2)


class ReadElsewhere(Net):
    """What the branch computes is also an output."""

    def forward(self, x):
        x = self.stem(x)
        y = self.b(self.a(x))
        return self.head(torch.relu(x + y)), y.mean((2, 3))


class TwoEntries(Net):
    """The branch also reads the image."""

    def __init__(self):
        super().__init__()
        self.other = conv_bn(3, 5)

    def forward(self, image):
        x = self.stem(image)
        return self.head(torch.relu(x + self.b(self.a(x) + self.other(image))))


class OtherWidth(Net):
    """The skip is a projection: the branch begins with fewer channels than it ends with."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.skip = conv_bn(3, 3), conv_bn(3, 5), conv_bn(3, 6)

    def block(self, x):
        return self.skip(x) + self.b(self.a(x))


class Shifted(Net):
    """A sigmoid ends the branch: no gate before it makes it zero."""

    def block(self, x):
        return x + torch.sigmoid(self.b(self.a(x)))


class Reshaped(Net):
    """Code between the modules says how wide they are."""

    def block(self, x):
        return x + self.b(self.a(x).reshape(-1, 5, 8, 8))


FOUND = {'Net': Net, 'Reversed': Reversed, 'Scaled': Scaled, 'Layered': Layered, 'Nested': Nested, 'Permuted': Permuted}
NOT = {net.__name__: net for net in (ReadElsewhere, TwoEntries, OtherWidth, Shifted, Reshaped)}
found = pytest.mark.parametrize('net', FOUND.values(), ids=FOUND)


def traced(net, units='both'):
    torch.manual_seed(0)
    model = randomize_(net().double()).eval()
    inputs = example((3, 8, 8))
    return model, trace_channels(model, (inputs,), train_forward=lambda model, x: model(x), units=units), inputs


def blocks_of(graph):
    return list(graph.gated_blocks)


@found
def test_cutting_off_is_exact(net):
    model, graph, inputs = traced(net)
    for block in blocks_of(graph):
        kept = {**random_kept(graph), **{b.name: torch.ones(1) for b in blocks_of(graph)}, block.name: torch.zeros(1)}
        kept = {name: mask.bool() for name, mask in kept.items()}
        error, distance, slim, spec = removal_errors(model, graph, inputs, kept)
        assert error < 1e-12 and distance > 1e-3
        assert spec['removed'] == dict.fromkeys(block.modules)
        assert not [name for name in slim.state_dict() if block.holds(name)]
        again = trace_channels(slim, (inputs,))
        assert again.macs() == graph.macs(kept)


@pytest.mark.parametrize('net', NOT.values(), ids=NOT)
def test_where_it_would_not_be_exact_there_is_no_block(net):
    assert not blocks_of(traced(net)[1])


def test_blocks_by_hand():
    _, graph, _ = traced(Nested)
    inner, outer = blocks_of(graph)
    assert inner.modules == ('c', 'd') and inner.sites == {'d.1'}
    assert outer.modules == ('a', 'c', 'd', 'b') and outer.sites == {'b.1'}
    positions = 64 * 9
    assert graph.macs() - graph.macs({inner.name: torch.zeros(1)}) == positions * (5 * 5 + 5 * 5)
    assert graph.macs() - graph.macs({outer.name: torch.zeros(1)}) == positions * (30 + 25 + 25 + 30)
    assert int(graph.filters[inner.gate]) == 10 and int(graph.filters[outer.gate]) == 5 + 5 + 5 + 6


@found
@pytest.mark.parametrize('gate', [PolarizationGate, DecoratorGate])
def test_gates_on_blocks(net, gate):
    model, graph, inputs = traced(net)
    plain = call(model, inputs)
    gates = attach_gates(model, graph, gate)
    assert relative_error(call(model, inputs), plain) == 0
    first = blocks_of(graph)[0]
    kept = {first.name: torch.zeros(1, dtype=torch.bool)}
    expected = call(masked_copy(copy.deepcopy(traced(net)[0]), graph, kept), inputs)
    gates.close(graph.kept(kept))
    assert relative_error(call(model, inputs), expected) < 1e-12
    slim_model(model, *fold_gates(model))
    assert relative_error(call(model, inputs), expected) < 1e-12


@pytest.mark.parametrize('units', ['channels', 'blocks', 'both'])
def test_what_may_go_is_configurable(units):
    _, graph, _ = traced(Net, units)
    free = {group.name: group.is_block for group in graph.free}
    assert any(free.values()) is (units != 'channels')
    assert (not all(free.values())) is (units != 'blocks')


def test_other_units_are_refused():
    with pytest.raises(ValueError, match=r"units must be one of \['blocks', 'both', 'channels'\], got 'rows'"):
        traced(Net, 'rows')


def test_a_block_may_close_whatever_the_floor_and_stays_if_excluded():
    _, graph, _ = traced(Net, 'blocks')
    (block,) = blocks_of(graph)
    candidates = Candidates.of(graph, Limits(floor=0.9, divisor=8))
    score = torch.rand(graph.num_channels)
    assert not candidates.select(score, 0.6).vector[block.gate]
    assert not Candidates.of(graph, Limits(exclude=('a.0',))).groups


def test_channels_of_a_closed_block_do_not_count_again():
    _, graph, _ = traced(Net)
    (block,) = blocks_of(graph)
    score = torch.ones(graph.num_channels)
    score[block.gate] = -1
    score[graph.group('a.0').span] = 0
    candidates = Candidates.of(graph, Limits())
    kept = candidates.close(score, graph.kept(), 1, 0.0)
    assert kept.closed == (block,) and int((~kept.vector).sum()) == 1
    kept = candidates.close(score, kept, 1, 0.0)
    assert kept['a.0'].all() and int((~kept.vector).sum()) == 2


def test_removed_modules_that_are_not_there():
    with pytest.raises(ValueError, match="removed names the module 'nowhere'"):
        remove_modules(Net(), {'nowhere': None})


MODELS_WITH_BLOCKS = {
    'resnet50': ('mmpretrain::resnet/resnet50_8xb32_in1k.py', 64, 12),
    'mobilenet_v2': ('mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py', 64, 10),
    'efficientnet': ('mmpretrain::efficientnet/efficientnet-b0_8xb32_in1k.py', 64, 9),
    'deeplabv3plus': ('mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-20k_voc12aug-512x512.py', 64, 12),
    'convnext_v2': ('mmpretrain::convnext_v2/convnext-v2-atto_32xb32_in1k.py', 64, 12),
}
NEVER_EMPTY = {'convnext_v2'}  # its depthwise convolutions do not depend on what is inside


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.parametrize('name', MODELS_WITH_BLOCKS)
def test_stock_models_lose_blocks_and_stay_exact(name):
    path, size, count = MODELS_WITH_BLOCKS[name]
    config = get_config(path)
    init_default_scope(config.default_scope)
    own = without_pretrained(config.model.to_dict())
    model = revert_sync_batchnorm(MODELS.build(copy.deepcopy(own)))
    graph = trace(model, (3, size, size), 'both')
    assert len(blocks_of(graph)) == count
    randomize_(model.double())
    kept = random_kept(graph)
    kept |= {group.name: torch.tensor([i % 3 > 0]) for i, group in enumerate(blocks_of(graph))}
    lasts = [block.last for block in graph.blocks if block.last]
    assert len(lasts) == (0 if name in NEVER_EMPTY else count)
    kept |= {last: torch.zeros(graph.group(last).size) for last in lasts[1::3]}
    inputs = example((3, size, size))
    error, distance, slim, spec = removal_errors(model, graph, inputs, kept, training_forward)
    assert error < 1e-12 and distance > 1e-3
    assert len([shape for shape in spec['removed'].values() if shape]) == len(lasts[1::3])
    rebuilt = {**own, 'type': 'mmprune_gates.SlimModel', 'architecture': own['type'], **spec}
    rebuilt = revert_sync_batchnorm(MODELS.build(rebuilt)).double()
    rebuilt.load_state_dict(slim.state_dict())
    expected = call(slim, inputs, training_forward)
    assert relative_error(call(rebuilt, inputs, training_forward), expected) == 0


class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self):
        super().__init__()
        self.squeeze, self.excite = conv(5, 2, 1), conv(2, 5, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))


class Squeezed(Net):
    """Three layers, of which the last reads what squeeze and excitation scales."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv_bn(6, 4), conv_bn(4, 5, act=nn.SiLU), conv_bn(5, 6, act=nn.Identity)
        self.se = Squeeze()

    def block(self, x):
        return x + self.c(self.se(self.b(self.a(x))))


class Several(Net):
    """The last layer reads two groups: neither alone makes it constant."""

    def __init__(self):
        super().__init__()
        self.a, self.c, self.b = conv_bn(6, 5), conv_bn(6, 4), conv_bn(9, 6, act=nn.Identity)

    def block(self, x):
        return x + self.b(torch.cat([self.a(x), self.c(x)], 1))


class Weighed(Net):
    """The end of the branch also depends on its entry."""

    def block(self, x):
        return x + self.b(self.a(x)) * torch.sigmoid(x)


# net -> last group, and all that go with it
EMPTY = {
    Net: ('a.0', {'a.0'}),
    Reversed: ('a.0', {'a.0'}),
    Scaled: ('a.0', {'a.0'}),
    Layered: ('a.0', {'a.0'}),
    Squeezed: ('b.0', {'a.0', 'b.0', 'se.squeeze'}),
}
emptied = pytest.mark.parametrize('net', EMPTY, ids=[net.__name__ for net in EMPTY])


@emptied
@pytest.mark.parametrize('units', ['channels', 'both'])
def test_an_emptied_block_leaves_its_constant(net, units):
    model, graph, inputs = traced(net, units)
    (block,) = graph.blocks
    assert (block.last, set(block.inner)) == EMPTY[net]
    assert graph.lasts == {block.last}
    kept = {name: torch.ones_like(mask) for name, mask in random_kept(graph).items()}
    kept |= {'stem.0': torch.arange(6) != 2, block.last: torch.zeros(graph.group(block.last).size)}
    error, distance, slim, spec = removal_errors(model, graph, inputs, kept)
    assert error < 1e-12 and distance > 1e-3
    assert set(spec['removed']) == set(block.modules)
    (shape,) = (shape for shape in spec['removed'].values() if shape)
    assert math.prod(shape) == 5
    assert trace_channels(slim, (inputs,)).macs() == graph.macs(kept) == 64 * 9 * (3 * 5 + 5 * 4)
    fresh = copy.deepcopy(model)
    remove_modules(fresh, spec['removed'])
    apply_widths(fresh, spec['widths'])
    fresh.load_state_dict(slim.state_dict(), strict=True)
    assert relative_error(call(fresh, inputs), call(slim, inputs)) == 0
    loss = fresh.train()(inputs).sum()
    loss.backward()
    unused = {'gamma'} if net is Scaled else set()  # it stands before a module that is gone
    assert {name for name, parameter in fresh.named_parameters() if parameter.grad is None} == unused


@emptied
@pytest.mark.parametrize('gate', [PolarizationGate, DecoratorGate])
def test_gates_that_are_all_closed_empty_it(net, gate):
    model, graph, inputs = traced(net, 'channels')
    model = copy.deepcopy(model)
    gates = attach_gates(model, graph, gate)
    for name in graph.blocks[0].inner:
        gates[name].theta.data.zero_()
    expected = call(model, inputs)
    spec = slim_model(model, *fold_gates(model))
    assert spec['removed'] and relative_error(call(model, inputs), expected) < 1e-12


@pytest.mark.parametrize('net', [Several, Weighed, Nested, Permuted])
def test_what_is_not_constant_cannot_be_emptied(net):
    _, graph, _ = traced(net)
    for group in (group for group in graph.free_channels if group.name not in graph.lasts):
        with pytest.raises(ValueError, match='keep at least one'):
            graph.kept({group.name: torch.zeros(group.size)})
    if net is not Nested:
        assert not any(block.last for block in graph.blocks)


def test_blocks_within_blocks_are_emptied_together():
    model, graph, inputs = traced(Nested)
    inner, outer = graph.blocks
    assert (inner.last, outer.last) == ('c.0', 'a.0')
    for lasts in (['c.0'], ['a.0'], ['c.0', 'a.0']):
        kept = random_kept(graph) | {name: torch.zeros(graph.group(name).size) for name in lasts}
        kept |= {group.name: torch.ones(1) for group in blocks_of(graph)}
        error, distance, slim, spec = removal_errors(model, graph, inputs, kept)
        assert error < 1e-12 and distance > 1e-3
        assert set(spec['removed']) == set((outer if 'a.0' in lasts else inner).modules)
        assert trace_channels(slim, (inputs,)).macs() == graph.macs(kept)


def test_selection_empties_a_block_only_without_a_floor():
    _, graph, _ = traced(Squeezed, 'channels')
    score = torch.ones(graph.num_channels)
    for name in ('a.0', 'b.0'):
        score[graph.group(name).span] = torch.linspace(0.1, 0.5, graph.group(name).size)
    least = Candidates.of(graph, Limits(floor=0.05)).select(score, 0.6)
    assert all(bool(least[name].any()) for name in graph.blocks[0].inner)
    candidates = Candidates.of(graph, Limits(floor=0))
    empty = candidates.select(score, 0.4)
    assert not any(bool(empty[name].any()) for name in graph.blocks[0].inner)
    assert candidates.share(empty) == graph.macs(empty) / graph.macs() <= 0.4
    filled = candidates.fill(empty, score, 0.99)
    assert not any(bool(filled[name].any()) for name in graph.blocks[0].inner)
    stepwise = candidates.close(score, graph.kept(), 100, 0.4)
    assert not any(stepwise.vector[group.span].any() for group in stepwise.idle)


def test_a_frozen_group_keeps_its_block_from_being_emptied():
    _, graph, _ = traced(Squeezed)
    frozen = graph.with_frozen({'a.0': 'a reason'})
    assert frozen.blocks[0].last is None and not frozen.lasts


class Body(nn.Module):
    """A branch as a module, whose first layer may be another's."""

    def __init__(self, first=None):
        super().__init__()
        self.a = first or conv(6, 5)
        self.norm, self.b = nn.BatchNorm2d(5), conv_bn(5, 6, act=nn.Identity)

    def forward(self, x):
        return self.b(torch.relu(self.norm(self.a(x))))


class TwoNames(Net):
    """The branch is registered twice."""

    def __init__(self):
        super().__init__()
        self.body = Body()
        self.layers = nn.ModuleList([self.body])

    def block(self, x):
        return x + self.layers[0](x)


class Sharing(Net):
    """Two branches share their first layer."""

    def __init__(self):
        super().__init__()
        self.p = Body()
        self.q = Body(self.p.a)

    def block(self, x):
        x = x + self.p(x)
        return x + self.q(torch.relu(x))


class Tied(Sharing):
    """Two branches share a weight."""

    def __init__(self):
        super().__init__()
        self.q = Body()
        self.q.a.weight, self.q.a.bias = self.p.a.weight, self.p.a.bias


class Wrapped(Net):
    """A block in a block, each a single module."""

    class Outer(nn.Module):
        """Around a block."""

        def __init__(self):
            super().__init__()
            self.inner, self.b = Body(), Body()

        def forward(self, x):
            x = torch.relu(self.b(x))
            return self.b.b(torch.relu(self.b.norm(self.b.a(x + self.inner(x)))))

    def __init__(self):
        super().__init__()
        self.outer = self.Outer()

    def block(self, x):
        return x + self.outer(x)


class Computed(Net):
    """The last layer's bias is computed."""

    class Doubled(nn.Conv2d):
        """A convolution with twice its bias."""

        def forward(self, x):
            return nn.functional.conv2d(x, self.weight, self.bias * 2)

    def __init__(self):
        super().__init__()
        self.b = nn.Sequential(self.Doubled(5, 6, 1), nn.BatchNorm2d(6))


class Elsewhere(Net):
    """The branch begins in other channels than those it is added to, though as many."""

    def __init__(self):
        super().__init__()
        self.other = conv_bn(6, 6)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.relu(self.other(x)) + self.b(self.a(x)))


@pytest.mark.parametrize('net', [TwoNames, Sharing, Tied, Wrapped, Computed, Elsewhere])
def test_whatever_is_offered_as_a_block_is_exact(net):
    model, graph, inputs = traced(net)
    every = [{name: torch.zeros(1)} for name in (group.name for group in blocks_of(graph))]
    every += [{block.last: torch.zeros(graph.group(block.last).size)} for block in graph.blocks if block.last]
    both = {name: mask for one in every for name, mask in one.items()}
    for gone in (*every, both):
        kept = random_kept(graph) | {group.name: torch.ones(1) for group in blocks_of(graph)} | gone
        error, _, slim, spec = removal_errors(model, graph, inputs, kept)
        assert error < 1e-12 and trace_channels(slim, (inputs,)).macs() == graph.macs(kept)
        fresh = copy.deepcopy(model)
        remove_modules(fresh, spec['removed'])
        apply_widths(fresh, spec['widths'])
        fresh.load_state_dict(slim.state_dict(), strict=True)
        assert relative_error(call(fresh, inputs), call(slim, inputs)) == 0


def test_what_is_no_block_is_none():
    assert [block.modules for block in traced(TwoNames)[1].blocks] == [('body',)]
    assert [block.modules for block in traced(Tied)[1].blocks] == [('q',)]
    assert not traced(Elsewhere)[1].blocks
