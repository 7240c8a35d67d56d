"""Models of the pages of measurements: those of our configs, without gates and without pretrained weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprune_gates import cli  # cures come before the imports below

# isort: split
import torch
from torch import Tensor, nn

from mmprune_gates.engine.builders import inference_model
from mmprune_gates.engine.model_config import GATED, stock_model

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
R50, MOBILENET, SEGFORMER = 'DeepLabV3+-R50', 'MobileNetV2', 'SegFormer-B0'
CONFIG_OF = {
    R50: 'gdp_deeplabv3plus_voc.py',
    MOBILENET: 'gdp_mobilenetv2_imagenet.py',
    SEGFORMER: 'ade20k/gdp_segformer_b0_ade20k.py',
    'ResNet-50': 'gdp_resnet50_imagenet.py',
    'VGG-16': 'gdp_vgg16_cifar10.py',
    'ResNet-56': 'gdp_resnet56_cifar10.py',
    'PSPNet-R50': 'cityscapes/gdp_pspnet_cityscapes.py',
    'FCN-HRNet-W18': 'cityscapes/gdp_fcn_hrnet18_cityscapes.py',
    'BiSeNetV2': 'cityscapes/gdp_bisenetv2_cityscapes.py',
    'ConvNeXt-T + UPerNet': 'ade20k/gdp_upernet_convnext_tiny_ade20k.py',
}


def path_of(model: str) -> str:
    """The config file of a model: one of :data:`CONFIG_OF`, or any other file."""
    return str(CONFIGS / CONFIG_OF.get(model, Path(model).absolute()))


def dense_model(model: str, options: Mapping[str, Any] | None = None) -> nn.Module:
    """A model without gates in evaluation mode.

    Args:
        model: Its name, or a config file.
        options: Changes of the config.
    """
    config = cli.load_config(path_of(model), options)
    if config.model.type == GATED:
        config.model = stock_model(config.model)
    return inference_model(config)


def images_of(batch: int, size: Sequence[int]) -> Tensor:
    """(N, 3, H, W) random images."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))
