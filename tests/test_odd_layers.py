"""Layers with habits of their own: exact in place, rebuilt and trained, or left whole."""

import copy

import pytest
import torch
from helpers import call, random_kept, relative_error, removal_errors
from model_checks import randomize_
from test_odd_models import X, trained
from torch import nn
from torch.nn import functional as F
from toy_nets import conv_bn

from mmprune_gates import GDP, slim_model, trace_channels
from mmprune_gates.engine.onnx_graph import refuse_pooling
from mmprune_gates.slimming import apply_widths

TOKENS = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0))


def rebuilt_error(make, inputs):
    """How far a net, made anew from its widths and the slim state, is off the slim one."""
    torch.manual_seed(0)
    model = randomize_(make()).double().eval()
    graph = trace_channels(model, inputs.double())
    slim = copy.deepcopy(model)
    spec = slim_model(slim, graph, random_kept(graph))
    torch.manual_seed(0)
    fresh = make().double().eval()
    apply_widths(fresh, spec['widths'])
    fresh.load_state_dict(slim.state_dict())
    return relative_error(call(fresh, inputs.double()), call(slim, inputs.double()))


class Scaled(nn.MultiheadAttention):
    """Learns how sharp it is."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, q, k, v, **kwargs):
        return super().forward(q * self.scale, k, v, **kwargs)


class Attending(nn.Module):
    """Attention between two layers."""

    def __init__(self, kind):
        super().__init__()
        self.embed, self.attend, self.head = nn.Linear(6, 24), kind(24, 4, batch_first=True), nn.Linear(24, 3)

    def forward(self, x):
        x = self.embed(x)
        return self.head(x + self.attend(x, x, x)[0])


def test_a_class_derived_from_torchs_attention_keeps_its_forward():
    assert trace_channels(Attending(nn.MultiheadAttention), TOKENS).group('embed').frozen is None
    graph = trace_channels(Attending(Scaled), TOKENS)
    assert not graph.free and 'fixes its number' in graph.group('embed').frozen


class Padded(nn.Module):
    """A transformer that is told which tokens are padding."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(24, 4, 32, batch_first=True)
        self.embed, self.encoder, self.head = nn.Linear(6, 24), nn.TransformerEncoder(layer, 2), nn.Linear(24, 3)

    def forward(self, x, pad=None):
        return self.head(self.encoder(self.embed(x), src_key_padding_mask=pad)[:, 0])


@pytest.mark.parametrize('traced_with', ['padding', 'none'])
def test_padded_sequences_are_pruned_and_evaluated(traced_with):
    pad = torch.arange(9).expand(2, 9) > 6
    inputs = (TOKENS, pad) if traced_with == 'padding' else TOKENS
    pruner = trained(Padded(), inputs, loss=lambda model: model(TOKENS, pad).square().mean(), target_macs=0.9)
    model = pruner.model.eval()
    with torch.no_grad():
        gated = model(TOKENS, pad)
    assert pruner.finish()['parity_error'] < 1e-5
    with torch.no_grad():
        assert torch.allclose(model(TOKENS, pad), gated, atol=1e-5)


class Positions(nn.Module):
    """Adds a buffer that is not saved."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 16), conv_bn(16, 16), nn.Conv2d(16, 4, 1)
        self.register_buffer('positions', torch.linspace(0, 3, 16).sin().view(1, 16, 1, 1), persistent=False)

    def forward(self, x):
        return self.head(self.b(self.a(x) + self.positions))


class Gain(nn.Conv2d):
    """A convolution with one more parameter for each channel."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1))

    def forward(self, x):
        return super().forward(x) * self.gain


@pytest.mark.parametrize(
    'make',
    [Positions, lambda: nn.Sequential(Gain(3, 16, 3), nn.ReLU(), Gain(16, 12, 3), nn.ReLU(), nn.Conv2d(12, 4, 1))],
)
def test_what_else_a_module_holds_for_each_channel_is_rebuilt(make):
    assert rebuilt_error(make, X) < 1e-12


