"""Modules that compute across channels see zeros where channels have gone: in graph, gated and slim models."""

import copy
import io
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
from helpers import call, example, random_kept, randomize_, relative_error, removal_errors, toy
from torch import nn
from toy_nets import OtherNorms, ResponseNorm, conv, conv_bn

from mmprune_gates import masked_copy, slim_model, trace_channels
from mmprune_gates.budget import Candidates, Limits
from mmprune_gates.channels.flow import AMONG, BEHIND, NONE
from mmprune_gates.channels.narrowed import narrowed
from mmprune_gates.gates import PolarizationGate, attach_gates, fold_gates
from mmprune_gates.slimming import apply_widths, full_width
from mmprune_gates.slimming.full_width import fastest_way, with_zeros


class Around(nn.Module):
    """A module between two convolutions."""

    def __init__(self, module, width=6):
        super().__init__()
        self.a, self.module, self.head = conv_bn(3, width), module, conv(width, 4, 1)

    def forward(self, x):
        return self.head(self.module(self.a(x)))


class Softmax(nn.Module):
    """A softmax over channels, by hand."""

    def forward(self, x):
        return x.exp() / x.exp().sum(1, keepdim=True)


class Factors(nn.Module):
    """A product of matrices without weights."""

    def forward(self, x):
        y = x.flatten(2)
        return (y @ y.transpose(1, 2) @ y).view(x.shape)


class Logarithm(nn.Module):
    """Infinite where a channel is zero, before it is made finite again."""

    def forward(self, x):
        return x.abs().log().softmax(1)


class Ratio(nn.Module):
    """Divides a channel by itself."""

    def forward(self, x):
        return (x / x.abs()).softmax(1)


class Weighted(nn.Module):
    """A layer of its own before a softmax over channels: its cost must not be lost."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6, 6, 1, 1))

    def forward(self, x):
        return F.conv2d(x, self.weight).softmax(1)


class Twice(nn.Module):
    """A norm that also reads what nothing can be removed from."""

    def __init__(self, second):
        super().__init__()
        self.a, self.norm = conv_bn(3, 6), nn.GroupNorm(1, 6)
        self.second, self.head, self.other = second, conv(6, 4, 1), conv(6, 4, 1)

    def forward(self, x):
        return self.head(self.norm(self.a(x))), self.other(self.norm(self.second(x)))


class Pair(nn.Module):
    """The input twice, for six channels of which none can go."""

    def forward(self, x):
        return torch.cat([x, x], 1)


def traced(model):
    model, x = randomize_(model.double()).eval(), example((3, 8, 8))
    return model, trace_channels(model, (x,)), x


def test_what_it_reads_is_kept_whole_where_it_is_excluded():
    _, graph, _ = traced(Around(LayerNorm2d(6)))
    names = [
        [group.name for group in Candidates.of(graph, Limits(exclude=exclude)).groups] for exclude in ((), 'module')
    ]
    assert names == [['a.0'], []]


class GRN(nn.Module):
    """Global response norm, its epsilon an attribute that is not small."""

    def __init__(self, channels):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.eps = 0.1

    def forward(self, x):
        size = x.norm(dim=(2, 3), keepdim=True)
        scaled = x * size / (size.mean(1, keepdim=True) + self.eps)
        return self.gamma[:, None, None] * scaled + self.beta[:, None, None] + x


class LayerNorm2d(nn.LayerNorm):
    """A layer norm over the channels of (N, C, H, W)."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


class Positions(nn.Module):
    """A softmax over channels in which each has a weight of its own, held by no parameter."""

    def forward(self, x):
        numbers = torch.arange(6, device=x.device).view(6, 1, 1)
        return (x * numbers).softmax(1)


class Tilted(nn.Module):
    """A softmax over channels after a slope across them, whose size a buffer holds."""

    def __init__(self, slope):
        super().__init__()
        self.register_buffer('slope', torch.tensor(slope))

    def forward(self, x):
        return sloped(self.slope.to(x))(self, x)


def sloped(slope):
    """The forward of a softmax over channels after a slope across them."""

    def forward(self, x):
        numbers = torch.arange(6, device=x.device).view(6, 1, 1)
        return (x * (1 + slope * numbers)).softmax(1)

    return forward


