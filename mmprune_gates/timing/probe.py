"""Finds the steps of width in which a machine becomes faster, with small residual networks at many widths.

Whole networks rather than single layers: onnxruntime, for instance, keeps channels in blocks from layer to layer, and
moves them where a width does not fill its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from statistics import mean

import torch
from torch import Tensor, nn

from mmprune_gates.timing.clock import Call, Clock, medians

STEPS = (2, 4, 8, 16, 32)
WIDTHS = range(44, 65)
INPUT = (1, 3, 32, 32)
ON_GPU = (16, 3, 128, 128)  # less would be launches of kernels only, for which widths do not count
SLOWER = 1.04  # factor by which time may grow when multiples of a step are rounded up to those of twice the step


class Probe(nn.Module):
    """Two residual blocks with a depthwise convolution.

    Args:
        width: Channels of all its layers.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList([self.branch(width) for _ in range(2)])

    @staticmethod
    def branch(width: int) -> nn.Sequential:
        """The branch that a block adds to its input."""
        return nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, images: Tensor, mode: str = 'tensor') -> Tensor:
        """Features of images; ``mode``, which OpenMMLab's models take, is ignored."""
        features = self.stem(images)
        for block in self.blocks:
            features = torch.relu(features + block(features))
        return features


def step_of(call: Callable[[nn.Module, Tensor], Call], now: Clock, shape: Sequence[int] = INPUT) -> int:
    """The largest step to whose multiples widths can be rounded up at no cost, 1 if there is none.

    A step is doubled as long as rounding its multiples up further takes no longer.

    Args:
        call: Makes a function that runs a model on images.
        now: The clock.
        shape: (N, C, H, W) of the images.
    """
    images = torch.ones(*shape)
    calls = [call(Probe(width), images) for width in WIDTHS]
    took = dict(zip(WIDTHS, medians(calls, now), strict=True))
    best = 1
    for step in STEPS:
        if slowdown(took, best, step) > SLOWER:
            break
        best = step
    return best


def slowdown(took: Mapping[int, float], step: int, further: int) -> float:
    """Time at a multiple of ``step`` rounded up to one of ``further`` over that before, mean over those that differ."""
    rounded = {width: ceil(width / further) * further for width in took if width % step == 0}
    return mean(took[more] / took[width] for width, more in rounded.items() if more != width)
