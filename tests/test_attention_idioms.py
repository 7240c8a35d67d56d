"""Attention as people write it, in one's own modules or with torch's: all of it can go, exactly."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import call, example, random_kept, randomize_, relative_error, removal_errors
from test_heads import TOKENS, Around, C, check_gated, check_rebuilt
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmprune_gates import slim_model, trace_channels
from mmprune_gates.gates import DecoratorGate, attach_gates, fold_gates

HEADS = 4


class Grouped(nn.Module):
    """Several heads of q read each head of k and v."""

    def __init__(self, how):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim, self.how = HEADS, 2, 3, how
        self.q, self.proj = nn.Linear(C, 3 * HEADS), nn.Linear(3 * HEADS, C)
        self.k, self.v = (nn.Linear(C, 6) for _ in 'kv')

    def forward(self, x):
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
        k, v = (make(x).view(b, n, self.num_kv_heads, self.head_dim).transpose(1, 2) for make in (self.k, self.v))
        if self.how == 'interleaved':
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        if self.how == 'repeated':
            k, v = k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1)
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.how == 'flag')
        return self.proj(y.transpose(1, 2).reshape(b, n, -1))


class Written(nn.Module):
    """The usual parts of attention, one of them written in another way."""

    def __init__(self, how):
        super().__init__()
        self.num_heads, self.head_dim, self.how = HEADS, C // HEADS, how
        self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.q_norm, self.k_norm = (nn.RMSNorm(self.head_dim) for _ in 'qk')

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).tensor_split(3, -1)
        size = self.head_dim if self.how == 'rms' else -1
        q, k, v = (part.reshape(b, n, self.num_heads, size).transpose(1, 2) for part in (q, k, v))
        if self.how == 'rms':
            q, k = self.q_norm(q), self.k_norm(k)
        if self.how == 'einsum':
            scores = torch.einsum('...qd,...kd->...qk', q, k)
        else:
            scores = q @ k.mT
        weights = (scores * self.head_dim**-0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


class Torch(nn.Module):
    """``nn.MultiheadAttention`` with masks."""

    def __init__(self, need_weights, causal, padded, hint=False):
        super().__init__()
        self.attn = nn.MultiheadAttention(C, HEADS, batch_first=True)
        self.causal, self.padded, self.options = causal, padded, {'need_weights': need_weights, 'is_causal': hint}

    def forward(self, x):
        later = torch.ones(TOKENS, TOKENS, dtype=torch.bool, device=x.device).triu(1)
        padding = (torch.arange(TOKENS, device=x.device) > 2).expand(len(x), TOKENS)
        masks = {'attn_mask': later if self.causal else None, 'key_padding_mask': padding if self.padded else None}
        return self.attn(x, x, x, **masks, **self.options)[0]


IDIOMS = {
    'interleaved': (lambda: Grouped('interleaved'), {'attn.q': 2}),
    'repeated': (lambda: Grouped('repeated'), {'attn.q': 2}),
    'flag': (lambda: Grouped('flag'), {'attn.q': 2}),
    'mT': (lambda: Written('mT'), {'attn.qkv': HEADS}),
    'einsum': (lambda: Written('einsum'), {'attn.qkv': HEADS}),
    'rms': (lambda: Written('rms'), {'attn.qkv': HEADS}),
    'causal': (lambda: Torch(False, True, False), {'attn.attn': HEADS}),
    'hint': (lambda: Torch(False, True, False, hint=True), {'attn.attn': HEADS}),
    'hint, weights': (lambda: Torch(True, True, False, hint=True), {'attn.attn': HEADS}),
    'hint, padded': (lambda: Torch(False, True, True, hint=True), {'attn.attn': HEADS}),
    'weights, causal': (lambda: Torch(True, True, False), {'attn.attn': HEADS}),
    'weights, padded': (lambda: Torch(True, False, True), {'attn.attn': HEADS}),
    'padded': (lambda: Torch(False, False, True), {'attn.attn': HEADS}),
}


def traced(idiom, attention='heads'):
    torch.manual_seed(0)
    model, x = randomize_(Around(IDIOMS[idiom][0]()).double()).eval(), example((TOKENS, 5))
    return model, trace_channels(model, (x,), attention=attention), x


@pytest.mark.parametrize('idiom', IDIOMS)
def test_heads_go(idiom):
    model, graph, x = traced(idiom)
    for name, size in IDIOMS[idiom][1].items():
        assert (graph.group(name).size, graph.group(name).frozen) == (size, None)
    assert graph.prunable_macs() == graph.macs()
    kept = random_kept(graph) | {name: torch.arange(size) != 1 for name, size in IDIOMS[idiom][1].items()}
    error, distance, slim, _ = removal_errors(model, graph, x, kept)
    assert error < 1e-12 and distance > 1e-3
    check_gated(model, graph, x, kept, slim)


@pytest.mark.parametrize('idiom', IDIOMS)
def test_what_heads_cost_is_counted(idiom):
    model, graph, x = traced(idiom)
    kept = random_kept(graph) | {name: torch.arange(size) != 1 for name, size in IDIOMS[idiom][1].items()}
    slim = copy.deepcopy(model)
    slim_model(slim, graph, kept)
    for net, macs in ((model, graph.macs()), (slim, graph.macs(kept))):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            net.train()(x[:1])  # in evaluation, torch takes a kernel that is not counted
        assert counter.get_total_flops() == 2 * macs


@pytest.mark.parametrize('idiom', [idiom for idiom in IDIOMS if idiom != 'rms'])
@pytest.mark.parametrize('attention', ['dims', 'both'])
def test_channels_of_heads_go(idiom, attention):
    model, graph, x = traced(idiom, attention)
    assert not any(group.frozen for group in graph.groups if group.name.startswith('attn.'))
    kept = random_kept(graph)
    error, distance, slim, spec = removal_errors(model, graph, x, kept)
    assert error < 1e-12 and distance > 1e-3
    check_rebuilt(IDIOMS[idiom][0], x, slim, spec)
    check_gated(model, graph, x, kept, slim)


def test_slim_attention_computes_the_same_with_and_without_weights():
    model, graph, x = traced('causal', 'both')
    slim = removal_errors(model, graph, x, random_kept(graph))[2]
    before = call(slim, x)
    slim.attn.options['need_weights'] = True
    assert relative_error(call(slim, x), before) < 1e-12


class Words(nn.Module):
    """A language model of torch's own parts."""

    def __init__(self, causal):
        super().__init__()
        layer = nn.TransformerEncoderLayer(C, HEADS, 16, batch_first=True)
        self.words, self.encoder, self.causal = nn.Embedding(7, C), nn.TransformerEncoder(layer, 2), causal
        self.places, self.head = nn.Parameter(torch.randn(1, TOKENS, C)), nn.Linear(C, 7)

    def forward(self, numbers):
        mask = nn.Transformer.generate_square_subsequent_mask(TOKENS, numbers.device, self.places.dtype)
        options = {'mask': mask, 'is_causal': True} if self.causal else {}
        return self.head(self.encoder(self.words(numbers) + self.places, **options))


