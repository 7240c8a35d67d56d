"""Small nets, torch only. Each has its trap in the docstring, its groups and its MACs by hand.

``free`` maps the groups that can be pruned to their sizes, ``frozen`` the others to a part of their reason,
``macs`` is written beside the layers as output positions x kernel x outputs x inputs. P stands for the 8 x 8
positions of the input.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

P = 8 * 8
NETS: dict[str, type[Toy]] = {}


class Toy(nn.Module):
    """Base of the nets; a subclass registers itself."""

    shape = (3, 8, 8)
    free: dict[str, int] = {}
    frozen: dict[str, str] = {}
    macs = 0
    placements: set[tuple[str, str]] | None = None  # (module, kind) of the gates, where a net has something to say

    def __init_subclass__(cls) -> None:
        NETS[cls.__name__] = cls


def conv(i, o, k=3, **options):
    """A convolution that keeps the size of its input."""
    return nn.Conv2d(i, o, k, padding=k // 2, **options)


def conv_bn(i, o, k=3, act=nn.ReLU, **options):
    """Convolution (``.0``), norm (``.1``), activation (``.2``)."""
    return nn.Sequential(conv(i, o, k, bias=False, **options), nn.BatchNorm2d(o), act())


class Plain(Toy):
    """Nothing special: convolution, norm, ReLU twice, then a head whose output must stay."""

    free = {'a.0': 8, 'b.0': 6}
    frozen = {'head': 'an output of the model'}
    macs = P * 9 * (8 * 3 + 6 * 8) + P * 4 * 6
    placements = {('a.1', 'affine'), ('b.1', 'affine')}

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 8), conv_bn(8, 6), conv(6, 4, 1)

    def forward(self, x):
        return self.head(self.b(self.a(x)))


class Residual(Toy):
    """A stream through two blocks: stem and both second convolutions share one group; the branches have their own."""

    free = {'stem.0': 8, 'a1.0': 6, 'b1.0': 5}
    frozen = {'head': 'an output'}
    macs = P * 9 * (8 * 3 + 6 * 8 + 8 * 6 + 5 * 8 + 8 * 5) + P * 4 * 8
    placements = {(f'{name}.1', 'affine') for name in ('stem', 'a1', 'a2', 'b1', 'b2')}

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.a1, self.a2 = conv_bn(8, 6), conv_bn(6, 8, act=nn.Identity)
        self.b1, self.b2 = conv_bn(8, 5), conv_bn(5, 8, act=nn.Identity)
        self.head = conv(8, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(x + self.a2(self.a1(x)))
        x = F.relu(x + self.b2(self.b1(x)))
        return self.head(x)


class Concat(Toy):
    """Two groups side by side in front of one reader, then a norm over both (DenseNet)."""

    free = {'a.0': 4, 'b.0': 6, 'c': 5}
    frozen = {'head': 'an output'}
    macs = P * 9 * (4 * 3 + 6 * 4 + 5 * 10) + P * 4 * 15
    placements = {('a.1', 'affine'), ('b.1', 'affine'), ('norm', 'affine')}

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 4), conv_bn(4, 6), conv(10, 5)
        self.norm, self.head = nn.BatchNorm2d(15), conv(15, 4, 1)

    def forward(self, x):
        a = self.a(x)
        ab = torch.cat([a, self.b(a)], 1)
        return self.head(F.relu(self.norm(torch.cat([ab, self.c(ab)], 1))))


class TwiceTheSame(Toy):
    """A tensor beside itself: one channel fills two positions of what reads it, and counts twice there."""

    free = {'a.0': 4}
    frozen = {'head': 'an output'}
    macs = P * 9 * 4 * 3 + P * 5 * 8

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.head = conv_bn(3, 4), nn.BatchNorm2d(8), conv(8, 5, 1)

    def forward(self, x):
        a = self.a(x)
        return self.head(self.norm(torch.cat([a, a], 1)))


class Chunk(Toy):
    """Halves by ``chunk``: both must shrink alike, or the second piece would begin elsewhere."""

    free = {'a.0': 4, 'b.0': 4}
    frozen = {'head': 'an output'}
    macs = P * 9 * (8 * 3 + 4 * 4) + P * 3 * 8

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 8), conv_bn(4, 4), conv(8, 3, 1)

    def forward(self, x):
        left, right = self.a(x).chunk(2, 1)
        return self.head(torch.cat([left, self.b(right)], 1))


class Split(Toy):
    """Pieces of a size fixed in the code (Res2Net): it would not follow, so the channels stay."""

    free = {'b.0': 5}
    frozen = {'a.0': 'computes with its number of channels', 'c.0': 'sliced at a size', 'head': 'an output'}
    macs = P * 9 * (8 * 3 + 5 * 4 + 6 * 9) + P * 3 * 4

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head = conv_bn(3, 8), conv_bn(4, 5), conv_bn(9, 6), conv(4, 3, 1)
        self.width = 4

    def forward(self, x):
        left, right = torch.split(self.a(x), self.width, 1)
        return self.head(self.c(torch.cat([left, self.b(right)], 1))[:, :4])


class Depthwise(Toy):
    """A depthwise convolution passes channels on, with no gate before it; without bias, even a norm's gate passes."""

    free = {'a.0': 8}
    frozen = {'head': 'an output'}
    macs = P * (8 * 3 + 9 * 8 + 9 * 8 + 4 * 8)
    placements = {('norm', 'affine')}

    def __init__(self):
        super().__init__()
        self.a = conv_bn(3, 8, 1)
        self.dw, self.norm = conv(8, 8, groups=8, bias=False), nn.BatchNorm2d(8)
        self.last, self.head = conv(8, 8, groups=8, bias=False), conv(8, 4, 1)

    def forward(self, x):
        return self.head(self.last(F.relu(self.norm(self.dw(self.a(x))))))


