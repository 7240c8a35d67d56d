"""Attention put together at random: heads, or channels of all heads, go, and the result is exact.

``MMPRUNE_GATES_EXAMPLES`` is the number of nets, drawn anew; by default 12, in the slow suite 200, always the same.
"""

import pytest
import torch
import torch.nn.functional as F
from helpers import example, random_kept, randomize_, removal_errors, slow_but
from hypothesis import strategies as st
from test_random_nets import check_gates, check_rebuilt, tried
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmprune_gates import trace_channels

SIDE, WINDOW = 4, 2


class Attention(nn.Module):
    """Attention over tokens (B, N, C), in one of the ways in which it is written.

    Args:
        c: Width of the stream.
        fused: How q, k, v are made: ``separate``, one layer whose result is viewed as ``(3, h, d)``, cut by ``chunk``,
            or viewed as ``(h, 3, d)`` head by head.
        op: What multiplies: ``matmul``, ``bmm``, ``einsum``, or ``sdpa``.
        source: Whence the code knows the inner width: ``attribute``, ``shape`` of its input, or ``inferred`` by -1.
        heads: Number of heads; ``queries`` of them read each key and value.
        bias: Whether a table of relative positions is added to the scores.
        mask: Whether a mask is.
    """

    def __init__(self, c, fused, op, source, heads, queries, bias, mask):
        super().__init__()
        self.fused, self.op, self.source, self.masked = fused, op, source, mask
        self.queries = queries if fused == 'separate' and heads > queries else 1
        self.num_heads, self.num_kv_heads = heads, heads // self.queries
        self.head_dim = c // heads if source == 'shape' else 4
        self.inner_dim = heads * self.head_dim
        self.scale = self.head_dim**-0.5
        if fused == 'separate':
            narrow = self.num_kv_heads * self.head_dim
            self.q, self.k, self.v = (
                nn.Linear(c, self.inner_dim),
                nn.Linear(c, narrow, bias=False),
                nn.Linear(c, narrow),
            )
        else:
            self.qkv = nn.Linear(c, 3 * self.inner_dim)
        self.proj = nn.Linear(self.inner_dim, c)
        self.table = nn.Parameter(torch.zeros(9, heads)) if bias else None

    def parts(self, x, context):
        b, n, c = x.shape
        h, d = self.num_heads, c // self.num_heads if self.source == 'shape' else self.head_dim
        if self.fused == 'separate':
            q = self.q(x).view(b, n, h, d).transpose(1, 2)
            k, v = (make(context).view(b, -1, self.num_kv_heads, d).transpose(1, 2) for make in (self.k, self.v))
            if self.queries > 1:
                k, v = (one[:, :, None].expand(-1, -1, self.queries, -1, -1).flatten(1, 2) for one in (k, v))
            return q, k, v
        if self.fused == 'chunk':
            return (one.reshape(b, n, h, -1).permute(0, 2, 1, 3) for one in self.qkv(x).chunk(3, -1))
        if self.fused == 'by head':
            return self.qkv(x).view(b, n, h, 3 * d).transpose(1, 2).chunk(3, -1)
        return self.qkv(x).reshape(b, n, 3, h, d).permute(2, 0, 3, 1, 4).unbind(0)

    def scores(self, q, k):
        if self.op == 'einsum':
            return torch.einsum('bhnd,bhsd->bhns', q, k)
        if self.op == 'bmm':
            return torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)).view(*q.shape[:3], k.shape[2])
        return q @ k.transpose(-2, -1)

    def sums(self, weights, v):
        if self.op == 'einsum':
            return torch.einsum('bhns,bhsd->bnhd', weights, v).transpose(1, 2)
        if self.op == 'bmm':
            return torch.bmm(weights.flatten(0, 1), v.flatten(0, 1)).view(*weights.shape[:3], v.shape[-1])
        return weights @ v

    def forward(self, x, context=None):
        b, n, c = x.shape
        q, k, v = self.parts(x, x if context is None else context)
        added = None
        if self.table is not None:
            places = torch.arange(n)[:, None] * 2 + torch.arange(k.shape[2])
            added = self.table[(places % 9).view(-1)].view(n, -1, self.num_heads).permute(2, 0, 1)[None]
        if self.masked:
            hidden = -torch.ones(n, k.shape[2]).triu(1).to(x)
            added = hidden if added is None else added + hidden
        if self.op == 'sdpa':
            y = F.scaled_dot_product_attention(q, k, v, added)
        else:
            scores = self.scores(q * self.scale, k)
            y = self.sums((scores if added is None else scores + added).softmax(-1), v)
        width = {'attribute': self.inner_dim, 'shape': c, 'inferred': -1}[self.source]
        return self.proj(y.transpose(1, 2).reshape(b, n, width))


class Torch(nn.Module):
    """``nn.MultiheadAttention`` as ``mmcv`` wraps it."""

    def __init__(self, c, heads, batch_first, need_weights):
        super().__init__()
        self.batch_first, self.need_weights = batch_first, need_weights
        self.attn = nn.MultiheadAttention(c, heads, batch_first=batch_first)

    def forward(self, x, context=None):
        x, context = (
            one if self.batch_first else one.transpose(0, 1) for one in (x, x if context is None else context)
        )
        y = self.attn(x, context, context, need_weights=self.need_weights)[0]
        return y if self.batch_first else y.transpose(0, 1)


