"""Any module is traced and slimmed, whatever it takes, returns and is made of, or one error says what to pass."""

import copy
from dataclasses import dataclass

import pytest
import torch
from helpers import example, random_kept, randomize_, relative_error, removal_errors
from torch import nn
from torch.utils.checkpoint import checkpoint
from toy_nets import conv, conv_bn

from mmprune_gates import masked_copy, slim_model, trace_channels
from mmprune_gates.channels.calls import tensors_in
from mmprune_gates.channels.rules import TABLE, Rule
from mmprune_gates.gates import PolarizationGate, attach_gates, fold_gates


class Net(nn.Module):
    """Two layers and a head; variants differ in what is between, around, before and behind."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 6), conv_bn(6, 8), conv(8, 4)

    def forward(self, x):
        return self.head(self.between(self.b(self.a(x))))

    def between(self, x):
        return x


@dataclass
class Output:
    """What models of some libraries return."""

    logits: torch.Tensor
    features: tuple = ()
    loss: object = None


class Dataclass(Net):
    def forward(self, x):
        x = self.a(x)
        return Output(self.head(self.b(x)), (x,))


class Dictionary(Net):
    def forward(self, x):
        x = self.a(x)
        return {'logits': self.head(self.b(x)), 'features': [x, None], 'size': 3}


class Keywords(Net):
    def forward(self, *, pixels, scale=None):
        x = self.a(pixels)
        return self.head(self.b(x if scale is None else x * scale))


class Checkpointed(Net):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x):
        x = self.a(x)
        return self.head(checkpoint(self.b, x, use_reentrant=self.reentrant))


class Contexts(Net):
    """Contexts within each other."""

    def between(self, x):
        with torch.no_grad():
            x = x + 1
            with torch.autocast('cpu', enabled=False):
                return torch.relu(x)


class InPlaceInContext(Net):
    """The reader behind the context sees the change."""

    def between(self, x):
        with torch.no_grad():
            x.add_(1)
        return x


class Cond(Net):
    """Control flow that is exported as such."""

    def between(self, x):
        return torch.cond(x.mean((1, 2, 3))[0] > 0, lambda y: y * 2, lambda y: y * 3, (x,))


class OnlySomeRows(Net):
    """A tensor whose size depends on data."""

    def between(self, x):
        rows = x.flatten(1)
        return x + rows[rows.sum(1) > -1e9].mean()


@torch.library.custom_op('mmprune_gates_tests::halve', mutates_args=())
def halve(x: torch.Tensor) -> torch.Tensor:
    return x / 2


halve.register_fake(torch.empty_like)


class Custom(Net):
    def between(self, x):
        return halve(x)


def errors(model, inputs, graph):
    """Error of a slim model in float64, and how far the reference is from the whole model."""
    kept = random_kept(graph)

    def outputs(net):
        net.eval()
        with torch.no_grad():
            return tensors_in(net(**inputs) if isinstance(inputs, dict) else net(inputs))

    expected = outputs(masked_copy(model, graph, kept))
    slim = copy.deepcopy(model)
    slim_model(slim, graph, kept)
    return relative_error(outputs(slim), expected), relative_error(expected, outputs(model))


@pytest.mark.parametrize(
    ('net', 'free'),
    [
        (Net(), {'a.0', 'b.0'}),
        (Dataclass(), {'b.0'}),
        (Dictionary(), {'b.0'}),
        (Checkpointed(True), {'a.0', 'b.0'}),
        (Checkpointed(False), {'a.0', 'b.0'}),
        (Contexts(), {'a.0', 'b.0'}),
        (InPlaceInContext(), {'a.0', 'b.0'}),
        (Cond(), {'a.0'}),
        (OnlySomeRows(), {'a.0'}),
        (Custom(), {'a.0'}),
        (nn.Sequential(*conv_bn(3, 6), nn.ReLU(), conv(6, 4)), {'0'}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else '',
)
def test_traces_and_slims_exactly(net, free):
    model, x = randomize_(net.double()), example((3, 8, 8))
    graph = trace_channels(model, x)
    assert {group.name for group in graph.free} == free
    error, distance = errors(model, x, graph)
    assert error < 1e-12 and distance > 1e-3


@pytest.mark.parametrize('fill', [0.0, 1.0])
@pytest.mark.parametrize('op', [torch.constant_pad_nd, lambda x, sizes, fill: nn.functional.pad(x, sizes, value=fill)])
def test_no_gate_passes_what_is_padded_with_other_values(op, fill):
    class Padded(Net):
        def between(self, x):
            return op(x, (1, 1), fill)

    head = trace_channels(Padded(), torch.zeros(1, 3, 8, 8)).reads[-1]
    assert head.layer == 'head' and bool(head.gated.all()) is (fill == 0.0)


def test_inputs_by_keyword():
    model = randomize_(Keywords().double())
    for inputs in ({'pixels': example((3, 8, 8))}, {'pixels': example((3, 8, 8)), 'scale': torch.ones(2, 1, 1, 1)}):
        graph = trace_channels(model, inputs)
        assert {group.name for group in graph.free} == {'a.0', 'b.0'}
        error, distance = errors(model, inputs, graph)
        assert error < 1e-12 and distance > 1e-3
    assert graph.macs() == trace_channels(model, {'pixels': example((3, 8, 8), batch=1)}).macs()


@pytest.mark.parametrize('reentrant', [True, False])
def test_checkpointing_changes_nothing(reentrant):
    plain = trace_channels(Net(), torch.zeros(2, 3, 8, 8))
    graph = trace_channels(Checkpointed(reentrant), torch.zeros(2, 3, 8, 8))
    assert graph.groups == plain.groups and graph.layers == plain.layers and graph.macs() == plain.macs()


def test_what_touches_an_op_of_ones_own_is_frozen_by_its_name():
    graph = trace_channels(Custom(), torch.zeros(1, 3, 8, 8))
    assert graph.group('b.0').frozen == 'no rule for this op (mmprune_gates_tests.halve in the model itself)'


class DataDependent(Net):
    def between(self, x):
        return x * 2 if x.sum() > 0 else x


class Opaque(Net):
    def forward(self, x):
        return self  # no tensor in sight


@pytest.mark.parametrize(
    ('net', 'message'),
    [
        (DataDependent, r'cannot capture DataDependent with inputs \[\(1, 3, 8, 8\)\](.|\n)*Give `forward`'),
        (Opaque, r'holds a Opaque, whose tensors cannot be found: pass a `forward`'),
        (Keywords, r'cannot capture Keywords(.|\n)*inputs by keyword go into a dict'),
    ],
)
def test_what_cannot_be_captured_says_what_to_pass(net, message):
    with pytest.raises(RuntimeError, match=message):
        trace_channels(net(), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize('inputs', [(), {}, 3, (3, None), torch.zeros(())])
def test_inputs_without_a_batch_are_refused(inputs):
    with pytest.raises(TypeError, match='pass a tensor, a tuple of positional inputs, or a dict of keyword inputs'):
        trace_channels(Net(), inputs)


def test_a_gap_in_a_rule_freezes_and_says_so(monkeypatch):
    def broken(op):
        raise IndexError('list index out of range')

    class Tanh(Net):
        def between(self, x):
            return x.tanh()

    monkeypatch.setitem(TABLE, 'tanh', Rule(broken))
    graph = trace_channels(Tanh(), torch.zeros(1, 3, 8, 8))
    assert {group.name for group in graph.free} == {'a.0'}
    assert graph.group('b.0').frozen == (
        'its rule cannot handle this call on shapes [(1, 8, 8, 8)]: IndexError: list index out of range (aten.tanh in '
        'the model itself)'
    )


class Shuffles(nn.Module):
    """Channels are shuffled and half of them joined again until all are tied, and then viewed once more."""

    def __init__(self):
        super().__init__()
        self.stem, self.steps, self.head = conv(3, 8), nn.ModuleList(conv_bn(4, 4) for _ in range(4)), conv(8, 4)

    def forward(self, x):
        x = self.stem(x)
        for step in self.steps:
            first, second = x.chunk(2, 1)
            x = torch.cat([first, step(second)], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(x)


def test_channels_that_many_shuffles_have_tied_stay():
    model, x = randomize_(Shuffles().double()), example((3, 8, 8))
    graph = trace_channels(model, x)
    assert not graph.free or errors(model, x, graph)[0] < 1e-12
    assert not any('its rule cannot handle' in str(group.frozen) for group in graph.groups)


def test_a_convolution_without_a_batch_dimension_freezes_what_it_reads_and_makes():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    graph = trace_channels(model, torch.randn(4, 4, 4))  # (C, H, W), all alike
    assert not graph.free
    assert [group.name for group in graph.groups] == ['0', '1']
    assert all(group.frozen.startswith('convolved without a batch dimension') for group in graph.groups)


class Shuffled3d(nn.Module):
    """A pixel shuffle of five dimensions, whose channels are the third."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv3d(3, 16, 1), nn.Conv3d(4, 5, 1)

    def forward(self, x):
        x = self.a(x).permute(0, 2, 1, 3, 4)
        return self.b(nn.functional.pixel_shuffle(x, 2).permute(0, 2, 1, 3, 4))