class DepthwiseMultiplier(Toy):
    """Each input makes two outputs, with a bias and no norm: the gate stands in front of the reader."""

    free = {'a.0': 6}
    frozen = {'head': 'an output'}
    macs = P * (6 * 3 + 9 * 12 + 4 * 12)
    placements = {('head', 'weight')}

    def __init__(self):
        super().__init__()
        self.a, self.dw, self.head = conv_bn(3, 6, 1), conv(6, 12, groups=6), conv(12, 4, 1)

    def forward(self, x):
        return self.head(F.relu(self.dw(self.a(x))))


class ConvGroups(Toy):
    """Two groups of convolution: channels at the same place of each go together, on both sides."""

    free = {'a.0': 4, 'b.0': 3}
    frozen = {'head': 'an output'}
    macs = P * 9 * (8 * 3 + 6 * 4) + P * 4 * 6

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 8), conv_bn(8, 6, groups=2), conv(6, 4, 1)

    def forward(self, x):
        return self.head(self.b(self.a(x)))


class Transposed(Toy):
    """Transposed convolutions, whole, grouped and depthwise: the weight's first dimension reads."""

    free = {'a.0': 4, 'up': 3, 'b.0': 4}
    frozen = {'head': 'an output'}
    # cost per *input* position: every one of them is multiplied with the whole kernel
    macs = P * 9 * 8 * 3 + P * 4 * 8 * 3 + 4 * P * 4 * 6 + 4 * P * 9 * 4 + 16 * P * 5 * 4

    def __init__(self):
        super().__init__()
        self.a = conv_bn(3, 8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.b = conv_bn(6, 4, 1)
        self.dw = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1, groups=4)
        self.head = nn.ConvTranspose2d(4, 5, 1)

    def forward(self, x):
        return self.head(self.dw(self.b(F.relu(self.up(self.a(x))))))