class ThereAndBack(nn.Module):
    """One weight makes channels and takes them back, with nothing but a rectifier between."""

    def __init__(self, inner):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inner, 8, 3, 3))

    def forward(self, x):
        return F.conv_transpose2d(F.relu(F.conv2d(x, self.weight, padding=1)), self.weight, padding=1)


@pytest.mark.parametrize('inner', [8, 12])
def test_a_weight_that_is_used_both_ways_keeps_its_channels(inner):
    net = nn.Sequential(conv_bn(3, 8), ThereAndBack(inner), nn.ReLU(), conv_bn(8, 6), nn.Conv2d(6, 4, 1))
    graph = trace_channels(net, X)
    assert 'reads them in several ways' in graph.group('1').frozen
    assert trained(net, target_macs=0.95).finish()['parity_error'] < 1e-5


class Noisy(nn.Module):
    """Adds noise in training, as much as there were channels when it was made."""

    def forward(self, x):
        return x + 0.1 * torch.randn(len(x), 16, 1, 1) if self.training else x


def test_code_for_training_only_is_rehearsed():
    net = nn.Sequential(conv_bn(3, 16), Noisy(), conv_bn(16, 16), nn.Conv2d(16, 4, 1))
    graph = trace_channels(net, X, trains=True)
    assert graph.group('0.0').frozen and graph.group('2.0').frozen is None
    pruner = trained(net)
    pruner.shrink()
    net.train()(X)


class Masked(nn.Module):
    """Attention with a mask of either convention: True may attend, or True is hidden."""

    def __init__(self, hides):
        super().__init__()
        self.embed, self.qkv, self.out = nn.Linear(6, 24), nn.Linear(24, 72), nn.Linear(24, 24)
        self.head, self.hides, self.num_heads = nn.Linear(24, 3), hides, 4

    def forward(self, x, mask):
        x = self.embed(x)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attends = ~mask if self.hides else mask
        sums = F.scaled_dot_product_attention(q, k, v, attends[:, None, None])
        return self.head(x + self.out(sums.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize('hides', [True, False])
def test_heads_go_whichever_value_of_a_mask_hides(hides):
    model = randomize_(Masked(hides)).double().eval()
    inputs = (TOKENS.double(), (torch.arange(9).expand(2, 9) > 6) == hides)
    graph = trace_channels(model, inputs)
    heads = [group for group in graph.free if group.size == 4]
    assert len(heads) == 1
    masked, _, _, _ = removal_errors(model, graph, inputs, random_kept(graph), lambda net, both: net(*both))
    assert masked < 1e-12


class Changing(nn.Module):
    """Normalises its input in place."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 8), conv_bn(8, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x.sub_(0.5).div_(0.25)
        return self.head(self.b(self.a(x)))


def test_inputs_that_a_model_changes_are_not_changed_by_the_pruner():
    net, inputs = Changing().double(), X.double()
    before = inputs.clone()
    GDP(net, inputs, torch.optim.SGD(net.parameters(), 0.01), total_steps=10, target_macs=0.5)
    assert torch.equal(inputs, before)


def test_a_model_that_cannot_be_copied_is_refused_with_what_to_do():
    net = nn.Sequential(conv_bn(3, 8), nn.utils.weight_norm(nn.Conv2d(8, 4, 1)))
    with pytest.raises(RuntimeError, match=r'cannot be copied.*parametrizations.weight_norm'):
        trace_channels(net, X)


@pytest.mark.parametrize('size', [(None, 1), (1, 2)])
def test_pooling_to_a_size_of_the_image_is_refused_for_any_size(size):
    program = torch.export.export(nn.AdaptiveAvgPool2d(size), (X,))
    with pytest.raises(ValueError, match='leave out --dynamic-size'):
        refuse_pooling(program)
