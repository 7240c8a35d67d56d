"""Helpers to measure a stock model of the zoos, beyond ``model_checks.py``: all outputs, and one training step."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager

import mmprune_gates  # noqa: F401  (cures come before the imports below)

# isort: split
import torch
from mmengine.config import ConfigDict
from model_checks import example
from torch import Tensor, nn

from mmprune_gates.channels import trace
from mmprune_gates.channels.calls import tensors_in
from mmprune_gates.engine.forwards import training_forward
from mmprune_gates.engine.samples import random_labels

DROP = re.compile(r'Drop|Stochastic')


@contextmanager
def default_dtype(dtype: torch.dtype):
    """Let tensors that models create in their forward have this type."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def timed_export(spent: list[float]):
    """Append to ``spent`` the seconds of ``torch.export`` in each trace."""
    original = trace.export

    def timed(*args, **kwargs):
        begin = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - begin)

    trace.export = timed
    try:
        yield
    finally:
        trace.export = original


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor, training: bool = False) -> list[Tensor]:
    """Outputs of all heads, flattened; in training mode without dropout and drop path.

    Random numbers that heads draw in evaluation mode as well (SegNeXt's matrix factors) are the same each time.
    """
    torch.manual_seed(0)
    without_drops(model.train(training))
    return tensors_in(training_forward(model, images))


def without_drops(model: nn.Module) -> None:
    """Turn dropout and drop path off until the model's mode is set again."""
    for module in model.modules():
        if DROP.search(type(module).__name__):
            module.eval()
            if hasattr(module, 'drop_prob') and not isinstance(module, nn.Dropout):
                module.drop_prob = 0.0


def loss_step(model: nn.Module, config: ConfigDict, shape) -> float:
    """One loss with random labels, forward and backward.

    Raises:
        ValueError: The loss is not finite, or fewer than half of the parameters get a gradient.
    """
    torch.manual_seed(0)
    loss = total_loss(model.train(), config, example(shape, 2, torch.float32))
    loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    reached = sum(parameter.grad is not None for parameter in trained)
    if not loss.isfinite() or not all(p.grad.isfinite().all() for p in trained if p.grad is not None):
        raise ValueError('the loss or a gradient is not finite')
    if reached < 0.5 * len(trained):
        raise ValueError(f'only {reached} of {len(trained)} parameters get a gradient')
    return float(loss)


def total_loss(model: nn.Module, config: ConfigDict, images: Tensor) -> Tensor:
    """Sum of all losses with random labels, in the model's mode."""
    losses = model(images, random_labels(config, images), mode='loss')
    return model.parse_losses(losses)[0]
