"""A narrower copy on the meta device finds the code that does not follow; what it touches is frozen, with the line."""

import copy

import pytest
import torch
from helpers import example, random_kept, randomize_, removal_errors
from torch import nn
from toy_nets import conv, conv_bn

from mmprune_gates import trace_channels
from mmprune_gates.channels.groups import Group
from mmprune_gates.engine.builders import trace
from mmprune_gates.slimming.rehearsal import less


class Follows(nn.Module):
    """A view whose sizes are those of its own tensor."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head = conv_bn(3, 6), conv_bn(6, 9), conv_bn(9, 6), conv(6, 4)
        self.width = 9

    def forward(self, inputs, mode='tensor'):
        x = self.b(self.a(inputs))
        return self.head(self.c(self.shaped(x, inputs)))

    def shaped(self, x, inputs):
        n, c, h, w = x.shape
        return x.view(n, c, h * w).view(n, c, h, w)


class Attribute(Follows):
    """A channel count from an attribute, on a line of several."""

    def shaped(self, x, inputs):
        return x.view(
            -1,
            self.width,
            *inputs.shape[2:],
        )


class Halved(Follows):
    """Half of its channels of two samples would make one whole sample of it."""

    def __init__(self):
        super().__init__()
        self.b, self.c, self.width = conv_bn(6, 2), conv_bn(2, 6), 2

    def shaped(self, x, inputs):
        return x.view(-1, self.width, 8, 8)


class Elsewhere(Follows):
    """A channel count from another tensor."""

    def forward(self, inputs, mode='tensor'):
        a = self.a(inputs)
        c = self.c(self.b(a))
        return self.head(c.view(a.shape))


class Twice(Follows):
    """Two such lines."""

    def shaped(self, x, inputs):
        x = x.view(-1, self.width, 8, 8)
        return x.reshape(-1, self.width, 8, 8)


def built(net):
    torch.manual_seed(0)
    return randomize_(net().eval())


def test_code_that_follows_freezes_nothing():
    model = built(Follows)
    graph = trace(model, (3, 8, 8))
    assert {group.name for group in graph.free} == {'a.0', 'b.0', 'c.0'}
    assert graph.groups == trace_channels(model, torch.zeros(1, 3, 8, 8), rehearsal=False).groups


@pytest.mark.parametrize(
    ('net', 'free'),
    [(Attribute, {'a.0', 'c.0'}), (Halved, {'a.0', 'c.0'}), (Elsewhere, {'b.0'}), (Twice, {'a.0', 'c.0'})],
)
def test_code_that_does_not_follow_is_found_and_frozen(net, free):
    model = built(net)
    before = copy.deepcopy(model.state_dict())
    assert {group.name for group in trace_channels(model, torch.zeros(2, 3, 8, 8)).free} == free
    unrehearsed = trace_channels(model, torch.zeros(2, 3, 8, 8), rehearsal=False)
    assert {group.name for group in unrehearsed.free} == {'a.0', 'b.0', 'c.0'}
    graph = trace(model, (3, 8, 8))
    assert {group.name for group in graph.free} == free
    reasons = {group.frozen for group in graph.groups if group.frozen and 'fixes its number' in group.frozen}
    assert reasons and all('test_rehearsal.py:' in reason for reason in reasons)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    error, distance, slim, _ = removal_errors(model.double(), graph, example((3, 8, 8)), random_kept(graph))
    assert error < 1e-12 and distance > 1e-3


class Less(Follows):
    """Where it is narrow it leaves out the last of its computations."""

    def forward(self, inputs, mode='tensor'):
        b = self.b(self.a(inputs))
        found = self.head(self.c(b))
        return found * 3 if b.shape[1] == self.width else found


def test_code_that_computes_less_where_it_is_narrow_is_found():
    graph = trace_channels(built(Less), torch.zeros(1, 3, 8, 8))
    assert {group.name for group in graph.free} == {'a.0', 'c.0'}
    assert graph.group('b.0').frozen == 'how much the code computes depends on its number of channels'


def test_small_groups_are_tried_at_odd_and_at_even_widths():
    for size in range(3, 9):
        group = Group('a', size, None, 0)
        widths = {int(less(group, number).sum()) % 2 for number in (1, 0)}
        assert widths == {0, 1}


class NeedsData(Attribute):
    """It does not run on the meta device."""

    def forward(self, inputs, mode='tensor'):
        assert inputs.device.type != 'meta'
        return super().forward(inputs)


def test_a_model_that_cannot_run_without_data_is_rehearsed_with_data():
    assert {group.name for group in trace(built(NeedsData), (3, 8, 8)).free} == {'a.0', 'c.0'}


class FixedBatch(Attribute):
    """It does not run with one sample."""

    def forward(self, inputs, mode='tensor'):
        return super().forward(inputs.view(2, *inputs.shape[1:]))


def test_a_model_that_fixes_its_batch_is_rehearsed_with_that_batch():
    assert {group.name for group in trace_channels(built(FixedBatch), torch.zeros(2, 3, 8, 8)).free} == {'a.0', 'c.0'}


def test_a_model_that_does_not_run_with_its_inputs():
    class OnlyOnce(Follows):
        def forward(self, inputs, mode='tensor'):
            assert torch.compiler.is_compiling()
            return super().forward(inputs)

    with pytest.raises(RuntimeError, match='OnlyOnce does not run with the example inputs(.|\n)*Pass inputs'):
        trace_channels(built(OnlyOnce), torch.zeros(1, 3, 8, 8))


class ComputesWith(Follows):
    """A factor of its width: it runs at any width, and computes something else at each."""

    def shaped(self, x, inputs):
        return x / x.shape[1]


class Root(Follows):
    """The same by a factor that is no whole number."""

    def shaped(self, x, inputs):
        return x * x.shape[1] ** -0.5


class Constant(Follows):
    """The same in a tensor."""

    def shaped(self, x, inputs):
        return x + torch.full((1, 1, 1, 1), 1 / x.shape[1], device=x.device)


class Scalar(Follows):
    """The same in a tensor of one number."""

    def shaped(self, x, inputs):
        return x * torch.tensor(x.shape[1] ** -0.5)


class Branch(Follows):
    """Another way for narrow tensors."""

    def shaped(self, x, inputs):
        return x * 0.5 if x.shape[1] > 8 else x


@pytest.mark.parametrize('net', [ComputesWith, Root, Constant, Scalar, Branch])
def test_code_that_computes_with_a_width_is_found_and_frozen(net):
    model = built(net)
    graph = trace_channels(model, torch.zeros(1, 3, 8, 8))
    assert {group.name for group in graph.free} == {'a.0', 'c.0'}
    assert graph.group('b.0').frozen.startswith('test_rehearsal.py:')
    assert graph.group('b.0').frozen.endswith(' computes with its number of channels')
    error, distance, *_ = removal_errors(model.double(), graph, example((3, 8, 8)), random_kept(graph))
    assert error < 1e-12 and distance > 1e-3


def test_the_rehearsal_sees_the_training_pass():
    class Auxiliary(Follows):
        """A training pass that fixes a width, and runs in training mode only."""

        def train_forward(self, inputs):
            assert self.training
            x = self.b(self.a(inputs))
            return self.head(self.c(x)), self.head(self.c(x.view(-1, 9, 8, 8)))

    alone = trace_channels(built(Auxiliary), torch.zeros(2, 3, 8, 8), forward=Follows.forward)
    assert {group.name for group in alone.free} == {'a.0', 'b.0', 'c.0'}
    graph = trace_channels(built(Auxiliary), torch.zeros(2, 3, 8, 8), train_forward=Auxiliary.train_forward)
    assert {group.name for group in graph.free} == {'a.0', 'c.0'}


def test_the_trace_draws_no_random_numbers():
    model = built(Follows)
    state = torch.random.get_rng_state()
    trace_channels(model, torch.zeros(1, 3, 8, 8))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_trace_does_not_seed_the_gpus(monkeypatch):
    model = built(Follows)
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', lambda seed: pytest.fail('all GPUs were seeded'))
    trace_channels(model, torch.zeros(1, 3, 8, 8))


class Residual(nn.Module):
    """A branch between whose modules, or beside which, code needs what goes with it."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.head = conv_bn(3, 6), conv(6, 5), conv_bn(5, 6, act=nn.Identity), conv(6, 4)
        self.gamma = nn.Parameter(torch.rand(5, 1, 1))

    def forward(self, inputs, mode='tensor'):
        return self.head(self.block(self.stem(inputs)))

    def block(self, x):
        return x + self.b(torch.relu(self.a(x)))