def test_equal_modules_are_tried_once_and_only_they(monkeypatch):
    tried = []

    def noted(module, wide, call):
        tried.append(type(module).__name__)
        return fastest_way(module, wide, call)

    monkeypatch.setattr(full_width, 'fastest_way', noted)
    alike = [nn.GroupNorm(1, 6), nn.GroupNorm(1, 6), nn.GroupNorm(1, 6, eps=0.1)]
    tilted = [Tilted(0.0), Tilted(1.0), Tilted(1.0)]

    class Local(nn.Softmax):
        """Cannot be written to a file."""

    bound = [nn.Softmax(1), nn.Softmax(1)]
    for module, slope in zip(bound, (0.0, 1.0), strict=True):
        module.forward = MethodType(sloped(slope), module)
    between = [*alike, *tilted, Local(1), Local(1), *bound]
    layers = [layer for module in between for layer in (module, conv_bn(6, 6))]
    _, graph, _ = traced(nn.Sequential(conv_bn(3, 6), *layers, conv(6, 4, 1)))
    assert tried == ['GroupNorm'] * 2 + ['Tilted'] * 2 + ['Local'] * 2 + ['Softmax'] * 2
    ways = [module.zeros for module in graph.full_width.values()]
    assert ways == [BEHIND] * 3 + [BEHIND, AMONG, AMONG] + [BEHIND] * 2 + [BEHIND, AMONG]


@pytest.mark.parametrize(
    ('module', 'zeros'),
    [
        (nn.GroupNorm(3, 6), AMONG),
        (nn.GroupNorm(1, 6), BEHIND),
        (nn.GroupNorm(1, 6, affine=False), BEHIND),
        (LayerNorm2d(6, eps=0.1), BEHIND),
        (ResponseNorm(6), BEHIND),
        (GRN(6), NONE),
        (Softmax(), BEHIND),
        (nn.Softmax(1), BEHIND),
        (Positions(), AMONG),
    ],
)
def test_what_computes_across_channels_keeps_its_width_and_the_rest_is_exact(module, zeros):
    model, graph, x = traced(Around(module))
    assert [group.frozen for group in graph.groups][:1] == [None] and set(graph.full_width) == {'module'}
    kept = random_kept(graph)
    error, distance, slim, spec = removal_errors(model, graph, x, kept)
    assert error < 1e-12 and distance > 1e-3
    width = int(kept['a.0'].sum())
    expected = {'dim': 1, 'channels': 6, 'kept': width, 'zeros': zeros, 'scaled': False}
    assert spec['widths']['module'] == {'full_width': expected}
    assert type(slim.module) is type(module)
    assert {k: v.shape for k, v in slim.module.named_parameters()} == {k: v.shape for k, v in module.named_parameters()}


@pytest.mark.parametrize('module', [nn.GroupNorm(1, 6), LayerNorm2d(6, eps=0.1), GRN(6)])
def test_the_fast_ways_train_as_zeros_among_the_channels_do(module):
    model, graph, x = traced(Around(module))
    kept = random_kept(graph)
    found = []
    for one in (graph, with_zeros(graph, dict.fromkeys(graph.full_width, AMONG))):
        slim = copy.deepcopy(model)
        slim_model(slim, one, kept)
        slim.train()(x).square().sum().backward()
        found.append([parameter.grad for parameter in slim.parameters()])
    assert relative_error(*found) < 1e-12


def test_channels_leave_twice():
    model, graph, x = traced(Around(LayerNorm2d(6)))
    once = graph.kept({'a.0': torch.tensor([1, 1, 0, 1, 1, 0]).bool()})
    twice = torch.tensor([0, 1, 0, 1]).bool()
    slim = copy.deepcopy(model)
    slim_model(slim, graph, {'a.0': once.at(graph.full_width['module'].index)})
    slim_model(slim, narrowed(graph, once, []), {'a.0': twice})
    expected = masked_copy(model, graph, {'a.0': torch.tensor([0, 1, 0, 0, 1, 0]).bool()})
    assert slim.module.kept_index.tolist() == [1, 4] and relative_error(call(slim, x), call(expected, x)) < 1e-12