class PlacesUsed(Net):
    """Where the largest values of a pool stand decides the output."""

    def between(self, x):
        values, places = nn.functional.adaptive_max_pool2d(x, 2, return_indices=True)
        return values + places.to(x.dtype).mean((1, 2, 3), keepdim=True)


class LookedUp(Net):
    """Channels choose rows of a table."""

    def between(self, x):
        table = torch.arange(2, dtype=x.dtype)
        return x * table[(x > 0.3).long()].mean((1, 2, 3), keepdim=True)


class NoBias(nn.Module):
    """A layer of one's own without the attribute."""

    def __init__(self, made, read):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(made, read, 1, 1))

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight)


class Buffered(NoBias):
    """Its weight is not trained."""

    def __init__(self, made, read):
        nn.Module.__init__(self)
        self.register_buffer('weight', torch.randn(made, read, 1, 1))


def test_a_pixel_shuffle_of_five_dimensions():
    model = randomize_(Shuffled3d().double()).eval()
    x = torch.randn(2, 3, 2, 4, 4).double()
    graph = trace_channels(model, x)
    error, distance, *_ = removal_errors(model, graph, x, random_kept(graph))
    assert error < 1e-12 and distance > 1e-3


@pytest.mark.parametrize('net', [PlacesUsed, LookedUp])
def test_channels_that_become_indices_stay(net):
    graph = trace_channels(randomize_(net().double()).eval(), example((3, 8, 8)))
    assert graph.group('b.0').frozen is not None and graph.group('a.0').frozen is None


