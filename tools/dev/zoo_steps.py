"""What measuring a stock model consists of: random weights and masks, all outputs, errors, one training step."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from typing import Any

import mmprune_gates  # noqa: F401  (cures come before the imports below)

# isort: split
import torch
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from torch import Tensor, nn

from mmprune_gates.channels import ChannelGraph
from mmprune_gates.engine.forwards import training_forward

DROP = re.compile(r'Drop|Stochastic')
MULTI_LABEL = re.compile(r'MultiLabel|CSRA')


def randomize_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor values that no slip can hide behind; signals keep their size through deep nets.

    Norms get statistics and an affine as after training, plain vectors values around one, biases around zero.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        return tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    for module in model.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            value = tensor.detach()
            if not value.is_floating_point() or name in fixed(module):
                continue
            if name == 'running_mean' or name.endswith('bias'):
                uniform(value, -0.3, 0.3)
            elif value.dim() > 1 and value[0].numel() > 1:
                transposed = isinstance(module, nn.ConvTranspose2d)
                fan_in = value.numel() // max(value.shape[:2]) if transposed else value[0].numel()
                uniform(value, -1, 1).mul_((6 / fan_in) ** 0.5)
            else:
                uniform(value, 0.5, 1.5)
    return model


def fixed(module: nn.Module) -> set[str]:
    """Names of buffers that are constants of the architecture: all but the statistics of norms."""
    return {name for name, _ in module.named_buffers(recurse=False)} - {'running_mean', 'running_var'}


def example(shape, batch: int = 1, dtype=torch.float64) -> Tensor:
    """(N, C, H, W) random images."""
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@contextmanager
def default_dtype(dtype: torch.dtype):
    """What models create in their forward is of this type."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def timed_export(spent: list[float]):
    """Note the seconds that each ``torch.export.export`` takes."""
    original = torch.export.export

    def timed(*args, **kwargs):
        begin = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - begin)

    torch.export.export = timed
    try:
        yield
    finally:
        torch.export.export = original


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor, training: bool = False) -> list[Tensor]:
    """Outputs of all heads, flattened; in training mode without dropout and drop path.

    Some heads draw random numbers in evaluation mode as well (SegNeXt's matrix factors): they are the same each time.
    """
    torch.manual_seed(0)
    model.train(training)
    for module in model.modules():
        if DROP.search(type(module).__name__):
            module.eval()
            if hasattr(module, 'drop_prob') and not isinstance(module, nn.Dropout):
                module.drop_prob = 0.0
    return flat(training_forward(model, images))


def flat(value: Any) -> list[Tensor]:
    """All tensors of nested outputs."""
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [tensor for part in values if part is not None for tensor in flat(part)]


def relative_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest deviation, relative to the largest value of the same output.

    Raises:
        ValueError: Other shapes, or an output that shows nothing: not finite, or zero.
    """
    errors = []
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:
            raise ValueError(f'an output has shape {tuple(a.shape)}, expected {tuple(b.shape)}')
        if not b.isfinite().all() or not b.any():
            raise ValueError('an output of the reference is not finite, or zero')
        errors.append(float((a - b).abs().max() / b.abs().max()))
    return max(errors)


def random_kept(graph: ChannelGraph, seed: int = 0) -> dict[str, Tensor]:
    """Masks that remove a random 30 to 50 % of every free group, at least one channel kept."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in graph.free:
        share = 0.5 + 0.2 * float(torch.rand((), generator=generator))
        order = torch.randperm(group.size, generator=generator)
        kept[group.name] = order < max(1, round(share * group.size))
    return kept


def loss_step(model: nn.Module, config: ConfigDict, shape) -> float:
    """One loss with random labels, forward and backward.

    Raises:
        ValueError: The loss is not finite, or fewer than half of the parameters get a gradient.
    """
    torch.manual_seed(0)
    images = example(shape, 2, torch.float32)
    losses = model.train()(images, labels(model, config, images), mode='loss')
    loss = sum(part for name, value in losses.items() if 'loss' in name for part in means(value))
    loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    reached = sum(parameter.grad is not None for parameter in trained)
    if not loss.isfinite() or not all(p.grad.isfinite().all() for p in trained if p.grad is not None):
        raise ValueError('the loss or a gradient is not finite')
    if reached < 0.5 * len(trained):
        raise ValueError(f'only {reached} of {len(trained)} parameters get a gradient')
    return float(loss)


def means(value: Any) -> list[Tensor]:
    """Mean of a loss, or of each of a list."""
    return [part.mean() for part in flat(value)]


def labels(model: nn.Module, config: ConfigDict, images: Tensor) -> list:
    """Random label maps or class labels, several for heads that predict several."""
    if config.get('decode_head'):
        from mmseg.structures import SegDataSample

        maps = [torch.randint(0, model.num_classes, (1, *images.shape[2:])) for _ in images]
        edges = [torch.randint(0, 2, (1, *images.shape[2:])) for _ in images]
        return [
            SegDataSample(gt_sem_seg=PixelData(data=a), gt_edge_map=PixelData(data=b))
            for a, b in zip(maps, edges, strict=True)
        ]
    from mmpretrain.structures import DataSample

    classes = config.head.get('num_classes', 10)
    drawn = [torch.randint(0, classes, (1,)) for _ in images]
    if MULTI_LABEL.search(config.head.type):
        return [DataSample().set_gt_score(torch.zeros(classes).index_fill_(0, label, 1)) for label in drawn]
    return [DataSample().set_gt_label(label) for label in drawn]