@pytest.mark.parametrize('module', [LayerNorm2d(6, eps=0.1), GRN(6)])
def test_a_slim_model_is_slimmed_again(module):
    model, graph, x = traced(Around(module))
    fresh = copy.deepcopy(model)
    first = slim_model(model, graph, random_kept(graph))
    again = trace_channels(model, (x,))
    assert again.full_width['module'].zeros == graph.full_width['module'].zeros
    error, distance, slim, spec = removal_errors(model, again, x, random_kept(again, 1))
    assert error < 1e-12 and distance > 1e-3 and spec['widths']['module']['full_width']['channels'] == 6
    for widths in (first['widths'], spec['widths']):
        apply_widths(fresh, widths)
    fresh.load_state_dict(slim.state_dict())
    assert relative_error(call(fresh, x), call(slim, x)) == 0


def test_products_of_before_there_were_ways_are_as_they_were():
    model, graph, x = traced(Around(LayerNorm2d(6)))
    slim, fresh = copy.deepcopy(model), copy.deepcopy(model)
    spec = slim_model(slim, graph, random_kept(graph))
    width = spec['widths']['module']['full_width']
    del width['zeros'], width['scaled']
    apply_widths(fresh, spec['widths'])
    fresh.load_state_dict(slim.state_dict())
    assert fresh.module.mmprune_gates_width['zeros'] == AMONG and fresh.module.mmprune_gates_width['scaled']
    assert relative_error(call(fresh, x), call(slim, x)) < 1e-12


@pytest.mark.parametrize('module', [LayerNorm2d(6), GRN(6)])
def test_a_failing_forward_leaves_a_module_as_it_was(module):
    model, graph, x = traced(Around(module))
    slim_model(model, graph, random_kept(graph))
    before, own = call(model, x), dict(vars(model.module))
    with pytest.raises(RuntimeError):
        model.module(x[:, :2])
    assert vars(model.module) == own and relative_error(call(model, x), before) == 0


def test_a_layer_norm_counts_its_dimension_from_the_end():
    model, graph, _ = toy(OtherNorms)
    assert {name: module.dim for name, module in graph.full_width.items()} == {
        'group': 1,
        'layer': -1,
        'response': 1,
        'last': 1,
    }


def test_products_that_sum_over_channels_keep_no_width():
    _, graph, _ = traced(Around(Factors()))
    layers = 9 * 3 * 6 * 64 + 6 * 4 * 64
    assert not graph.full_width and graph.macs() == layers + 2 * 6 * 6 * 64
    assert graph.macs({'a.0': torch.arange(6) < 3}) == layers // 2 + 2 * 3 * 3 * 64


@pytest.mark.parametrize(
    ('module', 'reason'),
    [(Logarithm(), 'not finite'), (Ratio(), 'not finite'), (Weighted(), 'normalised over')],
)
def test_what_is_infinite_at_zero_or_has_a_layer_stays_frozen(module, reason):
    _, graph, _ = traced(Around(module))
    frozen = [group.frozen for group in graph.groups if group.name in ('a.0', 'module')]
    assert any(reason in (why or '') for why in frozen)


def test_calls_with_the_same_channels_go_together():
    model, graph, x = traced(Twice(conv(3, 6)))
    assert [group.size for group in graph.free] == [6] and removal_errors(model, graph, x, random_kept(graph))[
        0
    ] < 1e-12


@pytest.mark.parametrize('second', [Pair(), nn.Sequential(Pair(), nn.Identity())])
def test_a_module_that_is_also_called_with_rigid_channels_stays_whole(second):
    _, graph, _ = traced(Twice(second))
    assert all('called in different ways' in group.frozen for group in graph.groups if group.name == 'a.0')


def test_gates_that_are_half_open_stay_in_front_of_it():
    model, graph, inputs = toy(OtherNorms)
    gates = attach_gates(model, graph, PolarizationGate)
    gates.set_theta(torch.linspace(0.3, 1.4, graph.num_channels))
    gates['a'].theta.data[2:4] = 0
    expected = call(model, inputs)
    spec = slim_model(model, *fold_gates(model))
    assert relative_error(call(model, inputs), expected) < 1e-12
    assert spec['widths']['group']['full_width']['kept'] == 4
    assert model.group.kept_index.tolist() == [0, 1, 4, 5] and bool((model.group.kept_scale != 1).all())


