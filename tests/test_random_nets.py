"""Nets put together at random from what real ones are made of: whatever the graph says, removal is exact.

``MMPRUNE_GATES_EXAMPLES`` is the number of nets, drawn anew; by default 25, in the slow suite 300, always the same.
"""

import copy
import os

import pytest
import torch
import torch.nn.functional as F
from helpers import call, example, random_kept, randomize_, relative_error, removal_errors, slow_but
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from toy_nets import ResponseNorm

from mmprune_gates import masked_copy, slim_model, trace_channels
from mmprune_gates.gates import (
    DecoratorGate,
    PolarizationGate,
    attach_gates,
    detach_gates,
    fold_gates,
    take_over_affine,
)
from mmprune_gates.slimming import apply_widths, remove_modules

EXAMPLES = int(os.environ.get('MMPRUNE_GATES_EXAMPLES', 0))
ACTS = {
    'relu': nn.ReLU,
    'inplace': lambda: nn.ReLU(inplace=True),
    'silu': nn.SiLU,
    'relu6': nn.ReLU6,
    'hardswish': nn.Hardswish,
    'prelu': nn.PReLU,
    'sigmoid': nn.Sigmoid,
    'none': nn.Identity,
}
NORMS = {
    'bn': nn.BatchNorm2d,
    'plain bn': lambda c: nn.BatchNorm2d(c, affine=False),
    'gn': lambda c: nn.GroupNorm(2 - c % 2, c),
    'ln': lambda c: Transposed(nn.LayerNorm(c)),
    'grn': ResponseNorm,
    'none': lambda c: nn.Identity(),
}


