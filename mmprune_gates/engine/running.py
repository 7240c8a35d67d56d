"""What hooks and tools ask a runner for."""

from __future__ import annotations

import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import BaseOptimWrapper


def unwrapped(runner) -> torch.nn.Module:
    """The model without a distributed wrapper."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def loss_scale(optim_wrapper: BaseOptimWrapper) -> float:
    """What a loss is multiplied by before its backward: gradient accumulation and mixed precision."""
    scaler = getattr(optim_wrapper, 'loss_scaler', None)
    return float(optim_wrapper.scale_loss(torch.ones(()))) * (scaler.get_scale() if scaler else 1.0)