class SharedLayer(Toy):
    """One convolution called twice ties its input to its output; its norms differ."""

    free = {'a.0': 6}
    frozen = {'head': 'an output'}
    macs = P * 9 * (6 * 3 + 2 * 6 * 6) + P * 4 * 6

    def __init__(self):
        super().__init__()
        self.a, self.shared = conv_bn(3, 6), conv(6, 6, bias=False)
        self.norm1, self.norm2, self.head = nn.BatchNorm2d(6), nn.BatchNorm2d(6), conv(6, 4, 1)

    def forward(self, x):
        x = F.relu(self.norm1(self.shared(self.a(x))))
        return self.head(F.relu(self.norm2(self.shared(x))))


class TwoNames(Toy):
    """A block under two names: parameters and paths must agree on one of them."""

    free = {'a.0': 6, 'first.0': 5}
    frozen = {'head': 'an output'}
    macs = P * 9 * (6 * 3 + 5 * 6) + P * 4 * 5

    def __init__(self):
        super().__init__()
        self.a, self.first, self.head = conv_bn(3, 6), conv_bn(6, 5), conv(5, 4, 1)
        self.second = self.first

    def forward(self, x):
        return self.head(self.second(self.a(x)))


class TiedWeights(Toy):
    """Two convolutions that own one weight: it stays one after slimming. No gate can stand at the second."""

    free = {}
    frozen = {'a.0': 'no parameter of the module', 'head': 'an output'}
    macs = P * 9 * (6 * 3 + 2 * 6 * 6) + P * 4 * 6

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head = conv_bn(3, 6), conv(6, 6), conv(6, 6), conv(6, 4, 1)
        self.c.weight = self.b.weight

    def forward(self, x):
        return self.head(F.relu(self.c(F.relu(self.b(self.a(x))))))


class FlattenLinear(Toy):
    """Flatten before a linear layer: each channel fills as many inputs as it has positions."""

    free = {'a.0': 6, 'fc': 7}
    frozen = {'head': 'an output'}
    macs = P * 9 * 6 * 3 + 7 * 6 * 16 + 4 * 7
    placements = {('a.1', 'affine'), ('fc', 'output')}

    def __init__(self):
        super().__init__()
        self.a, self.pool = conv_bn(3, 6), nn.AdaptiveAvgPool2d(4)
        self.fc, self.head = nn.Linear(6 * 16, 7), nn.Linear(7, 4)

    def forward(self, x):
        return self.head(F.relu(self.fc(self.pool(self.a(x)).flatten(1))))


class LinearRanks(Toy):
    """One linear layer reads tensors of two ranks: channels are the last dimension, whichever that is."""

    free = {'a': 6, 'shared': 6}
    frozen = {'head': 'an output'}
    macs = P * 6 * 3 + (P + 1) * 6 * 6 + (P + 1) * 4 * 6

    def __init__(self):
        super().__init__()
        self.a, self.shared, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        x = F.silu(self.a(x.flatten(2).transpose(1, 2)))
        y = F.silu(self.shared(x))
        z = F.silu(self.shared(x.mean(1)))
        return self.head(y), self.head(z)


class TwoHeads(Toy):
    """Two heads read one stream: a gate that serves one must serve the other."""

    free = {'a.0': 6, 'one.0.0': 5, 'two.0': 4}
    frozen = {'one.1': 'an output', 'two_out': 'an output'}
    macs = P * 9 * 6 * 3 + P * 9 * 5 * 6 + P * 4 * 5 + P * 4 * 6 + P * 3 * 4

    def __init__(self):
        super().__init__()
        self.a = conv_bn(3, 6)
        self.one = nn.Sequential(conv_bn(6, 5), conv(5, 4, 1))
        self.two, self.two_out = conv_bn(6, 4, 1, act=nn.SiLU), conv(4, 3, 1)

    def forward(self, x):
        x = self.a(x)
        return {'one': self.one(x), 'two': self.two_out(self.two(x))}