class Between(Residual):
    """A factor of the inner width."""

    def block(self, x):
        return x + self.b(self.a(x) * self.gamma)


class Attributes(Residual):
    """Attributes of a layer."""

    def block(self, x):
        return x + self.b(torch.relu(self.a(x))) if self.a.out_channels > 1 else x


@pytest.mark.parametrize('net', [Between, Attributes])
def test_a_block_that_the_code_cannot_do_without_stays(net):
    assert [group.is_block for group in trace(built(Residual), (3, 8, 8), 'both').free] == [False] * 2 + [True]
    graph = trace(built(net), (3, 8, 8), 'both')
    assert not any(group.is_block for group in graph.free) and not graph.lasts
    (block,) = (group for group in graph.groups if group.is_block)
    assert block.frozen.startswith('test_rehearsal.py:') and block.frozen.endswith(' needs it')
    assert {group.name for group in graph.free} == {'stem.0', 'a'}


class Shuffle(nn.Module):
    """A channel shuffle whose view counts channels in its first part, its second, or in -1."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes = sizes
        self.a, self.b = conv_bn(3, 16), conv(16, 4)

    def forward(self, x):
        x = self.a(x)
        n, c, h, w = x.shape
        return self.b(x.view(n, *self.sizes(c), h, w).transpose(1, 2).reshape(n, c, h, w))


@pytest.mark.parametrize('sizes', [lambda c: (c // 4, 4), lambda c: (-1, c // 4), lambda c: (c // 2, 2)])
def test_a_view_that_shrinks_where_it_was_not_expected_to_is_found(sizes):
    graph = trace_channels(randomize_(Shuffle(sizes).double()).eval(), example((3, 8, 8)))
    assert graph.group('a.0').frozen == 'the code cuts its channels in another way than can be told'


@pytest.mark.parametrize('sizes', [lambda c: (4, c // 4), lambda c: (4, -1), lambda c: (-1, 4)])
def test_a_view_that_shrinks_where_it_was_expected_to_loses_channels(sizes):
    model = randomize_(Shuffle(sizes).double()).eval()
    graph = trace_channels(model, example((3, 8, 8)))
    error, distance, *_ = removal_errors(model, graph, example((3, 8, 8)), random_kept(graph))
    assert graph.group('a.0').frozen is None and error < 1e-12 and distance > 1e-3


def halves(x, first):
    """Two pieces of channels, the first of them changed."""
    return torch.cat([torch.tanh(x[:, :first]), x[:, first:]], 1)


class Trained(nn.Module):
    """What it computes in its training pass, and in training mode, is more than inference."""

    def __init__(self, pieces, in_training_mode=None):
        super().__init__()
        self.a, self.b = conv_bn(3, 8), conv(8, 4)
        self.pieces, self.in_training_mode = pieces, in_training_mode

    def forward(self, x):
        x = self.a(x)
        return self.b(self.in_training_mode(x) if self.training and self.in_training_mode else x)

    def loss(self, x):
        return self.b(self.pieces(self.a(x)))


@pytest.mark.parametrize(
    ('pieces', 'reason'),
    [
        (lambda x: halves(x, x.shape[1] // 2), None),
        (lambda x: halves(x, 4), 'computes with its number of channels'),
        (lambda x: x.view(len(x), x.shape[1] // 2, 2, 8, 8).flip(1).flatten(1, 2), 'the code cuts its channels'),
    ],
)
def test_pieces_in_a_training_pass_are_tried_too(pieces, reason):
    graph = trace_channels(Trained(pieces).eval(), example((3, 8, 8)).float(), train_forward=Trained.loss)
    frozen = graph.group('a.0').frozen
    assert frozen is None if reason is None else reason in frozen


def test_a_training_pass_is_rehearsed_in_training_mode():
    model = Trained(lambda x: x, lambda x: x.view(len(x), 2, 4, 8, 8).flatten(1, 2)).eval()
    graph = trace_channels(model, example((3, 8, 8)).float(), train_forward=lambda model, x: model(x))
    assert 'fixes its number of channels' in graph.group('a.0').frozen


def test_infinite_outputs_do_not_hide_the_others():
    class Masked(Trained):
        def forward(self, x):
            return self.loss(x), torch.full((2,), -torch.inf)

    model = Masked(lambda x: x.view(len(x), x.shape[1] // 2, 2, 8, 8).flip(1).flatten(1, 2)).eval()
    assert 'the code cuts its channels' in trace_channels(model, example((3, 8, 8)).float()).group('a.0').frozen


@pytest.mark.parametrize(
    'op',
    [
        lambda x: x.roll(x.shape[1] // 4, 2),
        lambda x: nn.functional.avg_pool2d(x, 3, 1, 1, divisor_override=x.shape[1]),
        lambda x: nn.functional.max_pool2d(x, x.shape[1] // 4, 1)[..., :4, :4],
        lambda x: nn.functional.pad(x, [x.shape[1] // 4] * 4)[..., :8, :8],
        lambda x: nn.functional.pad(x, [x.shape[1] // 4] * 4, mode='reflect')[..., :8, :8],
    ],
)
def test_windows_that_depend_on_the_width_are_noticed(op):
    graph = trace_channels(Trained(op).eval(), example((3, 8, 8)).float(), lambda model, x: model.loss(x))
    assert 'its number of channels' in graph.group('a.0').frozen