@pytest.mark.parametrize('causal', [False, True])
def test_an_embedding_loses_channels_with_its_stream(causal):
    torch.manual_seed(0)
    model, x = randomize_(Words(causal).double()).eval(), torch.tensor([[0, 3, 6, 2], [1, 1, 5, 4]])
    graph = trace_channels(model, (x,))
    assert graph.prunable_macs() == graph.macs()
    kept = random_kept(graph)
    error, distance, slim, spec = removal_errors(model, graph, x, kept)
    assert error < 1e-12 and distance > 1e-3
    assert spec['widths']['words'] == {'embedding_dim': slim.words.weight.shape[1]}
    assert slim.words.embedding_dim == slim.words.weight.shape[1] < C and slim.words.num_embeddings == 7
    check_gated(model, graph, x, kept, slim)


class Queries(nn.Module):
    """Learned queries attend to the input."""

    def __init__(self):
        super().__init__()
        self.queries, self.stem, self.head = nn.Parameter(torch.randn(3, C)), nn.Linear(5, C), nn.Linear(C, 3)
        self.norm, self.norm2, self.up, self.down = nn.LayerNorm(C), nn.LayerNorm(C), nn.Linear(C, 9), nn.Linear(9, C)
        self.attn = nn.MultiheadAttention(C, HEADS, batch_first=True)

    def forward(self, x):
        x, q = self.stem(x), self.queries.expand(len(x), -1, -1)
        q = q + self.attn(self.norm(q), x, x)[0]
        return self.head(q + self.down(self.up(self.norm2(q)).relu()))


class Registers(nn.Module):
    """Learned tokens stand before those of the input."""

    def __init__(self):
        super().__init__()
        self.registers, self.stem, self.head = nn.Parameter(torch.randn(1, 2, C)), nn.Linear(5, C), nn.Linear(C, 3)
        self.norm, self.attn = nn.LayerNorm(C), nn.MultiheadAttention(C, HEADS, batch_first=True)

    def forward(self, x):
        x = torch.cat([self.registers.expand(len(x), -1, -1), self.stem(x)], 1)
        y = self.norm(x)
        return self.head((x + self.attn(y, y, y)[0])[:, 2:])