class Decoder(Toy):
    """UNet: pooling, bilinear upsampling and a skip connection between producer and reader."""

    free = {'a.0': 4, 'b.0': 8, 'c.0': 6}
    frozen = {'head': 'an output'}
    macs = P * 9 * 4 * 3 + P // 4 * 9 * 8 * 4 + P * 9 * 6 * 12 + P * 4 * 6
    placements = {('a.1', 'affine'), ('b.1', 'affine'), ('c.1', 'affine')}

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head = conv_bn(3, 4), conv_bn(4, 8), conv_bn(12, 6), conv(6, 4, 1)

    def forward(self, x):
        a = self.a(x)
        b = F.interpolate(self.b(F.max_pool2d(a, 2)), size=a.shape[2:], mode='bilinear')
        return self.head(self.c(torch.cat([F.dropout(a, 0.1, self.training), b], 1)))


class AttentionProduct(Toy):
    """Non-local block: channels that are summed over go from query and key; all products count."""

    free = {'a.0': 6, 'query': 4, 'out.0': 5}
    frozen = {'head': 'an output'}
    macs = P * 9 * 6 * 3 + 2 * P * 4 * 6 + P * P * 4 + P * P * 6 + P * 5 * 6 + P * 4 * 5

    def __init__(self):
        super().__init__()
        self.a, self.query, self.key = conv_bn(3, 6), conv(6, 4, 1), conv(6, 4, 1)
        self.out, self.head = conv_bn(6, 5, 1, act=nn.LeakyReLU), conv(5, 4, 1)

    def forward(self, x):
        x = self.a(x)
        weights = torch.einsum('ncp,ncq->npq', self.query(x).flatten(2), self.key(x).flatten(2)).softmax(-1)
        mixed = torch.matmul(x.flatten(2), weights.transpose(1, 2)).unflatten(2, x.shape[2:])
        return self.head(self.out(mixed))


class MultiHead(Toy):
    """torch's own attention uses its layers' weights itself: gates act on them there, heads go, everything counts."""

    shape = (3, 4, 4)
    free = {'attention': 2, 'up': 7}
    frozen = {'embed': 'an output'}
    macs = 16 * (8 * 3 + 24 * 8 + 8 * 8 + 7 * 8 + 8 * 7) + 2 * 16 * 16 * 8

    def __init__(self):
        super().__init__()
        self.embed, self.attention = conv(3, 8, 1), nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down = nn.Linear(8, 7), nn.Linear(7, 8)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(x)))


class NormFirst(Toy):
    """A norm of the input, with no convolution before it, has no channel to lose; nor does depthwise on it."""

    free = {'a.0': 6}
    frozen = {'head': 'an output'}
    macs = P * 9 * 3 + P * 9 * 6 * 3 + P * 4 * 6

    def __init__(self):
        super().__init__()
        self.norm, self.dw = nn.BatchNorm2d(3), conv(3, 3, groups=3)
        self.a, self.head = conv_bn(3, 6), conv(6, 4, 1)

    def forward(self, x):
        return self.head(self.a(self.dw(self.norm(x))))


class SpatialAttention(Toy):
    """A convolution with one output, multiplied with all channels: it has no channel of its own to lose."""

    free = {'a.0': 6}
    frozen = {'head': 'an output'}
    macs = P * 9 * 6 * 3 + P * 9 * 6 + P * 4 * 6
    placements = {('a.1', 'affine')}

    def __init__(self):
        super().__init__()
        self.a, self.attention, self.head = conv_bn(3, 6), conv(6, 1), conv(6, 4, 1)

    def forward(self, x):
        x = self.a(x)
        return self.head(x * torch.sigmoid(self.attention(x)))


