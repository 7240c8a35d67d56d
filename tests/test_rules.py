"""Every row of the op table in a net of two layers: what it ties, what it freezes, and that removal is exact.

The net is ``head(op(norm(conv(x))))`` with six channels between, which the op sees as (N, 6, 4, 4).
"""

import pytest
import torch
import torch.nn.functional as F
from helpers import call, example, random_kept, randomize_, relative_error, removal_errors
from torch import nn

from mmprune_gates import masked_copy, trace_channels
from mmprune_gates.channels.rules import TABLE, Trait
from mmprune_gates.gates import PolarizationGate, attach_gates
from mmprune_gates.gates.placement import AFFINE, place_gates

SHAPE = (3, 4, 4)
FREE, TIED, FROZEN = 6, 3, 0  # channels that can go independently, in pairs, not at all
TO_COPY, UNSAFE_VIEW = (getattr(torch.ops.aten, name) for name in ('_to_copy', '_unsafe_view'))
GATE, READER = True, False  # whether a gate on the norm passes the op


class Net(nn.Module):
    """A convolution and a norm before the op, a convolution of any input width after it."""

    def __init__(self, op, out):
        super().__init__()
        self.conv, self.norm, self.op = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), op
        self.head = nn.LazyConv2d(5, 1) if out else nn.LazyLinear(5)

    def forward(self, x):
        return self.head(self.op(self.norm(self.conv(x))))


