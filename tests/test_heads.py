"""Heads go where the code of their module follows; otherwise they stay, with the line that fixes them."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from helpers import call, example, random_kept, randomize_, relative_error, removal_errors
from mmpretrain.models.utils.attention import MultiheadAttention as Pretrain
from mmpretrain.models.utils.attention import WindowMSA as PretrainWindow
from mmseg.models.backbones.swin import WindowMSA
from torch import nn

from mmprune_gates import GDP, GateDecorator, masked_copy, slim_model, trace_channels
from mmprune_gates.budget import Candidates, Limits
from mmprune_gates.channels.narrowed import narrowed
from mmprune_gates.gates import DecoratorGate, PolarizationGate, attach_gates, detach_gates
from mmprune_gates.gates.stand_in import StandIn, show_width, shown_width
from mmprune_gates.slimming import apply_widths
from mmprune_gates.slimming.heads import random_like
from mmprune_gates.slimming.torch_attention import NarrowAttention, allow_any_width

C, HEADS, TOKENS = 12, 3, 4


class Around(nn.Module):
    """Attention in a residual branch behind a norm, between linear layers; any of it can go."""

    def __init__(self, attn):
        super().__init__()
        self.stem, self.norm, self.attn, self.head = nn.Linear(5, C), nn.LayerNorm(C), attn, nn.Linear(C, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.attn(self.norm(x)))


class OwnCode(nn.Module):
    """Attention whose forward calls one of these methods to lay out its heads."""

    def __init__(self, layout):
        super().__init__()
        self.layout, self.num_heads, self.scale = layout, HEADS, 0.5
        self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x):
        q, k, v = self.layout(self, self.qkv(x)).unbind(0)
        y = (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).flatten(2))


def number_in_code(module, x):
    return x.view(len(x), TOKENS, 3, 3, 4).permute(2, 0, 3, 1, 4)


def two_heads(module, x):
    """Runs with one head, of which it makes two narrower ones."""
    return x.view(len(x), TOKENS, 3, 2, -1).permute(2, 0, 3, 1, 4)


def known_heads(module, x):
    return x.view(len(x), TOKENS, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)


class Torch(nn.Module):
    """``nn.MultiheadAttention``, which gives its weights besides."""

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(C, HEADS)

    def forward(self, x):
        x = x.transpose(0, 1)
        return self.attn(x, x, x)[0].transpose(0, 1)


KINDS = {
    'mmpretrain': (lambda: Pretrain(C, HEADS), 'attn.qkv', {'num_heads': 2, 'embed_dims': 8}),
    'mmpretrain window': (
        lambda: PretrainWindow(C, (2, 2), HEADS),
        'attn.qkv',
        {'relative_position_bias_table': [9, 2], 'num_heads': 2, 'shown_width': 8},
    ),
    'mmseg window': (
        lambda: WindowMSA(C, num_heads=HEADS, window_size=(2, 2)),
        'attn.qkv',
        {'relative_position_bias_table': [9, 2], 'num_heads': 2, 'shown_width': 8},
    ),
    'own code': (lambda: OwnCode(known_heads), 'attn.qkv', {'num_heads': 2}),
}
kinds = pytest.mark.parametrize('kind', KINDS)


def traced(attn):
    """A net in float64 with random values, its graph, and an input."""
    torch.manual_seed(0)
    model = randomize_(Around(attn).double()).eval()
    x = example((TOKENS, 5))
    return model, trace_channels(model, (x,)), x


def check_rebuilt(build, x, slim, spec):
    """A stock net given the widths and weights of the slim one computes the same."""
    fresh = Around(build()).double()
    apply_widths(fresh, json.loads(json.dumps(spec['widths'])))
    fresh.load_state_dict(slim.state_dict(), strict=True)
    assert relative_error(call(fresh, x), call(slim, x)) == 0


def check_gated(model, graph, x, kept, slim):
    """Open gates change nothing; closed ones make the net equal the slim one."""
    whole = call(model, x)
    for gate in (PolarizationGate, DecoratorGate):
        attach_gates(model, graph, gate)
        assert relative_error(call(model, x), whole) < 1e-14
        model.gates.close(graph.kept(kept))
        assert relative_error(call(model, x), call(slim, x)) < 1e-12
        detach_gates(model)


@kinds
def test_a_head_goes_and_attributes_follow(kind):
    build, name, expected = KINDS[kind]
    model, graph, x = traced(build())
    group = graph.group(name)
    assert (group.size, group.frozen) == (HEADS, None)
    kept = {name: torch.tensor([True, False, True])}
    error, distance, slim, spec = removal_errors(model, graph, x, kept)
    assert error < 1e-12 and distance > 1e-3
    assert spec['widths']['attn'] == expected
    assert type(slim.attn) is type(model.attn)
    check_rebuilt(build, x, slim, spec)


@pytest.mark.parametrize('kind', [*KINDS, 'torch'])
def test_a_divisor_counts_the_rows_of_a_head(kind):
    _, graph, _ = traced(KINDS[kind][0]() if kind in KINDS else Torch())
    group = next(group for group in graph.free if group.size == HEADS)
    assert graph.rows(group) == C // HEADS
    candidates = {divisor: Candidates.of(graph, Limits(divisor=divisor)) for divisor in (4, 8, 16)}
    assert {divisor: one.multiples[group.name] for divisor, one in candidates.items()} == {4: 1, 8: 2, 16: 4}
    assert {divisor: one.leasts[group.name] for divisor, one in candidates.items()} == {4: 1, 8: 2, 16: 3}


@kinds
def test_a_slim_net_is_slimmed_again(kind):
    build, name, _ = KINDS[kind]
    model, graph, x = traced(build())
    slim = copy.deepcopy(model)
    slim_model(slim, graph, random_kept(graph) | {name: torch.tensor([True, False, True])})
    again = trace_channels(slim, (x,))
    assert again.group(name).size == 2 and again.macs() < graph.macs()
    kept = random_kept(again, 1) | {name: torch.tensor([False, True])}
    assert removal_errors(slim, again, x, kept)[0] < 1e-12
    attach_gates(slim, again, PolarizationGate)
    gates = slim.gates
    gates.close(again.kept(kept))
    reference = copy.deepcopy(model)
    slim_model(reference, graph, random_kept(graph) | {name: torch.tensor([True, False, True])})
    assert relative_error(call(slim, x), call(masked_copy(reference, again, kept), x)) < 1e-12


@kinds
def test_a_slim_net_is_traced_for_other_runtimes(kind):
    build, name, _ = KINDS[kind]
    model, graph, x = traced(build())
    slim = copy.deepcopy(model)
    slim_model(slim, graph, {name: torch.tensor([True, False, True])})
    assert relative_error([torch.jit.trace(slim, x)(x)], call(slim, x)) == 0
    assert relative_error([torch.export.export(slim, (x,)).module()(x)], call(slim, x)) == 0


def test_heads_of_torch_go_and_the_weights_it_gives_do_not_matter():
    model, graph, x = traced(Torch())
    name = 'attn.attn'
    kept = {name: torch.tensor([True, False, True]), 'stem': torch.arange(C) < 7}
    error, distance, slim, spec = removal_errors(model, graph, x, kept)
    assert error < 1e-12 and distance > 1e-3
    assert spec['widths']['attn.attn'] == {'in_proj_weight': [24, 7], 'in_proj_bias': [24], 'num_heads': 2}
    assert isinstance(slim.attn.attn, nn.MultiheadAttention)
    assert model.attn.attn.__class__ is nn.MultiheadAttention
    fresh = Around(Torch()).double()
    apply_widths(fresh, spec['widths'])
    fresh.load_state_dict(slim.state_dict(), strict=True)
    assert relative_error(call(fresh, x), call(slim, x)) == 0
    again = trace_channels(slim, (x,))
    assert again.group(name).frozen is None and again.group(name).size == 2
    assert removal_errors(slim, again, x, {name: torch.tensor([False, True])})[0] < 1e-12


@pytest.mark.parametrize('batch_first', [False, True])
@pytest.mark.parametrize('need_weights', [False, True])
@pytest.mark.parametrize('mask', ['none', 'numbers', 'bool', 'heads', 'padding'])
def test_an_attention_of_torch_that_may_be_narrow_is_the_same(batch_first, need_weights, mask):
    torch.manual_seed(0)
    whole = randomize_(nn.MultiheadAttention(C, HEADS, batch_first=batch_first, kdim=7, vdim=5).double()).eval()
    narrow = copy.deepcopy(whole)
    allow_any_width(narrow)
    shapes = [(2, TOKENS, C), (2, 6, 7), (2, 6, 5)]
    inputs = [torch.randn(shape).double() for shape in shapes]
    if not batch_first:
        inputs = [one.transpose(0, 1) for one in inputs]
    options = {
        'none': {},
        'numbers': {'attn_mask': torch.randn(TOKENS, 6).double()},
        'bool': {'attn_mask': torch.ones(TOKENS, 6).triu(1).bool()},
        'heads': {'attn_mask': torch.randn(2 * HEADS, TOKENS, 6).double()},
        'padding': {'key_padding_mask': torch.arange(6) > torch.tensor([[3], [5]])},
    }[mask]
    expected = whole(*inputs, need_weights=need_weights, **options)
    found = narrow(*inputs, need_weights=need_weights, **options)
    assert torch.allclose(found[0], expected[0], atol=1e-12)
    assert (found[1] is None) == (expected[1] is None)
    if need_weights:
        assert torch.allclose(found[1], expected[1], atol=1e-12)


class SingleHead(nn.Module):
    """The attention that SegFormer begins with: its head stays, and what it reads and makes can go."""

    def __init__(self, **options):
        super().__init__()
        self.attn = nn.MultiheadAttention(C, 1, batch_first=True, **options)

    def forward(self, x):
        return self.attn(x, x, x)[0]


def test_what_an_attention_of_one_head_reads_and_makes_goes():
    model, x = randomize_(Around(SingleHead()).double()).eval(), torch.randn(2, TOKENS, 5).double()
    graph = trace_channels(model, x)
    assert graph.group('stem').frozen is None
    kept = {'stem': torch.arange(C) % 3 > 0}
    error, distance, slim, spec = removal_errors(model, graph, x, kept)
    assert error < 1e-12 and distance > 1e-3 and type(slim.attn.attn) is NarrowAttention
    again = Around(SingleHead()).double()
    apply_widths(again, spec['widths'])
    again.load_state_dict(slim.state_dict())
    assert torch.equal(again.eval()(x), slim(x))


def test_what_an_attention_that_cannot_be_narrow_reads_stays():
    model = randomize_(Around(SingleHead(add_bias_kv=True)).double()).eval()
    graph = trace_channels(model, torch.randn(2, TOKENS, 5).double())
    assert 'fixes its number of channels' in graph.group('stem').frozen


def test_an_attention_of_torch_that_cannot_be_narrow_says_so():
    with pytest.raises(ValueError, match='three dimensions, got 2'):
        narrow = nn.MultiheadAttention(C, HEADS)
        allow_any_width(narrow)
        narrow(*[torch.zeros(TOKENS, C)] * 3)
    assert isinstance(narrow, NarrowAttention)


def test_heads_stay_where_a_number_in_the_code_counts_them():
    _, graph, _ = traced(OwnCode(number_in_code))
    assert graph.group('attn.qkv').frozen.startswith('test_heads.py:')
    assert graph.group('attn.qkv').frozen.endswith('fixes its number of heads')
    assert graph.follows == ()


class Odd(OwnCode):
    """Adds random numbers to its input, and overwrites it."""

    def forward(self, x):
        return super().forward(x.add_(torch.rand_like(x)))


def test_a_trial_has_the_same_inputs_and_draws_for_each_copy():
    _, graph, _ = traced(Odd(known_heads))
    assert graph.group('attn.qkv').frozen is None
    assert [(one.module, one.attribute) for one in graph.follows] == [('attn', 'num_heads')]


def test_heads_stay_where_the_code_runs_and_computes_something_else():
    _, graph, _ = traced(OwnCode(two_heads))
    assert graph.group('attn.qkv').frozen == 'OwnCode computes something else with fewer heads'


def test_the_layer_of_torch_has_no_fast_path_with_fewer_heads():
    model, graph, x = traced(nn.TransformerEncoderLayer(C, 4, 6, batch_first=True))
    kept = {'attn.self_attn': torch.tensor([True, False, True, False])}
    error, distance, *_ = removal_errors(model, graph, x, kept)
    assert error < 1e-12 and distance > 1e-3


class ReadsShape(nn.Module):
    """Takes a width from the shape of its input."""

    def __init__(self, uses):
        super().__init__()
        self.layer, self.uses = nn.Linear(6, 4), uses

    def forward(self, x):
        *_, c = x.shape
        y = self.layer(x).view(-1, c)
        return y + x.mean() if self.uses else y


def test_a_stand_in_shows_another_width():
    module, x = ReadsShape(uses=False), torch.randn(3, 6)
    assert shown_width(module) is None
    show_width(module, 2)
    assert shown_width(module) == 2
    assert torch.equal(module(x), module.layer(x).view(-1, 2))
    show_width(module, 4)
    assert torch.equal(copy.deepcopy(module)(x), module.layer(x))
    assert torch.equal(torch.export.export(module, (x,), strict=False).module()(x), module.layer(x))


def test_a_slim_net_with_a_stand_in_is_compiled_copied_and_watched():
    build, name, _ = KINDS['mmseg window']
    model, graph, x = traced(build())
    slim_model(model, graph, {name: torch.tensor([True, False, True])})
    expected = call(model, x)
    assert relative_error(call(copy.deepcopy(model), x), expected) == 0
    assert relative_error(call(torch.compile(copy.deepcopy(model), backend='eager'), x), expected) < 1e-12
    seen = []
    model.attn.qkv.register_full_backward_hook(lambda module, made, given: seen.append(given[0].shape))
    model(x).sum().backward()
    assert seen == [(len(x), TOKENS, 2 * C)]


def test_what_computes_with_a_stand_in_gets_what_it_stands_for():
    module, x = ReadsShape(uses=True), torch.randn(3, 6)
    show_width(module, 4)
    assert torch.equal(module(x), module.layer(x) + x.mean())
    shown = StandIn.of(x, 1, 4)
    assert torch.equal(shown + 1, x + 1) and torch.equal(shown[:, 5], x[:, 5])
    assert torch.equal(F.linear(shown, module.layer.weight), F.linear(x, module.layer.weight))


MOVES = {
    'permute': (lambda x: x.permute(2, 0, 1), (4, 2, 6)),
    'transpose': (lambda x: x.transpose(-2, -1), (2, 4, 6)),
    'contiguous': (lambda x: x.transpose(0, 2).contiguous(), (4, 6, 2)),
    'pad': (lambda x: F.pad(x, (0, 0, 0, 2)), (2, 8, 4)),
    'view': (lambda x: x.view(x.shape[0], 2, 3, x.shape[2]), (2, 2, 3, 4)),
    'reshape': (lambda x: x.permute(0, 2, 1).reshape(x.size(0), x.size(2), 2, -1), (2, 4, 2, 3)),
    'reshape(-1)': (lambda x: x.reshape(-1, x.shape[-1]), (12, 4)),
}


@pytest.mark.parametrize('move', MOVES)
def test_a_stand_in_goes_on_to_show_its_size(move):
    moved, shape = MOVES[move]
    x = torch.randn(2, 6, 5)
    shown = moved(StandIn.of(x, 2, 4))
    assert shown.shape == shape and shown.dim() == len(shape)
    assert torch.equal(shown + 0, moved(x))


def test_widths_refuse_what_is_no_number_of_heads():
    model = Around(Pretrain(C, HEADS))
    with pytest.raises(ValueError, match="widths of 'attn': num_heads must be a whole number of at least 1, got 0"):
        apply_widths(model, {'attn': {'num_heads': 0}})
    with pytest.raises(ValueError, match="has no attribute 'heads' that is a width"):
        apply_widths(model, {'attn': {'heads': 2}})
    with pytest.raises(ValueError, match='shown_width must be a whole number'):
        apply_widths(model, {'attn': {'shown_width': None}})


# ---- channels of all heads


class OneHead(nn.Module):
    """Attention with a single head, whose code knows its width by attributes."""

    def __init__(self):
        super().__init__()
        self.head_dims, self.embed_dims, self.scale = C, C, 0.5
        self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.head_dims).permute(2, 0, 1, 3)
        y = (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y.reshape(b, n, self.embed_dims))


def head_dim(module, x):
    return x.view(len(x), TOKENS, 3, 3, -1).permute(2, 0, 3, 1, 4)


class Divided(nn.Module):
    """Attention whose scores torch divides by the square root of the number of channels of q and k."""

    def __init__(self, how):
        super().__init__()
        self.num_heads, self.head_dim, self.how = HEADS, C // HEADS, how
        self.q, self.kv, self.proj = nn.Linear(C, C), nn.Linear(C, 2 * C), nn.Linear(C, C)
        self.reader = nn.Linear(C, C)
        self.norm = nn.LayerNorm(C // HEADS)

    def forward(self, x):
        b, n, _ = x.shape
        q, (k, v) = self.q(x), self.kv(x).chunk(2, -1)
        more = self.reader(q.sigmoid()) if self.how == 'read' else 0
        q, k, v = (one.reshape(b, n, self.num_heads, self.head_dim).transpose(1, 2) for one in (q, k, v))
        if self.how == 'softplus':
            k = nn.functional.softplus(k)  # the layer that makes k makes v as well
        if self.how == 'norm':
            q, k = self.norm(q), self.norm(k)
        if self.how == 'silu':
            q = nn.functional.silu(q)  # a factor of k and v does
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, n, self.num_heads * self.head_dim)) + more


DIMS = {
    'mmpretrain window': (*KINDS['mmpretrain window'][:2], C // HEADS, {'shown_width': 3 * HEADS}),
    'mmseg window': (*KINDS['mmseg window'][:2], C // HEADS, {'shown_width': 3 * HEADS}),
    'own code': (lambda: OwnCode(head_dim), 'attn.qkv', C // HEADS, {}),
    'one head': (OneHead, 'attn.qkv', C, {'head_dims': C - 1, 'embed_dims': C - 1}),
    'mmpretrain': (KINDS['mmpretrain'][0], 'attn.qkv', C // HEADS, {'head_dims': 3, 'embed_dims': 9}),
    'silu': (lambda: Divided('silu'), 'attn.q', C // HEADS, {'head_dim': 3}),
}


@pytest.mark.parametrize('kind', DIMS)
def test_the_same_channels_of_all_heads_go(kind):
    build, name, size, attributes = DIMS[kind]
    torch.manual_seed(0)
    model, x = randomize_(Around(build()).double()).eval(), example((TOKENS, 5))
    graph = trace_channels(model, (x,), attention='heads' if kind == 'one head' else 'dims')
    group = graph.group(name)
    assert (group.size, group.frozen, graph.rows(group)) == (size, None, C // size)
    kept = {name: torch.arange(size) != 1}
    error, distance, slim, spec = removal_errors(model, graph, x, kept)
    assert error < 1e-12 and distance > 1e-3
    assert spec['widths'].get('attn', {}) == attributes
    check_rebuilt(build, x, slim, spec)
    check_gated(model, graph, x, kept, slim)


STAY = {
    'softplus': 'divided by the square root of their number',
    'read': 'divided by the square root of their number',
    'norm': 'multiplied as a matrix with other activations (aten.scaled_dot_product_attention in attn)',
}


@pytest.mark.parametrize('how', STAY)
def test_channels_of_heads_stay_where_weights_cannot_make_up_for_the_root_of_their_number(how):
    model, x = randomize_(Around(Divided(how)).double()).eval(), example((TOKENS, 5))
    graph = trace_channels(model, (x,), attention='dims')
    assert graph.group('attn.q').frozen == STAY[how]


def test_channels_that_attention_divides_by_leave_in_training():
    torch.manual_seed(0)
    model, x = randomize_(Around(Pretrain(C, HEADS)).double()).train(), example((TOKENS, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    options = dict(total_steps=20, target_macs=0.6, divisor=1, options=dict(steps=2))
    pruner = GDP(model, (x,), optimizer, attention='dims', **options)
    for step in range(20):
        model(example((TOKENS, 5), seed=step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
        if pruner.controller.settled and not pruner.gates.shrunk:
            before = call(model, x)
            pruner.shrink()
            assert relative_error(call(model, x), before) < 1e-12
    assert 0 < len(pruner.finish()['kept']['attn.qkv']) < C // HEADS


def test_channels_that_attention_divides_by_go_twice():
    model, x = randomize_(Around(Pretrain(C, HEADS)).double()).eval(), example((TOKENS, 5))
    for size, gone in ((4, 1), (3, 0)):
        graph = trace_channels(model, (x,), attention='dims')
        assert graph.group('attn.qkv').size == size
        error, distance, model, _ = removal_errors(model, graph, x, {'attn.qkv': torch.arange(size) != gone})
        assert error < 1e-12 and distance > 1e-3


def heads_of_two(module, x):
    """Two heads of two channels: lengths do not tell which is which."""
    return x.view(len(x), TOKENS, 3, module.num_heads, module.head_dims).permute(2, 0, 3, 1, 4)


class Square(OwnCode):
    """As many heads as channels in each, both known by attributes."""

    def __init__(self):
        super().__init__(heads_of_two)
        self.num_heads, self.head_dims = 2, 2
        self.qkv, self.proj = nn.Linear(C, 12), nn.Linear(4, C)


BOTH = {
    'mmpretrain window': (KINDS['mmpretrain window'][0], 3, 4, {'num_heads': 2, 'shown_width': 6}),
    'mmseg window': (KINDS['mmseg window'][0], 3, 4, {'num_heads': 2, 'shown_width': 6}),
    'own code': (KINDS['own code'][0], 3, 4, {'num_heads': 2}),
    'square': (Square, 2, 2, {'num_heads': 1, 'head_dims': 1}),
}


@pytest.mark.parametrize('kind', BOTH)
def test_heads_and_channels_of_heads_go_together(kind):
    build, heads, dims, attributes = BOTH[kind]
    torch.manual_seed(0)
    model, x = randomize_(Around(build()).double()).eval(), example((TOKENS, 5))
    graph = trace_channels(model, (x,), attention='both')
    groups = [graph.group('attn.qkv'), graph.group('attn.qkv#2')]
    assert [(group.size, group.frozen, graph.rows(group)) for group in groups] == [
        (heads, None, dims),
        (dims, None, heads),
    ]
    kept = {'attn.qkv': torch.arange(heads) != 0, 'attn.qkv#2': torch.arange(dims) % 4 != 1}
    error, distance, slim, spec = removal_errors(model, graph, x, kept)
    assert error < 1e-12 and distance > 1e-3
    followed = spec['widths']['attn']
    assert {name: followed[name] for name in attributes} == attributes
    left = (heads - 1) * int(kept['attn.qkv#2'].sum())
    assert slim.attn.qkv.weight.shape[0] == 3 * left and slim.attn.proj.weight.shape[1] == left
    assert graph.macs(kept) == trace_channels(slim, (x,), attention='both').macs()
    check_rebuilt(build, x, slim, spec)
    check_gated(model, graph, x, kept, slim)


@pytest.mark.parametrize('divisor', [8, 'auto'])
def test_widths_of_heads_and_their_channels_stay_multiples(divisor):
    attn = OwnCode(known_heads)
    attn.num_heads, attn.qkv, attn.proj = 6, nn.Linear(C, 3 * 96), nn.Linear(96, C)
    model, x = Around(attn).eval(), example((TOKENS, 5), dtype=torch.float32)
    graph = trace_channels(model, (x,), attention='both')
    candidates = Candidates.of(graph, Limits(divisor=divisor))
    widths = set()
    for seed in range(20):
        score = torch.rand(graph.num_channels, generator=torch.Generator().manual_seed(seed))
        kept = candidates.choose(score, 0.5)
        candidates.check(kept)
        heads, dims = (int(kept[name].sum()) for name in ('attn.qkv', 'attn.qkv#2'))
        assert dims == 16 or dims % (8 if divisor == 8 else 2) == 0
        widths.add((heads, dims))
    assert len(widths) > 2
    again = candidates.narrowed(narrowed(graph, kept, []))
    for name in ('attn.qkv', 'attn.qkv#2'):
        assert again.multiples[name] == candidates.multiples[name]


def dims_first(module, x):
    return x.view(len(x), TOKENS, 3, 4, module.num_heads).permute(2, 0, 4, 1, 3)


class DimsFirst(OwnCode):
    """Channels of heads outside, heads inside."""

    def forward(self, x):
        q, k, v = self.layout(self, self.qkv(x)).unbind(0)
        y = (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y.permute(0, 2, 3, 1).flatten(2))


def test_heads_may_lie_inside_their_channels():
    model, x = randomize_(Around(DimsFirst(dims_first)).double()).eval(), example((TOKENS, 5))
    graph = trace_channels(model, (x,), attention='both')
    frozen = {group.size: group.frozen for group in graph.groups if group.name.startswith('attn')}
    assert frozen[HEADS] is None and 'fixes its number' in frozen[4]
    (heads,) = [group.name for group in graph.free if group.size == HEADS]
    assert removal_errors(model, graph, x, {heads: torch.tensor([True, False, True])})[0] < 1e-12


@pytest.mark.skipif(
    torch.__version__ < (2, 12),
    reason='older versions split the graph where a gate lets go of a weight',
)
def test_gated_heads_are_captured_as_one_graph():
    model, x = Around(KINDS['mmseg window'][0]()).eval(), example((TOKENS, 5), dtype=torch.float32)
    expected = call(model, x)
    attach_gates(model, trace_channels(model, (x,), attention='both'), PolarizationGate)
    torch._dynamo.reset()  # noqa: SLF001
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    assert relative_error([compiled(x)], expected) < 1e-5


def test_channels_of_heads_go_where_the_code_fixes_the_number_of_heads():
    model, x = randomize_(Around(OwnCode(head_dim)).double()).eval(), example((TOKENS, 5))
    graph = trace_channels(model, (x,), attention='both')
    assert 'fixes its number of heads' in graph.group('attn.qkv').frozen
    assert graph.group('attn.qkv#2').frozen is None
    assert removal_errors(model, graph, x, {'attn.qkv#2': torch.arange(4) != 1})[0] < 1e-12


def test_heads_and_channels_go_where_torch_divides_by_the_root_of_their_number():
    model, x = randomize_(Around(Pretrain(C, HEADS)).double()).eval(), example((TOKENS, 5))
    graph = trace_channels(model, (x,), attention='both')
    kept = {'attn.qkv': torch.arange(HEADS) != 1, 'attn.qkv#2': torch.arange(C // HEADS) > 1}
    error, distance, slim, spec = removal_errors(model, graph, x, kept)
    assert error < 1e-12 and distance > 1e-3
    check_rebuilt(KINDS['mmpretrain'][0], x, slim, spec)
    check_gated(model, graph, x, kept, slim)


METHODS = {
    'gdp': (GDP, dict(total_steps=20, options=dict(steps=2))),
    'gradient': (GDP, dict(total_steps=20, update='gradient')),
    'gate decorator': (
        GateDecorator,
        dict(total_steps=200, fraction=0.2, tick=1, tock=1, ticks=2, tick_lr=1e-4, tock_lr=(1e-4, 1e-3)),
    ),
}


@pytest.mark.parametrize('method', METHODS)
def test_training_goes_on_without_the_heads_and_channels_that_have_left(method):
    make, options = METHODS[method]
    losses = []
    for shrink in (False, True):
        torch.manual_seed(0)
        model = randomize_(Around(KINDS['mmseg window'][0]()).double()).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        limits = dict(target_macs=0.3, divisor=1)
        pruner = make(model, (example((TOKENS, 5)),), optimizer, attention='both', **limits, **options)
        own = []
        for step in range(60):
            if shrink and pruner.controller.settled and not pruner.gates.shrunk:
                pruner.shrink()
                assert model.attn.num_heads < HEADS and model.attn.qkv.out_features % (3 * model.attn.num_heads) == 0
            loss = model(example((TOKENS, 5), seed=step)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            pruner.step()
            own.append(float(loss.detach()))
        assert bool(pruner.gates.shrunk) == shrink
        report = pruner.finish()
        assert len(report['kept']['attn.qkv']) < HEADS and len(report['kept']['attn.qkv#2']) < C // HEADS
        losses.append(own)
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)


def test_unknown_parts_of_attention_are_refused():
    with pytest.raises(ValueError, match="attention must be one of .'both', 'dims', 'heads'., got 'all'"):
        trace_channels(nn.Linear(2, 2), torch.zeros(1, 2), attention='all')


class Tutorial(nn.Module):
    """One head without a view; the scale is a tensor, computed from the width. It does not run without data."""

    def __init__(self, fixed):
        super().__init__()
        self.q, self.k, self.v, self.fixed = nn.Linear(C, 8), nn.Linear(C, 8), nn.Linear(C, C), fixed

    def forward(self, x):
        x = x + torch.arange(TOKENS)[:, None].to(x.dtype)
        q, k = self.q(x), self.k(x)
        width = torch.tensor(8 if self.fixed else q.shape[-1])
        return (q @ k.transpose(-2, -1) / torch.sqrt(width)).softmax(-1) @ self.v(x)


def test_a_scale_that_is_computed_from_a_width_is_found_by_its_result():
    _, graph, _ = traced(Tutorial(fixed=False))
    assert graph.group('attn.q').frozen == 'Tutorial computes something else with fewer heads'
    model, graph, x = traced(Tutorial(fixed=True))
    error, distance, *_ = removal_errors(model, graph, x, {'attn.q': torch.arange(8) < 5})
    assert error < 1e-12 and distance > 1e-3


class TwoUses(Tutorial):
    """A layer reads q twice, of which a gate behind it scales only one; q and k besides have a product."""

    def __init__(self, sigmoid_last):
        super().__init__(fixed=True)
        self.reader, self.sigmoid_last = nn.Linear(8, C), sigmoid_last

    def forward(self, x):
        q = self.q(x)
        uses = [q.sigmoid(), q] if not self.sigmoid_last else [q, q.sigmoid()]
        return super().forward(x) + sum(map(self.reader, uses))


@pytest.mark.parametrize('sigmoid_last', [False, True])
def test_a_reader_is_gated_if_one_of_its_calls_needs_it(sigmoid_last):
    model, graph, x = traced(TwoUses(sigmoid_last))
    kept = {'attn.q': torch.arange(8) < 5}
    assert removal_errors(model, graph, x, kept)[0] < 1e-12
    slim = copy.deepcopy(model)
    slim_model(slim, graph, kept)
    attach_gates(model, graph, PolarizationGate)
    model.gates.close(graph.kept(kept))
    assert relative_error(call(model, x), call(slim, x)) < 1e-12


@pytest.mark.parametrize('shape', [(), (1,), (3,), (2, 1), (2, 3, 4)])
def test_a_bool_argument_of_any_shape_is_tried_with_rows_that_alternate(shape):
    drawn = random_like(torch.Generator().manual_seed(0), torch.ones(shape, dtype=torch.bool))
    assert drawn.shape == shape and drawn.dtype == torch.bool
    assert not shape or (drawn[..., 1:] != drawn[..., :-1]).all()


class ByKeyword(Around):
    """Calls its attention with a keyword argument."""

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.attn(x=self.norm(x)))


@pytest.mark.parametrize('kind', ['mmpretrain window', 'mmseg window'])
def test_the_input_may_be_given_by_keyword(kind):
    torch.manual_seed(0)
    model, x = randomize_(ByKeyword(KINDS[kind][0]()).double()).eval(), example((TOKENS, 5))
    graph = trace_channels(model, (x,))
    assert graph.prunable_macs() == graph.macs()
    kept = random_kept(graph) | {'attn.qkv': torch.tensor([True, False, True])}
    error, distance, slim, spec = removal_errors(model, graph, x, kept)
    assert error < 1e-12 and distance > 1e-3 and spec['widths']['attn']['shown_width'] == 8
    check_gated(model, graph, x, kept, slim)
