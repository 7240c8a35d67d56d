"""Random labels, for steps that are timed or tried without data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

MULTI_LABEL = re.compile(r'MultiLabel|CSRA')  # heads that predict several classes at a time


def random_labels(config: Mapping[str, Any], images: Tensor) -> list:
    """Samples with random label maps or classes, the same every time.

    Args:
        config: The config of a segmentor or a classifier.
        images: (N, C, H, W) images that they are for; labels lie on their device.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(classes: int, *shape: int) -> Tensor:
        return torch.randint(classes, shape, generator=generator).to(images.device)

    if heads := config.get('decode_head'):
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        last = heads[-1] if isinstance(heads, (list, tuple)) else heads
        size = images.shape[2:]
        return [
            SegDataSample(
                gt_sem_seg=PixelData(data=drawn(classes_of(last), 1, *size)),
                gt_edge_map=PixelData(data=drawn(2, 1, *size)),  # which PIDNet's head reads
            )
            for _ in images
        ]
    from mmpretrain.structures import DataSample

    head = config['head']
    classes = classes_of(head)
    labels = [drawn(classes, 1) for _ in images]  # as numbers they would go to the CPU
    if MULTI_LABEL.search(head['type']):
        scores = torch.zeros(classes, device=images.device)
        return [DataSample().set_gt_score(scores.index_fill(0, label, 1)) for label in labels]
    return [DataSample().set_gt_label(label) for label in labels]


def classes_of(head: Mapping[str, Any]) -> int:
    """Number of classes that a head tells apart, or a head in it (K-Net); 10 where none says."""
    parts = [head, *(part for part in head.values() if isinstance(part, Mapping))]
    named = [part['num_classes'] for part in parts if 'num_classes' in part]
    return named[0] if named else 10