class SqueezeExcite(Toy):
    """A factor per channel from the channels: behind the sigmoid it is not zero for a closed one."""

    free = {'a.0': 8, 'down': 4}
    frozen = {'head': 'an output'}
    macs = P * 9 * 8 * 3 + 4 * 8 + 8 * 4 + P * 4 * 8
    placements = {('a.1', 'affine'), ('down', 'affine')}

    def __init__(self):
        super().__init__()
        self.a, self.down, self.up, self.head = conv_bn(3, 8), conv(8, 4, 1), conv(4, 8, 1), conv(8, 4, 1)

    def forward(self, x):
        x = self.a(x)
        factor = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(x * factor)


class SiluNet(Toy):
    """SiLU is not homogeneous: the gate goes to the readers, all of them, never to the norm."""

    free = {'a.0': 6, 'b.0': 5}
    frozen = {'head': 'an output', 'other': 'an output'}
    macs = P * 9 * (6 * 3 + 5 * 6) + P * 4 * 5 + P * 2 * 6
    placements = {('b.0', 'weight'), ('other', 'weight'), ('head', 'weight')}

    def __init__(self):
        super().__init__()
        self.a, self.b = conv_bn(3, 6, act=nn.SiLU), conv_bn(6, 5, act=nn.SiLU)
        self.head, self.other = conv(5, 4, 1), conv(6, 2, 1)

    def forward(self, x):
        x = self.a(x)
        return self.head(self.b(x)), self.other(x)


class Relu6Net(Toy):
    """MobileNetV2: ReLU6 clips, so a gate does not pass it; the block's output, without activation, does."""

    free = {'stem.0': 6, 'expand.0': 9}
    frozen = {'head': 'an output'}
    macs = P * 9 * 6 * 3 + P * (9 * 6 + 9 * 9 + 6 * 9) + P * 4 * 6
    placements = {('stem.1', 'affine'), ('project.1', 'affine'), ('project.0', 'weight')}

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 6, act=nn.Identity)
        self.expand, self.dw = conv_bn(6, 9, 1, act=nn.ReLU6), conv_bn(9, 9, groups=9, act=nn.ReLU6)
        self.project, self.head = conv_bn(9, 6, 1, act=nn.Identity), conv(6, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.project(self.dw(self.expand(x))))


class HardswishNet(Toy):
    """MobileNetV3: Hardswish, Hardsigmoid in squeeze-excite; before the wide head the input is the cheaper side."""

    shape = (3, 2, 2)
    free = {'a.0': 8, 'down': 4}
    frozen = {'head': 'an output'}
    macs = 4 * 9 * 8 * 3 + 4 * 8 + 8 * 4 + 4 * 80 * 8
    placements = {('down', 'weight'), ('down', 'affine'), ('head', 'input')}

    def __init__(self):
        super().__init__()
        self.a = conv_bn(3, 8, act=nn.Hardswish)
        self.down, self.up, self.head = conv(8, 4, 1), conv(4, 8, 1), conv(8, 80, 1)

    def forward(self, x):
        x = self.a(x)
        return self.head(x * F.hardsigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))))


class NoNorm(Toy):
    """VGG without norms: the gate scales the convolutions themselves."""

    free = {'a': 6, 'b': 5}
    frozen = {'head': 'an output'}
    macs = P * 9 * (6 * 3 + 5 * 6) + P * 4 * 5
    placements = {('a', 'affine'), ('b', 'affine')}

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 5), conv(5, 4, 1)

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.a(x)))))


class NormWithoutAffine(Toy):
    """A norm that has no affine offers no place for a gate; after it a closed channel is not zero."""

    free = {'a': 6, 'b': 5}
    frozen = {'head': 'an output'}
    macs = P * 9 * (6 * 3 + 5 * 6) + P * 4 * 5
    placements = {('b', 'weight'), ('head', 'weight')}

    def __init__(self):
        super().__init__()
        self.a, self.norm_a = conv(3, 6), nn.BatchNorm2d(6, affine=False)
        self.b, self.norm_b = conv(6, 5), nn.InstanceNorm2d(5)
        self.head = conv(5, 4, 1)

    def forward(self, x):
        return self.head(F.relu(self.norm_b(self.b(F.relu(self.norm_a(self.a(x)))))))