@pytest.mark.parametrize('layer', [NoBias, Buffered])
def test_gates_act_on_layers_of_ones_own_and_are_folded(layer):
    torch.manual_seed(0)
    model = nn.Sequential(layer(8, 3), nn.SiLU(), nn.Conv2d(8, 6, 1), nn.SiLU(), layer(4, 6)).double().eval()
    x = torch.randn(2, 3, 4, 4).double()
    gates = attach_gates(model, trace_channels(model, x), PolarizationGate)
    for gate in gates.by_group.values():
        gate.theta.data.uniform_(0.5, 1)
    expected = model(x).detach()
    fold_gates(model)
    assert relative_error([model(x)], [expected]) < 1e-12


class Trident(nn.Module):
    """It uses the weight of a layer of its own beside calling the layer."""

    def __init__(self, made):
        super().__init__()
        self.layer = nn.Conv2d(made, 6, 3, padding=1)

    def forward(self, x):
        dilated = nn.functional.conv2d(x, self.layer.weight, padding=2, dilation=2)
        return torch.relu(dilated) + torch.relu(self.layer(x))


class Tied(nn.Module):
    """One weight makes channels and takes them back."""

    def __init__(self, made):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(made, made, 3, 3))

    def forward(self, x):
        inner = nn.functional.silu(nn.functional.conv2d(x, self.weight, padding=1))
        return nn.functional.conv_transpose2d(inner, self.weight, padding=1)


@pytest.mark.parametrize('net', [Trident, Tied])
@pytest.mark.parametrize('between', [nn.SiLU, nn.Identity])
def test_a_weight_that_is_read_in_several_ways_has_no_gate_before_it(net, between):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 8, 3), between(), net(8), nn.LazyConv2d(4, 1))
    x = torch.randn(2, 3, 8, 8)
    model(x)
    model, x = randomize_(model.double()).eval(), x.double()
    graph = trace_channels(model, x)
    frozen = {group.name for group in graph.groups if group.frozen and 'in several ways' in group.frozen}
    assert bool(frozen) == (between is nn.SiLU or net is Tied)
    kept = random_kept(graph)
    reference = masked_copy(model, graph, kept)(x)
    gates = attach_gates(model, graph, PolarizationGate)
    for name, mask in kept.items():
        gates[name].theta.data.copy_(mask)
    assert relative_error([model(x)], [reference]) < 1e-12