class Transposed(nn.Sequential):
    """Modules for (N, H, W, C) on (N, C, H, W)."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def layer(i, o, act, norm, k=3, **options):
    """Convolution, norm, activation."""
    return nn.Sequential(nn.Conv2d(i, o, k, padding=k // 2, **options), NORMS[norm](o), ACTS[act]())


class Block(nn.Module):
    """One piece of a net; ``out`` is its width."""

    def __init__(self, kind, c, width, act, norm):
        super().__init__()
        self.kind, self.out = kind, c
        build = getattr(self, f'build_{kind}')
        build(c, width, act, norm)

    def forward(self, x, saved):
        return getattr(self, f'run_{self.kind}')(x, saved)

    def build_conv(self, c, width, act, norm):
        self.out, self.a = width, layer(c, width, act, norm)

    def run_conv(self, x, saved):
        return self.a(x)

    def build_residual(self, c, width, act, norm):
        self.a, self.b, self.act = layer(c, width, act, norm), layer(width, c, 'none', norm), ACTS[act]()

    def run_residual(self, x, saved):
        return self.act(x + self.b(self.a(x)))

    def build_dense(self, c, width, act, norm):
        self.out, self.norm, self.a = c + width, NORMS[norm](c), layer(c, width, act, norm)

    def run_dense(self, x, saved):
        return torch.cat([x, self.a(F.relu(self.norm(x)))], 1)

    def build_skip(self, c, width, act, norm):
        self.out, self.a = width, None
        self.args = (width, act, norm)

    def run_skip(self, x, saved):
        return self.a(torch.cat([x, saved], 1))

    def build_add_skip(self, c, width, act, norm):
        self.a, self.args = None, (c, act, norm)

    def run_add_skip(self, x, saved):
        return x + self.a(saved)

    def build_chunk(self, c, width, act, norm):
        self.a = layer(c // 2, c // 2, act, norm)

    def run_chunk(self, x, saved):
        left, right = x.chunk(2, 1)
        return torch.cat([self.a(right), left], 1)

    def build_split(self, c, width, act, norm):
        self.half, self.a = c // 2, layer(c // 2, c // 2, act, norm)

    def run_split(self, x, saved):
        left, right = x.split(self.half, 1)
        return torch.cat([self.a(right), left], 1)

    def build_shuffle(self, c, width, act, norm):
        self.a = layer(c, c, act, norm, k=1, groups=2)

    def run_shuffle(self, x, saved):
        n, c, h, w = x.shape
        return self.a(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))

    def build_shared(self, c, width, act, norm):
        self.a, self.norm1, self.norm2 = layer(c, c, act, 'none'), NORMS[norm](c), NORMS[norm](c)

    def run_shared(self, x, saved):
        return self.norm2(self.a(self.norm1(self.a(x))))

    def build_groups(self, c, width, act, norm):
        self.out, self.a = width, layer(c, width, act, norm, groups=2)

    run_groups = run_conv

    def build_depthwise(self, c, width, act, norm):
        self.a = layer(c, c, act, norm, groups=c, bias=norm == 'none')

    run_depthwise = run_conv

    def build_multiplier(self, c, width, act, norm):
        self.out, self.a = 2 * c, layer(c, 2 * c, act, norm, groups=c)

    run_multiplier = run_conv

    def build_squeeze(self, c, width, act, norm):
        self.a, self.b = layer(c, width, act, 'none', k=1), layer(width, c, 'sigmoid', 'none', k=1)

    def run_squeeze(self, x, saved):
        return x * self.b(self.a(x.mean((2, 3), keepdim=True)))

    def build_attention(self, c, width, act, norm):
        self.a = layer(c, 1, 'sigmoid', 'none')

    def run_attention(self, x, saved):
        return x * self.a(x)

    def build_up(self, c, width, act, norm):
        self.out = width
        self.a = nn.ConvTranspose2d(c, width, 2, stride=2, groups=2)
        self.b = nn.Sequential(NORMS[norm](width), ACTS[act]())

    def run_up(self, x, saved):
        return F.avg_pool2d(self.b(self.a(x)), 2)

    def build_resize(self, c, width, act, norm):
        self.out, self.a = width, layer(c, width, act, norm)

    def run_resize(self, x, saved):
        return F.interpolate(self.a(F.max_pool2d(x, 2)), size=x.shape[2:], mode='bilinear')

    def build_scale(self, c, width, act, norm):
        self.gamma, self.beta = nn.Parameter(torch.ones(c, 1, 1)), nn.Parameter(torch.ones(1, c, 1, 1))

    def run_scale(self, x, saved):
        return x * self.gamma + self.beta

    def build_inplace(self, c, width, act, norm):
        self.a = layer(c, c, 'none', norm)

    def run_inplace(self, x, saved):
        y = self.a(x)
        y += x
        return y.relu_()


KINDS = sorted(name.removeprefix('build_') for name in vars(Block) if name.startswith('build_'))


class Net(nn.Module):
    """Stem, blocks, heads; a block may read what the stem made, or what an earlier block did."""

    def __init__(self, stem, blocks, two_heads, linear):
        super().__init__()
        self.stem = layer(3, 8, *stem)
        self.blocks, c, widths = nn.ModuleList(), 8, [8]
        self.sources = [index % (i + 1) for i, (*_, index) in enumerate(blocks)]
        for (kind, width, act, norm, _), source in zip(blocks, self.sources, strict=True):
            block = Block(kind, c, width, act, norm)
            if kind == 'skip':
                block.a = layer(c + widths[source], *block.args)
            elif kind == 'add_skip':
                block.a = layer(widths[source], *block.args)
            self.blocks.append(block)
            c = block.out
            widths.append(c)
        self.head = nn.Linear(c * 4, 5) if linear else nn.Conv2d(c, 5, 1)
        self.other = nn.Conv2d(widths[len(widths) // 2], 3, 1) if two_heads else None

    def forward(self, x):
        made = [self.stem(x)]
        for block, source in zip(self.blocks, self.sources, strict=True):
            made.append(block(made[-1], made[source]))
        last = F.adaptive_avg_pool2d(made[-1], 2).flatten(1) if isinstance(self.head, nn.Linear) else made[-1]
        first = self.head(last)
        return first if self.other is None else (first, self.other(made[len(made) // 2]))


acts, norms = st.sampled_from(list(ACTS)), st.sampled_from(['bn', 'bn', 'bn', *NORMS])
blocks = st.tuples(st.sampled_from(KINDS), st.sampled_from([4, 6, 8]), acts, norms, st.integers(0, 5))
nets = st.tuples(st.tuples(acts, norms), st.lists(blocks, min_size=1, max_size=6), st.booleans(), st.booleans())


def tried(check, number, **strategies):
    """Try a check with so many draws, always the same ones, or with as many new ones as the environment says."""
    own = settings(
        max_examples=EXAMPLES or number,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    own(given(**strategies)(check))()


@pytest.mark.parametrize('number', slow_but((25,), (25, 300)))
def test_removal_is_exact_in_random_nets(number):
    units = st.sampled_from(['channels', 'channels', 'both', 'blocks'])
    changed = []

    def check(net, seed, units):
        changed.append(removal_is_exact(net, seed, units) > 1e-3)

    tried(check, number, net=nets, seed=st.integers(0, 1000), units=units)
    assert len(changed) >= number and sum(changed) > 0.5 * len(changed)  # what is removed is not nothing


def removal_is_exact(net, seed, units):
    """Check a net; returns how far its output moves when the removed channels are zeroed."""
    model, inputs = randomize_(Net(*net).double(), seed).eval(), example((3, 8, 8), seed=seed)
    graph = trace_channels(model, (inputs,), units=units)
    kept = random_kept(graph, seed)
    blocks = [block.name for block in graph.gated_blocks]
    kept |= {name: torch.tensor([(seed >> place) % 2 == 1]) for place, name in enumerate(blocks)}
    lasts = [block.last for block in graph.blocks if block.last]
    kept |= {name: kept[name] & bool((seed >> place) % 3) for place, name in enumerate(lasts)}
    error, distance, slim, spec = removal_errors(model, graph, inputs, kept)
    assert error < 1e-9
    with FlopCounterMode(display=False) as counter:
        slim(inputs[:1])
    assert counter.get_total_flops() == 2 * graph.macs(kept)
    check_rebuilt(model, inputs, slim, spec)
    if graph.free:
        check_gates(model, graph, inputs, kept)
    return distance


def check_rebuilt(model, inputs, slim, spec):
    """A whole model with the specification of a slim one, and its weights, is the same."""
    fresh = copy.deepcopy(model)
    remove_modules(fresh, spec['removed'])
    apply_widths(fresh, spec['widths'])
    fresh.load_state_dict(slim.state_dict(), strict=True)
    assert relative_error(call(fresh, inputs), call(slim, inputs)) == 0


def check_gates(model, graph, inputs, kept):
    """Open, closed, half open, folded, slim, gone; open gates change nothing."""
    before = call(model, inputs)
    expected = call(masked_copy(model, graph, kept), inputs)
    gates = attach_gates(model, graph, PolarizationGate)
    assert relative_error(call(model, inputs), before) == 0
    for name, mask in kept.items():
        gates[name].theta.data.copy_(mask)
    assert relative_error(call(model, inputs), expected) < 1e-9
    gates.set_theta(gates.theta() * 0.7)
    half = call(model, inputs)
    folded = copy.deepcopy(model)
    slim_model(folded, *fold_gates(folded))
    assert relative_error(call(folded, inputs), half) < 1e-9
    detach_gates(model)
    assert relative_error(call(model, inputs), before) == 0
    gates = attach_gates(model, graph, DecoratorGate)
    take_over_affine(gates)
    assert relative_error(call(model, inputs), before) < 1e-9
    gates.close(graph.kept(kept))
    assert relative_error(call(model, inputs), expected) < 1e-9