class ChannelShuffle(Toy):
    """ShuffleNet: halves, depthwise, and a shuffle by view, transpose, view."""

    free = {'a.0': 2, 'mix': 4}
    frozen = {'head': 'an output'}
    macs = P * 9 * 8 * 3 + P * 9 * 4 + P * 4 * 4 + P * 8 * 4 + P * 4 * 8

    def __init__(self):
        super().__init__()
        self.a = conv_bn(3, 8)
        self.dw, self.pw = conv(4, 4, groups=4), conv_bn(4, 4, 1)
        self.mix, self.head = conv(8, 8, 1, groups=2), conv(8, 4, 1)

    def forward(self, x):
        left, right = self.a(x).chunk(2, 1)
        x = torch.cat([left, self.pw(self.dw(right))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        return self.head(F.relu(self.mix(x)))


class InferredSize(Toy):
    """A view whose outer part is -1: it is the outer part that shrinks, pairs of neighbours go together."""

    free = {'a.0': 4}
    frozen = {'head': 'an output'}
    macs = P * 9 * 8 * 3 + P * 5 * 4

    def __init__(self):
        super().__init__()
        self.a, self.head = conv_bn(3, 8), conv(4, 5, 1)

    def forward(self, x):
        x = self.a(x)
        return self.head(x.view(x.shape[0], -1, 2, *x.shape[2:]).sum(2))


class UnusedLayer(Toy):
    """A layer that the forward never calls keeps its shape, and is reported."""

    free = {'a.0': 6}
    frozen = {'head': 'an output'}
    macs = P * 9 * 6 * 3 + P * 4 * 6

    def __init__(self):
        super().__init__()
        self.a, self.unused, self.head = conv_bn(3, 6), conv_bn(6, 6), conv(6, 4, 1)

    def forward(self, x):
        return self.head(self.a(x))


class UnknownOp(Toy):
    """An op without a rule freezes what it touches, and only that."""

    free = {'b.0': 5}
    frozen = {'a.0': 'no rule for this op (aten.cumsum in the model itself)', 'head': 'an output'}
    macs = P * 9 * (6 * 3 + 5 * 6) + P * 4 * 5

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 6), conv_bn(6, 5), conv(5, 4, 1)

    def forward(self, x):
        return self.head(self.b(self.a(x).cumsum(1)))


class InPlace(Toy):
    """In-place ReLU and addition relabel the tensor they change, under whichever name it is read."""

    free = {'a.0': 6}
    frozen = {'head': 'an output'}
    macs = P * 9 * (6 * 3 + 6 * 6) + P * 4 * 6
    placements = {('b.0', 'weight'), ('head', 'weight')}

    def __init__(self):
        super().__init__()
        self.a = conv_bn(3, 6, act=lambda: nn.SiLU(inplace=True))
        self.b, self.head = conv_bn(6, 6, act=nn.Identity), conv(6, 4, 1)

    def forward(self, x):
        x = self.a(x)
        y = self.b(x)
        y += x
        y.mul_(2).relu_()
        return self.head(y)


class InPlaceReused(Toy):
    """An in-place sum whose result nobody takes: the tensor that is read later needs the gates of both norms."""

    free = {'a.0': 6}
    frozen = {'head': 'an output'}
    macs = P * 9 * 2 * 6 * 3 + P * 4 * 6
    placements = {('a.1', 'affine'), ('b.1', 'affine')}

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 6, act=nn.Identity), conv_bn(3, 6), conv(6, 4, 1)

    def forward(self, x):
        y = self.a(x)
        y.add_(self.b(x))
        return self.head(y)


