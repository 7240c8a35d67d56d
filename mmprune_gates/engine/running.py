"""Questions that hooks and tools ask about a runner."""

from __future__ import annotations

import torch
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import BaseOptimWrapper


def unwrapped(runner) -> torch.nn.Module:
    """The model without a distributed wrapper, and without that of test-time augmentation."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return model.module if isinstance(model, BaseTTAModel) else model


def accumulates(optim_wrapper: BaseOptimWrapper) -> bool:
    """Whether an optimiser wrapper adds up the gradients of several iterations."""
    return float(optim_wrapper.scale_loss(torch.ones(()))) != 1


def has_static_graph(runner) -> bool:
    """Whether the model is in a distributed wrapper that assumes its graph never changes."""
    return is_model_wrapper(runner.model) and bool(getattr(runner.model, 'static_graph', False))


def resumes(runner) -> bool:
    """Whether a run continues an earlier one, and does not just begin with its weights."""
    return runner._resume  # noqa: SLF001 (mmengine has no public name for it)


def loss_scale(optim_wrapper: BaseOptimWrapper) -> float:
    """Factor of a loss before its backward, from gradient accumulation and mixed precision."""
    scaler = getattr(optim_wrapper, 'loss_scaler', None)
    return float(optim_wrapper.scale_loss(torch.ones(()))) * (scaler.get_scale() if scaler else 1.0)
