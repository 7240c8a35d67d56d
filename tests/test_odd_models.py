"""Models with habits of their own, from their trace to the end of a run: exact, or refused before the run."""

import copy

import pytest
import torch
from helpers import call, random_kept, relative_error, removal_errors
from torch import nn
from torch.nn import functional as F
from toy_nets import conv, conv_bn

from mmprune_gates import GDP, GateDecorator, masked_copy, slim_model, trace_channels
from mmprune_gates.slimming import remove_modules

STEPS = 24
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
GBN = dict(tick=1, tock=2, ticks=2, fraction=0.1)


@pytest.fixture(autouse=True)
def repeatable():
    """The same weights in every order of the tests."""
    torch.manual_seed(0)


def trained(model, inputs=X, method=GDP, loss=None, **settings):
    """A pruner at the end of a short run."""
    torch.manual_seed(0)
    loss = loss or (lambda model: model(inputs).float().square().mean())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    own = dict(target_macs=0.5, floor=0.1, divisor=1, **(GBN if method is GateDecorator else {}))
    pruner = method(model, inputs, optimizer, total_steps=STEPS, **{**own, **settings})
    for _ in range(STEPS):
        model.train()
        loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    return pruner


class Parts(nn.Module):
    """Two layers and a head; variants compute with them in their own ways."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = conv_bn(3, 8), conv_bn(8, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.out(self.b(self.a(x)))


class FixedPrecision(Parts):
    """Goes on in single precision from the middle, so that it cannot run in float64."""

    def forward(self, x):
        x = self.a(x)
        return self.out((x + self.b(x)).float())


@pytest.mark.parametrize('method', [GDP, GateDecorator])
def test_a_model_that_fixes_its_precision_is_compared_in_that(method):
    pruner = trained(FixedPrecision(), method=method)
    pruner.shrink()
    report = pruner.finish()
    assert report['parity_error'] < 1e-5 and report['macs']['after'] < report['macs']['before']


class HalfOfIt(Parts):
    """Layers in bfloat16 among others."""

    def __init__(self):
        super().__init__()
        self.b, self.c = self.b.bfloat16(), nn.Conv2d(8, 8, 1).bfloat16()

    def forward(self, x):
        x = F.silu(self.b(self.a(x).bfloat16()))
        return self.out(F.silu(self.c(x)).float())


def test_layers_of_another_precision_are_gated():
    assert trained(HalfOfIt()).finish()['macs']['after'] > 0


class Numbered(Parts):
    """Its first parameter is a tensor of whole numbers."""

    def __init__(self):
        super().__init__()
        self.counts = nn.Parameter(torch.arange(3), requires_grad=False)
        self._parameters = {'counts': self.counts, **self._parameters}


def test_gates_are_numbers_with_a_fraction_whatever_the_first_parameter_is():
    assert trained(Numbered()).finish()['parity_error'] < 1e-5


def test_what_takes_the_place_of_a_block_is_a_number_with_a_fraction_too():
    model = Numbered()
    remove_modules(model, {'b': [1, 8, 1, 1]})
    assert model.b.constant.dtype == torch.float32 and torch.isfinite(model(X)).all()


class Dropped(Parts):
    """Computes a branch and drops it."""

    def __init__(self):
        super().__init__()
        self.unused = conv(8, 8)

    def forward(self, x):
        x = self.a(x)
        self.unused(x).relu()
        return self.out(self.b(x))


@pytest.mark.parametrize('method', [GDP, GateDecorator])
def test_channels_that_nothing_reads_stay(method):
    graph = trace_channels(Dropped(), X)
    assert graph.group('unused').frozen == 'read by nothing in the traced passes'
    assert trained(Dropped(), method=method, exclude=['unused'], target_macs=0.8).finish()['macs']['after'] > 0


class Walks(nn.Sequential):
    """Runs over its children, with a function between them."""

    def forward(self, x):
        for number, layer in enumerate(self):
            x = layer(x)
            if number < len(self) - 1:
                x = torch.relu(x)
        return x


def test_a_model_that_runs_over_its_children_is_refused_before_the_run():
    x = torch.randn(4, 6)
    model = Walks(nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4))
    expected = call(model, x)
    with pytest.raises(ValueError, match='Walks computes something else with a submodule .gates.'):
        GDP(model, x, torch.optim.SGD(model.parameters(), 0.1), total_steps=10, target_macs=0.5)
    assert relative_error(call(model, x), expected) == 0 and not hasattr(model, 'gates')
    assert trained(nn.Sequential(model), x).finish()['parity_error'] < 1e-5


class OtherPass(Parts):
    """The training pass leaves out what only inference does: it divides by a width, in a way that nothing sees."""

    def forward(self, x):
        x = self.a(x)
        return self.out(self.b(x) / torch.Tensor([x.shape[1]]))

    def loss(self, x):
        return self.out(self.b(self.a(x)))


def test_both_passes_are_compared():
    model = OtherPass()
    passes = dict(forward=lambda model, x: model(x), train_forward=lambda model, x: model.loss(x))
    pruner = trained(model, loss=lambda model: model.loss(X).square().mean(), **passes, target_macs=0.3)
    with pytest.raises(RuntimeError, match='differs from the gated one'):
        pruner.finish()


class Hidden(nn.Module):
    """A view whose first part shrinks, behind which nothing shows as the model begins."""

    def __init__(self, gamma, scale):
        super().__init__()
        self.stem, self.a, self.b = conv_bn(3, 16), conv_bn(16, 16), nn.Conv2d(16, 16, 3, padding=1)
        self.norm, self.out = nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1)
        nn.init.constant_(self.norm.weight, gamma)
        self.scale = nn.Parameter(torch.full((16, 1, 1), scale))

    def forward(self, x):
        x = self.stem(x)
        y = self.a(x)
        n, c, h, w = y.shape
        y = y.view(n, c // 4, 4, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.out((x + self.scale * self.norm(self.b(y))).relu())


@pytest.mark.parametrize(('gamma', 'scale'), [(1.0, 1.0), (0.0, 1.0), (1.0, 1e-6)])
def test_a_wrong_guess_of_a_view_shows_behind_weights_of_zero(gamma, scale):
    graph = trace_channels(Hidden(gamma, scale), X)
    assert graph.group('a.0').frozen == 'the code cuts its channels in another way than can be told'


class Attends(nn.Module):
    """Attention of torch as a direct child, with its weights."""

    def __init__(self):
        super().__init__()
        self.embed, self.attention, self.out = (
            nn.Linear(6, 24),
            nn.MultiheadAttention(24, 4, batch_first=True),
            nn.Linear(24, 3),
        )

    def forward(self, x):
        x = self.embed(x)
        return self.out(self.attention(x, x, x)[0])


class Indexed(nn.Module):
    """Biases of attention, picked by a buffer of indices."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.qkv, self.proj = 4, nn.Linear(24, 72), nn.Linear(24, 24)
        self.biases = nn.Parameter(torch.randn(4, 5))
        self.register_buffer('index', torch.randint(5, (9, 9), generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind()
        scores = q @ k.transpose(2, 3) * 0.4 + self.biases[:, self.index]
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, -1))