class MixedPieces(Toy):
    """A channel before and after a norm, folded onto each other: the norm's gate reaches one of the two only."""

    free = {'a': 6}
    frozen = {'head': 'an output'}
    macs = P * 9 * 6 * 3 + P * 4 * 6
    placements = {('a', 'affine'), ('norm', 'affine')}

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.head = conv(3, 6), nn.BatchNorm2d(6), conv(6, 4, 1)

    def forward(self, x):
        x = self.a(x)
        both = torch.cat([self.norm(x), x], 1)
        return self.head(both.view(len(x), 2, -1, *x.shape[2:]).sum(1))


class GroupedReader(Toy):
    """A gate on the input of a convolution in groups, whose weight has half as many inputs."""

    shape = (3, 2, 2)
    free = {'a': 4, 'b': 6}
    frozen = {'head': 'an output'}
    macs = 4 * 9 * (8 * 3 + 12 * 4) + 4 * 4 * 12
    placements = {('a', 'affine'), ('b', 'output')}

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 12, groups=2), conv(12, 4, 1)

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.a(x)))))


class InPlaceView(Toy):
    """A view changed in place: what reads the whole tensor later sees the change, so nothing is known of it."""

    free = {}
    frozen = {'a.0': 'changed in place through a view', 'head': 'an output'}
    macs = P * 9 * 6 * 3 + P * 4 * 6

    def __init__(self):
        super().__init__()
        self.a, self.head = conv_bn(3, 6), conv(6, 4, 1)

    def forward(self, x):
        x = self.a(x)
        x[:, :, 1:3] += 1
        return self.head(x)


class Prelu(Toy):
    """A slope per channel is one more slot; one slope for all is none. A gate passes both."""

    free = {'a.0': 6, 'b.0': 5}
    frozen = {'head': 'an output'}
    macs = P * 9 * (6 * 3 + 5 * 6) + P * 4 * 5
    placements = {('a.1', 'affine'), ('b.1', 'affine')}

    def __init__(self):
        super().__init__()
        self.a, self.b = conv_bn(3, 6, act=lambda: nn.PReLU(6)), conv_bn(6, 5, act=nn.PReLU)
        self.head = conv(5, 4, 1)

    def forward(self, x):
        return self.head(self.b(self.a(x)))


class LayerScale(Toy):
    """Plain parameters: a factor and a shift per channel, in a module that holds them under names of its own."""

    free = {'a.0': 6, 'b.0': 5}
    frozen = {'head': 'an output'}
    macs = P * 9 * (6 * 3 + 5 * 6) + P * 4 * 5
    placements = {('a.1', 'affine'), ('head', 'weight')}

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 6), conv_bn(6, 5), conv(5, 4, 1)
        self.gamma, self.beta = nn.Parameter(torch.ones(6, 1, 1)), nn.Parameter(torch.ones(1, 5, 1, 1))

    def forward(self, x):
        return self.head(self.b(self.a(x) * self.gamma) + self.beta)


