"""The passes of OpenMMLab models that a channel graph must see: inference, and every head that trains."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from mmprune_gates.engine.model_config import default_input_shape


class Segmentor(Protocol):
    """The parts of an encoder-decoder segmentor."""

    decode_head: Any
    encode_decode: Any
    extract_feat: Any


def example_images(config: Mapping[str, Any]) -> Tensor:
    """(2, C, H, W) random images, the same every time, on which outputs of a model are compared.

    Args:
        config: The model config, which states the size that MACs are counted for.

    Raises:
        ValueError: It states no size.
    """
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *default_input_shape(config), generator=generator)


def inference_forward(model: nn.Module, inputs: Tensor):
    """What ``predict`` computes, without pre- and post-processing: (N, 3, H, W) -> logits or features."""
    if not is_segmentor(model):
        return model(inputs, mode='tensor')
    return decode(model, model.extract_feat(inputs))[-1]


def prediction_forward(model: nn.Module, inputs: Tensor):
    """Logits from which ``predict`` makes labels or scores: (N, 3, H, W) -> (N, classes, H, W) for a segmentor.

    The whole image is one window, whatever ``test_cfg`` says.
    """
    if not is_segmentor(model):
        return model(inputs, mode='tensor')
    size = inputs.shape[2:]
    return model.encode_decode(inputs, [{'img_shape': size, 'pad_shape': size, 'ori_shape': size}])


def training_forward(model: nn.Module, inputs: Tensor):
    """Outputs of every head that takes part in ``mode='loss'``, auxiliary ones included."""
    if not is_segmentor(model):
        return model(inputs, mode='tensor')
    features = model.extract_feat(inputs)
    outputs = decode(model, features)
    for head in as_list(getattr(model, 'auxiliary_head', None)):
        outputs.append(head(features))
    return outputs


def is_segmentor(model: nn.Module) -> TypeGuard[Segmentor]:
    """Whether a model has the parts of an encoder-decoder segmentor."""
    return hasattr(model, 'decode_head') and hasattr(model, 'extract_feat')


def decode(model: Segmentor, features) -> list:
    """Outputs of the decode head, or of each head of a cascade, which also reads the output of the one before."""
    first, *later = as_list(model.decode_head)
    outputs = [first(features)]
    for head in later:
        before = outputs[-1]
        if hasattr(head, 'get_points_train'):
            outputs.append(at_points(head, features, before))
        else:
            outputs.append(head(features, before))
    return outputs


def at_points(head, features, coarse: Tensor) -> Tensor:
    """Output of a head that refines the previous stage at chosen points (PointRend), here at the image centre."""
    from mmcv.ops import point_sample

    points = coarse.new_full((len(coarse), 4, 2), 0.5)
    sample = partial(point_sample, points=points, align_corners=head.align_corners)
    fine = [sample(features[index]) for index in head.in_index]
    return head(torch.cat(fine, 1), sample(coarse))


def as_list(heads) -> list:
    """None, one or several heads as a list."""
    if heads is None:
        return []
    if isinstance(heads, nn.ModuleList):
        return list(heads)
    return [heads]