class Positions(nn.Module):
    """The same, around it what makes and reads its stream."""

    def __init__(self):
        super().__init__()
        self.embed, self.attention, self.out = nn.Linear(6, 24), Indexed(), nn.Linear(24, 3)

    def forward(self, x):
        return self.out(self.attention(self.embed(x)))


@pytest.mark.parametrize(('net', 'heads'), [(Attends, 'attention'), (Positions, 'attention.qkv')])
def test_heads_go_from_a_direct_child_and_from_indexed_biases(net, heads):
    torch.manual_seed(0)
    model, x = net().double().eval(), torch.randn(2, 9, 6).double()
    graph = trace_channels(model, x)
    assert any(group.name.startswith(heads) and group.size == 4 for group in graph.free_channels)
    error, distance, *_ = removal_errors(model, graph, x, random_kept(graph))
    assert error < 1e-12 and distance > 1e-3


class Expanded(Parts):
    """A buffer that holds one number for all channels."""

    def __init__(self):
        super().__init__()
        self.register_buffer('scale', torch.full((1,), 0.5).expand(8))

    def forward(self, x):
        return self.out(self.b(self.a(x)) * self.scale.view(1, -1, 1, 1))


def test_a_buffer_without_memory_of_its_own_is_masked_by_channel():
    model = Expanded().eval()
    graph = trace_channels(model, X)
    kept = {'a.0': torch.arange(8) < 5, 'b.0': torch.arange(8) < 6}
    slim = copy.deepcopy(model)
    slim_model(slim, graph, kept)
    assert relative_error(call(masked_copy(model, graph, kept), X), call(slim, X)) < 1e-5


def test_a_state_from_before_channels_left_is_refused():
    pruner = trained(Parts())
    before = pruner.state_dict()
    pruner.shrink()
    with pytest.raises(ValueError, match='other channels have left the model than when the state was saved'):
        pruner.load_state_dict(before)