@pytest.mark.parametrize('net', [Queries, Registers])
def test_rows_of_a_parameter_do_not_keep_the_stream(net):
    torch.manual_seed(0)
    model, x = randomize_(net().double()).eval(), example((TOKENS, 5))
    graph = trace_channels(model, (x,))
    assert graph.prunable_macs() == graph.macs()
    kept = random_kept(graph)
    error, distance, slim, _ = removal_errors(model, graph, x, kept)
    assert error < 1e-12 and distance > 1e-3
    check_gated(model, graph, x, kept, slim)


class TiedWords(nn.Module):
    """A language model whose head has the weights of its embedding."""

    def __init__(self):
        super().__init__()
        self.head, self.words = nn.Linear(C, 7), nn.Embedding(7, C)
        self.words.weight = self.head.weight
        self.norm, self.up, self.down = nn.LayerNorm(C), nn.Linear(C, 9), nn.Linear(9, C)

    def forward(self, numbers):
        x = self.words(numbers)
        return self.head(self.norm(x + self.down(self.up(x).relu())))


class TiedCoder(nn.Module):
    """What a layer has made is read by its own weight."""

    def __init__(self):
        super().__init__()
        self.stem, self.code, self.up, self.head = nn.Linear(5, C), nn.Linear(C, 9), nn.Linear(C, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.up(self.code(self.stem(x)).relu() @ self.code.weight).relu())


@pytest.mark.parametrize('net', [TiedWords, TiedCoder])
def test_gates_that_are_half_open_are_folded_where_weights_are_shared(net):
    torch.manual_seed(0)
    model = randomize_(net().double()).eval()
    x = torch.tensor([[0, 3, 6, 2]]) if net is TiedWords else example((TOKENS, 5))
    attach_gates(model, trace_channels(model, x), DecoratorGate)
    with torch.no_grad():
        for gate in model.gates.by_group.values():
            gate.theta.uniform_(0.5, 1.5)
    before = call(model, x)
    fold_gates(model)
    assert relative_error(call(model, x), before) < 1e-12


class SpecialHead(nn.Module):
    """One head attends in another way than the others, or as its inputs say."""

    def __init__(self, how):
        super().__init__()
        self.stem, self.head, self.how = nn.Linear(5, C), nn.Linear(C, 3), how
        self.attn = SpecialAttention(how)

    def forward(self, x, given):
        return self.head(self.attn(self.stem(x), given))


class SpecialAttention(Written):
    def forward(self, x, given):
        b, n, _ = x.shape
        q, k, v = (one.reshape(b, n, self.num_heads, -1).transpose(1, 2) for one in self.qkv(x).chunk(3, -1))
        places = torch.arange(n, device=x.device)
        if self.how == 'built':
            is_second = (torch.arange(self.num_heads, device=x.device) == 1)[:, None, None]
            mask = torch.where(is_second, torch.eye(n, dtype=torch.bool, device=x.device), True)
        elif self.how == 'mask':
            mask = given[:, : self.num_heads]
        else:
            mask = (places[:, None] - places).abs() <= given[:, : self.num_heads, None, None]
        y = F.scaled_dot_product_attention(q, k, v, mask)
        return self.proj(y.transpose(1, 2).reshape(b, n, -1))


@pytest.mark.parametrize('how', ['built', 'mask', 'distance'])
def test_heads_that_are_not_alike_stay(how):
    torch.manual_seed(0)
    masks = (torch.rand(2, HEADS, TOKENS, TOKENS) < 0.6) | torch.eye(TOKENS, dtype=torch.bool)
    given = torch.tensor([[0, 1, 2, 3]]).expand(2, -1) if how == 'distance' else masks
    model = randomize_(SpecialHead(how).double()).eval()
    graph = trace_channels(model, (example((TOKENS, 5)), given))
    assert 'number of heads' in graph.group('attn.qkv').frozen or 'fewer heads' in graph.group('attn.qkv').frozen


class TwoSums(nn.Module):
    """Some channels are in two products, each divided by the square root of another number."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(5, C), nn.Linear(C, 3)
        self.qa, self.ka, self.qb, self.kb = (nn.Linear(C, size) for size in (4, 4, 8, 8))
        self.v, self.w = nn.Linear(C, C), nn.Linear(C, C)

    def forward(self, x):
        x = self.stem(x)
        qa, ka = self.qa(x), self.ka(x)
        q, k = torch.cat([qa, self.qb(x)], -1), torch.cat([ka, self.kb(x)], -1)
        sums = F.scaled_dot_product_attention(q, k, self.v(x)) + F.scaled_dot_product_attention(qa, ka, self.w(x))
        return self.head(sums)


def test_channels_in_several_products_stay_where_these_are_divided():
    torch.manual_seed(0)
    graph = trace_channels(randomize_(TwoSums().double()).eval(), (example((TOKENS, 5)),))
    for name in ('qa', 'qb'):
        assert graph.group(name).frozen == 'divided by the square root of their number'