class Layer(nn.Module):
    """Attention and an MLP, each behind a norm and in a residual branch; the tokens as a whole, or in windows."""

    def __init__(self, c, kind, cross, windows, *options):
        super().__init__()
        self.cross, self.windows = cross, windows
        self.norm1, self.norm2 = nn.LayerNorm(c), nn.LayerNorm(c)
        self.attn = kind(c, *options)
        self.mlp = nn.Sequential(nn.Linear(c, 5), nn.GELU(), nn.Linear(5, c))

    def forward(self, x, memory):
        y = self.norm1(x)
        if self.cross:
            y = self.attn(y, memory)
        elif self.windows and x.shape[1] == SIDE * SIDE:
            y = self.merged(self.attn(self.cut(y)))
        else:
            y = self.attn(y)
        x = x + y
        return x + self.mlp(self.norm2(x))

    def cut(self, x):
        b, n, c = x.shape
        x = x.view(b, SIDE // WINDOW, WINDOW, SIDE // WINDOW, WINDOW, c)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, WINDOW * WINDOW, c)

    def merged(self, x):
        x = x.view(-1, SIDE // WINDOW, SIDE // WINDOW, WINDOW, WINDOW, x.shape[-1])
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, SIDE * SIDE, x.shape[-1])


class Transformer(nn.Module):
    """Patches, perhaps a class token, layers, a head."""

    def __init__(self, c, token, *layers):
        super().__init__()
        self.patches = nn.Conv2d(3, c, 2, stride=2)
        self.memory = nn.Linear(3, c)
        self.token = nn.Parameter(torch.zeros(1, 1, c)) if token else None
        self.position = nn.Parameter(torch.zeros(1, SIDE * SIDE + token, c))
        self.layers = nn.ModuleList([Layer(c, *layer) for layer in layers])
        self.norm, self.head = nn.LayerNorm(c), nn.Linear(c, 5)

    def forward(self, x):
        memory = self.memory(x.flatten(2)[..., :6].transpose(1, 2))
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = x + self.position
        for layer in self.layers:
            x = layer(x, memory)
        x = self.norm(x)
        return self.head(x.mean(1) if self.token is None else x[:, 0])


def layers(cross):
    """One layer, by the arguments of :class:`Layer`; only attention with layers of their own reads two tensors."""
    return st.tuples(
        st.just(Attention),
        st.just(cross),
        st.booleans(),
        st.just('separate') if cross else st.sampled_from(['separate', 'fused', 'chunk', 'by head']),
        st.sampled_from(['matmul', 'bmm', 'einsum', 'sdpa']),
        st.sampled_from(['attribute', 'shape', 'inferred']),
        st.sampled_from([2, 4]),
        st.sampled_from([1, 2]),
        st.booleans(),
        st.booleans(),
    )


of_torch = st.tuples(
    st.just(Torch), st.booleans(), st.booleans(), st.sampled_from([2, 4]), st.booleans(), st.booleans()
)
some_layers = st.lists(st.one_of(layers(False), layers(False), layers(True), of_torch), min_size=1, max_size=2)


@pytest.mark.parametrize('number', slow_but((12,), (12, 200)))
def test_heads_go_exactly(number):
    tried(
        heads_go_exactly,
        number,
        c=st.sampled_from([8, 12]),
        token=st.booleans(),
        layers=some_layers,
        seed=st.integers(0, 1000),
        units=st.sampled_from(['channels', 'channels', 'both']),
        attention=st.sampled_from(['heads', 'dims', 'both']),
    )


def heads_go_exactly(c, token, layers, seed, units, attention):
    model = randomize_(Transformer(c, token, *layers).double(), seed).eval()
    inputs = example((3, 2 * SIDE, 2 * SIDE), seed=seed)
    graph = trace_channels(model, (inputs,), units=units, attention=attention)
    heads = [group for group in graph.groups if '.attn.' in group.name]
    all_own = all(kind is Attention for kind, *_ in layers)
    assert heads and (attention != 'heads' and not all_own or not any(group.frozen for group in heads))
    kept = random_kept(graph, seed, share=None)
    for name in [group.name for group in heads if not group.frozen]:
        kept[name][:2] |= attention != 'heads'  # einsum calls nothing a product that sums over one channel
    kept |= {block.name: torch.tensor([(seed >> place) % 2 == 1]) for place, block in enumerate(graph.gated_blocks)}
    kept |= {block.last: kept[block.last] & bool(seed % 3) for block in graph.blocks if block.last}
    error, _, slim, spec = removal_errors(model, graph, inputs, kept)
    assert error < 1e-10
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        slim(inputs[:1])
    assert counter.get_total_flops() == 2 * graph.macs(kept)
    check_rebuilt(model, inputs, slim, spec)
    # Even under no_grad, torch takes another kernel for a weight that requires a gradient; a gated one does not.
    check_gates(model.requires_grad_(False), graph, inputs, kept)


def test_open_gates_change_nothing_in_a_net_that_amplifies_rounding():
    torch_layer = (Torch, False, False, 4, False, True)
    own = (Attention, True, False, 'separate', 'matmul', 'attribute', 2, 1, False, False)
    heads_go_exactly(8, True, [torch_layer, own], 795, 'channels', 'heads')


AMBIGUOUS = {
    'as many heads in the batch as channels': ('fused', 'bmm', 'shape', 4, 1),
    'as many queries as channels of keys': ('separate', 'matmul', 'shape', 4, 2),
}


@pytest.mark.parametrize('kind', AMBIGUOUS)
def test_attributes_follow_what_they_count_not_what_is_as_many(kind):
    layer = (Attention, False, False, *AMBIGUOUS[kind], False, False)
    heads_go_exactly(8, False, [layer], 0, 'channels', 'both')


def test_attention_that_has_lost_channels_goes_with_its_block():
    layer = (Attention, False, False, 'fused', 'sdpa', 'attribute', 2, 1, False, False)
    heads_go_exactly(8, False, [layer], 2, 'both', 'dims')