def pairs(x):
    """(N, 6, H, W) as (N, 2, 3, H, W): the pieces of a shuffle."""
    return x.view(x.shape[0], 2, x.shape[1] // 2, *x.shape[2:])


def attended(x):
    """Attention of tokens (N, L, E), with one more dimension."""
    return F.scaled_dot_product_attention(x, x, x)[..., None]


class Single(nn.Module):
    """A norm over one channel, for which the others are samples."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x):
        return self.norm(x.reshape(-1, 1, *x.shape[2:])).reshape(x.shape)


def in_place(name):
    """The in-place form of an op."""
    return lambda x: getattr(x, name)()


SAME = {  # homogeneous: everything passes, a gate on the norm included
    'relu': F.relu,
    'relu_': in_place('relu_'),
    'leaky_relu': F.leaky_relu,
    'leaky_relu_': lambda x: F.leaky_relu(x, inplace=True),
    'abs': torch.abs,
    'neg': torch.neg,
    'dropout': lambda x: F.dropout(x, 0.5, False),
    'feature_dropout': lambda x: F.dropout2d(x, 0.5, False),
    'clone': torch.clone,
    'contiguous': lambda x: x.transpose(2, 3).contiguous(),
    'detach': torch.detach,
    'alias': torch.ops.aten.alias,
    'to': lambda x: x.to(torch.float32).to(torch.float64),
    '_assert_tensor_metadata': lambda x: x.double(),
    'type_as': lambda x: x.type_as(x),
    '_to_copy': TO_COPY,
    'lift_fresh_copy': torch.ops.aten.lift_fresh_copy,
    'clamp(0)': lambda x: x.clamp(min=0),
    'clamp_min': lambda x: torch.clamp_min(x, 0),
    'prelu': nn.PReLU(6, init=0.3),
    'prelu(1)': nn.PReLU(init=0.3),
    'max_pool2d': lambda x: F.max_pool2d(x, 2),
    'max_pool1d': lambda x: F.max_pool1d(x.flatten(2), 2).unsqueeze(-1),
    'max_pool3d': lambda x: F.max_pool3d(x.unsqueeze(-1), (2, 2, 1)).squeeze(-1),
    'avg_pool2d': lambda x: F.avg_pool2d(x, 2),
    'avg_pool1d': lambda x: F.avg_pool1d(x.flatten(2), 2).unsqueeze(-1),
    'avg_pool3d': lambda x: F.avg_pool3d(x.unsqueeze(-1), (2, 2, 1)).squeeze(-1),
    'adaptive_avg_pool2d': lambda x: F.adaptive_avg_pool2d(x, 3),
    'adaptive_avg_pool1d': lambda x: F.adaptive_avg_pool1d(x.flatten(2), 3).unsqueeze(-1),
    'adaptive_avg_pool3d': lambda x: F.adaptive_avg_pool3d(x.unsqueeze(-1), (2, 2, 1)).squeeze(-1),
    'upsample_nearest2d': lambda x: F.interpolate(x, scale_factor=2),
    'grid_sampler': lambda x: F.grid_sample(
        x, torch.linspace(-1, 1, 24).to(x).view(1, 4, 3, 2).expand(len(x), -1, -1, -1)
    ),
    'upsample_nearest1d': lambda x: F.interpolate(x.flatten(2), scale_factor=2).unsqueeze(-1),
    'upsample_nearest3d': lambda x: F.interpolate(x.unsqueeze(-1), size=(8, 8, 1)).squeeze(-1),
    'upsample_bilinear2d': lambda x: F.interpolate(x, size=(7, 5), mode='bilinear'),
    'upsample_bicubic2d': lambda x: F.interpolate(x, size=(7, 5), mode='bicubic'),
    'upsample_linear1d': lambda x: F.interpolate(x.flatten(2), size=9, mode='linear').unsqueeze(-1),
    'upsample_trilinear3d': lambda x: F.interpolate(x.unsqueeze(-1), size=(8, 8, 1), mode='trilinear').squeeze(-1),
    'add': lambda x: x + 2 * F.relu(x),
    'add_': lambda x: F.relu(x).add_(x),
    'sub': lambda x: x - 0.5 * F.relu(x),
    'maximum': lambda x: torch.maximum(x, 2 * x),
    'minimum': lambda x: torch.minimum(x, 2 * x),
    'mul': lambda x: 3 * x,
    'mul(map)': lambda x: x * torch.full((2, 1, 4, 4), 0.5),
    'div': lambda x: x / 3,
    'sum': lambda x: x.sum((2, 3), keepdim=True),
    'mean': lambda x: x.mean(-1, keepdim=True),
    'amax': lambda x: x.amax((2,), keepdim=True),
    'amin': lambda x: x.amin(3, keepdim=True),
    'linalg_vector_norm': lambda x: torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True),
    'roll': lambda x: x.roll((1, -1), (2, 3)),
    'unbind': lambda x: torch.stack(x.unbind(-1), -2),
    'permute': lambda x: x.permute(0, 1, 3, 2),
    'transpose': lambda x: x.transpose(-1, -2),
    'mT': lambda x: x.mT,
    'repeat': lambda x: x.repeat(1, 2, 1, 1),
    'repeat_interleave': lambda x: x.repeat_interleave(2, 1),
    'squeeze': lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).unsqueeze(-1),
    'unsqueeze': lambda x: x.unsqueeze(1).squeeze(1),
    '_unsafe_view': lambda x: UNSAFE_VIEW(x, [2, -1, 8, 2]),
    't': lambda x: x.mean((2, 3)).t().t()[..., None, None],
    'adaptive_max_pool2d': lambda x: F.adaptive_max_pool2d(x, 3),
    'expand': lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 3, 3),
    'expand_as': lambda x: x.mean((2, 3), keepdim=True).expand_as(x),
    'slice': lambda x: x[:, :, 1:3, ::2],
    'select': lambda x: x[:, :, 0].unsqueeze(-1),
    'pad': lambda x: F.pad(x, (1, 1, 1, 1)),
    'im2col': lambda x: F.unfold(x, 2, stride=2).unsqueeze(-1),
    'constant_pad_nd': lambda x: torch.ops.aten.constant_pad_nd(x, [1, 1, 0, 0], 0),
    'reflection_pad2d': lambda x: F.pad(x, (1, 1, 1, 1), mode='reflect'),
    'replication_pad2d': lambda x: F.pad(x, (1, 1, 1, 1), mode='replicate'),
    'cat': lambda x: torch.cat([x, 2 * x], 1),
    'concat': lambda x: torch.concat([x, F.relu(x)], 2),
    'stack': lambda x: torch.stack([x, 2 * x], 1).sum(1),
    'view_as': lambda x: x.view_as(x),
    'reshape_as': lambda x: x.flatten(2).reshape_as(x),
    'unflatten': lambda x: x.flatten(2).unflatten(2, (4, 4)),
    'matmul': lambda x: x @ torch.linspace(-1, 1, 16).to(x).view(4, 4),
    'index': lambda x: x[:, :, torch.tensor([0, 2, 3])],
    'flip': lambda x: x.flip(2, -1),
    'std': lambda x: x.std((2, 3), keepdim=True),
    'max': lambda x: x.max(2)[0].unsqueeze(2),
    'max(other)': lambda x: torch.max(x, 2 * x),
    'min': lambda x: x.min(-1, keepdim=True).values,
    'adaptive_max_pool1d': lambda x: F.adaptive_max_pool1d(x.flatten(2), 3).unsqueeze(-1),
    'adaptive_max_pool3d': lambda x: F.adaptive_max_pool3d(x.unsqueeze(-1), (2, 2, 1)).squeeze(-1),
    '_upsample_nearest_exact1d': lambda x: F.interpolate(x.flatten(2), size=9, mode='nearest-exact').unsqueeze(-1),
    '_upsample_nearest_exact2d': lambda x: F.interpolate(x, size=9, mode='nearest-exact'),
    '_upsample_nearest_exact3d': lambda x: F.interpolate(x[..., None], size=(9, 9, 1), mode='nearest-exact').squeeze(
        -1
    ),
    '_upsample_bilinear2d_aa': lambda x: F.interpolate(x, size=3, mode='bilinear', antialias=True),
    '_upsample_bicubic2d_aa': lambda x: F.interpolate(x, size=3, mode='bicubic', antialias=True),
    'pixel_unshuffle': lambda x: F.pixel_unshuffle(x, 2),
    'pad(channels)': lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
    # composed of other ops
    'movedim': lambda x: torch.movedim(x, 1, -1).movedim(-1, 1),
    'swapaxes': lambda x: x.swapaxes(2, 3),
    'multiply': lambda x: torch.multiply(x, 2),
    'narrow': lambda x: x.narrow(2, 1, 2),
    'hstack': lambda x: torch.hstack([x, 2 * x]),
    'tile': lambda x: torch.tile(x, (1, 2, 1, 1)),
    'hsplit': lambda x: torch.cat(torch.dsplit(x, 2), 3),
}
ZERO = {  # zero stays zero, but a gate does not pass
    'silu': F.silu,
    'silu_': lambda x: F.silu(x, inplace=True),
    'gelu': F.gelu,
    'relu6': F.relu6,
    'hardtanh': F.hardtanh,
    'hardswish': F.hardswish,
    'tanh': torch.tanh,
    'elu': F.elu,
    'selu': F.selu,
    'celu': F.celu,
    'mish': F.mish,
    'sin': torch.sin,
    'sqrt': lambda x: torch.sqrt(x.abs()),
    'square': torch.square,
    'sign': torch.sign,
    'expm1': torch.expm1,
    'log1p': lambda x: torch.log1p(x.abs()),
    'pow': lambda x: x**2,
    'clamp(-1, 1)': lambda x: x.clamp(-1, 1),
    'hardshrink': lambda x: F.hardshrink(x, 0.1),
    'softshrink': lambda x: F.softshrink(x, 0.1),
    'erf': torch.erf,
    'atan': torch.atan,
    'asinh': torch.asinh,
    'sinh': torch.sinh,
    'tan': lambda x: torch.tan(x / 20),
    'var': lambda x: x.var((2, 3), keepdim=True),
    'mul(itself)': lambda x: x * F.relu(x),
    # what is LOST
    'sigmoid': torch.sigmoid,
    'hardsigmoid': F.hardsigmoid,
    'exp': torch.exp,
    'cos': torch.cos,
    'softplus': F.softplus,
    'log_sigmoid': F.logsigmoid,
    'alpha_dropout': lambda x: F.alpha_dropout(x, 0.5, False),
    'clamp(1)': lambda x: x.clamp(min=0.5),
    'add(1)': lambda x: x + 1,
    'rsub': lambda x: 1 - x,
    'add(map)': lambda x: x + torch.full((2, 1, 4, 4), 0.5),
    'eq': lambda x: torch.eq(x, x.abs()) * x,
    'ne': lambda x: torch.ne(x, x.abs()).to(x) + x,
    'lt': lambda x: (x < 0.1).to(x),
    'masked_fill': lambda x: x.masked_fill(torch.ones(4, 4, dtype=torch.bool).triu(), 1.0),
    'where': lambda x: torch.where(torch.ones(4, 4, dtype=torch.bool).triu(), x, 2.0),
    'new_zeros': lambda x: x + x.new_zeros(4) + 1,
    'new_ones': lambda x: x + x.new_ones(4),
    'new_full': lambda x: x + x.new_full((4,), 2.0),
    'new_empty': lambda x: x + x.new_empty(4).fill_(2.0),
    'le': lambda x: (x <= 0.1).to(x),
    'gt': lambda x: (x > 0.1).to(x),
    'ge': lambda x: (x >= 0.1).to(x),
    'div(length)': lambda x: F.normalize(x, dim=-1),
    'div(by positive)': lambda x: torch.ones(1, 4, 4).to(x) / x.clamp(min=0.5).expand_as(x),
    'div(itself)': lambda x: x / (x.abs() + 1),
    'div(deviation)': lambda x: x / (x.std((2, 3), keepdim=True) + 0.1),
    'div(root)': lambda x: x / torch.sqrt(x.pow(2).mean((2, 3), keepdim=True) + 0.1),
    'log': lambda x: torch.log(x.abs() + 1),
    'log2': lambda x: torch.log2(1 + x.square()),
    'log10': lambda x: torch.log10(F.relu(x) + 1),
    'reciprocal': lambda x: (x.sigmoid() + 1).reciprocal(),
    'rsqrt': lambda x: x * torch.rsqrt(x.var((2, 3), keepdim=True) + 0.1),
    'pow(-1)': lambda x: (x.abs() + 1) ** -1,
    'pow(tensor)': lambda x: x.clamp(min=0.1) ** torch.full((1,), 3.0).to(x),
    'softmax': lambda x: x.softmax(-1),
    'log_softmax': lambda x: x.log_softmax(2),
    'zeros_like': lambda x: torch.zeros_like(x) + x.sigmoid(),
    'ones_like': lambda x: torch.ones_like(x) * x.sigmoid(),
    'full_like': lambda x: torch.full_like(x, 2.0) + x,
    'rand_like': lambda x: 0 * torch.rand_like(x) + x,
    'randn_like': lambda x: 0 * torch.randn_like(x) + x,
    'pad(1)': lambda x: F.pad(x, (1, 1, 1, 1), value=1.0),
    'instance_norm': nn.InstanceNorm2d(6),
    'batch_norm': nn.BatchNorm2d(6, affine=False),
    'batch_norm(1)': Single(),
    # products in which channels stand each for itself
    'matmul(heads)': lambda x: x @ x.transpose(2, 3),
    'bmm': lambda x: torch.bmm(x.flatten(0, 1), x.flatten(0, 1)).view(len(x), -1, 4, 4),
    'einsum': lambda x: torch.einsum('nchw,ncvw->nchv', x, x),
    'einsum(...)': lambda x: torch.einsum('...hw,...vw->...hv', x, x),
    'baddbmm': lambda x: torch.baddbmm(*[x.flatten(0, 1)] * 3).view(len(x), -1, 4, 4),
    'scaled_dot_product_attention': lambda x: F.scaled_dot_product_attention(x, x, x),
    'scaled_dot_product_attention(mask)': lambda x: F.scaled_dot_product_attention(x, x, x, x),
    'scaled_dot_product_attention(map)': lambda x: F.scaled_dot_product_attention(x, x, x, torch.eye(4).to(x)),
}
FLAT = {  # in front of a linear layer
    'flatten': lambda x: x.flatten(1),
    'reshape': lambda x: x.reshape(x.shape[0], -1),
    'view': lambda x: x.view(x.shape[0], -1),
    'linear': nn.Linear(4, 3, bias=False),
}
PAIRS = {  # channels i and i + 3, or 2 i and 2 i + 1, go together
    'chunk': lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    'tensor_split': lambda x: torch.cat(x.tensor_split(2, 1)[::-1], 1),
    'tensor_split(place)': lambda x: torch.cat(x.tensor_split([x.shape[1] // 2], 1)[::-1], 1),
    'split': lambda x: torch.cat(x.split(x.shape[1] // 2, 1)[::-1], 1),
    'split_with_sizes': lambda x: torch.cat(x.split([x.shape[1] // 2] * 2, 1)[::-1], 1),
    'slice(halves)': lambda x: torch.cat([x[:, x.shape[1] // 2 :], x[:, : x.shape[1] // 2]], 1),
    'slice(half)': lambda x: x[:, -(x.shape[1] // 2) :],
    'slice(step)': lambda x: torch.cat([2 * x[:, ::2], x[:, 1::2]], 1),
    'view(pairs)': lambda x: pairs(x).sum(1),
    'view(shuffle)': lambda x: pairs(x).transpose(1, 2).reshape(x.shape),
    'view(-1)': lambda x: x.view(x.shape[0], -1, 2, *x.shape[2:]).sum(2),
    'unflatten(-1)': lambda x: x.unflatten(1, (-1, 2)).sum(2),
    'select(pairs)': lambda x: pairs(x)[:, 0],
    'conv_groups': nn.Conv2d(6, 4, 1, groups=2, bias=False),
    'pixel_shuffle': lambda x: F.pixel_shuffle(torch.stack([x, x], 2).flatten(1, 2), 2),
}
HALVES = {'glu': lambda x: F.glu(x, 1)}  # as pairs, but a gate does not pass
SUMMED = {  # a product sums over them: both factors lose the same ones
    'matmul(channels)': lambda x: torch.matmul(x.flatten(2).transpose(1, 2), x.flatten(2))[..., None],
    'bmm(channels)': lambda x: torch.bmm(x.flatten(2).transpose(1, 2), x.flatten(2))[..., None],
    'mm': lambda x: torch.mm(x.flatten(1), x.flatten(1).t())[..., None, None],
    'einsum(channels)': lambda x: torch.einsum('nchw,nciw->nhi', x, x)[..., None],
}
FIXED = 'computes with its number of channels'
STAY = {  # nothing can go, for the reason
    'split(3)': (lambda x: torch.cat(x.split(3, 1)[::-1], 1), FIXED),
    'split([2, 4])': (lambda x: torch.cat(x.split([2, 4], 1), 1), 'split at sizes'),
    'tensor_split([3])': (lambda x: torch.cat(x.tensor_split([3], 1)[::-1], 1), FIXED),
    'tensor_split([2])': (lambda x: torch.cat(x.tensor_split([2], 1), 1), 'split at sizes'),
    'slice(3)': (lambda x: torch.cat([F.relu6(x[:, 3:]), x[:, :3]], 1), FIXED),
    'slice(first 3)': (lambda x: F.pad(x[:, :3], (0, 0, 0, 0, 0, 1)), FIXED),
    'slice(middle)': (lambda x: x[:, 1:4], 'sliced at a size'),
    'flip(channels)': (lambda x: x.flip(1), 'flipped along'),
    'max(places)': (lambda x: x + x.max(2, keepdim=True)[1], 'the places that it is taken from are used'),
    'max(all)': (lambda x: x + x.max(), 'reduced over channels'),
    'std(unbiased)': (lambda x: x + x.std(False), 'reduced over channels'),
    'take_along_dim': (lambda x: x.take_along_dim(torch.zeros(1, 1, 1, 1).long(), 2), 'no rule for this op'),
    'chunk(4)': (lambda x: torch.cat(torch.cat([x, x, x], 1).chunk(4, 1), 1), 'pieces of different sizes'),
    'chunk(6)': (lambda x: torch.cat(x.chunk(6, 1), 1), 'pieces of different sizes, or of one'),
    'slice(channels)': (lambda x: x[:, :4], 'sliced at a size'),
    'select(channel)': (lambda x: x[:, 2].unsqueeze(1), 'a single channel selected'),
    'mean(channels)': (lambda x: x.mean(1, keepdim=True), 'reduced over channels'),
    'sum(all)': (lambda x: x + x.sum(), 'reduced over channels'),
    'softmax(channels)': (lambda x: x.softmax(1), 'normalised over channels'),
    'log_softmax(channels)': (lambda x: x.log_softmax(1), 'normalised over channels'),
    'layer_norm': (lambda x: F.layer_norm(x, x.shape[1:]), 'normalised over channels'),
    'rms_norm': (lambda x: F.rms_norm(x, x.shape[1:]), 'normalised over channels'),
    'repeat_interleave(places)': (
        lambda x: x.repeat_interleave(torch.ones(x.shape[1], dtype=torch.int), 1),
        'no rule for this op',
    ),
    'group_norm': (lambda x: F.group_norm(x, 2), 'normalised over groups'),
    'roll(channels)': (lambda x: x.roll(1, 1), 'rolled along channels'),
    'unbind(channels)': (lambda x: torch.stack(x.unbind(1), 1), 'taken apart along channels'),
    'cumsum': (lambda x: x.cumsum(1), 'no rule for this op (aten.cumsum'),
    'pow(-1)': (lambda x: x**-1, 'no rule for this op (aten.pow'),
    'log': (lambda x: torch.log(x.abs()), 'no rule for this op (aten.log'),
    'rsqrt': (lambda x: torch.rsqrt(x.abs() + x), 'no rule for this op (aten.rsqrt'),
    'clamp(tensor)': (lambda x: x.clamp(torch.zeros(())), 'no rule for this op'),
    'clamp(max=tensor)': (lambda x: x.clamp(max=torch.zeros(())), 'no rule for this op'),
    'div(clamp)': (lambda x: x / x.clamp(min=0), 'divides'),
    'div(shifted)': (lambda x: x / (x + 30), 'divides'),
    'div(nothing added)': (lambda x: x / (x.abs() + x.abs()), 'divides'),
    'add(rigid)': (lambda x: x + torch.ones(6, 1, 1), 'no removable channels there'),
    'pool(channels)': (lambda x: F.max_pool1d(x.flatten(2).transpose(1, 2), 3, 1, 1)[..., None], 'resampled along'),
    'pad(ones)': (lambda x: F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0), 'padded along'),
    'pad(-1)': (lambda x: F.pad(x, (0, 0, 0, 0, 0, -1)), 'padded along'),
    'matmul(vector)': (lambda x: (x.flatten(2) @ torch.ones(16).to(x))[..., None, None], 'as a matrix'),
    'matmul(rigid)': (lambda x: x @ torch.ones(6, 4, 4).to(x), 'no removable channels there'),
    'einsum(one)': (lambda x: torch.einsum('nchw->nhwc', x), 'as a matrix'),
    'embedding': (lambda x: x + F.embedding(torch.arange(3), x[0, :, :, 0])[0, 0], 'looked up along channels'),
    'attention(width)': (lambda x: attended(x.flatten(2).transpose(1, 2)), 'over a dimension that holds channels'),
    'attention(tokens)': (lambda x: attended(x.flatten(2)), 'attended over channels'),
    'attention(mask)': (
        lambda x: F.scaled_dot_product_attention(x, x, x, torch.ones(6, 4, 4).to(x)),
        'no removable channels there',
    ),
    'embedding(channels)': (lambda x: x + F.embedding((x > 0).long(), torch.ones(2, 4).to(x)).sum(-1), 'chosen by'),
    'index(channels)': (lambda x: x[:, torch.tensor([0, 2, 3])], 'indexed along channels'),
    'index(two)': (lambda x: x[:, :, torch.tensor([0, 2]), torch.tensor([1, 3])][..., None], 'no rule for this op'),
    'cat(input)': (lambda x: torch.cat([x, torch.ones_like(x[:, :1])], 2 - 1), 'sliced at a size'),
    'cat(rigid)': (lambda x: torch.cat([x, torch.ones(2, 6, 1, 4)], 2), 'concatenated with a tensor'),
    'stack(rigid)': (lambda x: torch.stack([x, torch.ones(2, 6, 4, 4)]).sum(0), 'stacked with a tensor'),
}


def built(op, flat=False):
    torch.manual_seed(0)
    net = Net(op, out=not flat).double()
    x = example(SHAPE)
    net(x)  # the head learns its width
    return randomize_(net).eval(), x


def check(op, units, passes, flat=False):
    """Units, exact removal, and whether the gate stands on the norm."""
    model, x = built(op, flat)
    graph = trace_channels(model, (x,))
    (group,) = [group for group in graph.groups if group.name == 'conv']
    assert (group.size, group.frozen) == (units, None)
    kept = random_kept(graph)
    error, distance, *_ = removal_errors(model, graph, x, kept)
    assert error < 1e-12 and distance > 1e-3
    where = {
        (p.module, p.kind == AFFINE) for p in place_gates(graph) if (p.index < units).logical_and(p.index >= 0).any()
    }
    assert (('norm', True) in where) is passes
    reference = call(masked_copy(model, graph, kept), x)
    whole = call(model, x)
    gates = attach_gates(model, graph, PolarizationGate)
    assert relative_error(call(model, x), whole) == 0
    for name, mask in kept.items():
        gates[name].theta.data.copy_(mask)
    assert relative_error(call(model, x), reference) < 1e-12


@pytest.mark.parametrize('name', SAME)
def test_homogeneous_ops_pass_channels_and_gates(name):
    check(SAME[name], FREE, GATE)


@pytest.mark.parametrize('name', ZERO)
def test_other_ops_pass_channels_and_send_the_gate_to_the_reader(name):
    check(ZERO[name], FREE, READER)


@pytest.mark.parametrize('name', FLAT)
def test_before_linear_layers(name):
    check(FLAT[name], FREE, GATE, flat=name != 'linear')


@pytest.mark.parametrize('name', PAIRS)
def test_pairs_of_channels_go_together(name):
    check(PAIRS[name], TIED, GATE)


@pytest.mark.parametrize('name', HALVES)
def test_halves_go_together_and_send_the_gate_to_the_reader(name):
    check(HALVES[name], TIED, READER)


@pytest.mark.parametrize('name', SUMMED)
def test_channels_that_are_summed_over_go_from_both_factors(name):
    check(SUMMED[name], FREE, GATE)


@pytest.mark.parametrize('name', STAY)
def test_frozen_for_a_reason(name):
    op, reason = STAY[name]
    model, x = built(op)
    (group,) = [group for group in trace_channels(model, (x,)).groups if group.name == 'conv']
    assert group.frozen is not None and reason in group.frozen


def test_every_row_of_the_table_is_tested():
    tables = (SAME, ZERO, FLAT, PAIRS, HALVES, SUMMED, STAY)
    names = {name.partition('(')[0].rstrip('_') for cases in tables for name in cases}
    elsewhere = {'conv1d', 'conv2d', 'conv3d', 'conv_transpose1d', 'conv_transpose2d', 'conv_transpose3d'}  # toy nets
    assert set(TABLE) - names - elsewhere == set()


def test_the_classes_of_ops():
    def having(trait):
        return {name for name, rule in TABLE.items() if trait in rule.traits}

    assert having(Trait.ELEMENTWISE) >= {'relu', 'sigmoid', 'clamp', 'pow', 'add', 'mul', 'div', 'eq'}
    assert having(Trait.ANY_WIDTH) - having(Trait.ELEMENTWISE) == {'permute', 'transpose', 't', 'mT'}
    assert having(Trait.CONSTANT) - having(Trait.ANY_WIDTH) == {'batch_norm'}
    assert having(Trait.BIAS) == {'linear', 'conv1d', 'conv2d', 'conv3d'}