class ResponseNorm(nn.Module):
    """Global response norm, (N, C, H, W): every channel is divided by the mean over all channels."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        size = x.norm(dim=(2, 3), keepdim=True)
        scaled = x * size / (size.mean(1, keepdim=True) + 1e-6)
        return x + scaled * self.weight[:, None, None] + self.bias[:, None, None]


class OtherNorms(Toy):
    """Modules that take statistics over channels, one of them twice: they keep their full width amid fewer channels."""

    free = {'a': 6, 'b': 4, 'c': 5, 'd': 6}
    frozen = {'head': 'an output'}
    macs = P * 9 * (6 * 3 + 4 * 6 + 5 * 4 + 6 * 5 + 6 * 6) + P * 4 * 6
    placements = {(name, 'input') for name in ('group', 'layer', 'response', 'last')}
    placements |= {(name, 'weight') for name in ('b', 'c', 'd', 'e', 'head')}

    def __init__(self):
        super().__init__()
        self.a, self.group = conv(3, 6), nn.GroupNorm(2, 6)
        self.b, self.layer = conv(6, 4), nn.LayerNorm(4)
        self.c, self.response = conv(4, 5), ResponseNorm(5)
        self.d, self.e, self.last, self.head = conv(5, 6), conv(6, 6), nn.GroupNorm(1, 6), conv(6, 4, 1)

    def forward(self, x):
        x = F.relu(self.group(self.a(x)))
        x = self.layer(self.b(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.last(self.d(self.response(self.c(x))))
        return self.head(x + self.last(self.e(x)))


class PixelShuffle(Toy):
    """Four channels become one at twice the size: they go together."""

    free = {'a.0': 3}
    frozen = {'head': 'an output'}
    macs = P * 9 * 12 * 3 + 4 * P * 4 * 3

    def __init__(self):
        super().__init__()
        self.a, self.shuffle, self.head = conv_bn(3, 12), nn.PixelShuffle(2), conv(3, 4, 1)

    def forward(self, x):
        return self.head(self.shuffle(self.a(x)))


class Casts(Toy):
    """Casts and checks, constants and templates of the same shape must not freeze anything."""

    free = {'a.0': 6}
    frozen = {'head': 'an output'}
    macs = P * 9 * 6 * 3 + P * 4 * 6

    def __init__(self):
        super().__init__()
        self.a, self.head = conv_bn(3, 6), conv(6, 4, 1)

    def forward(self, x):
        y = self.a(x).to(x.dtype)
        y = 1 - (0.5 * y + torch.ones_like(y)) ** 2 / 3 - torch.zeros_like(y)
        return self.head(y)


class OwnConv(nn.Conv2d):
    """A convolution with a forward of its own, which changes its input first."""

    def forward(self, x):
        return super().forward(F.pad(F.silu(x), (1, 1, 1, 1)))


class OwnLayers(Toy):
    """Layers that are not torch's own: their input is not what their weight reads, or they have no `weight`.

    The input of ``b`` would be the smaller side (6 x 16 against 20 x 6), but it is not what is convolved.
    """

    shape = (3, 2, 2)
    free = {'a.0': 6, 'b': 20}
    frozen = {'c.0': 'no parameter of the module', 'kernel': 'an output'}
    macs = 4 * 9 * 6 * 3 + 16 * 20 * 6 + 16 * 5 * 20 + 16 * 4 * 5
    placements = {('b', 'weight'), ('c.0', 'weight')}

    def __init__(self):
        super().__init__()
        self.a, self.b = conv_bn(3, 6, act=nn.Identity), OwnConv(6, 20, 1)
        self.c = conv_bn(20, 5, 1)
        self.kernel = nn.Parameter(torch.ones(4, 5, 1, 1))

    def forward(self, x):
        return F.conv2d(self.c(F.silu(self.b(self.a(x)))), self.kernel)


class OtherRanks(Toy):
    """Three dimensions and one: the rules do not depend on the number of positions."""

    shape = (3, 4, 4, 4)
    free = {'a': 4, 'b': 5}
    frozen = {'head': 'an output'}
    macs = 64 * 27 * 4 * 3 + 64 * 3 * 5 * 4 + 64 * 4 * 5

    def __init__(self):
        super().__init__()
        self.a, self.norm_a = nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4)
        self.b, self.norm_b = nn.Conv1d(4, 5, 3, padding=1), nn.BatchNorm1d(5)
        self.head = nn.Conv1d(5, 4, 1)

    def forward(self, x):
        x = F.relu(self.norm_a(self.a(x))).flatten(2)
        return self.head(F.relu(self.norm_b(self.b(x))))


nets = pytest.mark.parametrize('net', NETS.values(), ids=NETS)
pruned = pytest.mark.parametrize('net', [n for n in NETS.values() if n.free], ids=[n for n in NETS if NETS[n].free])
