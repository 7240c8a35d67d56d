"""The ResNets for CIFAR; mmpretrain has only wider relatives (its ``ResNet_CIFAR`` has four stages)."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from mmprune_gates.engine.registry import MODELS

DEPTHS = (20, 32, 44, 56, 110)


@MODELS.register_module(name='CifarResNet')
def build_cifar_resnet(depth: int, **config: Any) -> nn.Module:
    """ResNet of depth 6n+2 for small images: three stages of 16, 32 and 64 channels, n basic blocks each.

    Source: He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016, section 4.2.

    Differs from the paper: where a stage halves the size, the shortcut is mmpretrain's (a 1x1 convolution and a
    norm); the paper's has no parameters (every other pixel, zeros in the new channels).

    Args:
        depth: One of :data:`DEPTHS`.
        **config: Further arguments of mmpretrain's ``ResNet_CIFAR``.

    Returns:
        A ``ResNet_CIFAR``; called on (N, 3, H, W), it returns a tuple of one tensor, (N, 64, H / 4, W / 4).

    Raises:
        ValueError: The depth is another one.
    """
    if depth not in DEPTHS:
        raise ValueError(f'CifarResNet: depth must be one of {DEPTHS}, got {depth!r}')
    defaults = dict(
        stem_channels=16, base_channels=16, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,)
    )
    return backbone_class()(depth, **{**defaults, **config})


@cache
def backbone_class() -> type[nn.Module]:
    """The stock class with the block counts of these depths; mmpretrain is imported only when this is called."""
    from mmpretrain.models.backbones.resnet import BasicBlock
    from mmpretrain.models.backbones.resnet_cifar import ResNet_CIFAR

    class CifarResNet(ResNet_CIFAR):
        arch_settings = {depth: (BasicBlock, ((depth - 2) // 6,) * 3) for depth in DEPTHS}

    return CifarResNet