def test_rebuilt_from_widths_it_takes_the_state_dict_and_trains():
    model, graph, inputs = toy(OtherNorms)
    fresh = copy.deepcopy(model)
    spec = slim_model(model, graph, random_kept(graph))
    apply_widths(fresh, spec['widths'])
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    fresh.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True), strict=True)
    assert relative_error(call(fresh, inputs), call(model, inputs)) == 0
    copied = copy.deepcopy(fresh)  # hooks and buffers are its own
    copied.train()(inputs).sum().backward()
    assert copied.group.weight.grad is not None and fresh.group.weight.grad is None
    copied.group.kept_scale.zero_()
    assert relative_error(call(fresh, inputs), call(model, inputs)) == 0


def test_it_works_in_half_precision():
    model, graph, inputs = toy(OtherNorms)
    slim_model(model, graph, random_kept(graph))
    expected = call(model, inputs)
    with torch.autocast('cpu', torch.bfloat16):
        found = call(model.float(), inputs.float())
    assert relative_error([value.double() for value in found], expected) < 0.1


def test_a_slim_model_can_be_exported_again():
    model, graph, inputs = toy(OtherNorms)
    slim_model(model, graph, random_kept(graph))
    program = torch.export.export(model, (inputs,), strict=False)
    assert relative_error([program.module()(inputs)], call(model, inputs)) < 1e-12


class Keyword(Around):
    """Called by keyword."""

    def forward(self, x):
        return self.head(self.module(input=self.a(x)))


class Products(nn.Module):
    """Two arguments, and what it makes of them."""

    def forward(self, x, y):
        return x.softmax(1) * y


class SameTwice(Around):
    """Called with one tensor twice."""

    def forward(self, x):
        x = self.a(x)
        return self.head(self.module(x, x))


class WithSize(nn.GroupNorm):
    """Returns a tuple."""

    def forward(self, x):
        return super().forward(x), x.shape[2:]


class FirstOfTwo(Around):
    """Takes the first of a tuple."""

    def forward(self, x):
        return self.head(self.module(self.a(x))[0])


class Tied(Around):
    """The norm's own weight is also that of another norm."""

    def __init__(self, module):
        super().__init__(module)
        self.a[1].weight = module.weight


@pytest.mark.parametrize(
    ('net', 'reason'),
    [
        (lambda: Keyword(nn.GroupNorm(2, 6)), 'normalised over'),
        (lambda: SameTwice(Products()), 'normalised over'),
        (lambda: FirstOfTwo(WithSize(2, 6)), 'normalised over'),
        (lambda: Tied(nn.GroupNorm(2, 6)), 'held by a module'),
    ],
    ids=['keyword', 'same twice', 'tuple', 'tied'],
)
def test_only_what_takes_and_returns_one_tensor_and_shares_nothing_keeps_its_full_width(net, reason):
    _, graph, _ = traced(net())
    assert [reason in (group.frozen or '') for group in graph.groups if group.name == 'a.0'] == [True]


class Temperature(nn.Module):
    """A softmax over channels with a plain attribute called weight, and one called like ours."""

    def __init__(self):
        super().__init__()
        self.weight, self.full_width = 0.5, True

    def forward(self, x):
        return (x * self.weight).softmax(1)


def test_attributes_of_its_own_stay():
    model, graph, x = traced(Around(Temperature()))
    expected = call(model, x)
    attach_gates(model, graph, PolarizationGate)
    assert relative_error(call(model, x), expected) == 0 and model.module.weight == 0.5
    spec = slim_model(model, *fold_gates(model))
    assert spec['widths'] == {} and model.module.full_width is True


def test_buffers_are_where_and_what_the_model_is():
    for model in (Around(nn.Softmax(1)).double(), Around(nn.Softmax(1)).to('meta')):
        _, graph, _ = traced(Around(nn.Softmax(1)))
        spec = slim_model(copy.deepcopy(model), graph, random_kept(graph))
        fresh = copy.deepcopy(model)
        apply_widths(fresh, spec['widths'])
        slim_model(model, graph, random_kept(graph))
        for one in (model, fresh):
            like = next(one.parameters())
            assert one.module.kept_index.device == one.module.kept_scale.device == like.device
            assert one.module.kept_scale.dtype == like.dtype
